"""Evaluation from end to end: tiny models, real files, scores that are known by other means."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from numpy.typing import NDArray
from PIL import Image

import lwmm_hub as lw
from lwmm_hub.errors import EvaluationError, LwmmError, UsageError
from lwmm_hub.evaluation.classification import call_unknown
from lwmm_hub.evaluation.comparing import evaluate_models
from lwmm_hub.evaluation.confusion import ConfusionMatrix
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.inference import InferenceOptions, Predictor
from lwmm_hub.evaluation.label_maps import LabelOptions, map_labels
from lwmm_hub.evaluation.label_spaces import custom_space
from lwmm_hub.evaluation.opening import open_data
from lwmm_hub.evaluation.panoptic import PanopticCounts
from lwmm_hub.evaluation.running import RunOptions, evaluate_subjects
from lwmm_hub.evaluation.subjects import (
    Ensemble,
    HubModel,
    OwnModule,
    mapped_panoptic,
)
from lwmm_hub.evaluation.values import Panoptic, Prediction, Segment

COUNT = 7


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LWMM_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "evaluations"


def image(seed: int, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    """Smooth, so that a network sees something."""
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    shown = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(shown)


def truth(seed: int, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed + 99).choice([0, 1, 2, 255], (5, 7)).astype(np.uint8)
    return coarse.repeat(height // 5, 0).repeat(width // 7, 1)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "streets"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for i in range(COUNT):
        Image.fromarray(image(i)).save(root / "images" / f"{i}.png")
        Image.fromarray(truth(i)).save(root / "labels" / f"{i}.png")
    (root / "id2label.json").write_text(json.dumps(dict(enumerate(zoo.LABELS))))
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Callable[[], tuple[Any, Any]]] = {
        "one": zoo.segformer,
        "two": zoo.segformer,
        "masks": zoo.mask2former,
        "classes": zoo.vit,
        "boxes": zoo.detr_boxes,
        "office": partial(zoo.vit, open_names()),
    }
    return {name: zoo.write(root / name, make, i) for i, (name, make) in enumerate(made.items())}


def open_names() -> tuple[str, ...]:
    from lwmm_hub.evaluation.office import open_partial

    return open_partial("office-31").known


def subject(folder: Path, data: DataSet, **options: Any) -> HubModel:
    return HubModel(str(folder), data.space, None, InferenceOptions(device="cpu", **options))


def plain(scores: lw.Scores) -> dict[str, Any]:
    """Scores without what differs from run to run."""
    return replace(scores, images_per_second=None, peak_memory_mb=None).to_dict()


def run(subjects: Any, data: DataSet, **options: Any) -> lw.Scores:
    return evaluate_subjects([subjects], data, RunOptions(**options))[0]


# ---------------------------------------------------------------------------------------- semantic


def ious_by_hand(maps: Sequence[NDArray[Any]]) -> dict[str, float]:
    found = np.concatenate([m.ravel() for m in maps])
    true = np.concatenate([truth(i).ravel() for i in range(len(maps))])
    found, true = found[true != 255], true[true != 255]
    return {
        name: ((found == k) & (true == k)).sum() / ((found == k) | (true == k)).sum()
        for k, name in enumerate(zoo.LABELS)
    }


def test_scores_are_those_of_a_plain_loop(models: dict[str, Path], streets: Path) -> None:
    predictor = Predictor.load(models["one"], InferenceOptions(device="cpu"))
    maps = [predictor.segment([image(i)])[0].labels() for i in range(COUNT)]
    expected = ious_by_hand(maps)
    scores = lw.evaluate(models["one"], streets, device="cpu")
    assert scores.iou == pytest.approx(expected, abs=1e-12)
    assert scores.miou == pytest.approx(np.mean(list(expected.values())))
    assert 0 < scores.miou < 1
    assert (scores.images, scores.task, scores.commit) == (COUNT, "semantic", None)
    assert scores.reference == str(models["one"])  # as it was given
    assert scores.images_per_second > 0  # type: ignore[operator]
    assert scores.peak_memory_mb > 50  # type: ignore[operator]


def test_models_are_compared_side_by_side_in_a_notebook(
    models: dict[str, Path], streets: Path
) -> None:
    one, two = models["one"], models["two"]
    found = lw.compare([one, two], streets, ensemble=[one, two], device="cpu", overlay=2)
    alone = [lw.evaluate(model, streets, device="cpu") for model in (one, two)]
    assert [plain(scores) for scores in found.report.scores[:2]] == [plain(s) for s in alone]
    assert found.report.names == ("one", "two", "ensemble")
    assert found.overlay is not None
    assert repr(found) == (
        "<Evaluation of one, two, ensemble on streets, 7 images, labels custom-3>"
    )
    page = found._repr_html_()
    assert "streets, 7 images" in page
    assert page.count("<tr>") == 1 + len(str(found).split("\n\n")[1].splitlines()[1:])
    data = re.findall(r"src='data:image/png;base64,([^']+)'", page)
    shown = Image.open(io.BytesIO(base64.b64decode(data[0])))
    assert shown.tobytes() == found.overlay.tobytes()
    miou = alone[0].miou
    assert f"{100 * miou:.1f}" in str(alone[0]).splitlines()[1]
    assert f"<td style='text-align:right'>{100 * miou:.1f}</td>" in alone[0]._repr_html_()
    assert repr(alone[0]).startswith(f"<Scores of {one} on 7 images: mIoU {miou:.2%}, ")
    assert found.report.scores[0].iou == lw.evaluate(one, streets, label_space=zoo.LABELS).iou
    with pytest.raises(lw.LwmmError, match="models are a list"):
        lw.compare(str(one), streets)
    with pytest.raises(lw.LwmmError, match="leave split and reading options out"):
        lw.compare([one], open_data(streets), split="val")


def test_batches_shards_and_parts_give_the_same_scores(
    models: dict[str, Path], streets: Path, tmp_path: Path
) -> None:
    data = open_data(streets)
    whole = plain(run(subject(models["one"], data), data, states=""))
    for size in (2, 7, 50):
        batched = subject(models["one"], data, batch_size=size)
        assert plain(run(batched, data, batch_size=size, states="")) == whole
    model = subject(models["one"], data)
    assert plain(run(model, data, shards=3, states="")) == whole
    parts = [run(model, data, shards=3, shard=i, states=tmp_path).images for i in range(3)]
    assert parts == [3, 2, 2]
    model.predict = lambda *_: pytest.fail("nothing is left to do")  # type: ignore[method-assign]
    assert plain(run(model, data, shards=3, states=tmp_path)) == whole


def test_a_limit_takes_the_first_images_however_they_are_split(
    models: dict[str, Path], streets: Path
) -> None:
    data = open_data(streets)
    model = subject(models["one"], data)
    few = run(model, data, limit=4, states="")
    assert few.images == 4
    assert plain(run(model, data, limit=4, shards=2, states="")) == plain(few)
    maps = [model.predict([image(i)], "semantic")[0].semantic for i in range(4)]
    assert few.iou == pytest.approx(ious_by_hand(maps))  # type: ignore[arg-type]
    assert run(model, data, limit=99, states="").images == COUNT


class Watched:
    """A model that counts its images, and breaks off where it is told to."""

    def __init__(self, model: HubModel, stop_at: int | None = None, how: Any = None) -> None:
        self.name, self.reference, self.commit = model.name, model.reference, model.commit
        self.identity, self.notes = model.identity, model.notes
        self.seen = 0
        self._model, self._stop, self._how = model, stop_at, how

    def predict(self, images: Sequence[NDArray[np.uint8]], task: str) -> list[Prediction]:
        if self._stop is not None and self.seen + len(images) > self._stop:
            self._how()
        self.seen += len(images)
        return self._model.predict(images, task)


def out_of_memory() -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def test_an_interrupted_run_goes_on_where_it_stopped(
    models: dict[str, Path], streets: Path
) -> None:
    data = open_data(streets)
    model = subject(models["one"], data)
    whole = plain(run(model, data, states=""))
    broken = Watched(model, 3, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(broken, data)
    rest = Watched(model)
    assert plain(run(rest, data)) == whole
    assert (broken.seen, rest.seen) == (3, 4)
    again = Watched(model)
    assert plain(run(again, data)) == whole
    assert again.seen == 0  # it is known
    fresh = Watched(model)
    assert plain(run(fresh, data, fresh=True)) == whole
    assert fresh.seen == COUNT


def test_when_memory_runs_out_a_smaller_batch_goes_on(
    models: dict[str, Path], streets: Path
) -> None:
    data = open_data(streets)
    large = subject(models["one"], data, batch_size=3)
    whole = plain(run(large, data, batch_size=3, states=""))
    broken = Watched(large, 4, out_of_memory)
    with pytest.raises(EvaluationError, match=r"^memory ran out.*--batch-size.*--window"):
        run(broken, data, batch_size=3)
    rest = Watched(subject(models["one"], data, batch_size=1))
    assert plain(run(rest, data, batch_size=1)) == whole
    assert (broken.seen, rest.seen) == (3, 4)


def test_states_are_of_one_model_one_data_set_and_one_setting(
    models: dict[str, Path], streets: Path, tmp_path: Path, own_cache: Path
) -> None:
    data = open_data(streets)

    def seen(model: HubModel, about: DataSet = data, **options: Any) -> int:
        watched = Watched(model)
        run(watched, about, **options)
        return watched.seen

    assert seen(subject(models["one"], data)) == COUNT
    assert seen(subject(models["one"], data)) == 0
    assert seen(subject(models["one"], data, batch_size=2), batch_size=2) == 0
    assert seen(subject(models["two"], data)) == COUNT
    assert seen(subject(models["one"], data, flip=True)) == COUNT
    assert seen(subject(models["one"], data), limit=2) == 2
    assert seen(subject(models["one"], data), replace(data, revision="other")) == COUNT
    assert seen(subject(models["one"], data), replace(data, revision=None)) == COUNT
    assert seen(subject(models["one"], data), replace(data, revision=None)) == COUNT
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in models["one"].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert seen(subject(copy, data)) == 0  # the same model, wherever it lies
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.1, 0.2, 0.3]
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    assert seen(subject(copy, data)) == COUNT
    names = {path.name for path in own_cache.iterdir()}
    assert all(name.endswith(".json") for name in names)
    assert str(tmp_path) not in "".join(path.read_text() for path in own_cache.iterdir())


def test_states_are_of_one_version_of_transformers(
    models: dict[str, Path], streets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept scores outlived an update of what prepares the images."""
    data = open_data(streets)
    run(subject(models["one"], data), data)
    monkeypatch.setattr("lwmm_hub.evaluation.subjects.version", lambda _: "99.0")
    watched = Watched(subject(models["one"], data))
    run(watched, data)
    assert watched.seen == COUNT


def test_options_that_a_folder_has_no_use_for_are_refused(streets: Path) -> None:
    """They were ignored: a revision of a folder, a column of files."""
    for name, value in (
        ("revision", "main"),
        ("streaming", True),
        ("image_column", "image"),
        ("label_column", "label"),
    ):
        option = f"--{name.replace('_', '-')}"
        with pytest.raises(LwmmError, match=rf"^{option} is for .*\(In Python: {name}\.\)"):
            open_data(streets, **{name: value})  # type: ignore[arg-type]


def test_states_are_of_one_way_to_read_the_data(models: dict[str, Path], streets: Path) -> None:
    """Other columns of the same table, or another layout of the same files, are other truth."""
    import datasets

    rows = {
        "image": [Image.fromarray(image(i)) for i in range(2)],
        "label_a": [Image.fromarray(truth(i)) for i in range(2)],
        "label_b": [Image.fromarray(np.roll(truth(i), 20)) for i in range(2)],
    }
    table = datasets.Dataset.from_dict(rows)
    found = {}
    for column in ("label_a", "label_b"):
        data = open_data(table, label_column=column, label_space=str(streets / "id2label.json"))
        model = subject(models["one"], data)
        found[column] = plain(run(model, data))
        assert found[column] == plain(run(model, data, fresh=True))
        assert data.columns == ("semantic", "image", column)
    assert found["label_a"] != found["label_b"]
    data = open_data(streets)
    model = subject(models["one"], data)
    run(model, data)
    for other in (
        replace(data, columns=("semantic", "pairs", "another")),
        replace(data, space=replace(data.space, void=(2,))),
    ):
        watched = Watched(model)
        run(watched, other)
        assert watched.seen == COUNT


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"images": 2}',
        b"\xff\xfe",
        b'{"counts": {"semantic": {}}, "images": 3, "seconds": 1.0, "finished": true}',
    ],
)
def test_a_damaged_state_begins_again(
    models: dict[str, Path], streets: Path, own_cache: Path, content: bytes
) -> None:
    data = open_data(streets)
    model = subject(models["one"], data)
    whole = plain(run(model, data))
    (state,) = own_cache.iterdir()
    state.write_bytes(content)
    watched = Watched(model)
    assert plain(run(watched, data)) == whole
    assert watched.seen == COUNT


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder", "long"])
def test_a_state_that_is_no_text_begins_again(
    models: dict[str, Path],
    streets: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """A pipe was waited for for ever, a device was read until memory ended."""
    data = open_data(streets)
    model = subject(models["one"], data)
    whole = plain(run(model, data))
    (state,) = own_cache.iterdir()
    if kind == "long":
        monkeypatch.setattr("lwmm_hub.evaluation.states.MAX_STATE", state.stat().st_size - 1)
    else:
        state.unlink()
        if kind == "pipe":
            os.mkfifo(state)
        elif kind == "folder":
            state.mkdir()
        else:
            state.symlink_to(kind)
    watched = Watched(model)
    assert plain(run(watched, data)) == whole
    assert watched.seen == COUNT


def test_a_disk_that_keeps_no_states_costs_nothing_else(
    models: dict[str, Path], streets: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    data = open_data(streets)
    assert run(subject(models["one"], data), data, states=tmp_path / "file").images == COUNT


# -------------------------------------------------------------------------- ensembles, own modules


def test_an_ensemble_is_the_mean_of_probabilities_of_classes_that_are_called_the_same(
    models: dict[str, Path], streets: Path, tmp_path: Path
) -> None:
    """The second model has its classes in another order, as `two` turned round."""
    turned = tmp_path / "turned"
    network, processor = zoo.segformer()
    network.load_state_dict(Predictor.load(models["two"]).network.state_dict())
    order = [2, 0, 1]
    head = network.decode_head.classifier
    head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
    names = [zoo.LABELS[i] for i in order]
    network.config.id2label = dict(enumerate(names))
    network.config.label2id = {name: i for i, name in enumerate(names)}
    network.save_pretrained(turned)
    processor.save_pretrained(turned)

    data = open_data(streets)
    joined = Ensemble([subject(models["one"], data), subject(turned, data)])
    predictors = [Predictor.load(models[name]) for name in ("one", "two")]
    for i in range(2):
        probabilities = [
            torch.cat([strip for _, strip in p.segment([image(i)])[0].strips()], 1).numpy()
            for p in predictors
        ]
        expected = np.mean(probabilities, axis=0).argmax(0)
        found = joined.predict([image(i)], "semantic")[0].semantic
        assert (found == expected).mean() > 0.999
        alone = [p.argmax(0) for p in probabilities]
        assert all((found != one).any() for one in alone)
    report = evaluate_models([], data, ensemble=[str(models["one"]), str(turned)]).report
    assert report.names == ("ensemble",)
    assert report.notes == ("ensemble averages the probabilities of one, turned.",)
    with pytest.raises(EvaluationError, match="at least two models"):
        Ensemble([subject(models["one"], data)])
    with pytest.raises(EvaluationError, match=r"cannot be evaluated on panoptic"):
        joined.predict([image(0)], "panoptic")


def test_an_ensemble_skips_what_one_model_has_no_name_for() -> None:
    space = custom_space(["road", "car", "sky"])

    def constant(scores: list[float]) -> Callable[[Any, Any], torch.Tensor]:
        return lambda _, shown: torch.tensor(scores)[:, None, None].expand(-1, 2, 3)

    partial_names = LabelOptions(partial=True)
    one = OwnModule(None, constant([0.0, 9.0, 1.0]), space)
    two = OwnModule(None, constant([2.0, 1.0]), space, ["sky", "road"], partial_names)
    joined = Ensemble([one, two])
    assert joined.left_out == ("car",)
    (found,) = joined.predict([image(0)], "semantic")
    # road: e^0 / (e^0 + e^9 + e^1) + e^1 / (e^1 + e^2); sky: e^1 / ... + e^2 / (e^1 + e^2)
    assert (found.semantic == 2).all()
    assert joined.identity == ""
    assert any("has no class for car: 0 where there are any" in note for note in joined.notes)


def test_a_module_of_ones_own_is_evaluated_with_predict(streets: Path) -> None:
    def brightness(_: Any, shown: NDArray[np.uint8]) -> torch.Tensor:
        bright = torch.from_numpy(shown).float().mean(-1)  # torch warns of what it may not write
        return torch.stack([bright, 255 - bright, torch.full_like(bright, 100.0)])

    network = torch.nn.Identity()
    scores = lw.evaluate(network, streets, predict=brightness)
    maps = [brightness(network, image(i).copy()).argmax(0).numpy() for i in range(COUNT)]
    assert scores.iou == pytest.approx(ious_by_hand(maps))
    as_labels = lw.evaluate(network, streets, predict=lambda m, x: brightness(m, x).argmax(0))
    assert as_labels.iou == scores.iou
    assert scores.reference == "Identity"
    order = ["sky", "road", "car"]
    turned = lw.evaluate(
        network, streets, predict=lambda m, x: brightness(m, x)[[2, 0, 1]], labels=order
    )
    assert turned.iou == scores.iou


def test_predict_may_give_a_mask_of_bools(streets: Path) -> None:
    space = custom_space(["road", "car"])
    own = OwnModule(None, lambda _, shown: shown[..., 0] > 127, space)
    (found,) = own.predict([image(0)], "semantic")
    assert (found.semantic == (image(0)[..., 0] > 127)).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((4, 5, 5), np.float32), r"scores of 4 classes and has names for 3"),
        (np.zeros((1, 3, 5, 5), np.float32), r"without a batch axis"),
        (np.zeros((40, 56), np.float32), r"integer labels of \(height, width\)"),
        (np.full((40, 56), 3), r"labels 3 to 3 where .* has 0 to 2"),
        (np.zeros((20, 28), np.int64), r"the prediction is 20 x 28, the truth 40 x 56"),
        ("road", r"predict gave a str for Conv2d: return float scores of \(classes, h, w\)"),
        (None, r"predict gave a NoneType for Conv2d: return float scores"),
        ([[0, 1], [2]], r"predict gave a list for Conv2d: return float scores"),
        ({"out": torch.zeros(3, 5, 5)}, r"predict gave a dict for Conv2d"),
    ],
)
def test_what_predict_may_not_give(streets: Path, given: Any, said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        lw.evaluate(torch.nn.Conv2d(3, 3, 1), streets, predict=lambda *_: given)


def test_what_evaluate_cannot_be_called_with(
    streets: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"or with predict="):
        lw.evaluate(torch.nn.Identity(), streets)
    with pytest.raises(UsageError, match="open already"):
        lw.evaluate(models["one"], open_data(streets), split="val")
    with pytest.raises(UsageError, match="task 'poetry' is unknown"):
        lw.evaluate(models["one"], streets, task="poetry")
    with pytest.raises(EvaluationError, match="limit is 0"):
        lw.evaluate(models["one"], streets, limit=0)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((models["one"] / "model.safetensors").read_bytes())
    with pytest.raises(EvaluationError, match=r"without a config\.json"):
        lw.evaluate(alone, streets)


# ---------------------------------------------------------------------------------------- panoptic


def coco_like(root: Path) -> Path:
    """COCO's layout with the classes of the zoo: a road below, cars on it, sky above."""
    images, annotations = [], []
    for number in range(3):
        name = f"{number:012}"
        for folder in ("val2017", "annotations/panoptic_val2017"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(number)).save(root / "val2017" / f"{name}.jpg", quality=95)
        ids = np.full((40, 56), 300)
        ids[:15] = 2
        ids[20:30, 5:15], ids[25:35, 30:44] = 70000, 5
        channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Image.fromarray(channels).save(root / "annotations/panoptic_val2017" / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.jpg"})
        segments = [(300, 10), (2, 30), (70000, 20), (5, 20)]
        annotations.append(
            {
                "image_id": number,
                "file_name": f"{name}.png",
                "segments_info": [{"id": i, "category_id": c, "iscrowd": 0} for i, c in segments],
            }
        )
    categories = [
        {"id": number, "name": name, "isthing": int(name == "car")}
        for number, name in zip((10, 20, 30), zoo.LABELS, strict=True)
    ]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(document))
    return root


@pytest.fixture
def sure(models: dict[str, Path], tmp_path: Path) -> Path:
    """The Mask2Former of the zoo, whose queries are sure of what they see."""
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    network = Mask2FormerForUniversalSegmentation.from_pretrained(models["masks"])
    network.class_predictor.weight.data *= 60
    network.save_pretrained(tmp_path / "sure")
    processor = AutoImageProcessor.from_pretrained(models["masks"], backend="pil")
    processor.save_pretrained(tmp_path / "sure")
    return tmp_path / "sure"


def test_panoptic_scores_of_a_mask2former_on_cocos_layout(sure: Path, tmp_path: Path) -> None:
    root = coco_like(tmp_path / "coco")
    data = open_data(root)
    scores = lw.evaluate(sure, root, device="cpu")
    predictor = Predictor.load(sure, InferenceOptions(device="cpu"))
    counts, categories = PanopticCounts.of(data.space), set()
    matrix = ConfusionMatrix(3, labels=zoo.LABELS)
    for sample in data.samples(0, 1):
        (output,) = predictor.segment([sample.image], "panoptic")
        found = output.panoptic({1})  # type: ignore[union-attr]
        categories |= {s.category for s in found.segments}
        assert sample.panoptic is not None
        matrix.update(output.labels(), sample.semantic)  # type: ignore[arg-type]
        counts.update_panoptic(found, sample.panoptic)
    expected = counts.scores().fields()
    assert (scores.task, scores.images) == ("panoptic", 3)
    assert scores.pq == pytest.approx(expected["pq"])
    assert scores.pq_per_class == pytest.approx(expected["pq_per_class"])
    assert len(categories) > 1
    assert scores.iou == matrix.scores().fields()["iou"]  # scored as label maps, too
    semantic = lw.evaluate(sure, root, task="semantic", device="cpu")
    assert semantic.pq is None
    assert semantic.iou == scores.iou


def test_models_of_pixels_tell_no_objects_apart(models: dict[str, Path], tmp_path: Path) -> None:
    root = coco_like(tmp_path / "coco")
    with pytest.raises(EvaluationError, match=r"one tells no objects apart.*--task semantic"):
        lw.evaluate(models["one"], root)
    with pytest.raises(EvaluationError, match=r"without --window and --flip"):
        lw.evaluate(models["masks"], root, flip=True)
    with pytest.raises(EvaluationError, match=r"evaluated on label maps, not on panoptic"):
        lw.evaluate(None, root, predict=lambda *_: None)


def test_classes_that_become_one_stuff_class_become_one_segment() -> None:
    ids = np.array([[1, 2, 3, 4, 0]], np.int32)
    found = Panoptic(ids, tuple(Segment(i + 1, i) for i in range(4)))
    parts, whole = custom_space(["kerb", "lane", "car", "dirt"]), custom_space(["road", "car"])
    table = map_labels(parts, whole, {"kerb": "road", "lane": "road"})
    mapped = mapped_panoptic(found, table, things={1})
    assert mapped.ids.tolist() == [[1, 1, 3, 0, 0]]
    assert [(s.id, s.category) for s in mapped.segments] == [(1, 0), (3, 1)]
    mapped = mapped_panoptic(found, table, things={0, 1})
    assert mapped.ids.tolist() == [[1, 2, 3, 0, 0]]
    assert mapped_panoptic(Panoptic(ids * 0, ()), table, {0}).segments == ()


# ------------------------------------------------------------------- classification and detection


def class_folders(root: Path, names: Sequence[str], each: int = 4) -> Path:
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(image(10 * k + i)).save(root / name / f"{i}.png")
    return root


def test_classification_of_folders(models: dict[str, Path], tmp_path: Path) -> None:
    names = sorted(zoo.LABELS)
    root = class_folders(tmp_path / "objects", names)
    predictor = Predictor.load(models["classes"], InferenceOptions(device="cpu"))
    called = {
        name: [
            zoo.LABELS[int(predictor.classify([image(10 * k + i)])[0].argmax())] for i in range(4)
        ]
        for k, name in enumerate(names)
    }
    assert len({x for found in called.values() for x in found}) > 1
    scores = lw.evaluate(models["classes"], root, device="cpu")
    right = {name: np.mean([x == name for x in found]) for name, found in called.items()}
    assert scores.class_accuracy == pytest.approx(right)
    assert scores.accuracy == scores.mean_accuracy == pytest.approx(np.mean(list(right.values())))
    assert scores.h_score is None
    # the same images without the folder of one class: what is called so is wrong
    rest = class_folders(tmp_path / "rest", names[:2])
    with pytest.raises(EvaluationError, match=r"Pass --map-labels"):
        lw.evaluate(models["classes"], rest, device="cpu")
    partly = lw.evaluate(models["classes"], rest, map_labels=True, device="cpu")
    assert partly.accuracy == pytest.approx(np.mean([right[name] for name in names[:2]]))


def test_the_h_score_of_open_partial_office(models: dict[str, Path], tmp_path: Path) -> None:
    """Every third image lies where the model says, the others anywhere."""
    predictor = Predictor.load(models["office"], InferenceOptions(device="cpu"))
    anywhere = ("back_pack", "mug", "pen", "ruler", "bottle")  # bottle is the source's alone
    right: dict[str, list[bool]] = {}
    for i in range(30):
        called = int(call_unknown(predictor.classify([image(i)]))[0])
        answer = "pen" if called == 20 else predictor.labels[called]
        name = answer if i % 3 == 0 and called in (*range(10), 20) else anywhere[i % 5]
        folder = tmp_path / "office" / "dslr" / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(i)).save(folder / f"{i}.png")
        unknown_folder = name in ("pen", "ruler")
        right.setdefault(name, []).append(called == 20 if unknown_folder else answer == name)
    for domain in ("amazon", "webcam"):
        class_folders(tmp_path / "office" / domain / "images", anywhere[:1], 1)
    right.pop("bottle")
    data = open_data(tmp_path / "office", split="dslr", open_partial=True)
    scores = lw.evaluate(models["office"], data, device="cpu")
    assert scores.images == sum(map(len, right.values())) < 30
    unknown = np.mean(right.pop("pen") + right.pop("ruler"))
    known = np.mean([np.mean(found) for found in right.values()])
    assert 0 < known < 1
    assert 0 < unknown < 1
    assert scores.known_accuracy == pytest.approx(known)
    assert scores.unknown_accuracy == pytest.approx(unknown)
    assert scores.h_score == pytest.approx(2 * known * unknown / (known + unknown))


def boxes_table() -> Any:
    import datasets

    objects = datasets.List(
        {
            "bbox": datasets.List(datasets.Value("float32"), length=4),
            "category": datasets.ClassLabel(names=list(zoo.LABELS)),
        }
    )
    rows = {
        "image": [Image.fromarray(image(i, 48, 64)) for i in range(3)],
        "objects": [
            [{"bbox": [4.0, 6.0, 20.0, 12.0], "category": 1}],
            [],
            [{"bbox": [0.0, 0.0, 64.0, 48.0], "category": 0}] * 2,
        ],
    }
    return datasets.Dataset.from_dict(
        rows, features=datasets.Features({"image": datasets.Image(), "objects": objects})
    )


def test_detection_of_a_detr(models: dict[str, Path]) -> None:
    data = open_data(boxes_table())
    assert (data.task, data.space.labels) == ("detection", zoo.LABELS)
    samples = list(data.samples(0, 1))
    assert samples[0].boxes is not None
    assert samples[0].boxes.corners.tolist() == [[4, 6, 24, 18]]
    assert [len(s.boxes.corners) for s in samples if s.boxes] == [1, 0, 2]
    scores = lw.evaluate(models["boxes"], data, device="cpu")
    assert (scores.task, scores.images) == ("detection", 3)
    assert 0 <= scores.map <= scores.map50 <= 1  # type: ignore[operator]
    assert set(scores.ap_per_class) == set(zoo.LABELS)
    with pytest.raises(EvaluationError, match=r"finds no boxes"):
        lw.evaluate(models["one"], data)


@pytest.mark.parametrize("options", [{"window": (64, 64)}, {"flip": True}])
def test_options_of_maps_are_not_ignored_where_there_are_none(
    models: dict[str, Path], options: dict[str, Any]
) -> None:
    how = InferenceOptions(**options)
    with pytest.raises(EvaluationError, match=r"boxes are .* Leave --window and --flip out"):
        Predictor.load(models["boxes"], how).detect([image(0, 48, 64)])
    with pytest.raises(EvaluationError, match=r"classes of images are .* Leave --window"):
        Predictor.load(models["classes"], how).classify([image(0, 48, 64)])


def test_without_pycocotools_detection_says_what_to_install(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EvaluationError, match=r"pip install 'lwmm-hub\[detection\]'"):
        lw.evaluate(models["boxes"], open_data(boxes_table()), device="cpu")


# ------------------------------------------------------------------------------ what bad input gets


def test_a_model_without_a_processor_is_named(
    models: dict[str, Path], streets: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((models["one"] / name).read_bytes())
    with pytest.raises(EvaluationError, match=r"bare has no image processor"):
        lw.evaluate(bare, streets)


def test_a_broken_image_is_named_and_what_was_counted_is_kept(
    models: dict[str, Path], streets: Path, tmp_path: Path
) -> None:
    root = tmp_path / "streets"
    for path in streets.rglob("*.*"):
        target = root / path.relative_to(streets)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    size = (root / "labels" / "4.png").stat().st_size
    sound = (root / "labels" / "4.png").read_bytes()
    (root / "labels" / "4.png").write_bytes(b"\0" * size)
    data = open_data(root)
    watched = Watched(subject(models["one"], data))
    with pytest.raises(EvaluationError, match=r"images/4.png: labels/4.png cannot be decoded"):
        run(watched, data)
    assert watched.seen == 4
    (root / "labels" / "4.png").write_bytes(sound)
    rest = Watched(subject(models["one"], data))
    expected = run(subject(models["one"], data), open_data(streets), states="")
    assert plain(run(rest, data)) == plain(expected)
    assert rest.seen == 3


def test_truth_of_another_size_or_kind_is_an_error(
    models: dict[str, Path], streets: Path, tmp_path: Path
) -> None:
    def data_of(label: NDArray[np.uint8]) -> Path:
        root = tmp_path / f"{label.shape}"
        for name, array in (("images", image(0)), ("labels", label)):
            (root / name).mkdir(parents=True)
            Image.fromarray(array).save(root / name / "0.png")
        (root / "id2label.json").write_text(json.dumps(dict(enumerate(zoo.LABELS))))
        return root

    turned = r"has 56 x 40 pixels and its labels 40 x 56. Images are turned as their EXIF data say"
    with pytest.raises(EvaluationError, match=turned):
        lw.evaluate(models["one"], data_of(np.zeros((56, 40), np.uint8)))
    with pytest.raises(EvaluationError, match=r"has 56 x 40 pixels and its labels 28 x 20"):
        lw.evaluate(models["one"], data_of(truth(0, 20, 28)))
    with pytest.raises(EvaluationError, match=r"ids 3, which custom-3 does not have"):
        lw.evaluate(models["one"], data_of(np.full((40, 55), 3, np.uint8)))
    with pytest.raises(LwmmError, match=r"no panoptic truth that pairs knows of"):
        lw.evaluate(models["one"], streets, task="panoptic")


def test_labels_that_disagree_show_both_lists(models: dict[str, Path], streets: Path) -> None:
    with pytest.raises(EvaluationError) as caught:
        lw.evaluate(models["one"], streets, label_space="cityscapes-19")
    text = str(caught.value)
    assert "road, car, sky" in text
    assert "road, sidewalk, building" in text
    assert "--map-labels" in text
    assert "\n" not in text
