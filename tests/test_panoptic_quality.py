"""Panoptic quality against the two official implementations, and its laws."""

from __future__ import annotations

import importlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation import Panoptic, PanopticCounts, Scores, Segment, label_space
from lwmm_hub.evaluation.panoptic import Category

CATEGORIES = [
    {"id": 7, "name": "road", "isthing": 0},
    {"id": 23, "name": "sky", "isthing": 0},
    {"id": 24, "name": "person", "isthing": 1},
    {"id": 26, "name": "car", "isthing": 1},
    {"id": 33, "name": "bicycle", "isthing": 1},  # occurs in no random image
]
Segments = list[dict[str, Any]]


@dataclass
class Pair:
    """A predicted and a true panoptic map with their segments."""

    prediction: NDArray[np.int32]
    found: Segments
    truth: NDArray[np.int32]
    true: Segments


def segment(number: int, category: int, crowd: int = 0) -> dict[str, Any]:
    return {"id": number, "category_id": category, "iscrowd": crowd}


def pair(
    prediction: Sequence[Sequence[int]],
    found: Sequence[tuple[int, int]],
    truth: Sequence[Sequence[int]],
    true: Sequence[tuple[int, ...]],
) -> Pair:
    return Pair(
        np.array(prediction, np.int32),
        [segment(*s) for s in found],
        np.array(truth, np.int32),
        [segment(*s) for s in true],
    )


def random_pair(seed: int, shape: tuple[int, int] = (24, 30)) -> Pair:
    """Rectangles over void; the prediction moves, renumbers, renames, drops and adds some."""
    rng = np.random.default_rng(seed)
    truth, prediction = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    true, found = [], []
    crowds: set[int] = set()
    ids = rng.permutation(np.arange(1, 70000))[:40].tolist()
    for number in range(int(rng.integers(0, 9))):
        category = int(rng.choice([7, 23, 24, 26]))
        top, left = (int(rng.integers(0, size - 4)) for size in shape)
        height, width = (int(rng.integers(2, 14)) for _ in range(2))
        # one crowd of a class at most: two are counted differently here and there
        crowd = int(category > 23 and category not in crowds and rng.random() < 0.3)
        crowds |= {category} if crowd else set()
        truth[top : top + height, left : left + width] = ids[number]
        true.append(segment(ids[number], category, crowd))
        if rng.random() < 0.85:
            down, right = (int(rng.integers(-2, 3)) for _ in range(2))
            box = max(top + down, 0), max(left + right, 0)
            prediction[box[0] : top + down + height, box[1] : left + right + width] = ids[
                -1 - number
            ]
            category = int(rng.choice([24, 26])) if rng.random() < 0.2 else category
            found.append(segment(ids[-1 - number], category))
    seen, there = set(prediction.flat), set(truth.flat)
    return Pair(
        prediction,
        [s for s in found if s["id"] in seen],
        truth,
        [s for s in true if s["id"] in there],
    )


CASES = {
    "an empty image": pair(np.zeros((0, 3)), [], np.zeros((0, 3)), []),
    "void on both sides": pair([[0, 0]], [], [[0, 0]], []),
    "a prediction on void alone": pair([[1, 1]], [(1, 24)], [[0, 0]], []),
    "nothing predicted": pair([[0, 0]], [], [[1, 1]], [(1, 24)]),
    "one pixel": pair([[3]], [(3, 26)], [[9]], [(9, 26)]),
    "one pixel of another class": pair([[3]], [(3, 26)], [[9]], [(9, 24)]),
    "an IoU of exactly one half": pair([[1, 1, 1, 0]], [(1, 26)], [[0, 0, 0, 0]], []),
    "half and half": pair([[1, 1, 2, 2]], [(1, 26), (2, 26)], [[5, 5, 5, 5]], [(5, 26)]),
    "two thirds": pair([[1, 1, 2]], [(1, 26), (2, 26)], [[5, 5, 5]], [(5, 26)]),
    "void is in no union": pair([[1, 1, 1, 1]], [(1, 26)], [[5, 0, 0, 0]], [(5, 26)]),
    "more than half on void": pair([[1, 1, 1, 0]], [(1, 24)], [[5, 0, 0, 5]], [(5, 26)]),
    "exactly half on void": pair([[1, 1, 0, 0]], [(1, 24)], [[5, 0, 5, 5]], [(5, 26)]),
    "on a crowd of its class": pair([[1, 1, 1, 2]], [(1, 24), (2, 26)], [[5] * 4], [(5, 24, 1)]),
    "on a crowd of another class": pair([[1, 1]], [(1, 26)], [[5, 5]], [(5, 24, 1)]),
    "half crowd and half void": pair([[1] * 4], [(1, 24)], [[5, 0, 6, 6]], [(5, 24, 1), (6, 26)]),
    "the largest id": pair([[2**24 - 1]], [(2**24 - 1, 7)], [[2**24 - 1]], [(2**24 - 1, 7)]),
    **{f"random {seed}": random_pair(seed) for seed in range(12)},
}


def counted(*pairs: Pair) -> PanopticCounts:
    counts = PanopticCounts(CATEGORIES)
    for p in pairs:
        counts.update(p.prediction, p.found, p.truth, p.true)
    return counts


@pytest.fixture(scope="module")
def cityscapes() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports are old
        return importlib.import_module("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")


def write(folder: Path, name: str, maps: Sequence[Any], segments: Sequence[Segments]) -> Path:
    """COCO's layout: a JSON file, and a folder of PNG files whose colours are the ids."""
    images = folder / name
    images.mkdir()
    annotations = []
    for number, (ids, listed) in enumerate(zip(maps, segments, strict=True)):
        colors = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
        Image.fromarray(colors).save(images / f"{number}.png")
        infos = [{**s, "area": int((ids == s["id"]).sum()), "bbox": [0, 0, 1, 1]} for s in listed]
        annotations.append(
            {"image_id": number, "file_name": f"{number}.png", "segments_info": infos}
        )
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(len(maps))],
        "categories": CATEGORIES,
        "annotations": annotations,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return path


def compare(counts: PanopticCounts, theirs: dict[str, Any]) -> None:
    """`theirs` as panopticapi returns it: All, Things, Stuff and per_class."""
    scores = counts.scores()
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for quality in ("pq", "sq", "rq"):
            ours = getattr(scores, quality + suffix)
            if theirs[group]["n"] == 0:
                assert math.isnan(ours)
            else:
                assert ours == pytest.approx(theirs[group][quality], abs=1e-11), (group, quality)
    for i, category in enumerate(CATEGORIES):
        per_class = theirs["per_class"].get(category["id"])
        for quality in ("pq", "sq", "rq"):
            ours = getattr(scores, f"{quality}_per_class")[i]
            if math.isnan(ours):  # occurs nowhere: 0 there, or -1 (hotcoco)
                assert per_class is None or per_class[quality] in (0.0, -1.0)
            else:
                assert ours == pytest.approx(per_class[quality], abs=1e-11), (category, quality)


def test_cityscapes_scripts_agree(cityscapes: ModuleType, tmp_path: Path) -> None:
    """On every case alone, and on all of them together."""
    categories = {c["id"]: c for c in CATEGORIES}
    cases = {name: case for name, case in CASES.items() if case.truth.size}
    groups = {**{name: [case] for name, case in cases.items()}, "all": list(cases.values())}
    for number, (name, pairs) in enumerate(groups.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        sides = [
            json.loads(write(folder, side, maps, listed).read_text())["annotations"]
            for side, maps, listed in (
                ("truth", [p.truth for p in pairs], [p.true for p in pairs]),
                ("prediction", [p.prediction for p in pairs], [p.found for p in pairs]),
            )
        ]
        stats = cityscapes.pq_compute_single_core(
            0, list(zip(*sides, strict=True)), folder / "truth", folder / "prediction", categories
        )
        theirs: dict[str, Any] = {}
        for group, thing in (("All", None), ("Things", True), ("Stuff", False)):
            try:
                theirs[group], per_class = stats.pq_average(categories, isthing=thing)
            except ZeroDivisionError:  # no class of that kind
                theirs[group], per_class = {"n": 0}, {}
            theirs.setdefault("per_class", per_class)
        ours = counted(*pairs)
        compare(ours, theirs)
        for i, category in enumerate(CATEGORIES):
            stat = stats[category["id"]]
            assert (stat.tp, stat.fp, stat.fn) == (
                ours.matched[i],
                ours.false_alarms[i],
                ours.missed[i],
            ), (name, category)


def test_hotcoco_agrees(tmp_path: Path) -> None:
    from hotcoco.panoptic import pq_compute

    pairs = [case for case in CASES.values() if case.truth.size]
    truth = write(tmp_path, "truth", [p.truth for p in pairs], [p.true for p in pairs])
    prediction = write(
        tmp_path, "prediction", [p.prediction for p in pairs], [p.found for p in pairs]
    )
    compare(counted(*pairs), pq_compute(str(truth), str(prediction)))


def test_what_each_case_counts() -> None:
    """The cases by hand: matches, false alarms, misses over all classes."""
    wanted = {
        "an empty image": (0, 0, 0),
        "void on both sides": (0, 0, 0),
        "a prediction on void alone": (0, 0, 0),
        "nothing predicted": (0, 0, 1),
        "one pixel": (1, 0, 0),
        "one pixel of another class": (0, 1, 1),
        "half and half": (0, 2, 1),
        "two thirds": (1, 1, 0),
        "void is in no union": (1, 0, 0),
        "more than half on void": (0, 0, 1),
        "exactly half on void": (0, 1, 1),
        "on a crowd of its class": (0, 1, 0),
        "on a crowd of another class": (0, 1, 0),
        "half crowd and half void": (0, 1, 1),
    }
    for name, (matched, alarms, missed) in wanted.items():
        counts = counted(CASES[name])
        found = counts.matched.sum(), counts.false_alarms.sum(), counts.missed.sum()
        assert found == (matched, alarms, missed), name


def test_every_crowd_of_a_class_forgives() -> None:
    """Stated difference: panopticapi looks at the last crowd of a class only."""
    case = pair([[1] * 4], [(1, 24)], [[5, 5, 6, 6]], [(5, 24, 1), (6, 24, 1)])
    assert counted(case).false_alarms.sum() == 0


def test_thousands_of_segments_do_not_take_a_table_of_all_their_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """40000 x 40000 pairs would be 13 GB; those that share a pixel are few."""
    ids = np.arange(1, 40001, dtype=np.int32).reshape(200, 200)
    many = [segment(int(i), 26) for i in ids.flat]
    counts = counted(Pair(ids, many, ids, many))
    assert counts.matched.sum() == 40000
    cases = [random_pair(seed) for seed in range(6)]
    dense = counted(*cases)
    monkeypatch.setattr("lwmm_hub.evaluation.overlaps._DENSE", 0)
    assert counted(*cases) == dense


def test_without_anything_every_score_is_nan() -> None:
    scores = PanopticCounts(CATEGORIES).scores()
    assert all(math.isnan(value) for value in (scores.pq, scores.sq_things, scores.rq_stuff))
    assert np.isnan(scores.pq_per_class).all()


def test_segments_as_values_are_indices_of_a_label_space() -> None:
    counts = PanopticCounts.of(label_space("cityscapes-19"))
    truth = Panoptic(
        np.array([[1, 1, 2, 3]], np.int32), (Segment(1, 0), Segment(2, 13), Segment(3, 11, True))
    )
    found = Panoptic(np.array([[4, 4, 9, 9]], np.int32), (Segment(4, 0), Segment(9, 13)))
    counts.update_panoptic(found, truth)
    scores = counts.scores()
    fields = scores.fields()
    assert fields["pq_per_class"]["road"] == 1.0
    assert fields["pq_per_class"]["car"] == 0.0  # one of two pixels, and that on a crowd of persons
    assert math.isnan(fields["pq_per_class"]["person"])
    document = Scores("a", None, "panoptic", 1, **fields).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False))["pq"] == 0.5
    with pytest.raises(EvaluationError, match="camvid-11 does not say"):
        PanopticCounts.of(label_space("camvid-11"))
    assert PanopticCounts.of(label_space("camvid-11"), things=[8]).categories[8].is_thing


ONE = [segment(1, 24)]
WRONG = {
    "sizes": (np.ones((1, 2), int), ONE, np.ones((2, 1), int), ONE, "1 x 2, the true one 2 x 1"),
    "an id without an entry": (
        np.array([[1, 2]]),
        ONE,
        np.array([[1, 1]]),
        ONE,
        "map of the prediction holds 2, for which",
    ),
    "a negative id": (
        np.array([[1, -1]]),
        ONE,
        np.array([[1, 1]]),
        ONE,
        "map of the prediction holds -1",
    ),
    "an entry without a pixel": (
        np.array([[1]]),
        ONE,
        np.array([[1]]),
        [*ONE, segment(4, 7)],
        "truth lists the segments 4",
    ),
    "an unknown category": (
        np.array([[1]]),
        [segment(1, 5)],
        np.array([[1]]),
        ONE,
        "segment 1 of the prediction has the category 5",
    ),
    "an id twice": (np.array([[1]]), ONE * 2, np.array([[1]]), ONE, "share an id"),
    "the id of void": (
        np.array([[0]]),
        [segment(0, 7)],
        np.array([[1]]),
        ONE,
        "below 1",
    ),
    "no segment": (np.array([[1]]), [{"id": 1}], np.array([[1]]), ONE, "is no segment"),
    "a float map": (np.ones((1, 1)), ONE, np.array([[1]]), ONE, "prediction holds float64"),
}


@pytest.mark.parametrize("case", WRONG, ids=list(WRONG))
def test_what_cannot_be_counted_is_refused_and_nothing_of_it_counted(case: str) -> None:
    *arguments, message = WRONG[case]
    counts = counted(CASES["two thirds"])
    before = counts.to_dict()
    with pytest.raises(EvaluationError, match=message):
        counts.update(*arguments)
    assert counts.to_dict() == before


def test_categories_must_be_some_and_differ() -> None:
    with pytest.raises(EvaluationError, match="0 categories"):
        PanopticCounts([])
    with pytest.raises(EvaluationError, match="2 categories with 1 different"):
        PanopticCounts([Category(1, "a", True), Category(1, "b", True)])
    with pytest.raises(EvaluationError, match="is no category"):
        PanopticCounts([{"id": 1}])
    with pytest.raises(EvaluationError, match="different categories"):
        PanopticCounts(CATEGORIES) + PanopticCounts(CATEGORIES[:2])


@pytest.mark.parametrize(
    "change", [{"matched": [1]}, {"missed": [-1] * 5}, {"iou_sum": [0.5] * 5}, {"categories": 3}]
)
def test_damaged_states_are_refused(change: dict[str, object]) -> None:
    state = counted(CASES["two thirds"]).to_dict()
    assert PanopticCounts.from_dict(json.loads(json.dumps(state))).to_dict() == state
    with pytest.raises(EvaluationError, match="damaged"):
        PanopticCounts.from_dict({**state, **change})


seeds = st.lists(st.integers(0, 2**31), min_size=1, max_size=5)


@given(seeds, st.randoms(use_true_random=False), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_shards_add_up_to_the_last_bit_in_any_order(
    numbers: list[int], random: object, shards: int
) -> None:
    pairs = [random_pair(number, (10, 12)) for number in numbers]
    whole = counted(*pairs)
    random.shuffle(pairs)  # type: ignore[attr-defined]
    total = PanopticCounts(CATEGORIES)
    for shard in range(shards):
        part = counted(*pairs[shard::shards])
        total = total + PanopticCounts.from_dict(json.loads(json.dumps(part.to_dict())))
    assert total == whole


@given(st.integers(0, 2**31), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_other_numbers_for_the_segments_change_nothing(seed: int, shuffle: int) -> None:
    case = random_pair(seed, (10, 12))
    order = np.random.default_rng(shuffle).permutation(np.arange(1, 70001)).astype(np.int32)
    table = np.concatenate([np.zeros(1, np.int32), order])
    renumbered = Pair(
        table[case.prediction],
        [{**s, "id": int(table[s["id"]])} for s in case.found],
        table[case.truth],
        [{**s, "id": int(table[s["id"]])} for s in reversed(case.true)],
    )
    assert counted(renumbered) == counted(case)


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_the_truth_finds_itself(seed: int) -> None:
    case = random_pair(seed, (10, 12))
    kept = [s for s in case.true if not s["iscrowd"]]
    table = np.isin(case.truth, [s["id"] for s in kept])
    found = np.where(table, case.truth, 0)
    counts = counted(Pair(found, kept, case.truth, case.true))
    assert counts.matched.sum() == len(kept)
    assert counts.false_alarms.sum() == counts.missed.sum() == 0
    assert counts.scores().pq == 1.0 or not kept
