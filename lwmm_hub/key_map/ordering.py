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

# What runs first, before a backbone's numbered stages.
STEMS = ("stem", "inc", "conv_in", "input_conv", "layer0", "patch_embed", "patch_embeddings")

NECKS = ("neck", "fpn", "pixel_decoder")

# Branches that only train: they read a stage before the last one, so they stand before the head
# whose output is the model's. Where they are registered says nothing.
AUXILIARY = ("aux", "aux_classifier", "aux_head", "auxiliary", "auxiliary_head", "auxlayer", "dsn")

# The end of a head, in this order. mmseg registers `conv_seg` first of all its modules.
ENDS = (
    "conv_cat",
    "low_classifier",
    "classifier",
    "cls_seg",
    "conv_seg",
    "fc_seg",
    "linear_pred",
    "high_classifier",
)

# The end of a whole model.
LAST = ("classifier", "cls", "outc", "conv_out", "out_conv", "final", "final_conv", "logits")


class DepthOrder(NamedTuple):
    """The order of an architecture that no table knows.

    Attributes:
        source: where it comes from, in words.
        ranks: key of the anchor's file -> rank of its module; keys not in it come last.
        backbone: keys of the backbone; None if it is not known.
        backbone_name: what the backbone is called there.
        origin: "trace", "registration" or "names": how far it can be believed.
    """

    source: str
    ranks: Mapping[str, int]
    backbone: frozenset[str] | None = None
    backbone_name: str | None = None
    origin: str = "names"


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
    """The order in which a `.pth` file lists its modules: that of their creation.

    But for what is known to be created early and run late: the ends of heads, auxiliary heads.
    """
    modules = list(dict.fromkeys(module_of(key) for key in keys))
    wrapper = wrapper_of(keys)
    kinds = [_kind(module, wrapper) for module in modules]
    start = max((i + 1 for i, kind in enumerate(kinds) if kind == "backbone"), default=0)
    heads = [i for i, kind in enumerate(kinds) if i >= start and kind in ("head", "last")]
    if heads:
        behind = list(zip(modules, kinds, strict=True))[heads[0] :]
        branches = [module for module, kind in behind if kind == "auxiliary"]
        others = [module for module, kind in behind if kind != "auxiliary"]
        modules = [*modules[: heads[0]], *branches, *others]
    order = _ordered("the file's own registration order", keys, _ends_last(modules, wrapper))
    return order._replace(origin="registration")


def natural_order(keys: Sequence[str]) -> DepthOrder:
    """Numbers count, backbone first, head last: a guess for files that keep no order."""
    wrapper = wrapper_of(keys)

    def place(module: str) -> tuple[int, tuple[tuple[int, int, str], ...], bool]:
        # a `bn` follows the `conv` beside it, though not in the alphabet
        partner = _NORM.sub(r"\1conv\2", module)
        return (_KINDS.index(_kind(module, wrapper)), natural(partner), partner != module)

    modules = sorted({module_of(key) for key in keys}, key=place)
    return _ordered("natural order of the names", keys, _ends_last(modules, wrapper))


_NORM = re.compile(r"(^|\.)bn([0-9]*)$")

_KINDS = ("stem", "backbone", "other", "neck", "auxiliary", "head", "last")


def _kind(module: str, wrapper: str) -> str:
    """What the name of a module's outermost container says of its place; a number there is none.

    >>> _kind("net.aux_head2.conv", "net."), _kind("up1.conv", ""), _kind("layer4.0.conv1", "")
    ('auxiliary', 'head', 'other')
    """
    top = module[len(wrapper) :].split(".")[0]
    plain = re.sub(r"_?[0-9]+$", "", top)
    for kind, names in (
        ("auxiliary", AUXILIARY),
        ("neck", NECKS),
        ("last", LAST),
        ("head", HEADS),
        ("backbone", BACKBONES),
    ):
        if plain in names:
            return "stem" if top in STEMS else kind
    return "stem" if top in STEMS else "other"


def is_auxiliary(name: str) -> bool:
    """Whether a name lies in an auxiliary head, below any wrapper.

    >>> is_auxiliary("net.auxiliary_head.conv_seg.weight"), is_auxiliary("backbone.aux.weight")
    (True, False)
    """
    for piece in name.split(".")[:-1]:
        if piece in BACKBONES:
            return False
        if re.sub(r"_?[0-9]+$", "", piece) in AUXILIARY:
            return True
    return False


def is_headlike(name: str) -> bool:
    """Whether a container of the name is called like a head, or what stands beside or before one.

    >>> is_headlike("net.decode_head.0."), is_headlike("backbone.fc."), is_headlike("sp.conv1.")
    (True, True, False)
    """
    names = {re.sub(r"_?[0-9]+$", "", piece) for piece in name.split(".")}
    return not names.isdisjoint((*HEADS, *LAST, *AUXILIARY, *NECKS))


def _ends_last(modules: Sequence[str], wrapper: str) -> list[str]:
    """The same modules, the ends of each head behind all else of that head."""
    ends: dict[str, list[tuple[int, int, str]]] = {}
    for i, module in enumerate(modules):
        pieces = module[len(wrapper) :].split(".")
        if pieces[0] in BACKBONES:
            continue
        at = next((n for n, piece in enumerate(pieces) if n and piece in ENDS), 0)
        if at:
            head = wrapper + ".".join(pieces[:at]) + "."
            ends.setdefault(head, []).append((ENDS.index(pieces[at]), i, module))
    ordered = list(modules)
    for head in sorted(ends, key=lambda head: -head.count(".")):  # heads in a head before it
        found = [module for _, _, module in sorted(ends[head])]
        moved = set(found)
        last = max(i for i, module in enumerate(ordered) if f"{module}.".startswith(head))
        ordered[last + 1 : last + 1] = found
        ordered = [m for i, m in enumerate(ordered) if m not in moved or i > last]
    return ordered


def _ordered(source: str, keys: Sequence[str], modules: Sequence[str]) -> DepthOrder:
    ranks = {module: i for i, module in enumerate(modules)}
    return DepthOrder(source, {key: ranks[module_of(key)] for key in keys})


def tabled_order(named: NamedKeys) -> DepthOrder:
    """The order where a table knows the backbone; keys outside all tables come last, by name."""
    names = " and ".join(f"{t.name} {'backbone' if t.backbone else 'head'}" for t in named.found)
    rest = [s.key for name, s in named.sources.items() if name not in named.tables]
    # Alphabetical files keep no order of their own: numbers count there.
    ranks = natural_order(rest).ranks
    return DepthOrder(f"the table of the {names}", ranks)


def with_rest(tabled: DepthOrder, rest: DepthOrder) -> DepthOrder:
    """The order where tables know the backbone, and `rest` what they do not name."""
    return rest._replace(source=f"{tabled.source}; the rest by {rest.source}")


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
