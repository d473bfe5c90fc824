"""Pushing on the command line: its options, and what a failed push leaves."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lwmm_hub import __version__
from lwmm_hub.cli.options import PUSH_OPTIONS, given, with_options, with_output
from lwmm_hub.cli.output import Output
from lwmm_hub.errors import LwmmError, UsageError

if TYPE_CHECKING:
    from lwmm_hub.merge_result import MergeResult

_ARGUMENTS = {
    "private": "private",
    "create_pr": "create_pr",
    "accept_license": "accept_license",
    "name_private": "name_private",
    "license_id": "license",
}
"""What the options of a push are called here -> in the library."""
_KEEP = ".keep"


def take_pushing(options: dict[str, Any], repo: str | None) -> dict[str, Any]:
    """The arguments of a push, taken out of the options of a command.

    Raises:
        UsageError: there are some, and no repository to push to.
    """
    if repo is None and any(map(given, _ARGUMENTS)):
        raise UsageError(
            "--private, --public, --create-pr, --accept-license, --name-private and --license go "
            "with --push: name a repository with it."
        )
    return {argument: options.pop(name) for name, argument in _ARGUMENTS.items()}


def push_result(
    result: MergeResult, repo: str, pushing: dict[str, Any], scratch: Path | None, where: Path
) -> str:
    """Push what was just merged; from a temporary folder it is saved where that fails.

    Returns:
        The URL of the commit, or of the pull request.
    """
    try:
        return result.push_to_hub(repo, **pushing)
    except Exception as error:
        if scratch is None:
            raise
        raise _kept(error, where, repo) from error


def left_behind(scratch: Path) -> bool:
    """Whether a temporary folder holds a merge that could be saved nowhere else."""
    return (scratch / _KEEP).exists()


@click.command()
@click.argument("folder", metavar="DIR")
@click.argument("repo", metavar="REPO")
@with_options(PUSH_OPTIONS)
@with_output
def push(folder: str, repo: str, output: Output, **options: Any) -> None:
    """Push a merged folder to the Hub in one commit; prints its URL last."""
    from lwmm_hub.publishing import publish

    url = publish(folder, repo, **take_pushing(options, repo))
    output.result({"commit_url": url}, lambda: url, lambda: [url], quiet=url)


def _kept(error: Exception, folder: Path, repo: str) -> LwmmError:
    """The error of a push, after its merge was saved from the temporary folder it lies in."""
    from lwmm_hub.errors import PublishError
    from lwmm_hub.recipe import moved_recipe, read_recipe, write_recipe
    from lwmm_hub.writing import RECIPE, write_text

    stem = f"merged-{repo.rpartition('/')[2]}"
    names = (Path(stem if number == 1 else f"{stem}-{number}") for number in itertools.count(1))
    kept = next(path for path in names if not path.exists())
    try:
        recipe = moved_recipe(read_recipe(folder / RECIPE), kept.absolute())
        shutil.copytree(folder, kept)
        write_text(kept / RECIPE, write_recipe(recipe, f"lwmm-hub {__version__}"))
    except OSError:  # no room or no right to write here: then it stays where it is
        shutil.rmtree(kept, ignore_errors=True)
        (folder.parent / _KEEP).touch()
        kept = folder
    kind = type(error) if isinstance(error, LwmmError) else PublishError
    said = str(error).partition(f" The merged folder is kept: {folder}")[0]
    return kind(
        f"{said} The merged folder is kept as {kept}: push it with 'lwmm-hub push {kept} {repo}'."
    )
