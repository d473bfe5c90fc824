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


def _fraction_or_layer(_context: Any, _parameter: Any, value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


# one table for every command that merges; names are those of MergeOptions
MERGE_OPTIONS = (
    click.option("--schedule", default="linear", show_default=True, metavar="NAME",
                 help="How donors fade with depth: linear, cosine (smoothly), step (at once, "
                      "halfway from --start to --end), harmonic (as 1 / (layer + number of "
                      "models); takes no further option), isotropic (not at all)."),
    click.option("--weights", metavar="FILE",
                 help="Layer weights in numbers instead of a schedule; merge also takes fit "
                      "(learned from unlabelled --images), entropy (measured on them) and drift "
                      "(measured on the weights)."),
    click.option("--start", default="0", show_default=True, metavar="X",
                 callback=_fraction_or_layer,
                 help="Where the donors begin to fade: a fraction of depth from 0 to 1, or the "
                      "name of a layer or group that 'lwmm-hub plan' lists."),
    click.option("--end", default="1", show_default=True, metavar="X",
                 callback=_fraction_or_layer,
                 help="Where they are gone and the anchor is alone, written as --start."),
    click.option("--gamma", type=float, default=1.0, show_default=True,
                 help="Exponent of the linear or cosine ramp; above 1 donors stay longer."),
    click.option("--anchor-weight", type=float, metavar="P",
                 help="The anchor's weight before the ramp (default 1/M)."),
    click.option("--endpoint", type=float, default=1.0, show_default=True, metavar="E",
                 help="How far the ramp goes towards the anchor, 0 to 1."),
    click.option("--batch-norm", default="linear", show_default=True, metavar="RULE",
                 help="Running statistics: linear, moment or anchor."),
    click.option("--scope", default="auto", show_default=True, metavar="SCOPE",
                 help="auto leaves unrelated heads out; all; backbone."),
    click.option("--match", default="names", show_default=True, metavar="RULE",
                 help="names, or values: also compare the weights that no name matches."),
    click.option("--allow-unrelated", is_flag=True, help="Merge unrelated models all the same."),
    click.option("--allow-nonfinite", is_flag=True, help="Merge weights with NaN or infinity."),
    click.option("--dtype", default="auto", show_default=True, metavar="DTYPE",
                 help="Of the result: auto (the anchor's), float32, float16 or bfloat16."),
    click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE",
                 help="Largest weight file."),
    click.option("--output-format", default="safetensors", show_default=True, metavar="FORMAT",
                 help="safetensors, or pth with the anchor's own nesting."),
)  # fmt: skip
PUSH_OPTIONS = (
    click.option("--private/--public", "private", default=None,
                 help="Visibility of a new repository (default private)."),
    click.option("--create-pr", is_flag=True, help="Open a pull request instead of a commit."),
    click.option("--accept-license", is_flag=True, help="Accept the parents' licence terms."),
    click.option("--name-private", is_flag=True,
                 help="Name private parents and data sets in public."),
    click.option("--license", "license_id", metavar="ID",
                 help="The licence of parents that do not say theirs; where all say, one that "
                      "keeps what theirs ask for."),
)  # fmt: skip
PARENT_OPTION = (
    click.option("--parent", "parents", multiple=True, metavar="LABEL=PATH",
                 help="Where a local parent is, or a copy of one that the Hub no longer has."),
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


def written(name: str) -> str:
    """How an option of the running command is written, e.g. `--split` for `images_split`."""
    known = click.get_current_context().command.params
    return next(parameter.opts[0] for parameter in known if parameter.name == name)


def parents_of(pairs: Sequence[str]) -> dict[str, str]:
    """Where local parents are, label -> path, of `--parent LABEL=PATH`.

    Raises:
        UsageError: one is written otherwise.
    """
    found = {}
    for pair in pairs:
        label, equals, path = pair.partition("=")
        if not equals or not label or not path:
            raise UsageError(f"--parent {pair!r}: write LABEL=PATH.")
        found[label] = path
    return found


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
                f"--weights gives the layer weights in numbers: leave {written(name)} out."
            )
        del options[name]
