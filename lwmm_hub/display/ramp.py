"""The layer weights over depth, drawn by hand as SVG: a line per model, for light and dark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lwmm_hub.display.text import escape, one_line

COLOURS = (
    ("#0b62b0", "#58a9f5"),
    ("#c9500c", "#ff9a55"),
    ("#0a7a58", "#3ecf9e"),
    ("#8a3fa8", "#d08be8"),
    ("#8a6a00", "#e0b93a"),
    ("#5d6570", "#aeb6c2"),
)
"""Line colours on a light and on a dark ground; the anchor's is the first."""

HEADS = re.compile(
    r"(?i).*(?:head|classifier|decoder|logit|predictor).*|cls|neck|fpn|aux\w*|fc|"
    r"layer[56]|class_layer|linear_(?:c|fuse|pred)\w*"
)
"""What a part is called that is not the backbone, where nothing else tells."""

_STYLE = """
.lwmm-ground{fill:#ffffff;stroke:#d5dae1}.lwmm-band{fill:#f3f5f8}.lwmm-grid{stroke:#dfe3e9}
.lwmm-axis,.lwmm-border{stroke:#6a7482}.lwmm-text{fill:#39424e}.lwmm-soft{fill:#6a7482}
"""
_DARK_STYLE = """
.lwmm-ground{fill:#151b23;stroke:#343d49}.lwmm-band{fill:#1c242e}.lwmm-grid{stroke:#2b343f}
.lwmm-axis,.lwmm-border{stroke:#8d97a5}.lwmm-text{fill:#d8dee6}.lwmm-soft{fill:#98a2b0}
"""


def ramp_svg(
    layers: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    *,
    width: int = 760,
    height: int = 330,
    heads: Sequence[str] = (),
    before: tuple[str, Sequence[Sequence[float]]] | None = None,
) -> str:
    """The layer weights of `plan --json` (`layers`) as an SVG picture.

    `labels` are the models' public names, the anchor's first; models whose weights are the same
    everywhere share a line. `heads` are the names of parts that are not the backbone. `before` are
    the weights that fitted ones began with, in words and for each layer: they are drawn dashed, and
    the others thinner, since they jump from layer to layer.
    """
    legend = _series(layers, labels)
    began, courses = before if before and len(before[1]) == len(layers) else ("", [])
    entries = len(legend) + bool(courses)
    top, bottom, left, right = 46 + 18 * entries, 62, 56, 44
    plot_width, plot_height = width - left - right, max(80, height - top - bottom)
    height = top + plot_height + bottom

    def x(index: float) -> float:
        share = index / (len(layers) - 1) if len(layers) > 1 else 0.5
        return round(left + plot_width * share, 2)

    def y(weight: float) -> float:
        return round(top + plot_height * (1 - weight), 2)

    title = f"Layer weights of {len(labels)} models over {len(layers)} layers"
    stage_marks = _stages(layers)
    parts = [
        f'<rect class="lwmm-ground" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" '
        'rx="8"/>',
        _words(left, 25, "Layer weight over depth", "lwmm-text", size=14, weight=600),
    ]
    for place, (first, last, name) in enumerate(stage_marks):
        start, end = x(max(0.0, first - 0.5)), x(min(len(layers) - 1.0, last + 0.5))
        if place % 2 == 0:
            parts.append(
                f'<rect class="lwmm-band" x="{start}" y="{top}" width="{round(end - start, 2)}" '
                f'height="{plot_height}"/>'
            )
        if end - start >= 6.5 * len(name):
            middle = (start + end) / 2
            base = top + plot_height + 34
            parts.append(_words(middle, base, name, "lwmm-soft", anchor="middle"))
    for quarter in range(5):
        height_of = y(quarter / 4)
        parts.append(
            f'<line class="lwmm-grid" x1="{left}" x2="{left + plot_width}" y1="{height_of}" '
            f'y2="{height_of}"/>'
        )
        parts.append(
            _words(left - 8, height_of + 4, f"{quarter / 4:.2f}", "lwmm-soft", anchor="end")
        )
    for index in _ticks(len(layers)):
        parts.append(
            _words(x(index), top + plot_height + 18, str(index), "lwmm-soft", anchor="middle")
        )
    bottom_words = "layer, by depth"
    parts.append(
        _words(left + plot_width / 2, height - 10, bottom_words, "lwmm-soft", anchor="middle")
    )
    boundary = head_start(layers, heads)
    if boundary is not None and boundary > 0:
        where = x(boundary - 0.5)
        parts.append(
            f'<line class="lwmm-border" x1="{where}" x2="{where}" y1="{top - 6}" '
            f'y2="{top + plot_height}" stroke-dasharray="2 3"/>'
        )
        if where - left > 90:
            parts.append(_words(where - 6, top - 4, "backbone", "lwmm-soft", anchor="end"))
        parts.append(_words(where + 6, top - 4, "head", "lwmm-soft"))
    parts.append(
        f'<path class="lwmm-axis" fill="none" d="M{left} {top}V{top + plot_height}'
        f'H{left + plot_width}"/>'
    )
    weight_of_line = 1.6 if courses else 2.4
    for place, (label, weights) in enumerate(legend):
        points = [(x(index), y(weight)) for index, weight in enumerate(weights)]
        parts += _line(place, points, weight_of_line)
        parts += _legend_entry(place, label, left, 45 + 18 * place, width)
    for place, course in enumerate(zip(*courses, strict=True)):
        points = [(x(index), y(weight)) for index, weight in enumerate(course)]
        parts.append(_dashed(place if len(legend) == len(labels) else None, points))
    if courses:
        base = 45 + 18 * len(legend)
        parts.append(_dashed(None, [(left, base - 4), (left + 22, base - 4)]))
        parts.append(_words(left + 30, base, began, "lwmm-soft"))
    colours = "".join(
        f".lwmm-line{place}{{stroke:{light};fill:{light}}}"
        for place, (light, _) in enumerate(COLOURS)
    )
    dark = "".join(
        f".lwmm-line{place}{{stroke:{dark};fill:{dark}}}" for place, (_, dark) in enumerate(COLOURS)
    )
    style = f"{_STYLE}{colours}\n@media (prefers-color-scheme:dark){{{_DARK_STYLE}{dark}}}"
    description = "; ".join(
        f"{label}: {weights[0]:.2f} at the first layer, {weights[-1]:.2f} at the last"
        for label, weights in legend
        if weights
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" '
        "font-family=\"system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif\">\n"
        f"<title>{title}</title>\n<desc>{escape(description)}</desc>\n"
        f"<style>{style}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def head_start(layers: Sequence[Mapping[str, Any]], heads: Sequence[str] = ()) -> int | None:
    """The index of the first layer after the backbone, or None where the ramp ends with it.

    >>> head_start([{"name": "stages.0.a"}, {"name": "decode_head.linear_fuse"}])
    1
    """
    for index, layer in enumerate(layers):
        top = str(layer.get("name", "")).split(".")[0]
        if not {top, layer.get("part", top)}.isdisjoint(heads) or HEADS.fullmatch(top):
            return index
    return None


def _series(
    layers: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> list[tuple[str, list[float]]]:
    """One entry per line: its legend and its weight at each layer."""
    columns = [[float(layer["weights"][model]) for layer in layers] for model in range(len(labels))]
    series: list[tuple[str, list[float]]] = []
    if labels:
        series.append((f"anchor: {one_line(labels[0])}", columns[0]))
    donors: dict[tuple[float, ...], list[str]] = {}
    for label, weights in zip(labels[1:], columns[1:], strict=True):
        donors.setdefault(tuple(weights), []).append(one_line(label))
    for weights_seen, names in donors.items():
        each = f"donor: {names[0]}" if len(names) == 1 else f"each of {len(names)} donors: "
        series.append((each if len(names) == 1 else each + ", ".join(names), list(weights_seen)))
    return series


def _stages(layers: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, str]]:
    """Runs of layers of one stage or part: first index, last index, name."""
    named = [(index, _stage(str(layer.get("name", "")))) for index, layer in enumerate(layers)]
    runs = []
    for name, run in groupby(named, key=lambda entry: entry[1]):
        indices = [index for index, _ in run]
        runs.append((indices[0], indices[-1], name))
    return runs


def _stage(name: str) -> str:
    """What `--start` and `--end` call it, and the table of a plan.

    >>> _stage("stages.0.blocks.1.attn.q"), _stage("layer1.0.conv1"), _stage("head.fuse")
    ('stages.0', 'layer1', 'head')
    """
    parts = (one_line(name) or "?").split(".")
    if len(parts) > 1 and parts[1].isdigit() and parts[0] in ("stages", "stage"):
        return ".".join(parts[:2])
    return parts[0] or "?"


def _ticks(count: int) -> list[int]:
    """About six round layer numbers from 0, and the last one."""
    if count < 2:
        return list(range(count))
    step = next(
        (s * 10**e for e in range(9) for s in (1, 2, 5) if (count - 1) / (s * 10**e) <= 6), count
    )
    ticks = list(range(0, count - 1, step))
    if len(ticks) > 1 and count - 1 - ticks[-1] < step * 0.55:
        ticks.pop()
    return [*ticks, count - 1]


def _dashed(place: int | None, points: list[tuple[float, float]]) -> str:
    """A line of what was before, in a model's colour or in none."""
    style = "lwmm-axis" if place is None else f"lwmm-line{place % len(COLOURS)}"
    drawn = " ".join(f"{px:g},{py:g}" for px, py in _without_collinear(points))
    return (
        f'<polyline class="{style}" style="fill:none" stroke-width="1.4" stroke-dasharray="5 4" '
        f'points="{drawn}"/>'
    )


def _line(place: int, points: list[tuple[float, float]], width: float) -> list[str]:
    if not points:
        return []
    style = f'class="lwmm-line{place % len(COLOURS)}"'
    dash = ("", ' stroke-dasharray="7 4"', ' stroke-dasharray="2 3"')[place // len(COLOURS) % 3]
    kept = _without_collinear(points)
    drawn = " ".join(f"{px:g},{py:g}" for px, py in kept)
    line = f'<polyline {style} style="fill:none" stroke-width="{width:g}"{dash} points="{drawn}"/>'
    ends = dict.fromkeys((points[0], points[-1]))
    dots = [f'<circle {style} cx="{px:g}" cy="{py:g}" r="3.4"/>' for px, py in ends]
    return [line, *dots]


def _without_collinear(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of a line: what is left out lies within 0.05 pixels of it (Douglas-Peucker)."""
    kept = {0, len(points) - 1}
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        (ax, ay), (bx, by) = points[first], points[last]
        farthest, distance = first, 0.05
        for index in range(first + 1, last):
            px, py = points[index]
            away = abs(py - (ay + (by - ay) * (px - ax) / (bx - ax or 1.0)))
            if away > distance:
                farthest, distance = index, away
        if farthest != first:
            kept.add(farthest)
            spans += [(first, farthest), (farthest, last)]
    return [points[index] for index in sorted(kept)]


def _legend_entry(place: int, label: str, left: int, base: int, width: int) -> list[str]:
    style = f'class="lwmm-line{place % len(COLOURS)}"'
    room = (width - left - 60) // 7
    shown = label if len(label) <= room else f"{label[: room - 1]}…"
    dash = ("", ' stroke-dasharray="7 4"', ' stroke-dasharray="2 3"')[place // len(COLOURS) % 3]
    return [
        f'<line {style} x1="{left}" x2="{left + 22}" y1="{base - 4}" y2="{base - 4}" '
        f'stroke-width="2.4"{dash}/>',
        _words(left + 30, base, shown, "lwmm-text"),
    ]


def _words(
    x: float,
    y: float,
    text: str,
    style: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
) -> str:
    align = "" if anchor == "start" else f' text-anchor="{anchor}"'
    bold = "" if weight == 400 else f' font-weight="{weight}"'
    return (
        f'<text class="{style}" x="{round(x, 2):g}" y="{round(y, 2):g}" font-size="{size}"'
        f"{align}{bold}>{escape(text)}</text>"
    )
