"""A name, a folder or a `datasets.Dataset` -> `DataSet`. The only room that reads data sets."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwmm_hub.errors import EvaluationError, ResolveError
from lwmm_hub.evaluation.columns import from_table
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.label_spaces import LabelSpace, custom_space, label_space, labels_of
from lwmm_hub.evaluation.label_spaces import space_of_labels as known_space

LABEL_FILE = "id2label.json"  # beside a data set's card, as label files are kept on the Hub
MAX_LABEL_FILE = 1 << 20


def open_data(
    source: Any,
    *,
    split: str | None = None,
    task: str | None = None,
    revision: str | None = None,
    label_space: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
) -> DataSet:
    """Images with truth, from wherever they are.

    Args:
        source: a data set's name on the Hub, a folder, `LAYOUT:FOLDER`, or a `datasets.Dataset`.
        split: e.g. `validation`; None is the one there is, or `validation`, `val` or `test`.
        task: `semantic`, `panoptic`, `classification` or `detection`; None is what it is made for.
        revision: of the data set on the Hub.
        label_space: what its labels are, where it does not say: a name that
            `lwmm_hub.evaluation.label_space` knows, or a JSON file of names.
        image_column: where it has several.
        label_column: where it has several.
        streaming: read from the Hub without storing it.

    Raises:
        EvaluationError: no such data set or split, or nobody knows what its labels mean.
        ResolveError: the Hub does not give it.
    """
    if isinstance(source, DataSet):
        return source
    space = _space(label_space)
    columns = {"image_column": image_column, "label_column": label_column, "task": task}
    if hasattr(source, "features") and hasattr(source, "__iter__"):
        return from_table(source, "a data set in memory", None, split, space, **columns)
    text = os.fspath(source)
    layout, folder = folder_of(text)
    if folder is not None:
        return _open_folder(folder, layout, split, space, columns)
    table, commit, chosen = table_from_hub(text, split, revision, streaming)
    if space is None:
        space = _space_beside(text, commit)
    return from_table(table, text, commit, chosen, space, **columns)


def _space(name: str | None) -> LabelSpace | None:
    """A label space by name, or from a JSON file with a list of names or an id2label."""
    if name is None:
        return None
    if name.endswith(".json"):
        path = Path(name)
        try:
            if path.stat().st_size > MAX_LABEL_FILE:
                raise EvaluationError(f"{name} is too large for a list of labels.")
            return space_from(json.loads(path.read_text("utf-8")), name)
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, EvaluationError):
                raise
            raise EvaluationError(
                f"{name} cannot be read as JSON ({type(error).__name__}). Give a list of names."
            ) from error
    return label_space(name)


def space_from(content: Any, name: str) -> LabelSpace:
    """The label space that a list of names or an `id2label` tells.

    Raises:
        EvaluationError: it is neither.
    """
    if not isinstance(content, list | Mapping):
        raise EvaluationError(f"{name} holds neither a list of names nor an id2label.")
    names = labels_of(content)
    return known_space(names) or custom_space(names)


def folder_of(text: str) -> tuple[str | None, Path | None]:
    """(layout or None, the folder), or (None, None) for what is on the Hub."""
    from lwmm_hub.evaluation.layouts import LAYOUTS

    head, colon, rest = text.partition(":")
    if colon and head in LAYOUTS:
        return head, Path(rest).expanduser()
    path = Path(text).expanduser()
    if path.exists():
        return None, path
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise EvaluationError(f"there is no folder {text}. Check its path.")
    return None, None


def _open_folder(
    folder: Path,
    layout: str | None,
    split: str | None,
    space: LabelSpace | None,
    columns: Mapping[str, str | None],
) -> DataSet:
    from lwmm_hub.evaluation.layouts import open_layout

    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        import datasets

        loaded = datasets.load_from_disk(str(folder))
        chosen = split
        if isinstance(loaded, dict):
            chosen = choose_split(list(loaded), split, folder.name)
            loaded = loaded[chosen]
        if space is None and (folder / LABEL_FILE).is_file():
            space = _space(str(folder / LABEL_FILE))
        return from_table(loaded, folder.name, None, chosen, space, **columns)
    return open_layout(folder, layout, split, space, columns["task"])


def choose_split(splits: list[str], wanted: str | None, name: str) -> str:
    """The split that is asked for, or the one that evaluation is for.

    Raises:
        EvaluationError: there is no such split.
    """
    if wanted is not None:
        if wanted in splits:
            return wanted
        raise EvaluationError(
            f"{name} has no split {wanted!r}. It has: {', '.join(sorted(splits))}."
        )
    for usual in ("validation", "val", "test"):
        if usual in splits:
            return usual
    if len(splits) == 1:
        return splits[0]
    raise EvaluationError(
        f"{name} has the splits {', '.join(sorted(splits))}. Choose one with --split."
    )


def table_from_hub(
    name: str, split: str | None, revision: str | None, streaming: bool
) -> tuple[Any, str, str]:
    """(the table, its commit, its split)."""
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    wanted = f"{name}@{revision}" if revision else name
    try:
        commit = str(huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
        splits = [str(s) for s in datasets.get_dataset_split_names(name, revision=commit)]
        chosen = choose_split(splits, split, name)
        table = datasets.load_dataset(name, split=chosen, revision=commit, streaming=streaming)
    except OfflineModeIsEnabled as error:
        raise ResolveError(
            f"{wanted} is on the Hub, and HF_HUB_OFFLINE is set. Name a local folder, or unset it."
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise ResolveError(
            f"the Hub gives no data set {wanted} ({type(error).__name__}). Check its name; private "
            "and gated ones need a token: run `hf auth login`."
        ) from error
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        first = " ".join(str(error).split())[:200]
        raise EvaluationError(f"{wanted} cannot be read: {first}") from error
    return table, commit, chosen


def _space_beside(name: str, commit: str) -> LabelSpace | None:
    """What a data set's repository says of its labels: id2label.json."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        path = huggingface_hub.hf_hub_download(
            name, LABEL_FILE, repo_type="dataset", revision=commit
        )
    except (EntryNotFoundError, HfHubHTTPError):
        return None
    return _space(path)
