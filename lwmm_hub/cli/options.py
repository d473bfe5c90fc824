"""What the commands share: how options are put on them, and how they are told to print."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lwmm_hub.cli.output import FORMATS, Output
from lwmm_hub.errors import UsageError
from lwmm_hub.weight_table import FOUND

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])

_FORMAT_OPTIONS = (
    click.option("--format", "wanted", type=click.Choice(FORMATS), default="auto",
                 show_default=True, help="How to print."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option("-q", "--quiet", is_flag=True, help="Print as little as possible."),
)  # fmt: skip


class Command(click.Command):
    """A command whose help shows its options in sections, as `with_options` names them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, in the order of their first options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and row is not None:
                sections.setdefault(vars(parameter).get("section", "Options"), []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def paths(_context: Any, _parameter: Any, incomplete: str) -> list[CompletionItem]:
    """What a shell completes where a model, a file or a folder is named: its own files."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def values(_context: Any, parameter: click.Parameter, incomplete: str) -> list[str]:
    """What a shell completes where one of a few words is asked for."""
    from lwmm_hub.key_map import MATCH
    from lwmm_hub.options import BATCH_NORM, DTYPE_OPTIONS, OUTPUT_FORMATS, SCOPES
    from lwmm_hub.schedule import SCHEDULES

    known = {
        "batch_norm": BATCH_NORM, "dtype": DTYPE_OPTIONS, "match": MATCH,
        "output_format": OUTPUT_FORMATS, "schedule": SCHEDULES, "scope": SCOPES,
    }  # fmt: skip
    return [word for word in known[parameter.name or ""] if word.startswith(incomplete)]


def _fraction_or_layer(_context: Any, _parameter: Any, value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


# for every command that merges; names are those of MergeOptions
CURVE_OPTIONS = (
    click.option("--schedule", default="linear", show_default=True, metavar="NAME",
                 shell_complete=values,
                 help="How donors fade with depth: linear, cosine (smoothly), step (at once, "
                      "halfway from --start to --end), harmonic (as 1 / (layer + number of "
                      "models); takes no further option), isotropic (not at all)."),
    click.option("--weights", metavar="FILE", shell_complete=paths,
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
    click.option("--gamma", type=float, default=1.0, show_default=True, metavar="G",
                 help="Exponent of the linear or cosine ramp; above 1 donors stay longer."),
    click.option("--anchor-weight", type=float, metavar="P",
                 help="The anchor's weight before the ramp (default 1/M)."),
    click.option("--endpoint", type=float, default=1.0, show_default=True, metavar="E",
                 help="How far the ramp goes towards the anchor, 0 to 1."),
)  # fmt: skip
SHARING_OPTIONS = (
    click.option("--batch-norm", default="linear", show_default=True, metavar="RULE",
                 shell_complete=values,
                 help="Running statistics: linear, moment or anchor."),
    click.option("--scope", default="auto", show_default=True, metavar="SCOPE",
                 shell_complete=values,
                 help="auto leaves unrelated heads out; all; backbone."),
    click.option("--match", default="names", show_default=True, metavar="RULE",
                 shell_complete=values,
                 help="names, or values: also compare the weights that no name matches."),
    click.option("--allow-unrelated", is_flag=True, help="Merge unrelated models all the same."),
    click.option("--allow-nonfinite", is_flag=True, help="Merge weights with NaN or infinity."),
)  # fmt: skip
STORAGE_OPTIONS = (
    click.option("--dtype", default="auto", show_default=True, metavar="DTYPE",
                 shell_complete=values,
                 help="Of the result: auto (the anchor's), float32, float16 or bfloat16."),
    click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE",
                 help="Largest weight file."),
    click.option("--output-format", default="safetensors", show_default=True, metavar="FORMAT",
                 shell_complete=values,
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


def with_options(options: Sequence[Callable[[F], F]], section: str = "Options") -> Callable[[F], F]:
    """Put a table of options on a command, in its order, as a section of its help."""

    def add(function: F) -> F:
        before = len(vars(function).get("__click_params__", ()))
        function = functools.reduce(lambda f, option: option(f), reversed(options), function)
        for parameter in vars(function)["__click_params__"][before:]:
            parameter.section = section
        return function

    return add


def with_merge_options(function: F) -> F:
    """Give a command all that decides the numbers of a merge, and how they are stored."""
    function = with_options(STORAGE_OPTIONS, "How it is stored")(function)
    function = with_options(SHARING_OPTIONS, "What merges")(function)
    return with_options(CURVE_OPTIONS, "Layer weights")(function)


def with_output(function: F) -> F:
    """Give a command the format options, and hand it an `Output`."""

    @functools.wraps(function)
    def run(wanted: str, as_json: bool, quiet: bool, **rest: Any) -> Any:
        return function(output=Output.choose(wanted, as_json, quiet), **rest)

    return with_options(_FORMAT_OPTIONS, "Printing")(run)  # type: ignore[return-value]


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
    if not Path(options["weights"]).exists():
        raise UsageError(
            f"--weights {options['weights']!r} is neither a file nor one of {', '.join(FOUND)}. "
            "Name a file with 'layer: [anchor, donor]' lines, a plan or a recipe."
        )
    for name in ("schedule", "start", "end", "gamma", "anchor_weight", "endpoint"):
        if given(name):
            raise UsageError(
                f"--weights gives the layer weights in numbers: leave {written(name)} out."
            )
        del options[name]
