"""What may be refused before a push, and the push."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lwmm_hub.errors import PublishError, UsageError, in_python
from lwmm_hub.licenses import LicenseDecision, ParentLicense, check_publication, decide
from lwmm_hub.manifest import as_written, decide_license, read_manifest
from lwmm_hub.planning import MergePlan
from lwmm_hub.publishing.contents import public_files
from lwmm_hub.publishing.noticing import changed_beside, edited_card, replaced_card
from lwmm_hub.publishing.targets import (
    fail,
    find_target,
    hidden_parents,
    hidden_scores,
    is_public,
    names_in,
    push_errors,
    refuse_links,
    refuse_names,
)
from lwmm_hub.recognising import public_recipe
from lwmm_hub.reference import is_repository_id
from lwmm_hub.writing import MANIFEST, WEIGHT_FILES, sha256_of
from lwmm_hub.writing.folder import OURS
from lwmm_hub.writing.weights import INDEX


def publish(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    accept_license: bool = False,
    name_private: bool = False,
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
        name_private: name parents and data sets in public whose repositories are private.
        license: the licence as you know it, recorded as stated by you.
        token: of the Hub; default is the one you are logged in with.
        message: of the commit.
        parents: label -> path of local parents that moved since the merge.
        warn: called with what the user should know; None is a warning of Python's.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        LicenseRefusedError: a rule refuses a public target.
        PublishError: one of `parents` is not what was merged, the Hub did not take it, or a private
            parent or data set would be named in public; the folder stays as it is.
    """
    folder = Path(folder)
    if not is_repository_id(repo):
        raise UsageError(f"{repo!r} is not a repository id: write owner/name.")
    manifest = read_manifest(folder)
    with as_written(folder):
        refuse_links(manifest["plan"]["models"], folder)
    import huggingface_hub
    from huggingface_hub import constants

    from lwmm_hub.resolving.hub_errors import LIBRARY

    token = token or huggingface_hub.get_token()
    if token is None:
        fail(folder, "pushing needs a token: log in with 'hf auth login' or set HF_TOKEN")
    if constants.HF_HUB_OFFLINE:
        fail(folder, "HF_HUB_OFFLINE is set: unset it to push")
    api = huggingface_hub.HfApi(token=token, library_name=LIBRARY)
    with push_errors(folder, repo, create_pr):
        info = find_target(api, repo, folder, private, create_pr)
        decision = _decision(manifest, license)
        if is_public(info, private):
            if not name_private:
                refuse_names(hidden_parents(api, manifest["plan"]["models"]), repo, folder)
                refuse_names(hidden_scores(api, manifest), repo, folder, "its commit")
            _check_license(decision, repo, info, accept_license)
        earlier = _earlier_manifest(api, repo, info)
        with as_written(folder):
            _check_weights(folder, manifest)
            said = (*edited_card(folder, manifest), *changed_beside(folder, manifest))
            recipe, unknown = public_recipe(folder, manifest, parents or {})
            files = public_files(folder, manifest, recipe, decision, repo, token, earlier)
        said += unknown
        if not create_pr:
            said += replaced_card(api, repo, info, earlier, files)
        for text in said:
            (warn or _warn)(text)
        if info is None:
            api.create_repo(repo, private=private is not False)
        return _commit(api, folder, repo, files, info, create_pr, message)


def _warn(text: str) -> None:
    warnings.warn(in_python(text), UserWarning, stacklevel=3)  # of who calls `publish`


def check_push(
    repo: str,
    license: str | None = None,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    accept_license: bool = False,
    name_private: bool = False,
) -> Callable[[MergePlan], None]:
    """Refuse what can be refused before a merge that is to be pushed: names, token, repository.

    Whether the token may write there is seen when it is pushed.

    Returns:
        A check of the plan, once there is one: whether its parents allow the push.

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
    with push_errors(None, repo, create_pr):
        info = find_target(api, repo, None, private, create_pr)

    def check_parents(plan: MergePlan) -> None:
        refuse_links([{"label": m.label, "links": m.links} for m in plan.models], None)
        if is_public(info, private):
            if not name_private:
                refuse_names([m.label for m in plan.models if m.private], repo, None)
            _check_license(decide_license(plan, license), repo, info, accept_license)

    return check_parents


def _check_license(decision: LicenseDecision, repo: str, info: Any, accept_license: bool) -> None:
    """Refuse a public target where the decision does."""
    existing = None if info is None else repo
    check_publication(decision, public=True, accept_license=accept_license, existing=existing)


def _check_weights(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse to publish other weights than those that card and manifest speak of.

    Raises:
        PublishError: a file is missing or was changed.
    """
    files = manifest["output"]["files"]
    for name, file in files.items():
        path = folder / name
        if not WEIGHT_FILES.fullmatch(name) or not path.is_file():
            fail(folder, f"{name} is missing among its weights: merge again")
        if sha256_of(path) != file["sha256"]:
            fail(folder, f"{name} is not what was merged, its sha256 is another: merge again")
    sharded = len(files) > 1 and all(name.endswith(".safetensors") for name in files)
    if sharded and not (folder / INDEX).is_file():
        fail(folder, f"{INDEX} is missing among its weights: merge again")


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


def _earlier_manifest(api: Any, repo: str, info: Any) -> dict[str, Any] | None:
    """The manifest of what the repository holds, None where it holds none of ours."""
    if MANIFEST not in names_in(info):
        return None
    from huggingface_hub.errors import HfHubHTTPError

    try:
        path = api.hf_hub_download(repo, MANIFEST, revision=info.sha)
        earlier = json.loads(Path(path).read_bytes())
    except (HfHubHTTPError, OSError, ValueError):
        return None
    return earlier if isinstance(earlier, dict) else None


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

    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in files.items()
    ]
    operations += [
        CommitOperationDelete(path_in_repo=name)
        for name in sorted(names_in(info) - files.keys())
        if WEIGHT_FILES.fullmatch(name) or (MANIFEST in names_in(info) and name in OURS)
    ]
    commit = api.create_commit(
        repo,
        operations,
        commit_message=message or "Layer-wise merge by lwmm-hub",
        create_pr=create_pr,
        parent_commit=None if create_pr or info is None else info.sha,
    )
    return str(commit.pr_url or commit.commit_url)  # no request where the Hub has it all
