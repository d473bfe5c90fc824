"""Were the models made from the same pre-training? Proved bit for bit where their files allow it.

Training checkpoints of the DAFormer line hold a frozen copy of what they started from
(`imnet_model.`). Where two files hold one, equal copies of the backbone prove a common ancestor and
unequal ones refute it; where one file does, the copy may be the other model itself. Checksums in
the directories of zip archives are enough evidence where no weights are read. Anything else is
plausible at best: a common ancestor leaves related weights, but they prove none.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.key_map import KeyMap, SharedParameter
from lwmm_hub.relatedness import Relatedness, parameter_values, sample

_CHUNK = 1 << 18  # elements


@dataclass(frozen=True)
class Lineage:
    """Whether a donor and the anchor start from the same pre-training.

    Attributes:
        model: index of the donor.
        verdict: `proven`, `plausible` or `refuted`.
        why: by what.
    """

    model: int
    verdict: str
    why: str


class _Evidence(NamedTuple):
    """Two sets of backbone weights: if they are equal, a common start is proved.

    `refutes` says whether unequal ones refute it: those of two kept copies do.
    """

    what: str
    checkpoints: tuple[Checkpoint, Checkpoint]
    refutes: bool


def lineage_of(
    key_map: KeyMap,
    checkpoints: Sequence[Checkpoint],
    relatedness: Sequence[Relatedness] | None = None,
) -> tuple[Lineage, ...]:
    """What is known of each donor's pre-training and the anchor's, donors without a clue left out.

    Args:
        key_map: what the models share.
        checkpoints: the models, the anchor first.
        relatedness: the verdicts on their weights; without, no weights are read here either, and
            only checksums in zip directories count.
    """
    backbone = {part.name for part in key_map.parts if part.backbone}
    found = []
    for i in range(1, len(checkpoints)):
        shared = [p for p in key_map.shared if p.part in backbone and p.sources[i] is not None]
        result = _judge(shared, checkpoints, i, relatedness is not None) if shared else None
        if result is None and relatedness is not None:
            result = _by_cosine(i, relatedness)
        if result is not None:
            found.append(result)
    return tuple(found)


def lineage_warnings(
    lineage: Sequence[Lineage], labels: Sequence[str], relatedness: Sequence[Relatedness]
) -> tuple[str, ...]:
    """A line per donor that surely starts from elsewhere, where its weights do not say so, too."""
    warned = {r.model for r in relatedness if r.backbone and r.verdict == "unrelated"}
    return tuple(
        f"{labels[each.model]} and {labels[0]} do not share their pre-training: {each.why}."
        for each in lineage
        if each.verdict == "refuted" and each.model not in warned
    )


def _judge(
    shared: Sequence[SharedParameter], checkpoints: Sequence[Checkpoint], i: int, read: bool
) -> Lineage | None:
    """By the copies of the pre-training that the files hold; None where they say nothing."""
    for evidence in _evidence(checkpoints[0], checkpoints[i]):
        mine, theirs = evidence.checkpoints
        both = [p for p in shared if _has(p, mine, 0) and _has(p, theirs, i)]
        if not both:
            continue
        equal = _same_checksums(both, mine, theirs, i)
        how = f"checksums of all {len(both)} shared backbone tensors"
        if equal is None and read:
            chosen = sample([p for p in both if len(p.shape) >= 2]) or sample(both)
            equal = all(_same_values(p, mine, theirs, i) for p in chosen)
            how = f"{len(chosen)} of {len(both)} shared backbone tensors, bit for bit"
        if equal and _tells(both, mine, read):
            return Lineage(i, "proven", f"{evidence.what} are equal: {how}")
        if equal is False and evidence.refutes:
            return Lineage(i, "refuted", f"{evidence.what} differ: {how}")
    return None


def _evidence(anchor: Checkpoint, donor: Checkpoint) -> list[_Evidence]:
    """What can be compared, most telling first."""
    mine, theirs = (
        replace(c, entries=c.pretraining) if c.pretraining else None for c in (anchor, donor)
    )
    found = []
    if mine and theirs:
        found.append(
            _Evidence("the copies of their pre-training in both files", (mine, theirs), True)
        )
    if mine:
        what = f"{donor.label} and the pre-training that {anchor.label} holds a copy of"
        found.append(_Evidence(what, (mine, donor), False))
    if theirs:
        what = f"{anchor.label} and the pre-training that {donor.label} holds a copy of"
        found.append(_Evidence(what, (anchor, theirs), False))
    return found


def _by_cosine(i: int, relatedness: Sequence[Relatedness]) -> Lineage | None:
    """By how alike the backbones are: no proof of a common start."""
    judged = next((r for r in relatedness if r.model == i and r.backbone), None)
    if judged is None or judged.cosine is None:
        return None
    cosine = f"mean cosine {judged.cosine:.3f} over {judged.tensors} backbone tensors"
    if judged.verdict == "unrelated":
        return Lineage(i, "refuted", f"their weights are unrelated: {cosine}")
    return Lineage(
        i, "plausible", f"their weights are alike: {cosine}; no file holds a copy that proves it"
    )


def _has(parameter: SharedParameter, checkpoint: Checkpoint, model: int) -> bool:
    source = parameter.sources[model]
    assert source is not None
    entry = checkpoint.entries.get(source.key)
    return entry is not None and source.shape(checkpoint.entries) == parameter.shape


def _same_checksums(
    shared: Sequence[SharedParameter], mine: Checkpoint, theirs: Checkpoint, i: int
) -> bool | None:
    """Whether zip directories say that all tensors are equal; None where they do not say.

    Files without valid checksums have the same constant everywhere.
    """
    seen: set[int] = set()
    equal = True
    for parameter in shared:
        first, second = parameter.sources[0], parameter.sources[i]
        assert first is not None
        assert second is not None
        a, b = mine.entries[first.key], theirs.entries[second.key]
        if a.crc32 is None or b.crc32 is None or a.dtype != b.dtype or a.size != b.size:
            return None
        if (first.part, first.parts) != (second.part, second.parts):
            return None
        equal = equal and a.crc32 == b.crc32
        seen |= {a.crc32, b.crc32}
    return equal if len(seen) > 1 else None


def _tells(shared: Sequence[SharedParameter], mine: Checkpoint, read: bool) -> bool:
    """Whether equal tensors prove anything: norms may be as initialised, zeros are anyone's."""
    for parameter in shared:
        source = parameter.sources[0]
        assert source is not None
        entry = mine.entries[source.key]
        if len(parameter.shape) < 2 or not entry.size:
            continue
        if entry.crc32 is not None and not read:
            varied = entry.crc32 != zlib.crc32(bytes(entry.size))
        else:
            count = min(_CHUNK, math.prod(parameter.shape))
            values = parameter_values(parameter, [mine], 0, 0, count)
            varied = bool((values != values[0]).any())
        if varied:
            return True
    return False


def _same_values(parameter: SharedParameter, mine: Checkpoint, theirs: Checkpoint, i: int) -> bool:
    """Whether a parameter has the same bits in both, once half precision is widened."""
    pair = [mine] + [theirs] * i  # at the indices of the sources
    elements = math.prod(parameter.shape)
    for start in range(0, elements, _CHUNK):
        count = min(_CHUNK, elements - start)
        a = parameter_values(parameter, pair, 0, start, count)
        b = parameter_values(parameter, pair, i, start, count)
        if a.dtype != b.dtype or a.tobytes() != b.tobytes():
            return False
    return True
