"""Other data sets: ADE20K, COCO panoptic, Office-31, Office-Home, and two plain ways to lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.layouts.grammar import Item, Layout, Listing, folders_in, pictures_in
from lwmm_hub.evaluation.layouts.segments import read_document


def _ade20k(root: Path, split: str | None, _task: str | None) -> Listing:
    assert split is not None
    labels = root / "annotations" / split
    images = pictures_in(root / "images" / split)
    return Listing([Item(image, labels / f"{image.stem}.png") for image in images])


ADE20K = Layout(
    "ade20k",
    ("images/training/*.jpg", "annotations/*/*.png"),
    lambda root: folders_in(root / "images"),
    _ade20k,
    space="ade20k-150",
)
ADE20K_VALIDATION = Layout(
    "ade20k-validation",
    ("images/validation/*.jpg", "annotations/validation/*.png"),
    lambda root: folders_in(root / "images"),
    _ade20k,
    space="ade20k-150",
)


def _coco(root: Path, split: str | None, _task: str | None) -> Listing:
    assert split is not None
    document = read_document(root / "annotations" / f"panoptic_{split}.json")
    maps = root / "annotations" / f"panoptic_{split}"
    if not maps.is_dir():
        maps = root / f"panoptic_{split}"
    try:
        names = {image["id"]: str(image["file_name"]) for image in document["images"]}
        items = [
            Item(
                root / split / _plain(names[a["image_id"]]),
                None,
                maps / _plain(str(a["file_name"])),
                list(a["segments_info"]),
            )
            for a in document["annotations"]
        ]
    except (KeyError, TypeError) as error:
        raise EvaluationError(
            f"panoptic_{split}.json is not as COCO writes it (no {error}). Get COCO's panoptic "
            "annotations."
        ) from error
    return Listing(sorted(items, key=lambda item: item.image.name))


def _plain(name: str) -> str:
    """A file's name, which must lead nowhere else."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise EvaluationError(f"the annotations name the file {name!r}: that is no plain name.")
    return name


def _coco_splits(root: Path) -> list[str]:
    found = (root / "annotations").glob("panoptic_*.json")
    return sorted(path.stem.removeprefix("panoptic_") for path in found)


COCO_PANOPTIC = Layout(
    "coco-panoptic",
    ("annotations/panoptic_*.json",),
    _coco_splits,
    _coco,
    space="coco-133",
    tasks=("panoptic", "semantic"),
)


def _by_class(root: Path, split: str | None, _task: str | None) -> Listing:
    folder = root / split if split else root
    if split and (folder / "images").is_dir() and folders_in(folder) == ["images"]:
        folder = folder / "images"  # Office-31 as it is handed out
    classes = folders_in(folder)
    items = [
        Item(image, label=index)
        for index, name in enumerate(classes)
        for image in pictures_in(folder / name)
    ]
    return Listing(items, tuple(classes))


def _domains(names: tuple[str, ...]) -> Any:
    return lambda root: [name for name in names if (root / name).is_dir()]


_OFFICE_31 = ("amazon", "dslr", "webcam")
_OFFICE_HOME = ("Art", "Clipart", "Product", "Real World", "Real_World", "RealWorld")

OFFICE_31 = Layout(
    "office-31",
    ("amazon/*", "dslr/*", "webcam/*"),
    _domains(_OFFICE_31),
    _by_class,
    tasks=("classification",),
    domains=True,
)
OFFICE_HOME = Layout(
    "office-home",
    ("Art/*", "Clipart/*", "Product/*"),
    _domains(_OFFICE_HOME),
    _by_class,
    tasks=("classification",),
    domains=True,
)

_LABELS = ("labels", "annotations", "masks", "labels_ids", "gt")


def _pairs(root: Path, split: str | None, _task: str | None) -> Listing:
    images = root / "images"
    labels = next(root / name for name in _LABELS if (root / name).is_dir())
    if split is not None:
        images, labels = images / split, labels / split
    return Listing([Item(image, labels / f"{image.stem}.png") for image in pictures_in(images)])


PAIRS = Layout(
    "pairs",
    ("images/*",),
    lambda root: folders_in(root / "images"),
    _pairs,
)
CLASSES = Layout("classes", ("*/*",), lambda _: [], _by_class, tasks=("classification",))
