"""Detection: average precision through pycocotools, checked by hand and against hotcoco."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation import Boxes, Scores
from lwmm_hub.evaluation.columns import Columns, from_table
from lwmm_hub.evaluation.detection import DetectionResults
from lwmm_hub.evaluation.label_spaces import counted_space

LABELS = ["person", "car", "train"]  # a train is nowhere


def boxes(*rows: tuple[float, ...], truth: bool = False, crowd: tuple[int, ...] = ()) -> Boxes:
    """Rows of left, top, right, bottom, class and, in a prediction, confidence."""
    table = np.array(rows, np.float32).reshape(len(rows), -1) if rows else np.zeros((0, 6), "f4")
    return Boxes(
        table[:, :4],
        table[:, 4].astype(np.int64),
        None if truth else table[:, 5],
        np.isin(np.arange(len(rows)), crowd) if truth else None,
    )


def random_image(seed: int) -> tuple[Boxes, Boxes]:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 7))
    corner = rng.uniform(0, 200, (count, 2))
    truth = np.hstack([corner, corner + rng.uniform(4, 150, (count, 2))])
    kinds = rng.integers(0, 2, count)
    kept = rng.random(count) < 0.8
    moved = truth[kept] + rng.normal(0, 3, (int(kept.sum()), 4))
    extra = rng.uniform(0, 200, (3, 2))
    found = np.vstack([moved, np.hstack([extra, extra + 20])])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    return (
        Boxes(
            found.astype(np.float32),
            np.concatenate([kinds[kept], rng.integers(0, 3, 3)]),
            rng.random(len(found)).astype(np.float32),
        ),
        Boxes(truth.astype(np.float32), kinds, is_crowd=rng.random(count) < 0.1),
    )


def results(*images: tuple[Boxes, Boxes]) -> DetectionResults:
    found = DetectionResults(LABELS)
    for prediction, truth in images:
        found.update(prediction, truth)
    return found


def test_a_perfect_detector_scores_one_and_absent_classes_nothing() -> None:
    truth = boxes((0, 0, 10, 10, 0), (20, 20, 60, 60, 1), truth=True)
    scores = results((boxes((0, 0, 10, 10, 0, 0.9), (20, 20, 60, 60, 1, 0.8)), truth)).scores()
    assert [scores.map, scores.map50] == pytest.approx([1.0, 1.0])
    assert math.isnan(scores.ap_per_class[2])
    document = Scores("a", None, "detection", 1, **scores.fields()).to_dict()
    assert document["ap_per_class"] == {
        "person": pytest.approx(1),
        "car": pytest.approx(1),
        "train": None,
    }
    json.dumps(document, allow_nan=False)


def test_a_box_of_iou_seven_tenths_counts_at_five_of_ten_thresholds() -> None:
    """10 x 10 against 10 x 7 inside it: right at 0.50, 0.55, 0.60, 0.65 and 0.70."""
    scores = results((boxes((0, 0, 10, 7, 0, 0.9)), boxes((0, 0, 10, 10, 0), truth=True))).scores()
    assert scores.map50 == pytest.approx(1.0)
    assert scores.map == pytest.approx(0.5)


def test_a_false_alarm_ranked_first_costs_half_and_one_on_a_crowd_nothing() -> None:
    truth = boxes((0, 0, 10, 10, 0), truth=True)
    right, wrong = (0, 0, 10, 10, 0, 0.5), (50, 50, 60, 60, 0, 0.9)
    assert results((boxes(right, wrong), truth)).scores().map50 == pytest.approx(0.5)
    crowded = boxes((0, 0, 10, 10, 0), (45, 45, 70, 70, 0), truth=True, crowd=(1,))
    assert results((boxes(right, wrong), crowded)).scores().map50 == pytest.approx(1.0)


def test_empty_sides() -> None:
    nothing, truth = boxes(), boxes((0, 0, 10, 10, 0), truth=True)
    assert results((nothing, truth)).scores().map == 0.0
    assert math.isnan(results((nothing, boxes(truth=True))).scores().map)
    assert math.isnan(DetectionResults(LABELS).scores().map50)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    results(random_image(0)).scores()
    assert capsys.readouterr() == ("", "")


def test_hotcoco_agrees(tmp_path: Path) -> None:
    from hotcoco import COCO, COCOeval

    images = [random_image(seed) for seed in range(12)]
    sides: list[list[dict[str, Any]]] = [[], []]
    for number, image in enumerate(images):
        for side, side_boxes in zip(sides, image, strict=True):
            for i, (left, top, right, bottom) in enumerate(side_boxes.corners.tolist()):
                width, height = right - left, bottom - top
                entry = {
                    "id": len(side) + 1,
                    "image_id": number,
                    "category_id": int(side_boxes.categories[i]) + 1,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                }
                if side_boxes.confidences is not None:
                    entry["score"] = float(side_boxes.confidences[i])
                else:
                    entry["iscrowd"] = int(side_boxes.is_crowd[i])  # type: ignore[index]
                side.append(entry)
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    document = {
        "images": [{"id": i, "width": 400, "height": 400} for i in range(len(images))],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(LABELS)],
        "annotations": sides[1],
    }
    truth.write_text(json.dumps(document))
    found.write_text(json.dumps(sides[0]))
    coco = COCO(str(truth))
    evaluator = COCOeval(coco, coco.load_res(str(found)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    scores = results(*images).scores()
    assert scores.map == pytest.approx(evaluator.stats[0], abs=1e-9)
    assert scores.map50 == pytest.approx(evaluator.stats[1], abs=1e-9)
    assert 0.05 < scores.map < 0.95


def test_shards_add_up_and_come_back_from_json() -> None:
    images = [random_image(seed) for seed in range(6)]
    whole = results(*images).scores()
    parts = [results(*images[:2]), results(*images[2:])]
    states = [json.loads(json.dumps(part.to_dict())) for part in parts]
    total = DetectionResults.from_dict(states[0]) + DetectionResults.from_dict(states[1])
    assert len(total) == 6
    np.testing.assert_allclose(total.scores().ap_per_class, whole.ap_per_class)


GOOD = boxes((0, 0, 1, 1, 0, 0.5))
WRONG = {
    "no confidences": (boxes((0, 0, 1, 1, 0), truth=True), "without confidences"),
    "an unknown class": (boxes((0, 0, 1, 1, 7, 0.5)), "classes 7, but there are 3"),
    "width and height": (boxes((5, 5, 1, 1, 0, 0.5)), "ends before it begins"),
    "not a number": (boxes((0, 0, math.nan, 1, 0, 0.5)), "finite"),
    "too few corners": (Boxes(np.zeros((2, 4), "f4"), np.zeros(1, int)), "2 x 4, not 1 x 4"),
    "too many confidences": (
        Boxes(np.zeros((1, 4), "f4"), np.zeros(1, int), np.zeros(2, "f4")),
        "1 boxes in the prediction, but 2 confidences",
    ),
}


@pytest.mark.parametrize("case", WRONG, ids=list(WRONG))
def test_what_cannot_be_counted_is_refused(case: str) -> None:
    prediction, message = WRONG[case]
    found = DetectionResults(LABELS)
    with pytest.raises(EvaluationError, match=message):
        found.update(prediction, boxes(truth=True))
    assert len(found) == 0


def test_other_refusals() -> None:
    with pytest.raises(EvaluationError, match="no classes"):
        DetectionResults([])
    with pytest.raises(EvaluationError, match="different classes"):
        DetectionResults(["a"]) + DetectionResults(["b"])
    with pytest.raises(EvaluationError, match="damaged"):
        DetectionResults.from_dict({"labels": ["a"], "images": [[{}, {}]]})


def test_without_pycocotools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(EvaluationError, match=r"pip install 'lwmm-hub\[detection\]'"):
        results(random_image(0)).scores()


# ------------------------------------------------------------------------------ objects of a table

OBJECT = {"bbox": [4.0, 6.0, 20.0, 12.0], "category_id": 1, "iscrowd": 0, "area": 240.0}


def read_object(**changed: Any) -> Boxes:
    """The boxes of a table with one object in its one row."""
    import datasets

    entry = {k: v for k, v in {**OBJECT, **changed}.items() if v != "absent"}
    picture = io.BytesIO()
    Image.new("RGB", (32, 24)).save(picture, "PNG")
    rows = {"image": [{"bytes": picture.getvalue(), "path": None}], "objects": [[entry]]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    space = counted_space(["road", "car"])
    (sample,) = from_table(table, "cars", None, None, space, Columns()).samples(0, 1)
    assert sample.boxes is not None
    return sample.boxes


@pytest.mark.parametrize(
    ("changed", "crowd", "area"),
    [
        ({}, False, 240.0),
        ({"iscrowd": 1}, True, 240.0),
        ({"iscrowd": True}, True, 240.0),
        ({"iscrowd": "absent", "area": "absent"}, False, None),
        ({"iscrowd": None, "area": None}, False, None),
        ({"area": 0}, False, 0.0),
    ],
)
def test_objects_of_a_table_are_read_as_they_are(
    changed: dict[str, Any], crowd: bool, area: float | None
) -> None:
    found = read_object(**changed)
    assert found.corners.tolist() == [[4, 6, 24, 18]]
    assert found.categories.tolist() == [1]
    assert found.is_crowd is not None
    assert found.is_crowd.tolist() == [crowd]
    assert (None if found.areas is None else found.areas.tolist()) == (
        None if area is None else [area]
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"iscrowd": "0"}, r"iscrowd is '0', neither 0 nor 1"),
        ({"iscrowd": 0.5}, r"iscrowd is 0.5, neither 0 nor 1"),
        ({"iscrowd": 2}, r"iscrowd is 2, neither 0 nor 1"),
        ({"iscrowd": math.nan}, r"iscrowd is nan, neither 0 nor 1"),
        ({"category_id": "1"}, r"category_id is '1', not a whole number"),
        ({"category_id": True}, r"category_id is True, not a whole number"),
        ({"category_id": 1.0}, r"category_id is 1.0, not a whole number"),
        ({"category_id": math.nan}, r"category_id is nan, not a whole number"),
        ({"category_id": None}, r"category_id is None, not a whole number"),
        ({"bbox": [4.0, 6.0]}, r"bbox is \[4.0, 6.0\], not left, top, width, height"),
        ({"bbox": [4.0, 6.0, math.nan, 2.0]}, r"nan, 2.0\], not left, top, width, height"),
        ({"bbox": ["4", "6", "2", "2"]}, r"\['4', .*not left, top, width, height"),
        ({"bbox": None}, r"bbox is None, not left, top, width, height"),
        ({"bbox": [4.0, 6.0, -2.0, 2.0]}, r"-2.0, 2.0\], which ends before it begins"),
        ({"area": -1.0}, r"area is -1.0, no number of pixels"),
        ({"area": math.inf}, r"area is inf, no number of pixels"),
        ({"area": "240"}, r"area is '240', no number of pixels"),
    ],
)
def test_an_object_of_a_table_that_lies_is_refused(changed: dict[str, Any], said: str) -> None:
    match = rf"^cars, row 0: \{{'bbox'.* is no object: .*{said}\. Correct the annotations\."
    with pytest.raises(EvaluationError, match=match):
        read_object(**changed)


def test_an_object_of_an_unknown_class_is_named() -> None:
    with pytest.raises(EvaluationError, match=r"row 0 has an object of the class 2, .* of the 2"):
        read_object(category_id=2)
