"""Inference: every class of transformers, our own post-processing, windows, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError, OutputError, UsageError
from lwmm_hub.evaluation.inference import InferenceOptions, Predictor, memory_watched
from lwmm_hub.evaluation.post_processing import DenseScores, MaskScores, resized_strips
from lwmm_hub.evaluation.views import View, together, windows


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)


def maps(outputs: DenseScores | MaskScores) -> torch.Tensor:
    return torch.cat([strip for _, strip in outputs.strips()], 1)


# --------------------------------------------------------------------------------- post-processing


@pytest.mark.parametrize("size", [(300, 411), (20, 30), (37, 53), (1, 1), (129, 1)])
def test_strips_are_what_torch_interpolates(size: tuple[int, int]) -> None:
    scores = torch.randn(5, 37, 53, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(scores[None], size, mode="bilinear")[0]
    found = torch.cat([strip for _, strip in resized_strips(scores, size, (37, 53))], 1)
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)


def test_padding_never_shows_in_the_image() -> None:
    scores = torch.zeros(2, 8, 8)
    scores[:, :5, :6] = 1.0
    scores[:, 5:, :] = scores[:, :, 6:] = 1e6
    for _, strip in resized_strips(scores, (50, 60), (5, 6)):
        assert strip.max() == 1


def masks_of(*rectangles: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    """Sure masks, +-20 as logits, that cover (top, left, bottom, right)."""
    masks = torch.full((len(rectangles), *size), -20.0)
    for mask, (top, left, bottom, right) in zip(masks, rectangles, strict=True):
        mask[top:bottom, left:right] = 20.0
    return masks


def classes_of(*classes: int, count: int) -> torch.Tensor:
    logits = torch.full((len(classes), count + 1), -10.0)
    for row, label in zip(logits, classes, strict=True):
        row[label] = 10.0
    return logits


def test_masks_are_resized_in_one_step_and_keep_what_is_one_pixel_wide() -> None:
    """Transformers' Mask2Former goes over 384 x 384, where a pole of one pixel in 1024 drowns."""
    from transformers import Mask2FormerImageProcessorPil

    size = (256, 1024)
    masks = masks_of((0, 0, 256, 1024), (0, 500, 256, 501), size=size)
    masks[0, :, 500] = -20.0
    classes = classes_of(0, 1, count=2)
    ours = MaskScores(classes, masks, size, size).labels()
    truth = np.zeros(size)
    truth[:, 500] = 1
    assert (ours == truth).all()

    class Outputs:
        class_queries_logits = classes[None]
        masks_queries_logits = masks[None]

    (theirs,) = Mask2FormerImageProcessorPil().post_process_semantic_segmentation(
        Outputs(), target_sizes=[size]
    )
    assert (theirs.numpy() != truth).any()  # when this fails, the bug is gone upstream


def test_no_two_segments_share_an_id_after_fused_stuff() -> None:
    """Transformers numbers road, car, road, person 1, 2, 1, 2."""
    size = (40, 40)
    masks = masks_of((0, 0, 10, 40), (10, 0, 20, 40), (20, 0, 30, 40), (30, 0, 40, 40), size=size)
    classes = classes_of(0, 1, 0, 2, count=3)
    found = MaskScores(classes, masks, size, size).panoptic(things={1, 2})
    assert [(s.id, s.category) for s in found.segments] == [(1, 0), (2, 1), (3, 2)]
    assert [int(found.ids[row, 5]) for row in (5, 15, 25, 35)] == [1, 2, 1, 3]

    from transformers import MaskFormerImageProcessorPil

    class Outputs:
        class_queries_logits = classes[None]
        masks_queries_logits = masks[None]

    (theirs,) = MaskFormerImageProcessorPil().post_process_panoptic_segmentation(
        Outputs(), label_ids_to_fuse={0}, target_sizes=[size]
    )
    ids = [segment["id"] for segment in theirs["segments_info"]]
    assert len(set(ids)) < len(ids)  # when this fails, the bug is gone upstream


def test_things_stay_apart_unsure_queries_and_hidden_masks_are_void() -> None:
    size = (20, 40)
    masks = masks_of((0, 0, 20, 10), (0, 10, 20, 20), (0, 0, 20, 12), (0, 30, 20, 40), size=size)
    classes = classes_of(1, 1, 1, 1, count=2)
    classes[2] = torch.tensor([-10.0, 2.2, 0.0])  # sees an object, wins hardly a pixel
    classes[3] = torch.tensor([-10.0, 0.5, 0.0])  # under the threshold
    found = MaskScores(classes, masks, size, size).panoptic(things={1})
    assert [s.category for s in found.segments] == [1, 1]
    assert (found.ids[:, :10] == 1).all()
    assert (found.ids[:, 10:20] == 2).all()
    assert (found.ids[:, 20:] == 0).all()


def test_an_image_without_segments_is_all_void() -> None:
    found = MaskScores(
        classes_of(2, 2, count=2),
        masks_of((0, 0, 2, 2), (0, 0, 4, 4), size=(8, 8)),
        (16, 16),
        (8, 8),
    ).panoptic(things={0})
    assert found.segments == ()
    assert found.ids.shape == (16, 16)
    assert not found.ids.any()


@pytest.mark.parametrize("seed", range(3))
def test_masks_as_classes_agree_with_the_plain_formula(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(6, 4, generator=generator)
    masks = torch.randn(6, 9, 7, generator=generator)
    outputs = MaskScores(classes, masks, (50, 33), (9, 7))
    wide = torch.nn.functional.interpolate(masks[None], (50, 33), mode="bilinear")[0].sigmoid()
    scores = torch.einsum("qc,qhw->chw", classes.softmax(-1)[:, :-1], wide)
    expected = scores / scores.sum(0)
    torch.testing.assert_close(maps(outputs), expected, atol=1e-5, rtol=1e-5)
    assert (outputs.labels() == expected.argmax(0).numpy()).mean() > 0.999


# ----------------------------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("zoo")
    return {m.__name__: zoo.write(folder / m.__name__, m) for m in zoo.DENSE + zoo.MASKS}


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that do tell one pixel from another."""
    folder = tmp_path_factory.mktemp("lively")
    makers = (zoo.dpt, zoo.data2vec, zoo.eomt, zoo.eomt_semantic)
    makers += (zoo.mobilenet, zoo.beit)
    return {m.__name__: zoo.write(folder / m.__name__, zoo.lively(m)) for m in makers}


@pytest.mark.parametrize("name", [make.__name__ for make in zoo.DENSE + zoo.MASKS])
def test_every_class_gives_maps_of_the_images_own_sizes(
    name: str, folders: dict[str, Path]
) -> None:
    images = [image(50, 70), image(64, 64), image(70, 50, 1)]
    whole = Predictor.load(folders[name], InferenceOptions(batch_size=2))
    assert whole.labels == zoo.LABELS
    found = whole.segment(images)
    for one, shown in zip(found, images, strict=True):
        assert one.labels().shape == shown.shape[:2]
        probabilities = maps(one)
        assert probabilities.shape == (3, *shown.shape[:2])
        torch.testing.assert_close(probabilities.sum(0), torch.ones(shown.shape[:2]))
    alone = [whole.segment([shown])[0] for shown in images]
    for one, single in zip(found, alone, strict=True):
        torch.testing.assert_close(maps(one), maps(single), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["maskformer", "mask2former", "oneformer", "eomt", "detr"])
def test_mask_models_give_panoptic_maps(name: str, folders: dict[str, Path]) -> None:
    (found,) = Predictor.load(folders[name]).segment([image(50, 70)], task="panoptic")
    assert isinstance(found, MaskScores)
    panoptic = found.panoptic(things={1}, threshold=0.0)
    assert set(np.unique(panoptic.ids)) - {0} == {segment.id for segment in panoptic.segments}


@pytest.mark.parametrize("name", ["segformer", "mobilenet", "mask2former", "detr", "eomt"])
def test_a_mirrored_image_gives_the_mirrored_map(name: str, folders: dict[str, Path]) -> None:
    predictor = Predictor.load(folders[name], InferenceOptions(flip=True))
    shown = image(64, 96)
    (one,), (other,) = predictor.segment([shown]), predictor.segment([shown[:, ::-1].copy()])
    torch.testing.assert_close(maps(one), maps(other).flip(-1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["segformer", "upernet", "mask2former"])
def test_a_window_as_large_as_the_image_sees_the_image_at_its_own_size(
    name: str, folders: dict[str, Path]
) -> None:
    shown = image(64, 64)
    (window,) = Predictor.load(folders[name], InferenceOptions(window=(64, 64))).segment([shown])
    predictor = Predictor.load(folders[name])
    pixels = predictor._pixels(shown, do_resize=False, do_pad=False)
    with torch.inference_mode():
        outputs = predictor.network(pixel_values=pixels[None])
    if name == "mask2former":
        classes, masks = outputs.class_queries_logits[0], outputs.masks_queries_logits[0]
        expected = MaskScores(classes, masks, (64, 64), tuple(masks.shape[1:]))
    else:
        logits = outputs.logits[0]
        expected = DenseScores(logits, (64, 64), tuple(logits.shape[1:]))
    torch.testing.assert_close(maps(window), maps(expected), atol=1e-5, rtol=1e-4)


def test_windows_cover_the_image_and_end_flush_with_it() -> None:
    pixels = torch.arange(3 * 100 * 150, dtype=torch.float32).reshape(3, 100, 150)
    views = windows(pixels, (64, 64), 1 / 3)
    covered = torch.zeros(100, 150)
    for view in views:
        assert view.pixels.shape == (3, 64, 64)
        assert view.extent == (64, 64)
        top, left = view.place
        covered[top : top + 64, left : left + 64] += 1
        assert torch.equal(view.pixels, pixels[:, top : top + 64, left : left + 64])
    assert covered.min() >= 1
    assert {view.place[0] for view in views} == {0, 36}


def test_views_are_averaged_where_they_overlap() -> None:
    pixels = torch.zeros(3, 64, 100)
    views = windows(pixels, (64, 64), 0.0)
    assert [view.place for view in views] == [(0, 0), (0, 36)]
    found = [
        (view, DenseScores(torch.full((2, 64, 64), float(i)), (64, 100), (64, 64)))
        for i, view in enumerate(views)
    ]
    total = together(found, (64, 100))
    assert isinstance(total, DenseScores)
    row = total.scores[0, 0]
    assert (row[:36] == 0).all()
    assert (row[36:64] == 0.5).all()
    assert (row[64:] == 1).all()


@pytest.mark.parametrize("window", [(64, 64), (9999, 9999), (40, 9999)])
def test_a_window_is_never_larger_than_the_image(window: tuple[int, int]) -> None:
    pixels = torch.rand(3, 40, 20)
    (view,) = windows(pixels, window, 0.5)
    assert isinstance(view, View)
    assert torch.equal(view.pixels, pixels)
    assert view.place == (0, 0)
    assert view.extent == (40, 20)


def test_a_window_larger_than_one_axis_slides_over_the_other() -> None:
    views = windows(torch.rand(3, 40, 100), (64, 64), 0.0)
    assert [view.place for view in views] == [(0, 0), (0, 36)]
    assert {tuple(view.pixels.shape) for view in views} == {(3, 40, 64)}


@pytest.mark.parametrize("name", ["segformer", "upernet", "mask2former"])
def test_a_window_larger_than_the_image_is_one_of_its_size(
    name: str, folders: dict[str, Path]
) -> None:
    shown = image(64, 96)
    wanted, *others = (
        maps(Predictor.load(folders[name], InferenceOptions(window=window)).segment([shown])[0])
        for window in ((64, 96), (128, 128), (64, 4096))
    )
    for found in others:
        assert torch.equal(found, wanted)


SQUARES = ["dpt", "data2vec", "eomt", "eomt_semantic"]


@pytest.mark.parametrize("size", [(50, 70), (16, 256), (300, 40), (1, 1)])
@pytest.mark.parametrize("name", SQUARES)
def test_an_image_smaller_than_the_window_is_shown_whole_to_networks_of_squares(
    name: str, size: tuple[int, int], lively: dict[str, Path]
) -> None:
    """They fail on it as it is; 1 x 16 patches were even taken for 4 x 4 without a word."""
    shown = image(*size)
    (whole,) = Predictor.load(lively[name]).segment([shown])
    (window,) = Predictor.load(lively[name], InferenceOptions(window=(64, 64))).segment([shown])
    assert window.labels().shape == size
    assert size == (1, 1) or maps(whole).std((1, 2)).max() > 1e-3
    assert torch.equal(maps(window), maps(whole))


@pytest.mark.parametrize("name", ["dpt", "data2vec"])
def test_windows_of_networks_of_squares_are_theirs(name: str, lively: dict[str, Path]) -> None:
    predictor = Predictor.load(lively[name], InferenceOptions(window=(64, 64), overlap=0.0))
    shown = image(64, 128)
    (found,) = predictor.segment([shown])
    for left in (0, 64):
        (part,) = predictor.segment([shown[:, left : left + 64].copy()])
        there = slice(left + 8, left + 56)  # scores are resized over the seam
        torch.testing.assert_close(
            maps(found)[..., there], maps(part)[..., 8:56], atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize(
    ("name", "window", "said"),
    [
        (
            "dpt",
            (40, 72),
            r"dpt takes squares alone, and the window is 40 high and 72 wide.*w 40, o",
        ),
        ("eomt", (32, 128), r"eomt takes squares of 64 x 64 pixels alone, .*--window 64, or none"),
        ("eomt_semantic", (96, 96), r"takes squares of 64 x 64 pixels alone"),
        ("data2vec", (32, 128), r"takes squares of 64 x 64 pixels alone"),
    ],
)
def test_a_window_that_a_network_of_squares_never_takes_is_refused_at_once(
    name: str, window: tuple[int, int], said: str, lively: dict[str, Path]
) -> None:
    with pytest.raises(EvaluationError, match=said):
        Predictor.load(lively[name], InferenceOptions(window=window))


@pytest.mark.parametrize(
    ("name", "size", "made"),
    [
        ("dpt", {"height": 32, "width": 128}, "128 x 32"),
        ("data2vec", {"height": 32, "width": 128}, "128 x 32"),
        ("eomt_semantic", {"shortest_edge": 96, "longest_edge": None}, "96 x 96"),
    ],
)
def test_a_processor_that_makes_no_square_of_theirs_is_named(
    name: str, size: dict[str, int], made: str, lively: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(lively[name], tmp_path / name)
    path = tmp_path / name / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": size}))
    said = rf"{name} takes squares .*makes images of {made}\. Correct the size in its preproc"
    with pytest.raises(EvaluationError, match=said):
        Predictor.load(tmp_path / name).segment([image(50, 70)])


@pytest.mark.parametrize("name", ["mobilenet", "beit"])
def test_a_processor_that_crops_hides_nothing_of_the_image(
    name: str, lively: dict[str, Path], tmp_path: Path
) -> None:
    """As those of MobileNetV2 and MobileViT do; the part was scored as if it were the whole."""
    shutil.copytree(lively[name], tmp_path / name)
    path = tmp_path / name / "preprocessor_config.json"
    crop = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **crop}))
    shown = image(50, 170)
    for options in (InferenceOptions(), InferenceOptions(window=(48, 96))):
        (wanted,) = Predictor.load(lively[name], options).segment([shown])
        (found,) = Predictor.load(tmp_path / name, options).segment([shown])
        assert torch.equal(maps(found), maps(wanted))
        assert maps(wanted).std((1, 2)).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_nearly_the_same(dtype: str, folders: dict[str, Path]) -> None:
    (full,) = Predictor.load(folders["segformer"]).segment([image(64, 64)])
    options = InferenceOptions(dtype=dtype)
    (half,) = Predictor.load(folders["segformer"], options).segment([image(64, 64)])
    torch.testing.assert_close(maps(half), maps(full), atol=0.02, rtol=0)


def test_semantic_maps_of_segformer_are_those_of_transformers(folders: dict[str, Path]) -> None:
    predictor = Predictor.load(folders["segformer"])
    shown = image(50, 70)
    with torch.inference_mode():
        outputs = predictor.network(pixel_values=predictor._pixels(shown)[None])
    (theirs,) = predictor._processor.post_process_semantic_segmentation(outputs, [(50, 70)])
    (ours,) = predictor.segment([shown])
    assert (ours.labels() == theirs.numpy()).mean() > 0.999


# -------------------------------------------------------------------------------- what goes wrong


def test_a_model_without_a_processor_says_what_to_put_where(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders["segformer"] / name).read_bytes())
    with pytest.raises(EvaluationError, match=r"no image processor.*preprocessor_config\.json"):
        Predictor.load(tmp_path)


def test_weights_without_a_config_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"config\.json"):
        Predictor.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"window": (16, 64)}, "at least 32 x 32"),
        ({"overlap": 1.0}, "overlap 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(EvaluationError, match=said) as caught:
        InferenceOptions(**options).check()
    assert isinstance(caught.value, UsageError)


def test_a_device_that_is_not_there_is_named(folders: dict[str, Path]) -> None:
    with pytest.raises(EvaluationError, match=r"device 'cuda:7'.*--device, e.g. cpu"):
        Predictor.load(folders["segformer"], InferenceOptions(device="cuda:7"))


def test_a_window_that_the_network_cannot_take_is_an_error_of_ours(
    folders: dict[str, Path],
) -> None:
    predictor = Predictor.load(folders["segformer"], InferenceOptions(window=(32, 32)))
    with pytest.raises(EvaluationError, match=r"does not take images of 1 x 1: .* --window, or no"):
        predictor.segment([image(1, 1)])
    predictor._processor.size = {"height": 1, "width": 1}
    predictor = Predictor(predictor.network, predictor._processor, zoo.LABELS)
    with pytest.raises(EvaluationError, match=r"images of 1 x 1: .* size in its preprocessor_con"):
        predictor.segment([image(80, 80)])


def test_memory_that_runs_out_names_what_helps() -> None:
    with (
        pytest.raises(EvaluationError, match=r"^memory ran out.*--batch-size.*--window"),
        memory_watched("the model"),
    ):
        np.empty(1 << 60, np.uint8)
    with pytest.raises(RuntimeError, match="other"), memory_watched("the model"):
        raise RuntimeError("other")


def test_memory_that_runs_out_in_the_network_is_no_wrong_size(folders: dict[str, Path]) -> None:
    predictor = Predictor.load(folders["segformer"])

    def grow(*_: Any) -> None:
        np.empty(1 << 60, np.uint8)

    predictor.network.register_forward_pre_hook(grow)
    with pytest.raises(EvaluationError, match=r"^memory ran out.*--batch-size.*--window"):
        predictor.segment([image(64, 64)])


def test_oneformer_is_told_its_task(folders: dict[str, Path], tmp_path: Path) -> None:
    predictor = Predictor.load(folders["oneformer"])
    (semantic,) = predictor.segment([image(50, 70)])
    (panoptic,) = predictor.segment([image(50, 70)], task="panoptic")
    assert isinstance(semantic, MaskScores)
    assert isinstance(panoptic, MaskScores)
    assert not torch.equal(semantic.classes, panoptic.classes)
    for path in folders["oneformer"].iterdir():
        if path.name not in ("vocab.json", "merges.txt", "tokenizer.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(EvaluationError, match="tokenizer without words"):
        Predictor.load(tmp_path)


def test_a_segmentation_model_neither_classifies_nor_detects(folders: dict[str, Path]) -> None:
    predictor = Predictor.load(folders["segformer"])
    with pytest.raises(EvaluationError, match="no class of an image"):
        predictor.classify([image(64, 64)])
    with pytest.raises(EvaluationError, match="finds no boxes"):
        predictor.detect([image(64, 64)])
