"""A merged folder -> one commit on the Hub, with its licence checked and nothing local in it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from lwmm_hub.card import assert_publishable, card_files, check_card
from lwmm_hub.card.linting import LOCAL_PATH
from lwmm_hub.checkpoint import SIDE_FILES
from lwmm_hub.errors import CardError, LwmmError, PublishError, UsageError, in_python
from lwmm_hub.licenses import (
    LicenseDecision,
    ParentLicense,
    check_publication,
    decide,
    license_file,
)
from lwmm_hub.manifest import as_written, decide_license, read_manifest
from lwmm_hub.planning import MergePlan
from lwmm_hub.recipe import Recipe, write_recipe
from lwmm_hub.recognising import public_recipe
from lwmm_hub.reference import is_repository_id
from lwmm_hub.writing import MANIFEST, RECIPE, WEIGHT_FILES, public_config, sha256_of
from lwmm_hub.writing.beside import leads_out
from lwmm_hub.writing.weights import INDEX

KEPT = "The merged folder is kept: "  # behind this stands where, at the end of an error
LICENSE = "LICENSE"
TEXT_MARK = "=" * 72  # above and below the title of each licence text in LICENSE
_TEXTS = {"", ".json", ".md", ".svg", ".txt", ".yaml", ".yml"}
_LONGEST_TEXT = 10 << 20


def publish(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    accept_license: bool = False,
    license: str | None = None,
    token: str | None = None,
    message: str | None = None,
    parents: Mapping[str, str] | None = None,
    warn: Callable[[str], None] | None = None,
) -> str:
    """Push a merged folder in one commit.

    What `merge` wrote is pushed; other files that lie in the folder are left out.

    Args:
        folder: written by `merge`.
        repo: `owner/name`; made if it is not there, private unless `private=False`.
        private: visibility of a new repository; None is private.
        create_pr: open a pull request instead.
        accept_license: confirm the terms where the licence rules ask for it.
        license: the licence as you know it, recorded as stated by you.
        token: of the Hub; default is the one you are logged in with.
        message: of the commit.
        parents: label -> path of local parents that moved since the merge.
        warn: called with what the user should know; None is a warning of Python's.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        LicenseRefusedError: a rule refuses a public target.
        PublishError: one of `parents` is not what was merged, or the Hub did not take it; the
            folder stays as it is.
    """
    folder = Path(folder)
    if not is_repository_id(repo):
        raise UsageError(f"{repo!r} is not a repository id: write owner/name.")
    manifest = read_manifest(folder)
    import huggingface_hub
    from huggingface_hub import constants

    from lwmm_hub.resolving.hub_errors import LIBRARY

    token = token or huggingface_hub.get_token()
    if token is None:
        _fail(folder, "pushing needs a token: log in with 'hf auth login' or set HF_TOKEN")
    if constants.HF_HUB_OFFLINE:
        _fail(folder, "HF_HUB_OFFLINE is set: unset it to push")
    api = huggingface_hub.HfApi(token=token, library_name=LIBRARY)
    with _push_errors(folder, repo, create_pr):
        info = _target(api, repo, folder, private, create_pr)
        decision = _decision(manifest, license)
        public = _is_public(info, private)
        check_publication(decision, public=public, accept_license=accept_license)
        earlier = _earlier_manifest(api, repo, info)
        with as_written(folder):
            _check_weights(folder, manifest)
            recipe, said = public_recipe(folder, manifest, parents or {})
            files = _public_files(folder, manifest, recipe, decision, repo, token, earlier)
        for text in said:
            (warn or _warn)(text)
        if info is None:
            api.create_repo(repo, private=private is not False)
        return _commit(api, folder, repo, files, info, create_pr, message)


def _warn(text: str) -> None:
    warnings.warn(in_python(text), UserWarning, stacklevel=3)  # of who calls `publish`


def _check_weights(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse to publish other weights than those that card and manifest speak of.

    Raises:
        PublishError: a file is missing or was changed.
    """
    files = manifest["output"]["files"]
    for name, file in files.items():
        path = folder / name
        if not WEIGHT_FILES.fullmatch(name) or not path.is_file():
            _fail(folder, f"{name} is missing among its weights: merge again")
        if sha256_of(path) != file["sha256"]:
            _fail(folder, f"{name} is not what was merged, its sha256 is another: merge again")
    sharded = len(files) > 1 and all(name.endswith(".safetensors") for name in files)
    if sharded and not (folder / INDEX).is_file():
        _fail(folder, f"{INDEX} is missing among its weights: merge again")


def check_push(
    repo: str,
    license: str | None = None,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    accept_license: bool = False,
) -> Callable[[MergePlan], None]:
    """Refuse what can be refused before a merge that is to be pushed: names, token, repository.

    Whether the token may write there is seen when it is pushed.

    Returns:
        A check of the plan, once there is one: whether its parents' licences allow the push.

    Raises:
        UsageError: not a repository id, or not a licence id.
        PublishError: there is no token or it is not valid, HF_HUB_OFFLINE is set, the Hub does not
            answer, or the repository has moved or does not fit the options.
    """
    import huggingface_hub
    from huggingface_hub import constants

    from lwmm_hub.resolving.hub_errors import LIBRARY

    if not is_repository_id(repo):
        raise UsageError(f"{repo!r} is not a repository id: write owner/name.")
    if license is not None:
        decide([ParentLicense(repo, None)], license)
    if constants.HF_HUB_OFFLINE:
        raise PublishError("HF_HUB_OFFLINE is set: unset it to push.")
    token = huggingface_hub.get_token()
    if token is None:
        raise PublishError(
            "pushing needs a token: log in with 'hf auth login' or set HF_TOKEN, then merge."
        )
    api = huggingface_hub.HfApi(token=token, library_name=LIBRARY)
    with _push_errors(None, repo, create_pr):
        info = _target(api, repo, None, private, create_pr)
    public = _is_public(info, private)

    def check_license(plan: MergePlan) -> None:
        decision = decide_license(plan, license)
        check_publication(decision, public=public, accept_license=accept_license)

    return check_license


def _is_public(info: Any, private: bool | None) -> bool:
    """Whether what is pushed can be seen by all: as the repository is, else as it will be made."""
    return private is False if info is None else not info.private


def _target(api: Any, repo: str, folder: Path | None, private: bool | None, create_pr: bool) -> Any:
    """What the Hub says of the repository to push to, None where it is to be made.

    Raises:
        PublishError: it has moved, or does not fit the options.
    """
    info = _existing(api, repo)
    if info is not None and info.id != repo:
        _fail(folder, f"{repo} is called {info.id} by now: push to that name")
    if info is None and create_pr:
        _fail(folder, f"{repo} does not exist, so it cannot take a pull request")
    if info is not None and private and not info.private:
        _fail(folder, f"{repo} is public already: make it private on the Hub, or push elsewhere")
    return info


def _existing(api: Any, repo: str) -> Any:
    """What the Hub says of the repository, None where there is none that the token can see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repo)
    except RepositoryNotFoundError:
        return None


def _decision(manifest: dict[str, Any], stated: str | None) -> LicenseDecision:
    """The licence decision of the manifest, made again where the user states a licence."""
    decision = LicenseDecision.from_dict(manifest["license"])
    if stated is None:
        return decision
    parents = [
        ParentLicense(
            row.label,
            row.license,
            row.name,
            row.link,
            row.gated,
            row.has_text,
            row.stated_by_user,
            row.from_table,
        )
        for row in decision.rows
    ]
    return decide(parents, stated)


def _public_files(
    folder: Path,
    manifest: dict[str, Any],
    recipe: Recipe,
    decision: LicenseDecision,
    repo: str,
    token: str,
    earlier: dict[str, Any] | None,
) -> dict[str, bytes | Path]:
    """What the commit holds: weights as they are; card, recipe and manifest without local paths.

    Files that no merge writes are left out, whatever they are.
    """
    made_by = f"lwmm-hub {manifest['lwmm_hub']}"
    for model, parent in zip(manifest["plan"]["models"], recipe.models, strict=True):
        model["sha256"] = {**model["sha256"], **parent.sha256}
        model.pop("marks", None)  # they say nothing to others, and differ from copy to copy
    manifest = {
        **manifest,
        "recipe": write_recipe(recipe, made_by),
        "license": decision.to_dict(),
        "output": {**manifest["output"], "repository": repo},
    }
    manifest = _as_before(manifest, earlier)
    ours = {*manifest["output"]["files"], INDEX, *SIDE_FILES, LICENSE}
    files: dict[str, bytes | Path] = {
        path.name: path for path in sorted(folder.iterdir()) if path.name in ours and path.is_file()
    }
    for name in (*SIDE_FILES, LICENSE):
        if name in files and leads_out(folder / name):
            _fail(folder, f"its {name} is a link to a file outside it: put a copy in its place")
    texts = {name: text.encode() for name, text in card_files(manifest).items()}
    texts[RECIPE] = manifest["recipe"].encode()
    texts[MANIFEST] = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    if "config.json" in files:
        try:
            texts["config.json"] = public_config(folder / "config.json")
        except ValueError:
            _fail(folder, "its config.json is not JSON: mend it or merge again")
    if decision.stated is not None:
        files.pop(LICENSE, None)
        if (text := _license_text(folder, decision)) is not None:
            texts[LICENSE] = text.encode()
    check_card(texts["README.md"].decode(), files=[*files, *texts])
    for name, content in {**files, **texts}.items():
        _check_content(name, content, token)
    return {**files, **texts}


def _check_content(name: str, content: bytes | Path, token: str) -> None:
    """Refuse a file that shows a token or, where it is ours or settings, a local path.

    Raises:
        CardError: with the file's name.
    """
    if isinstance(content, Path):
        if content.suffix not in _TEXTS or content.stat().st_size > _LONGEST_TEXT:
            return
        content = content.read_bytes()
    text = content.decode("utf-8", "replace")
    if name == LICENSE:  # may speak of any path
        text = LOCAL_PATH.sub(" ", text)
    try:
        assert_publishable(text, token=token)
    except CardError as error:
        raise CardError(f"{name} is not fit to publish: {error}") from error


def _as_before(manifest: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """The manifest with the time and cost of an earlier push that differs in nothing else.

    So the same merge pushed again changes no file, and the Hub makes no commit.
    """
    if earlier is None:
        return manifest
    plan, before = manifest["plan"], earlier.get("plan")
    if not isinstance(before, dict) or not {"run", "plan"} <= earlier.keys():
        return manifest
    same = {
        **manifest,
        "run": earlier["run"],
        "output": {**manifest["output"], "name": (earlier.get("output") or {}).get("name")},
        "plan": {**plan, "cost": before.get("cost")},
    }
    return same if json.loads(json.dumps(same)) == earlier else manifest


def _earlier_manifest(api: Any, repo: str, info: Any) -> dict[str, Any] | None:
    """The manifest of what the repository holds, None where it holds none of ours."""
    if info is None or MANIFEST not in {s.rfilename for s in info.siblings or ()}:
        return None
    from huggingface_hub.errors import HfHubHTTPError

    try:
        path = api.hf_hub_download(repo, MANIFEST, revision=info.sha)
        earlier = json.loads(Path(path).read_bytes())
    except (HfHubHTTPError, OSError, ValueError):
        return None
    return earlier if isinstance(earlier, dict) else None


def _license_text(folder: Path, decision: LicenseDecision) -> str | None:
    """LICENSE for a licence that the user states: its heading made again, the texts as they are."""
    path = folder / LICENSE
    _, mark, texts = (
        path.read_text("utf-8").partition(f"\n\n{TEXT_MARK}\n") if path.is_file() else ("", "", "")
    )
    heading = license_file(decision if not mark else replace(decision, license="other"))
    return None if heading is None else f"{heading.rstrip()}{mark}{texts}".rstrip() + "\n"


def _commit(
    api: Any,
    folder: Path,
    repo: str,
    files: dict[str, bytes | Path],
    info: Any,
    create_pr: bool,
    message: str | None,
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = {s.rfilename for s in info.siblings or ()} if info is not None else set()
    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in files.items()
    ]
    operations += [
        CommitOperationDelete(path_in_repo=name)
        for name in sorted(there)
        if WEIGHT_FILES.fullmatch(name) and name not in files
    ]
    commit = api.create_commit(
        repo,
        operations,
        commit_message=message or "Layer-wise merge by lwmm-hub",
        create_pr=create_pr,
        parent_commit=None if create_pr or info is None else info.sha,
    )
    return str(commit.pr_url or commit.commit_url)  # no request where the Hub has it all


def _fail(folder: Path | None, why: str) -> NoReturn:
    kept = "Nothing was merged yet." if folder is None else f"{KEPT}{_shown(folder)}"
    raise PublishError(f"{why}. {kept}")


def _shown(folder: Path) -> Path:
    """A folder as it is seen from here, where it lies below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


@contextmanager
def _push_errors(folder: Path | None, repo: str, create_pr: bool) -> Iterator[None]:
    """The client's errors in one line of ours; the merged folder is named, if there is one yet.

    Raises:
        PublishError: always instead of the client's own.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # not re-exported

    try:
        yield
    except HfHubHTTPError as error:
        _fail(folder, _why(repo, _status(error), create_pr))
    except HFValidationError:
        _fail(folder, f"{repo!r} is not a valid name of the Hub")
    except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
        _fail(folder, f"the push to {repo} broke off ({type(error).__name__}): push again later")
    except OSError as error:
        _fail(folder, f"a file cannot be read ({error.strerror or type(error).__name__})")
    except RuntimeError as error:  # of an upload, over LFS or Xet
        if (status := _status(error.__cause__)) is not None:
            _fail(folder, _why(repo, status, create_pr))
        _fail(folder, f"the upload to {repo} broke off: push again, what has arrived is not resent")
    except ValueError as error:
        if isinstance(error, LwmmError):
            raise
        _fail(folder, f"the Hub refuses the model card of {repo}: {error}")


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
