"""Panoptic quality as COCO and Cityscapes count it (Kirillov et al. 2019, arXiv:1801.00868).

A predicted segment matches a true one of its class where their IoU is above one half; pixels that
the truth leaves void belong to no union. A prediction without a match is a false positive unless
more than half of it lies on void or on a crowd of its class. Crowds are neither found nor missed.

Differences from others, all deliberate:

- Every crowd of a class forgives; panopticapi and cityscapesScripts look at the last one in the
  list (COCO draws one for each class and image, so that both agree on it).
- A class that occurs nowhere scores NaN, where they write 0 and hotcoco -1; all leave it out of the
  means.
- torchmetrics' `PanopticQuality` has no crowds, takes all stuff of a class as one segment, lists
  things first, and forgives a miss that lies mostly where nothing was predicted; here, as in COCO,
  that is a miss. Its numbers agree where none of this plays a part.
- The sum of IoUs is kept in steps of 2**-40, so that it is the same in whatever order images and
  shards are added; the error is below 1e-12 of a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.coco_entries import shown, whole_number, yes_or_no
from lwmm_hub.evaluation.label_spaces import LabelSpace
from lwmm_hub.evaluation.overlaps import Overlap, Segments, Side, overlap, sort_segments
from lwmm_hub.evaluation.values import Labels, Panoptic, Segment, known_mean

_STEPS = 2**40


@dataclass(frozen=True)
class Category:
    """A class of segments.

    Attributes:
        id: what segments call it.
        name: for people.
        is_thing: whether it is countable.
    """

    id: int
    name: str
    is_thing: bool


@dataclass(frozen=True, eq=False)
class PanopticScores:
    """Qualities as fractions of 1; NaN for what occurs nowhere.

    Attributes:
        pq, sq, rq: panoptic, segmentation and recognition quality: means over the classes that
            occur. SQ of a class without a match is 0.
        pq_things, sq_things, rq_things, pq_stuff, sq_stuff, rq_stuff: the same means over things
            and over stuff.
        pq_per_class, sq_per_class, rq_per_class: float64, (categories,), in their order.
        names: of the categories.
    """

    pq: float
    sq: float
    rq: float
    pq_things: float
    sq_things: float
    rq_things: float
    pq_stuff: float
    sq_stuff: float
    rq_stuff: float
    pq_per_class: NDArray[np.float64]
    sq_per_class: NDArray[np.float64]
    rq_per_class: NDArray[np.float64]
    names: tuple[str, ...]

    def fields(self) -> dict[str, Any]:
        """As `Scores` has them: numbers, and a mapping of class names for each array."""
        values = {name: getattr(self, name) for name in _MEANS}
        for name in ("pq_per_class", "sq_per_class", "rq_per_class"):
            values[name] = dict(zip(self.names, getattr(self, name).tolist(), strict=True))
        return values


_MEANS = tuple(f"{q}{of}" for of in ("", "_things", "_stuff") for q in ("pq", "sq", "rq"))


class PanopticCounts:
    """Matches, false alarms and misses of each class, added up over a data set.

    >>> counts = PanopticCounts([{"id": 7, "name": "car", "isthing": 1}])
    >>> truth, found = np.array([[1, 1, 0]]), np.array([[5, 5, 5]])
    >>> car = {"category_id": 7}
    >>> counts.update(found, [{"id": 5, **car}], truth, [{"id": 1, "iscrowd": 0, **car}])
    >>> counts.scores().pq  # the void pixel is in no union
    1.0

    Args:
        categories: the classes that are scored: `Category`, or COCO's dictionaries with `id`,
            `name` and `isthing`.

    Attributes:
        categories: as given, each a `Category`.
        iou_sum: int64, (categories,): sum of the IoU of all matches, in steps of 2**-40.
        matched: int64, (categories,): true positives.
        false_alarms: int64, (categories,): false positives.
        missed: int64, (categories,): false negatives.
    """

    def __init__(self, categories: Sequence[Category | Mapping[str, Any]]) -> None:
        self.categories = tuple(map(category_of, categories))
        self._index = {category.id: i for i, category in enumerate(self.categories)}
        if not self.categories or len(self._index) != len(self.categories):
            raise EvaluationError(
                f"{len(self.categories)} categories with {len(self._index)} different ids. Give "
                "one entry for each class that is scored."
            )
        count = len(self.categories)
        self.iou_sum = np.zeros(count, np.int64)
        self.matched = np.zeros(count, np.int64)
        self.false_alarms = np.zeros(count, np.int64)
        self.missed = np.zeros(count, np.int64)

    @classmethod
    def of(cls, space: LabelSpace, things: Iterable[int] | None = None) -> PanopticCounts:
        """For segments whose category is an index of a label space.

        Args:
            space: the classes.
            things: indices of those that are countable, if the space does not say.

        Raises:
            EvaluationError: nobody says which classes are things.
        """
        countable = space.things if things is None else frozenset(things)
        if countable is None:
            raise EvaluationError(
                f"{space.name} does not say which of its classes are things. Give --labels a JSON "
                "file of COCO's categories, with isthing, or from Python things."
            )
        return cls([Category(i, n, i in countable) for i, n in enumerate(space.labels)])

    def update(
        self,
        prediction_map: Labels,
        prediction_segments: Sequence[Segment | Mapping[str, Any]],
        truth_map: Labels,
        truth_segments: Sequence[Segment | Mapping[str, Any]],
    ) -> None:
        """Count one image.

        Args:
            prediction_map: integers, (height, width): the id of the segment at each pixel; 0 where
                there is none.
            prediction_segments: one for each id of the map: `Segment`, or COCO's dictionaries with
                `id`, `category_id` and, in a truth, `iscrowd`.
            truth_map: the same of the truth; 0 is void.
            truth_segments: the same of the truth.

        Raises:
            EvaluationError: sizes differ, map and list disagree, or a category is unknown. Nothing
                is counted.
        """
        prediction_map, truth_map = np.asarray(prediction_map), np.asarray(truth_map)
        if prediction_map.shape != truth_map.shape:
            raise EvaluationError(
                f"the predicted map is {_size(prediction_map)}, the true one {_size(truth_map)}. "
                "Predict at the size of the labels."
            )
        found = sort_segments(prediction_segments, self._index, "prediction")
        true = sort_segments(truth_segments, self._index, "truth")
        both = overlap(Side(prediction_map, found, "prediction"), Side(truth_map, true, "truth"))
        self._count(both, found, true)

    def update_panoptic(self, prediction: Panoptic, truth: Panoptic) -> None:
        """Count one image given as values; see `update`."""
        self.update(prediction.ids, prediction.segments, truth.ids, truth.segments)

    def _count(self, both: Overlap, found: Segments, true: Segments) -> None:
        """Match and count."""
        inside = (both.true > 0) & (both.found > 0)
        row, column = both.true[inside] - 1, both.found[inside] - 1
        shared = both.pixels[inside]
        union = both.true_area[row] + both.found_area[column] - both.on_void[column] - shared
        same = true.categories[row] == found.categories[column]
        crowd = true.crowd[row]
        # whole numbers: exact where a quotient of floats might round to one half
        match = (2 * shared > union) & same & ~crowd
        forgiven = both.on_void.copy()
        np.add.at(forgiven, column[same & crowd], shared[same & crowd])
        alarm = 2 * forgiven <= both.found_area
        alarm[column[match]] = False
        missed = ~true.crowd
        missed[row[match]] = False
        steps = np.rint(shared[match] / union[match] * _STEPS).astype(np.int64)
        matched = true.categories[row[match]]
        np.add.at(self.iou_sum, matched, steps)
        np.add.at(self.matched, matched, 1)
        np.add.at(self.false_alarms, found.categories[alarm], 1)
        np.add.at(self.missed, true.categories[missed], 1)

    def __add__(self, other: PanopticCounts) -> PanopticCounts:
        """Counts of both; neither changes.

        Raises:
            EvaluationError: they count different categories.
        """
        if not isinstance(other, PanopticCounts):
            return NotImplemented
        if self.categories != other.categories:
            raise EvaluationError(
                "panoptic counts of different categories cannot be added. Evaluate both with the "
                "same ones."
            )
        total = PanopticCounts(self.categories)
        for name in _STATE:
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PanopticCounts):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def scores(self) -> PanopticScores:
        """What the counts amount to."""
        occurs = self.matched + self.false_alarms + self.missed
        whole = self.matched + (self.false_alarms + self.missed) / 2
        pq, sq, rq = (np.full(len(occurs), np.nan) for _ in range(3))
        sq[occurs > 0] = 0.0
        iou_sum = self.iou_sum / _STEPS
        np.divide(iou_sum, whole, out=pq, where=occurs > 0)
        np.divide(self.matched, whole, out=rq, where=occurs > 0)
        np.divide(iou_sum, self.matched, out=sq, where=self.matched > 0)
        thing = np.array([category.is_thing for category in self.categories])
        return PanopticScores(
            pq=known_mean(pq),
            sq=known_mean(sq),
            rq=known_mean(rq),
            pq_things=known_mean(pq[thing]),
            sq_things=known_mean(sq[thing]),
            rq_things=known_mean(rq[thing]),
            pq_stuff=known_mean(pq[~thing]),
            sq_stuff=known_mean(sq[~thing]),
            rq_stuff=known_mean(rq[~thing]),
            pq_per_class=pq,
            sq_per_class=sq,
            rq_per_class=rq,
            names=tuple(category.name for category in self.categories),
        )

    def to_dict(self) -> dict[str, Any]:
        """The state, as JSON takes it."""
        return {
            "categories": [
                {"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in self.categories
            ],
            **{name: getattr(self, name).tolist() for name in _STATE},
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> PanopticCounts:
        """The inverse of `to_dict`.

        Raises:
            EvaluationError: that is no such state.
        """
        try:
            counts = cls(state["categories"])
            for name in _STATE:
                values = np.array(state[name])
                if values.shape != counts.matched.shape or values.dtype.kind != "i":
                    raise ValueError(name)
                if (values < 0).any():
                    raise ValueError(name)
                setattr(counts, name, values.astype(np.int64))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EvaluationError(
                f"a damaged state of panoptic counts ({error}). Delete it and evaluate again."
            ) from error
        return counts


_STATE = ("iou_sum", "matched", "false_alarms", "missed")


def category_of(value: Category | Mapping[str, Any]) -> Category:
    """A category, as it is or of COCO's entry with `id`, `name` and `isthing`.

    Raises:
        EvaluationError: the entry lacks one of them, or has something else there.
    """
    if isinstance(value, Category):
        return value
    try:
        value["isthing"]  # absent is not 0 here
        number, thing = whole_number(value, "id"), yes_or_no(value, "isthing")
        return Category(number, str(value["name"]), thing)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"{shown(value)} is no category ({error}). Give id, name and isthing, as COCO does."
        ) from error


def _size(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "a single value"
