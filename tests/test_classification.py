"""Classification: closed, and open-partial with an H-score."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation import Scores
from lwmm_hub.evaluation.classification import ClassificationCounts, call_unknown
from lwmm_hub.evaluation.label_spaces import canonical
from lwmm_hub.evaluation.office import open_partial


def test_accuracy_is_of_images_and_the_other_one_of_classes() -> None:
    counts = ClassificationCounts(3, labels=["back_pack", "bike", "mug"])
    counts.update([0, 0, 0, 1], [0, 0, 0, 0])
    counts.update(1, 1)
    scores = counts.scores()
    assert scores.accuracy == 4 / 5
    assert scores.mean_accuracy == (3 / 4 + 1) / 2
    assert scores.h_score is None
    document = Scores("a", None, "classification", 5, **scores.fields()).to_dict()
    assert document["class_accuracy"] == {"back_pack": 0.75, "bike": 1.0, "mug": None}
    assert "h_score" not in document


def by_hand(predictions: list[int], labels: list[int], known: int) -> tuple[float, float, float]:
    """Known accuracy, unknown accuracy and their harmonic mean, as GLC's protocol says."""
    rates = []
    for k in range(known + 1):
        of_class = [p == k for p, t in zip(predictions, labels, strict=True) if t == k]
        rates.append(sum(of_class) / len(of_class) if of_class else math.nan)
    shared = [rate for rate in rates[:-1] if not math.isnan(rate)]
    a, b = sum(shared) / len(shared) if shared else math.nan, rates[-1]
    return a, b, 2 * a * b / (a + b) if a + b else 0.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_h_score_is_the_harmonic_mean_of_known_and_unknown(
    pairs: list[tuple[int, int]],
) -> None:
    predictions, labels = (list(part) for part in zip(*pairs, strict=True))
    counts = ClassificationCounts(4, with_unknown=True)
    counts.update(predictions, labels)
    scores = counts.scores()
    found = scores.known_accuracy, scores.unknown_accuracy, scores.h_score
    np.testing.assert_allclose(np.array(found, float), by_hand(predictions, labels, 4), rtol=1e-12)


def test_source_private_classes_do_not_lower_the_known_accuracy() -> None:
    """Office-31, open-partial: 10 shared, 10 of the source alone, 11 of the target alone."""
    counts = ClassificationCounts(20, with_unknown=True)
    shared = np.arange(10)
    counts.update(shared, shared)
    counts.update(np.full(11, 20), np.full(11, 20))
    counts.update([15], [20])  # a target-private image called a class of the source
    scores = counts.scores()
    assert scores.known_accuracy == 1.0
    assert scores.unknown_accuracy == pytest.approx(11 / 12)
    assert scores.h_score == pytest.approx(2 * (11 / 12) / (23 / 12))


@pytest.mark.parametrize(
    ("name", "sizes"), [("office-31", (10, 10, 11)), ("office-home", (10, 5, 50))]
)
def test_open_partial_splits_have_the_sizes_of_the_protocol(
    name: str, sizes: tuple[int, ...]
) -> None:
    split = open_partial(name)
    parts = split.shared, split.source_private, split.target_private
    assert tuple(map(len, parts)) == sizes
    every = sum(parts, ())
    assert len({canonical(label) for label in every}) == sum(sizes)
    known = sizes[0] + sizes[1]
    truths = [split.truth(label.replace("_", " ").lower()) for label in every]
    assert truths == [*range(sizes[0]), *[None] * sizes[1], *[known] * sizes[2]]
    with pytest.raises(EvaluationError, match="'zebra' is none of the"):
        split.truth("zebra")
    with pytest.raises(EvaluationError, match="There are office-31, office-home"):
        open_partial("visda")


def test_the_models_of_the_paper_know_as_many_classes_as_the_splits(shared: Path) -> None:
    for name, file in (
        ("office-31", "glc_resnet50_Office31_OPDA_20.json"),
        ("office-home", "glc_resnet50_OfficeHome_OPDA_15.json"),
    ):
        manifest = json.loads((shared / "manifests" / file).read_text())
        assert len(open_partial(name).known) == manifest["num_classes"]


def test_an_image_is_unknown_where_the_entropy_is_high() -> None:
    rows = np.array([[0.97, 0.01, 0.01, 0.01], [0.25] * 4, [0.0, 1.0, 0.0, 0.0]])
    assert call_unknown(rows).tolist() == [0, 4, 1]
    assert call_unknown(rows, above=1.0).tolist() == [0, 0, 1]
    for wrong in ([0.5, 0.5], [[2.0, -1.0, 3.0]], [[1.0]]):
        with pytest.raises(EvaluationError, match="softmax"):
            call_unknown(wrong)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_shards_add_up(pairs: list[tuple[int, int]], shards: int) -> None:
    whole, total = (ClassificationCounts(3, with_unknown=True) for _ in range(2))
    for prediction, label in pairs:
        whole.update(prediction, label)
    for shard in range(shards):
        part = ClassificationCounts(3, with_unknown=True)
        for prediction, label in pairs[shard::shards]:
            part.update(prediction, label)
        total = total + ClassificationCounts.from_dict(json.loads(json.dumps(part.to_dict())))
    assert total == whole


def test_what_cannot_be_counted_is_refused() -> None:
    counts = ClassificationCounts(3)
    for predictions, labels, message in (
        ([3], [0], "prediction holds 3"),
        ([0], [3], "truth holds 3"),
        ([0, 1], [0], "2 predictions for 1 labels"),
        ([0.5], [0], "float64"),
    ):
        with pytest.raises(EvaluationError, match=message):
            counts.update(predictions, labels)
    with pytest.raises(EvaluationError, match="2 labels for 3"):
        ClassificationCounts(3, labels=["a", "b"])
    with pytest.raises(EvaluationError, match="different classes"):
        counts + ClassificationCounts(3, with_unknown=True)
    for state in (
        {},
        {**counts.to_dict(), "right": [1, 0, 0]},
        {**counts.to_dict(), "num_classes": 4},
    ):
        with pytest.raises(EvaluationError):
            ClassificationCounts.from_dict(state)
