"""`fit_layer_weights`: a plan and unlabelled images -> the plan with fitted layer weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.errors import EvaluationError, UsageError
from lwmm_hub.evaluation.inference import InferenceOptions, memory_watched
from lwmm_hub.evaluation.networks import predictor_of
from lwmm_hub.evaluation.unlabelled import UnlabelledImages, open_images
from lwmm_hub.fitting.blending import Blend
from lwmm_hub.fitting.forwarding import LibraryNet, Net, OwnNet, Predict
from lwmm_hub.fitting.options import FitOptions
from lwmm_hub.fitting.parents import (
    Parents,
    groups_of,
    identity_of,
    live_states,
    load_own,
    load_transformers,
    open_parents,
    ramp_of,
)
from lwmm_hub.fitting.teaching import Lesson, teach
from lwmm_hub.fitting.training import Course, Fit, Progress, train
from lwmm_hub.keywords import check_known, fields_of
from lwmm_hub.planning import MergePlan
from lwmm_hub.weight_table import WeightTable

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from lwmm_hub.fitting.options import FitFields


@fields_of(FitOptions)
def fit_layer_weights(
    plan: MergePlan,
    images: Any,
    predict: Predict | None = None,
    *,
    modules: torch.nn.Module | Sequence[torch.nn.Module] | None = None,
    labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
    split: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    states: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[FitFields],
) -> MergePlan:
    """Fit one weight for each layer and model on unlabelled images; the result is a plan to merge.

    The weights start at the plan's own and learn to agree with the confident labels of the parents
    (Adam on the logits of a softmax over models). The parents are frozen, nothing but the layer
    weights moves, so the result is a plain merge with numbers in it. Of the images some are held
    back: only agreement with the teacher there decides when to stop and which weights are kept,
    and where nothing agrees better than the plan's own weights, these are returned, with a warning.

    Args:
        plan: of `lwmm_hub.plan`; says which models, and where the weights start.
        images: a data set's name on the Hub, a folder, a `datasets.Dataset`, or arrays of
            (height, width, 3) uint8 RGB. Labels are neither needed nor read.
        predict: for modules of one's own: (module, image) -> scores of (classes, h, w) before any
            softmax, differentiable.
        modules: with `predict`: the module that the anchor was saved from, or one for each model.
            They are copied, and get the weights of the plan's files.
        labels: with `predict`: names of the classes, or such a list for each model.
        split: of the data set; None is the one for training.
        revision: of the data set on the Hub.
        image_column: where it has several.
        states: folder of half-done fits; None is the user's cache, "" keeps none.
        progress: called with what is done, how many, of how many, the loss and the agreement.
        **options: fields of `lwmm_hub.fitting.FitOptions`, which says what each does.

    Raises:
        UsageError: an option is unknown or out of range.
        EvaluationError: no image, an unreadable one, labels with nothing in common, a model without
            scores of pixels, a loss that is not finite, or memory that ran out.
        LwmmError: the plan's models cannot be opened.
    """
    chosen = _options(options)
    if plan.options.batch_norm == "moment":
        raise UsageError(
            "layer weights are fitted with batch-norm statistics merged linearly: leave "
            "--batch-norm moment out."
        )
    data = open_images(images, split=split, revision=revision, column=image_column)
    numbers = data.chosen(chosen.limit)
    parents = open_parents(plan)
    make = _Own(parents, predict, modules, labels) if predict else _Library(parents, chosen)
    if predict is None and (modules is not None or labels is not None):
        raise UsageError("modules and labels go with predict=: pass all or none of them.")
    read = data.reader(chosen.window, chosen.seed)
    lessons = _lessons(make, read, numbers, chosen, progress)
    live, states_of_parents, numbering = make.live()
    groups, _ = groups_of(parents.plan)
    with memory_watched("the merged model", _HINT):
        blend = Blend(live.network, states_of_parents, numbering, groups)
        del states_of_parents, numbering
        course = Course(live, blend, parents.plan, lessons, read, chosen)
        key = _key(parents, data, chosen) if not predict else None
        fit = train(course, key, states, progress)
    origin = _origin(chosen, data, course, fit, own=predict is not None)
    table = WeightTable(fit.rows(parents.plan), origin)
    return parents.with_weights(table, fit.warnings())


VERSION = 4  # goes up where the same fit gives other numbers: no half-done one goes on then
_HINT = "Look at parts of the images with --window 512, or at smaller ones."


def _options(given: Mapping[str, Any]) -> FitOptions:
    check_known(given, (field.name for field in fields(FitOptions)))
    options = FitOptions(**given)
    options.check()
    return options


class _Library:
    """The parents as transformers loads them."""

    def __init__(self, parents: Parents, options: FitOptions) -> None:
        self._parents = parents
        self._options = InferenceOptions(options.device, window=options.window)

    def teachers(self, alone: bool) -> list[Net]:
        """The networks that teach, the anchor first."""
        return [self._net(c) for c in self._parents.checkpoints[: 1 if alone else None]]

    def live(self) -> tuple[Net, list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        """The network that is fitted, the weights of the parents, and where each comes from."""
        states, numbers = live_states(self._parents, load_transformers)
        return self._net(self._parents.checkpoints[0]), states, numbers

    def _net(self, checkpoint: Checkpoint) -> Net:
        return library_net(checkpoint, self._options)


def library_nets(
    checkpoints: Sequence[Checkpoint], window: tuple[int, int] | None, device: str | None
) -> list[Net]:
    """The networks of some models, as transformers loads them."""
    options = InferenceOptions(device, window=window)
    return [library_net(checkpoint, options) for checkpoint in checkpoints]


def library_net(checkpoint: Checkpoint, options: InferenceOptions) -> Net:
    """The network of a model, as transformers loads it.

    Raises:
        EvaluationError: its files do not say which class it is of.
    """
    return LibraryNet(
        predictor_of(
            checkpoint,
            options,
            "Convert it with 'lwmm-hub convert', or fit from Python with predict=.",
        )
    )


class _Own:
    """The parents as modules of the user's."""

    def __init__(
        self,
        parents: Parents,
        predict: Predict,
        modules: Any,
        labels: Any,
    ) -> None:
        self._parents, self._predict = parents, predict
        count = len(parents.checkpoints)
        if modules is None:
            raise UsageError("predict= needs the network: pass it as modules=.")
        given = list(modules) if isinstance(modules, list | tuple) else [modules] * count
        if len(given) != count:
            raise UsageError(f"{len(given)} modules for {count} models: pass one, or one for each.")
        self._modules = given
        if labels is None or not len(labels):
            raise UsageError("predict= needs the names of the classes: pass them as labels=.")
        every = [labels] * count if isinstance(labels[0], str) else list(labels)
        if len(every) != count:
            raise UsageError(f"{len(every)} lists of labels for {count} models: pass one for each.")
        self._labels = [tuple(map(str, names)) for names in every]

    def teachers(self, alone: bool) -> list[Net]:
        """The networks that teach, the anchor first."""
        return [self._net(i) for i in range(1 if alone else len(self._modules))]

    def live(self) -> tuple[Net, list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        """The network that is fitted, the weights of the parents, and where each comes from."""
        net = self._net(0)
        states, numbers = live_states(self._parents, load_own(list(net.network.state_dict())))
        return net, states, numbers

    def _net(self, model: int) -> Net:
        """A copy of the user's module with the weights of the file."""
        checkpoint = self._parents.checkpoints[model]
        network = copy.deepcopy(self._modules[model]).eval()
        _fill(network, checkpoint)
        return OwnNet(network, self._predict, self._labels[model], checkpoint.label)


def _fill(network: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Give a module the float weights of a file; what it counts stays its own.

    Raises:
        UsageError: the file is not this module's.
    """
    import torch

    from lwmm_hub.key_map import Source
    from lwmm_hub.relatedness import source_values

    own = network.state_dict()
    for name, tensor in own.items():
        if not tensor.is_floating_point():
            continue
        entry = checkpoint.entries.get(name)
        if entry is None or tuple(entry.shape) != tuple(tensor.shape):
            what = "no such tensor" if entry is None else f"the shape {tuple(entry.shape)}"
            raise UsageError(
                f"the module's {name!r} has the shape {tuple(tensor.shape)}, and "
                f"{checkpoint.label} has {what}. Pass a list with the module of each model."
            )
        values = source_values(checkpoint, Source(name), 0, entry.elements)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(values.copy()).reshape(tensor.shape))


def _lessons(
    make: _Library | _Own,
    read: Callable[[int], Any],
    numbers: Sequence[int],
    options: FitOptions,
    progress: Progress | None,
) -> list[Lesson]:
    """What the teacher says of each image; the networks that teach are gone afterwards.

    Raises:
        EvaluationError: it is sure of nothing.
    """
    if not options.steps:
        return []
    nets = make.teachers(options.teacher == "anchor")
    lessons = []
    with memory_watched("the models", _HINT):
        for lesson in teach(nets, read, numbers, options.threshold):
            lessons.append(lesson)
            if progress is not None:
                progress("teaching", len(lessons), len(numbers), None, None)
    if not any(lesson.sure for lesson in lessons):
        alone = " or let the anchor teach alone," if options.teacher == "ensemble" else ""
        raise EvaluationError(
            f"no pixel of {len(lessons)} images has a class of probability "
            f"{options.threshold:g} or more: the parents do not agree. Lower the threshold,"
            f"{alone} or leave a donor out."
        )
    return lessons


def _key(parents: Parents, data: UnlabelledImages, options: FitOptions) -> dict[str, Any] | None:
    """What a half-done fit has to have in common with this one to go on."""
    if not data.revision:
        return None
    identity = identity_of(parents.plan, parents.checkpoints)
    where = [data.reference, data.revision, data.split, data.columns]
    return {"fit": VERSION, "options": vars(options), "images": where, **identity}


def _origin(
    options: FitOptions, data: UnlabelledImages, course: Course, fit: Fit, own: bool
) -> dict[str, Any]:
    """How the weights were found, as recipe and card say it: plain values."""
    window = options.window
    found: dict[str, Any] = {
        "method": "fit",
        "result": "fitted" if fit.better else "start",
        "images": data.reference,
        "revision": data.revision,
        "split": data.split,
        "fitted_on": len(course.taught),
        "held_back": len(course.held),
        "labels_used": False,
        "teacher": options.teacher,
        "threshold": options.threshold,
        "balance": options.balance,
        "start": options.start,
        "steps": options.steps,
        "steps_taken": fit.steps,
        "best_step": fit.best_step,
        "batch_size": options.batch_size,
        "lr": options.lr,
        "seed": options.seed,
        "window": f"{window[0]}x{window[1]}" if window else None,
        "agreement_before": fit.before,
        "agreement_after": fit.best,
    }
    if options.start == "ramp" and (kind := ramp_of(course.plan)):
        found["ramp"] = kind
    if own:
        found["predict"] = "a function of the user's"
    return found
