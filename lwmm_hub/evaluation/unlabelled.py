"""Images alone, from wherever they are: nothing here opens a label."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.columns import IMAGES, choose_column, decoding_row
from lwmm_hub.evaluation.data_sets import DataSet, choose_split
from lwmm_hub.evaluation.fingerprints import fingerprint_of, mark_of
from lwmm_hub.evaluation.hub_tables import on_hub, table_from_hub
from lwmm_hub.evaluation.opening import folder_of, own_split, stored_table
from lwmm_hub.evaluation.reading import image_of, open_picture

Image = NDArray[np.uint8]
LEAST = 32  # pixels on a side; smaller ones tell networks of this kind nothing
TRAINING = ("train", "training", "unlabeled", "unlabelled")


@dataclass(frozen=True, eq=False)
class UnlabelledImages:
    """Images in a fixed order, each read when it is asked for.

    Attributes:
        reference: how the user named them; a folder's name, not its path.
        revision: 40-hex commit on the Hub, or a fingerprint of the local files; None where there
            is neither.
        split: of a data set.
        count: number of images.
        read: number -> uint8 RGB, (height, width, 3).
        columns: what of a table is read.
        files: the images, where they are files on this machine.
    """

    reference: str
    revision: str | None
    split: str | None
    count: int
    read: Callable[[int], Image]
    columns: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def chosen(self, limit: int) -> list[int]:
        """At most `limit` numbers at equal steps, so that all parts of a film are seen."""
        if self.count <= limit:
            return list(range(self.count))
        return [round(i * (self.count - 1) / max(limit - 1, 1)) for i in range(limit)]

    def reader(
        self, window: tuple[int, int] | None = None, seed: int = 0
    ) -> Callable[[int], Image]:
        """How images are looked at: whole, or one part of each, always the same for a seed.

        Args:
            window: (height, width) of the part.
            seed: chooses its place.
        """

        def read(number: int) -> Image:
            image = self.read(number)
            height, width = image.shape[:2]
            if min(height, width) < LEAST:
                raise EvaluationError(
                    f"image {number} of {self.reference} has {width} x {height} pixels: at least "
                    f"{LEAST} x {LEAST} are needed. Leave it out."
                )
            if window is None:
                return image
            rng = np.random.default_rng([seed, number])
            top = int(rng.integers(max(height - window[0], 0) + 1))
            left = int(rng.integers(max(width - window[1], 0) + 1))
            part = image[top : top + window[0], left : left + window[1]]
            return np.ascontiguousarray(part)

        return read


def open_images(
    source: Any,
    *,
    split: str | None = None,
    revision: str | None = None,
    column: str | None = None,
) -> UnlabelledImages:
    """Images without their labels.

    Args:
        source: a data set's name on the Hub, a folder of pictures or of a known layout,
            `LAYOUT:FOLDER`, a `datasets.Dataset`, a `DataSet`, or uint8 arrays of
            (height, width, 3).
        split: of a data set; None is the one for training.
        revision: of the data set on the Hub.
        column: of the images, where there are several.

    Raises:
        EvaluationError: there is no image, or no such split.
        ResolveError: the Hub does not give the data set.
    """
    found = _open(source, split, revision, column)
    if not found.count:
        where = f" {found.split}" if found.split else ""
        raise EvaluationError(
            f"{found.reference}{where} holds no image. Name another split or folder."
        )
    return found


def _open(
    source: Any, split: str | None, revision: str | None, column: str | None
) -> UnlabelledImages:
    name = "images in memory"
    if isinstance(source, UnlabelledImages | DataSet):
        if split not in (None, source.split):
            raise EvaluationError(
                f"{source.reference} is open already, of the split {source.split!r}: leave split "
                "out."
            )
        return source if isinstance(source, UnlabelledImages) else _of_data(source)
    if isinstance(source, Mapping):  # a DatasetDict
        chosen = _training(list(source), split, name)
        return _of_table(source[chosen], name, None, chosen, column)
    if hasattr(source, "features") and hasattr(source, "__getitem__"):
        return _of_table(source, name, None, own_split(source, split, name), column)
    if isinstance(source, np.ndarray) or not isinstance(source, str | os.PathLike):
        return _of_arrays(source)
    text = os.fspath(source)
    layout, folder = folder_of(text)
    if folder is None:
        data = on_hub(text, revision)
        table, commit, chosen = table_from_hub(data, split or "train", False)
        return _of_table(table, data.location, commit, chosen, column)
    if layout is None and (stored := stored_table(folder, split, _training)) is not None:
        return _of_table(stored[0], folder.resolve().name, None, stored[1], column)
    return _of_folder(folder, layout, split)


def _training(splits: list[str], wanted: str | None, name: str) -> str:
    """The split that is asked for, or the one for training."""
    if wanted is None:
        wanted = next((usual for usual in TRAINING if usual in splits), None)
    if wanted is None and len(splits) > 1:
        raise EvaluationError(
            f"{name} has the splits {', '.join(sorted(splits))}, none of which is for training. "
            "Choose one with --split; it should not be the one you test on."
        )
    return choose_split(splits, wanted, name)


def _of_data(data: DataSet) -> UnlabelledImages:
    if data.count is None:
        raise EvaluationError(
            f"{data.reference} is streamed: a fit looks at its images more than once. Open it "
            "without streaming."
        )

    def read(number: int) -> Image:
        return next(data.samples(number, 1)).image

    return UnlabelledImages(
        data.reference, data.revision, data.split, data.count, read, data.columns, data.files
    )


def _of_table(
    table: Any, reference: str, revision: str | None, split: str | None, column: str | None
) -> UnlabelledImages:
    pictures = [name for name, kind in table.features.items() if type(kind).__name__ == "Image"]
    image = choose_column(column, IMAGES, pictures, table.features, "image", reference)
    if hasattr(table, "select_columns"):
        table = table.select_columns([image])  # labels are not even decoded

    def read(number: int) -> Image:
        name = f"{reference}, row {number}"
        with decoding_row(reference, number):
            row = table[number]
        return image_of(row[image], name)

    mark = revision or fingerprint_of(table)
    return UnlabelledImages(reference, mark, split, len(table), read, (image,))


def _of_arrays(source: Any) -> UnlabelledImages:
    try:
        arrays = list(source)
    except TypeError as error:
        raise EvaluationError(
            f"images are a {type(source).__name__}: give a data set's name, a folder, a "
            "datasets.Dataset, or a list of arrays or of Pillow's images."
        ) from error
    arrays = [
        image_of(array, f"image {number}") if hasattr(array, "getbands") else array  # Pillow's
        for number, array in enumerate(arrays)
    ]
    for number, array in enumerate(arrays):
        shape: tuple[int, ...] = getattr(array, "shape", ())
        if getattr(array, "dtype", None) != np.uint8 or len(shape) != 3 or shape[2] != 3:
            what = f"{getattr(array, 'dtype', type(array).__name__)} of {shape}"
            raise EvaluationError(
                f"image {number} is {what}: give uint8 RGB arrays of (height, width, 3)."
            )
    return UnlabelledImages("images in memory", None, None, len(arrays), arrays.__getitem__)


def _of_folder(folder: Path, layout: str | None, split: str | None) -> UnlabelledImages:
    """A folder of a known layout, or just of pictures."""
    from lwmm_hub.evaluation.layouts import LAYOUTS, layout_of
    from lwmm_hub.evaluation.layouts.objects import CLASSES

    if not folder.is_dir():
        raise EvaluationError(f"there is no folder {folder.name}. Check its path.")
    known = LAYOUTS[layout] if layout else layout_of(folder)
    if known is None:
        return _of_pictures(folder, split)
    splits = known.splits(folder)
    if not splits and known is CLASSES and layout is None:
        return _of_pictures(folder, split)  # folders of pictures may be splits as well as classes
    if not splits and split is not None:
        raise EvaluationError(
            f"{folder.name} lies as {known.name} does, which has no splits: leave --split out."
        )
    chosen = _training(splits, split, folder.name) if splits else None
    items = known.list(folder, chosen or "", known.tasks[0]).items
    return _of_files(folder, [item.image for item in items], chosen)


def _of_pictures(folder: Path, split: str | None) -> UnlabelledImages:
    """Pictures in SPLIT/images, images/SPLIT, SPLIT, images, or anywhere below the folder."""
    from lwmm_hub.evaluation.layouts.grammar import pictures_in

    for name in (split,) if split else (*TRAINING, None):
        places = [folder / name / "images", folder / "images" / name, folder / name] if name else []
        for place in places or [folder / "images", folder]:
            if files := pictures_in(place, deep=True):
                return _of_files(folder, files, name)
    if split is not None:
        raise EvaluationError(f"{folder.name} has no pictures of a split {split!r}. Leave it out.")
    return _of_files(folder, [], None)


def _of_files(folder: Path, files: Sequence[Path], split: str | None) -> UnlabelledImages:
    seen = hashlib.sha256()
    for path in files:
        seen.update(mark_of(path, path.relative_to(folder).as_posix()))

    def read(number: int) -> Image:
        name = f"{folder.name}, image {number}"
        return image_of(open_picture(files[number], name), name)

    return UnlabelledImages(
        folder.name, seen.hexdigest()[:40], split, len(files), read, files=tuple(files)
    )
