"""What a layout is: how a data set lies on disk, as a table row and a function that lists it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwmm_hub.evaluation.panoptic import Category
from lwmm_hub.evaluation.values import Labels


@dataclass(frozen=True)
class Item:
    """One image of a data set on disk.

    Attributes:
        image: its file.
        labels: file of its label map.
        panoptic: file of its panoptic map.
        segments: what the panoptic map's ids are.
        label: index of its class.
    """

    image: Path
    labels: Path | None = None
    panoptic: Path | None = None
    segments: Sequence[Mapping[str, Any]] = ()
    label: int | None = None


@dataclass(frozen=True)
class Listing:
    """The images of one split.

    Attributes:
        items: in the order of their names.
        labels: names of the classes, where the folders say them (classification).
        categories: what the segments' categories are, where panoptic maps are read.
    """

    items: Sequence[Item]
    labels: tuple[str, ...] = ()
    categories: tuple[Category, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk.

    Attributes:
        name: as in `LAYOUT:FOLDER`.
        signs: glob patterns below the folder, alternatives separated by "|"; each must find
            something.
        splits: folder -> names of its splits; empty where it is not split.
        list: (folder, split or "", task) -> its images.
        space: what its labels are called; "" where the folder or the user says.
        file_space: the space whose ids its label files hold, if that is another; classes in the
            same order as in `space`.
        other_spaces: what else those ids may be read as, where the user says so.
        tasks: what it has truth for, the usual one first.
        read_labels: how a label file is read where it is no ordinary picture.
        sure: what more than `signs` has to be true of the folder.
        plain: whether it is a way to lie that is tried when no data set is recognised.
    """

    name: str
    signs: tuple[str, ...]
    splits: Callable[[Path], list[str]]
    list: Callable[[Path, str, str], Listing]
    space: str = ""
    file_space: str = ""
    other_spaces: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("semantic",)
    read_labels: Callable[[Path, str], Labels] | None = None
    sure: Callable[[Path], bool] | None = None
    plain: bool = False

    def fits(self, folder: Path) -> bool:
        """Whether a folder lies so."""
        return all(
            any(any(True for _ in folder.glob(pattern)) for pattern in sign.split("|"))
            for sign in self.signs
        ) and (self.sure is None or self.sure(folder))


def no_splits(_: Path) -> list[str]:
    """The splits of a data set that has none."""
    return []


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, without hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] not in "._")


PICTURES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm",
)  # fmt: skip


def pictures_in(folder: Path, deep: bool = False) -> list[Path]:
    """Picture files in a folder (and below it), by name, without hidden files and folders."""
    if not folder.is_dir():
        return []
    found = folder.rglob("*") if deep else folder.iterdir()
    pictures = [path for path in found if path.suffix.lower() in PICTURES]
    return sorted(
        path
        for path in pictures
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
