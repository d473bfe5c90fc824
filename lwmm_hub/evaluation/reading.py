"""Pictures -> arrays: images, label maps, panoptic maps; what is broken is named."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.coco_entries import segment_of, shown
from lwmm_hub.evaluation.label_spaces import LabelSpace
from lwmm_hub.evaluation.values import Labels, Panoptic, Segment

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 200_000_000
# What PIL multiplies greys of 2 and 4 bits by, so that the largest is white; by its raw modes.
_STEPS = {"L;2": 85, "L;2R": 85, "L;4": 17, "L;4R": 17}
_RAW = "lwmm_hub raw mode"  # in `Image.info`: how the file holds what was decoded
_DEEP = ("PNG", "PPM")  # formats whose greys PIL gives as `I` and that have no more than 16 bits


def open_picture(path: Path, name: str) -> Image:
    """A picture on disk, decoded.

    Raises:
        EvaluationError: it is missing, broken, or absurdly large.
    """
    where = f"{path.parent.name}/{path.name}"
    where = where if where in name else f"{name}: {where}"
    if path.exists() and not path.is_file():  # opening a pipe would wait for who writes to it
        raise EvaluationError(f"{where} is no regular file. Get a sound copy, or leave it out.")
    try:
        with path.open("rb") as file:
            return decode_picture(file, where)
    except EvaluationError:
        raise
    except FileNotFoundError as error:
        raise EvaluationError(
            f"{where} is missing. Complete the data set, or name another split."
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise EvaluationError(
            f"{where} cannot be decoded ({type(error).__name__}). Get a sound copy, or "
            "leave it out."
        ) from error


def decode_picture(file: BinaryIO, where: str) -> Image:
    """A picture of a stream, with a mark of how that holds its pixels (for `ids_of`).

    Raises:
        EvaluationError: it is absurdly large.
        OSError, ValueError, SyntaxError: what PIL says of a broken one.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():  # the limit is ours
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file)
            if picture.width * picture.height > MAX_PIXELS:
                raise EvaluationError(
                    f"{where} has {picture.width} x {picture.height} pixels. Evaluate smaller "
                    "images."
                )
            raw = _raw_mode(picture)
            picture.load()
    except Image.DecompressionBombError as error:
        raise EvaluationError(
            f"{where} has more pixels than PIL opens. Evaluate smaller images."
        ) from error
    picture.info[_RAW] = raw
    return picture


def _raw_mode(picture: Image) -> str:
    """How the file holds its pixels, which PIL forgets as soon as it has decoded them."""
    tiles = getattr(picture, "tile", None) or [(None, None, None, None)]
    given = tiles[0][3]
    return str(given[0] if isinstance(given, tuple) and given else given)


def image_of(picture: Any, name: str) -> NDArray[np.uint8]:
    """uint8 RGB of (height, width, 3), turned as its EXIF data say; an array of the caller's own.

    Greys of 16 bits become the nearest of 8 bits.

    Raises:
        EvaluationError: it is no picture, or its numbers are of a range that nobody knows.
    """
    from PIL import Image, ImageOps

    if not isinstance(picture, Image.Image):
        raise EvaluationError(
            f"{name} holds a {type(picture).__name__} where an image should be. "
            "Name the column of the images."
        )
    mode, turned = picture.mode, ImageOps.exif_transpose(picture)
    if mode.startswith("I;16") or (mode == "I" and picture.format in _DEEP):
        # PIL would make everything above 255 white
        grey = (np.asarray(turned).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if mode in ("I", "F"):
        raise EvaluationError(
            f"{name} is an image of 32-bit numbers (mode {mode}), of which nobody knows what is "
            "white. Save it with 8 bits for each colour, or with 16 bits of grey."
        )
    try:
        return np.array(turned.convert("RGB"))  # a copy: PIL's own memory cannot be written to
    except ValueError as error:
        raise EvaluationError(
            f"{name} is an image of mode {mode}, which Pillow does not turn into RGB. Save it as a "
            "PNG."
        ) from error


def labels_in(picture: Any, space: LabelSpace, name: str) -> Labels:
    """A label map in the indices of its space, which ignores what is not to be scored.

    Raises:
        EvaluationError: it is no picture of one channel, or holds ids that the space has not.
    """
    return space.indices(ids_of(picture, name), f"the label map of {name}")


def ids_of(picture: Any, name: str) -> Labels:
    """What a label map holds: palette images by index, grey ones by value.

    Raises:
        EvaluationError: it is no picture of one channel.
    """
    from PIL import Image

    if isinstance(picture, Image.Image):
        if picture.mode in ("L", "P", "1", "I", "I;16", "I;16B"):
            values = np.asarray(picture)
            raw = str(picture.info.get(_RAW, ""))
            if picture.mode == "L" and raw.startswith("L;"):
                return _unscaled(values, raw, name)
            return values.astype(np.uint8) if picture.mode == "1" else values
        raise EvaluationError(
            f"{name}: the label map is a picture of mode {picture.mode}, not one id per pixel. "
            "Name the column or folder of the labels; colours are not read back to labels."
        )
    if isinstance(picture, list | np.ndarray):
        values = np.asarray(picture)
        if values.ndim == 2 and values.dtype.kind in "iub":
            return values
    raise EvaluationError(
        f"{name} holds a {type(picture).__name__} where a label map should be. "
        "Name the column of the labels."
    )


def _unscaled(values: NDArray[np.uint8], raw: str, name: str) -> NDArray[np.uint8]:
    """Greys of few bits as the file holds them.

    Raises:
        EvaluationError: PIL has changed them in another way.
    """
    if raw not in _STEPS:
        raise EvaluationError(
            f"{name}: the label map stores its greys turned over ({raw}), so that they are not "
            "read as they stand. Save it as a PNG with 8 bits for each pixel."
        )
    found: NDArray[np.uint8] = values // np.uint8(_STEPS[raw])
    return found


def panoptic_of(
    picture: Any,
    segments: Sequence[Mapping[str, Any]],
    categories: Mapping[int, int | None],
    name: str,
) -> Panoptic:
    """A panoptic map as COCO stores it: id = R + 256 G + 65536 B, and a list of what each is.

    Args:
        picture: the map.
        segments: `id`, `category_id` and perhaps `iscrowd` of each.
        categories: category id -> label index, or None for what is not scored and becomes void.
        name: of the image, for messages.

    Raises:
        EvaluationError: as `panoptic_from` raises it.
    """
    from PIL import Image

    if not isinstance(picture, Image.Image):
        raise EvaluationError(
            f"{name} holds a {type(picture).__name__} where a panoptic map "
            "should be. Name its column."
        )
    if picture.mode in ("RGB", "RGBA"):
        channels = np.asarray(picture).astype(np.int32)
        ids = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
    else:
        ids = ids_of(picture, name).astype(np.int32)
    return panoptic_from(ids, segments, categories, name)


def panoptic_from(
    ids: NDArray[np.int32],
    segments: Sequence[Mapping[str, Any]],
    categories: Mapping[int, int | None],
    name: str,
) -> Panoptic:
    """A map of ids and its list of segments, in label indices; what is not scored is void.

    Args: as `panoptic_of` takes them, `ids` int32 of (height, width).

    Raises:
        EvaluationError: map and list disagree, a segment is listed twice or is none, or a category
            is not known.
    """
    kept, dropped = [], []
    known: set[int] = set()
    for entry in segments:
        try:
            number, category, crowd = segment_of(entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"{name}: a segment without id and category_id ({shown(entry)}). Correct the "
                "annotations."
            ) from error
        except ValueError as error:
            raise EvaluationError(
                f"{name}: {shown(entry)} is no segment: {error}. Correct the annotations."
            ) from error
        if number in known:
            raise EvaluationError(
                f"{name}: the segment {number} is listed twice, again as {shown(entry)}. Correct "
                "the annotations: an id is of one segment."
            )
        known.add(number)
        if category not in categories:
            raise EvaluationError(
                f"{name}: the segment {number} is of the category {category}, which is none of the "
                f"{len(categories)} that are known. Name the label space of the data set."
            )
        index = categories[category]
        if index is None:
            dropped.append(number)
        else:
            kept.append(Segment(number, index, crowd))
    listed = known | {0}
    there = set(np.unique(ids).tolist())
    if foreign := sorted(there - listed):
        raise EvaluationError(
            f"{name}: the panoptic map has the segment {foreign[0]}, which its JSON does not list. "
            "Get both from one release."
        )
    if missing := sorted({segment.id for segment in kept} - there):
        raise EvaluationError(
            f"{name}: the JSON lists the segment {missing[0]}, which the panoptic map does not "
            "have. Get both from one release."
        )
    if dropped:
        ids = np.where(np.isin(ids, dropped), 0, ids).astype(np.int32)
    return Panoptic(ids, tuple(kept))


def categories_in(space: LabelSpace) -> dict[int, int | None]:
    """Category id -> label index, None for void, where segments are numbered as label files are."""
    return {**dict.fromkeys(space.void), **{n: i for i, n in enumerate(space.ids)}}


def flat(panoptic: Panoptic, ignored: int) -> Labels:
    """The label map that a panoptic map holds; `ignored` where it is void."""
    numbers = np.array([0, *(s.id for s in panoptic.segments)])
    labels = np.array([ignored, *(s.category for s in panoptic.segments)], np.uint16)
    order = np.argsort(numbers)
    found: Labels = labels[order][np.searchsorted(numbers, panoptic.ids, sorter=order)]
    return found
