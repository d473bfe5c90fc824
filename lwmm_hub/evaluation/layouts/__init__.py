"""How data sets lie on disk: a table of layouts, and a folder as a `DataSet`.

To read another data set, write a `Layout` beside its kin and name it in `LAYOUTS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.data_sets import DataSet, choose_split
from lwmm_hub.evaluation.fingerprints import mark_of
from lwmm_hub.evaluation.label_spaces import LabelSpace, custom_space, label_space
from lwmm_hub.evaluation.label_tables import TABLES
from lwmm_hub.evaluation.layouts.driving import (
    ACDC,
    BDD100K,
    CAMVID,
    CITYSCAPES,
    DARK_ZURICH,
    FOGGY_CITYSCAPES,
    GTA5,
    KITTI,
    MAPILLARY_1,
    MAPILLARY_2,
    SYNTHIA,
)
from lwmm_hub.evaluation.layouts.grammar import Item, Layout, Listing, pictures_in
from lwmm_hub.evaluation.layouts.objects import (
    ADE20K,
    CLASSES,
    COCO_PANOPTIC,
    LOVEDA,
    OFFICE_31,
    OFFICE_HOME,
    PAIRS,
    PASCAL_VOC,
)
from lwmm_hub.evaluation.layouts.segments import in_space
from lwmm_hub.evaluation.office import open_partial
from lwmm_hub.evaluation.reading import flat, image_of, labels_in, open_picture, panoptic_of
from lwmm_hub.evaluation.values import Sample

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        CITYSCAPES,
        FOGGY_CITYSCAPES,
        GTA5,
        SYNTHIA,
        MAPILLARY_1,
        MAPILLARY_2,
        BDD100K,
        ACDC,
        DARK_ZURICH,
        KITTI,
        CAMVID,
        ADE20K,
        COCO_PANOPTIC,
        PASCAL_VOC,
        LOVEDA,
        OFFICE_31,
        OFFICE_HOME,
        PAIRS,
        CLASSES,
    )
}


@dataclass(frozen=True)
class _Truth:
    """How the files of a data set are read.

    Attributes:
        task: what is read.
        files: the space whose ids label files hold.
        categories: category id of a segment -> label index.
        layout: says how a label file is read.
    """

    task: str
    files: LabelSpace
    categories: Mapping[int, int]
    layout: Layout


def open_layout(
    folder: Path,
    name: str | None = None,
    split: str | None = None,
    space: LabelSpace | None = None,
    task: str | None = None,
    *,
    unknown: bool = False,
) -> DataSet:
    """A folder as a `DataSet`.

    Args:
        folder: the data set's own, as it is handed out.
        name: of the layout; None finds out.
        split: None is `validation`, `val` or `test`.
        space: what its labels are, where the layout does not say or means another one.
        task: None is the usual one of the layout.
        unknown: the open-partial split of Office: classes that no model was trained on are to be
            called unknown, and those of the source alone are left out.

    Raises:
        EvaluationError: nothing that is known lies so, the split or a file is missing, or nobody
            knows what the labels mean.
    """
    if not folder.is_dir():
        raise EvaluationError(f"there is no folder {folder.name}. Check its path.")
    layout = LAYOUTS[name] if name else recognise(folder)
    shown = folder.resolve().name
    task = task or layout.tasks[0]
    if task not in layout.tasks:
        raise EvaluationError(
            f"{shown} has no {task} truth that {layout.name} knows of. It has: "
            f"{', '.join(layout.tasks)}."
        )
    splits = layout.splits(folder)
    if not splits and split is not None:
        raise EvaluationError(f"{shown} has no splits: leave --split out.")
    chosen = choose_split(splits, split, shown) if splits else ""
    listing = layout.list(folder, chosen, task)
    if not listing.items:
        raise EvaluationError(
            f"{' '.join([shown, chosen]).strip()} holds no images where {layout.name} has them. "
            "Name another split, or the layout as LAYOUT:FOLDER."
        )
    _check_labels(folder, listing.items)
    if unknown:
        listing = _open_partial(listing, layout)
    told, truth = _spaces(listing, layout, space, task, shown)
    return DataSet(
        shown,
        _fingerprint(folder, listing.items),
        chosen or None,
        told,
        task,
        len(listing.items),
        _samples(folder, listing.items, truth),
        unknown,
        (task, layout.name, truth.files.name),
        tuple(item.image for item in listing.items),
    )


def _spaces(
    listing: Listing, layout: Layout, space: LabelSpace | None, task: str, name: str
) -> tuple[LabelSpace, _Truth]:
    """(what the labels are, how the files are read)."""
    own = label_space(layout.space) if layout.space else None
    if listing.labels and space is not None and len(listing.labels) != len(space):
        raise EvaluationError(
            f"{name} has {len(listing.labels)} folders of classes, and {space.name} has "
            f"{len(space)} labels. Leave --labels out: the folders have names."
        )
    if layout.file_space and space is not None and space.name == layout.space:
        # read as that space's own ids, 7 would be no road but a traffic sign
        raise EvaluationError(
            f"the labels of {layout.name} are {space.name} by themselves, in files of other ids. "
            "Leave --labels (or id2label.json) out; files that hold the ids of that space are read "
            "as pairs:FOLDER."
        )
    if own and not layout.file_space and space is not None and space.name in _foreign(layout):
        # train ids read as ids: 7, a traffic sign, as a road
        raise EvaluationError(
            f"the label files of {layout.name} hold {layout.space}, not {space.name}. Leave "
            "--labels (or id2label.json) out; files of other ids are read as pairs:FOLDER."
        )
    told = space or own or (custom_space(listing.labels) if listing.labels else None)
    categories: dict[int, int] = {}
    if listing.categories:
        told, categories = in_space(listing.categories, told, name)
    if told is None:
        raise EvaluationError(
            f"{name} does not say what its labels mean. Name them with --labels, e.g. "
            "cityscapes-19, or a JSON file with the list of their names."
        )
    files = label_space(layout.file_space) if layout.file_space and space is None else told
    return told, _Truth(task, files, categories, layout)


def _foreign(layout: Layout) -> set[str]:
    """The spaces of tables that a layout's files do not hold."""
    return set(TABLES) - {layout.space, *layout.other_spaces}


def _check_labels(folder: Path, items: Sequence[Item]) -> None:
    """Refuse, before any model is loaded, label maps of two images and images without any.

    Raises:
        EvaluationError: two images have one label map, or none has one that is there.
    """
    owners: dict[Path, Path] = {}
    for item in items:
        truth = item.panoptic or item.labels
        if truth is None:
            return
        if truth in owners:
            one, two, both = (
                path.relative_to(folder).as_posix() for path in (owners[truth], item.image, truth)
            )
            raise EvaluationError(
                f"{one} and {two} are two images of one label map, {both}. Take one of them away: "
                "it would count twice."
            )
        owners[truth] = item.image
    if any(truth.exists() for truth in owners):
        return
    wanted, image = (path.relative_to(folder).as_posix() for path in next(iter(owners.items())))
    there = next((p.name for p in pictures_in(next(iter(owners)).parent)), None)
    raise EvaluationError(
        f"none of the {len(owners)} images has a label map of its own name: {image} wants {wanted}"
        f"{f', and beside that lies {there}' if there else ''}. Give both the same name; label "
        "maps are PNG files."
    )


def layout_of(folder: Path) -> Layout | None:
    """The layout of a folder; None where it lies like no data set that is known.

    Raises:
        EvaluationError: several data sets lie there.
    """
    for plain in (False, True):
        found = [x for x in LAYOUTS.values() if x.plain == plain and x.fits(folder)]
        if len(found) == 1:
            return found[0]
        if found:
            choices = " or ".join(f"{layout.name}:FOLDER" for layout in found)
            raise EvaluationError(
                f"several data sets lie in {folder.resolve().name}. Say which: {choices}."
            )
    return None


def recognise(folder: Path) -> Layout:
    """The layout of a folder.

    Raises:
        EvaluationError: it is none that is known, or several.
    """
    if (layout := layout_of(folder)) is not None:
        return layout
    alone = [folder / "images", *folder.glob("*/images")]
    if any(pictures_in(images, deep=True) for images in alone):
        raise EvaluationError(
            f"{folder.resolve().name} has images and no labels beside them: there is nothing to "
            "compare with. Put label maps of the same names into its folder labels. Where its "
            "folders are classes, and images is one of them, say so: classes:FOLDER."
        )
    raise EvaluationError(
        f"nothing in {folder.resolve().name} lies as in a data set that is known "
        f"({', '.join(LAYOUTS)}). Name its top folder, put images/ and labels/ side by side, or, "
        "where its folders are classes, name it as classes:FOLDER."
    )


def _open_partial(listing: Listing, layout: Layout) -> Listing:
    """The images of the target in the labels of a model that was trained on the source."""
    split = open_partial(layout.name)
    truth = [split.truth(label) for label in listing.labels]
    items = [
        replace(item, label=truth[item.label])
        for item in listing.items
        if item.label is not None and truth[item.label] is not None
    ]
    return Listing(items, split.known)


def _fingerprint(folder: Path, items: Sequence[Item]) -> str:
    """Changes with the content of images and labels, and not with the place."""
    seen = hashlib.sha256()
    for item in items:
        for path in (item.image, item.labels, item.panoptic):
            if path is not None:
                seen.update(mark_of(path, path.relative_to(folder).as_posix()))
        seen.update(repr((item.label, item.segments)).encode())
    return seen.hexdigest()[:40]


def _samples(
    folder: Path, items: Sequence[Item], truth: _Truth
) -> Callable[[int, int], Iterator[Sample]]:
    def samples(start: int, step: int) -> Iterator[Sample]:
        for item in items[start::step]:
            yield _sample(item, item.image.relative_to(folder).as_posix(), truth)

    return samples


def _sample(item: Item, name: str, truth: _Truth) -> Sample:
    image = image_of(open_picture(item.image, name), name)
    if item.label is not None:
        return Sample(name, image, label=item.label)
    semantic = panoptic = None
    if item.panoptic is not None:
        picture = open_picture(item.panoptic, name)
        panoptic = panoptic_of(picture, item.segments, truth.categories, name)
    if item.labels is None:
        semantic = flat(panoptic, truth.files.ignored) if panoptic is not None else None
    elif truth.layout.read_labels is not None:
        ids = truth.layout.read_labels(item.labels, name)
        semantic = truth.files.indices(ids, f"the label map of {name}")
    else:
        semantic = labels_in(open_picture(item.labels, name), truth.files, name)
    return Sample(name, image, semantic, panoptic if truth.task == "panoptic" else None)
