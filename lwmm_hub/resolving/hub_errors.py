"""What the Hub's client raises, in one line of ours with the next step."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # documented, not re-exported

from lwmm_hub.errors import ResolveError
from lwmm_hub.reference import is_commit

LIBRARY = "lwmm-hub"


class Wanted(Protocol):
    """What is asked of the Hub: a `ModelReference`, or a data set's name and revision."""

    @property
    def location(self) -> str:
        """`org/name`."""

    @property
    def revision(self) -> str | None:
        """A branch, a tag or a commit; None is the newest."""


@contextmanager
def hub_errors(reference: Wanted, kind: str = "model") -> Iterator[None]:
    """The client's errors in one line of ours, with the next step.

    Args:
        reference: what is asked for.
        kind: `model` or `dataset`.

    Raises:
        ResolveError: always instead of the client's own.
    """
    name = reference.location
    place = name if kind == "model" else f"{kind}s/{name}"
    try:
        yield
    except GatedRepoError as error:
        step = (
            "your account has no access yet"
            if huggingface_hub.get_token()
            else "log in with 'hf auth login' or set HF_TOKEN"
        )
        raise ResolveError(
            f"{name} is gated: accept its conditions at {constants.ENDPOINT}/{place}, and {step}."
        ) from error
    except RepositoryNotFoundError as error:
        raise ResolveError(_not_found(reference, kind)) from error
    except DisabledRepoError as error:
        raise ResolveError(
            f"{name} is disabled by the Hub. Name another model, or a copy on disk."
        ) from error
    except RevisionNotFoundError as error:
        raise ResolveError(_no_revision(reference, kind)) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise ResolveError(_http_error(reference, error.__cause__)) from error
        raise ResolveError(
            f"{name} cannot be fetched: {_offline_reason()} Name a local folder, or try again."
            f"{not_here(reference)}"
        ) from error
    except EntryNotFoundError as error:
        raise ResolveError(f"{reference} has no such file. Check its name.") from error
    except HFValidationError as error:
        raise ResolveError(f"{reference} is not a valid name of the Hub. Check it.") from error
    except HfHubHTTPError as error:
        raise ResolveError(_http_error(reference, error)) from error
    except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise ResolveError(
            f"cannot reach the Hub at {constants.ENDPOINT} for {name} "
            f"({type(error).__name__}). Check the connection, or set HF_HUB_OFFLINE=1 to use "
            f"the cache.{not_here(reference)}"
        ) from error
    except OSError as error:
        raise ResolveError(
            f"cannot keep {name} in the cache ({system_reason(error)}). Make room, or set HF_HOME "
            "to another folder."
        ) from error


def system_reason(error: OSError) -> str:
    """What the system says, also where native code of the client tells its number in a text.

    >>> system_reason(OSError("I/O error: Not a directory (os error 20)")) == os.strerror(20)
    True
    """
    told = re.search(r"os error (\d+)", str(error)) if error.errno is None else None
    if told is not None and os.name == "posix":
        return os.strerror(int(told[1]))
    return error.strerror or type(error).__name__


def _offline_reason() -> str:
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and it is not in the cache."
    return f"the Hub at {constants.ENDPOINT} cannot be reached and it is not in the cache."


def _not_found(reference: Wanted, kind: str) -> str:
    name = reference.location
    if huggingface_hub.get_token():
        hidden = "or it is private and your token cannot see it"
    else:
        hidden = "or it is private: log in with 'hf auth login' or set HF_TOKEN"
    what = kind.replace("dataset", "data set")
    if is_commit(reference.revision):
        return f"there is no {what} {name!r} on the Hub, {hidden}.{_elsewhere(reference, kind)}"
    near = _similar_names(name, kind)
    hint = f" Did you mean {' or '.join(near)}?" if near else " Check the spelling."
    return f"there is no {what} {name!r} on the Hub, {hidden}.{hint}{not_here(reference)}"


def _elsewhere(reference: Wanted, kind: str) -> str:
    """What to do where a commit is gone: a recipe or a plan names it, so nobody misspelt it."""
    if kind == "dataset":
        return " Ask its owner."
    return (
        f" Its commit {str(reference.revision)[:8]} is not in the cache either. If a recipe names "
        f"it and you have a copy, pass --parent {reference.location}=PATH; else ask its owner."
    )


def not_here(reference: Wanted) -> str:
    """A hint where `owner/name` may have been meant as a path: a folder `owner` is here."""
    if is_commit(reference.revision):
        return ""
    folder, _, own = reference.location.partition("/")
    try:
        there = [path.name for path in Path(folder).iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(own, there, n=1)
    hint = f"; there is {f'{folder}/{near[0]}'!r}" if near else ""
    return f" If it was meant as a path: there is no {own!r} in the folder {folder!r} here{hint}."


def _similar_names(name: str, kind: str) -> list[str]:
    """Names that look alike, of this owner or another; none where the Hub does not answer."""
    owner, _, own = name.partition("/")
    api = huggingface_hub.HfApi(library_name=LIBRARY)
    listed: Any = api.list_datasets if kind == "dataset" else api.list_models
    try:
        for found in (listed(author=owner, limit=500), listed(search=own, limit=50)):
            if near := difflib.get_close_matches(name, [m.id for m in found], n=2, cutoff=0.7):
                return near
    except (HfHubHTTPError, httpx.HTTPError, OSError, TypeError):
        pass
    return []


def _no_revision(reference: Wanted, kind: str) -> str:
    if is_commit(reference.revision):
        gone = f"{reference.location} has no commit {reference.revision}."
        return f"{gone}{_elsewhere(reference, kind)}"
    try:
        api = huggingface_hub.HfApi(library_name=LIBRARY)
        refs = api.list_repo_refs(reference.location, repo_type=kind)
        known = [ref.name for ref in (*refs.branches, *refs.tags)]
    except (HfHubHTTPError, httpx.HTTPError, OSError):
        known = []
    shown = f" It has {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}." if known else ""
    return (
        f"{reference.location} has no revision {reference.revision!r}.{shown} Name a branch, a tag "
        "or a commit."
    )


def _http_error(reference: Wanted, error: HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else None
    name = reference.location
    if status == 401:
        return "the Hub does not accept your token. Run 'hf auth login', or unset HF_TOKEN."
    if status == 403:
        return f"your token may not read {name}. Use one with read access to it."
    if status == 429:
        return "the Hub asks to slow down (429). Wait a minute, or log in for higher limits."
    return f"the Hub answered {status} for {name}. Try again later."
