"""`merge --weights fit|entropy|drift`: layer weights that are found before the merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lwmm_hub.cli.evaluating import read_window
from lwmm_hub.cli.options import given, written
from lwmm_hub.cli.output import Output, counting_bar
from lwmm_hub.errors import UsageError
from lwmm_hub.weight_table import FOUND

if TYPE_CHECKING:
    from lwmm_hub.evaluation.data_sets import DataSet
    from lwmm_hub.planning import MergePlan

METHODS = tuple(FOUND)

FIT_OPTIONS = (
    click.option("--images", metavar="DATA",
                 help="With --weights fit or entropy: images, of which no label is read. A data "
                      "set of the Hub, a folder of pictures, or LAYOUT:FOLDER."),
    click.option("--split", "images_split", metavar="NAME",
                 help="Of the images (default: the one for training)."),
    click.option("--images-revision", metavar="REV", help="Of the images on the Hub."),
    click.option("--image-column", metavar="NAME", help="Where they have several."),
    click.option("--fit-steps", type=click.IntRange(1), default=60, show_default=True, metavar="N",
                 help="Steps of the fit."),
    click.option("--fit-batch-size", type=int, default=4, show_default=True, metavar="N",
                 help="Images a step."),
    click.option("--fit-lr", type=float, default=0.05, show_default=True, metavar="X",
                 help="Step size, on the logits of the layer weights."),
    click.option("--fit-threshold", type=float, metavar="P",
                 help="Teacher's labels count from this probability on (default 0.8; 0: all)."),
    click.option("--teacher", default="ensemble", show_default=True, metavar="WHO",
                 help="Who teaches: ensemble (all parents) or anchor."),
    click.option("--fit-limit", type=int, default=100, show_default=True, metavar="N",
                 help="At most so many images, at equal steps through the data."),
    click.option("--window", metavar="N or HxW",
                 help="Look at a part of each image at its own size; saves memory."),
    click.option("--device", metavar="NAME", help="cpu, cuda, mps (default: the best)."),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N",
                 help="Of the order of the images, and which are held back."),
    click.option("--transductive", is_flag=True,
                 help="Allow fitting on the images that --evaluate scores."),
)  # fmt: skip
_NAMES = (
    "images", "images_split", "images_revision", "image_column", "fit_steps", "fit_batch_size",
    "fit_lr", "fit_threshold", "teacher", "fit_limit", "window", "device", "seed", "transductive",
)  # fmt: skip
# what goes with each method beside the options of the merge itself
_KNOWN: dict[str, tuple[str, ...]] = {
    "fit": _NAMES,
    "entropy": (
        "images", "images_split", "images_revision", "image_column", "fit_limit", "window",
        "device", "seed", "transductive",
    ),
    "drift": (),
}  # fmt: skip


class Finding(NamedTuple):
    """How layer weights are to be found.

    Attributes:
        method: one of `METHODS`.
        options: what was asked for.
    """

    method: str
    options: dict[str, Any]

    def plan(self, models: Sequence[str], options: dict[str, Any], output: Output) -> MergePlan:
        """The plan with the layer weights that are found."""
        from lwmm_hub import fitting
        from lwmm_hub.pipeline import plan as make_plan

        ramp = make_plan(*models, check_weights=True, **options)
        if self.method == "drift":
            return fitting.drift_layer_weights(ramp)
        asked = self.options
        where = {
            "split": asked["images_split"],
            "revision": asked["images_revision"],
            "image_column": asked["image_column"],
            "limit": asked["fit_limit"],
            "window": read_window(asked["window"]),
            "device": asked["device"],
            "seed": asked["seed"],
        }
        with _bar(output) as progress:
            if self.method == "entropy":
                return fitting.entropy_layer_weights(
                    ramp, asked["images"], progress=progress, **where
                )
            if asked["fit_threshold"] is not None:
                where["threshold"] = asked["fit_threshold"]
            made = fitting.fit_layer_weights(
                ramp,
                asked["images"],
                progress=progress,
                steps=asked["fit_steps"],
                batch_size=asked["fit_batch_size"],
                lr=asked["fit_lr"],
                teacher=asked["teacher"],
                **where,
            )
        origin = made.weights_from
        if origin.get("agreement_before") is not None:
            from lwmm_hub.display import counted

            fitted, held = (int(origin[name] or 0) for name in ("fitted_on", "held_back"))
            others = counted(held, "other") if held else "the same"
            output.note(
                f"fitted on {counted(fitted, 'image')}: agreement with the teacher on "
                f"{others} {origin['agreement_before']:.4f} -> {origin['agreement_after']:.4f} "
                f"(step {origin['best_step']} of {origin['steps_taken']})"
            )
        return made


def take_finding(options: dict[str, Any]) -> Finding | None:
    """Take the options of this module out of those of a merge.

    Raises:
        UsageError: one is given that does not go with the others.
    """
    taken = {name: options.pop(name) for name in _NAMES}
    method = options["weights"] if options["weights"] in METHODS else None
    for name in _NAMES:
        if given(name) and name not in _KNOWN.get(method or "", ()):
            fitting = " or ".join(f"--weights {m}" for m in METHODS if name in _KNOWN[m])
            raise UsageError(f"{written(name)} goes with {fitting}: leave it out, or add that.")
    if method is None:
        return None
    if method != "drift" and taken["images"] is None:
        raise UsageError(
            f"--weights {method} looks at images, without labels: name them with --images."
        )
    options["weights"] = None
    return Finding(method, taken)


def check_not_tested(finding: Finding | None, tested: str | None, data: DataSet | None) -> None:
    """Refuse to fit on what is scored afterwards.

    Raises:
        UsageError: both are the same split of the same data, or nobody can tell that they are not.
    """
    images = finding.options["images"] if finding is not None else None
    if finding is None or images is None or tested is None or data is None:
        return
    same = _place(images) == _place(tested)
    both_here = bool(data.files) and Path(_place(images)).exists()
    if finding.options["transductive"] or not (same or both_here):
        return
    from lwmm_hub.evaluation.unlabelled import open_images

    found = open_images(
        images,
        split=finding.options["images_split"],
        revision=finding.options["images_revision"],
        column=finding.options["image_column"],
    )
    if found.files and data.files:  # what the files are, whatever their folders are called
        scored = {path.resolve() for path in data.files}
        same = any(path.resolve() in scored for path in found.files)
    elif same:
        same = None in (found.split, data.split) or found.split == data.split
    if same:
        where = f"the split {found.split!r} of {found.reference}" if found.split else images
        raise UsageError(
            f"the layer weights would be fitted on {where}, and scored on it. Name another --split "
            "or --evaluate-split, or pass --transductive to do so all the same."
        )


def _place(text: str) -> str:
    """What a data set is called, whatever layout or revision stands beside it."""
    folder = text.partition(":")[2] or text
    path = Path(folder).expanduser()
    return str(path.resolve()) if path.exists() else text.partition("@")[0]


@contextmanager
def _bar(output: Output) -> Iterator[Callable[..., None] | None]:
    """A bar on stderr for people at a terminal, with loss and agreement."""
    with counting_bar(output) as bar:
        if bar is None:
            yield None
            return
        told: dict[str, float] = {}

        def show(
            what: str, done: int, total: int, loss: float | None, agreement: float | None
        ) -> None:
            if bar.desc != f"{what}: ":
                bar.reset(total)
                bar.unit = "step" if what == "fitting" else "image"
                bar.set_description(what)
            told.update({k: v for k, v in (("loss", loss), ("agree", agreement)) if v is not None})
            if told:
                bar.set_postfix({k: f"{v:.4f}" for k, v in told.items()}, refresh=False)
            bar.update(done - bar.n)

        yield show
