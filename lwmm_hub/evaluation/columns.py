"""Rows of a `datasets` table -> samples: which column is what, and how each is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lwmm_hub.errors import EvaluationError, LwmmError
from lwmm_hub.evaluation.coco_entries import area_of, box_of, shown, whole_number, yes_or_no
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.fingerprints import fingerprint_of
from lwmm_hub.evaluation.label_spaces import LabelSpace, counted_space, label_space
from lwmm_hub.evaluation.reading import (
    categories_in,
    decode_picture,
    flat,
    image_of,
    labels_in,
    panoptic_of,
)
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
CATEGORIES = ("category", "category_id", "label")
# data sets of the Hub that do not say what their labels are
KNOWN = {
    "zhoubolei/scene_parse_150": "ade20k-150",
    "scene_parse_150": "ade20k-150",
    "merve/scene_parse_150": "ade20k-150",
}


_Reading = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Columns:
    """What of a table is looked at.

    Attributes:
        task: what its labels are; None is what they can be.
        image: its column; None is found.
        label: its column; None is found.
    """

    task: str | None = None
    image: str | None = None
    label: str | None = None


def from_table(
    table: Any,
    reference: str,
    revision: str | None,
    split: str | None,
    space: LabelSpace | None,
    columns: Columns,
    reading: _Reading | None = None,
) -> DataSet:
    """A `datasets` table as a `DataSet`; its columns are recognised by kind and name.

    Args:
        table: a `datasets.Dataset`, or an `IterableDataset`.
        reference: what to call it.
        revision: its commit; None takes `fingerprint_of` it.
        split: which one it is.
        space: what its labels are; None asks the table.
        columns: what of it is looked at.
        reading: says what went wrong where rows come over the network.

    Raises:
        EvaluationError: a column is missing, several could be meant, or nobody knows what the
            labels mean.
    """
    features = table.features
    if features is None:
        raise EvaluationError(
            f"{reference} does not say what its columns are. Load it without --streaming."
        )
    pictures = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    shown = [name for name in pictures if name != columns.label]
    image = choose_column(columns.image, IMAGES, shown, features, "image", reference)
    others = [name for name in pictures if name != image]
    task = columns.task or _task_of(features, others, columns.label)
    read, names, labels = _READERS[task](features, others, columns.label, reference)
    space = space or _space_of(names, reference)
    return DataSet(
        reference,
        revision or fingerprint_of(table),
        split,
        space,
        task,
        len(table) if hasattr(table, "__len__") else None,
        _samples(_undecoded(table, others), image, read, space, reference, reading),
        columns=(task, image, *labels),
    )


def _undecoded(table: Any, columns: list[str]) -> Any:
    """A table that hands out the files of some columns of pictures, for `_decoded`.

    `datasets` decodes them, and then nobody can tell 1 of 2 bits from 85 of 8.
    """
    from datasets import Image

    settings = getattr(table, "format", None) or {}
    if settings.get("type") is not None or not hasattr(table, "cast_column"):
        return table  # a format of the user's own decides what there is
    for column in columns:
        kind = table.features[column]
        if kind.decode and kind.mode is None:
            table = table.cast_column(column, Image(decode=False))
    return table


def _decoded(row: Mapping[str, Any], features: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A row of `_undecoded` with its pictures decoded as `datasets` does it."""
    from datasets import Image
    from PIL import ImageOps

    found = dict(row)
    for column, kind in features.items():
        stored = row.get(column)
        if not isinstance(kind, Image) or not isinstance(stored, Mapping):
            continue
        data, path = stored.get("bytes"), stored.get("path")
        if data is None and path is not None and Path(path).is_file():
            data = Path(path).read_bytes()
        if data is None:  # somewhere else, which `datasets` knows how to open
            found[column] = Image().decode_example(dict(stored))
        else:
            found[column] = ImageOps.exif_transpose(decode_picture(BytesIO(data), name))
    return found


_Read = Callable[[Mapping[str, Any], LabelSpace, str], dict[str, Any]]
_Found = tuple[_Read, list[str] | None, tuple[str, ...]]  # how, class names, columns of labels


def _samples(
    table: Any,
    image: str,
    read: _Read,
    space: LabelSpace,
    reference: str,
    reading: _Reading | None,
) -> Callable[[int, int], Iterator[Sample]]:
    def samples(start: int, step: int) -> Iterator[Sample]:
        for number, row in _rows(table, start, step, reference, reading or nullcontext):
            name = f"{reference}, row {number}"
            yield Sample(name, image_of(row[image], name), **read(row, space, name))

    return samples


def _rows(
    table: Any, start: int, step: int, reference: str, reading: _Reading
) -> Iterator[tuple[int, Any]]:
    """Rows with their numbers; a picture that cannot be decoded is named."""
    if hasattr(table, "__getitem__") and hasattr(table, "__len__"):
        for number in range(start, len(table), step):
            with decoding_row(reference, number):
                row = _decoded(table[number], table.features, f"{reference}, row {number}")
            yield number, row
        return
    stream = iter(table.skip(start) if start else table)
    for number in itertools.count(start):
        with reading(), decoding_row(reference, number):
            stored: Any = next(stream, None)
            if stored is None:
                return
            row = _decoded(stored, table.features, f"{reference}, row {number}")
        if (number - start) % step == 0:
            yield number, row


@contextmanager
def decoding_row(reference: str, number: int) -> Iterator[None]:
    """Name the row whose picture is broken.

    Raises:
        EvaluationError: instead of what PIL says; not instead of what the network says.
    """
    from PIL.Image import DecompressionBombError

    try:
        yield
    except (  # PIL says SyntaxError of a broken PNG
        OSError,
        ValueError,
        SyntaxError,
        DecompressionBombError,
    ) as error:
        own = type(error).__module__.startswith(("builtins", "PIL"))
        if not own or getattr(error, "errno", None) is not None or isinstance(error, LwmmError):
            raise
        raise EvaluationError(
            f"{reference}, row {number} cannot be decoded ({_first(error)}). Leave it out of the "
            "data set, or evaluate the rows before it with --limit."
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
    if any(name in features for name in OBJECTS):
        return "detection"
    return "classification" if _numbers(features) and not pictures else "semantic"


def _space_of(names: list[str] | None, reference: str) -> LabelSpace:
    if names:
        return counted_space(names)
    if reference in KNOWN:
        return label_space(KNOWN[reference])
    raise EvaluationError(
        f"{reference} does not say what its labels mean. Name them with --labels, e.g. "
        "cityscapes-19, or a JSON file with the list of their names."
    )


def _semantic(
    features: Mapping[str, Any], pictures: list[str], wanted: str | None, reference: str
) -> _Found:
    column = choose_column(wanted, MAPS, pictures, features, "label", reference)

    def read(row: Mapping[str, Any], space: LabelSpace, name: str) -> dict[str, Any]:
        return {"semantic": labels_in(row[column], space, name)}

    return read, None, (column,)


def _panoptic(
    features: Mapping[str, Any], pictures: list[str], wanted: str | None, reference: str
) -> _Found:
    column = choose_column(wanted, PANOPTIC, pictures, features, "label", reference)
    segments = next((name for name in SEGMENTS if name in features), None)
    if segments is None:
        raise EvaluationError(
            f"{reference} has no column {' or '.join(SEGMENTS)} that says what the segments are. "
            "Evaluate it with --task semantic."
        )
    semantic = next((name for name in MAPS if name in pictures and name != column), None)

    def read(row: Mapping[str, Any], space: LabelSpace, name: str) -> dict[str, Any]:
        panoptic = panoptic_of(row[column], _rows_of(row[segments]), categories_in(space), name)
        if semantic is None:
            return {"panoptic": panoptic, "semantic": flat(panoptic, space.ignored)}
        return {"panoptic": panoptic, "semantic": labels_in(row[semantic], space, name)}

    return read, None, (column, segments, semantic or "")


def _rows_of(table: Any) -> list[dict[str, Any]]:
    """One mapping for each thing of a row; `datasets` may hand out one list for each field."""
    if isinstance(table, Mapping):
        columns = zip(*table.values(), strict=True)
        return [dict(zip(table, values, strict=True)) for values in columns]
    return [dict(entry) for entry in table]


def _numbers(features: Mapping[str, Any]) -> list[str]:
    """Columns of whole numbers that are called as labels are."""
    return [n for n in MAPS if str(getattr(features.get(n), "dtype", "")).startswith("int")]


def _classification(
    features: Mapping[str, Any], _pictures: list[str], wanted: str | None, reference: str
) -> _Found:
    classes = [n for n, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    possible = classes or _numbers(features)
    column = choose_column(wanted, MAPS, possible, features, "label", reference)

    def read(row: Mapping[str, Any], space: LabelSpace, name: str) -> dict[str, Any]:
        label = row[column]
        if not isinstance(label, int) or not 0 <= label < len(space):
            raise EvaluationError(
                f"{name} has the label {label!r}, which is none of the {len(space)} classes. "
                "Choose a split with labels."
            )
        return {"label": label}

    return read, getattr(features[column], "names", None), (column,)


def _detection(
    features: Mapping[str, Any], _pictures: list[str], wanted: str | None, reference: str
) -> _Found:
    """Objects as COCO has them: `bbox` is left, top, width, height."""
    there = [name for name in OBJECTS if name in features]
    column = choose_column(wanted, OBJECTS, there, features, "label", reference)
    inner = features[column]
    inner = getattr(inner, "feature", inner)  # a list of mappings, or a mapping of lists
    inner = inner[0] if isinstance(inner, list) else inner
    inner = inner if isinstance(inner, Mapping) else {}
    category = next((n for n in CATEGORIES if n in inner), None)
    if category is None or "bbox" not in inner:
        raise EvaluationError(
            f"the column {column} of {reference} has no bbox and {' or '.join(CATEGORIES)}. Name "
            "the column of the objects with --label-column."
        )
    names = getattr(getattr(inner[category], "feature", inner[category]), "names", None)

    def read(row: Mapping[str, Any], space: LabelSpace, name: str) -> dict[str, Any]:
        known = categories_in(space)
        found = [_object(entry, category, known, space, name) for entry in _rows_of(row[column])]
        areas = [one.area for one in found]
        return {
            "boxes": Boxes(
                np.array([one.corners for one in found], np.float32).reshape(-1, 4),
                np.array([one.label for one in found], np.int64),
                is_crowd=np.array([one.is_crowd for one in found], bool),
                areas=np.array(areas, np.float32) if areas and None not in areas else None,
            )
        }

    return read, names, (column,)


class _Object(NamedTuple):
    corners: tuple[float, float, float, float]
    label: int
    is_crowd: bool
    area: float | None


def _object(
    entry: Mapping[str, Any],
    category: str,
    known: Mapping[int, int | None],
    space: LabelSpace,
    name: str,
) -> _Object:
    """One object of a row.

    Raises:
        EvaluationError: it is none, or of a class that the space does not have.
    """
    try:
        number = whole_number(entry, category)
        corners, crowd, area = box_of(entry), yes_or_no(entry, "iscrowd"), area_of(entry)
    except (KeyError, ValueError) as error:
        raise EvaluationError(
            f"{name}: {shown(entry)} is no object: {error}. Correct the annotations."
        ) from error
    label = known.get(number)
    if label is None:
        raise EvaluationError(
            f"{name} has an object of the class {number}, which is none of the {len(space)} of "
            f"{space.name}. Name the label space of the data set."
        )
    return _Object(corners, label, crowd, area)


_READERS: dict[str, Callable[[Mapping[str, Any], list[str], str | None, str], _Found]] = {
    "semantic": _semantic,
    "panoptic": _panoptic,
    "classification": _classification,
    "detection": _detection,
}


def _first(error: BaseException) -> str:
    """The first line of another library's message, cut to a readable length."""
    return " ".join(str(error).split())[:120]
