"""What has no mean, whatever its dtype says: states, indices, the two parts of a weight norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lwmm_hub.key_map.naming import Source, module_of

_NORM = "a part of weight norm or spectral norm is never averaged by itself"

_MASK = "a mask is never averaged"

_IMAGES = "constants of the anchor's image processing are never averaged"

# last name of a float tensor that has no mean -> why; integers and booleans never have one
NEVER_AVERAGED = {
    "attn_mask": _MASK,
    "attn_mask_probs": "the state of a training schedule is never averaged",  # EoMT
    "bias_mask": _MASK,
    "empty_weight": "class weights of a loss are never averaged",  # Mask2Former and its kin
    "num_batches_tracked": "a counter is never averaged",  # where a whole file was cast to floats
    "num_updates": "a counter is never averaged",  # of an exponential moving average
    "original0": _NORM,
    "original1": _NORM,
    "pixel_mean": _IMAGES,
    "pixel_std": _IMAGES,
    "position_ids": "an index is never averaged",
    "relative_position_index": "an index is never averaged",
    "weight_g": _NORM,
    "weight_mask": _MASK,  # of pruned weights
    "weight_u": _NORM,
    "weight_v": _NORM,
}

_PARAMETRIZED = ".parametrizations.weight"


def why_never(name: str, normed: frozenset[str]) -> str | None:
    """Why a parameter has no mean, or None.

    >>> why_never("fc.weight_v", frozenset()) == NEVER_AVERAGED["weight_v"]
    True
    >>> why_never("fc.bias", frozenset({"fc"}))
    'it goes with a weight under weight norm, which is never averaged by its parts'

    Args:
        name: canonical name.
        normed: modules whose weight is kept in two parts, see `normed_modules`.
    """
    module, _, leaf = name.rpartition(".")
    if leaf in NEVER_AVERAGED:
        return NEVER_AVERAGED[leaf]
    if module in normed:
        return "it goes with a weight under weight norm, which is never averaged by its parts"
    return None


def normed_modules(names: Iterable[str]) -> frozenset[str]:
    """Modules whose weight is kept as direction and length (torch's weight norm, old and new).

    >>> sorted(normed_modules(["a.weight_g", "a.bias", "b.parametrizations.weight.original0"]))
    ['a', 'b']
    """
    return frozenset(
        module_of(name).removesuffix(_PARAMETRIZED)
        for name in names
        if name.rpartition(".")[2] in ("weight_g", "original0")  # spectral norm has neither
    )


def norm_warnings(normed: frozenset[str], sources: Mapping[str, Source]) -> tuple[str, ...]:
    """One line that says which modules of the anchor's file stay as they are for it."""
    keys = (source.key for name, source in sources.items() if module_of(name) in normed)
    there = sorted({module_of(key) for key in keys})
    if not there:
        return ()
    shown = ", ".join(there[:3]) + (", ..." if len(there) > 3 else "")
    keep = "keeps its" if len(there) == 1 else "keep their"
    return (
        f"{shown} {keep} weight as direction and length (weight norm), whose means are no mean of "
        "weights: the anchor's is kept, bias included.",
    )
