"""What tensors of equal names and shapes mean: classes, settings of the network, its inputs.

Names and shapes say which tensors correspond. That row 3 of two classifiers is one class, that two
attentions have the same number of heads, that both networks look at images scaled alike: only the
configurations say that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.families import TABLES
from lwmm_hub.key_map import SharedParameter

# what transformers calls classes that nobody has named
_NO_NAME = re.compile(r"label[ _]?\d+", re.IGNORECASE)

_CLASSIFIERS = {table.classifier.rpartition(".")[0] for table in TABLES if table.classifier}
"""Layers that the tables know to have a row for each class."""

# how the last or last but one name of other such layers reads, where they have as many rows
_NAMED_SO = re.compile(
    r"(\w+_)?(classifier|class_predictor|class_embed|cls|logits?|predictor)(_\w+)?|conv_seg|"
    r"cls_\w+|linear_pred|segmentation_head|last_layer|conv2d_list|branches"
)
_ALONE = ("fc", "head", "heads", "score", "out", "final")  # ... and the last name alone

# settings that change what a weight does and not its shape, in any network that has them
_SETTINGS = (
    "activation_function",
    "dilation",
    "dilations",
    "downsample_in_bottleneck",
    "downsample_in_first_stage",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "hidden_act",
    "layer_type",
    "num_attention_heads",
    "num_heads",
    "patch_size",
    "patch_sizes",
    "patch_stride",
    "pretrained_window_sizes",
    "rope_theta",
    "sr_ratios",
    "stride",
    "strides",
    "tf_padding",
    "use_relative_position_bias",
    "use_shared_relative_position_bias",
    "window_size",
)

# and those that differ between tasks of one backbone: compared where the whole networks are alike
_OF_ONE_TASK = (
    "backbone_out_indices",
    "decoder_n_points",
    "encoder_n_points",
    "is_hybrid",
    "neck_ignore_stages",
    "out_features",
    "out_indices",
    "output_stride",
    "pool_scales",
    "readout_type",
    "reassemble_factors",
)

# absent means this
_USUAL = {"downsample_in_bottleneck": False, "use_shared_relative_position_bias": False}

_ONE_FUNCTION = dict.fromkeys(
    ("gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh"), "gelu"
) | {"swish": "silu"}  # to a few thousandths

_NESTED = ("backbone_config", "decoder_config", "vision_config")

_LARGE = 1e9  # no image processor has such a number

_INPUTS = (
    "do_normalize",
    "image_mean",
    "image_std",
    "do_rescale",
    "rescale_factor",
    "do_flip_channel_order",
)


def labels_in(config: Mapping[str, Any] | None) -> dict[int, str]:
    """Number -> name of the classes that a configuration names; none where one is no name.

    >>> labels_in({"id2label": {"1": "Traffic_Light", "0": "road"}})
    {1: 'Traffic_Light', 0: 'road'}
    """
    labels = (config or {}).get("id2label")
    if not isinstance(labels, dict) or not all(isinstance(name, str) for name in labels.values()):
        return {}
    try:
        return {int(number): name for number, name in labels.items()}
    except (TypeError, ValueError):
        return {}


def all_labels(config: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The names of all classes in order; None where there is a gap, or no name.

    >>> all_labels({"id2label": {"1": "Traffic_Light", "0": "road"}})
    ('road', 'Traffic_Light')
    >>> all_labels({"id2label": {"1": "sky"}}) is all_labels(None) is None
    True
    """
    found = labels_in(config)
    if not found or sorted(found) != list(range(len(found))):
        return None
    return tuple(found[number] for number in range(len(found)))


def class_names(config: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """`all_labels` as they are compared; None where nobody has named them either.

    >>> class_names({"id2label": {"1": "Traffic_Light", "0": "road"}})
    ('road', 'traffic light')
    >>> class_names({"id2label": {"0": "LABEL_0"}}) is None
    True
    """
    plain = tuple(map(_one_spelling, all_labels(config) or ()))
    return None if all(map(_NO_NAME.fullmatch, plain)) else plain


def _one_spelling(name: str) -> str:
    return " ".join(re.split(r"[\s_]+", name.strip().casefold()))


def _classes_of(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """By its configuration, else as its training noted them in the weight file."""
    return class_names(checkpoint.config) or tuple(map(_one_spelling, checkpoint.classes)) or None


def other_classes(
    shared: Sequence[SharedParameter], checkpoints: Sequence[Checkpoint]
) -> dict[tuple[int, str], str]:
    """(donor, layer) -> why its rows are not the anchor's: classifiers of other classes.

    Where both name the classes, in a configuration or beside the weights, and not the same ones in
    the same order.
    """
    mine = _classes_of(checkpoints[0])
    if mine is None:
        return {}
    layers = _classifiers(shared, len(mine))
    found: dict[tuple[int, str], str] = {}
    for i, donor in enumerate(checkpoints[1:], start=1):
        theirs = _classes_of(donor)
        if theirs is None or theirs == mine or len(theirs) != len(mine):
            continue
        at, one, other = next(
            (at, a, b) for at, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b
        )
        why = (
            f"other classes ({at} is {one[:40]!r} in {checkpoints[0].label} and {other[:40]!r} in "
            f"{donor.label})"
        )
        has = {p.layer for p in shared if p.sources[i] is not None}
        found |= {(i, layer): why for layer in layers if layer in has}
    return found


def _classifiers(shared: Sequence[SharedParameter], classes: int) -> list[str]:
    """The layers with a row for each class; of sets of masks there is one more, for no object."""
    layers = []
    for parameter in shared:
        if len(parameter.shape) < 2 or parameter.shape[0] not in (classes, classes + 1):
            continue
        names = [name for name in parameter.layer.split(".") if not name.isdigit()]
        if (
            parameter.layer in _CLASSIFIERS
            or any(_NAMED_SO.fullmatch(name) for name in names[-2:])
            or (names and names[-1] in _ALONE)
        ):
            layers.append(parameter.layer)
    return list(dict.fromkeys(layers))


def class_warnings(
    other: Mapping[tuple[int, str], str], left_out: Mapping[tuple[int, str], str], how: str
) -> list[str]:
    """One line per donor whose classifiers are of other classes.

    Args:
        other: see `other_classes`.
        left_out: (donor, layer) of those that are not merged.
        how: what makes that the others are.
    """
    rows: dict[tuple[str, bool], list[str]] = {}
    for place, why in other.items():
        rows.setdefault((why, place in left_out), []).append(place[1])
    return [
        f"{', '.join(layers)}: {why}. "
        + (
            f"The anchor's {'is' if len(layers) == 1 else 'are'} kept."
            if kept
            else f"Merged all the same ({how}): rows of unlike classes are mixed."
        )
        for (why, kept), layers in rows.items()
    ]


def meaning_warnings(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """One line per donor whose network computes otherwise, and per donor that sees other images."""
    anchor, *donors = checkpoints
    warnings = []
    for donor in donors:
        if differ := list(_unlike_settings(anchor.config, donor.config)):
            warnings.append(
                f"{anchor.label} and {donor.label} are unlike networks of equal shapes "
                f"({'; '.join(differ)}): what is merged was not trained for the anchor's. Expect a "
                "poor result, or choose a donor of the same settings."
            )
        if differ := _unlike_inputs(anchor.processor, donor.processor):
            warnings.append(
                f"{donor.label} was trained on other inputs than {anchor.label} "
                f"({'; '.join(differ)}): the result prepares images as the anchor does. Expect a "
                "poor result, or choose a donor that is given the same."
            )
    return warnings


def _unlike_settings(
    mine: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None
) -> Iterator[str]:
    """The settings that differ, where both configurations have them."""
    if mine is None or theirs is None:
        return
    if mine.get("model_type") != theirs.get("model_type"):
        yield from _differing("", _backbone(mine), _backbone(theirs), _SETTINGS)
        return
    names = (*_SETTINGS, *_OF_ONE_TASK)
    one_task = mine.get("architectures") == theirs.get("architectures")
    yield from _differing("", mine, theirs, names if one_task else _SETTINGS)
    for nested in _NESTED:
        one, other = mine.get(nested), theirs.get(nested)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differing(f"{nested}.", one, other, names if one_task else _SETTINGS)


def _backbone(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("backbone_config")
    return inner if isinstance(inner, dict) else config


def _differing(
    where: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], names: Sequence[str]
) -> Iterator[str]:
    for name in sorted(names):
        one, other = (c.get(name, _USUAL.get(name)) for c in (mine, theirs))
        if _is_plain(one) and _is_plain(other) and _plain(one) != _plain(other):
            yield f"{where}{name}: {_shown(one)} vs {_shown(other)}"


def _is_plain(value: Any, lists: int = 2) -> bool:
    """Whether a setting is there and can be compared: a configuration may hold anything."""
    if isinstance(value, list):
        return lists > 0 and all(_is_plain(item, lists - 1) for item in value)
    return isinstance(value, str | int | float | bool)


def _plain(value: Any) -> Any:
    """A setting such that those of one meaning are equal: 16 and [16, 16], gelu and its tanh."""
    if isinstance(value, list):
        items = [_plain(item) for item in value]
        return items[0] if items and all(item == items[0] for item in items) else items
    return _ONE_FUNCTION.get(value, value) if isinstance(value, str) else value


def _shown(value: Any) -> str:
    text = "not given" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _unlike_inputs(mine: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> list[str]:
    """The fields of two image processors that give a network other numbers for the same image."""
    if mine is None or theirs is None:
        return []
    flips = [processor.get("do_flip_channel_order") for processor in (mine, theirs)]
    flipped = None not in flips and bool(flips[0]) != bool(flips[1])
    one, other = _affine(mine), _affine(theirs)
    scaled = one is not None and other is not None and not _close(one, other)
    return [
        f"{name}: {_shown(mine.get(name))} vs {_shown(theirs.get(name))}"
        for name in _INPUTS
        if mine.get(name) != theirs.get(name)
        and (flipped if name == "do_flip_channel_order" else scaled)
    ]


def _affine(processor: Mapping[str, Any]) -> list[float] | None:
    """Factor and offset of each channel, by which an image's bytes become inputs; None if unknown.

    Files of old classes say nothing of `do_rescale`, which then is by 1/255.
    """
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if processor.get("do_normalize") is False:
        mean, std = 0.0, 1.0
    means: list[Any]
    stds: list[Any]
    means, stds = (v if isinstance(v, list) else [v] * 3 for v in (mean, std))
    numbers: list[Any] = [factor, *means, *stds]
    if not all(isinstance(n, int | float) and abs(n) < _LARGE for n in numbers):  # NaN is not
        return None
    if len(means) != len(stds) or not all(abs(s) > 1 / _LARGE for s in stds):
        return None
    return [factor / s for s in stds] + [-m / s for m, s in zip(means, stds, strict=True)]


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two scalings give nearly the same: published means are rounded to three digits."""
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=0.01, abs_tol=0.01 if max(abs(a), abs(b)) > 0.1 else 1e-5)
        for a, b in zip(one, other, strict=True)
    )
