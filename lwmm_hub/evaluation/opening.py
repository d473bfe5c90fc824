"""A name, a folder or a `datasets.Dataset` -> `DataSet`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwmm_hub.errors import EvaluationError, UsageError
from lwmm_hub.evaluation.coco_entries import whole_number, yes_or_no
from lwmm_hub.evaluation.columns import Columns, from_table
from lwmm_hub.evaluation.data_sets import DataSet, choose_split
from lwmm_hub.evaluation.hub_tables import (
    HubData,
    file_beside,
    on_hub,
    reading,
    table_from_hub,
    told_by_datasets,
)
from lwmm_hub.evaluation.label_spaces import (
    LabelSpace,
    counted_space,
    custom_space,
    label_space,
    labels_of,
)
from lwmm_hub.evaluation.layouts import LAYOUTS, open_layout
from lwmm_hub.evaluation.layouts.segments import in_space
from lwmm_hub.evaluation.panoptic import Category
from lwmm_hub.evaluation.values import TASKS
from lwmm_hub.small_files import read_small_text

LABEL_FILE = "id2label.json"  # beside a data set's card, as label files are kept on the Hub
MAX_LABEL_FILE = 1 << 20

_Choose = Callable[[list[str], str | None, str], str]

if TYPE_CHECKING:
    from typing import TypedDict

    class ReadingFields(TypedDict, total=False):
        """What `open_data` takes beside split and task, for type checkers."""

        revision: str | None
        label_space: str | os.PathLike[str] | Sequence[str] | None
        image_column: str | None
        label_column: str | None
        streaming: bool
        open_partial: bool


def open_data(
    source: Any,
    *,
    split: str | None = None,
    task: str | None = None,
    revision: str | None = None,
    label_space: str | os.PathLike[str] | Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    open_partial: bool = False,
) -> DataSet:
    """Images with truth, from wherever they are.

    Args:
        source: a data set's name on the Hub, perhaps with `@revision`, a folder, `LAYOUT:FOLDER`,
            or a `datasets.Dataset`.
        split: e.g. `validation`; None is the one there is, or `validation`, `val` or `test`.
        task: `semantic`, `panoptic`, `classification` or `detection`; None is what it is made for.
        revision: of the data set on the Hub.
        label_space: what its labels are, where it does not say: a name that
            `lwmm_hub.evaluation.label_space` knows, a JSON file (see `read_space`), or the names.
        image_column: where it has several.
        label_column: where it has several.
        streaming: read from the Hub without storing it.
        open_partial: the open-partial split of Office-31 or Office-Home.

    Raises:
        EvaluationError: no such data set or split, or nobody knows what its labels mean.
        ResolveError: the Hub does not give it.
    """
    if isinstance(source, DataSet):
        return source
    if task is not None and task not in TASKS:
        raise UsageError(f"task {task!r} is unknown: choose {', '.join(TASKS)}.")
    space = read_space(label_space) if label_space is not None else None
    columns = Columns(task, image_column, label_column)
    layout, folder = None, None
    if not _is_table(source):
        layout, folder = folder_of(os.fspath(source))
    if open_partial and folder is None:
        raise EvaluationError(
            "the open-partial split is of Office-31 and Office-Home as they lie on disk. Name "
            "office-31:FOLDER or office-home:FOLDER."
        )
    if folder is not None or _is_table(source):
        of_hub = {"--revision": revision is not None, "--streaming": streaming}
        _refuse(of_hub, "is for data sets of the Hub")
    if folder is not None:
        return _open_folder(folder, layout, split, space, columns, open_partial)
    if _is_table(source):
        return _from_memory(source, split, space, columns)
    data = on_hub(os.fspath(source), revision)
    table, commit, chosen = table_from_hub(data, split, streaming)
    if space is None:
        beside = file_beside(data, commit, LABEL_FILE)
        space = read_space(beside) if beside is not None else None
    return from_table(table, data.location, commit, chosen, space, columns, partial(reading, data))


def _refuse(given: Mapping[str, bool], why: str) -> None:
    """Refuse options that would be ignored.

    Raises:
        UsageError: one is given.
    """
    for option, is_given in given.items():
        if is_given:
            raise UsageError(f"{option} {why}: leave it out.")


def _is_table(source: Any) -> bool:
    return (hasattr(source, "features") and hasattr(source, "__iter__")) or (
        isinstance(source, Mapping) and all(map(_is_table, source.values()))
    )


def _from_memory(
    source: Any, split: str | None, space: LabelSpace | None, columns: Columns
) -> DataSet:
    name = "data in memory"
    chosen: str | None
    if isinstance(source, Mapping):  # a DatasetDict
        chosen = choose_split(list(source), split, name)
        source = source[chosen]
    else:
        chosen = own_split(source, split, name)
    return from_table(source, name, None, chosen, space, columns)


def read_space(named: str | os.PathLike[str] | Sequence[str]) -> LabelSpace:
    """A label space by name, from a JSON file, or of the names of its classes in order.

    The file holds a list of names, an id2label, or COCO's categories with `id`, `name` and
    `isthing`, which say what is countable, too.

    Raises:
        EvaluationError: there is no such space or file, or it holds something else.
    """
    if not isinstance(named, str | os.PathLike):
        return custom_space([str(label) for label in named])
    name = os.fspath(named)
    if not name.endswith(".json"):
        return label_space(name)
    path = Path(name).expanduser()
    try:
        content = json.loads(read_small_text(path, MAX_LABEL_FILE))
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise EvaluationError(
            f"{path.name} cannot be read as JSON ({what}). Give a list of names."
        ) from error
    if isinstance(content, list) and content and isinstance(content[0], Mapping):
        return _space_of_categories(content, path.name)
    if not isinstance(content, list | Mapping):
        raise EvaluationError(f"{path.name} holds neither a list of names nor an id2label.")
    try:
        return counted_space(labels_of(content))
    except EvaluationError as error:
        raise EvaluationError(f"{path.name}: {error}") from error


def _space_of_categories(content: list[Any], name: str) -> LabelSpace:
    try:
        categories = [
            Category(whole_number(c, "id"), str(c["name"]), yes_or_no(c, "isthing"))
            for c in content
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"{name} holds categories without id and name. Give a list of names, or COCO's."
        ) from error
    space, table = in_space(categories, None, name)
    ids = {index: number for number, index in table.items()}
    found = tuple(ids[i] for i in range(len(space)))
    void = (0,) if 0 not in found else ()
    return LabelSpace(space.name, space.labels, space.colors, found, void, space.things)


def folder_of(text: str) -> tuple[str | None, Path | None]:
    """(layout or None, the folder), or (None, None) for what is on the Hub."""
    head, colon, rest = text.partition(":")
    if colon and head in LAYOUTS:
        return head, Path(rest).expanduser()
    path = Path(text).expanduser()
    if path.exists():
        return None, path
    if colon and Path(rest).expanduser().is_dir():
        raise EvaluationError(
            f"no layout is called {head!r}. There are {', '.join(LAYOUTS)}; most are recognised."
        )
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise EvaluationError(f"there is no folder {text}. Check its path.")
    return None, None


def _open_folder(
    folder: Path,
    layout: str | None,
    split: str | None,
    space: LabelSpace | None,
    columns: Columns,
    open_partial: bool,
) -> DataSet:
    if space is None and (folder / LABEL_FILE).is_file():
        space = read_space(str(folder / LABEL_FILE))
    if layout is None and (stored := stored_table(folder, split)) is not None:
        table, chosen = stored
        return from_table(table, folder.resolve().name, None, chosen, space, columns)
    of_table = {"--image-column": columns.image, "--label-column": columns.label}
    _refuse({name: value is not None for name, value in of_table.items()}, "is for tables")
    return open_layout(folder, layout, split, space, columns.task, unknown=open_partial)


def stored_table(
    folder: Path, split: str | None, choose: _Choose = choose_split
) -> tuple[Any, str | None] | None:
    """The table that lies in a folder, saved by `datasets` or as parquet files, and its split.

    Args:
        folder: any.
        split: the one that is asked for.
        choose: (splits, the one that is asked for, name) -> the one that is meant.

    Returns:
        None where there is no table.

    Raises:
        EvaluationError: there is no such split, or the table cannot be read.
    """
    name = folder.resolve().name
    whole, one = folder / "dataset_dict.json", folder / "state.json"
    parquet = any(any(True for _ in folder.glob(sign)) for sign in ("*.parquet", "*/*.parquet"))
    if not (whole.is_file() or one.is_file() or parquet):
        return None
    import datasets

    with reading(HubData(name, None)):
        if whole.is_file():
            splits = told_by_datasets(whole).get("splits")
            if not (isinstance(splits, list) and all(isinstance(one, str) for one in splits)):
                raise EvaluationError(
                    f"{whole.name} of {name} names no splits. Save the data set again."
                )
            chosen = choose(splits, split, name)
            return _saved(folder / chosen, f"{name} {chosen}"), chosen
        if one.is_file():
            table = _saved(folder, name)
            return table, own_split(table, split, name)
        loaded = datasets.load_dataset(str(folder))
        chosen = choose(list(loaded), split, name)
        return loaded[chosen], chosen


def own_split(table: Any, wanted: str | None, name: str) -> str | None:
    """The split that a table is, as far as it knows; nobody else's word is taken for it.

    Raises:
        EvaluationError: another one is asked for.
    """
    own = getattr(table, "split", None)
    own = None if own is None else str(own)
    if wanted in (None, own):
        return own
    what = f"the split {own!r} alone" if own else "no splits, or does not say which it is"
    has = "is" if own else "has"
    raise EvaluationError(
        f"{name} {has} {what}: leave --split out, or give the data set with all of its splits."
    )


def _saved(folder: Path, name: str) -> Any:
    import datasets

    if not told_by_datasets(folder / "state.json").get("_data_files"):
        # `datasets` writes a table without rows, and cannot read it
        raise EvaluationError(f"{name} holds no image. Name another split or folder.")
    return datasets.load_from_disk(str(folder))
