"""How layer weights were found that no schedule gives, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lwmm_hub.card.metadata import finite
from lwmm_hub.card.naming import text
from lwmm_hub.card.wording import counted

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
        return "of its weights none was trained, only the layer weights were fitted, without labels"
    return "no training took place"


def finding_sentences(origin: Origin) -> str | None:
    """How the weights were found; None where they were just given."""
    tell = _METHODS.get(str(origin.get("method")))
    return tell(origin) if tell is not None else None


def _images(origin: Origin, count: object) -> str:
    """Which images: their number, the data set, its revision and split."""
    named: list[str] = [text(origin.get("images") or "unnamed images")]
    for what in ("revision", "split"):
        if origin.get(what):
            value = str(origin[what])
            named.append(f"{what} {text(value[:12] if what == 'revision' else value)}")
    number = counted(count, "image") if isinstance(count, int) else "images"
    return f"{number} of {', '.join(named)}; no labels were used"


def _fit(origin: Origin) -> str:
    teacher = TEACHERS.get(str(origin.get("teacher"))) or text(origin.get("teacher") or "?")
    sentences = [
        f"Layer weights: fitted, one for each layer and model, on {_images(origin, _all(origin))}.",
        f"The teacher was {teacher}, where it gave a class {_number(origin, 'threshold')} or more; "
        f"{_number(origin, 'steps_taken')} of {_number(origin, 'steps')} steps of Adam (lr "
        f"{_number(origin, 'lr')}, {_number(origin, 'batch_size')} a step, seed "
        f"{_number(origin, 'seed')}) from {_STARTS.get(str(origin.get('start')), '?')}.",
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


def _drift(_: Origin) -> str:
    return (
        "Layer weights: a ramp that moves towards the anchor as the donors' drift from it adds up "
        "over depth; measured on the weights alone."
    )


_METHODS: dict[str, Callable[[Origin], str]] = {
    "fit": _fit,
    "entropy": _entropy,
    "drift": _drift,
}
