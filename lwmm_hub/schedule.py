"""Layer weights: how much of each model goes into each layer. Pure arithmetic on Python floats.

The ramp is reconstructed from the description in *Layer-wise Model Merging for Unsupervised Domain
Adaptation in Segmentation Tasks* (arXiv 2409.15813), whose equation could not be recovered:
uniform at the first shared layer, the anchor alone at the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lwmm_hub.errors import UsageError

SCHEDULES = ("linear", "cosine", "step", "harmonic", "isotropic")
TABLE = "table"  # numbers from `weight_table` instead of a curve

# rule -> the options that would change nothing in it
WITHOUT_EFFECT = {
    "step": ("gamma",),
    "harmonic": ("start", "end", "gamma", "endpoint", "anchor_weight"),
    "isotropic": ("start", "end", "gamma", "endpoint"),
}


@dataclass(frozen=True)
class Schedule:
    """The family of layer weights.

        s(j) = clip((j - start) / (end - start), 0, 1)
        t(j) = s^gamma (linear), ((1 - cos(pi s)) / 2)^gamma (cosine), [s >= 0.5] (step)
        H_donor(j) = p (1 - endpoint t(j)),   p = (1 - anchor_weight) / (M - 1)
        H_anchor(j) = 1 - sum of the donors

    `isotropic` is endpoint 0; `harmonic` is H_donor(j) = 1 / (j + M). Options that a rule does not
    have (`WITHOUT_EFFECT`) are refused.

    Attributes:
        kind: one of `SCHEDULES`.
        start: where the ramp begins: a fraction of depth (0 to 1) or the name of a layer.
        end: where it ends.
        gamma: exponent, over 0; above 1 the donors stay longer.
        endpoint: how much of the way to the anchor the ramp goes, 0 to 1.
        anchor_weight: the anchor's weight before the ramp; None is 1/M, the smallest allowed.
    """

    kind: str = "linear"
    start: float | str = 0.0
    end: float | str = 1.0
    gamma: float = 1.0
    endpoint: float = 1.0
    anchor_weight: float | None = None

    def check(self, models: int) -> None:
        """Refuse options that are out of range or contradict each other.

        Raises:
            UsageError: which option, and what it may be.
        """
        if self.kind == TABLE and self == Schedule(TABLE):
            return
        if self.kind == TABLE:
            raise UsageError("a table of weights takes no option of a schedule: leave them out.")
        if self.kind not in SCHEDULES:
            raise UsageError(f"schedule {self.kind!r} is unknown: choose {', '.join(SCHEDULES)}.")
        for name in ("gamma", "endpoint", "anchor_weight"):
            value = getattr(self, name)
            if not isinstance(value, int | float | None) or isinstance(value, bool):
                raise UsageError(f"{name.replace('_', '-')} is {value!r}: give a number.")
        for name, value in (("start", self.start), ("end", self.end)):
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                raise UsageError(f"{name} is {value!r}: give a fraction from 0 to 1, or a layer.")
            if not isinstance(value, str) and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}: give a fraction from 0 to 1, or a layer.")
        if not isinstance(self.start, str) and not isinstance(self.end, str):
            _check_order(self.start, self.end, self)
        if not (0 < self.gamma < math.inf):
            raise UsageError(f"gamma is {self.gamma}: give a number over 0.")
        if not 0 <= self.endpoint <= 1:
            raise UsageError(f"endpoint is {self.endpoint}: give a number from 0 to 1.")
        if self.anchor_weight is not None and not 1 / models - 1e-12 <= self.anchor_weight <= 1:
            raise UsageError(
                f"anchor-weight is {self.anchor_weight}: with {models} models give a number from "
                f"1/{models} to 1, so that no donor outweighs the anchor."
            )
        plain = Schedule(self.kind)
        for name in WITHOUT_EFFECT.get(self.kind, ()):
            if getattr(self, name) != getattr(plain, name):
                raise UsageError(
                    f"{name.replace('_', '-')} changes nothing in the {self.kind} schedule: leave "
                    "it out, or choose another schedule."
                )


def _check_order(start: float, end: float, schedule: Schedule) -> None:
    if start > end:
        raise UsageError(
            f"start {schedule.start} lies after end {schedule.end}: give a start before the end.",
            about="start",
        )


def layer_weights(
    schedule: Schedule, layers: Sequence[str], models: int
) -> list[tuple[float, ...]]:
    """The weight of each model in each layer; every row sums to 1, the anchor comes first.

    Args:
        schedule: the rule.
        layers: names of the shared layers, in depth order.
        models: how many models, the anchor included.

    >>> layer_weights(Schedule(), ["a", "b", "c"], models=2)
    [(0.5, 0.5), (0.75, 0.25), (1.0, 0.0)]
    >>> layer_weights(Schedule("harmonic"), ["a", "b"], models=3)
    [(0.3333333333333333, 0.3333333333333333, 0.3333333333333333), (0.5, 0.25, 0.25)]

    Raises:
        UsageError: an option is out of range, or a layer's name is unknown.
    """
    schedule.check(models)
    if models == 1:
        return [(1.0,) for _ in layers]
    if schedule.kind == "harmonic":
        donors = [1 / (j + models) for j in range(len(layers))]
    else:
        share = _donor_share(schedule, models)
        donors = [share * (1 - fade) for fade in _fades(schedule, layers)]
    return [(_anchor(donor, models), *[donor] * (models - 1)) for donor in donors]


def _anchor(donor: float, models: int) -> float:
    """What is left for the anchor; exactly uniform where the donors have 1/M."""
    return donor if donor == 1 / models else 1 - donor * (models - 1)


def _donor_share(schedule: Schedule, models: int) -> float:
    """A donor's weight before the ramp: (1 - anchor_weight) / (M - 1), exactly 1/M by default."""
    if schedule.anchor_weight is None or schedule.anchor_weight <= 1 / models:
        return 1 / models
    return (1 - schedule.anchor_weight) / (models - 1)


def _fades(schedule: Schedule, layers: Sequence[str]) -> list[float]:
    """How far each layer is on the way to the anchor, endpoint included: e t(j)."""
    if schedule.kind == "isotropic":
        return [0.0] * len(layers)
    start = _position(schedule.start, layers, "start")
    end = _position(schedule.end, layers, "end")
    _check_order(start, end, schedule)
    if len(layers) < 2:  # two shared layers make a ramp; one has no depth
        return [0.0] * len(layers)
    return [schedule.endpoint * _curve(schedule, j, start, end) for j in range(len(layers))]


def _position(place: float | str, layers: Sequence[str], option: str) -> float:
    """A fraction of depth, a layer, or a group of layers as a position from 0 to N-1.

    A group (`stages.1`) starts at its first layer and ends at its last.

    >>> _position("b", ["a", "b.0", "b.1"], "start"), _position("b", ["a", "b.0", "b.1"], "end")
    (1.0, 2.0)
    """
    if not isinstance(place, str):
        return place * (len(layers) - 1)
    found = [j for j, name in enumerate(layers) if name == place or name.startswith(f"{place}.")]
    if not found:
        near = [name for name in layers if place in name][:3] or list(layers[:1])
        raise UsageError(
            f"{option} {place!r} is no shared layer. Give a fraction from 0 to 1, or a layer or "
            f"group that 'lwmm-hub plan' lists, such as {' or '.join(map(repr, near))}.",
            about=option,
        )
    return float(found[0] if option == "start" else found[-1])


def _curve(schedule: Schedule, j: int, start: float, end: float) -> float:
    if start == end:
        return float(j >= start)
    s = min(max((j - start) / (end - start), 0.0), 1.0)
    if schedule.kind == "step":
        return float(s >= 0.5)
    if schedule.kind == "cosine":
        s = (1 - math.cos(math.pi * s)) / 2
    return float(s**schedule.gamma)


def renormalised(weights: Sequence[float], present: Sequence[bool]) -> tuple[float, ...]:
    """A layer's weights where some donors lack a parameter: theirs is 0, the others grow.

    >>> renormalised((0.5, 0.25, 0.25), (True, True, False))
    (0.6666666666666666, 0.3333333333333333, 0.0)
    """
    if all(present):
        return tuple(weights)
    total = sum(w for w, there in zip(weights, present, strict=True) if there)
    if not total:  # the whole weight was that of donors that lack it
        return (1.0, *[0.0] * (len(weights) - 1))
    return tuple(w / total if there else 0.0 for w, there in zip(weights, present, strict=True))
