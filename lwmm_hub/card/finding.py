"""How layer weights were found that no schedule gives, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lwmm_hub.card.linting import valid_repo_id
from lwmm_hub.card.metadata import finite
from lwmm_hub.card.naming import text
from lwmm_hub.display.counts import counted
from lwmm_hub.display.grouping import used_layers
from lwmm_hub.schedule import SCHEDULES, Schedule, layer_weights

Origin = Mapping[str, Any]

TEACHERS = {
    "ensemble": "the mean of all parents' probabilities over the labels that they share by name",
    "anchor": "the anchor",
}


_STARTS = {"ramp": "the weights of the ramp", "uniform": "equal weights"}


def training_sentence(origin: Origin) -> str:
    """What was trained.

    >>> training_sentence({})
    'no training took place'
    """
    if origin.get("method") == "fit":
        return "none of its weights was trained, only the layer weights were fitted, without labels"
    return "no training took place"


def finding_sentences(origin: Origin) -> str | None:
    """How the weights were found; None where they were just given."""
    tell = _METHODS.get(str(origin.get("method")))
    return tell(origin) if tell is not None else None


def start_of(plan: Mapping[str, Any]) -> tuple[str, list[tuple[float, ...]]] | None:
    """The weights that fitted or measured ones began with, in words and for each layer.

    None where they have no name, or begin with nothing.
    """
    origin = plan.get("weights_from") or {}
    fitted = origin.get("method") == "fit"
    kind = "isotropic" if fitted and origin.get("start") == "uniform" else origin.get("ramp")
    if kind not in SCHEDULES:
        return None
    words = "equal weights" if kind == "isotropic" else f"the {kind} ramp"
    layers = [str(layer.get("name")) for layer in plan.get("layers") or []]
    rows = layer_weights(Schedule(kind), layers, len(plan.get("models") or []))
    began = [{**layer, "weights": row} for layer, row in zip(plan["layers"], rows, strict=True)]
    used = [tuple(layer["weights"]) for layer in used_layers({**plan, "layers": began})]
    return f"{words}{', where the fit began' if fitted else ''}", used


def _images(origin: Origin, count: object) -> str:
    """Which images: their number, the data set, its revision and split.

    >>> _images({"images": "streets", "revision": "a" * 40, "split": "val"}, 2)
    '2 images of streets (split val, fingerprint aaaaaaaaaaaa); no labels were used'
    """
    name = str(origin.get("images") or "unnamed images")
    named = [f"split {text(origin['split'])}"] if origin.get("split") else []
    if origin.get("revision"):
        what = "revision" if valid_repo_id(name) and "/" in name else "fingerprint"
        named.append(f"{what} {text(str(origin['revision'])[:12])}")
    number = counted(count, "image") if isinstance(count, int) else "images"
    window = f", seen through windows of {text(origin['window'])}" if origin.get("window") else ""
    where = f" ({', '.join(named)})" if named else ""
    return f"{number} of {text(name)}{where}{window}; no labels were used"


def _fit(origin: Origin) -> str:
    teacher = TEACHERS.get(str(origin.get("teacher"))) or text(origin.get("teacher") or "?")
    size = origin.get("batch_size")
    batch = counted(size, "image") if isinstance(size, int) else "? images"
    sentences = [
        f"Layer weights: fitted, one for each layer and model, on {_images(origin, _all(origin))}.",
        f"The teacher was {teacher}, {_where_sure(origin)}.",
        f"{_number(origin, 'steps_taken')} of at most {_number(origin, 'steps')} steps of Adam "
        f"were taken (lr {_number(origin, 'lr')}, {batch} a step, "
        f"seed {_number(origin, 'seed')}) from {_STARTS.get(str(origin.get('start')), '?')}.",
    ]
    before, after = origin.get("agreement_before"), origin.get("agreement_after")
    held = origin.get("held_back")
    if finite(before) and finite(after):
        where = f"the {counted(held, 'image')} held back" if held else "the same images"
        if origin.get("result") == "fitted":
            sentences.append(
                f"On {where} the probability of the teacher's labels is {after:.1%}, {before:.1%} "
                f"at the start; the weights after step {_number(origin, 'best_step')} agreed best."
            )
        else:
            sentences.append(
                f"Nothing agreed better with the teacher on {where} than the start "
                f"(probability {before:.1%}): these are the weights that the fit began with."
            )
    return " ".join(sentences)


def _where_sure(origin: Origin) -> str:
    """Which of the teacher's labels counted."""
    threshold = origin.get("threshold")
    if not threshold:
        return "at every pixel"
    return f"where it gave its class a probability of {_number(origin, 'threshold')} or more"


def _all(origin: Origin) -> int | None:
    parts = [origin.get("fitted_on"), origin.get("held_back")]
    return sum(p for p in parts if isinstance(p, int)) if parts[0] is not None else None


def _number(origin: Origin, name: str) -> str:
    value = origin.get(name)
    return f"{value:g}" if isinstance(value, int | float) else "?"


def _entropy(origin: Origin) -> str:
    return (
        "Layer weights: the ramp times a prior for each model, the mean softmax of its negative "
        f"normalised entropy, measured on {_images(origin, origin.get('measured_on'))}."
    )


def _drift(origin: Origin) -> str:
    names = [name for name in ("anchor_weight", "endpoint") if name in origin]
    asked = ", ".join(f"{name.replace('_', ' ')} {_number(origin, name)}" for name in names)
    return (
        "Layer weights: a ramp that moves towards the anchor as the donors' drift from it adds up "
        f"over depth{f' ({asked})' if asked else ''}; measured on the weights alone."
    )


_METHODS: dict[str, Callable[[Origin], str]] = {
    "fit": _fit,
    "entropy": _entropy,
    "drift": _drift,
}
