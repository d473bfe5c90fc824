"""Data sets of streets: Cityscapes, Foggy Cityscapes, GTA5, SYNTHIA, Mapillary Vistas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.layouts.grammar import (
    Item,
    Layout,
    Listing,
    folders_in,
    pictures_in,
)
from lwmm_hub.evaluation.layouts.segments import read_segments
from lwmm_hub.evaluation.reading import open_picture
from lwmm_hub.evaluation.values import Labels

FOG = "0.02"  # the beta of Foggy Cityscapes that is scored: the thickest


def _cityscapes(images: str, ending: str) -> Any:
    """Images of Cityscapes' own folder or of a weather version of it, labels of `gtFine`."""

    def listing(root: Path, split: str | None, task: str | None) -> Listing:
        assert split is not None
        segments: dict[str, Any] = {}
        maps = root / "gtFine" / f"cityscapes_panoptic_{split}"
        if task == "panoptic":
            segments = read_segments(maps.with_suffix(".json"))
        items = []
        for image in pictures_in(root / images / split, deep=True):
            if not image.name.endswith(ending):
                continue
            name = image.name[: -len(ending)]
            fine = root / "gtFine" / split / image.parent.name
            panoptic = maps / f"{name}_gtFine_panoptic.png" if task == "panoptic" else None
            items.append(
                Item(
                    image,
                    fine / f"{name}_gtFine_labelIds.png",
                    panoptic,
                    _segments_of(segments, f"{name}_gtFine_panoptic.png", task),
                )
            )
        return Listing(items)

    return listing


def _segments_of(segments: dict[str, Any], name: str, task: str | None) -> list[dict[str, Any]]:
    if task != "panoptic":
        return []
    if name not in segments:
        raise EvaluationError(
            f"{name} is not in the panoptic JSON. Get maps and JSON from one release."
        )
    found: list[dict[str, Any]] = segments[name]
    return found


def _splits(folder: str) -> Any:
    return lambda root: folders_in(root / folder)


CITYSCAPES = Layout(
    "cityscapes",
    ("leftImg8bit/*", "gtFine/*"),
    _splits("leftImg8bit"),
    _cityscapes("leftImg8bit", "_leftImg8bit.png"),
    space="cityscapes-19",
    file_space="gta-19",
    tasks=("semantic", "panoptic"),
)

FOGGY_CITYSCAPES = Layout(
    "foggy-cityscapes",
    ("leftImg8bit_foggy/*", "gtFine/*"),
    _splits("leftImg8bit_foggy"),
    _cityscapes("leftImg8bit_foggy", f"_leftImg8bit_foggy_beta_{FOG}.png"),
    space="cityscapes-19",
    file_space="gta-19",
    tasks=("semantic", "panoptic"),
)


def _gta5(root: Path, _split: str | None, _task: str | None) -> Listing:
    images = pictures_in(root / "images")
    return Listing([Item(image, root / "labels" / f"{image.stem}.png") for image in images])


GTA5 = Layout(
    "gta5",
    ("images/[0-9][0-9][0-9][0-9][0-9].png", "labels/[0-9][0-9][0-9][0-9][0-9].png"),
    lambda _: [],
    _gta5,
    space="cityscapes-19",
    file_space="gta-19",
)


def _synthia(root: Path, _split: str | None, _task: str | None) -> Listing:
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
    except (OSError, ValueError, SyntaxError) as error:
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
    lambda _: [],
    _synthia,
    space="synthia-16",
    read_labels=read_synthia,
)


def _mapillary(version: str, year: int) -> Any:
    def listing(root: Path, split: str | None, task: str | None) -> Listing:
        assert split is not None
        truth = root / split / version
        if not truth.is_dir() and version == "v1.2":
            truth = root / split  # as the first release lies
        segments: dict[str, Any] = {}
        if task == "panoptic":
            segments = read_segments(truth / "panoptic" / f"panoptic_{year}.json")
        items = []
        for image in pictures_in(root / split / "images"):
            name = f"{image.stem}.png"
            panoptic = truth / "panoptic" / name if task == "panoptic" else None
            found = _segments_of(segments, name, task)
            items.append(Item(image, truth / "labels" / name, panoptic, found))
        return Listing(items)

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
    category_offset=1,
)

MAPILLARY_1 = Layout(
    "mapillary-v1.2",
    ("*/images/*.jpg", "*/instances/*.png"),
    _mapillary_splits,
    _mapillary("v1.2", 2018),
    space="mapillary-65",
    tasks=("semantic", "panoptic"),
    category_offset=1,
)
