"""What a user can ask of a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwmm_hub.errors import UsageError
from lwmm_hub.keywords import plain_fields

if TYPE_CHECKING:
    from typing import TypedDict

    class FitFields(TypedDict, total=False):
        """The fields of `FitOptions` as keyword arguments, for type checkers."""

        steps: int
        batch_size: int
        lr: float
        threshold: float
        teacher: str
        window: tuple[int, int] | None
        device: str | None
        seed: int
        limit: int
        held_back: float
        start: str
        per: str
        balance: float
        mirror: bool
        checks: int
        patience: int


TEACHERS = ("ensemble", "anchor")
STARTS = ("ramp", "uniform")
PER = ("layer", "stage")


@dataclass(frozen=True)
class FitOptions:
    """How layer weights are fitted.

    Attributes:
        steps: of Adam; 0 leaves the ramp.
        batch_size: images a step; they go through one at a time, so memory does not depend on it.
        lr: step size on the logits of the layer weights.
        threshold: the teacher's labels count from this probability on; 0 takes all.
        teacher: `ensemble`, the mean of the parents' probabilities over the labels that they share
            by name, or `anchor`, the anchor's alone.
        window: (height, width) of the part of each image that is looked at, at the image's own
            size; None looks at whole images as the models' image processors resize them.
        device: `cpu`, `cuda`, `mps`; None is the accelerator, if there is one.
        seed: chooses the images held back and the order of the others.
        limit: at most so many images, at equal steps through the data.
        held_back: part of the images that only the stopping rule sees.
        start: `ramp`, the weights of the plan, or `uniform`.
        per: `layer`, or `stage` for one offset from the start for all layers of a stage.
        balance: how much rare classes count: a class weighs its part of the confident pixels, a
            thousandth at least (a fiftieth of an equal part, where there are over 20 classes), to
            the power of minus this; 0 counts pixels, 1 classes.
        mirror: whether every other image is shown with left and right changed.
        checks: how often the images held back are looked at, in equal steps.
        patience: how many checks in a row may bring nothing before the fit stops.
    """

    steps: int = 60
    batch_size: int = 4
    lr: float = 0.05
    threshold: float = 0.8
    teacher: str = "ensemble"
    window: tuple[int, int] | None = None
    device: str | None = None
    seed: int = 0
    limit: int = 100
    held_back: float = 0.2
    start: str = "ramp"
    per: str = "layer"
    balance: float = 1.0
    mirror: bool = False
    checks: int = 12
    patience: int = 4

    def __post_init__(self) -> None:
        plain_fields(self)

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            UsageError: which, and what it may be.
        """
        for name, value, least in (
            ("steps", self.steps, 0),
            ("batch size", self.batch_size, 1),
            ("limit", self.limit, 1),
            ("seed", self.seed, 0),
            ("checks", self.checks, 1),
            ("patience", self.patience, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"the fit's {name} is {value}: give a whole number from {least}.")
        if not 0 < self.lr < math.inf:
            raise UsageError(f"the fit's lr is {self.lr}: give a number over 0.")
        if not 0 <= self.threshold < 1:
            raise UsageError(f"the fit's threshold is {self.threshold}: give 0 to under 1.")
        if not 0 <= self.held_back < 1:
            raise UsageError(f"held back is {self.held_back}: give 0 to under 1 of the images.")
        if not 0 <= self.balance <= 1:
            raise UsageError(f"the fit's balance is {self.balance}: give a number from 0 to 1.")
        if self.window is not None and min(self.window) < 32:
            raise UsageError(f"a window of {self.window}: give at least 32 x 32 pixels.")
        for name, text, choices in (
            ("teacher", self.teacher, TEACHERS),
            ("start", self.start, STARTS),
            ("per", self.per, PER),
        ):
            if text not in choices:
                raise UsageError(f"{name} {text!r} is unknown: choose {', '.join(choices)}.")
