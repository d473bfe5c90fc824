"""Data sets of the Hub as `datasets` tables: pinned to a commit, online or out of the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwmm_hub.errors import EvaluationError, ResolveError, UsageError
from lwmm_hub.evaluation.data_sets import choose_split
from lwmm_hub.small_files import read_small_text

_MAX_TOLD = 64 << 20  # bytes; it lists the files of a table and the names of its classes


@dataclass(frozen=True)
class HubData:
    """A data set on the Hub.

    Attributes:
        location: `org/name`.
        revision: branch, tag or commit; None is the newest.
    """

    location: str
    revision: str | None

    def __str__(self) -> str:
        return f"{self.location}@{self.revision}" if self.revision else self.location


def on_hub(text: str, revision: str | None) -> HubData:
    """`org/name` or `org/name@revision`."""
    name, at, own = text.partition("@")
    if at and revision is not None and own != revision:
        raise UsageError(f"{text} and --revision {revision} contradict each other: give one.")
    return HubData(name, own if at else revision)


def table_from_hub(data: HubData, split: str | None, streaming: bool) -> tuple[Any, str, str]:
    """(the table, its commit, its split); offline what the cache holds of that commit.

    Raises:
        ResolveError: the Hub, or offline the cache, does not give it.
        EvaluationError: there is no such split, or it is no data set that can be read.
    """
    import datasets
    import huggingface_hub

    from lwmm_hub.resolving.hub_cache import remember
    from lwmm_hub.resolving.hub_errors import LIBRARY

    with reading(data):
        if _offline():
            return _table_in_cache(data, split)
        api = huggingface_hub.HfApi(library_name=LIBRARY)
        info = api.dataset_info(data.location, revision=data.revision)
        commit = str(info.sha)
        if info.gated:  # `datasets` says it in a way that nobody can tell from other errors
            api.auth_check(data.location, repo_type="dataset")
        splits = [str(s) for s in datasets.get_dataset_split_names(data.location, revision=commit)]
        chosen = choose_split(splits, split, str(data))
        table = datasets.load_dataset(
            data.location, split=chosen, revision=commit, streaming=streaming
        )
        files = [Path(file["filename"]) for file in getattr(table, "cache_files", ())]
        if not all(commit in path.parts for path in files):
            # the Hub went away in between, and `datasets` took what it found of any commit
            raise ConnectionError
        if files:
            remember(data.location, data.revision, commit, "dataset")
    return table, commit, chosen


def _offline() -> bool:
    import datasets
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE)


def _table_in_cache(data: HubData, split: str | None) -> tuple[Any, str, str]:
    """As `table_from_hub`, without any request.

    `datasets` itself would take the table that was stored last, of whatever commit.
    """
    import datasets
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented

    from lwmm_hub.resolving.hub_cache import remembered

    validate_repo_id(data.location)
    commit = remembered(data.location, data.revision, "dataset")
    owner, _, name = data.location.rpartition("/")
    root = Path(datasets.config.HF_DATASETS_CACHE)
    stored = f"{owner}___{datasets.naming.camelcase_to_snakecase(name)}" if owner else name
    # one folder for each configuration: CONFIGURATION/VERSION/COMMIT
    folders = sorted(root.glob(f"{stored}/*/*/{commit}/dataset_info.json")) if commit else []
    if not folders:
        raise ResolveError(
            f"{data} is not in the cache, and HF_HUB_OFFLINE is set. Run once without it (and "
            "without --streaming, which stores nothing), or name a local folder."
        )
    if len(folders) > 1:
        names = ", ".join(path.parts[-4] for path in folders)
        raise EvaluationError(
            f"the cache holds several configurations of {data} ({names}), and HF_HUB_OFFLINE is "
            "set. Run once without it, or name a local folder."
        )
    try:
        about = told_by_datasets(folders[0])
        splits = {name: one["num_examples"] for name, one in about["splits"].items()}
    except (EvaluationError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResolveError(
            f"the cache holds a damaged copy of {data}, and HF_HUB_OFFLINE is set. Delete the "
            f"folder {folders[0].parent}, and run once without it."
        ) from error
    chosen = choose_split(list(splits), split, str(data))
    start = f"{about.get('dataset_name')}-{chosen}"
    files = sorted(folders[0].parent.glob(f"{start}.arrow"))
    files = files or sorted(folders[0].parent.glob(f"{start}-[0-9]*-of-[0-9]*.arrow"))
    parts = [datasets.Dataset.from_file(str(path)) for path in files]
    if sum(map(len, parts)) != splits[chosen]:
        raise ResolveError(
            f"the cache holds a part of {data} only, and HF_HUB_OFFLINE is set. Run once without "
            "it."
        )
    assert commit is not None
    return datasets.concatenate_datasets(parts), commit, chosen


def told_by_datasets(path: Path) -> dict[str, Any]:
    """A JSON file in which `datasets` says what a table is.

    Raises:
        EvaluationError: it cannot be read, or is something else.
    """
    try:
        content = json.loads(read_small_text(path, _MAX_TOLD))
        what = "it is no table"
    except (OSError, ValueError, RecursionError) as error:
        content = None
        what = (isinstance(error, OSError) and error.strerror) or type(error).__name__
    if isinstance(content, dict):
        return content
    raise EvaluationError(
        f"{path.parent.name}/{path.name} is not as 'datasets' writes it ({what}). Save the data "
        "set again, or get a sound copy."
    )


@contextmanager
def reading(data: HubData) -> Iterator[None]:
    """What `datasets` and the Hub's client raise, in one line of ours.

    Raises:
        ResolveError: the Hub does not give it.
        EvaluationError: what it gives is no data set that can be read.
    """
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from lwmm_hub.resolving.hub_errors import hub_errors

    with hub_errors(data, "dataset"):
        try:
            yield
        except (EvaluationError, HFValidationError):
            raise
        except (
            datasets.exceptions.DatasetsError,
            ValueError,
            FileNotFoundError,
            RuntimeError,  # a data set that is a script, of which nothing is run
        ) as error:
            if isinstance(error, HfHubHTTPError):
                raise
            first = " ".join(str(error).split())[:200]
            raise EvaluationError(
                f"{data} cannot be read as a data set: {first} Check that it holds images with "
                "labels."
            ) from error


def file_beside(data: HubData, commit: str, name: str) -> str | None:
    """A file of a data set's repository, in the cache; None where it has none of that name.

    Raises:
        ResolveError: the Hub does not give it, or offline the cache does not know.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    from lwmm_hub.resolving.hub_errors import LIBRARY

    if _offline():
        found = huggingface_hub.try_to_load_from_cache(
            data.location, name, revision=commit, repo_type="dataset"
        )
        if found is None:  # neither there nor known to be missing
            raise ResolveError(
                f"the cache does not say what the labels of {data} are, and HF_HUB_OFFLINE is set. "
                "Name them with --labels, or run once without it."
            )
        return found if isinstance(found, str) else None
    with reading(data):
        try:
            return huggingface_hub.hf_hub_download(
                data.location, name, repo_type="dataset", revision=commit, library_name=LIBRARY
            )
        except EntryNotFoundError:
            return None
