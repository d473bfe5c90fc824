"""More classes than a byte holds: ImageNet's thousand, whose names repeat, and 16-bit labels."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from PIL import Image

import lwmm_hub as lw
from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.classification import ClassificationCounts
from lwmm_hub.evaluation.comparing import evaluate_models
from lwmm_hub.evaluation.inference import InferenceOptions, Predictor
from lwmm_hub.evaluation.label_maps import map_labels, match_labels
from lwmm_hub.evaluation.label_spaces import custom_space
from lwmm_hub.evaluation.layouts.segments import in_space
from lwmm_hub.evaluation.opening import open_data
from lwmm_hub.evaluation.panoptic import Category
from lwmm_hub.evaluation.running import RunOptions

# As ImageNet-1k has them: the first names of these are not theirs alone, and "crane" is two.
REPEATED = {
    134: "crane",
    264: "Cardigan, Cardigan Welsh corgi",
    435: "bathtub, bathing tub, bath, tub",
    474: "cardigan",
    517: "crane",
    638: "maillot",
    639: "maillot, tank suit",
    876: "tub, vat",
}
THOUSAND = tuple(REPEATED.get(i, f"thing {i}, Res {i}") for i in range(1000))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LWMM_HUB_CACHE", str(tmp_path / "cache"))


def image(seed: int, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    shown = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(shown)


def test_imagenets_names_are_a_label_space_and_none_is_taken_for_another() -> None:
    space = custom_space(THOUSAND)
    assert len(set(space.labels)) == len(space) == 1000
    assert (space.labels[134], space.labels[517]) == ("crane (134)", "crane (517)")
    assert space.ignored == 65535
    assert len({tuple(color) for color in space.colors.tolist()}) == 1000
    assert match_labels(THOUSAND, space).of_labels.tolist() == list(range(1000))
    turned = THOUSAND[500:] + THOUSAND[:500]
    with pytest.raises(EvaluationError, match="are not the data set's 1000 labels"):
        match_labels(turned, space)  # which crane is which, nobody knows
    few = custom_space(["maillot, tank suit", "cardigan", "tub", "thing 7", "Cardigan Welsh corgi"])
    found = match_labels(THOUSAND, few, allow_partial=True)
    assert [THOUSAND.index("cardigan"), 639] == [
        int(np.flatnonzero(found.of_labels == i)[0]) for i in (1, 0)
    ]
    assert int(found.table[7]) == 3
    assert [int((found.of_labels == i).sum()) for i in range(5)] == [1, 1, 0, 1, 0]
    # "tub" may be either: ADE20K calls a bathtub so, too
    assert found.never == ("tub", "Cardigan Welsh corgi")
    assert int(found.table[876]) == few.ignored == 255
    told = map_labels(space, custom_space(["bird"]), {"crane (134)": "bird"})
    assert np.flatnonzero(told.of_labels != 255).tolist() == [134]


def test_a_panoptic_json_with_names_that_repeat_keeps_its_categories_apart() -> None:
    categories = [Category(10 + i, name, i == 1) for i, name in enumerate(["door, a", "door, b"])]
    space, table = in_space(categories, None, "doors")
    assert (space.labels, table, space.things) == (("door, a", "door, b"), {10: 0, 11: 1}, {1})
    other = custom_space(["door, b", "wall", "door, a"])
    assert in_space(categories, other, "doors")[1] == {10: 2, 11: 0}


@pytest.mark.parametrize("with_unknown", [False, True])
def test_counts_of_a_thousand_classes_are_two_numbers_each(with_unknown: bool) -> None:
    draw = np.random.default_rng(0)
    true = draw.integers(0, 1000 + with_unknown, 5000)
    found = np.where(draw.random(5000) < 0.6, true, draw.integers(-1, 1000, 5000))
    counts = ClassificationCounts(1000, with_unknown=with_unknown)
    for part in (slice(0, 1700), slice(1700, 5000)):
        counts.update(found[part], true[part])
    scores = counts.scores()
    assert scores.accuracy == (found == true).mean()
    rates = [(found[true == k] == k).mean() for k in range(1000) if (true == k).any()]
    assert len(json.dumps(counts.to_dict())) < 20_000
    if with_unknown:
        unknown = (found[true == 1000] == 1000).mean()
        known = np.mean(rates)
        assert scores.h_score == pytest.approx(2 * known * unknown / (known + unknown))
    else:
        assert scores.mean_accuracy == pytest.approx(np.mean(rates))


def pictures(labels: Sequence[int]) -> Any:
    """A table of classified images, with ImageNet's names."""

    def png(i: int) -> dict[str, Any]:
        data = io.BytesIO()
        Image.fromarray(image(i)).save(data, "PNG")
        return {"bytes": data.getvalue(), "path": None}

    names = [f"{name}2" if i == 517 else name for i, name in enumerate(THOUSAND)]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    rows = {"image": [png(i) for i in range(len(labels))], "label": list(labels)}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def test_a_classifier_of_a_thousand_classes_is_scored(tmp_path: Path) -> None:
    folder = zoo.write(tmp_path / "classifier", partial(zoo.vit, THOUSAND))
    predictor = Predictor.load(folder, InferenceOptions(device="cpu"))
    seen = predictor.classify([image(i) for i in range(9)]).argmax(1).tolist()
    assert max(seen) > 255
    truth = [k if i % 3 else (k + 1) % 1000 for i, k in enumerate(seen)]
    table = pictures(truth)
    with pytest.raises(EvaluationError, match=r"not the data set's 1000 labels .* --map-labels"):
        lw.evaluate(folder, table, device="cpu")  # "crane2" is a name of nothing
    (tmp_path / "names.json").write_text(json.dumps(THOUSAND))
    named = {"label_space": str(tmp_path / "names.json")}
    scores = lw.evaluate(folder, table, device="cpu", **named)
    assert (scores.accuracy, scores.images) == (6 / 9, 9)
    assert len(scores.class_accuracy) == 1000
    report = evaluate_models([str(folder)], open_data(table, **named)).report
    assert "accuracy thing 7" not in str(report)
    assert "note: the scores of 1000 classes are in --json" in str(report)
    assert len(report.rows()) > 1000
    assert len(report.to_dict()["models"][0]["class_accuracy"]) == 1000
    few = [k for k in seen if k in truth][:1]
    small = tmp_path / "few" / THOUSAND[few[0]].partition(",")[0]
    other = tmp_path / "few" / "thing 3"
    for place, i in ((small, seen.index(few[0])), (other, 0)):
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(i)).save(place / "1.png")
    partly = lw.evaluate(folder, tmp_path / "few", map_labels=True, device="cpu")
    assert partly.accuracy == (1 + (seen[0] == 3)) / 2


COUNT = 300


@pytest.fixture(scope="module")
def names() -> list[str]:
    return [f"part {i}" for i in range(COUNT)]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> Path:
    """Images beside label maps of 16 bits: a PNG and TIFFs; 65535 is not labelled, 255 a class."""
    root = tmp_path_factory.mktemp("data") / "rooms"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for i in range(3):
        Image.fromarray(image(i)).save(root / "images" / f"{i}.png")
        ending = ".tif" if i else ".png"
        Image.fromarray(labels(i)).save(root / "labels" / f"{i}{ending}")
    (root / "id2label.json").write_text(json.dumps(names))
    return root


def labels(seed: int) -> NDArray[np.uint16]:
    chosen = np.random.default_rng(seed).choice([0, 7, 254, 255, 256, 299, 65535], (5, 7))
    return chosen.astype(np.uint16).repeat(8, 0).repeat(8, 1)


def test_label_maps_of_16_bits_are_scored(tmp_path: Path, rooms: Path, names: list[str]) -> None:
    folders = [
        zoo.write(tmp_path / n, partial(zoo.segformer, names), i) for i, n in enumerate("ab")
    ]
    data = open_data(rooms)
    assert (data.space.ignored, len(data.space)) == (65535, COUNT)
    read = [sample.semantic for sample in data.samples(0, 1)]
    assert all((a == labels(i)).all() for i, a in enumerate(read))
    predictor = Predictor.load(folders[0], InferenceOptions(device="cpu"))
    found = np.concatenate([predictor.segment([image(i)])[0].labels() for i in range(3)])
    true = np.concatenate([labels(i) for i in range(3)])
    counted = true != 65535
    scores = lw.evaluate(folders[0], rooms, device="cpu")
    for k in (0, 7, 255, 299, int(found.max())):
        both = ((found == k) | (true == k)) & counted
        wanted = ((found == k) & (true == k) & counted).sum() / both.sum()
        assert scores.iou[f"part {k}"] == pytest.approx(wanted)
    assert scores.pixel_accuracy == (found == true)[counted].mean()
    perfect = lw.evaluate(None, rooms, predict=_Truth(labels(i) for i in range(3)))
    assert perfect.miou == 1
    texts = [str(folder) for folder in folders]
    done = evaluate_models(texts, data, ensemble=texts, overlay=1, run=RunOptions(states=""))
    assert done.overlay is not None
    assert done.report.scores[0].iou == pytest.approx(scores.iou, nan_ok=True)
    with pytest.raises(EvaluationError, match="holds the ids 300, which custom-300 does not have"):
        data.space.indices(np.array([300], np.uint16))


class _Truth:
    """Knows the labels of the images that come, and says 0 where nothing is labelled."""

    def __init__(self, maps: Any) -> None:
        self._maps = iter(maps)

    def __call__(self, _module: Any, _image: Any) -> Any:
        found = next(self._maps).astype(np.int64)
        return np.where(found == 65535, 0, found)


@pytest.mark.parametrize("number", [-1, 2**31])
def test_ids_that_no_label_file_holds_are_refused(number: int) -> None:
    space = replace(custom_space(["road", "sky"]), ids=(0, number))
    with pytest.raises(EvaluationError, match=f"custom-2 has the id {number}: label files hold"):
        space.indices(np.array([0]))


def test_narrow_models_are_told_in_wide_labels_and_the_other_way_round(names: list[str]) -> None:
    wide, narrow = custom_space(names), custom_space(["part 299", "part 2"])
    up = map_labels(narrow, wide)
    assert up(np.array([[0, 1, 255]], np.uint8)).tolist() == [[299, 2, 65535]]
    down = map_labels(wide, narrow)
    assert down(np.array([[299, 255, 2, 65535]], np.uint16)).tolist() == [[0, 255, 1, 255]]
    with pytest.raises(EvaluationError, match="labels 0 to 300 where custom-300"):
        down(np.array([[0, 300]], np.uint16))
    with pytest.raises(EvaluationError, match="65536 labels; a label space has 1 to 65535"):
        custom_space([str(i) for i in range(65536)])
