"""The canvas: colours, labels, objects and depths drawn side by side through a pinhole camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from world.labels import COUNTED, INDEX
from world.looks import RGB, Appearance, Floats, Rng

OVERSAMPLING = 2  # drawn twice as large and reduced, so that thin poles do not flicker
Point = tuple[float, float]
Size = tuple[int, int]  # (height, width)


@dataclass
class Canvas:
    """Colours, labels, objects and depths drawn side by side, through one pinhole camera.

    World axes in metres: x to the right, y up from the ground, z ahead of the camera.
    """

    look: Appearance
    rng: Rng
    size: Size
    focal: float = field(init=False)
    horizon: float = field(init=False)
    vanishing: float = field(init=False)
    eye: float = field(init=False)
    count: int = field(init=False, default=0)  # objects drawn so far
    lamps: list[tuple[float, float, float, RGB]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        (height, width), rng = self.size, self.rng
        height, width = height * OVERSAMPLING, width * OVERSAMPLING
        self.focal = width * rng.uniform(0.65, 0.9)
        self.horizon = height * rng.uniform(0.38, 0.5)
        self.vanishing = width * rng.uniform(0.3, 0.7)
        self.eye = rng.uniform(1.5, 2.4)
        self.image = Image.new("RGB", (width, height))
        self.labels = Image.new("L", (width, height), INDEX["sky"])
        self.objects = Image.new("I", (width, height), 0)
        self.depth = Image.fromarray(self._ground_depth(width, height))
        self.shadows = Image.new("L", (width, height), 0)
        self._pens = tuple(
            ImageDraw.Draw(layer) for layer in (self.image, self.labels, self.depth, self.shadows)
        )
        self._numbers = ImageDraw.Draw(self.objects)

    def _ground_depth(self, width: int, height: int) -> Floats:
        below = np.maximum(np.arange(height) - self.horizon, 0.5)
        rows = np.where(np.arange(height) > self.horizon, self.focal * self.eye / below, 400.0)
        return np.broadcast_to(rows[:, None], (height, width)).astype(np.float32)

    def pick(self, thing: str) -> Floats:
        """One colour of the palette, strayed a little."""
        colours = self.look.palette[thing]
        chosen = colours[self.rng.integers(len(colours))]
        return (
            chosen
            + self.rng.normal(0, self.look.jitter, 3) * 0.5
            + self.rng.normal(0, self.look.jitter)
        )

    def at(self, x: float, y: float, z: float) -> Point:
        """Where a point of the world falls on the (oversampled) image."""
        scale = self.focal / z
        return self.vanishing + x * scale, self.horizon + (self.eye - y) * scale

    def new_object(self) -> None:
        """What is drawn from here on of a counted class is one more object."""
        self.count += 1

    def _number(self, thing: str) -> int:
        return self.count if thing in COUNTED else 0

    def shape(self, points: Sequence[Point], colour: Floats, thing: str, z: float | None) -> None:
        """A filled polygon. `z` is None for the ground, whose depth is known already."""
        image, labels, depth, _ = self._pens
        image.polygon(points, fill=ink(colour))
        labels.polygon(points, fill=INDEX[thing])
        self._numbers.polygon(points, fill=self._number(thing))
        if z is not None:
            depth.polygon(points, fill=z)

    def disc(self, centre: Point, radius: Point, colour: Floats, thing: str, z: float) -> None:
        (x, y), (rx, ry) = centre, radius
        image, labels, depth, _ = self._pens
        box = (x - rx, y - ry, x + rx, y + ry)
        image.ellipse(box, fill=ink(colour))
        labels.ellipse(box, fill=INDEX[thing])
        self._numbers.ellipse(box, fill=self._number(thing))
        depth.ellipse(box, fill=z)

    def paint(self, points: Sequence[Point], colour: Floats) -> None:
        """Colour only: windows, clothes, lights are part of what they are painted on."""
        self._pens[0].polygon(points, fill=ink(colour))

    def shade(self, points: Sequence[Point]) -> None:
        """A cast shadow; it darkens the ground only."""
        self._pens[3].polygon(points, fill=255)

    def upright(self, x: float, z: float, y0: float, y1: float, half: float) -> list[Point]:
        """The corners of an upright rectangle that faces the camera."""
        (left, top), (right, bottom) = self.at(x - half, y1, z), self.at(x + half, y0, z)
        return [(left, top), (right, top), (right, bottom), (left, bottom)]

    def flat(self, x0: float, x1: float, z0: float, z1: float) -> list[Point]:
        """The corners of a rectangle that lies on the ground."""
        return [self.at(x0, 0, z0), self.at(x0, 0, z1), self.at(x1, 0, z1), self.at(x1, 0, z0)]


def ink(colour: Floats) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour, 0, 255).astype(int).tolist()
    return red, green, blue
