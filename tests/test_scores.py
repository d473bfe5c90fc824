"""`Scores` as JSON: nothing is lost, NaN becomes null, what does not apply stays as it is."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation import Scores

NAN = math.nan
CASES = {
    "semantic": Scores(
        "a/b", "c0ffee", "semantic", 2, 0.5, 0.6, 0.7, {"road": 0.5, "sky": NAN}, miou16=NAN
    ),
    "nothing labelled": Scores("a", None, "semantic", 1, NAN, NAN, NAN, {"road": NAN}),
    "panoptic": Scores(
        "a", None, "panoptic", 1, pq=NAN, sq=NAN, rq=0.5, pq_per_class={"car": NAN}, pq_things=0.25
    ),
    "classification": Scores("a", None, "classification", 9, accuracy=0.5, h_score=NAN),
    "detection": Scores("a", None, "detection", 3, map=0.1, map50=0.2, ap_per_class={"cat": 0.1}),
}


def same(a: object, b: object) -> bool:
    return repr(a) == repr(b)  # NaN is not equal to itself


@pytest.mark.parametrize("scores", CASES.values(), ids=list(CASES))
def test_scores_come_back_from_json(scores: Scores) -> None:
    text = json.dumps(scores.to_dict(), allow_nan=False)
    assert same(Scores.from_dict(json.loads(text)), scores)


def test_the_interface_is_there_even_where_it_does_not_apply() -> None:
    document = CASES["classification"].to_dict()
    for name in ("miou", "iou", "pq", "sq", "rq", "pq_per_class", "commit", "peak_memory_mb"):
        assert document[name] is None
    assert "miou13" not in document
    assert document["h_score"] is None
    assert CASES["classification"].iou == Scores.from_dict(document).iou == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mood": 1}, "mood"),
        ({"task": "poetry"}, "poetry"),
        ({"images": -1}, "images = -1"),
        ({"miou": "high"}, "miou = 'high'"),
        ({"iou": {"road": "wide"}}, "iou.road"),
        ({"iou": [1]}, "iou"),
        ({"reference": None}, "reference"),
    ],
)
def test_scores_that_are_none_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        Scores.from_dict({**CASES["semantic"].to_dict(), **change})


def test_a_missing_field_is_named() -> None:
    document = CASES["semantic"].to_dict()
    del document["images"]
    with pytest.raises(EvaluationError, match="images"):
        Scores.from_dict(document)
    with pytest.raises(EvaluationError, match="list"):
        Scores.from_dict([])  # type: ignore[arg-type]


def test_every_field_is_described() -> None:
    described = (Scores.__doc__ or "").replace(",", " ").replace(":", " ").split()
    assert [field.name for field in fields(Scores) if field.name not in described] == []
