"""The commands and their options, as the README lists them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from lwmm_hub import __version__
from lwmm_hub.cli import INTERRUPTED
from lwmm_hub.cli.converting import convert
from lwmm_hub.cli.evaluating import evaluate
from lwmm_hub.cli.fitting import FIT_OPTIONS, METHODS, check_not_tested, take_finding
from lwmm_hub.cli.options import (
    PARENT_OPTION,
    PUSH_OPTIONS,
    Command,
    choose_weights,
    given,
    parents_of,
    paths,
    values,
    with_merge_options,
    with_options,
    with_output,
    written,
)
from lwmm_hub.cli.output import Output
from lwmm_hub.cli.pushing import push, take_pushing
from lwmm_hub.cli.scoring import (
    JUDGE_NAMES,
    JUDGE_OPTIONS,
    check_controlled,
    judge,
    put_scores,
    take_judging,
)
from lwmm_hub.errors import LwmmError, UsageError

if TYPE_CHECKING:
    from lwmm_hub.merge_result import MergeResult
    from lwmm_hub.planning import MergePlan


class _Commands(click.Group):
    """The commands in the order in which they are needed."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them."""
        return ["merge", "plan", "evaluate", "push", "verify", "card", "drift", "convert"]


_AFTER = """\b
Begin with
  lwmm-hub plan org/anchor org/donor
  lwmm-hub merge org/anchor org/donor -o merged
  lwmm-hub evaluate merged org/anchor org/donor --dataset org/data

\b
Exit codes
  0 done, 1 error, 2 usage, 3 refused by a licence rule, 4 unrelated models,
  5 verify found a difference, 130 interrupted

\b
Completion (bash_source, zsh_source or fish_source)
  eval "$(_LWMM_HUB_COMPLETE=bash_source lwmm-hub)"
"""


@click.group(
    cls=_Commands,
    epilog=_AFTER,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="lwmm-hub", message="%(prog)s %(version)s")
def cli() -> None:
    """Merge segmentation models of the Hugging Face Hub, layer by layer.

    The first model is the anchor: the result keeps its task, head, labels and file format. Models
    are written org/name, org/name@revision, org/name:file.pth, or as a local folder or file.
    """


@cli.command()
@click.argument("models", nargs=-1, metavar="[ANCHOR DONOR...]", shell_complete=paths)
@click.option("-o", "--output", "folder", metavar="DIR", shell_complete=paths,
              help="Where to (default ./merged).")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an earlier merge of that name.")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@click.option("--recipe", metavar="FILE|DIR|REPO", shell_complete=paths,
              help="Run a recipe again, without models or options.")  # fmt: skip
@with_options(PARENT_OPTION)
@click.option("--threads", type=click.IntRange(1, 256), metavar="N",
              help="Workers (default: cores less one).")  # fmt: skip
@click.option("--tag", "tags", multiple=True, metavar="TEXT", help="Add a tag to the card.")
@with_merge_options
@with_options(FIT_OPTIONS, "Layer weights from images")
@with_options(JUDGE_OPTIONS, "Scores on the card")
@with_options(
    (click.option("--push", metavar="REPO", help="Push the result to this repository."),
     *PUSH_OPTIONS), "Publishing",
)  # fmt: skip
@with_output
def merge(
    models: tuple[str, ...],
    folder: str | None,
    push: str | None,
    recipe: str | None,
    parents: tuple[str, ...],
    tags: tuple[str, ...],
    dry_run: bool,
    threads: int | None,
    overwrite: bool,
    output: Output,
    **options: Any,
) -> None:
    """Merge models into a folder, and push it if asked to.

    The first model is the anchor, whose task, head and format the result keeps; see 'lwmm-hub
    --help' for how models are written. 'lwmm-hub plan' shows what would happen.
    """
    pushing = take_pushing(options, push)
    if recipe is not None:
        beside = [name for name in options if given(name) and name not in JUDGE_NAMES]
        if models or beside:
            what = written(beside[0]) if beside else "models"
            raise UsageError(f"--recipe holds the models and options: leave {what} out.")
    elif parents:
        raise UsageError("--parent goes with --recipe: name the model itself.")
    finding = take_finding(options)
    choose_weights(options)
    judge_on = options["judge_on"]
    judging = take_judging(options)
    check_not_tested(finding, judge_on, judging.data if judging is not None else None)
    if judging is not None and judging.controls and finding is None and "weights" not in options:
        check_controlled(recipe)
    if judging is not None and recipe is None:
        from lwmm_hub.judging import check_comparable

        check_comparable(_two(models)[0], judging.data, judging.labels)
    if dry_run:
        if finding is not None:
            _print_plan(finding.plan(_two(models), options, output), output)
        else:
            _show_plan(models, options, True, output, recipe, parents)
        return
    from lwmm_hub.display import merge_rows
    from lwmm_hub.pipeline import merge as run_merge

    # without -o the folder is only on the way to the Hub, and stays where the push fails
    scratch = None
    if push is not None:
        from lwmm_hub.cli.keeping import clear_scratch, new_scratch, saved

        scratch = new_scratch() if folder is None else None
    where = folder
    if where is None:
        where = "merged" if scratch is None else str(scratch / "merged")
    allow_push: Callable[[MergePlan], None] | None = None
    try:
        if push is not None:
            from lwmm_hub.publishing import check_push  # for a push alone

            allow_push = check_push(push, **pushing)
        if finding is not None:  # what a long work would end with is said before it
            from lwmm_hub.pipeline import output_folder
            from lwmm_hub.writing import check_output

            check_output(output_folder(where), overwrite, [], 0)
        found = finding.plan(_two(models), options, output) if finding is not None else None
        with output.progress("merging") as bar:

            def approve(plan: MergePlan) -> None:
                if allow_push is not None:
                    allow_push(plan)
                bar.expect_plan(plan)

            common: dict[str, Any] = {
                "output": where, "overwrite": overwrite, "threads": threads, "progress": bar,
                "approve": approve,
            }  # fmt: skip
            if recipe is not None:
                from lwmm_hub.rerunning import merge_recipe

                result = merge_recipe(recipe, parents=parents_of(parents), tags=tags, **common)
            elif found is not None:
                result = run_merge(found, tags=tags, **common)
            else:
                anchor, *donors = _two(models)
                result = run_merge(anchor, *donors, tags=tags, **common, **options)
        output.warnings(result.warnings)
        data = result.to_dict()
        judged = None
        if judging is not None:
            judged = judge(result, output, judging, None if scratch is not None else where)
            data["scores"] = judged.to_dict()
        url = None
        if push is not None:
            try:
                url = result.push_to_hub(push, **pushing, warn=data["warnings"].append)
            except Exception as error:
                if scratch is None:
                    raise
                raise saved(error, Path(where), push) from error
    finally:
        if scratch is not None:
            clear_scratch(scratch)
    if scratch is not None:
        data["output"] = None
    output.warnings(data["warnings"][len(result.warnings) :])  # of the push
    data["commit_url"] = url

    def human() -> str:
        table = f"\n\n{judged.text(output.color)}\n" if judged is not None else ""
        if url is not None:
            at = "" if folder is None else f" in {where}"
            return f"{_counts(result)}{at}{table}\n{url}"
        return f"{_counts(result)} in {where}{table}\n{_next_step(where)}"

    output.result(data, human, lambda: merge_rows(data), quiet=url or where)


def _counts(result: MergeResult) -> str:
    counts = result.plan.counts
    tensors = "1 tensor" if counts.kept == 1 else f"{counts.kept} tensors"
    return (
        f"Merged {counts.merged} parameters, kept {tensors} of the anchor{counts.also}, "
        f"{result.seconds:.1f} s"
    )


def _next_step(where: str) -> str:
    return f"Read {where}/README.md, then publish it: lwmm-hub push {quote(where)} OWNER/NAME"


def _two(models: tuple[str, ...]) -> tuple[str, ...]:
    if len(models) < 2:
        command = click.get_current_context().command_path
        raise UsageError(f"name an anchor and at least one donor: {command} ANCHOR DONOR")
    return models


@cli.command()
@click.argument("models", nargs=-1, metavar="ANCHOR DONOR...", shell_complete=paths)
@with_merge_options
@click.option("--check-weights", is_flag=True, help="Also read the sample that decides the scope.")
@with_output
def plan(models: tuple[str, ...], check_weights: bool, output: Output, **options: Any) -> None:
    """Show what would merge with which weight, what would not and why.

    Only configs and headers are read.
    """
    if options["weights"] in METHODS:
        raise UsageError(
            f"plan looks at no images: 'lwmm-hub merge ... --weights {options['weights']} "
            "--dry-run' finds layer weights and shows their plan."
        )
    choose_weights(options)
    _show_plan(models, options, check_weights, output)


def _show_plan(
    models: tuple[str, ...],
    options: Mapping[str, Any],
    check_weights: bool,
    output: Output,
    recipe: str | None = None,
    parents: Sequence[str] = (),
) -> None:
    if recipe is None:
        _two(models)
    from lwmm_hub.pipeline import plan as make_plan
    from lwmm_hub.rerunning import plan_recipe

    if recipe is not None:
        made = plan_recipe(recipe, parents=parents_of(parents))
    else:
        made = make_plan(*models, check_weights=check_weights, **options)
    _print_plan(made, output)


def _print_plan(made: MergePlan, output: Output) -> None:
    from lwmm_hub.display import plan_rows, plan_text

    data = made.to_dict()
    output.result(
        data,
        lambda: plan_text(data, output.color),
        lambda: plan_rows(data),
        quiet=f"{made.counts.merged} merged, {made.counts.kept} kept{made.counts.also}",
    )


@cli.command()
@click.argument("models", nargs=-1, metavar="ANCHOR DONOR...", shell_complete=paths)
@click.option("--threshold", type=float, default=0.1, show_default=True, metavar="X",
              help="Relative change above which an entry counts as changed.")  # fmt: skip
@click.option("--plot", metavar="FILE", shell_complete=paths,
              help="Draw it over depth (.png, .svg or .pdf).")  # fmt: skip
@click.option("--match", default="names", show_default=True, metavar="RULE", shell_complete=values,
              help="names, or values, as in merge.")  # fmt: skip
@with_output
def drift(
    models: tuple[str, ...], threshold: float, plot: str | None, match: str, output: Output
) -> None:
    """Show how far donors are from the anchor, layer by layer."""
    _two(models)
    from lwmm_hub import drifting
    from lwmm_hub.display import tab_row
    from lwmm_hub.inferring import match_by
    from lwmm_hub.resolving import resolve

    if plot is not None:
        drifting.check_plot(Path(plot))
    checkpoints = [resolve(model, download=True) for model in models]
    key_map, notes = match_by(match, checkpoints)
    drifts = drifting.measure_drift(key_map, checkpoints, threshold)
    labels = [c.label for c in checkpoints]
    warnings = [w for c in checkpoints for w in c.warnings]
    warnings += [*notes, *key_map.warnings, *drifting.unsound_warnings(drifts, labels)]
    output.warnings(warnings)
    if plot is not None:
        drifting.plot_drift(drifts, labels, threshold, Path(plot))
        output.note(f"Drew {plot}")
    output.result(
        drifting.drift_dict(drifts, labels, threshold, warnings),
        lambda: drifting.drift_text(drifts, labels, threshold),
        lambda: [tab_row(d.model, d.name, d.kind, d.changed, d.distance, d.cosine) for d in drifts],
    )


@cli.command()
@click.argument("folder", metavar="DIR", shell_complete=paths)
@click.option("--scores", metavar="FILE", shell_complete=paths,
              help="Put these scores of 'evaluate --save-to' in.")  # fmt: skip
@with_output
def card(folder: str, scores: str | None, output: Output) -> None:
    """Render README.md again from the manifest of a merged folder."""
    from lwmm_hub.manifest import render_card

    if scores is not None:
        put_scores(folder, scores)
    path = str(render_card(folder))
    output.result({"card": path}, lambda: f"Wrote {path}", lambda: [path], quiet=path)


@cli.command()
@click.argument("target", metavar="DIR|REPO", shell_complete=paths)
@with_options(PARENT_OPTION)
@click.option("--threads", type=click.IntRange(1, 256), metavar="N",
              help="Workers (default: cores less one).")  # fmt: skip
@with_output
def verify(target: str, parents: tuple[str, ...], threads: int | None, output: Output) -> None:
    """Merge again from the pinned recipe and compare checksums."""
    from lwmm_hub.verifying import verify as run_verify

    with output.progress("verifying") as bar:
        found = run_verify(
            target, parents=parents_of(parents), threads=threads, progress=bar,
            approve=bar.expect_plan,
        )  # fmt: skip
    output.warnings(found.warnings)
    files = "1 file" if len(found.files) == 1 else f"{len(found.files)} files"
    output.result(
        {"verified": found.target, "sha256": dict(found.files)}
        | ({"warnings": list(found.warnings)} if found.warnings else {}),
        lambda: f"{found.target} is what its recipe gives: {files}, same sha256.",
        lambda: [f"{name}\t{digest}" for name, digest in found.files.items()],
    )


cli.add_command(convert)
cli.add_command(evaluate)
cli.add_command(push)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run `lwmm-hub` and return its exit code: 0 done, 1 error, 2 usage, 3, 4, 5, 130."""
    debug = os.environ.get("HF_DEBUG") in {"1", "true", "True"}
    try:
        found = cli.main(args=arguments, prog_name="lwmm-hub", standalone_mode=False)
        sys.stdout.flush()  # what cannot be written is answered for here
        return found if isinstance(found, int) else 0
    except LwmmError as error:
        if debug:
            raise
        _say(error.text)
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            _say(f"{error.format_message()} See '{error.ctx.command_path} --help'.")
        else:
            _say(error.format_message())
        return error.exit_code
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  nobody reads: nothing to flush
        return 1
    except OSError as error:
        if debug:
            raise
        where = repr(error.filename) if error.filename else "the output"
        _say(f"cannot read or write {where}: {error.strerror or error}. Check its permissions and "
             "its disk.")  # fmt: skip
        return 1
    except Exception as error:
        if debug:
            raise
        _say(f"internal error ({type(error).__name__}: {error}). Set HF_DEBUG=1 to see where, and "
             "report it.")  # fmt: skip
        return 1


def _say(text: str) -> None:
    from lwmm_hub.display import one_line  # here, so that --help stays instant

    with suppress(OSError):  # where nobody reads, the exit code alone says it
        click.echo(f"lwmm-hub: {one_line(text)}", err=True)
