"""A plan's models, opened once more: their files, and their weights under the names in memory.

Files and networks name tensors differently, and some are split or joined on the way. No table of
that is needed here: every parent is written as a file of the anchor's kind and loaded as such, and
a file that holds the number of its layer in every place tells where each number of the network
comes from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.errors import UsageError
from lwmm_hub.planning import MergePlan
from lwmm_hub.preparing import Opened, decide, models_of, open_models
from lwmm_hub.schedule import TABLE, Schedule
from lwmm_hub.weight_table import WeightTable
from lwmm_hub.writing import write_model

if TYPE_CHECKING:
    import torch

State = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Parents:
    """A decided plan and the files of its models.

    Attributes:
        plan: its scope is decided.
        checkpoints: the anchor first.
        opened: what the pipeline decides from.
    """

    plan: MergePlan
    checkpoints: tuple[Checkpoint, ...]
    opened: Opened

    def with_weights(self, table: WeightTable, warnings: Sequence[str] = ()) -> MergePlan:
        """The plan with layer weights in numbers."""
        options = self.opened.options.with_curve(Schedule(TABLE))
        made = decide(replace(self.opened, table=table, options=options))
        return replace(made, warnings=(*made.warnings, *warnings))


def open_parents(plan: MergePlan) -> Parents:
    """Open the models of a plan, whole, and decide its scope where that is still open.

    Raises:
        LwmmError: a model is gone, or nothing is shared.
    """
    kept = tuple(model.kept_parts for model in plan.models) if plan.scope_decided else None
    opened = open_models(models_of(plan), plan.options, download=True, kept_parts=kept)
    opened = replace(opened, table=plan.table)
    return Parents(decide(opened), opened.checkpoints, opened)


def ramp_of(plan: MergePlan) -> str | None:
    """The name of a plan's schedule, where nothing but its name is needed to draw it."""
    curve = plan.options.curve
    return curve.kind if curve == Schedule(curve.kind) and curve.kind != TABLE else None


@dataclass(frozen=True)
class Group:
    """Parameters that are made with the same weights.

    Attributes:
        layer: index of their layer.
        present: per model, whether it has them.
    """

    layer: int
    present: tuple[bool, ...]


def groups_of(plan: MergePlan) -> tuple[tuple[Group, ...], tuple[int, ...]]:
    """The groups of a plan, and the number of the group of each merged parameter."""
    numbers: dict[Group, int] = {}
    of = tuple(
        numbers.setdefault(Group(t.layer, tuple(s is not None for s in t.sources)), len(numbers))
        for t in plan.merged
    )
    return tuple(numbers), of


def live_states(parents: Parents, load: Callable[[Path], State]) -> tuple[list[State], State]:
    """The weights of every parent as the anchor's network names them, and where each comes from.

    Args:
        parents: what is read.
        load: a folder of the anchor's kind -> names in memory and tensors.

    Returns:
        Per model its tensors, those that it lacks being the anchor's; and tensors of the same
        shapes that hold the number of a group plus 1, or 0 where nothing is merged.
    """
    states = []
    for model in range(len(parents.checkpoints)):
        with tempfile.TemporaryDirectory(prefix="lwmm-fit-") as scratch:
            folder = Path(scratch)
            write_model(folder, _alone(parents.plan, model), parents.checkpoints)
            states.append(load(folder))
            if model == 0:
                _number_layers(folder, parents.plan)
                numbers = load(folder)
    return states, numbers


def _alone(plan: MergePlan, model: int) -> MergePlan:
    """The plan that takes everything that one model has from it alone, stored in float32."""
    count = len(plan.models)
    merged = []
    for tensor in plan.merged:
        chosen = model if tensor.sources[model] is not None else 0
        weights = tuple(float(i == chosen) for i in range(count))
        merged.append(replace(tensor, weights=weights))
    options = replace(plan.options, dtype="float32", output_format="safetensors")
    return replace(plan, merged=tuple(merged), options=options)


def _number_layers(folder: Path, plan: MergePlan) -> None:
    """Replace every float in the weight files of a folder by the number of its group plus 1."""
    from safetensors.torch import load_file, save_file

    _, of = groups_of(plan)
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for key, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[key] = tensor.zero_()
        for planned, group in zip(plan.merged, of, strict=True):
            if planned.key in tensors:
                _part_of(tensors[planned.key], planned.sources[0]).fill_(group + 1)
        path.unlink()  # a file that is mapped into memory may not be written over
        save_file(tensors, path, metadata={"format": "pt"})


def _part_of(tensor: torch.Tensor, source: Any) -> torch.Tensor:
    """The rows of a fused tensor that a source means."""
    rows = tensor.shape[0] // source.parts if tensor.ndim else 0
    if source.parts == 1:
        return tensor
    return tensor[source.part * rows : (source.part + 1) * rows]


def load_own(names: Sequence[str]) -> Callable[[Path], State]:
    """How the files of a user's own module are loaded: its names are those of the file.

    Args:
        names: of the module's parameters and buffers.
    """

    def load(folder: Path) -> State:
        from safetensors.torch import load_file

        found: State = {}
        for path in sorted(folder.glob("*.safetensors")):
            found |= load_file(path)
        missing = [n for n in names if n not in found and not n.endswith("num_batches_tracked")]
        if missing:
            raise UsageError(
                f"the module has {missing[0]!r}, which the anchor's file does not name "
                f"({len(missing)} such). Pass the module that the anchor was saved from."
            )
        return {name: found[name] for name in names if name in found}

    return load


def load_transformers(folder: Path) -> State:
    """How a folder that transformers knows is loaded, in float32."""
    import torch

    from lwmm_hub.loading import load_model

    return dict(load_model(folder, dtype=torch.float32).state_dict())


def identity_of(plan: MergePlan, checkpoints: Sequence[Checkpoint]) -> Mapping[str, Any]:
    """What tells this plan's network from others: its models, a local file by its content, the
    layer weights, and what of each model goes into each tensor.
    """  # noqa: D205
    from lwmm_hub.evaluation.subjects import identity_of_checkpoint

    return {
        "models": [identity_of_checkpoint(c) for c in checkpoints],
        "layers": [[layer.name, list(layer.weights)] for layer in plan.layers],
        "merged": [[t.layer, t.key, t.sources] for t in plan.merged],
    }
