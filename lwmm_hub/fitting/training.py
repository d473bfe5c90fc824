"""The fit itself: Adam on the logits of the layer weights, stopped by unlabelled criteria alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.display import stage_name
from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.states import read_state, state_key, states_folder, write_state
from lwmm_hub.fitting.blending import Blend
from lwmm_hub.fitting.forwarding import Image, Net, log_probabilities
from lwmm_hub.fitting.options import FitOptions
from lwmm_hub.fitting.teaching import UNSURE, Lesson
from lwmm_hub.planning import MergePlan

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Progress = Callable[[str, int, int, float | None, float | None], None]
# About the most of a layer that a model starts with, so that there are gradients for the others:
# each has 0.02 / (M - 1) at least, before the row is divided by its sum.
CAP = 0.98
LOST = 0.2  # agreement that is lost to the start from which on a fit counts as diverged
SAVE_EVERY = 20.0  # seconds
# A class with a smaller part of the confident pixels (or of an equal part, where there are many
# classes) counts as if it had this one. The few dozen pixels of a class that a teacher sees in a
# single image are mostly an error, and would have the say of all that is road.
RARE, RARE_OF_MANY = 1e-3, 0.02


class Course:
    """What is fitted on what.

    Attributes:
        live: the network that is blended.
        blend: writes its weights.
        plan: says where the weights start.
        start: the plan's layer weights, (layers, models).
        taught: lessons that are learned from.
        held: lessons that only tell when to stop.
    """

    def __init__(
        self,
        live: Net,
        blend: Blend,
        plan: MergePlan,
        lessons: Sequence[Lesson],
        read: Callable[[int], Image],
        options: FitOptions,
    ) -> None:
        """Divide the lessons, and lay out the layer weights as logits.

        Args:
            live: the network that is blended.
            blend: writes its weights.
            plan: says where the weights start.
            lessons: what the teacher says; those that say nothing are left out.
            read: number -> image.
            options: how it is fitted.
        """
        import torch

        self.live, self.blend, self.options, self._read = live, blend, options, read
        self.plan = plan
        self.start = torch.tensor([layer.weights for layer in plan.layers], dtype=torch.float64)
        models = self.start.shape[1]
        begin = self.start if options.start == "ramp" else torch.full_like(self.start, 1 / models)
        least = (1 - CAP) / (models - 1)
        begin = begin.clamp(least)
        self._logits = (begin / begin.sum(1, keepdim=True)).log()
        names = [layer.name for layer in plan.layers]
        knots = names if options.per == "layer" else [stage_name(name) for name in names]
        order = {knot: i for i, knot in enumerate(dict.fromkeys(knots))}
        self.knots = len(order)
        self._knot_of = torch.tensor([order[knot] for knot in knots])
        self._layer_of = torch.tensor([group.layer for group in blend.groups])
        self._present = torch.tensor([group.present for group in blend.groups]).double()
        useful = [lesson for lesson in lessons if lesson.sure]
        rng = np.random.default_rng(options.seed)
        useful = [useful[i] for i in rng.permutation(len(useful))]
        held = round(len(useful) * options.held_back)
        held = min(max(held, int(options.held_back > 0)), len(useful) - 1)
        self.held, self.taught = useful[: max(held, 0)], useful[max(held, 0) :]
        self._class_weights = _class_weights(useful, len(live.labels), options.balance)
        self._weight_of = {lesson.image: self._weigh(lesson) for lesson in useful}

    def weights(self, offsets: Tensor) -> Tensor:
        """Layer weights, (layers, models), of what is fitted, (knots, models)."""
        return (self._logits + offsets[self._knot_of]).softmax(1)

    def rows(self, weights: Tensor) -> Tensor:
        """A row for each group of parameters: models that lack them have none."""
        rows = weights[self._layer_of] * self._present
        return rows / rows.sum(1, keepdim=True).clamp_min(1e-300)

    def start_rows(self) -> Tensor:
        """The rows of the plan's own weights."""
        rows = self.start[self._layer_of] * self._present
        alone = rows.sum(1) == 0  # the whole weight was that of donors that lack it
        rows[alone, 0] = 1.0
        return rows / rows.sum(1, keepdim=True)

    def batch(self, step: int) -> list[tuple[Lesson, bool]]:
        """The lessons of a step, and whether each is mirrored; every lesson once an epoch."""
        count, size = len(self.taught), self.options.batch_size
        found = []
        for place in range(step * size, (step + 1) * size):
            rng = np.random.default_rng([self.options.seed, place // count])
            lesson = self.taught[int(rng.permutation(count)[place % count])]
            flip = self.options.mirror and bool((rng.random(count) < 0.5)[place % count])
            found.append((lesson, flip))
        return found

    def slope(self, batch: Sequence[tuple[Lesson, bool]]) -> tuple[float, Tensor]:
        """The loss of the network as it is, and its gradient for the rows of the groups.

        Cross-entropy to the teacher's labels, over all confident pixels of the batch.
        """
        total = sum(self.weight_of(lesson) for lesson, _ in batch)
        loss = 0.0
        for lesson, flip in batch:
            part = self._loss(lesson, flip) / total
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        return loss, self.blend.gradients()

    def _loss(self, lesson: Lesson, flip: bool, gradients: bool = True) -> Tensor:
        import torch

        image, labels = self._read(lesson.image), lesson.confident()
        if flip:
            image, labels = np.ascontiguousarray(image[:, ::-1]), labels[:, ::-1]
        found = log_probabilities(self.live.scores(image, gradients=gradients), lesson.grid)
        target = torch.from_numpy(labels.copy()).to(found.device)
        return torch.nn.functional.nll_loss(
            found[None],
            target[None],
            weight=self._class_weights.to(found) if self._class_weights is not None else None,
            ignore_index=UNSURE,
            reduction="sum",
        )

    def agreement(self) -> float:
        """The probability that the network as it is gives to the teacher's labels, held back.

        The geometric mean over the confident pixels, weighed as in the loss: it is exp(-loss) on
        images that are not learned from. Pixels that the teacher is unsure of have no say: a
        network that comes nearer to the truth than the teacher is leaves it there first.
        """
        import torch

        lessons = self.held or self.taught
        with torch.no_grad():
            losses = [float(self._loss(each, flip=False, gradients=False)) for each in lessons]
        return math.exp(-sum(losses) / sum(map(self.weight_of, lessons)))

    def weight_of(self, lesson: Lesson) -> float:
        """How much the confident pixels of a lesson count together."""
        return self._weight_of[lesson.image]

    def _weigh(self, lesson: Lesson) -> float:
        if self._class_weights is None:
            return float(lesson.sure)
        labels = lesson.confident()
        return float(self._class_weights[labels[labels != UNSURE]].sum())


def class_weights(pixels: NDArray[Any], power: float) -> NDArray[np.float64]:
    """A weight for each class: its part of the pixels to the power of -`power`; 1 on average.

    >>> class_weights(np.array([900, 100, 0]), 1.0).round(3).tolist()
    [0.556, 5.0, 0.0]
    """
    parts = pixels / pixels.sum()
    least = min(RARE, RARE_OF_MANY / len(pixels))
    weights = np.where(pixels > 0, np.maximum(parts, least) ** -power, 0.0)
    weights /= (weights * parts).sum()
    return weights


def _class_weights(lessons: Sequence[Lesson], classes: int, power: float) -> Tensor | None:
    """The weights of the classes in what the teacher is sure of; None where all count alike."""
    import torch

    if not power or not lessons:
        return None
    pixels = np.zeros(classes)
    for lesson in lessons:
        labels = lesson.confident()
        pixels += np.bincount(labels[labels != UNSURE], minlength=classes)
    return torch.from_numpy(class_weights(pixels, power))


@dataclass
class Fit:
    """How far a fit is.

    Attributes:
        before: agreement of the plan's own weights on the images held back.
        best: the best agreement so far.
        best_step: after how many steps that was; 0 is the plan's own.
        weights: the layer weights of that; None is the plan's own.
        steps: how many were taken.
        bad: how many looks at the images held back in a row found nothing better.
        done: whether there are no more steps to take.
        ended: why it ended before the last step, in words.
        offsets: what is learned, added to the logits of the start: (knots, models); None before
            the first step.
        moments: Adam's two moments of that, each of its shape.
    """

    before: float | None = None
    best: float | None = None
    best_step: int = 0
    weights: list[list[float]] | None = None
    steps: int = 0
    bad: int = 0
    done: bool = False
    ended: str = ""
    offsets: list[list[float]] | None = None
    moments: list[list[list[float]]] = field(default_factory=list)

    @property
    def better(self) -> bool:
        """Whether anything agreed better than the plan's own weights."""
        return self.weights is not None

    def rows(self, plan: MergePlan) -> dict[str, tuple[float, ...]]:
        """The layer weights by name."""
        if self.weights is None:
            return {layer.name: layer.weights for layer in plan.layers}
        return {
            layer.name: tuple(row) for layer, row in zip(plan.layers, self.weights, strict=True)
        }

    def warnings(self) -> list[str]:
        """What the user should know."""
        found = [self.ended] if self.ended else []
        if self.steps and not self.better:
            found.append(
                "the fit found no layer weights that agree better with the teacher than those it "
                f"started from ({self.before:.1%} on the images held back): these are "
                "used unchanged."
            )
        return found


def train(
    course: Course,
    key: Mapping[str, Any] | None,
    states: str | Path | None,
    progress: Progress | None = None,
) -> Fit:
    """Fit layer weights; interrupted, the best so far is given, and the next call goes on.

    Args:
        course: what is fitted on what.
        key: settings by which a half-done fit is known; None keeps none.
        states: folder of half-done fits; None is the user's cache, "" keeps none.
        progress: called with ("fitting", steps done, steps in all, loss, agreement).

    Raises:
        EvaluationError: the loss is not finite and nothing better than the start was found.
    """
    if not course.options.steps:
        return Fit(done=True)
    folder = None
    if key is not None and states != "":
        folder = Path(states) if states else states_folder().parent / "fits"
    name = state_key(key or {})
    fit = _resumed(folder, name, course)
    if fit.done:
        return fit
    saved = time.monotonic()
    try:
        for _ in _steps(course, fit, progress):
            if folder is not None and time.monotonic() - saved > SAVE_EVERY:
                write_state(folder, name, vars(fit))
                saved = time.monotonic()
        fit.done = True
    except KeyboardInterrupt:
        if fit.before is None:  # nothing to give yet
            raise
        fit.ended = (
            f"the fit was interrupted after {fit.steps} of {course.options.steps} steps: the best "
            "layer weights so far are used. The same command with --overwrite goes on from there."
        )
    finally:
        if folder is not None and fit.before is not None:
            state = {**vars(fit), "ended": fit.ended if fit.done else ""}
            write_state(folder, name, state)
    return fit


def _steps(course: Course, fit: Fit, progress: Progress | None) -> Any:
    """Take the steps that are left; yields after each."""
    import torch

    options, blend = course.options, course.blend
    if fit.before is None:
        blend.write(course.start_rows())
        fit.before = fit.best = course.agreement()
    shape = (course.knots, course.start.shape[1])
    offsets = torch.zeros(shape, dtype=torch.float64)
    if fit.offsets is not None:
        offsets = torch.tensor(fit.offsets, dtype=torch.float64)
    offsets.requires_grad_(True)
    adam = torch.optim.Adam([offsets], lr=options.lr)
    if fit.moments:
        first, second = (torch.tensor(m, dtype=torch.float64) for m in fit.moments)
        step = torch.tensor(float(fit.steps))
        adam.state[offsets] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
    every = max(1, math.ceil(options.steps / options.checks))
    if fit.steps == 0 and progress is not None:
        progress("fitting", 0, options.steps, None, fit.before)
    while fit.steps < options.steps:
        rows = course.rows(course.weights(offsets))
        blend.write(rows)
        loss, slope = course.slope(course.batch(fit.steps))
        if not (math.isfinite(loss) and bool(slope.isfinite().all())):
            _not_finite(fit, "loss" if not math.isfinite(loss) else "gradient of the loss")
            return
        adam.zero_grad()
        rows.backward(slope)  # type: ignore[no-untyped-call]
        adam.step()
        fit.steps += 1
        state = adam.state[offsets]
        fit.offsets = offsets.tolist()
        fit.moments = [state["exp_avg"].tolist(), state["exp_avg_sq"].tolist()]
        agreement = None
        last = fit.steps == options.steps
        if last or fit.steps % every == 0:
            agreement = _checked(course, fit, offsets)
        if progress is not None:
            progress("fitting", fit.steps, options.steps, loss, agreement)
        yield
        if not last and agreement is not None and _hopeless(fit, agreement, options):
            return


def _checked(course: Course, fit: Fit, offsets: torch.Tensor) -> float:
    """Look at the images held back, and keep the weights if they are the best so far."""
    weights = course.weights(offsets.detach())
    course.blend.write(course.rows(weights))
    agreement = course.agreement()
    assert fit.best is not None
    if agreement > fit.best:
        fit.best, fit.best_step, fit.weights = agreement, fit.steps, weights.tolist()
        fit.bad = 0
    else:
        fit.bad += 1
    return agreement


def _hopeless(fit: Fit, agreement: float, options: FitOptions) -> bool:
    assert fit.before is not None
    if agreement < fit.before - LOST:
        fit.ended = (
            f"the fit diverged: after {fit.steps} steps its agreement with the teacher is "
            f"{agreement:.1%} on the images held back, {fit.before:.1%} at the start. A smaller lr "
            "may help."
        )
        return True
    return fit.bad >= options.patience


def _not_finite(fit: Fit, what: str) -> None:
    """Stop at a loss that is no number, with what was found before.

    Raises:
        EvaluationError: nothing was.
    """
    text = f"the {what} of the fit is not finite after {fit.steps} steps"
    if not fit.better:
        raise EvaluationError(
            f"{text}. Try a smaller lr, or leave out the donor that 'lwmm-hub evaluate' shows to "
            "be broken."
        )
    fit.ended = f"{text}: it ended there, with the best layer weights before."


def _resumed(folder: Path | None, name: str, course: Course) -> Fit:
    """A half-done fit of the same settings, or a new one."""
    state = read_state(folder, name) if folder is not None else None
    if state is None or set(state) != set(vars(Fit())):
        return Fit()
    fit = Fit(**state)
    try:
        sound = fit.offsets is None or np.shape(fit.offsets) == (
            course.knots,
            course.start.shape[1],
        )
        sound &= fit.weights is None or np.shape(fit.weights) == tuple(course.start.shape)
        sound &= fit.steps <= course.options.steps and isinstance(fit.before, float)
    except (TypeError, ValueError):
        sound = False
    return fit if sound else Fit()
