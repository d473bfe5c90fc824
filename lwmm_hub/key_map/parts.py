"""Backbone, heads, and where neither is known the top-level modules: what is judged apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lwmm_hub.key_map.naming import NamedKeys
from lwmm_hub.key_map.ordering import BACKBONES, HEADS, DepthOrder, wrapper_of
from lwmm_hub.key_map.placing import Placing


class Part(NamedTuple):
    """A stretch of the model whose relatedness is judged on its own."""

    name: str
    backbone: bool


def parts_of(
    named: NamedKeys, depth: DepthOrder, placing: Placing | None
) -> tuple[list[Part], Callable[[str, str], str]]:
    """The parts of the anchor in depth order, and the part of each (name, key).

    Args:
        named: the anchor's names.
        depth: its order.
        placing: where what no table names stands; None where no table knows the backbone.
    """
    if placing is not None:
        inside = placing.backbone

        def by_table(name: str, key: str) -> str:
            table = named.tables.get(name)
            backbone = key in inside if table is None else table.backbone
            return "backbone" if backbone else "head"

        return [Part("backbone", True), Part("head", False)], by_table
    if depth.backbone is not None:
        backbone = depth.backbone
        what = depth.backbone_name or "backbone"

        def by_class(_name: str, key: str) -> str:
            return what if key in backbone else "head"

        return [Part(what, True), Part("head", False)], by_class
    ordered = sorted(named.sources.values(), key=lambda s: depth.ranks.get(s.key, 0))
    wrapper = wrapper_of([s.key for s in ordered])

    def top(key: str) -> str:
        return wrapper + _top(key[len(wrapper) :])

    tops = list(dict.fromkeys(top(s.key) for s in ordered))
    plain = {name: name[len(wrapper) :] for name in tops}
    known = {name for name in tops if plain[name] in BACKBONES}
    backbones = known or {name for name in tops if plain[name] not in HEADS} or set(tops)

    def by_top(_name: str, key: str) -> str:
        return top(key)

    return [Part(name, name in backbones) for name in tops], by_top


def _top(key: str) -> str:
    return key.split(".")[0] if "." in key else "(top level)"
