"""The same cases through torchmetrics, an implementation that is independent of ours.

A file of its own, since the import takes seconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import test_confusion as semantic
import test_panoptic_quality as panoptic

from lwmm_hub.evaluation import PanopticCounts


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


CASES = {
    **{name: [case] for name, case in semantic.ADVERSARIAL.items() if case[1].size},
    "random": [semantic.random_pair(seed, 5) for seed in range(4)],
    "all": [
        *semantic.ADVERSARIAL.values(),
        *(semantic.random_pair(seed, 5) for seed in range(4)),
    ],
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_its_confusion_matrix_and_jaccard_index_agree(torch: Any, case: str) -> None:
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

    matrix = MulticlassConfusionMatrix(5, ignore_index=255)
    macro = MulticlassJaccardIndex(5, ignore_index=255)
    each = MulticlassJaccardIndex(5, ignore_index=255, average=None)
    weighted = MulticlassJaccardIndex(5, ignore_index=255, average="weighted")
    for prediction, truth in CASES[case]:
        if not truth.size:
            continue  # refused there
        # refused there even where the truth is ignored
        prediction = np.where(prediction == 255, 0, prediction)
        for metric in (matrix, macro, each, weighted):
            metric.update(
                torch.as_tensor(prediction.astype(np.int64)),
                torch.as_tensor(truth.astype(np.int64)),
            )
    ours = semantic.counted(*CASES[case])
    assert (ours.counts == matrix.compute().numpy()).all()
    if not ours.counts.any():
        return  # all is NaN here, and 0 there
    scores = ours.scores()
    assert scores.miou == pytest.approx(macro.compute().item(), rel=1e-6)
    assert scores.frequency_weighted_iou == pytest.approx(weighted.compute().item(), rel=1e-6)
    np.testing.assert_allclose(np.nan_to_num(scores.iou), each.compute().numpy(), rtol=1e-6)


def without_crowds(seed: int) -> panoptic.Pair:
    """A random case that both understand.

    No crowd, one segment for each class of stuff, and a prediction everywhere, since torchmetrics
    forgives a miss where nothing was predicted.
    """
    case = panoptic.random_pair(seed)
    if not case.prediction.all():
        case.prediction[case.prediction == 0] = 70001
        case.found.append(panoptic.segment(70001, 23))
    for ids, segments in ((case.prediction, case.found), (case.truth, case.true)):
        first: dict[int, int] = {}
        for segment in list(segments):
            segment["iscrowd"] = 0
            category = segment["category_id"]
            if category < 24:
                keeper = first.setdefault(category, segment["id"])
                if keeper != segment["id"]:
                    ids[ids == segment["id"]] = keeper
                    segments.remove(segment)
    return case


def as_pairs(ids: Any, segments: Any) -> Any:
    """(height, width, 2): category and instance of each pixel; category 0 is of no class."""
    category = np.zeros(int(ids.max(initial=0)) + 1, np.int64)
    for segment in segments:
        category[segment["id"]] = segment["category_id"]
    return np.stack([category[ids], np.where(ids > 0, ids, 0)], axis=-1)


@pytest.mark.parametrize("seeds", [range(6), range(6, 12), [20]], ids=str)
def test_its_panoptic_quality_agrees(torch: Any, seeds: Any) -> None:
    from torchmetrics.detection import PanopticQuality

    order = [24, 26, 33, 7, 23]  # things first
    metrics = [
        PanopticQuality(
            {24, 26, 33},
            {7, 23},
            allow_unknown_preds_category=True,
            return_sq_and_rq=True,
            return_per_class=each,
        )
        for each in (False, True)
    ]
    ours = PanopticCounts(panoptic.CATEGORIES)
    for seed in seeds:
        case = without_crowds(seed)
        ours.update(case.prediction, case.found, case.truth, case.true)
        for metric in metrics:
            metric.update(
                torch.as_tensor(as_pairs(case.prediction, case.found))[None],
                torch.as_tensor(as_pairs(case.truth, case.true))[None],
            )
    mean, each = (metric.compute().numpy() for metric in metrics)
    scores = ours.scores()
    np.testing.assert_allclose([scores.pq, scores.sq, scores.rq], mean.ravel(), rtol=1e-5)
    place = {category.id: i for i, category in enumerate(ours.categories)}
    rows = [place[category] for category in order]
    table = np.stack([scores.pq_per_class, scores.sq_per_class, scores.rq_per_class], axis=-1)
    np.testing.assert_allclose(np.nan_to_num(table[rows]), each.squeeze(), rtol=1e-5, atol=1e-7)
