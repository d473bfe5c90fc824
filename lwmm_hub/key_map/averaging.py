"""What has no mean, whatever its dtype says: states, indices, the parts of a normed weight."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lwmm_hub.key_map.naming import module_of

_NORM = "a part of weight norm or spectral norm is never averaged by itself"

_PART = "a part of a parametrized weight is never averaged by itself"

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

_WEIGHT, _SPECTRAL, _OTHER = "weight norm", "spectral norm", "a parametrization"

# of what a weight is computed there
_KEPT_AS = {
    _WEIGHT: "as direction and length (weight norm)",
    _SPECTRAL: "beside the vectors that it is scaled by (spectral norm)",
    _OTHER: "as parts that torch computes it from (parametrizations)",
}

# torch's older norms: the end of a part's last name -> that of another part, and what they make
_OLD_PARTS = {"_g": ("_v", _WEIGHT), "_u": ("_orig", _SPECTRAL)}
_OLD = {"weight_g": _WEIGHT, "weight_u": _SPECTRAL}  # these say it alone

# its newer ones, and whatever else may stand there
_PARAMETRIZED = re.compile(
    r"(?:(?P<module>.+)\.)?parametrizations\.[^.]+\.(?P<part>original\d*|\d+\..+)"
)
_NEW = {"original0": _WEIGHT, "original1": _WEIGHT, "0._u": _SPECTRAL, "0._v": _SPECTRAL}


def why_never(name: str, key: str, normed: Mapping[str, str]) -> str | None:
    """Why a parameter has no mean, or None.

    >>> why_never("fc.weight_v", "fc.weight_v", {}) == NEVER_AVERAGED["weight_v"]
    True
    >>> why_never("head.bias", "fc.bias", {"fc": "weight norm"})
    'it goes with a weight under weight norm, which is never averaged by its parts'

    Args:
        name: canonical name.
        key: of its tensor in the file.
        normed: modules of that file whose weight is kept in parts, see `normed_modules`.
    """
    leaf = name.rpartition(".")[2]
    if leaf in NEVER_AVERAGED:
        return NEVER_AVERAGED[leaf]
    if _PARAMETRIZED.fullmatch(key):
        return _NORM if normed.get(_owner(key)) != _OTHER else _PART
    if kind := normed.get(_owner(key)):
        return f"it goes with a weight under {kind}, which is never averaged by its parts"
    return None


def normed_modules(keys: Iterable[str]) -> dict[str, str]:
    """Modules of a file whose weight is kept in parts, and what computes it from them.

    >>> normed_modules(["a.weight_g", "a.bias", "b.parametrizations.weight.original0"])
    {'a': 'weight norm', 'b': 'weight norm'}
    >>> normed_modules(["a.weight_orig", "a.weight_u", "b.weight_orig", "b.weight_mask"])
    {'a': 'spectral norm'}
    """
    keys = dict.fromkeys(keys)
    found: dict[str, str] = {}
    for key in keys:
        module, _, leaf = key.rpartition(".")
        if new := _PARAMETRIZED.fullmatch(key):
            kind = _NEW.get(new["part"], _OTHER)
            module = _owner(key)
            if found.get(module, _OTHER) == _OTHER:
                found[module] = kind
        elif leaf in _OLD:
            found[module] = _OLD[leaf]
        else:
            for end, (other, kind) in _OLD_PARTS.items():  # of an LSTM's `weight_hh_l0`, say
                there = leaf.startswith("weight_") and leaf.endswith(end)
                if there and f"{key.removesuffix(end)}{other}" in keys:
                    found[module] = kind
    return found


def _owner(key: str) -> str:
    """The module whose parameter a tensor is, or is a part of."""
    new = _PARAMETRIZED.fullmatch(key)
    return (new["module"] or "") if new else module_of(key)


def norm_warnings(normed: Mapping[str, str]) -> tuple[str, ...]:
    """One line per kind that says which modules of the anchor's file stay as they are for it."""
    warnings = []
    for kind, how in _KEPT_AS.items():
        there = sorted(module or "(top level)" for module, its in normed.items() if its == kind)
        if there:
            shown = ", ".join(there[:3]) + (", ..." if len(there) > 3 else "")
            keep = "keeps its" if len(there) == 1 else "keep their"
            warnings.append(
                f"{shown} {keep} weight {how}: means of the parts are no mean of weights. "
                "The anchor's is kept, bias included."
            )
    return tuple(warnings)
