"""Data sets as they lie on disk: a miniature of each real layout is read back exactly."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lwmm_hub.errors import EvaluationError, LwmmError
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.label_spaces import canonical, label_space
from lwmm_hub.evaluation.layouts import LAYOUTS
from lwmm_hub.evaluation.opening import open_data, read_space
from lwmm_hub.evaluation.panoptic import PanopticCounts
from lwmm_hub.evaluation.unlabelled import open_images
from lwmm_hub.evaluation.values import Sample

CITY = label_space("cityscapes-19")
SIZE = (6, 8)


def picture(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8)


def ids(values: list[int], size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A map that holds every value, in stripes."""
    rows = np.resize(np.array(values, np.uint8), size[0] * size[1])
    return rows.reshape(size)


def save(path: Path, array: NDArray[np.uint8], mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path) if mode else Image.fromarray(array).save(path)


def save_palette(path: Path, array: NDArray[np.uint8], colors: dict[int, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    palette = [0] * 768
    for index, color in colors.items():
        palette[3 * index : 3 * index + 3] = [int(c) for c in color]
    shown = Image.fromarray(array).convert("L")
    shown = Image.frombytes("P", shown.size, shown.tobytes())
    shown.putpalette(palette)
    shown.save(path)


def save_16_bit(path: Path, array: NDArray[np.uint16], filters: bool = True) -> None:
    """A PNG of three 16-bit channels, as SYNTHIA has it; PIL cannot write one.

    With `filters`, rows go through each of PNG's five filters in turn.
    """
    height, width, _ = array.shape
    rows = array.astype(">u2").tobytes()
    stride = width * 6
    before = bytes(stride)
    packed = b""
    for y in range(height):
        row = rows[y * stride : (y + 1) * stride]
        kind = y % 5 if filters else 0
        packed += bytes([kind]) + filtered(kind, row, before)
        before = row
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(packed)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d))
            for n, d in chunks
        )
    )


def filtered(kind: int, row: bytes, before: bytes) -> bytes:
    """A row through a filter of PNG (specification, section 9), 6 bytes a pixel."""
    found = bytearray()
    for i, value in enumerate(row):
        left = row[i - 6] if i >= 6 else 0
        above, corner = before[i], before[i - 6] if i >= 6 else 0
        guess = left + above - corner
        nearest = min((left, above, corner), key=lambda v: abs(guess - v))
        minus = (0, left, above, (left + above) // 2, nearest)[kind]
        found.append((value - minus) % 256)
    return bytes(found)


def save_panoptic(path: Path, numbers: NDArray[np.integer[Any]]) -> None:
    channels = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1)
    save(path, channels.astype(np.uint8))


def dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def read(data: DataSet) -> list[Sample]:
    return list(data.samples(0, 1))


def segments_of(sample: Sample) -> list[tuple[int, int, bool]]:
    assert sample.panoptic is not None
    return sorted((s.id, s.category, s.is_crowd) for s in sample.panoptic.segments)


# ------------------------------------------------------------------------------------- Cityscapes


def cityscapes(root: Path, images: str = "leftImg8bit", ending: str = "_leftImg8bit.png") -> Path:
    """Two images of two cities in `val`, one in `train`; labelIds hold void and licence plates."""
    frames = {
        "val": ["frankfurt_000000_000294", "munster_000001_000019"],
        "train": ["aachen_000000_000019"],
    }
    for split, names in frames.items():
        annotations = []
        for number, name in enumerate(names):
            city = name.split("_")[0]
            save(root / images / split / city / f"{name}{ending}", picture(number))
            truth = root / "gtFine" / split / city
            save(truth / f"{name}_gtFine_labelIds.png", ids([7, 8, 26, 33, 0, 255]))
            numbers = np.zeros(SIZE, np.int32)
            numbers[0], numbers[1], numbers[2] = 7, 26001, 26
            file = f"{name}_gtFine_panoptic.png"
            save_panoptic(root / "gtFine" / f"cityscapes_panoptic_{split}" / file, numbers)
            segments = [
                {"id": 7, "category_id": 7, "iscrowd": 0},
                {"id": 26001, "category_id": 26, "iscrowd": 0},
                {"id": 26, "category_id": 26, "iscrowd": 1},
            ]
            annotations.append({"image_id": name, "file_name": file, "segments_info": segments})
        things = CITY.things or frozenset()
        categories = [
            {"id": number, "name": label, "isthing": int(i in things), "supercategory": "x"}
            for i, (number, label) in enumerate(
                zip(label_space("gta-19").ids, CITY.labels, strict=True)
            )
        ]
        dump(
            root / "gtFine" / f"cityscapes_panoptic_{split}.json",
            {"images": [], "annotations": annotations, "categories": categories},
        )
    return root


def test_cityscapes_has_its_19_classes_and_its_order(tmp_path: Path) -> None:
    data = open_data(cityscapes(tmp_path / "cs"))
    assert (data.reference, data.split, data.task, data.count) == ("cs", "val", "semantic", 2)
    assert data.space is CITY
    found = read(data)
    assert [s.name for s in found] == [
        "leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png",
        "leftImg8bit/val/munster/munster_000001_000019_leftImg8bit.png",
    ]
    for number, sample in enumerate(found):
        assert (sample.image == picture(number)).all()
        assert (sample.semantic == ids([0, 1, 13, 18, 255, 255])).all()
        assert sample.panoptic is None
    assert read(open_data(tmp_path / "cs", split="train"))[0].name.startswith("leftImg8bit/train")


def test_labels_that_cityscapes_has_by_itself_are_not_named_again(tmp_path: Path) -> None:
    """Its files were read as if they held 0 to 18: 7, a road, as a traffic sign."""
    with pytest.raises(EvaluationError, match=r"cityscapes-19 by themselves.*Leave --labels "):
        open_data(cityscapes(tmp_path), label_space="cityscapes-19")
    assert open_data(tmp_path, label_space="cityscapes-34").space.name == "cityscapes-34"


def test_cityscapes_panoptic_has_crowds_and_things(tmp_path: Path) -> None:
    data = open_data(cityscapes(tmp_path / "cs"), task="panoptic")
    assert data.space.things == CITY.things
    for sample in read(data):
        assert segments_of(sample) == [(7, 0, False), (26, 13, True), (26001, 13, False)]
        assert sample.panoptic is not None
        assert set(np.unique(sample.panoptic.ids)) == {0, 7, 26, 26001}
        assert (sample.semantic == ids([0, 1, 13, 18, 255, 255])).all()


def test_a_panoptic_json_in_train_ids_is_read_by_its_names(tmp_path: Path) -> None:
    """CreatePanopticImgs --use-train-id: 0 is road there, and void in ordinary ids."""
    root = cityscapes(tmp_path / "cs")
    path = root / "gtFine" / "cityscapes_panoptic_val.json"
    document = json.loads(path.read_text())
    train = {number: i for i, number in enumerate(label_space("gta-19").ids)}
    for category in document["categories"]:
        category["id"] = train[category["id"]]
    for annotation in document["annotations"]:
        for segment in annotation["segments_info"]:
            segment["category_id"] = train[segment["category_id"]]
    dump(path, document)
    (sample, _) = read(open_data(root, task="panoptic"))
    assert segments_of(sample) == [(7, 0, False), (26, 13, True), (26001, 13, False)]


def test_foggy_cityscapes_takes_its_images_and_the_thickest_fog(tmp_path: Path) -> None:
    for beta in ("0.005", "0.01", "0.02"):
        cityscapes(tmp_path, "leftImg8bit_foggy", f"_leftImg8bit_foggy_beta_{beta}.png")
    data = open_data(tmp_path)
    assert data.count == 2
    assert all(s.name.endswith("_foggy_beta_0.02.png") for s in read(data))
    assert (read(data)[1].semantic == ids([0, 1, 13, 18, 255, 255])).all()
    cityscapes(tmp_path)  # now both lie there: nothing is guessed
    with pytest.raises(
        EvaluationError, match=r"Say which: cityscapes:FOLDER or foggy-cityscapes:FOLDER"
    ):
        open_data(tmp_path)
    assert "_foggy_" in read(open_data(f"foggy-cityscapes:{tmp_path}"))[0].name
    assert "_foggy_" not in read(open_data(f"cityscapes:{tmp_path}"))[0].name


# --------------------------------------------------------------------------------- GTA5 and SYNTHIA


def gta5(root: Path) -> Path:
    colors = dict(zip(label_space("cityscapes-34").ids, label_space("cityscapes-34").colors))  # noqa: B905
    for number in (1, 2, 10):
        save(root / "images" / f"{number:05}.png", picture(number))
        save_palette(root / "labels" / f"{number:05}.png", ids([7, 11, 24, 0, 34]), colors)
    return root


def test_gta5s_palette_files_are_read_by_index(tmp_path: Path) -> None:
    data = open_data(gta5(tmp_path))
    assert (data.split, data.space.name, data.count) == (None, "cityscapes-19", 3)
    assert [s.name for s in read(data)] == [f"images/{n:05}.png" for n in (1, 2, 10)]
    assert (read(data)[2].semantic == ids([0, 2, 11, 255, 255])).all()
    with pytest.raises(EvaluationError, match=r"has no splits: leave --split out"):
        open_data(tmp_path, split="val")


def test_numbered_files_of_something_else_are_not_taken_for_gta5(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / "images" / f"{number:05}.png", picture(number))
        save(tmp_path / "labels" / f"{number:05}.png", ids([0, 1, 18]))
    with pytest.raises(EvaluationError, match="does not say what its labels mean"):
        open_data(tmp_path)
    data = open_data(tmp_path, label_space="cityscapes-19")
    assert (read(data)[0].semantic == ids([0, 1, 18])).all()


@pytest.mark.parametrize("filters", [False, True])
def test_synthias_16_bit_labels_are_read_exactly(tmp_path: Path, filters: bool) -> None:
    """Classes lie in the first channel, object numbers, which may pass 255, in the second."""
    classes = np.arange(23).repeat(5)[: 11 * 10].reshape(11, 10)
    objects = np.arange(110).reshape(11, 10) * 599 % 65536
    label = np.stack([classes, objects, np.zeros_like(classes)], -1).astype(np.uint16)
    save(tmp_path / "RGB" / "0000000.png", picture(0, (11, 10)))
    save_16_bit(tmp_path / "GT" / "LABELS" / "0000000.png", label, filters)
    data = open_data(tmp_path)
    assert data.space.name == "synthia-16"
    (sample,) = read(data)
    expected = label_space("synthia-16").indices(classes.astype(np.uint8))
    assert (sample.semantic == expected).all()
    thirteen = open_data(tmp_path, label_space="synthia-13")
    expected = label_space("synthia-13").indices(classes.astype(np.uint8))
    assert (read(thirteen)[0].semantic == expected).all()


def test_a_synthia_that_was_converted_to_8_bits_is_read_too(tmp_path: Path) -> None:
    save(tmp_path / "RGB" / "0000000.png", picture(0))
    save(tmp_path / "GT" / "LABELS" / "0000000.png", ids([3, 1, 0]))
    assert (read(open_data(tmp_path))[0].semantic == ids([0, 9, 255])).all()
    (tmp_path / "GT" / "LABELS" / "0000000.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(EvaluationError, match=r"RGB/0000000.png: .* cannot be decoded"):
        read(open_data(tmp_path))


# --------------------------------------------------------------------------------------- Mapillary


def mapillary(root: Path, version: str, space: str, things: set[int], old: bool = False) -> Path:
    """As version 2.0 is handed out: both versions of the labels beside the images."""
    year = {"v1.2": 2018, "v2.0": 2020}[version]
    labels = label_space(space).labels
    for split in ("training", "validation"):
        truth = root / split / ("" if old else version)
        annotations = []
        for name in ("a_b-C", "d0-E_f"):
            Image.fromarray(picture(3)).save(_made(root / split / "images" / f"{name}.jpg"))
            save_palette(truth / "labels" / f"{name}.png", ids([0, 13, len(labels) - 1]), {})
            save(truth / "instances" / f"{name}.png", ids([0, 1]))
            numbers = np.zeros(SIZE, np.int32)
            numbers[0], numbers[1], numbers[2] = 65536 * 3 + 7, 300, 2
            save_panoptic(truth / "panoptic" / f"{name}.png", numbers)
            segments = [
                {"id": 65536 * 3 + 7, "category_id": 1, "iscrowd": 0, "area": 8},
                {"id": 300, "category_id": 14, "iscrowd": 0, "area": 8},
                {"id": 2, "category_id": len(labels), "iscrowd": 0, "area": 8},
            ]
            annotations.append(
                {"image_id": name, "file_name": f"{name}.png", "segments_info": segments}
            )
        categories = [
            {"id": i + 1, "name": label, "isthing": int(i in things), "supercategory": "x"}
            for i, label in enumerate(labels)
        ]
        dump(
            truth / "panoptic" / f"panoptic_{year}.json",
            {"images": [], "categories": categories, "annotations": annotations},
        )
    return root


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize(
    ("version", "space", "old"),
    [
        ("v1.2", "mapillary-65", False),
        ("v1.2", "mapillary-65", True),
        ("v2.0", "mapillary-124", False),
    ],
)
def test_mapillary_vistas_counts_categories_from_one_and_says_its_things(
    tmp_path: Path, version: str, space: str, old: bool
) -> None:
    last = len(label_space(space)) - 1
    data = open_data(mapillary(tmp_path, version, space, {0, 30}, old))
    assert (data.split, data.space.name, data.count) == ("validation", space, 2)
    assert (read(data)[0].semantic == ids([0, 13, last])).all()
    data = open_data(tmp_path, task="panoptic")
    assert data.space.things == {0, 30}
    assert segments_of(read(data)[1]) == [(2, last, False), (300, 13, False), (196615, 0, False)]
    categories = PanopticCounts.of(data.space).categories
    assert [c.id for c in categories if c.is_thing] == [0, 30]


def test_both_versions_of_mapillary_in_one_folder_are_told_apart_by_name(tmp_path: Path) -> None:
    mapillary(tmp_path, "v1.2", "mapillary-65", {0})
    mapillary(tmp_path, "v2.0", "mapillary-124", {0})
    with pytest.raises(EvaluationError, match=r"mapillary-v1.2:FOLDER or mapillary-v2.0:FOLDER"):
        open_data(tmp_path)
    assert len(open_data(f"mapillary-v1.2:{tmp_path}").space) == 65
    assert len(open_data(f"mapillary-v2.0:{tmp_path}").space) == 124


# ------------------------------------------------------------------------- Pascal VOC and LoveDA


def pascal_voc(year: Path, augmented: bool = False) -> Path:
    """As the development kit lies: palette files, lists of names, and objects' borders as 255."""
    names = ["2007_000033", "2007_000042", "2008_000001", "2008_000002"]
    colors = dict(enumerate(label_space("pascal-voc-21").colors)) | {255: (224, 224, 192)}
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(_made(year / "JPEGImages" / f"{name}.jpg"))
        if name != "2008_000002":
            path = year / "SegmentationClass" / f"{name}.png"
            save_palette(path, ids([0, 1, 20, 255, number]), colors)
    if augmented:
        for name in names[1:]:
            save(year / "SegmentationClassAug" / f"{name}.png", ids([0, 15]))
    lists = {"train": names[2:3], "val": names[:2], "trainval": names[:3]}
    for split, listed in lists.items():
        path = _made(year / "ImageSets" / "Segmentation" / f"{split}.txt")
        path.write_text("".join(f"{name}\n" for name in listed))
    if augmented:
        lines = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png\r\n" for n in names[2:]]
        (year / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("".join(lines))
    return year


@pytest.mark.parametrize("place", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_pascal_vocs_palette_files_are_read_by_index_without_borders(
    tmp_path: Path, place: str
) -> None:
    pascal_voc(tmp_path / place)
    data = open_data(tmp_path)
    assert (data.split, data.task, data.space.name) == ("val", "semantic", "pascal-voc-21")
    assert data.count == 2
    found = read(data)
    assert [Path(s.name).name for s in found] == ["2007_000033.jpg", "2007_000042.jpg"]
    assert (found[1].semantic == ids([0, 1, 20, 255, 1])).all()
    assert open_data(tmp_path, split="trainval").count == 3
    assert open_images(tmp_path).split == "train"
    assert [canonical(label) for label in data.space.labels[-1:]] == [canonical("tv/monitor")]


def test_augmented_pascal_voc_keeps_the_borders_where_voc_itself_has_labels(tmp_path: Path) -> None:
    pascal_voc(tmp_path, augmented=True)
    first, second = read(open_data(tmp_path, split="train_aug"))
    assert (first.semantic == ids([0, 1, 20, 255, 2])).all()
    assert (second.semantic == ids([0, 15])).all()
    assert (read(open_data(tmp_path))[1].semantic == ids([0, 1, 20, 255, 1])).all()


def test_years_and_lists_of_pascal_voc_that_are_not_clear_are_told(tmp_path: Path) -> None:
    pascal_voc(tmp_path / "VOC2007")
    pascal_voc(tmp_path / "VOC2012")
    with pytest.raises(EvaluationError, match=r"several years of Pascal VOC: VOC2007, VOC2012\."):
        open_data(tmp_path)
    year = tmp_path / "VOC2012"
    assert open_data(year).reference == "VOC2012"
    lists = year / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text("../2007_000033\n2007_000099\n")
    with pytest.raises(EvaluationError, match=r"2007_000099\.jpg is missing"):
        read(open_data(year))
    (lists / "val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(EvaluationError, match=r"val\.txt cannot be read: it is not text"):
        open_data(year)
    (lists / "test.txt").write_text("2008_000002\n")
    with pytest.raises(EvaluationError, match=r"none of the 1 images has a label map"):
        open_data(year, split="test")


def test_loveda_counts_from_one_and_has_two_domains(tmp_path: Path) -> None:
    for number, place in enumerate(("Train/Urban", "Train/Rural", "Val/Urban", "Val/Rural")):
        save(tmp_path / place / "images_png" / f"{number}.png", picture(number))
        save(tmp_path / place / "masks_png" / f"{number}.png", ids([0, 1, 7]))
    with pytest.raises(EvaluationError, match=r"Train, Train/Rural, .*Choose one with --split"):
        open_data(tmp_path)
    data = open_data(tmp_path, split="Val")
    assert (data.count, data.space.name) == (2, "loveda-7")
    (rural,) = read(open_data(tmp_path, split="Val/Rural"))
    assert rural.name == "Val/Rural/images_png/3.png"
    for part in ("Val", "Val/Rural"):  # images_png and masks_png are no classes
        with pytest.raises(EvaluationError, match="Name its top folder"):
            open_data(tmp_path / part)
    assert (rural.semantic == ids([255, 0, 6])).all()


# --------------------------------------------------- BDD100K, ACDC, Dark Zurich, KITTI and CamVid


@pytest.mark.parametrize(
    ("images", "labels", "ending"),
    [
        ("images/10k", "labels/sem_seg/masks", ".png"),
        ("seg/images", "seg/labels", "_train_id.png"),
    ],
)
def test_bdd100k_holds_train_ids(tmp_path: Path, images: str, labels: str, ending: str) -> None:
    for split in ("train", "val"):
        path = _made(tmp_path / images / split / "7d06fefd-f7be05a6.jpg")
        Image.fromarray(picture(0)).save(path)
        save(tmp_path / labels / split / f"7d06fefd-f7be05a6{ending}", ids([0, 18, 255]))
    (tmp_path / images / "test").mkdir()
    data = open_data(tmp_path)
    assert (data.split, data.space.name, data.count) == ("val", "cityscapes-19", 1)
    assert (read(data)[0].semantic == ids([0, 18, 255])).all()
    assert open_images(tmp_path).split == "train"


@pytest.mark.parametrize(
    ("images", "labels", "place"),
    [
        ("rgb_anon", "gt", "{1}/{0}"),
        ("rgb_anon_trainvaltest/rgb_anon", "gt_trainval/gt", "{1}/{0}"),
        ("rgb_anon", "gt", "{0}/{1}"),  # as HRDA asks for it
    ],
)
def test_acdc_has_its_conditions_as_splits(
    tmp_path: Path, images: str, labels: str, place: str
) -> None:
    """Images of normal conditions have no labels and are left out."""
    for condition in ("fog", "night"):
        for split in ("train", "val", "test", "val_ref"):
            folder = f"{place.format(split, condition)}/GOPR0475"
            kind = "rgb_ref_anon" if split.endswith("_ref") else "rgb_anon"
            name = f"GOPR0475_{condition}_{split}"
            save(tmp_path / images / folder / f"{name}_{kind}.png", picture(0))
            if split in ("train", "val"):
                path = tmp_path / labels / folder / f"{name}_gt_labelTrainIds.png"
                save(path, ids([0, 18, 255]))
                save(path.with_name(f"{name}_gt_labelIds.png"), ids([7, 33, 0]))
    data = open_data(tmp_path)
    assert (data.split, data.space.name, data.count) == ("val", "cityscapes-19", 2)
    (fog,) = read(open_data(tmp_path, split="val/fog"))
    assert fog.name.endswith("GOPR0475_fog_val_rgb_anon.png")
    assert (fog.semantic == ids([0, 18, 255])).all()
    with pytest.raises(EvaluationError, match=r"none of the 2 images has a label map"):
        open_data(tmp_path, split="test")


@pytest.mark.parametrize("space", ["gta-19", "cityscapes-34"])
def test_train_ids_are_not_read_as_other_ids(tmp_path: Path, space: str) -> None:
    """7, a traffic sign, was a road where --labels named a space of other ids."""
    Image.fromarray(picture(0)).save(_made(tmp_path / "images" / "10k" / "val" / "a.jpg"))
    save(tmp_path / "labels" / "sem_seg" / "masks" / "val" / "a.png", ids([7]))
    with pytest.raises(EvaluationError, match=rf"bdd100k hold cityscapes-19, not {space}\. Leave "):
        open_data(tmp_path, label_space=space)
    assert (read(open_data(tmp_path, label_space="cityscapes-19"))[0].semantic == ids([7])).all()
    names = list(label_space("cityscapes-19").labels[:8])
    assert open_data(tmp_path, label_space=names).space.name == "custom-8"


def test_dark_zurich_has_labels_of_val_and_images_to_fit_on(tmp_path: Path) -> None:
    for place in ("train/night/GOPR0351", "train/day/GOPR0345", "val/night/GOPR0356"):
        name = f"{place.rpartition('/')[2]}_frame_000001"
        save(tmp_path / "rgb_anon" / place / f"{name}_rgb_anon.png", picture(0))
    name = "GOPR0356_frame_000001_gt_labelTrainIds.png"
    save(tmp_path / "gt" / "val" / "night" / "GOPR0356" / name, ids([0, 10, 255]))
    data = open_data(tmp_path)
    assert (data.split, data.count, data.columns[1]) == ("val", 1, "dark-zurich")
    assert (read(data)[0].semantic == ids([0, 10, 255])).all()
    images = open_images(tmp_path, split="train/night")
    assert [path.parent.name for path in images.files] == ["GOPR0351"]


@pytest.mark.parametrize("layout", ["", "acdc:", "dark-zurich:"])
def test_acdc_and_dark_zurich_in_one_folder_are_told_apart_by_nobody(
    tmp_path: Path, layout: str
) -> None:
    """Both unpack into rgb_anon and gt: `val` would have been of both."""
    for place in ("fog/val/GOPR0476", "night/val/GOPR0355", "val/night/GOPR0356"):
        name = f"{place.rpartition('/')[2]}_frame_000001"
        save(tmp_path / "rgb_anon" / place / f"{name}_rgb_anon.png", picture(0))
        save(tmp_path / "gt" / place / f"{name}_gt_labelTrainIds.png", ids([0, 10, 255]))
    for opened in (open_data, open_images):
        with pytest.raises(EvaluationError, match="Unpack each into a folder of its own"):
            opened(f"{layout}{tmp_path}")


def test_kitti_holds_the_ids_of_cityscapes(tmp_path: Path) -> None:
    save(tmp_path / "training" / "image_2" / "000000_10.png", picture(0))
    save(tmp_path / "training" / "semantic" / "000000_10.png", ids([7, 33, 0, 255]))
    save(tmp_path / "testing" / "image_2" / "000000_10.png", picture(0))
    data = open_data(tmp_path)
    assert (data.split, data.space.name, data.count) == ("training", "cityscapes-19", 1)
    assert (read(data)[0].semantic == ids([0, 18, 255, 255])).all()


def test_segnets_camvid_has_its_11_classes(tmp_path: Path) -> None:
    """Two folders of pictures for each split: they were taken for classes."""
    for split in ("train", "val", "test"):
        save(tmp_path / split / "0001TP_006690.png", picture(0))
        save(tmp_path / f"{split}annot" / "0001TP_006690.png", ids([0, 10, 11]))
    data = open_data(tmp_path)
    assert (data.split, data.space.name, data.count) == ("val", "camvid-11", 1)
    assert (read(data)[0].semantic == ids([0, 10, 255])).all()


# ------------------------------------------------------------------------------- ADE20K and COCO


def test_ade20k_counts_from_one_and_ignores_zero(tmp_path: Path) -> None:
    for split, short in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            name = f"ADE_{short}_{number:08}"
            Image.fromarray(picture(number)).save(_made(tmp_path / f"images/{split}/{name}.jpg"))
            save(tmp_path / f"annotations/{split}/{name}.png", ids([0, 1, 150]))
    data = open_data(tmp_path)
    assert (data.split, data.space.name, data.count) == ("validation", "ade20k-150", 2)
    assert (read(data)[1].semantic == ids([255, 0, 149])).all()


COCO = [
    {"id": n, "name": label, "isthing": int(i in (label_space("coco-133").things or ()))}
    for i, (n, label) in enumerate(
        zip(label_space("coco-133").ids, label_space("coco-133").labels, strict=True)
    )
]


def coco(root: Path, categories: list[dict[str, Any]], inner: bool = True) -> Path:
    maps = root / "annotations" / "panoptic_val2017" if inner else root / "panoptic_val2017"
    images, annotations = [], []
    first, last = categories[0]["id"], categories[-1]["id"]
    for number in (139, 7):  # the list is not in the order of the names
        name = f"{number:012}"
        Image.fromarray(picture(number)).save(_made(root / "val2017" / f"{name}.jpg"))
        numbers = np.zeros(SIZE, np.int32)
        numbers[:2], numbers[2], numbers[3] = 3226956, 8345, 7
        save_panoptic(maps / f"{name}.png", numbers)
        images.append({"id": number, "file_name": f"{name}.jpg", "height": 6, "width": 8})
        segments = [
            {"id": 3226956, "category_id": first, "iscrowd": 0, "bbox": [0, 0, 8, 2], "area": 16},
            {"id": 8345, "category_id": last, "iscrowd": 0, "bbox": [0, 2, 8, 1], "area": 8},
            {"id": 7, "category_id": first, "iscrowd": 1, "bbox": [0, 3, 8, 1], "area": 8},
        ]
        annotations.append(
            {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
        )
    dump(
        root / "annotations" / "panoptic_val2017.json",
        {"images": images, "annotations": annotations, "categories": categories},
    )
    return root


@pytest.mark.parametrize("inner", [False, True])
def test_coco_panoptic_gives_panoptic_maps_and_label_maps(tmp_path: Path, inner: bool) -> None:
    data = open_data(coco(tmp_path, COCO, inner))
    assert (data.split, data.task, data.space.name) == ("val2017", "panoptic", "coco-133")
    assert data.space.things == set(range(80))
    found = read(data)
    assert [s.name for s in found] == ["val2017/000000000007.jpg", "val2017/000000000139.jpg"]
    expected = np.full(SIZE, 255)
    expected[:2], expected[2], expected[3] = 0, 132, 0
    for sample in found:
        assert segments_of(sample) == [(7, 0, True), (8345, 132, False), (3226956, 0, False)]
        assert (sample.semantic == expected).all()
    (plain, _) = read(open_data(tmp_path, task="semantic"))
    assert plain.panoptic is None
    assert (plain.semantic == expected).all()


def test_cocos_format_with_other_categories_is_read_as_what_it_is(tmp_path: Path) -> None:
    own = [{"id": 5, "name": "lawn", "isthing": 0}, {"id": 2, "name": "gnome", "isthing": 1}]
    data = open_data(coco(tmp_path, own))
    assert data.space.labels == ("lawn", "gnome")
    assert data.space.things == {1}
    assert segments_of(read(data)[0]) == [(7, 0, True), (8345, 1, False), (3226956, 0, False)]
    with pytest.raises(EvaluationError, match=r"categories lawn, gnome, which coco-133 does not"):
        open_data(tmp_path, label_space="coco-133")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: d["annotations"][1]["segments_info"].pop(),
            "segment 7, which its JSON",
        ),
        (
            lambda d: d["annotations"][1]["segments_info"].append({"id": 9, "category_id": 1}),
            "lists the segment 9, which the panoptic map does not",
        ),
        (
            lambda d: d["annotations"][1]["segments_info"][0].update(category_id=999),
            "category 999, which is none of the 133",
        ),
        (lambda d: d["annotations"][1]["segments_info"][0].pop("id"), "without id and category_id"),
        (lambda d: d.pop("categories"), "KeyError: 'categories'"),
        (lambda d: d["images"][0].update(file_name="../../secret.jpg"), "no plain name"),
        (
            lambda d: d["annotations"].append(d["annotations"][0]),
            r"^panoptic_val2017.json: the panoptic map '000000000139.png' is listed twice",
        ),
        (lambda d: d["images"].append(d["images"][0]), "the image 139 is listed twice"),
        (
            lambda d: d["categories"][1].update(id=1),
            r"^panoptic_val2017.json: the category 1 is listed twice, again as .*'bicycle'",
        ),
        (
            lambda d: d["categories"][1].update(isthing="0"),
            r"^panoptic_val2017.json: .*'bicycle'.*isthing is '0', neither 0 nor 1",
        ),
        (lambda d: d["categories"][1].update(id=1e400), "id is inf, not a whole number"),
        (lambda d: d["categories"][1].update(id=2.5), "id is 2.5, not a whole number"),
        (lambda d: d["categories"][1].pop("isthing"), "no category.*Give id, name and isthing"),
        (
            lambda d: d["annotations"][1]["segments_info"][0].update(iscrowd="0"),
            "iscrowd is '0', neither 0 nor 1",
        ),
    ],
)
def test_a_panoptic_map_whose_json_disagrees_is_an_error(
    tmp_path: Path, change: Any, said: str
) -> None:
    path = coco(tmp_path, COCO) / "annotations" / "panoptic_val2017.json"
    document = json.loads(path.read_text())
    change(document)
    dump(path, document)
    with pytest.raises(EvaluationError, match=said) as caught:
        read(open_data(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_json_that_is_none_is_named(tmp_path: Path) -> None:
    path = coco(tmp_path, COCO) / "annotations" / "panoptic_val2017.json"
    path.write_text("[1,")
    with pytest.raises(EvaluationError, match=r"panoptic_val2017.json is no JSON"):
        open_data(tmp_path)
    root = cityscapes(tmp_path / "cs")
    (root / "gtFine" / "cityscapes_panoptic_val.json").unlink()
    with pytest.raises(EvaluationError, match=r"cityscapes_panoptic_val.json is missing"):
        open_data(root, task="panoptic")


def test_two_images_of_one_label_map_are_refused(tmp_path: Path) -> None:
    """Both were scored, one of them with the truth of the other."""
    Image.fromarray(picture(0)).save(pairs(tmp_path / "p") / "images" / "scene-1.jpg")
    said = r"^images/scene-1.jpg and images/scene-1.png are two images of one .* labels/scene-1.png"
    with pytest.raises(EvaluationError, match=said):
        open_data(tmp_path / "p", label_space="camvid-11")


def test_a_file_of_cityscapes_in_two_cities_is_not_lost(tmp_path: Path) -> None:
    root = cityscapes(tmp_path)
    name = "munster_000001_000019"
    save(root / "leftImg8bit" / "val" / "bonn" / f"{name}_leftImg8bit.png", picture(5))
    save(root / "gtFine" / "val" / "bonn" / f"{name}_gtFine_labelIds.png", ids([7]))
    assert len(read(open_data(root))) == 3


@pytest.mark.parametrize("name", ["b.png", "a_mask.png", "a.jpg"])
def test_label_maps_that_are_all_called_otherwise_are_told_at_once(
    tmp_path: Path, name: str
) -> None:
    save(tmp_path / "images" / "a.png", picture(0))
    save(tmp_path / "masks" / name, ids([0]))
    said = rf"none of the 1 images has .*: images/a.png wants masks/a.png, and beside .* {name}\. G"
    with pytest.raises(EvaluationError, match=said):
        open_data(tmp_path, label_space="camvid-11")
    (tmp_path / "masks" / name).rename(tmp_path / "masks" / "a.txt")
    with pytest.raises(EvaluationError, match=r"images/a.png wants masks/a.png\. Give both the"):
        open_data(tmp_path, label_space="camvid-11")


def test_pictures_of_a_class_are_seen_whatever_their_format(tmp_path: Path) -> None:
    """GTSRB has PPM files, and what is not seen is not scored."""
    for number, ending in enumerate(("png", "gif", "ppm", "pgm", "jfif", "JPEG", "webp")):
        (tmp_path / "cat").mkdir(exist_ok=True)
        form = "JPEG" if ending == "jfif" else None
        Image.fromarray(picture(number)[..., 0]).save(tmp_path / "cat" / f"1.{ending}", form)
    assert [s.image.shape for s in read(open_data(tmp_path))] == [(*SIZE, 3)] * 7


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_a_pipe_or_a_device_is_no_part_of_a_data_set(tmp_path: Path, kind: str) -> None:
    """One waited for ever for somebody to write to it, the other was read until memory ended."""

    def put(path: Path) -> None:
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(kind)

    put(coco(tmp_path / "coco", COCO) / "annotations" / "panoptic_val2017.json")
    with pytest.raises(EvaluationError, match=r"^panoptic_val2017.json .*it is no regular file"):
        open_data(tmp_path / "coco")
    put(pairs(tmp_path / "pairs") / "id2label.json")
    put(tmp_path / "names.json")
    with pytest.raises(EvaluationError, match=r"^names.json .*\(it is no regular file\)\. Give"):
        open_data(tmp_path / "pairs", label_space=str(tmp_path / "names.json"))
    put(tmp_path / "pairs" / "labels" / "scene-0.png")
    with pytest.raises(EvaluationError, match=r"labels/scene-0.png is no regular file\. Get"):
        read(open_data(tmp_path / "pairs", label_space="camvid-11"))
    for name in ("dataset_dict.json", "state.json"):
        (tmp_path / name.partition(".")[0]).mkdir()
        put(tmp_path / name.partition(".")[0] / name)
        with pytest.raises(EvaluationError, match=r"nothing in .* lies as in a data set"):
            open_data(tmp_path / name.partition(".")[0])


# -------------------------------------------------------------------------------------- Office


_OFFICE_31 = """
back_pack bike bike_helmet bookcase bottle calculator desk_chair desk_lamp desktop_computer
file_cabinet headphones keyboard laptop_computer letter_tray mobile_phone monitor mouse mug
paper_notebook pen phone printer projector punchers ring_binder ruler scissors speaker stapler
tape_dispenser trash_can
"""
OFFICE_31 = _OFFICE_31.split()


def office_31(root: Path) -> Path:
    for domain in ("amazon", "dslr", "webcam"):
        for number, name in enumerate(OFFICE_31):
            path = root / domain / "images" / name / "frame_0001.jpg"
            Image.fromarray(picture(number)).save(_made(path))
    return root


def test_office_31_has_domains_as_splits_and_classes_as_folders(tmp_path: Path) -> None:
    office_31(tmp_path)
    with pytest.raises(EvaluationError, match=r"splits amazon, dslr, webcam. Choose one"):
        open_data(tmp_path)
    data = open_data(tmp_path, split="webcam")
    assert (data.task, data.space.labels, data.count) == ("classification", tuple(OFFICE_31), 31)
    assert [s.label for s in read(data)] == list(range(31))
    assert data.with_unknown is False


def test_open_partial_office_leaves_source_classes_out_and_calls_others_unknown(
    tmp_path: Path,
) -> None:
    data = open_data(office_31(tmp_path), split="dslr", open_partial=True)
    assert data.with_unknown
    assert len(data.space) == 20
    names = {s.name.split("/")[2]: s.label for s in read(data)}
    assert len(names) == 21  # 10 shared, 11 of the target alone
    assert names["back_pack"] == 0
    assert "bottle" not in names
    assert all(names[name] == 20 for name in ("pen", "phone", "trash_can", "ruler"))
    with pytest.raises(LwmmError, match="no open-partial split is called 'cityscapes'"):
        open_data(cityscapes(tmp_path / "cs"), open_partial=True)


def test_office_home_is_recognised_however_real_world_is_spelled(tmp_path: Path) -> None:
    for domain in ("Art", "Clipart", "Product", "Real World"):
        for name in ("Alarm_Clock", "Backpack"):
            Image.fromarray(picture(0)).save(_made(tmp_path / domain / name / "00001.jpg"))
    data = open_data(tmp_path, split="Real World")
    assert data.space.labels == ("Alarm_Clock", "Backpack")
    assert [(s.name, s.label) for s in read(data)] == [
        ("Real World/Alarm_Clock/00001.jpg", 0),
        ("Real World/Backpack/00001.jpg", 1),
    ]


# --------------------------------------------------------------------------------- plain folders


def pairs(root: Path, labels: str = "labels") -> Path:
    for number in range(5):
        save(root / "images" / f"scene-{number}.png", picture(number))
        save(root / labels / f"scene-{number}.png", ids([number % 3, 255]))
    return root


def test_images_beside_labels_say_what_labels_mean_in_a_file(tmp_path: Path) -> None:
    dump(pairs(tmp_path, "masks") / "id2label.json", {"0": "road", "1": "car", "2": "sky"})
    data = open_data(tmp_path)
    assert data.space.labels == ("road", "car", "sky")
    assert [int(s.semantic.min()) for s in read(data)] == [0, 1, 2, 0, 1]  # type: ignore[union-attr]
    assert [s.name for s in data.samples(1, 2)] == ["images/scene-1.png", "images/scene-3.png"]


def test_images_and_labels_may_be_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save(tmp_path / "images" / split / "a.png", picture(0))
        save(tmp_path / "annotations" / split / "a.png", ids([2]))
    data = open_data(tmp_path, label_space="camvid-11")
    assert (data.split, data.count, data.space.name) == ("val", 1, "camvid-11")


@pytest.mark.parametrize("labels", ["labels", "masks", "annotations"])
def test_splits_may_have_images_and_labels_each(tmp_path: Path, labels: str) -> None:
    """CamVid, and most of what people lay out themselves."""
    for number, split in enumerate(("train", "val")):
        pairs(tmp_path / split, labels)
        save(tmp_path / split / "images" / "last.png", picture(9))
        save(tmp_path / split / labels / "last.png", ids([number + 5]))
    data = open_data(tmp_path, label_space="camvid-11")
    assert (data.split, data.count, data.task) == ("val", 6, "semantic")
    assert read(data)[0].name == "val/images/last.png"
    assert read(data)[0].semantic.tolist() == ids([6]).tolist()  # type: ignore[union-attr]
    (first, *_) = read(open_data(tmp_path, split="train", label_space="camvid-11"))
    assert first.semantic.tolist() == ids([5]).tolist()  # type: ignore[union-attr]
    assert open_images(tmp_path).count == 6  # its label maps are no images to learn from
    with pytest.raises(EvaluationError, match=r"images and .*which are no classes.*pairs:FOLDER"):
        open_data(f"classes:{tmp_path}")


def test_folders_of_images_and_labels_are_never_classes(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        save(tmp_path / "split" / "val" / name / "a.png", ids([0]))
        save(tmp_path / "odd" / name.replace("images", "imgs") / "val" / "a.png", ids([0]))
    assert open_data(tmp_path / "split", label_space="camvid-11").task == "semantic"
    with pytest.raises(EvaluationError, match=r"put images/ and labels/ side by side.*classes:FOL"):
        open_data(tmp_path / "odd")
    bare = ("plain/images/a.png", "split/val/images/a.png", "deep/images/val/a.png")
    for path in bare:
        save(tmp_path / "bare" / path, picture(0))
        with pytest.raises(EvaluationError, match=r" has images and no labels.*: classes:FOLDER"):
            open_data(tmp_path / "bare" / path.partition("/")[0])


@pytest.mark.parametrize("name", ["masks", "labels", "annotations", "Masks", "gt"])
@pytest.mark.parametrize("split", ["", "val"])
def test_a_class_may_be_called_as_a_folder_of_labels(tmp_path: Path, name: str, split: str) -> None:
    for i, label in enumerate((name, "gloves")):
        save(tmp_path / split / label / "1.png", picture(i))
    data = open_data(tmp_path)
    assert (data.task, data.split or "") == ("classification", split)
    assert data.space.labels == tuple(sorted((name, "gloves")))
    save(tmp_path / split / "images" / "1.png", picture(2))
    with pytest.raises(EvaluationError):  # the labels of a space are missing, or it is nothing
        open_data(tmp_path)


def test_every_picture_of_a_class_counts_however_deep_and_none_that_is_hidden(
    tmp_path: Path,
) -> None:
    for path in ("cat/1.png", "cat/tabby/1.png", "dog/1.png", "dog/.ipynb_checkpoints/1.png"):
        save(tmp_path / path, picture(0))
    found = [(s.name, s.label) for s in read(open_data(tmp_path))]
    assert found == [("cat/1.png", 0), ("cat/tabby/1.png", 0), ("dog/1.png", 1)]


def test_images_are_a_class_where_the_user_says_so(tmp_path: Path) -> None:
    for name in ("images", "drawings"):
        save(tmp_path / name / "1.png", picture(0))
    with pytest.raises(EvaluationError, match=r"no labels beside them.* classes:FOLDER"):
        open_data(tmp_path)
    assert open_data(f"classes:{tmp_path}").space.labels == ("drawings", "images")


def test_folders_of_classes_may_be_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            save(tmp_path / "pets" / split / name / "1.png", picture(0))
            save(tmp_path / "flat" / name / f"{split}.png", picture(0))
    data = open_data(tmp_path / "pets")
    assert (data.split, data.space.labels) == ("test", ("cat", "dog"))
    assert [s.label for s in read(open_data(tmp_path / "flat"))] == [0, 0, 1, 1]


def test_a_list_of_labels_counts_from_zero_whatever_a_table_does(tmp_path: Path) -> None:
    """ADE20K's own files count from 1; a file that lists its names says that these count from 0."""
    ade = label_space("ade20k-150")
    dump(tmp_path / "names.json", list(ade.labels))
    space = read_space(str(tmp_path / "names.json"))
    assert space.ids == tuple(range(150))
    assert (space.colors == ade.colors).all()
    dump(tmp_path / "own.json", [{"id": 1e400, "name": "moor"}, {"id": 2, "name": "fen"}])
    with pytest.raises(EvaluationError, match=r"own.json holds categories without id and name"):
        read_space(str(tmp_path / "own.json"))
    dump(tmp_path / "own.json", {"0": "moor", "1": "fen"})
    assert read_space(str(tmp_path / "own.json")).labels == ("moor", "fen")
    dump(tmp_path / "coco.json", COCO)
    space = read_space(str(tmp_path / "coco.json"))
    assert space.ids == label_space("coco-133").ids
    assert space.things == set(range(80))
    for wrong, said in (([{"id": 1}], "without id and name"), (3, "neither a list")):
        dump(tmp_path / "wrong.json", wrong)
        with pytest.raises(EvaluationError, match=said):
            read_space(str(tmp_path / "wrong.json"))
    for wrong, said in (([1, 2], "texts. Name"), ({"1": "fen"}, "keys 1, not 0 to 0. Number the")):
        dump(tmp_path / "wrong.json", wrong)
        with pytest.raises(EvaluationError, match=rf"^wrong.json: .*{said}"):
            read_space(str(tmp_path / "wrong.json"))
    (tmp_path / "wrong.json").write_text("{")
    with pytest.raises(EvaluationError, match="cannot be read as JSON"):
        read_space(str(tmp_path / "wrong.json"))
    with pytest.raises(EvaluationError, match="cannot be read as JSON"):
        read_space(str(tmp_path / "nowhere.json"))


# ------------------------------------------------------------------------------ laws, and bad input


def test_a_fingerprint_changes_with_the_files_and_not_with_the_place(tmp_path: Path) -> None:
    one = open_data(pairs(tmp_path / "a"), label_space="camvid-11")
    two = open_data(pairs(tmp_path / "b"), label_space="camvid-11")
    assert one.revision == two.revision
    assert one.revision is not None
    assert str(tmp_path) not in one.revision + one.reference
    save(tmp_path / "b" / "images" / "more.png", picture(9))
    save(tmp_path / "b" / "labels" / "more.png", ids([0]))
    assert open_data(tmp_path / "b", label_space="camvid-11").revision != one.revision


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_fingerprint_changes_with_one_pixel_of_the_labels(tmp_path: Path, ending: str) -> None:
    """Kept scores outlived the correction of labels whose files kept their size."""
    found = set()
    for value in (0, 1, 2):
        labels = ids([0, 255], (80, 90))
        labels[1, 1] = value
        save(tmp_path / "images" / "a.png", picture(0, (80, 90)))
        path = tmp_path / "labels" / f"a.{ending}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(labels).save(path, **({"compress_level": 0} if ending == "png" else {}))
        found.add((open_data(tmp_path, label_space="camvid-11").revision, path.stat().st_size))
    assert len(found) == 3
    assert len({size for _, size in found}) == 1


@pytest.mark.parametrize("ending", ["bmp", "jpg", "png", "large.jpg"])
def test_a_fingerprint_changes_with_an_image_that_keeps_its_size(
    tmp_path: Path, ending: str
) -> None:
    """Kept scores outlived it: images were known by their sizes."""
    save(tmp_path / "labels" / "a.png", ids([0, 255], (80, 90)))
    path = tmp_path / "images" / f"a.{ending.rpartition('.')[2]}"
    path.parent.mkdir()
    found = set()
    for value in range(3):
        image = picture(0, (80, 90))
        image[40, 40] = value
        if ending == "png":
            Image.fromarray(image).save(path, compress_level=0)
        elif ending == "bmp":
            Image.fromarray(image).save(path)
        else:  # entropy-coded: what differs in the middle differs behind it, too
            body = bytes([value]) * 4000
            path.write_bytes(b"\xff\xd8" + bytes(3 << 20 if "large" in ending else 4000) + body)
        time = path.stat().st_mtime_ns
        revisions = set()
        for moved in (time, time - 10**9):  # a copy made elsewhere is the same data
            os.utime(path, ns=(moved, moved))
            revisions.add(open_data(tmp_path, label_space="camvid-11").revision)
            assert open_images(tmp_path / "images").revision is not None
            revisions.add(f"images: {open_images(tmp_path / 'images').revision}")
        assert len(revisions) == 2
        found.add((*sorted(map(str, revisions)), path.stat().st_size))
    assert len({revision for revision, _, _ in found}) == 3
    assert len({revision for _, revision, _ in found}) == 3
    assert len({size for _, _, size in found}) == 1


def test_a_table_that_names_files_changes_with_them(tmp_path: Path) -> None:
    """`datasets` gives a table of paths one fingerprint whatever the files hold."""
    import datasets

    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = {name: [str(tmp_path / f"{name}.png")] for name in kinds}
    found = []
    for number in (0, 0, 1):
        save(tmp_path / "image.png", picture(0))
        save(tmp_path / "label.png", ids([number]))
        table = datasets.Dataset.from_dict(rows, features=kinds)
        found.append(open_data(table, label_space="camvid-11").revision)
        assert open_images(table).revision is not None
    assert found[0] == found[1] != found[2]
    far = {name: [f"https://example.org/{'x' * 300}.png"] for name in kinds}
    table = datasets.Dataset.from_dict(far, features=kinds)
    assert open_data(table, label_space="camvid-11").revision not in (None, *found)
    held = datasets.Dataset.from_dict({name: [Image.fromarray(ids([0]))] for name in kinds})
    assert open_data(held, label_space="camvid-11").revision == held._fingerprint


def test_every_layout_is_tested_here() -> None:
    text = Path(__file__).read_text("utf-8").casefold()
    assert [n for n in LAYOUTS if canonical(n.partition("-v")[0]).split()[0] not in text] == []


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda root: (root / "labels" / "scene-1.png").unlink(), "labels/scene-1.png is missing"),
        (
            lambda root: (root / "images" / "scene-1.png").write_bytes(b"no picture"),
            r"^images/scene-1.png cannot be decoded",
        ),
        (
            lambda root: (root / "images" / "scene-1.png").write_bytes(
                (root / "images" / "scene-0.png").read_bytes()[:90]
            ),
            "cannot be decoded",
        ),
        (
            lambda root: save(root / "labels" / "scene-1.png", ids([12])),
            r"the label map of images/scene-1.png holds the ids 12, which camvid-11 does not have",
        ),
        (
            lambda root: save(root / "labels" / "scene-1.png", picture(1)),
            "mode RGB, not one id per pixel",
        ),
    ],
)
def test_what_is_wrong_with_one_image_is_said_in_one_line(
    tmp_path: Path, break_it: Any, said: str
) -> None:
    break_it(pairs(tmp_path))
    with pytest.raises(EvaluationError, match=said) as caught:
        read(open_data(tmp_path, label_space="camvid-11"))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_folders_that_are_nothing_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match=r"nothing in empty lies as in a data set"):
        open_data(tmp_path / "empty")
    picture_file = tmp_path / "bare" / "images" / "a.png"
    save(picture_file, picture(0))
    with pytest.raises(EvaluationError, match=r"bare has images and no labels beside them"):
        open_data(tmp_path / "bare")
    with pytest.raises(EvaluationError, match=r"there is no folder /.*Check its path"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match=r"there is no folder nowhere"):
        open_data(f"gta5:{tmp_path / 'nowhere'}")
    with pytest.raises(EvaluationError, match=r"no layout is called 'gta'. There are cityscapes"):
        open_data(f"gta:{tmp_path}")
    with pytest.raises(EvaluationError, match=r"holds no images where gta5 has them"):
        open_data(f"gta5:{tmp_path}")
    with pytest.raises(EvaluationError, match=r"has no split 'test'. It has: train, val"):
        open_data(cityscapes(tmp_path / "cs"), split="test")
    with pytest.raises(EvaluationError, match=r"no panoptic truth that gta5 knows of"):
        open_data(gta5(tmp_path / "gta"), task="panoptic")
    with pytest.raises(EvaluationError, match=r"31 folders of classes.* has 19 labels"):
        open_data(office_31(tmp_path / "office"), split="amazon", label_space="cityscapes-19")
