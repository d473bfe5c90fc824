"""How far donors have drifted from the anchor, layer by layer (the paper's Figure 2).

The paper's threshold is lost; ours is a parameter and is always shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.display import one_line, stage_name
from lwmm_hub.errors import OutputError, UsageError
from lwmm_hub.key_map import KeyMap, SharedParameter
from lwmm_hub.relatedness import parameter_values

EPSILON = 1e-8
PLOTS = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<svg", ".pdf": b"%PDF-"}  # and their signs
_CHUNK = 1 << 20
# last name of a parameter -> the kinds of Figure 2; what has another name is `OTHER`
KINDS = {
    "weight": "weight",
    "bias": "bias",
    "running_mean": "batch-norm mean",
    "running_var": "batch-norm variance",
}
OTHER = "other"


@dataclass(frozen=True)
class Drift:
    """How far one parameter of one donor is from the anchor's.

    Attributes:
        model: index of the donor.
        name: canonical name.
        layer: canonical module.
        kind: weight, bias, batch-norm mean, batch-norm variance or other.
        changed: share of entries with |a - b| / max(|a|, 1e-8) over the threshold; where one of
            them is not finite, of those that differ.
        distance: |a - b| / |a| in the Euclidean norm; None where the anchor's norm is 0.
        cosine: uncentred; None where a norm is 0. Near 0 in a backbone: no common pre-training.
        unsound: the models that have NaN or infinity in it; distance and cosine are None then.
    """

    model: int
    name: str
    layer: str
    kind: str
    changed: float
    distance: float | None
    cosine: float | None
    unsound: tuple[int, ...] = ()


def measure_drift(
    key_map: KeyMap, checkpoints: Sequence[Checkpoint], threshold: float = 0.1
) -> list[Drift]:
    """The drift of every shared parameter of every donor, in depth order; streamed in chunks.

    Args:
        key_map: of `lwmm_hub.match`: what the models share.
        checkpoints: the same models, the anchor first, opened with `download=True`.
        threshold: relative change above which an entry counts as changed.

    Raises:
        UsageError: the threshold is not a positive number, or nothing is matched yet.
    """
    if not isinstance(key_map, KeyMap):
        raise UsageError(f"{key_map!r} is no key map: lw.match(anchor, donor) of opened models is.")
    if not 0 < threshold < math.inf:
        raise UsageError(f"threshold is {threshold}: give a number over 0.")
    return [
        _drift(parameter, checkpoints, model, threshold)
        for model in range(1, len(checkpoints))
        for parameter in key_map.shared
        if parameter.sources[model] is not None
    ]


def _drift(
    parameter: SharedParameter, checkpoints: Sequence[Checkpoint], model: int, threshold: float
) -> Drift:
    elements = math.prod(parameter.shape)
    changed, unsound = 0, set()
    dot = mine = theirs = apart = 0.0
    for start in range(0, elements, _CHUNK):
        n = min(_CHUNK, elements - start)
        a = parameter_values(parameter, checkpoints, 0, start, n).astype(np.float64)
        b = parameter_values(parameter, checkpoints, model, start, n).astype(np.float64)
        unsound |= {i for i, values in ((0, a), (model, b)) if not np.isfinite(values).all()}
        with np.errstate(over="ignore", invalid="ignore"):
            gap = np.abs(a - b)
            moved = gap > threshold * np.maximum(np.abs(a), EPSILON)
            differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
            changed += int(np.where(np.isfinite(gap), moved, differ).sum())
            dot, mine, theirs = dot + float(a @ b), mine + float(a @ a), theirs + float(b @ b)
            apart += float(gap @ gap)
    norms = math.sqrt(mine) * math.sqrt(theirs)
    return Drift(
        model,
        parameter.name,
        parameter.layer,
        KINDS.get(parameter.name.rpartition(".")[2], OTHER),
        changed / max(elements, 1),
        _finite(math.sqrt(apart / mine)) if mine else None,
        _finite(dot / norms) if norms else None,
        tuple(sorted(unsound)),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def unsound_warnings(drifts: Sequence[Drift], labels: Sequence[str]) -> list[str]:
    """A line per model that has NaN or infinity, with the first place."""
    found: dict[int, list[str]] = {}
    for drift in drifts:
        for model in drift.unsound:
            found.setdefault(model, []).append(drift.name)
    return [
        f"{labels[model]} has NaN or infinite values in {names[0]}"
        + (f" and {len(set(names)) - 1} more" if set(names) != {names[0]} else "")
        + ": such a tensor has no distance and no cosine."
        for model, names in sorted(found.items())
    ]


def drift_dict(
    drifts: Sequence[Drift], labels: Sequence[str], threshold: float, warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """The result as plain data, ready for JSON."""
    return {
        "version": 1,
        "threshold": threshold,
        "models": list(labels),
        "drift": [
            {
                "model": d.model, "name": d.name, "layer": d.layer, "kind": d.kind,
                "changed": d.changed, "distance": d.distance, "cosine": d.cosine,
            }
            for d in drifts
        ],
    } | ({"warnings": list(warnings)} if warnings else {})  # fmt: skip


def check_plot(path: Path) -> None:
    """Refuse, before anything is measured, what is not drawn or would be drawn over anything else.

    Raises:
        UsageError: another kind of figure is asked for, or the file exists and holds none.
    """
    if path.suffix.lower() not in PLOTS:
        raise UsageError(f"plot {str(path)!r}: give a name that ends in {', '.join(PLOTS)}.")
    try:
        if not path.exists() or (path.is_file() and _holds_figure(path)):
            return
    except OSError as error:
        raise UsageError(
            f"cannot read {path}, which exists: {error.strerror}. Name another file with --plot."
        ) from error
    raise UsageError(f"{path} exists and holds no figure. Name another file with --plot.")


def _holds_figure(path: Path) -> bool:
    """Whether a file holds what its name says, or nothing."""
    with path.open("rb") as file:
        head = file.read(1024)  # text may come before what makes it an SVG
    sign = PLOTS[path.suffix.lower()]
    return not head or (sign in head if sign == b"<svg" else head.startswith(sign))


def plot_drift(
    drifts: Sequence[Drift], labels: Sequence[str], threshold: float, path: Path
) -> None:
    """Draw the share of changed entries over depth, one panel per donor, one line per kind.

    Raises:
        OutputError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    donors = sorted({d.model for d in drifts})
    figure, axes = pyplot.subplots(
        len(donors), 1, figsize=(9, 3.2 * len(donors)), squeeze=False, constrained_layout=True
    )
    for axis, model in zip(axes[:, 0], donors, strict=True):
        layers = list(dict.fromkeys(d.layer for d in drifts if d.model == model))
        place = {layer: i for i, layer in enumerate(layers)}
        for kind in (*KINDS.values(), OTHER):
            points = [
                (place[d.layer], d.changed) for d in drifts if (d.model, d.kind) == (model, kind)
            ]
            if points:
                axis.plot(*zip(*points, strict=True), ".-", label=kind, linewidth=1, markersize=4)
        axis.set_title(f"{labels[model]} against {labels[0]}", fontsize=10, parse_math=False)
        axis.set_ylabel(f"entries changed by over {percent(threshold)}")
        axis.set_xlabel("layer, in depth order")
        axis.set_ylim(-0.02, 1.02)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))  # beside the lines
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Name another file with --plot."
        ) from error
    finally:
        pyplot.close(figure)


def drift_text(drifts: Sequence[Drift], labels: Sequence[str], threshold: float) -> str:
    """The drift per stage, for a terminal."""
    lines = [
        f"Drift from {one_line(labels[0])}; changed: share of entries moved by over "
        f"{percent(threshold)}; means over the tensors of a stage"
    ]
    for model in sorted({d.model for d in drifts}):
        lines += ["", f"  {one_line(labels[model])}"]
        groups: dict[str, list[Drift]] = {}
        for drift in drifts:
            if drift.model == model:
                groups.setdefault(stage_name(drift.layer), []).append(drift)
        width = max(28, *(len(one_line(name)) for name in groups))
        lines.append(f"  {'layers':<{width}}{'changed':>9}{'distance':>10}{'cosine':>9}")
        for name, members in groups.items():
            changed = _mean([d.changed for d in members])
            distance = _mean([d.distance for d in members])
            cosine = _mean([d.cosine for d in members])
            lines.append(f"  {one_line(name):<{width}}{changed:>9}{distance:>10}{cosine:>9}")
    return "\n".join(lines)


def percent(share: float) -> str:
    """A threshold as it was given.

    >>> percent(0.1), percent(0.001), percent(2.5)
    ('10%', '0.1%', '250%')
    """
    return f"{100 * share:g}%"


def _mean(values: Sequence[float | None]) -> str:
    there = [v for v in values if v is not None]
    return f"{sum(there) / len(there):.3f}" if there else "-"
