"""Layers in groups (a block, a stage, or a top-level part) for the folded table of a card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

from lwmm_hub.display.counts import Counts
from lwmm_hub.display.ramp import HEADS
from lwmm_hub.schedule import renormalised


@dataclass
class LayerGroup:
    """What happened to the parameters of one group; `kept` and `in_part` count reasons."""

    name: str
    layers: list[int] = field(default_factory=list)
    merged: int = 0
    weights: list[Sequence[float]] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    in_part: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> Counts:
        """As those of the whole plan."""
        return Counts(self.merged, self.kept.total(), self.in_part.total())


def used_layers(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers of a plan with the weights that are used.

    A model of which nothing is merged in a layer has no weight there; its share is the others'.
    """
    there: dict[int, list[bool]] = {}
    for row in plan.get("merged") or []:
        sources = [source is not None for source in row.get("sources") or ()]
        known = there.setdefault(row.get("layer", 0), sources)
        there[row.get("layer", 0)] = [a or b for a, b in zip(known, sources, strict=True)]
    return [
        {**layer, "weights": list(renormalised(layer["weights"], there[layer["index"]]))}
        if there.get(layer.get("index", -1))
        else dict(layer)
        for layer in plan.get("layers") or []
    ]


@lru_cache(1 << 12)
def group_name(module: str) -> str:
    """The group of a module or parameter: up to its block or stage, else its top level.

    >>> group_name("stages.0.blocks.1.attn.q"), group_name("stages.0.patch_embed.proj")
    ('stages.0.blocks.1', 'stages.0')
    >>> group_name("layer4.2.conv1"), group_name("decode_head.linear_c.0.proj"), group_name("conv1")
    ('layer4.2', 'decode_head', 'conv1')
    """
    parts = module.split(".")
    if HEADS.fullmatch(parts[0]):
        return parts[0]
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[:2][-1] + 1]) if numbers else parts[0]


def layer_groups(plan: Mapping[str, Any]) -> list[LayerGroup]:
    """The groups of a plan in depth order, those with nothing merged at the end."""
    groups: dict[str, LayerGroup] = {}
    modules: dict[str, set[str]] = {}  # of the anchor's file -> the groups of what is merged there
    for entry in plan.get("merged") or []:
        name = group_name(str(entry["name"]).rpartition(".")[0] or str(entry["name"]))
        group = groups.get(name) or groups.setdefault(name, LayerGroup(name))
        group.layers.append(int(entry.get("layer", 0)))
        group.merged += 1
        group.weights.append(entry["weights"])
        modules.setdefault(str(entry.get("key") or entry["name"]).rpartition(".")[0], set()).add(
            name
        )
    merged = {str(entry.get("key")) for entry in plan.get("merged") or []}
    of_prefix: dict[str, set[str]] = {}  # made where asked for: few keys are kept of most models
    for entry in plan.get("kept") or []:
        key = str(entry["key"])
        name = _group_of_kept(key, modules, of_prefix)
        group = groups.setdefault(name, LayerGroup(name))
        (group.in_part if key in merged else group.kept)[str(entry.get("reason", ""))] += 1
    return sorted(groups.values(), key=lambda g: min(g.layers, default=len(plan.get("layers", []))))


def _prefixes(module: str) -> list[str]:
    """The module and all that it lies in, the outermost first."""
    parts = module.split(".") if module else []
    return list(accumulate(parts, "{}.{}".format))


def _group_of_kept(
    key: str, modules: Mapping[str, set[str]], of_prefix: dict[str, set[str]]
) -> str:
    """The group of the merged keys around `key`, else the group its own name says."""
    module = key.rpartition(".")[0]
    for prefix in reversed(_prefixes(module)):
        if prefix not in of_prefix:
            inside = (names for m, names in modules.items() if f"{m}.".startswith(f"{prefix}."))
            of_prefix[prefix] = set().union(*inside)
        found = of_prefix[prefix]
        if len(found) == 1:
            return next(iter(found))
        if found:
            break
    return group_name(module or key)
