"""The repository to push to, and what the Hub's client says of it in words of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lwmm_hub.card.naming import hub_id, reference_id
from lwmm_hub.checkpoint import SIDE_FILES
from lwmm_hub.display.text import one_line
from lwmm_hub.errors import LwmmError, PublishError
from lwmm_hub.writing import MANIFEST, WEIGHT_FILES

_HIDDEN = (401, 403, 404)  # what is not there or not for this token is answered with
KEPT = "The merged folder is kept: "  # behind this stands where, at the end of an error


def find_target(
    api: Any, repo: str, folder: Path | None, private: bool | None, create_pr: bool
) -> Any:
    """What the Hub says of the repository to push to, None where it is to be made.

    Raises:
        PublishError: it has moved, or does not fit the options.
    """
    info = _existing(api, repo)
    if info is not None and info.id != repo:
        fail(folder, f"{repo} is called {info.id} by now: push to that name")
    if info is None and create_pr:
        fail(folder, f"{repo} does not exist, so it cannot take a pull request")
    if info is not None and not create_pr and (foreign := _foreign(info)):
        why = (
            f"{repo} holds a model that lwmm-hub did not push, whose {foreign[0]} would be replaced"
        )
        fail(folder, f"{why}: push elsewhere, or propose the merge there with --create-pr")
    if info is not None and private and not info.private:
        fail(folder, f"{repo} is public already: make it private on the Hub, or push elsewhere")
    if info is not None and private is False and info.private:
        why = f"{repo} is private, and a push leaves it so"
        fail(folder, f"{why}: make it public in its settings on the Hub, or push elsewhere")
    return info


def names_in(info: Any) -> set[str]:
    """The files of a repository, none where there is none."""
    return {s.rfilename for s in info.siblings or ()} if info is not None else set()


def _foreign(info: Any) -> list[str]:
    """What a push would replace in a repository that holds no merge of ours."""
    names = names_in(info)
    if MANIFEST in names:
        return []
    return sorted(name for name in names if WEIGHT_FILES.fullmatch(name) or name in SIDE_FILES)


def is_public(info: Any, private: bool | None) -> bool:
    """Whether what is pushed can be seen by all: as the repository is, else as it will be made."""
    return private is False if info is None else not info.private


def hidden_parents(api: Any, models: Iterable[Mapping[str, Any]]) -> list[str]:
    """Labels of those models of a plan that not everybody can see, as the Hub says now.

    What the manifest has may be old, or of a merge without a network.
    """
    named = [(str(model["label"]), hub_id(model)) for model in models]
    return [label for label, repo in named if repo is not None and _is_hidden(api, repo, "model")]


def hidden_scores(api: Any, manifest: Mapping[str, Any]) -> list[str]:
    """What the card names beside the parents that not everybody can see.

    Data sets that the merge was scored or fitted on, and models that it is compared with.
    """
    scores = manifest.get("scores") or {}
    fit = manifest["plan"].get("weights_from") or {}
    data = [(scores.get("dataset") or {}).get("reference"), fit.get("images")]
    models = [m.get("reference") for m in scores.get("models") or [] if m.get("commit") is not None]
    parents = {hub_id(model) for model in manifest["plan"]["models"]}
    hidden = []
    for kind, what, references in (("dataset", "the data set ", data), ("model", "", models)):
        repos = [reference_id(str(text)) for text in references if text is not None]
        for repo in dict.fromkeys(repo for repo in repos if repo is not None and "/" in repo):
            if not (kind == "model" and repo in parents) and _is_hidden(api, repo, kind):
                hidden.append(f"{what}{repo}")
    return hidden


def _is_hidden(api: Any, repo: str, kind: str) -> bool:
    """Whether not everybody can see it; what is gone cannot be told from what is private."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return bool(api.repo_info(repo, repo_type=kind, expand=["private"]).private)
    except HfHubHTTPError as error:
        if _status(error) not in _HIDDEN:
            raise
        return True


def refuse_names(
    hidden: Sequence[str], repo: str, folder: Path | None, told: str = "its commit and data sets"
) -> None:
    """Refuse to name in public what not everybody can see.

    Args:
        hidden: what that is.
        repo: the public repository to push to.
        folder: the merge, if there is one yet.
        told: what would be told of each.

    Raises:
        PublishError: there are some.
    """
    if hidden:
        what = f"{', '.join(map(one_line, hidden))} {'is' if len(hidden) == 1 else 'are'} private"
        fail(
            folder,
            f"{what}, and a card in public would name it with {told}: push to a "
            f"private repository instead of {repo}, or pass --name-private to name it",
        )


def refuse_links(models: Iterable[Mapping[str, Any]], folder: Path | None) -> None:
    """Refuse to publish what was copied from outside a parent's folder: a private key, say.

    Args:
        models: of a plan.
        folder: the merge, if there is one yet.

    Raises:
        PublishError: there is such a thing.
    """
    for model in models:
        if names := [one_line(name) for name in model.get("links") or ()]:
            fail(
                folder,
                f"{', '.join(names)} of {one_line(model['label'])} comes over a link from outside "
                "its folder, and may not be meant for others: put a copy of the file in the place "
                "of the link and merge again",
            )


def _existing(api: Any, repo: str) -> Any:
    """What the Hub says of the repository, None where there is none that the token can see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repo)
    except RepositoryNotFoundError:
        return None


@contextmanager
def push_errors(folder: Path | None, repo: str, create_pr: bool) -> Iterator[None]:
    """The client's errors in one line of ours; the merged folder is named, if there is one yet.

    Raises:
        PublishError: always instead of the client's own.
    """
    from huggingface_hub.errors import DisabledRepoError, HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # not re-exported

    from lwmm_hub.resolving.hub_errors import system_reason

    try:
        yield
    except DisabledRepoError:
        fail(folder, f"{repo} is disabled by the Hub: push elsewhere, or ask the Hub why")
    except HfHubHTTPError as error:
        fail(folder, _why(repo, _status(error), create_pr))
    except HFValidationError:
        fail(folder, f"{repo!r} is not a valid name of the Hub")
    except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
        fail(folder, f"the push to {repo} broke off ({type(error).__name__}): push again later")
    except OSError as error:
        if error.errno is not None:
            fail(folder, f"a file cannot be read ({error.strerror})")
        fail(  # native code of the client, which keeps there what an upload over Xet needs
            folder,
            f"the cache of the Hub's client cannot be written ({system_reason(error)}): make room, "
            "set HF_HOME to another folder, or set HF_HUB_DISABLE_XET=1, then push again",
        )
    except RuntimeError as error:  # of an upload, over LFS or Xet
        if (status := _status(error.__cause__)) is not None:
            fail(folder, _why(repo, status, create_pr))
        fail(folder, f"the upload to {repo} broke off: push again, what has arrived is not resent")
    except ValueError as error:
        if isinstance(error, LwmmError):
            raise
        fail(folder, f"the Hub refuses the model card of {repo}: {error}")


def fail(folder: Path | None, why: str) -> NoReturn:
    """Say why nothing was pushed, and where the merge is, if there is one yet.

    Raises:
        PublishError: always.
    """
    kept = "Nothing was merged yet." if folder is None else f"{KEPT}{_shown(folder)}"
    raise PublishError(f"{why}. {kept}")


def _shown(folder: Path) -> Path:
    """A folder as it is seen from here, where it lies below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _status(error: BaseException | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _why(repo: str, status: int | None, create_pr: bool) -> str:
    owner = repo.split("/")[0]
    reasons = {
        401: "the Hub does not accept your token: run 'hf auth login', or unset HF_TOKEN",
        403: f"your token may not write to {repo}: use one with write access to {owner}"
        + ("" if create_pr else ", or pass --create-pr where the repository exists"),
        404: f"{repo} is not there, or your token cannot see it",
        409: f"{repo} changed while it was pushed to: push again",
        412: f"{repo} changed while it was pushed to: push again",
        413: f"{repo} does not take files of this size: pass a smaller --max-shard-size",
        429: "the Hub asks to slow down (429): wait a minute and push again",
    }
    return reasons.get(status or 0, f"the Hub answered {status} for {repo}: try again later")
