"""Depth orders for what no table knows: the file's own, or that of the names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lwmm_hub.key_map.naming import NamedKeys, module_of

BACKBONES = ("backbone", "base_net", "encoder", "features", "feature_extractor", "trunk", "stem")

HEADS = (
    "auxiliary_head",
    "classifier",
    "cls_head",
    "decode_head",
    "decoder",
    "fc",
    "head",
    "heads",
    "last_layer",
    "neck",
    "segmentation_head",
    "up",
)


class DepthOrder(NamedTuple):
    """The order of an architecture that no table knows.

    Attributes:
        source: where it comes from, in words.
        ranks: key of the anchor's file -> rank of its module; keys not in it come last.
        backbone: keys of the backbone; None if it is not known.
        backbone_name: what the backbone is called there.
    """

    source: str
    ranks: Mapping[str, int]
    backbone: frozenset[str] | None = None
    backbone_name: str | None = None


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that counts: block 2 before block 10.

    >>> sorted(["b.10.x", "b.2.x"], key=natural)
    ['b.2.x', 'b.10.x']
    """
    return tuple(
        (0, int(piece), "") if piece.isdigit() and piece.isascii() else (1, 0, piece)
        for piece in re.split(r"(\d{1,9})", text)
        if piece
    )


def registration_order(keys: Sequence[str]) -> DepthOrder:
    """The order in which a `.pth` file lists its modules: that of their creation."""
    ranks: dict[str, int] = {}
    for key in keys:
        ranks.setdefault(module_of(key), len(ranks))
    return DepthOrder(
        "the file's own registration order", {key: ranks[module_of(key)] for key in keys}
    )


def natural_order(keys: Sequence[str]) -> DepthOrder:
    """Numbers count, backbone first, head last: a guess for files that keep no order."""
    wrapper = wrapper_of(keys)

    def place(module: str) -> tuple[int, tuple[tuple[int, int, str], ...]]:
        top = module[len(wrapper) :].split(".")[0]
        return (0 if top in BACKBONES else 2 if top in HEADS else 1, natural(module))

    modules = sorted({module_of(key) for key in keys}, key=place)
    ranks = {module: i for i, module in enumerate(modules)}
    return DepthOrder("natural order of the names", {key: ranks[module_of(key)] for key in keys})


def tabled_order(named: NamedKeys) -> DepthOrder:
    """The order where a table knows the backbone; keys outside all tables come last, by name."""
    names = " and ".join(f"{t.name} {'backbone' if t.backbone else 'head'}" for t in named.found)
    rest = [s.key for name, s in named.sources.items() if name not in named.tables]
    # Alphabetical files keep no order of their own: numbers count there.
    ranks = natural_order(rest).ranks
    return DepthOrder(f"the table of the {names}", ranks)


def with_rest(tabled: DepthOrder, rest: DepthOrder) -> DepthOrder:
    """The order where tables know the backbone, and `rest` what stands behind it."""
    return DepthOrder(f"{tabled.source}; the rest by {rest.source}", rest.ranks)


def wrapper_of(keys: Sequence[str]) -> str:
    """What all keys begin with and says nothing of the model's parts, up to a dot.

    >>> wrapper_of(["net.encoder.0.weight", "net.head.bias"]), wrapper_of(["encoder.0.weight"])
    ('net.', '')
    """
    wrapper = ""
    while True:
        rests = [key[len(wrapper) :] for key in keys]
        top = rests[0].partition(".")[0] if rests else ""
        shared = all(rest.startswith(f"{top}.") for rest in rests)
        nested = any(rest.count(".") > 1 for rest in rests)
        if top in (*BACKBONES, *HEADS, "") or not shared or not nested:
            return wrapper
        wrapper += f"{top}."
