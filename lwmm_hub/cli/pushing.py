"""Pushing on the command line: its options, and the command."""

from __future__ import annotations

from typing import Any

import click

from lwmm_hub.cli.options import (
    PUSH_OPTIONS,
    Command,
    given,
    parents_of,
    paths,
    with_options,
    with_output,
)
from lwmm_hub.cli.output import Output
from lwmm_hub.errors import UsageError

_ARGUMENTS = {
    "private": "private",
    "create_pr": "create_pr",
    "accept_license": "accept_license",
    "name_private": "name_private",
    "license_id": "license",
}
"""What the options of a push are called here -> in the library."""


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


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", shell_complete=paths)
@click.argument("repo", metavar="REPO")
@with_options(PUSH_OPTIONS)
@click.option("--parent", "parents", multiple=True, metavar="LABEL=PATH",
              help="Where a local parent is that moved since the merge.")  # fmt: skip
@with_output
def push(folder: str, repo: str, output: Output, **options: Any) -> None:
    """Push a merged folder to the Hub in one commit.

    The URL of the commit, or of the pull request, is printed last.
    """
    from lwmm_hub.publishing import publish

    warnings: list[str] = []
    parents = parents_of(options.pop("parents"))
    pushing = take_pushing(options, repo)
    url = publish(folder, repo, **pushing, parents=parents, warn=warnings.append)
    output.warnings(warnings)
    data = {"commit_url": url} | ({"warnings": warnings} if warnings else {})
    output.result(data, lambda: url, lambda: [url], quiet=url)
