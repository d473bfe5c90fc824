"""From an untrusted config.json to a model on the meta device."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from lwmm_hub.errors import LayerOrderError
from lwmm_hub.tracing.forward import call_counter

MAX_DEPTH = 1024
MAX_IMAGE_SIDE = 8192
MAX_NUMBER = 1 << 16
MAX_VOCABULARY = 1 << 20
MAX_CONFIG_NODES = 200_000
MAX_CONFIG_NESTING = 16

# (pattern over a field's name, largest value); the first that matches counts. None: the depth rule.
_BOUNDS: tuple[tuple[re.Pattern[str], int | None], ...] = (
    (re.compile(r"vocab|_ids?$|_index$|theta|max_position|label2id"), MAX_VOCABULARY),
    (re.compile(r"(image|img|input|crop)\w*size$|resolution"), MAX_IMAGE_SIDE),
    (re.compile(r"size|dim|channel|width|indices|config|per_stage"), MAX_NUMBER),
    (re.compile(r"(^|_)(depth|layer|block|stage|level|repeat|cell|expert|stack)s?(_|$)"), None),
    (re.compile(r""), MAX_NUMBER),
)

# Fields that make transformers fetch something, or that change numbers and never the order.
_DROPPED_FIELDS = re.compile(
    r"auto_map|trust_remote_code|custom_pipelines|quantization_config|kernel_config|use_kernels"
    r"|(torch_)?dtype|_?(attn|experts)_implementation\w*|_?name_or_path|_commit_hash"
    r"|output_attentions|output_hidden_states|return_dict|use_return_dict|per_layer_config"
)

_TIMM_NAME = re.compile(r"[A-Za-z0-9_.]+")


def check_bounds(config: Mapping[str, Any], n_keys: int) -> None:
    """Refuse a config whose numbers do not fit a file of `n_keys` tensors, before it is used."""
    if not isinstance(config, Mapping):
        raise LayerOrderError(
            f"config.json holds a {type(config).__name__}, not an object. Check the repository."
        )
    depth_limit = min(n_keys, MAX_DEPTH)
    nodes = 0

    def visit(name: str, value: Any, nesting: int) -> float:
        """Check one value and return the sum of the depths in it."""
        nonlocal nodes
        name = name[:80]
        nodes += 1
        if nodes > MAX_CONFIG_NODES or nesting > MAX_CONFIG_NESTING:
            raise LayerOrderError(
                f"config.json is too large or too deeply nested at {name!r} to be a model's "
                "config. Check the repository."
            )
        if isinstance(value, Mapping):
            for key, inner in value.items():
                visit(name if name in ("label2id", "id2label") else str(key), inner, nesting + 1)
            return 0
        if isinstance(value, list | tuple):
            total = sum(visit(name, inner, nesting + 1) for inner in value)
            if total > depth_limit:
                raise _out_of_bounds(name, f"{total:g} in all", depth_limit, n_keys)
            return total
        if isinstance(value, bool) or not isinstance(value, int | float):
            return 0
        bound = next(bound for pattern, bound in _BOUNDS if pattern.search(name))
        limit = depth_limit if bound is None else bound
        if isinstance(value, float):
            limit = MAX_VOCABULARY
        if not abs(value) <= limit:  # so written, NaN is refused too
            shown = f"{value:.6g}" if not abs(value) > 1e300 else "a number over 1e300"
            raise _out_of_bounds(name, shown, limit, n_keys)
        return max(value, 0) if bound is None and isinstance(value, int) else 0

    visit("config", config, 0)


def _out_of_bounds(name: str, value: str, limit: int, n_keys: int) -> LayerOrderError:
    return LayerOrderError(
        f"config.json says {name} = {value}, but for a file of {n_keys} tensors {limit} is the "
        "most that is accepted. Check that the config belongs to these weights."
    )


def _cleaned(value: Any) -> Any:
    """Return a deep copy of a config without the fields that fetch code, kernels or weights."""
    if isinstance(value, Mapping):
        kept = {
            str(key): _cleaned(inner)
            for key, inner in value.items()
            if not _DROPPED_FIELDS.fullmatch(str(key))
        }
        if "backbone" in kept or kept.get("model_type") == "timm_backbone":
            kept["use_pretrained_backbone"] = False
            backbone = kept.get("backbone")
            if isinstance(backbone, str) and not _TIMM_NAME.fullmatch(backbone):
                if kept.get("backbone_config") is None:
                    raise LayerOrderError(
                        f"The config names its backbone {backbone[:80]!r} by reference and does "
                        "not describe it. Load and save the model once with transformers 5 and use "
                        "the new config.json."
                    )
                del kept["backbone"]
        return kept
    if isinstance(value, list | tuple):
        return [_cleaned(inner) for inner in value]
    return value


def _without_null(value: Any, field: str) -> Any:
    """Return the config without the entries `field: null`, at any depth."""
    if isinstance(value, dict):
        return {
            key: _without_null(inner, field)
            for key, inner in value.items()
            if not (key == field and inner is None)
        }
    return [_without_null(inner, field) for inner in value] if isinstance(value, list) else value


def _parse(config: Mapping[str, Any], model_class: Any) -> Any:
    """Parse the config as transformers does, dropping nulls that its strict classes refuse."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    config_class = model_class.config_class
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        named = CONFIG_MAPPING[model_type]
        if not issubclass(named, config_class):
            raise LayerOrderError(
                f"config.json says model_type {model_type!r}, but {model_class.__name__} takes "
                f"{config_class.model_type!r}. Correct one of the two in config.json."
            )
        config_class = named
    if config_class.model_type == "timm_wrapper":
        raise LayerOrderError(
            f"{model_class.__name__} wraps a timm model, whose order cannot be derived from "
            "config.json. Merge checkpoints of a transformers class."
        )
    fields = _cleaned(config)
    while True:
        try:
            return config_class.from_dict(fields)
        except StrictDataclassError as error:
            named_field = re.search(r"field '(\w+)'", str(error))
            fewer = _without_null(fields, named_field.group(1)) if named_field else fields
            if fewer == fields:
                raise
            fields = fewer


def _model_class(config: Mapping[str, Any]) -> Any:
    """Return the class of transformers itself that the config names."""
    import transformers

    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(name, str):
        raise LayerOrderError(
            'config.json names no class. Add "architectures": ["<class of transformers>"] to it.'
        )
    name, found = name[:80], None
    if re.fullmatch(r"[A-Z][A-Za-z0-9_]*", name):
        found = getattr(transformers, name, None)
    if isinstance(found, type) and getattr(found, "is_dummy", False):
        packages = ", ".join(found.__dict__.get("_backends", ["a package"]))
        raise LayerOrderError(
            f"{name} needs {packages}, which is not installed. Run `pip install {packages}`."
        )
    if not (
        isinstance(found, type)
        and issubclass(found, transformers.PreTrainedModel)
        and found.__module__.startswith("transformers.models.")
        and getattr(found, "config_class", None) is not None
    ):
        raise LayerOrderError(
            f"{name!r} is not a model class of transformers {transformers.__version__}, and code "
            "from a repository is never run. Update transformers, or use a model whose family "
            "has a table here."
        )
    if not {"pixel_values", "pixel_values_videos"} & set(
        inspect.signature(found.forward).parameters
    ):
        raise LayerOrderError(f"{name} does not take images. Merge models of one vision class.")
    return found


def build(config: Mapping[str, Any], n_keys: int) -> Any:
    """Build the model on the meta device, in evaluation mode; call under `guarded`."""
    import torch

    model_class = _model_class(config)
    with torch.device("meta"), call_counter(n_keys):
        model = model_class(_parse(config, model_class))
    # Parameters made by the legacy torch.Tensor(...) ignore the device context.
    return model.to("meta").eval()
