"""The confusion matrix against two official implementations, and its laws."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation import ConfusionMatrix, Scores, label_space

Map = NDArray[np.uint8]


def random_pair(seed: int, classes: int, shape: tuple[int, ...] = (17, 23)) -> tuple[Map, Map]:
    """A truth with a fifth ignored and a prediction half of which is right.

    The last class occurs in neither.
    """
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, max(classes - 1, 1), shape).astype(np.uint8)
    other = rng.integers(0, max(classes - 1, 1), shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.5, truth, other)
    truth[rng.random(shape) < 0.2] = 255
    return prediction, truth


ADVERSARIAL = {
    "empty image": (np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8)),
    "all ignored": (np.zeros((3, 4), np.uint8), np.full((3, 4), 255, np.uint8)),
    "255 everywhere, in the prediction too": (np.full((2, 2), 255), np.full((2, 2), 255)),
    "one right pixel": (np.array([[2]]), np.array([[2]])),
    "one wrong pixel": (np.array([[1]]), np.array([[2]])),
    "all of one class": (np.full((4, 4), 3), np.full((4, 4), 3)),
    "a class in the prediction alone": (np.array([[0, 1]]), np.array([[0, 0]])),
    "a class in the truth alone": (np.array([[0, 0]]), np.array([[0, 1]])),
}


def naive(prediction: Map, truth: Map, classes: int) -> dict[str, object]:
    """The definitions with sets of pixels, one class after the other."""
    pixels = [(p, t) for p, t in zip(prediction.flat, truth.flat, strict=True) if t != 255]
    iou, recall = [], []
    for k in range(classes):
        found = {i for i, (p, _) in enumerate(pixels) if p == k}
        true = {i for i, (_, t) in enumerate(pixels) if t == k}
        iou.append(len(found & true) / len(found | true) if found | true else np.nan)
        recall.append(len(found & true) / len(true) if true else np.nan)
    known = [x for x in iou if not np.isnan(x)]
    hit = [x for x in recall if not np.isnan(x)]
    right = sum(p == t for p, t in pixels)
    parts = [sum(t == k for _, t in pixels) for k in range(classes)]
    return {
        "iou": iou,
        "class_accuracy": recall,
        "miou": sum(known) / len(known) if known else np.nan,
        "mean_accuracy": sum(hit) / len(hit) if hit else np.nan,
        "pixel_accuracy": right / len(pixels) if pixels else np.nan,
        "frequency_weighted_iou": sum(
            part / len(pixels) * x for part, x in zip(parts, iou, strict=True) if part
        )
        if pixels
        else np.nan,
    }


def counted(*pairs: tuple[Map, Map], classes: int = 5) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    for prediction, truth in pairs:
        matrix.update(prediction, truth)
    return matrix


def agree(matrix: ConfusionMatrix, wanted: dict[str, object]) -> None:
    scores = matrix.scores()
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(scores, name), value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("case", ADVERSARIAL, ids=list(ADVERSARIAL))
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_adversarial_cases_agree_with_the_definition(case: str, dtype: type) -> None:
    prediction, truth = (part.astype(dtype) for part in ADVERSARIAL[case])
    agree(counted((prediction, truth)), naive(prediction, truth, 5))


@pytest.mark.parametrize("seed", range(4))
def test_random_cases_agree_with_the_definition(seed: int) -> None:
    prediction, truth = random_pair(seed, 5)
    agree(counted((prediction, truth)), naive(prediction, truth, 5))


def test_scores_are_of_the_data_set_not_means_of_images() -> None:
    one = np.array([[0, 0, 0, 0]]), np.array([[0, 0, 0, 0]])
    two = np.array([[0, 1]]), np.array([[1, 1]])
    scores = counted(one, two, classes=2).scores()
    np.testing.assert_allclose(scores.iou, [4 / 5, 1 / 2])  # means of images: 1/2 and 1/2
    assert scores.pixel_accuracy == 5 / 6


def test_evaluates_own_example_gives_the_scores_that_it_prints() -> None:
    """The example of `evaluate`'s mean_iou, whose script is not installed with it."""
    images = [
        ([[1, 2], [3, 4], [5, 255]], [[0, 3], [5, 4], [6, 255]]),
        ([[2, 7], [9, 2], [3, 6]], [[1, 7], [9, 2], [3, 6]]),
        ([[2, 2, 3], [8, 2, 4], [3, 255, 2]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]),
    ]
    scores = counted(*((np.array(p), np.array(t)) for p, t in images), classes=10).scores()
    assert scores.miou == pytest.approx(0.47750000000000004)
    assert scores.mean_accuracy == pytest.approx(0.5916666666666666)
    assert scores.pixel_accuracy == pytest.approx(0.5263157894736842)
    np.testing.assert_allclose(scores.iou, [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(
        scores.class_accuracy, [0, 0, 0.75, 2 / 3, 1, 0, 0.5, 1, 1, 1], rtol=1e-8
    )


@pytest.fixture(scope="module")
def cityscapes() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports are old
        module = importlib.import_module(
            "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
        )
    module.args.evalInstLevelScore = False
    module.args.evalPixelAccuracy = False
    return module


@pytest.mark.parametrize("seed", range(3))
def test_cityscapes_scripts_agree(cityscapes: ModuleType, tmp_path: Path, seed: int) -> None:
    """They take files of ids and score 19 of 34 labels; predictions of others count as missed."""
    space = label_space("gta-19")  # Cityscapes' ids of the 19
    ids = np.array([*space.ids, *space.void])
    rng = np.random.default_rng(seed)
    theirs = cityscapes.generateMatrix(cityscapes.args)
    ours = ConfusionMatrix(19, labels=space.labels, no_class=255)
    for image in range(2):
        truth = rng.choice(ids[ids < 34], (20, 30)).astype(np.uint8)
        guess = rng.choice(ids[(ids < 34) & (ids != 12)], truth.shape).astype(np.uint8)
        prediction = np.where(rng.random(truth.shape) < 0.6, truth, guess)
        files = [str(tmp_path / f"{image}-{name}.png") for name in ("prediction", "truth")]
        for file, array in zip(files, (prediction, truth), strict=True):
            Image.fromarray(array).save(file)
        cityscapes.evaluatePair(*files, theirs, {}, {}, cityscapes.args)
        ours.update(space.indices(prediction), space.indices(truth))
    wanted = {
        label: cityscapes.getIouScoreForLabel(space.ids[i], theirs, cityscapes.args)
        for i, label in enumerate(space.labels)
    }
    scores = ours.scores()
    assert scores.fields()["iou"] == pytest.approx(wanted, rel=1e-12)
    assert scores.miou == pytest.approx(cityscapes.getScoreAverage(wanted, cityscapes.args))
    assert scores.miou16 == pytest.approx(
        np.mean([wanted[label] for label in label_space("synthia-16").labels])
    )


def test_synthias_means_are_over_its_classes_of_the_nineteen() -> None:
    space = label_space("cityscapes-19")
    matrix = ConfusionMatrix(19, labels=space.labels)
    truth = np.arange(19, dtype=np.uint8)
    matrix.update(np.where(truth == 9, 8, truth), truth)  # terrain is called vegetation
    scores = matrix.scores()
    assert scores.miou == pytest.approx((17 + 0.5 + 0) / 19)
    assert scores.miou16 == pytest.approx((15 + 0.5) / 16)
    assert scores.miou13 == pytest.approx((12 + 0.5) / 13)
    assert ConfusionMatrix(19).scores().miou16 is None
    assert ConfusionMatrix(11, labels=label_space("camvid-11").labels).scores().miou13 is None


def test_scores_fill_the_interface() -> None:
    space = label_space("cityscapes-19")
    matrix = ConfusionMatrix(19, labels=space.labels)
    matrix.update(*random_pair(0, 19))
    scores = Scores("a/b", None, "semantic", 1, **matrix.scores().fields())
    document = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert list(document["iou"]) == list(space.labels)
    assert document["iou"]["bicycle"] is None
    assert 0 < document["miou"] < 1


def test_what_a_model_calls_none_of_the_classes_is_missed_and_nobodys_false_alarm() -> None:
    matrix = ConfusionMatrix(2, no_class=255)
    matrix.update(np.array([[0, 255, 1, 255]]), np.array([[0, 0, 1, 255]]))
    scores = matrix.scores()
    np.testing.assert_allclose(scores.iou, [0.5, 1])
    assert scores.pixel_accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("ignore", [-100, 1000, 3, None])
def test_any_value_may_be_the_ignored_one(ignore: int | None) -> None:
    prediction, truth = random_pair(1, 5)
    truth = truth.astype(np.int64)
    if ignore is None:
        truth[truth == 255] = 0
    else:
        truth[truth == 255] = ignore
    matrix = ConfusionMatrix(5, ignore)
    matrix.update(prediction, truth)
    kept = truth != ignore if ignore is not None else truth >= 0
    assert matrix.counts.sum() == kept.sum()
    wanted = ConfusionMatrix(5, None)
    wanted.update(prediction[kept], truth[kept])
    assert (matrix.counts == wanted.counts).all()


def test_more_classes_than_a_byte_holds() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 300, (2, 50, 60))
    truth[:5] = 1000
    matrix = ConfusionMatrix(300, 1000, no_class=-1)
    matrix.update(np.where(prediction == 7, -1, prediction), truth)
    wanted = np.zeros((300, 300), int)
    missed = np.zeros(300, int)
    for p, t in zip(prediction[5:].flat, truth[5:].flat, strict=True):
        if p == 7:
            missed[t] += 1
        else:
            wanted[t, p] += 1
    assert (matrix.counts == wanted).all()
    assert (matrix.missed == missed).all()


WRONG = {
    "sizes": (np.zeros((2, 3), int), np.zeros((3, 2), int), "2 x 3, the truth 3 x 2"),
    "probabilities": (np.zeros((2, 2)), np.zeros((2, 2), int), "prediction holds float64"),
    "float labels": (np.zeros((2, 2), int), np.zeros((2, 2), "f4"), "truth holds float32"),
    "a prediction too large": (np.array([5]), np.array([1]), "prediction holds 5, .* 0 to 4"),
    "255 predicted": (np.array([255]), np.array([1]), "prediction holds 255"),
    "a negative prediction": (np.array([-1]), np.array([1]), "prediction holds -1"),
    "a huge prediction": (np.array([10**9]), np.array([1]), "prediction holds 1000000000"),
    "a label too large": (np.array([1]), np.array([5]), "truth holds 5, .* 255 is ignored"),
    "a negative label": (np.array([1]), np.array([-1]), "truth holds -1"),
}


@pytest.mark.parametrize("case", WRONG, ids=list(WRONG))
def test_what_cannot_be_counted_is_refused_and_nothing_of_it_counted(case: str) -> None:
    prediction, truth, message = WRONG[case]
    matrix = counted((np.array([[1, 2]]), np.array([[1, 1]])))
    before = matrix.to_dict()
    with pytest.raises(EvaluationError, match=message):
        matrix.update(prediction, truth)
    assert matrix.to_dict() == before


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "0 classes"),
        ((10**7,), {}, "has 1 to"),
        ((3,), {"labels": ["a"]}, "1 labels for 3"),
        ((3,), {"no_class": 2}, "no_class = 2"),
    ],
)
def test_impossible_matrices(arguments: tuple[int], options: dict, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        ConfusionMatrix(*arguments, **options)


def test_matrices_of_other_classes_cannot_be_added() -> None:
    with pytest.raises(EvaluationError, match="different classes"):
        ConfusionMatrix(2, labels=["a", "b"]) + ConfusionMatrix(2, labels=["a", "c"])


@pytest.mark.parametrize(
    "change",
    [{"counts": [[1]]}, {"counts": [[-1] * 5] * 5}, {"missed": "x"}, {"num_classes": "many"}],
)
def test_damaged_states_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(EvaluationError, match=r"evaluate again|classes"):
        ConfusionMatrix.from_dict({**ConfusionMatrix(5).to_dict(), **change})
    with pytest.raises(EvaluationError, match="damaged"):
        ConfusionMatrix.from_dict({})


images = st.lists(st.integers(0, 2**31), min_size=1, max_size=6)


@given(images, st.randoms(use_true_random=False), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_shards_add_up_in_any_order(seeds: list[int], random: object, shards: int) -> None:
    pairs = [random_pair(seed, 5, (4, 5)) for seed in seeds]
    whole = counted(*pairs)
    random.shuffle(pairs)  # type: ignore[attr-defined]
    total = ConfusionMatrix(5)
    for shard in range(shards):
        part = counted(*pairs[shard::shards])
        total = total + ConfusionMatrix.from_dict(json.loads(json.dumps(part.to_dict())))
    assert total == whole
    assert repr(total.scores().fields()) == repr(whole.scores().fields())


@given(st.integers(0, 2**31), st.permutations(range(5)))
@settings(max_examples=25, deadline=None)
def test_other_numbers_for_the_classes_change_their_order_alone(
    seed: int, order: list[int]
) -> None:
    prediction, truth = random_pair(seed, 5, (6, 7))
    table = np.full(256, 255, np.uint8)
    table[:5] = order
    before = counted((prediction, truth)).scores()
    after = counted((table[prediction], table[truth])).scores()
    np.testing.assert_allclose(after.iou[order], before.iou)
    for name in ("miou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-12), name


def test_tensors_and_slices_of_arrays_count_like_arrays() -> None:
    import torch

    prediction, truth = random_pair(3, 5, (8, 9))
    wanted = counted((prediction, truth))
    as_tensors = counted((torch.from_numpy(prediction), torch.from_numpy(truth)))  # type: ignore[arg-type]
    assert as_tensors == wanted
    wide_p, wide_t = (np.repeat(a, 2, axis=1).T.astype(np.int64) for a in (prediction, truth))
    assert counted((wide_p[::2], wide_t[::2])) == wanted
