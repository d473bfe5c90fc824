"""Load a merged folder with transformers, and be sure that every key found its place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwmm_hub.errors import OutputError
from lwmm_hub.small_files import read_small

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_CONFIG = 10 << 20  # bytes, as in models that are merged


def load_model(
    folder: str | Path, weights: Mapping[str, Any] | None = None, **options: Any
) -> PreTrainedModel:
    """The model in a folder, loaded by the transformers class that its config names.

    transformers fills missing keys with random numbers and only logs it; here that is an error.

    Args:
        folder: with config.json and weights.
        weights: file key -> tensor, instead of the folder's own weights.
        **options: passed to `from_pretrained`.

    Raises:
        OutputError: there is no folder, no config, no such class, or keys are missing, left over or
            of another shape.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OutputError(f"there is no folder {folder}. Name a merged folder, or merge again.")
    try:
        config = json.loads(read_small(folder / "config.json", _MAX_CONFIG))
        name = config["architectures"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise OutputError(
            f"{folder} has no config.json that names a class, so transformers cannot load it. Load "
            "its weights into your own model: safetensors.torch.load_file('model.safetensors')."
        ) from error
    import transformers

    from lwmm_hub.tracing.guard import no_hub, silence
    from lwmm_hub.tracing.names import borrowed_renames

    model_class = getattr(transformers, name, None) if isinstance(name, str) else None
    if model_class is None or not hasattr(model_class, "from_pretrained"):
        raise OutputError(
            f"this transformers ({transformers.__version__}) has no class {name!r}. Update it."
        )
    options["ignore_mismatched_sizes"] = True  # they are told below, in words of ours

    def load() -> tuple[PreTrainedModel, dict[str, Any]]:
        if weights is None:
            model, found = model_class.from_pretrained(folder, output_loading_info=True, **options)
        else:  # transformers takes a folder or tensors, not both
            config = model_class.config_class.from_pretrained(folder)
            model, found = model_class.from_pretrained(
                None, config=config, state_dict=dict(weights), output_loading_info=True, **options
            )
        return model, found

    # configs that name a backbone make transformers ask whether it is a repository
    with silence(), no_hub():
        model, found = load()
        if _complaint(found):
            with borrowed_renames(name) as borrowed:
                if borrowed:
                    model, found = load()
    if found["mismatched_keys"]:
        key, there, wanted = min(found["mismatched_keys"])
        raise OutputError(
            f"{folder.name} does not load: {key} is {tuple(there)}, and its config.json asks for "
            f"{tuple(wanted)}. Put the config.json of these weights there; its id2label names "
            "every class."
        )
    complaint = _complaint(found)
    if complaint and weights is not None:
        raise OutputError(
            f"the weights that are named in {folder.name} are not those of {name}, which its "
            f"config.json names: it {complaint}. Put them into a folder of their own with the "
            "config.json of their network: 'lwmm-hub convert FILE FOLDER --to transformers'."
        )
    if complaint:
        raise OutputError(f"{folder} {complaint}: it is incomplete. Merge again.")
    return model


# Keys that may be missing: counters, and the final norm of a Swin that is a backbone, which older
# files do not hold and no output depends on.
_NEEDLESS = re.compile(r".*num_batches_tracked|.+\.swin\.layernorm\.(weight|bias)")
# Keys that may be left over: constants that older versions wrote.
_CONSTANT = re.compile(r".*num_batches_tracked|.*relative_position_index")


def _complaint(found: Mapping[str, Any]) -> str:
    """What did not find its place; empty where all that matters did."""
    needless = {"missing_keys": _NEEDLESS, "unexpected_keys": _CONSTANT}
    for what, pattern in needless.items():
        keys = [k for k in found[what] if not pattern.fullmatch(str(k))]
        if keys:
            return f"loads with {len(keys)} {what.replace('_', ' ')}, e.g. {keys[0]!r}"
    return ""
