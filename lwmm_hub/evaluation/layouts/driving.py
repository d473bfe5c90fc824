"""Data sets of streets: Cityscapes, GTA5, SYNTHIA, Mapillary, BDD100K, ACDC, KITTI, CamVid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.layouts.grammar import (
    Item,
    Layout,
    Listing,
    folders_in,
    no_splits,
    pictures_in,
)
from lwmm_hub.evaluation.layouts.segments import read_annotations
from lwmm_hub.evaluation.reading import open_picture
from lwmm_hub.evaluation.values import Labels

_List = Callable[[Path, str, str], Listing]
FOG = "0.02"  # the beta of Foggy Cityscapes that is scored: the thickest


def _cityscapes(images: str, ending: str) -> _List:
    """Images of Cityscapes' own folder or of a weather version of it, labels of `gtFine`."""

    def listing(root: Path, split: str, task: str) -> Listing:
        found = [
            (image.name[: -len(ending)], image)
            for image in pictures_in(root / images / split, deep=True)
            if image.name.endswith(ending)
        ]
        truth = root / "gtFine"
        if task == "semantic":
            return Listing(
                [
                    Item(i, truth / split / i.parent.name / f"{name}_gtFine_labelIds.png")
                    for name, i in found
                ]
            )
        maps = truth / f"cityscapes_panoptic_{split}"
        known = read_annotations(truth / f"cityscapes_panoptic_{split}.json")
        items = []
        for name, image in found:
            file = f"{name}_gtFine_panoptic.png"
            labels = truth / split / image.parent.name / f"{name}_gtFine_labelIds.png"
            items.append(Item(image, labels, maps / file, known.of(file)))
        return Listing(items, categories=known.categories)

    return listing


CITYSCAPES = Layout(
    "cityscapes",
    ("leftImg8bit/*", "gtFine/*"),
    lambda root: folders_in(root / "leftImg8bit"),
    _cityscapes("leftImg8bit", "_leftImg8bit.png"),
    space="cityscapes-19",
    file_space="gta-19",
    tasks=("semantic", "panoptic"),
)

FOGGY_CITYSCAPES = Layout(
    "foggy-cityscapes",
    ("leftImg8bit_foggy/*", "gtFine/*"),
    lambda root: folders_in(root / "leftImg8bit_foggy"),
    _cityscapes("leftImg8bit_foggy", f"_leftImg8bit_foggy_beta_{FOG}.png"),
    space="cityscapes-19",
    file_space="gta-19",
    tasks=("semantic", "panoptic"),
)


def _gta5(root: Path, _split: str, _task: str) -> Listing:
    images = pictures_in(root / "images")
    return Listing([Item(image, root / "labels" / f"{image.stem}.png") for image in images])


def _has_cityscapes_colors(root: Path) -> bool:
    """Whether the first label file has GTA5's palette: 7 is the colour of road.

    Images and labels that are numbered in the same way may be of anything.
    """
    from PIL import Image

    first = next(iter(pictures_in(root / "labels")))
    try:
        with Image.open(first) as picture:
            palette = picture.getpalette() or []
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return picture.mode == "P" and palette[21:24] == [128, 64, 128]


GTA5 = Layout(
    "gta5",
    ("images/[0-9][0-9][0-9][0-9][0-9].png", "labels/[0-9][0-9][0-9][0-9][0-9].png"),
    no_splits,
    _gta5,
    space="cityscapes-19",
    file_space="gta-19",
    sure=_has_cityscapes_colors,
)


def _synthia(root: Path, _split: str, _task: str) -> Listing:
    labels = root / "GT" / "LABELS"
    return Listing([Item(image, labels / image.name) for image in pictures_in(root / "RGB")])


def read_synthia(path: Path, name: str) -> Labels:
    """Classes of a SYNTHIA label file: the first of three 16-bit channels; the second is objects.

    PIL gives the upper byte of each 16-bit channel, which is 0 in every such file; told that the
    bytes lie the other way round it gives the lower one.

    Raises:
        EvaluationError: the file is broken, or not of that kind.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            kind = picture.tile[0] if picture.tile else None
            if picture.mode == "RGB" and kind is not None and kind[3] == "RGB;16B":
                picture.tile = [(kind[0], kind[1], kind[2], "RGB;16L")]
                picture.load()
                return np.asarray(picture)[..., 0]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EvaluationError(
            f"{name}: {path.name} cannot be decoded ({type(error).__name__}). Get a sound copy."
        ) from error
    plain = open_picture(path, name)
    values = np.asarray(plain)
    if values.ndim == 3 and plain.mode in ("RGB", "RGBA"):
        return values[..., 0]
    if values.ndim == 2:
        return values
    raise EvaluationError(f"{name}: {path.name} is no label file of SYNTHIA. Get the original.")


SYNTHIA = Layout(
    "synthia",
    ("RGB/*.png", "GT/LABELS/*.png"),
    no_splits,
    _synthia,
    space="synthia-16",
    other_spaces=("synthia-13",),
    read_labels=read_synthia,
)


def _mapillary(version: str, year: int) -> _List:
    def listing(root: Path, split: str, task: str) -> Listing:
        truth = root / split / version
        if not truth.is_dir() and version == "v1.2":
            truth = root / split  # as the first release lies
        images = pictures_in(root / split / "images")
        names = [f"{image.stem}.png" for image in images]
        labels = [truth / "labels" / name for name in names]
        if task == "semantic":
            return Listing([Item(i, own) for i, own in zip(images, labels, strict=True)])
        known = read_annotations(truth / "panoptic" / f"panoptic_{year}.json")
        items = [
            Item(image, own, truth / "panoptic" / name, known.of(name))
            for image, name, own in zip(images, names, labels, strict=True)
        ]
        return Listing(items, categories=known.categories)

    return listing


def _mapillary_splits(root: Path) -> list[str]:
    return [split for split in folders_in(root) if (root / split / "images").is_dir()]


MAPILLARY_2 = Layout(
    "mapillary-v2.0",
    ("*/images/*.jpg", "*/v2.0/labels/*.png"),
    _mapillary_splits,
    _mapillary("v2.0", 2020),
    space="mapillary-124",
    tasks=("semantic", "panoptic"),
)

MAPILLARY_1 = Layout(
    "mapillary-v1.2",
    ("*/images/*.jpg", "*/v1.2/labels/*.png|*/instances/*.png"),
    _mapillary_splits,
    _mapillary("v1.2", 2018),
    space="mapillary-65",
    tasks=("semantic", "panoptic"),
)


def _bdd100k(root: Path, split: str, _task: str) -> Listing:
    """As it is handed out today, or as the first release lies (`seg`)."""
    images = pictures_in(root / "images" / "10k" / split)
    if images:
        masks = root / "labels" / "sem_seg" / "masks" / split
        return Listing([Item(image, masks / f"{image.stem}.png") for image in images])
    masks = root / "seg" / "labels" / split
    images = pictures_in(root / "seg" / "images" / split)
    return Listing([Item(image, masks / f"{image.stem}_train_id.png") for image in images])


BDD100K = Layout(
    "bdd100k",
    ("images/10k/*|seg/images/*", "labels/sem_seg/masks/*|seg/labels/*"),
    lambda root: folders_in(root / "images" / "10k") or folders_in(root / "seg" / "images"),
    _bdd100k,
    space="cityscapes-19",
)

_ANONYMOUS = "_rgb_anon.png"  # images of normal conditions, which have no labels, end otherwise
_SPLITS = ("train", "val", "test")
_CONDITIONS = ("fog", "night", "rain", "snow")


def _below(root: Path, *places: str) -> Path:
    """The first of some folders that is there."""
    return next((root / p for p in places if (root / p).is_dir()), root / places[0])


def _anonymous_images(root: Path) -> Path:
    return _below(root, "rgb_anon", "rgb_anon_trainvaltest/rgb_anon")


def _conditions(root: Path, split: str, _task: str) -> Listing:
    """Images below SPLIT/CONDITION or CONDITION/SPLIT; their labels lie likewise below `gt`."""
    images, truth = _anonymous_images(root), _below(root, "gt", "gt_trainval/gt")
    items = []
    for image in pictures_in(images, deep=True):
        place = image.relative_to(images).parent
        if image.name.endswith(_ANONYMOUS) and set(split.split("/")) <= set(place.parts):
            name = f"{image.name.removesuffix(_ANONYMOUS)}_gt_labelTrainIds.png"
            items.append(Item(image, truth / place / name))
    return Listing(items)


def _condition_splits(root: Path) -> list[str]:
    """`val` of all conditions, and `val/fog` of one.

    Raises:
        EvaluationError: two data sets lie in one another, as they are unpacked.
    """
    images = _anonymous_images(root)
    above = folders_in(images)
    if set(above) & set(_SPLITS) and set(above) & set(_CONDITIONS):
        raise EvaluationError(
            f"{root.resolve().name} holds conditions below splits and splits below conditions: "
            "ACDC and Dark Zurich, it seems. Unpack each into a folder of its own."
        )
    pairs = [(a, b) for a in folders_in(images) for b in folders_in(images / a)]
    found = {(a, b) if a in _SPLITS else (b, a) for a, b in pairs}
    found = {(split, condition) for split, condition in found if split in _SPLITS}
    return sorted({split for split, _ in found} | {"/".join(both) for both in found})


ACDC = Layout(
    "acdc",
    ("rgb_anon/fog/*|rgb_anon/*/fog/*|rgb_anon_trainvaltest/rgb_anon/fog/*",),
    _condition_splits,
    _conditions,
    space="cityscapes-19",
)

DARK_ZURICH = Layout(
    "dark-zurich",
    ("rgb_anon/*/night/*",),
    _condition_splits,
    _conditions,
    space="cityscapes-19",
    sure=lambda root: not ACDC.fits(root),
)


def _kitti(root: Path, split: str, _task: str) -> Listing:
    labels = root / split / "semantic"
    return Listing([Item(i, labels / i.name) for i in pictures_in(root / split / "image_2")])


KITTI = Layout(
    "kitti",
    ("*/image_2/*.png", "*/semantic/*.png"),
    lambda root: [name for name in folders_in(root) if (root / name / "semantic").is_dir()],
    _kitti,
    space="cityscapes-19",
    file_space="gta-19",
)


def _camvid(root: Path, split: str, _task: str) -> Listing:
    labels = root / f"{split}annot"
    return Listing([Item(i, labels / f"{i.stem}.png") for i in pictures_in(root / split)])


CAMVID = Layout(
    "camvid",
    ("train/*|test/*", "trainannot/*.png|testannot/*.png"),
    lambda root: [name for name in folders_in(root) if (root / f"{name}annot").is_dir()],
    _camvid,
    space="camvid-11",
)
