"""Are the models related? Cosine similarity of a sample of weights, before anything is merged.

Two networks trained from different starts have weights that are orthogonal; their average is
neither. So a donor whose backbone has (uncentred) cosine near 0 with the anchor's is refused, and a
head with such a cosine counts as absent. Measured on real nets: one lineage 0.95; one pre-training,
other data sets 0.63 to 0.70; unrelated -0.004.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.errors import UnrelatedModelsError
from lwmm_hub.floats import Float, sum_dtype, view, widen
from lwmm_hub.key_map import KeyMap, SharedParameter, Source

UNRELATED, WEAK = 0.1, 0.5
SAMPLE = 32
_CHUNK = 1 << 15  # elements; few enough to stay in a core's cache
_LEAST = 1e-28  # so far above float32's least normal number that lost products do not count

Cosines = dict[
    str, dict[int, tuple[float | None, bool]]
]  # parameter -> donor -> what `_judge` asks


@dataclass(frozen=True)
class Relatedness:
    """How one part of one donor relates to the anchor's.

    Attributes:
        model: index of the donor.
        part: name of the part.
        backbone: whether it is (part of) the backbone.
        cosine: mean uncentred cosine over the sample; None if there is nothing to judge by.
        tensors: size of the sample.
        verdict: `related`, `weak` or `unrelated`. NaN throughout counts as related: the merge
            itself then names the model that has it.
        weak_layers: layers of the sample under 0.1, with their cosine.
        identical: whether the whole sample is equal bit for bit.
        like: the part whose verdict this one follows, having nothing to judge by.
    """

    model: int
    part: str
    backbone: bool
    cosine: float | None
    tensors: int
    verdict: str
    weak_layers: tuple[tuple[str, float], ...] = ()
    identical: bool = False
    like: str | None = None


def measure_relatedness(
    key_map: KeyMap, checkpoints: Sequence[Checkpoint]
) -> tuple[Relatedness, ...]:
    """Judge every part of every donor by at most 32 tensors at equal steps of depth.

    Only float tensors of at least two dimensions count; tensors of norm zero are skipped. The
    backbone's parts are judged together and each on its own, other parts each on its own; a part
    without such a tensor follows the part before it.
    """
    found = []
    known: Cosines = {}
    for model in range(1, len(checkpoints)):
        backbone = [part.name for part in key_map.parts if part.backbone]
        groups = [(tuple(backbone), True)] if backbone else []
        groups += [((part.name,), False) for part in key_map.parts if not part.backbone]
        before: Relatedness | None = None
        for names, is_backbone in groups:
            result = _judge(key_map, checkpoints, model, names, is_backbone, known)
            if result is None:
                continue
            if result.cosine is None and not is_backbone and before and not before.backbone:
                result = _like(result, before)
            before = result
            found.append(result)
            if is_backbone and len(names) > 1 and result.verdict != "unrelated":
                found += _foreign_parts(key_map, checkpoints, model, names, known)
    return tuple(found)


def _foreign_parts(
    key_map: KeyMap,
    checkpoints: Sequence[Checkpoint],
    model: int,
    names: tuple[str, ...],
    known: Cosines,
) -> list[Relatedness]:
    """Top-level modules of a guessed backbone that are unrelated on their own: they count as heads.

    Where no table says what the backbone is, a module with a plain name may be a decoder.
    """
    alone = [_judge(key_map, checkpoints, model, (name,), False, known) for name in names]
    return [
        result
        for result in alone
        if result is not None and result.cosine is not None and result.verdict == "unrelated"
    ]


def require_related(
    results: Sequence[Relatedness], labels: Sequence[str], allow_unrelated: bool
) -> tuple[str, ...]:
    """Warnings about weak relations; stops at an unrelated backbone.

    Raises:
        UnrelatedModelsError: a donor's backbone is unrelated, and `allow_unrelated` is not given.
    """
    warnings = []
    for result in results:
        label = labels[result.model]
        if result.backbone and result.verdict == "unrelated":
            if result.cosine is None:
                why = "they share no backbone weight that could be compared"
            else:
                why = (
                    f"their {result.part} weights have a mean cosine of {result.cosine:.3f} over "
                    f"{result.tensors} tensors, under {UNRELATED}"
                )
            if not allow_unrelated:
                raise UnrelatedModelsError(
                    f"{labels[0]} and {label} are unrelated: {why}, so they share no "
                    "pre-training and their average would be neither. Choose models with a common "
                    "pre-training, or pass --allow-unrelated to merge them all the same."
                )
            warnings.append(f"{label} is unrelated to the anchor ({why}); merged as asked.")
        elif result.verdict == "weak" and result.cosine is not None:
            layers = ", ".join(f"{name} {cosine:.2f}" for name, cosine in result.weak_layers[:5])
            more = len(result.weak_layers) - 5
            layers += f" and {more} more" if more > 0 else ""
            warnings.append(
                f"the {result.part} of {label} is only weakly related to the anchor's (mean cosine "
                f"{result.cosine:.2f})" + (f"; lowest in {layers}." if layers else ".")
            )
        if result.backbone and result.identical:
            warnings.append(f"{label} has the same backbone weights as the anchor, bit for bit.")
    return tuple(warnings)


def _like(result: Relatedness, before: Relatedness) -> Relatedness:
    source = before.like or before.part
    return replace(result, verdict=before.verdict, like=source)


def _judge(
    key_map: KeyMap,
    checkpoints: Sequence[Checkpoint],
    model: int,
    parts: tuple[str, ...],
    backbone: bool,
    known: Cosines,
) -> Relatedness | None:
    shared = [p for p in key_map.shared if p.part in parts and p.sources[model] is not None]
    if not shared:
        return None
    name = " and ".join(parts if len(parts) < 4 else (*parts[:2], f"{len(parts) - 2} more"))
    cosines, identical, unsound = [], True, False
    for parameter in sample([p for p in shared if len(p.shape) >= 2]):
        if parameter.name not in known:  # of all donors, which mostly have one sample
            known[parameter.name] = _cosines(parameter, checkpoints)
        cosine, same = known[parameter.name][model]
        if cosine is None:
            continue
        if not math.isfinite(cosine):
            unsound = True
            continue
        cosines.append((parameter.layer, cosine))
        identical &= same
    if not cosines:
        return Relatedness(model, name, backbone, None, 0, "related" if unsound else "unrelated")
    mean = sum(cosine for _, cosine in cosines) / len(cosines)
    weak = tuple(sorted((c for c in cosines if c[1] < UNRELATED), key=lambda c: c[1]))
    verdict = "unrelated" if mean < UNRELATED else "weak" if mean < WEAK or weak else "related"
    return Relatedness(model, name, backbone, mean, len(cosines), verdict, weak, identical)


def sample(parameters: Sequence[SharedParameter]) -> list[SharedParameter]:
    """All of them, or 32 at equal steps of depth, first and last included."""
    if len(parameters) <= SAMPLE:
        return list(parameters)
    step = (len(parameters) - 1) / (SAMPLE - 1)
    return [parameters[round(i * step)] for i in range(SAMPLE)]


def _cosines(
    parameter: SharedParameter, checkpoints: Sequence[Checkpoint]
) -> dict[int, tuple[float | None, bool]]:
    """Per donor that has it, the uncentred cosine of one parameter with the anchor's, None where a
    norm is zero; and whether bits are equal.

    NaN where a model has NaN or infinity. The anchor's values are read once for all donors.

    Sums of float32 products are made per 32,768 elements and added in double precision. The
    constant part of normalisation layers cannot blur it, since only tensors of at least two
    dimensions are asked.
    """  # noqa: D205
    donors = [i for i, source in enumerate(parameter.sources) if i and source is not None]
    elements = math.prod(parameter.shape)
    own = 0.0
    across, squares = dict.fromkeys(donors, 0.0), dict.fromkeys(donors, 0.0)
    same = dict.fromkeys(donors, True)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, elements, _CHUNK):
            count = min(_CHUNK, elements - start)
            a = parameter_values(parameter, checkpoints, 0, start, count)
            own += _dot(a, a)
            for i in donors:
                b = parameter_values(parameter, checkpoints, i, start, count)
                same[i] = same[i] and bool(a[0] == b[0] and np.array_equal(a, b))
                across[i] += _dot(a, b)
                squares[i] += _dot(b, b)
    norms = {i: math.sqrt(own) * math.sqrt(squares[i]) for i in donors}
    return {i: (across[i] / norms[i] if norms[i] else None, same[i]) for i in donors}


def _dot(x: Float, y: Float) -> float:
    """Their dot product, once more in double precision where float32 may over- or underflow."""
    product = float(np.dot(x, y))
    if _LEAST < abs(product) < math.inf:
        return product
    return float(np.dot(x.astype(np.float64), y.astype(np.float64)))


def parameter_values(
    parameter: SharedParameter,
    checkpoints: Sequence[Checkpoint],
    model: int,
    start: int,
    count: int,
) -> Float:
    """`count` elements of one model's parameter from element `start`, as stored in row-major order.

    float32, or float64 where they are stored so.
    """
    source = parameter.sources[model]
    assert source is not None
    return source_values(checkpoints[model], source, start, count)


def source_values(checkpoint: Checkpoint, source: Source, start: int, count: int) -> Float:
    """`count` elements of a float tensor (or part of one) from element `start`, row-major.

    float32, or float64 where they are stored so.
    """
    entry = checkpoint.entries[source.key]
    width = entry.size // max(entry.elements, 1)
    skip = entry.size // source.parts * source.part + start * width
    raw = view(checkpoint.read(entry, skip, count * width), entry.dtype, count)
    real = sum_dtype({entry.dtype})
    return raw if raw.dtype == real else widen(raw, entry.dtype, np.empty(count, real))
