"""A picture that shows what models see: image | truth | each model, and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.evaluation.label_spaces import LabelSpace
from lwmm_hub.evaluation.values import Labels, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH = 320  # of one cell, in pixels
_GAP, _LINE, _MARGIN = 6, 18, 10
_VOID = (40, 40, 40)


def draw_overlay(
    samples: Sequence[Sample], found: Mapping[str, Sequence[Labels]], space: LabelSpace
) -> Image:
    """One row per image: the image, its truth, and each model's labels.

    Args:
        samples: images with label maps.
        found: name of the model -> a label map per image, in the labels of `space`.
        space: gives colours and names.
    """
    from PIL import Image, ImageDraw

    columns = ["image", "truth", *found]
    heights = [round(WIDTH * s.image.shape[0] / s.image.shape[1]) for s in samples]
    drawn = [s.semantic for s in samples if s.semantic is not None]
    drawn += [labels for maps in found.values() for labels in maps]
    used = sorted({int(label) for labels in drawn for label in np.unique(labels)})
    entries = [(space.labels[k], tuple(space.colors[k].tolist())) for k in used if k < len(space)]
    if space.ignored in used:
        entries.append(("not labelled", _VOID))
    width = _MARGIN * 2 + len(columns) * (WIDTH + _GAP) - _GAP
    per_row = max(1, (width - 2 * _MARGIN) // 150)
    legend = -(-len(entries) // per_row) * _LINE
    total = 2 * _MARGIN + _LINE + sum(h + _GAP for h in heights) + legend
    canvas = Image.new("RGB", (width, total), "white")
    pen = ImageDraw.Draw(canvas)
    for c, name in enumerate(columns):
        pen.text((_MARGIN + c * (WIDTH + _GAP), _MARGIN), _fitting(pen, name), fill="black")
    top = _MARGIN + _LINE
    for i, (sample, height) in enumerate(zip(samples, heights, strict=True)):
        cells = [sample.image, _colored(sample.semantic, sample.image, space)]
        cells += [_colored(maps[i], sample.image, space) for maps in found.values()]
        for c, cell in enumerate(cells):
            # labels are enlarged by whole pixels, so that no colour appears that no class has
            how = Image.Resampling.BILINEAR if c == 0 else Image.Resampling.NEAREST
            picture = Image.fromarray(cell).resize((WIDTH, height), how)
            canvas.paste(picture, (_MARGIN + c * (WIDTH + _GAP), top))
        top += height + _GAP
    for i, (name, color) in enumerate(entries):
        left = _MARGIN + (i % per_row) * 150
        y = top + (i // per_row) * _LINE
        pen.rectangle((left, y + 3, left + 12, y + 15), fill=color)
        pen.text((left + 18, y + 3), _fitting(pen, name, 125), fill="black")
    return canvas


def _colored(
    labels: Labels | None, image: NDArray[np.uint8], space: LabelSpace
) -> NDArray[np.uint8]:
    """Labels in their colours, half covering the image."""
    if labels is None:
        return np.full_like(image, 255)
    palette = np.full((space.ignored + 1, 3), _VOID, np.uint8)
    palette[: len(space)] = space.colors
    flat = palette[labels]
    mixed = (2 * flat.astype(np.uint16) + image) // 3
    return mixed.astype(np.uint8)


def _fitting(pen: object, text: str, width: int = WIDTH) -> str:
    """As much of a text as fits, with dots where it was cut."""
    measure = pen.textlength  # type: ignore[attr-defined]
    plain = text.encode("latin-1", "replace").decode("latin-1")  # what PIL's own font can draw
    if measure(plain) <= width:
        return plain
    while plain and measure(plain + "...") > width:
        plain = plain[:-1]
    return plain + "..."
