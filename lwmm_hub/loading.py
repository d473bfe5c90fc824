"""Load a merged folder with transformers, and be sure that every key found its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwmm_hub.errors import OutputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(folder: str | Path, **options: Any) -> PreTrainedModel:
    """The model in a folder, loaded by the transformers class that its config names.

    transformers fills missing keys with random numbers and only logs it; here that is an error.

    Args:
        folder: with config.json and weights.
        **options: passed to `from_pretrained`.

    Raises:
        OutputError: there is no config, no such class, or keys are missing, left over or misshapen.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = config["architectures"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise OutputError(
            f"{folder} has no config.json that names a class, so transformers cannot load it. Load "
            "its weights into your own model: safetensors.torch.load_file('model.safetensors')."
        ) from error
    import transformers

    from lwmm_hub.tracing.guard import no_hub

    model_class = getattr(transformers, name, None) if isinstance(name, str) else None
    if model_class is None or not hasattr(model_class, "from_pretrained"):
        raise OutputError(
            f"this transformers ({transformers.__version__}) has no class {name!r}. Update it."
        )
    with no_hub():  # configs that name a backbone make transformers ask whether it is a repository
        model, found = model_class.from_pretrained(folder, output_loading_info=True, **options)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = [k for k in found[what] if not str(k).endswith("num_batches_tracked")]
        if keys:
            raise OutputError(
                f"{folder} loads with {len(keys)} {what.replace('_', ' ')}, e.g. {keys[0]!r}: "
                "it is incomplete. Merge again."
            )
    loaded: PreTrainedModel = model
    return loaded
