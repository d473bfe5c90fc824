"""How data sets lie on disk: a table of layouts, and a folder as a `DataSet`.

To read another data set, write a `Layout` beside its kin and name it in `LAYOUTS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.label_spaces import LabelSpace, custom_space, label_space
from lwmm_hub.evaluation.layouts.driving import (
    CITYSCAPES,
    FOGGY_CITYSCAPES,
    GTA5,
    MAPILLARY_1,
    MAPILLARY_2,
    SYNTHIA,
)
from lwmm_hub.evaluation.layouts.grammar import Item, Layout
from lwmm_hub.evaluation.layouts.objects import (
    ADE20K,
    ADE20K_VALIDATION,
    CLASSES,
    COCO_PANOPTIC,
    OFFICE_31,
    OFFICE_HOME,
    PAIRS,
)
from lwmm_hub.evaluation.reading import image_of, labels_in, open_picture, panoptic_of
from lwmm_hub.evaluation.values import IGNORED, Panoptic, Sample

# The first whose signs are all there is taken, so the plain ones come last.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        FOGGY_CITYSCAPES,
        CITYSCAPES,
        GTA5,
        SYNTHIA,
        MAPILLARY_2,
        MAPILLARY_1,
        ADE20K,
        ADE20K_VALIDATION,
        COCO_PANOPTIC,
        OFFICE_31,
        OFFICE_HOME,
        PAIRS,
        CLASSES,
    )
}


def open_layout(
    folder: Path, name: str | None, split: str | None, space: LabelSpace | None, task: str | None
) -> DataSet:
    """A folder as a `DataSet`.

    Args:
        folder: the data set's own, as it is handed out.
        name: of the layout; None finds out.
        split: None is `validation`, `val` or `test`.
        space: what its labels are, where the layout does not say or means another one.
        task: None is the usual one of the layout.

    Raises:
        EvaluationError: nothing that is known lies so, the split or a file is missing, or nobody
            knows what the labels mean.
    """
    from lwmm_hub.evaluation.opening import choose_split

    if not folder.is_dir():
        raise EvaluationError(f"there is no folder {folder.name}. Check its path.")
    layout = LAYOUTS[name] if name else recognise(folder)
    task = task or layout.tasks[0]
    if task not in layout.tasks:
        raise EvaluationError(
            f"{folder.name} has no {task} truth that {layout.name} knows of. It has: "
            f"{', '.join(layout.tasks)}."
        )
    splits = layout.splits(folder)
    if not splits and split is not None:
        raise EvaluationError(f"{folder.name} has no splits: leave --split out.")
    chosen = choose_split(splits, split, folder.name) if splits else None
    listing = layout.list(folder, chosen, task)
    if not listing.items:
        where = f" {chosen}" if chosen else ""
        raise EvaluationError(
            f"{folder.name}{where} holds no images where {layout.name} has them. Name another "
            "split, or the layout as LAYOUT:FOLDER."
        )
    files = space or (label_space(layout.file_space or layout.space) if layout.space else None)
    told = space or (label_space(layout.space) if layout.space else None)
    if told is None and listing.labels:
        files = told = custom_space(listing.labels)
    if files is None or told is None:
        raise EvaluationError(
            f"{folder.name} does not say what its labels mean. Name them with --labels, e.g. "
            "cityscapes-19, or a JSON file with the list of their names."
        )
    return DataSet(
        folder.name,
        _fingerprint(folder, listing.items),
        chosen,
        told,
        task,
        len(listing.items),
        _samples(folder, listing.items, layout, files, task),
    )


def recognise(folder: Path) -> Layout:
    """The layout of a folder.

    Raises:
        EvaluationError: it is none that is known.
    """
    for layout in LAYOUTS.values():
        if all(any(True for _ in folder.glob(sign)) for sign in layout.signs):
            if layout is PAIRS and not any((folder / name).is_dir() for name in _LABEL_FOLDERS):
                continue
            if layout is CLASSES and not _only_classes(folder):
                continue
            return layout
    raise EvaluationError(
        f"nothing in {folder.name} lies as in a data set that is known ({', '.join(LAYOUTS)}). "
        "Name its top folder, or put images/ and labels/ side by side."
    )


_LABEL_FOLDERS = ("labels", "annotations", "masks", "labels_ids", "gt")


def _only_classes(folder: Path) -> bool:
    """Whether there are only folders of pictures: one for each class."""
    from lwmm_hub.evaluation.layouts.grammar import folders_in, pictures_in

    names = folders_in(folder)
    return bool(names) and all(pictures_in(folder / name) for name in names)


def _fingerprint(folder: Path, items: Any) -> str:
    """Changes when files are added, removed or replaced by others of another size."""
    seen = hashlib.sha256()
    for item in items:
        for path in (item.image, item.labels, item.panoptic):
            if path is not None:
                size = path.stat().st_size if path.is_file() else -1
                seen.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
    return seen.hexdigest()[:40]


def _samples(
    folder: Path, items: Any, layout: Layout, space: LabelSpace, task: str
) -> Callable[[int, int], Iterator[Sample]]:
    def samples(start: int, step: int) -> Iterator[Sample]:
        for item in items[start::step]:
            name = item.image.relative_to(folder).as_posix()
            yield _sample(item, name, layout, space, task)

    return samples


def _sample(item: Item, name: str, layout: Layout, space: LabelSpace, task: str) -> Sample:
    image = image_of(open_picture(item.image, name), name)
    if item.label is not None:
        return Sample(name, image, label=item.label)
    semantic, panoptic = None, None
    if item.panoptic is not None:
        segments = [
            {**s, "category_id": int(s["category_id"]) - layout.category_offset}
            for s in item.segments
        ]
        panoptic = panoptic_of(open_picture(item.panoptic, name), segments, space, name)
    if item.labels is not None:
        if layout.read_labels is not None:
            semantic = space.indices(layout.read_labels(item.labels, name), name)
        else:
            semantic = labels_in(open_picture(item.labels, name), space, name)
    elif panoptic is not None:
        semantic = _flat(panoptic)
    return Sample(name, image, semantic, panoptic if task == "panoptic" else None)


def _flat(panoptic: Panoptic) -> Any:
    """The label map that a panoptic map holds; 255 where it is void."""
    numbers = np.array([0, *(s.id for s in panoptic.segments)])
    labels = np.array([IGNORED, *(s.category for s in panoptic.segments)], np.uint8)
    order = np.argsort(numbers)
    return labels[order][np.searchsorted(numbers, panoptic.ids, sorter=order)]
