"""Rows of a `datasets` table -> samples: which column is what, and how each is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.label_spaces import LabelSpace, custom_space, label_space
from lwmm_hub.evaluation.label_spaces import space_of_labels as known_space
from lwmm_hub.evaluation.reading import image_of, labels_in, panoptic_of
from lwmm_hub.evaluation.values import Boxes, Sample

# what columns are usually called, the likeliest first
IMAGES = ("image", "img", "pixel_values", "picture")
MAPS = (
    "label",
    "labels",
    "annotation",
    "annotations",
    "semantic",
    "semantic_segmentation",
    "segmentation_mask",
    "segmentation",
    "label_map",
    "mask",
    "gt",
)
PANOPTIC = ("panoptic", "panoptic_map", "panoptic_segmentation", "label", "annotation")
SEGMENTS = ("segments_info", "segments")
OBJECTS = ("objects", "annotations")
# data sets of the Hub that do not say what their labels are
KNOWN = {
    "zhoubolei/scene_parse_150": "ade20k-150",
    "scene_parse_150": "ade20k-150",
    "merve/scene_parse_150": "ade20k-150",
}


def from_table(
    table: Any,
    reference: str,
    revision: str | None,
    split: str | None,
    space: LabelSpace | None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    task: str | None = None,
) -> DataSet:
    """A `datasets` table as a `DataSet`; its columns are recognised by kind and name.

    Raises:
        EvaluationError: a column is missing, several could be meant, or nobody knows what the
            labels mean.
    """
    features = table.features
    if features is None:
        raise EvaluationError(
            f"{reference} does not say what its columns are. Load it without streaming."
        )
    pictures = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    image = choose_column(image_column, IMAGES, pictures, features, "image", reference)
    others = [name for name in pictures if name != image]
    task = task or _task_of(features, others, label_column)
    if task == "classification":
        classes = [n for n, kind in features.items() if type(kind).__name__ == "ClassLabel"]
        label = choose_column(label_column, MAPS, classes or list(features), features, "label", reference)
        read, names = _classification(label), getattr(features[label], "names", None)
    elif task == "detection":
        found = [n for n in OBJECTS if n in features]
        label = choose_column(label_column, OBJECTS, found, features, "label", reference)
        read, names = _detection(label, features[label])
    elif task == "panoptic":
        label = choose_column(label_column, PANOPTIC, others, features, "label", reference)
        infos = [n for n in SEGMENTS if n in features]
        if not infos:
            raise EvaluationError(
                f"{reference} has no column {' or '.join(SEGMENTS)} that says what the segments "
                "are. Evaluate it with --task semantic."
            )
        semantic = next((n for n in MAPS if n in others and n != label), None)
        read, names = _panoptic(label, infos[0], semantic), None
    else:
        label = choose_column(label_column, MAPS, others, features, "label", reference)
        read, names = _semantic(label), None
    space = space or _space_of(names, reference)
    return DataSet(
        reference,
        revision or getattr(table, "_fingerprint", None),
        split,
        space,
        task,
        len(table) if hasattr(table, "__len__") else None,
        _samples(table, image, read, space, reference),
    )


_Read = Callable[[Mapping[str, Any], LabelSpace, str], dict[str, Any]]


def _samples(
    table: Any, image: str, read: _Read, space: LabelSpace, reference: str
) -> Callable[[int, int], Iterator[Sample]]:
    def samples(start: int, step: int) -> Iterator[Sample]:
        for number, row in _rows(table, start, step, reference):
            name = f"{reference}, row {number}"
            yield Sample(name, image_of(row[image], name), **read(row, space, name))

    return samples


def _rows(table: Any, start: int, step: int, reference: str) -> Iterator[tuple[int, Any]]:
    """Rows with their numbers; a picture that cannot be decoded is named."""
    if hasattr(table, "__getitem__") and hasattr(table, "__len__"):
        for number in range(start, len(table), step):
            yield number, row_of(table, number, reference)
        return
    for number, row in enumerate(table.skip(start) if start else table):
        if number % step == 0:
            yield start + number, row


def row_of(table: Any, number: int, reference: str) -> Any:
    """One row of a table.

    Raises:
        EvaluationError: it cannot be decoded.
    """
    try:
        return table[number]
    except (OSError, ValueError, SyntaxError) as error:  # PIL says SyntaxError of a PNG
        raise EvaluationError(
            f"{reference}, row {number} cannot be decoded ({error}). Leave it out of the data set, "
            "or evaluate with --limit."
        ) from error


def choose_column(
    wanted: str | None,
    usual: tuple[str, ...],
    possible: list[str],
    features: Mapping[str, Any],
    what: str,
    reference: str,
) -> str:
    """The column that is asked for, the one that can be meant, or the one called as usual."""
    if wanted is not None:
        if wanted not in features:
            raise EvaluationError(
                f"{reference} has no column {wanted!r}. It has: {', '.join(features)}."
            )
        return wanted
    named = [name for name in usual if name in possible]
    if named or len(possible) == 1:
        return (named or possible)[0]
    if not possible:
        raise EvaluationError(
            f"{reference} has no {what}s: its columns are {', '.join(features)}. Choose a data set "
            f"with {what}s, or name the column with --{what}-column."
        )
    raise EvaluationError(
        f"{reference} has several columns that may hold the {what}s: {', '.join(possible)}. Choose "
        f"one with --{what}-column."
    )


def _task_of(features: Mapping[str, Any], pictures: list[str], label: str | None) -> str:
    """What a table is made for, by the kinds of its columns."""
    if any(name in features for name in SEGMENTS) and pictures:
        return "panoptic"
    if pictures and (label is None or label in pictures):
        return "semantic"
    if any(type(kind).__name__ == "ClassLabel" for kind in features.values()):
        return "classification"
    return "detection" if any(name in features for name in OBJECTS) else "semantic"


def _space_of(names: list[str] | None, reference: str) -> LabelSpace:
    if names:
        return known_space(names) or custom_space(names)
    if reference in KNOWN:
        return label_space(KNOWN[reference])
    raise EvaluationError(
        f"{reference} does not say what its labels mean. Name them with --labels, e.g. "
        "cityscapes-19, or a JSON file with the list of their names."
    )


def _semantic(column: str) -> _Read:
    def read(row: Mapping[str, Any], space: LabelSpace, name: str) -> dict[str, Any]:
        return {"semantic": labels_in(row[column], space, name)}

    return read


def _panoptic(column: str, segments: str, semantic: str | None) -> _Read:
    def read(row: Mapping[str, Any], space: LabelSpace, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"panoptic": panoptic_of(row[column], row[segments], space, name)}
        if semantic is not None:
            found["semantic"] = labels_in(row[semantic], space, name)
        return found

    return read


def _classification(column: str) -> _Read:
    def read(row: Mapping[str, Any], space: LabelSpace, name: str) -> dict[str, Any]:
        label = row[column]
        if not isinstance(label, int) or not 0 <= label < len(space):
            raise EvaluationError(
                f"{name} has the label {label!r}, which is none of the {len(space)} classes. "
                "Choose a split with labels."
            )
        return {"label": label}

    return read


def _detection(column: str, feature: Any) -> tuple[_Read, list[str] | None]:
    """Objects as COCO has them: `bbox` is left, top, width, height."""
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) else inner
    category = next(n for n in ("category", "category_id", "label") if n in inner)
    kind = inner[category]
    names = getattr(getattr(kind, "feature", kind), "names", None)

    def read(row: Mapping[str, Any], space: LabelSpace, name: str) -> dict[str, Any]:
        objects = row[column]
        if isinstance(objects, list):  # one mapping per object
            objects = {k: [o[k] for o in objects] for k in ("bbox", category)}
        corners = np.array(objects["bbox"], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        return {"boxes": Boxes(corners, np.array(objects[category], np.int64))}

    return read, names
