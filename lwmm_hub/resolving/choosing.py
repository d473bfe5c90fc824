"""Which files of a folder or repository hold the weights, and what cannot be merged at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lwmm_hub.errors import CheckpointError, ResolveError
from lwmm_hub.reference import STAGES, WEIGHT_SUFFIXES

# the first that is there is taken
NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# files that training leaves beside weights
NO_WEIGHTS = (
    "optimizer",
    "scheduler",
    "rng_state",
    "training_args",
    "random_states",
    "scaler",
    "adapter_model",
)
ADAPTER = "adapter_config.json"
MERGE_FIRST = (
    "merge it into its base model first (peft: model.merge_and_unload().save_pretrained(...)) and "
    "name the result."
)
# CoNMix keeps feature extractor, bottleneck and classifier of a network in a file each
PARTS = ("F", "B", "C")


def stage_files(
    names: Collection[str], stage: str | None, label: str
) -> tuple[str | None, dict[str, str], tuple[str, ...]]:
    """The network of a folder that keeps its parts in files of their own (CoNMix).

    Args:
        names: the folder's files.
        stage: which network, `source` or `target`; None chooses the adapted one, if it is there.
        label: what to call the folder.

    Returns:
        The stage (None where the folder is of another kind), part -> file, and warnings.

    Raises:
        ResolveError: there is no such network.

    >>> stage_files(["source_F.pt", "source_B.pt", "source_C.pt"], "source", "run")[1]["B"]
    'source_B.pt'
    """
    parts = {name: {part: f"{name}_{part}.pt" for part in PARTS} for name in reversed(STAGES)}
    found = {name: f for name, f in parts.items() if all(file in names for file in f.values())}
    if stage is not None:
        if stage not in found:
            have = ", ".join(found) or "none"
            raise ResolveError(
                f"{label} has no {stage} network ({stage}_F.pt, {stage}_B.pt, {stage}_C.pt). It "
                f"has: {have}."
            )
        return stage, found[stage], ()
    if not found or any(name in names for name in NAMES):
        return None, {}, ()
    chosen = next(iter(found))
    others = [name for name in found if name != chosen]
    also = f"; ?stage={others[0]} names the other" if others else ""
    return chosen, found[chosen], (f"{label}: its {chosen} network is taken{also}.",)


def choose_weights(names: Collection[str], label: str) -> str:
    """The one weight file (or shard index) among a folder's files.

    >>> choose_weights(["config.json", "model.safetensors", "pytorch_model.bin"], "a/b")
    'model.safetensors'

    Raises:
        CheckpointError: it holds a LoRA adapter.
        ResolveError: there is none, or several and no rule decides.
    """
    for name in NAMES:
        if name in names:
            return name
    found = sorted(
        name
        for name in names
        if name.endswith(WEIGHT_SUFFIXES) and not name.rpartition("/")[2].startswith(NO_WEIGHTS)
    )
    # anything may be pickled: such a file is taken where there is no other
    found = [name for name in found if not name.endswith(".pkl")] or found
    for suffix in WEIGHT_SUFFIXES:
        top = [name for name in found if name.endswith(suffix) and "/" not in name]
        if len(top) == 1:
            return top[0]
        if top:
            break
    if ADAPTER in names:
        raise CheckpointError(f"{label} is a LoRA adapter, not a model: {MERGE_FIRST}")
    if not found:
        raise ResolveError(
            f"{label} has no weights (no {', '.join(WEIGHT_SUFFIXES)} file). Name a model with "
            "weights, or one file of it as 'org/name:path/to/file.pth'."
        )
    shown = ", ".join(repr(name) for name in found[:6]) + (", ..." if len(found) > 6 else "")
    several = "several weight files" if len(found) > 1 else "its weights in a folder"
    raise ResolveError(
        f"{label} has {several}: {shown}. Name one: 'org/name:{found[0]}' in a "
        "repository, or the path of the file."
    )


def shard_names(index: Any, label: str, file: str, names: Collection[str]) -> list[str]:
    """The files that a shard index names, each checked to be there.

    Raises:
        CheckpointError: the index is not one, or a shard is missing.
    """
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where:
        what = "Download it again."
        if not file.endswith(".index.json"):
            what = "Name the folder that it lies in, or a weight file."
        raise CheckpointError(f"{label}: {file} is not a shard index. {what}")
    folder = file.rpartition("/")[0]
    shards: dict[str, None] = {}
    for name in where.values():
        if not isinstance(name, str) or name.startswith("/") or ".." in name or "\\" in name:
            raise CheckpointError(
                f"{label}: {file} names the file {name!r}, outside the model: nothing was read. "
                "Take the model from a source that you trust."
            )
        shards[f"{folder}/{name}" if folder else name] = None
    for name in shards:
        if name not in names:
            raise CheckpointError(
                f"{label}: {file} names {name!r}, which is missing. Download the model again."
            )
    return list(shards)


def check_shards(index: Mapping[str, Any], found: Mapping[str, str], label: str, file: str) -> None:
    """Compare an index with the tensors that its shards hold (`found`: key -> file).

    Raises:
        CheckpointError: a tensor is missing.
    """
    for key in index["weight_map"]:
        if key not in found:
            raise CheckpointError(
                f"{label}: {file} lists {str(key)[:120]!r}, which is in none of its files. "
                "Download the model again."
            )
