"""Layer weights that are measured: by the parents' entropies, or by their drift from the anchor."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lwmm_hub.drifting import Drift, measure_drift
from lwmm_hub.errors import EvaluationError, MergeError, UsageError
from lwmm_hub.fitting.parents import open_parents, ramp_of
from lwmm_hub.planning import MergePlan
from lwmm_hub.schedule import Schedule
from lwmm_hub.weight_table import WeightTable

if TYPE_CHECKING:
    from lwmm_hub.fitting.forwarding import Net
    from lwmm_hub.fitting.training import Progress

_COUNTS = ("endpoint", "anchor_weight")  # what counts of a schedule where the drift gives the ramp


def drift_layer_weights(plan: MergePlan) -> MergePlan:
    """Let the ramp follow the drift: t(j) = drift of layers 1 to j / drift of layers 1 to N-1.

    Data-free. Each donor has its own ramp, over what it shares; equal drift everywhere is the
    linear ramp. The first layer's drift is not in it, since the ramp begins there.

    Args:
        plan: says which models; of its options `anchor_weight` and `endpoint` count.

    Raises:
        UsageError: the plan has a schedule, start, end or gamma, which would change nothing.
        MergeError: NaN or infinity in a model.
        LwmmError: the plan's models cannot be opened.
    """
    for name, value in vars(Schedule()).items():
        if name not in _COUNTS and getattr(plan.options.curve, name) != value:
            option = "schedule" if name == "kind" else name
            raise UsageError(
                f"{option} changes nothing where the drift gives the ramp: leave it out, or leave "
                "out --weights drift."
            )
    parents = open_parents(plan)
    plan = parents.plan
    used = {
        (model, tensor.name)
        for tensor in plan.merged
        for model, source in enumerate(tensor.sources)
        if source is not None
    }
    found = [
        drift
        for drift in measure_drift(parents.opened.key_map, parents.checkpoints)
        if (drift.model, drift.name) in used
    ]
    for drift in found:
        for model in drift.unsound:
            raise MergeError(
                f"{plan.models[model].label} has NaN or infinite values in {drift.name}: nothing "
                "tells how far it has drifted. Use a sound copy of the model, or leave out "
                "--weights drift."
            )
    names = [layer.name for layer in plan.layers]
    models = len(plan.models)
    options = plan.options
    share = 1 / models
    if options.anchor_weight is not None:
        share = (1 - options.anchor_weight) / (models - 1)
    columns = []
    for model in range(1, models):
        fades = cumulative(layer_drifts([d for d in found if d.model == model], names))
        columns.append([share * (1 - options.endpoint * fade) for fade in fades])
    rows = {
        name: (1 - sum(donors), *donors)
        for name, donors in zip(names, zip(*columns, strict=True), strict=True)
    }
    origin: dict[str, Any] = {"method": "drift", "measure": "relative Euclidean distance"}
    asked = {name: getattr(options, name) for name in _COUNTS}
    changed = {name: value for name, value in asked.items() if value != vars(Schedule())[name]}
    origin |= changed or {"ramp": "linear"}
    return parents.with_weights(WeightTable(rows, origin))


def layer_drifts(drifts: Sequence[Drift], layers: Sequence[str]) -> list[float]:
    """The mean relative distance of the parameters of each layer; 0 where there is none."""
    found: dict[str, list[float]] = {layer: [] for layer in layers}
    for drift in drifts:
        if drift.layer in found and drift.distance is not None:
            found[drift.layer].append(drift.distance)
    return [sum(each) / len(each) if each else 0.0 for each in found.values()]


def cumulative(drifts: Sequence[float]) -> list[float]:
    """How far drift has added up behind each layer: 0 at the first, 1 at the last.

    Where nothing drifts, the linear ramp: then the weights do not matter.

    >>> cumulative([2.0, 1.0, 3.0]), cumulative([5.0, 5.0, 5.0]), cumulative([0.0, 0.0])
    ([0.0, 0.25, 1.0], [0.0, 0.5, 1.0], [0.0, 1.0])
    """
    steps = list(drifts[1:])
    if not any(steps):
        steps = [1.0] * len(steps)
    sums = list(accumulate(steps, initial=0.0))  # the last of them is the total, to the last bit
    return [value / sums[-1] for value in sums] if steps else [0.0]


def entropy_layer_weights(
    plan: MergePlan,
    images: Any,
    *,
    split: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    limit: int = 100,
    window: tuple[int, int] | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MergePlan:
    """Weigh each donor by how sure it is on unlabelled images; forward passes only.

    p_i is the mean over pixels of softmax_i(-entropy_i / log C_i), and H_i(j) = p_i M H_i'(j) for
    the donors, H' being the plan's own weights; the anchor has what is left.

    Args: as `fit_layer_weights` takes them.

    Raises:
        UsageError: a table gives donors so much of a layer that nothing would be left.
        EvaluationError: no image, an unreadable one, or a model without scores of pixels.
        LwmmError: the plan's models cannot be opened.
    """
    from lwmm_hub.evaluation.unlabelled import open_images
    from lwmm_hub.fitting.options import FitOptions
    from lwmm_hub.fitting.running import library_nets

    asked = FitOptions(limit=limit, window=window, seed=seed)
    asked.check()
    limit, seed = asked.limit, asked.seed
    data = open_images(images, split=split, revision=revision, column=image_column)
    numbers = data.chosen(limit)
    parents = open_parents(plan)
    nets = library_nets(parents.checkpoints, window, device)
    read = data.reader(window, seed)
    total = [0.0] * len(nets)
    for done, number in enumerate(numbers, start=1):
        for i, share in enumerate(certainty(nets, read(number))):
            total[i] += share / len(numbers)
        if progress is not None:
            progress("measuring", done, len(numbers), None, None)
    models = len(nets)
    rows = {}
    for layer in parents.plan.layers:
        donors = [
            prior * models * weight
            for prior, weight in zip(total[1:], layer.weights[1:], strict=True)
        ]
        if sum(donors) > 1:
            raise UsageError(
                f"the donors have {sum(layer.weights[1:]):.3g} of the layer {layer.name!r}, and "
                f"would have {sum(donors):.3g} by their entropies: plan with a schedule, which "
                "gives no donor more than the anchor."
            )
        rows[layer.name] = (1 - sum(donors), *donors)
    origin: dict[str, Any] = {
        "method": "entropy",
        "images": data.reference,
        "revision": data.revision,
        "split": data.split,
        "measured_on": len(numbers),
        "labels_used": False,
        "seed": seed,
        "window": f"{window[0]}x{window[1]}" if window else None,
        **{f"prior_{i}": prior for i, prior in enumerate(total)},
    }
    if kind := ramp_of(parents.plan):
        origin["ramp"] = kind
    return parents.with_weights(WeightTable(rows, origin))


def certainty(nets: Sequence[Net], image: Any) -> list[float]:
    """The mean over pixels of softmax over models of -entropy / log(classes).

    Raises:
        EvaluationError: a model has a single class, or scores that are not finite.
    """
    import math

    import torch

    from lwmm_hub.fitting.forwarding import grid_of, log_probabilities

    maps: list[torch.Tensor] = []
    grid: tuple[int, int] | None = None
    for net in nets:
        if len(net.labels) < 2:
            raise EvaluationError(f"{net.name} has one class: its entropy says nothing.")
        with torch.no_grad():
            given = net.scores(image)
            grid = grid or grid_of(given)
            logs = log_probabilities(given, grid)
            entropy = -(logs.exp() * logs).sum(0) / math.log(len(net.labels))
        maps.append(entropy.cpu().double())
    shares = torch.stack(maps).neg().softmax(0).flatten(1).mean(1)
    if not bool(shares.isfinite().all()):
        raise EvaluationError(
            "the scores of a model are not finite: leave out the donor that 'lwmm-hub evaluate' "
            "shows to be broken."
        )
    found: list[float] = shares.tolist()
    return found
