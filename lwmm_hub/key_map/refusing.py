"""Stop where headers alone prove that models share no backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.errors import UnrelatedModelsError
from lwmm_hub.key_map.aligning import common_suffixes
from lwmm_hub.key_map.sharing import KeyMap


def require_shared_backbone(
    key_map: KeyMap, models: Sequence[Mapping[str, TensorEntry]], labels: Sequence[str]
) -> None:
    """Stop where headers alone prove that a donor shares no backbone.

    Raises:
        UnrelatedModelsError: with the closest near-misses and what would make them match.
    """
    backbone = {part.name for part in key_map.parts if part.backbone}
    for i in range(1, len(models)):
        matched = [p for p in key_map.shared if p.sources[i] is not None]
        if not any(p.part in backbone and len(p.shape) >= 2 for p in matched):
            raise UnrelatedModelsError(_nothing_shared(i, len(matched), key_map, models, labels))


def _nothing_shared(
    i: int,
    matched: int,
    key_map: KeyMap,
    models: Sequence[Mapping[str, TensorEntry]],
    labels: Sequence[str],
) -> str:
    """One line: that donor `i` shares no backbone, the nearest misses, and what to do."""
    families = [key_map.families[0], key_map.families[i]]
    shares = f"only {matched} parameters outside the backbone" if matched else "no parameter"
    text = f"{labels[0]} and {labels[i]} share {shares}: they have no common backbone"
    by_values = key_map.pairs is None and key_map.unmatched[i - 1].alike(models[0], models[i])
    text += "" if key_map.pairs is None else ", neither by name nor by values"
    misses = [why for why in key_map.kept.values() if why.startswith("shape differs")]
    if misses and families[0] == families[1]:
        near = next(
            (f"{key}: {why}" for key, why in key_map.kept.items() if why in misses), misses[0]
        )
        return (
            f"{text}. {len(misses)} names match with other shapes ({near}): the models have "
            f"different sizes. Choose two models of the same size."
        )
    suffixes = common_suffixes(models[0], models[i])
    if suffixes:
        mine, theirs = suffixes[0]
        return (
            f"{text}. {len(suffixes)} tensors end alike with equal shapes, e.g. {mine!r} and "
            f"{theirs!r}, but no prefix makes them match: "
            + ("pass --match values to compare their weights, " if by_values else "")
            + "rename the keys of one file so that they agree, or choose models with the same "
            "backbone."
        )
    text += f" ({families[0] or 'unknown family'}, {families[1] or 'unknown family'}). "
    if by_values:
        return (
            f"{text}{by_values} of their tensors have equal shapes: pass --match values to compare "
            "their weights, or choose models built on the same backbone."
        )
    return f"{text}Choose models built on the same backbone."
