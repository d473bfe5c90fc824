"""What the commands share: how options are put on them, and how they are told to print."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from lwmm_hub.cli.output import FORMATS, Output
from lwmm_hub.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_FORMAT_OPTIONS = (
    click.option("--format", "wanted", type=click.Choice(FORMATS), default="auto",
                 show_default=True, help="How to print."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option("-q", "--quiet", is_flag=True, help="Print as little as possible."),
)  # fmt: skip


def with_options(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """Put a table of options on a command, in its order."""

    def add(function: F) -> F:
        return functools.reduce(lambda f, option: option(f), reversed(options), function)

    return add


def with_output(function: F) -> F:
    """Give a command the format options, and hand it an `Output`."""

    @functools.wraps(function)
    def run(wanted: str, as_json: bool, quiet: bool, **rest: Any) -> Any:
        return function(output=Output.choose(wanted, as_json, quiet), **rest)

    return with_options(_FORMAT_OPTIONS)(run)  # type: ignore[return-value]


def given(name: str) -> bool:
    """Whether an option of the running command was written on the command line."""
    context = click.get_current_context()
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def choose_weights(options: dict[str, Any]) -> None:
    """Leave out the schedule's options where numbers are given instead.

    Raises:
        UsageError: both are given.
    """
    if options["weights"] is None:
        del options["weights"]
        return
    for name in ("schedule", "start", "end", "gamma", "anchor_weight", "endpoint"):
        if given(name):
            raise UsageError(
                f"--weights gives the layer weights in numbers: leave --{name.replace('_', '-')} "
                "out."
            )
        del options[name]
