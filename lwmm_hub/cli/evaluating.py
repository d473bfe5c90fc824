"""`lwmm-hub evaluate`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lwmm_hub.cli.options import Command, parents_of, paths, with_options, with_output
from lwmm_hub.cli.output import Output, counting_bar
from lwmm_hub.errors import OutputError, UsageError
from lwmm_hub.small_files import read_small, read_small_text

if TYPE_CHECKING:
    from lwmm_hub.evaluation.comparing import Column

_DATA_OPTIONS = (
    click.option("--dataset", metavar="DATA",
                 help="A data set of the Hub, a folder, or LAYOUT:FOLDER."),
    click.option("--split", metavar="NAME", help="Of the data set, e.g. validation."),
    click.option("--revision", metavar="REV", help="Of the data set on the Hub."),
    click.option("--labels", "label_space", metavar="SPACE",
                 help="What its labels are where it does not say: cityscapes-19, or a JSON file."),
    click.option("--image-column", metavar="NAME", help="Where it has several."),
    click.option("--label-column", metavar="NAME", help="Where it has several."),
    click.option("--streaming", is_flag=True, help="Read it from the Hub without storing it."),
    click.option("--open-partial", is_flag=True,
                 help="Of Office: classes that no model was trained on are to be called unknown."),
)  # fmt: skip
_LABEL_OPTIONS = (
    click.option("--map-labels", is_flag=True,
                 help="Compare labels by name where they differ; others count as wrong."),
    click.option("--label-map", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
                 help="Lines of 'label of the model = label of the data'."),
    click.option("--model-labels", metavar="SPACE",
                 help="What the models' classes are, where their configs do not say."),
)  # fmt: skip
_RUN_OPTIONS = (
    click.option("--task", metavar="TASK",
                 help="semantic, panoptic, classification or detection (default: the data's)."),
    click.option("--limit", type=int, metavar="N", help="Only the first N images."),
    click.option("--batch-size", type=int, default=1, show_default=True, metavar="N",
                 help="Images of one size that go through together."),
    click.option("--window", metavar="N or HxW",
                 help="Slide a window over images at their own size."),
    click.option("--flip", is_flag=True, help="Also show images mirrored, and average."),
    click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best)."),
    click.option("--dtype", default="float32", show_default=True, metavar="DTYPE",
                 help="float32, float16 or bfloat16."),
    click.option("--shards", type=int, default=1, show_default=True, metavar="K",
                 help="Split the images into K parts."),
    click.option("--shard", type=int, metavar="I", help="Look at part I only, from 0."),
    click.option("--states", metavar="DIR", help="Where half-done work is kept."),
    click.option("--fresh", is_flag=True, help="Do not go on where an earlier run stopped."),
)  # fmt: skip

_READING = (
    "split",
    "task",
    "revision",
    "label_space",
    "image_column",
    "label_column",
    "streaming",
    "open_partial",
)
_TIMED = 4  # images
MAX_SCORES = 64 << 20  # bytes
_MAX_MAP = 1 << 20  # bytes of a map of labels
_SOFTWARE = "lwmm-hub evaluate"  # what an overlay says of itself


class _Ensemble(Command):
    """Lets `--ensemble` take all models that follow it, as `--ensemble A B C`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        taken: int | None = None  # how many since `--ensemble`; None outside of it
        for argument in args:
            if taken is not None and not argument.startswith("-"):
                spread += ["--ensemble", argument]
                taken += 1
                continue
            if taken == 0:
                break
            taken = 0 if argument == "--ensemble" else None
            if taken is None:
                spread.append(argument)
        if taken == 0:
            raise UsageError("--ensemble without models: name them behind it.")
        return super().parse_args(ctx, spread)


@click.command(cls=_Ensemble)
@click.argument("models", nargs=-1, metavar="MODEL...", shell_complete=paths)
@with_options(_DATA_OPTIONS, "The data")
@click.option("--ensemble", multiple=True, metavar="MODEL...",
              help="Also score the mean of these models' probabilities.")  # fmt: skip
@click.option("--controls", is_flag=True,
              help="Of a merge with fitted, measured or given layer weights: also score the "
                   "isotropic merge, the ramp, the parents' ensemble, the mean of the weights in "
                   "every layer, and the weights in another order of the layers.")  # fmt: skip
@click.option("--parent", "parents", multiple=True, metavar="LABEL=PATH",
              help="With --controls: where a local parent of the merge is.")  # fmt: skip
@with_options(_LABEL_OPTIONS, "Labels that differ")
@with_options(_RUN_OPTIONS, "The run")
@click.option("--overlay", type=int, default=0, metavar="N",
              help="Draw the first N images with truth and predictions.")  # fmt: skip
@click.option("--overlay-to", default="overlay.png", show_default=True, metavar="FILE",
              help="Where to.")  # fmt: skip
@click.option("--speed", is_flag=True, help="Measure the relative cost of inference.")
@click.option("--save-to", metavar="FILE", help="Write the scores as JSON.")
@with_output
def evaluate(
    models: tuple[str, ...],
    dataset: str | None,
    ensemble: tuple[str, ...],
    controls: bool,
    parents: tuple[str, ...],
    map_labels: bool,
    label_map: str | None,
    model_labels: str | None,
    overlay: int,
    overlay_to: str,
    speed: bool,
    save_to: str | None,
    output: Output,
    **options: Any,
) -> None:
    """Score models side by side, on the same images.

    The first is what the others are compared with. DATA is a data set of the Hub, a folder whose
    layout is known (Cityscapes, GTA5, SYNTHIA, Mapillary Vistas, BDD100K, ACDC, Dark Zurich, KITTI,
    CamVid, ADE20K, COCO panoptic, Pascal VOC, LoveDA, Office, images/ beside labels/), or
    LAYOUT:FOLDER. An interrupted run goes on where it stopped.
    """
    if dataset is None:
        raise UsageError("there is nothing to compare with: name the data with --dataset.")
    if parents and not controls:
        raise UsageError("--parent goes with --controls: leave it out, or add that.")
    if save_to is not None:
        _check_target(Path(save_to), _holds_scores, "scores")
    if overlay:
        _check_target(Path(overlay_to), _is_drawn, "overlay of ours")
    from lwmm_hub.evaluation.comparing import evaluate_models
    from lwmm_hub.evaluation.inference import InferenceOptions
    from lwmm_hub.evaluation.label_maps import LabelOptions
    from lwmm_hub.evaluation.opening import open_data, read_space
    from lwmm_hub.evaluation.running import RunOptions

    data = open_data(dataset, **{name: options[name] for name in _READING})
    known = read_space(model_labels).labels if model_labels else ()
    labels = LabelOptions(map_labels, read_label_map(label_map), known)
    inference = InferenceOptions(
        options["device"],
        options["dtype"],
        options["batch_size"],
        read_window(options["window"]),
        flip=options["flip"],
    )
    run = RunOptions(
        options["task"],
        options["limit"],
        options["shards"],
        options["shard"],
        options["batch_size"],
        options["states"],
        options["fresh"],
    )
    columns: Sequence[Column] = ()
    if controls:
        from lwmm_hub.controls import controls_of

        columns = controls_of(models, parents=parents_of(parents))
    with progress_bar(output) as progress:
        found = evaluate_models(
            models,
            data,
            ensemble=ensemble,
            labels=labels,
            inference=inference,
            run=run,
            overlay=overlay,
            speed=_TIMED if speed else 0,
            columns=columns,
            progress=progress,
        )
    report = found.report
    document = report.to_dict()
    if found.overlay is not None:
        from PIL.PngImagePlugin import PngInfo

        about = PngInfo()
        about.add_text("Software", _SOFTWARE)
        with _writing(overlay_to):
            found.overlay.save(overlay_to, "PNG", pnginfo=about)
        output.note(f"drawn: {overlay_to}")
    if save_to is not None:
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        with _writing(save_to):
            Path(save_to).write_text(f"{text}\n", encoding="utf-8")

    def rows() -> list[str]:
        from lwmm_hub.display import tab_row

        head = [tab_row(report.part, *report.names)]
        return head + [
            tab_row(what, *("" if v is None or v != v else v for v in values))
            for what, values, _ in report.rows()
        ]

    output.result(document, lambda: report.text(output.color), rows)


def _check_target(path: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Refuse, before the work begins, what cannot be written or would write over anything else."""
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} for {path.name}. Make it first.")
    if path.exists() and not (path.is_file() and is_ours(path)):
        raise UsageError(f"{path} exists and holds no {what}: choose another name.")


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """What the disk says, in one line; the scores are kept, so that nothing is computed again.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or type(error).__name__}). Name another "
            "file: the scores are kept, and the next run is quick."
        ) from error


def _holds_scores(path: Path) -> bool:
    try:
        content = json.loads(read_small(path, MAX_SCORES))
        return {"version", "models", "dataset"} <= set(content)
    except (OSError, ValueError, TypeError):
        return False


def _is_drawn(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return bool(picture.info.get("Software") == _SOFTWARE)
    except (OSError, ValueError, SyntaxError):
        return False


def read_label_map(file: str | None) -> dict[str, str]:
    """Lines of `label of the model = label of the data`."""
    if file is None:
        return {}
    try:
        content = read_small_text(Path(file), _MAX_MAP)
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"cannot read the label map {file}: {what}. Give its path.") from error
    found = {}
    for number, line in enumerate(content.splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        mine, equals, theirs = (part.strip() for part in text.partition("="))
        if not (equals and mine and theirs):
            raise UsageError(
                f"{file}, line {number}: {line[:80]!r} is not 'label of the model = label of the "
                "data'."
            )
        found[mine] = theirs
    return found


def read_window(text: str | None) -> tuple[int, int] | None:
    """A window's height and width, as the command line has them.

    Raises:
        UsageError: it is written otherwise.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    if found is None:
        raise UsageError(f"window {text!r}: write 512, or 512x1024 (height x width).")
    return int(found[1]), int(found[2] or found[1])


@contextmanager
def progress_bar(output: Output) -> Iterator[Callable[[str, int, int | None], None] | None]:
    """A bar on stderr for people at a terminal."""
    with counting_bar(output) as bar:
        if bar is None:
            yield None
            return

        def show(name: str, done: int, total: int | None) -> None:
            if bar.desc != f"{name}: ":
                bar.reset(total)
                bar.set_description(name)
            bar.update(done - bar.n)

        yield show
