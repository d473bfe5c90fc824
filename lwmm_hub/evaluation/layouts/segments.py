"""COCO's panoptic JSON: which segments each panoptic map has, and what its categories are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.coco_entries import shown
from lwmm_hub.evaluation.label_maps import compared
from lwmm_hub.evaluation.label_spaces import LabelSpace, custom_space, shorten, space_of_labels
from lwmm_hub.evaluation.panoptic import Category, category_of
from lwmm_hub.small_files import read_small

MAX_JSON = 2 << 30  # bytes
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Annotation:
    """What the JSON says of one image.

    Attributes:
        image: file name of the image; "" where the JSON does not say.
        segments: COCO's `segments_info`.
    """

    image: str
    segments: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Annotations:
    """A panoptic JSON.

    Attributes:
        categories: what its category ids mean.
        maps: file name of a panoptic map -> what is on it.
        name: file name of the JSON.
    """

    categories: tuple[Category, ...]
    maps: Mapping[str, Annotation]
    name: str

    def of(self, map_name: str) -> Sequence[Mapping[str, Any]]:
        """Segments of one panoptic map.

        Raises:
            EvaluationError: the JSON does not know it.
        """
        if map_name not in self.maps:
            raise EvaluationError(
                f"{map_name} is not in {self.name}. Get maps and JSON from one release."
            )
        return self.maps[map_name].segments


def read_annotations(path: Path) -> Annotations:
    """A panoptic JSON as COCO, Cityscapes and Mapillary Vistas write it.

    Raises:
        EvaluationError: it is missing, not of that kind, or lists an image, a map or a category
            twice: nobody knows which of the two is meant.
    """
    document = _document(path)
    try:
        listed = [x for x in document.get("images", ()) if x.get("id") is not None]
        images = _each_once([(x["id"], str(x["file_name"])) for x in listed], "image")
        found = [
            (
                str(entry["file_name"]),
                Annotation(images.get(entry.get("image_id"), ""), tuple(entry["segments_info"])),
            )
            for entry in document["annotations"]
        ]
        maps = _each_once(found, "panoptic map")
        known = [category_of(entry) for entry in document["categories"]]
        categories = _each_once([(c.id, c) for c in known], "category")
    except EvaluationError as error:
        raise EvaluationError(f"{path.name}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"{path.name} is not as COCO writes panoptic annotations ({type(error).__name__}: "
            f"{error}). Get the panoptic annotations of the data set."
        ) from error
    return Annotations(tuple(categories.values()), maps, path.name)


def _each_once(pairs: Sequence[tuple[_Key, _Value]], what: str) -> dict[_Key, _Value]:
    """A mapping of what is listed.

    Raises:
        EvaluationError: a key is there twice.
    """
    found: dict[_Key, _Value] = {}
    for key, value in pairs:
        if key in found:
            raise EvaluationError(
                f"the {what} {shown(key)} is listed twice, again as {shown(value)}. Correct it, or "
                "download it again."
            )
        found[key] = value
    return found


def in_space(
    categories: Sequence[Category], space: LabelSpace | None, name: str
) -> tuple[LabelSpace, dict[int, int]]:
    """A label space with the things of a JSON, and category id -> label index, by the names.

    Args:
        categories: of the JSON.
        space: where the labels belong; None makes one of the categories themselves.
        name: of the data set, for messages.

    Raises:
        EvaluationError: a category is not in the space.
    """
    names = [category.name for category in categories]
    if space is None:
        space = space_of_labels(names) or custom_space(names)
        mine, theirs = list(space.labels), list(space.labels)
    else:
        mine, theirs = compared(names, space.labels)
    index = {label: i for i, label in enumerate(theirs)}
    foreign = [name for name, label in zip(names, mine, strict=True) if label not in index]
    if foreign:
        raise EvaluationError(
            f"the panoptic JSON of {name} has the categories {shorten(foreign)}, which "
            f"{space.name} does not have. Name the label space of the data set."
        )
    table = {c.id: index[label] for c, label in zip(categories, mine, strict=True)}
    things = frozenset(table[category.id] for category in categories if category.is_thing)
    return replace(space, things=things), table


def _document(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_small(path, MAX_JSON))
    except FileNotFoundError as error:
        raise EvaluationError(
            f"{path.name} is missing: it says what the segments are. Complete the data set, or use "
            "--task semantic."
        ) from error
    except OSError as error:
        raise EvaluationError(
            f"{path.name} cannot be read: {error.strerror or type(error).__name__}. Get a sound "
            "copy."
        ) from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path.name} is no JSON. Download it again.") from error
    if not isinstance(content, dict):
        raise EvaluationError(f"{path.name} is no table of annotations. Download it again.")
    return content
