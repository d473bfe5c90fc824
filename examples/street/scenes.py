"""Street scenes with exact label maps, drawn from a seed; no data set is needed.

A scene is *layout* (what stands where, seen by a pinhole camera) and *appearance* (colours, light,
haze, rain, grain). A domain is a way of drawing appearances. `day` and `night` are what the two
example models were trained on; `dusk` lies between the two, and no model ever saw it.

    >>> image, things = scene(DOMAINS["dusk"], seed=7)
    >>> image.shape, things.shape, image.dtype, things.dtype
    ((128, 160, 3), (128, 160), dtype('uint8'), dtype('uint8'))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 160, 128
OVERSAMPLING = 2  # drawn twice as large and reduced, so that thin poles do not flicker

Image8 = NDArray[np.uint8]
Floats = NDArray[np.floating]
RGB = tuple[float, float, float]
Point = tuple[float, float]
Rng = np.random.Generator

# ------------------------------------------------------------------------------------ label sets

THINGS = (
    "sky",
    "building",
    "vegetation",
    "terrain",
    "sidewalk",
    "road",
    "lane marking",
    "traffic sign",
    "pole",
    "person",
    "car",
)
INDEX = {name: i for i, name in enumerate(THINGS)}

# What a label set without the finer name calls the same thing: the only table by which ground
# truth is coarsened and by which one model's labels are read in the other's label set.
COARSER = {"lane marking": "road", "terrain": "vegetation", "traffic sign": "pole"}


class LabelSet(NamedTuple):
    """The classes of one model, in the order of its classifier."""

    name: str
    classes: tuple[str, ...]

    def lookup(self, names: Sequence[str]) -> Image8:
        """For each of `names` its number in this label set, by name or by `COARSER`."""
        numbers = {name: i for i, name in enumerate(self.classes)}
        found = [numbers[name if name in numbers else COARSER[name]] for name in names]
        return np.array(found, np.uint8)


CITY = LabelSet(
    "city", ("road", "sidewalk", "building", "vegetation", "sky", "car", "person", "pole")
)
DETAIL = LabelSet("detail", THINGS)
LABEL_SETS = {labels.name: labels for labels in (CITY, DETAIL)}

# ------------------------------------------------------------------------------------ appearance


@dataclass(frozen=True)
class Appearance:
    """How a scene looks. Every field is a number or an array, so two of them can be blended."""

    palette: dict[str, Floats]  # thing -> colours (k, 3) to choose from, 0 to 255
    jitter: float  # how far an object's colour strays from the palette
    lit: float  # share of windows with a light behind them
    glow: float  # strength of street lamps and rear lights
    shadow: float  # how dark cast shadows are
    haze: float  # extinction per metre
    haze_colour: Floats
    wet: float  # share of the road's colour that is a reflection
    grain: float  # standard deviation of the sensor's noise, 0 to 255
    blur: float  # radius in pixels
    texture: float  # strength of leaves, asphalt and plaster


def between(a: Appearance, b: Appearance, t: float) -> Appearance:
    """The appearance at `t` of the way from `a` to `b`, field by field."""

    def mix(x: object, y: object) -> object:
        if isinstance(x, dict) and isinstance(y, dict):
            return {key: mix(x[key], y[key]) for key in x}
        return (1 - t) * x + t * y  # type: ignore[operator]

    return Appearance(
        **{f.name: mix(getattr(a, f.name), getattr(b, f.name)) for f in fields(Appearance)}
    )


def _palette(**colours: Sequence[RGB]) -> dict[str, Floats]:
    return {name.replace("_", " "): np.array(rows, float) for name, rows in colours.items()}


DAY = Appearance(
    palette=_palette(
        sky=[(96, 158, 228), (196, 222, 244)],  # zenith, horizon
        building=[(186, 112, 84), (216, 194, 156), (168, 168, 176), (204, 160, 120)],
        vegetation=[(58, 116, 44), (84, 138, 54), (44, 96, 50)],
        terrain=[(116, 150, 66), (146, 150, 84)],
        sidewalk=[(186, 176, 164), (168, 164, 160)],
        road=[(100, 100, 106), (120, 116, 114)],
        lane_marking=[(240, 240, 234), (236, 226, 180)],
        traffic_sign=[(206, 36, 32), (34, 74, 184), (244, 204, 40)],
        pole=[(92, 94, 98), (128, 130, 132)],
        person=[(178, 52, 60), (48, 70, 128), (220, 196, 96), (70, 66, 70)],
        car=[(190, 30, 36), (232, 232, 236), (44, 82, 158), (54, 56, 62), (176, 180, 186)],
        window=[(84, 102, 124), (62, 78, 98)],
        skin=[(222, 180, 150), (132, 92, 70)],
    ),
    jitter=13.0,
    lit=0.0,
    glow=0.0,
    shadow=0.42,
    haze=0.002,
    haze_colour=np.array((206, 222, 238), float),
    wet=0.0,
    grain=3.0,
    blur=0.0,
    texture=1.0,
)

NIGHT = Appearance(
    palette=_palette(
        sky=[(16, 18, 44), (72, 54, 76)],
        building=[(62, 46, 50), (74, 66, 62), (46, 50, 70), (66, 52, 50)],
        vegetation=[(18, 40, 34), (28, 48, 38), (16, 34, 34)],
        terrain=[(34, 44, 34), (44, 44, 40)],
        sidewalk=[(84, 72, 70), (74, 68, 72)],
        road=[(38, 38, 50), (46, 44, 52)],
        lane_marking=[(150, 146, 136), (150, 132, 96)],
        traffic_sign=[(150, 26, 30), (26, 48, 134), (176, 140, 36)],
        pole=[(26, 26, 34), (40, 40, 46)],
        person=[(92, 30, 42), (28, 34, 68), (112, 94, 58), (30, 28, 36)],
        car=[(96, 18, 26), (120, 118, 128), (22, 36, 84), (24, 24, 32), (88, 88, 98)],
        window=[(34, 38, 54), (28, 30, 44)],
        skin=[(116, 86, 76), (66, 46, 42)],
    ),
    jitter=8.0,
    lit=0.55,
    glow=1.0,
    shadow=0.0,
    haze=0.009,
    haze_colour=np.array((64, 54, 74), float),
    wet=0.5,
    grain=6.0,
    blur=0.7,
    texture=0.8,
)

Domain = Callable[[Rng], Appearance]


def towards_night(low: float, high: float) -> Domain:
    """Scenes whose light and weather are between `low` and `high` on the way from day to night."""
    return lambda rng: between(DAY, NIGHT, rng.uniform(low, high))


def _plain(rng: Rng) -> Appearance:
    """Flat drawings in random colours: the common ancestor can only learn shapes from them."""
    still = ("lit", "glow", "shadow", "haze", "wet", "texture", "blur")
    palette = {thing: rng.uniform(20, 235, one.shape) for thing, one in DAY.palette.items()}
    return replace(DAY, palette=palette, jitter=20.0, **dict.fromkeys(still, 0.0))


DOMAINS: dict[str, Domain] = {
    "plain": _plain,
    "day": towards_night(0.0, 0.1),
    "night": towards_night(0.9, 1.0),
    "dusk": towards_night(0.25, 0.55),  # between the two and touching neither
}

# ---------------------------------------------------------------------------------------- layout


@dataclass
class Canvas:
    """Colours, labels and depths drawn side by side, through one pinhole camera.

    World axes in metres: x to the right, y up from the ground, z ahead of the camera.
    """

    look: Appearance
    rng: Rng
    focal: float = field(init=False)
    horizon: float = field(init=False)
    vanishing: float = field(init=False)
    eye: float = field(init=False)
    lamps: list[tuple[float, float, float, RGB]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        width, height, rng = WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING, self.rng
        self.focal = width * rng.uniform(0.65, 0.9)
        self.horizon = height * rng.uniform(0.38, 0.5)
        self.vanishing = width * rng.uniform(0.3, 0.7)
        self.eye = rng.uniform(1.5, 2.4)
        self.image = Image.new("RGB", (width, height))
        self.labels = Image.new("L", (width, height), INDEX["sky"])
        self.depth = Image.fromarray(self._ground_depth(width, height))
        self.shadows = Image.new("L", (width, height), 0)
        self._pens = tuple(
            ImageDraw.Draw(layer) for layer in (self.image, self.labels, self.depth, self.shadows)
        )

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

    def shape(self, points: Sequence[Point], colour: Floats, thing: str, z: float | None) -> None:
        """A filled polygon. `z` is None for the ground, whose depth is known already."""
        image, labels, depth, _ = self._pens
        image.polygon(points, fill=_ink(colour))
        labels.polygon(points, fill=INDEX[thing])
        if z is not None:
            depth.polygon(points, fill=z)

    def disc(self, centre: Point, radius: Point, colour: Floats, thing: str, z: float) -> None:
        (x, y), (rx, ry) = centre, radius
        image, labels, depth, _ = self._pens
        box = (x - rx, y - ry, x + rx, y + ry)
        image.ellipse(box, fill=_ink(colour))
        labels.ellipse(box, fill=INDEX[thing])
        depth.ellipse(box, fill=z)

    def paint(self, points: Sequence[Point], colour: Floats) -> None:
        """Colour only: windows, clothes, lights are part of what they are painted on."""
        self._pens[0].polygon(points, fill=_ink(colour))

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


def _ink(colour: Floats) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour, 0, 255).astype(int).tolist()
    return red, green, blue


class Street(NamedTuple):
    """Where the strips of the ground lie, in metres from the camera, seen from above."""

    left: float
    right: float
    pavement: float  # width of each sidewalk
    verge: float  # strip of grass between sidewalk and buildings


NEAR, FAR = 1.0, 160.0


def _draw_sky(canvas: Canvas) -> None:
    zenith, low = canvas.look.palette["sky"] + canvas.rng.normal(0, canvas.look.jitter, 3)
    width, height = canvas.image.size
    ramp = np.clip(np.arange(height) / canvas.horizon, 0, 1)[:, None, None]
    sky = np.broadcast_to(zenith * (1 - ramp) + low * ramp, (height, width, 3))
    canvas.image.paste(Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8)))
    pen = ImageDraw.Draw(canvas.image)
    for _ in range(canvas.rng.integers(0, 5)):
        x, y = canvas.rng.uniform(0, width), canvas.rng.uniform(0, canvas.horizon * 0.8)
        rx, ry = canvas.rng.uniform(15, 60), canvas.rng.uniform(3, 9)
        pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=_ink(low + 18))


def _draw_skyline(canvas: Canvas) -> None:
    for _ in range(canvas.rng.integers(8, 18)):
        x, z = canvas.rng.uniform(-110, 110), canvas.rng.uniform(120, FAR)
        half, top = canvas.rng.uniform(4, 16), canvas.rng.uniform(5, 26)
        if canvas.rng.random() < 0.5:
            corners = canvas.upright(x, z, 0, top, half)
            canvas.shape(corners, canvas.pick("building"), "building", z)
        else:
            scale = canvas.focal / z
            centre, radius = canvas.at(x, 0, z), (half * scale, top * 0.5 * scale)
            canvas.disc(centre, radius, canvas.pick("vegetation"), "vegetation", z)


def _draw_ground(canvas: Canvas, street: Street) -> None:
    left, right, pavement, _ = street
    canvas.shape(canvas.flat(-400, 400, NEAR, 2000), canvas.pick("terrain"), "terrain", None)
    strip = canvas.flat(left - pavement, right + pavement, NEAR, FAR)
    canvas.shape(strip, canvas.pick("sidewalk"), "sidewalk", None)
    canvas.shape(canvas.flat(left, right, NEAR, FAR), canvas.pick("road"), "road", None)
    paint = canvas.pick("lane marking")
    lanes = max(2, round((right - left) / 3.4))
    for lane in range(1, lanes):
        x = left + (right - left) * lane / lanes
        for z in np.arange(NEAR + canvas.rng.uniform(0, 4), 60, 6.0).tolist():
            dash = canvas.flat(x - 0.12, x + 0.12, z, z + 3.2)
            canvas.shape(dash, paint, "lane marking", None)
    if canvas.rng.random() < 0.6:
        for x in (left + 0.3, right - 0.3):
            line = canvas.flat(x - 0.1, x + 0.1, NEAR, 80)
            canvas.shape(line, paint, "lane marking", None)
    if canvas.rng.random() < 0.25:
        _draw_crossing(canvas, street, paint)


def _draw_crossing(canvas: Canvas, street: Street, paint: Floats) -> None:
    z = canvas.rng.uniform(5, 16)
    for x in np.arange(street.left + 0.4, street.right - 0.4, 1.1).tolist():
        canvas.shape(canvas.flat(x, x + 0.55, z, z + 3), paint, "lane marking", None)


def _draw_building(canvas: Canvas, side: int, x: float, z0: float, z1: float) -> None:
    rng, height = canvas.rng, canvas.rng.uniform(5, 19)
    wall = canvas.pick("building")
    corners = [canvas.at(x, y, z) for y, z in ((0, z0), (height, z0), (height, z1), (0, z1))]
    front = [canvas.at(u, y, z0) for u, y in ((x, 0), (x, height), (x + side * 14, height))]
    front.append(canvas.at(x + side * 14, 0, z0))
    canvas.shape(front, wall * 0.88, "building", z0)
    canvas.shape(corners, wall, "building", (z0 + z1) / 2)
    canvas.shade(canvas.flat(x, x - side * height * 0.35, z0, z1))
    if z0 > 45:
        return
    dark = canvas.pick("window")
    for y in np.arange(1.0, height - 1.6, 3.0).tolist():
        for z in np.arange(z0 + 0.8, z1 - 1.2, 2.6).tolist():
            lit = rng.random() < canvas.look.lit
            pane = np.array((250, 206, 122)) * rng.uniform(0.6, 1.0) if lit else dark
            quad = ((y, z), (y + 1.6, z), (y + 1.6, z + 1.3), (y, z + 1.3))
            canvas.paint([canvas.at(x, v, w) for v, w in quad], pane)


def _draw_tree(canvas: Canvas, x: float, z: float) -> None:
    rng, crown = canvas.rng, canvas.rng.uniform(1.1, 2.6)
    foot = rng.uniform(1.4, 2.4)
    trunk = np.array((84, 62, 46)) * (canvas.look.palette["road"].mean() / 110)
    canvas.shape(canvas.upright(x, z, 0, foot + crown, 0.16), trunk, "vegetation", z)
    scale, leaves = canvas.focal / z, canvas.pick("vegetation")
    for _ in range(7):
        dx, dy = rng.uniform(-0.6, 0.6, 2) * crown
        size = crown * rng.uniform(0.45, 0.75) * scale
        tone = leaves * rng.uniform(0.82, 1.15)
        centre = canvas.at(x + dx, foot + crown + dy, z)
        canvas.disc(centre, (size, size * 0.9), tone, "vegetation", z)


def _draw_rows(canvas: Canvas, street: Street) -> None:
    """Buildings and gardens along both sides, from far to near."""
    rows: list[tuple[float, Callable[[], None]]] = []
    for side, kerb in ((-1, street.left), (1, street.right)):
        x, z = kerb + side * (street.pavement + street.verge), canvas.rng.uniform(3, 7)
        built = canvas.rng.uniform(0.4, 0.95)
        while z < 85:
            end = z + canvas.rng.uniform(6, 15)
            if canvas.rng.random() < built:
                rows.append((z, partial(_draw_building, canvas, side, x, z, end)))
            else:
                for _ in range(canvas.rng.integers(1, 5)):
                    at = (x + side * canvas.rng.uniform(0.5, 6), canvas.rng.uniform(z, end))
                    rows.append((at[1], partial(_draw_tree, canvas, *at)))
            z = end + canvas.rng.choice([0.0, canvas.rng.uniform(1, 4)])
    for _, draw in sorted(rows, key=lambda row: -row[0]):
        draw()


def _draw_pole(canvas: Canvas, x: float, z: float) -> None:
    rng, height = canvas.rng, canvas.rng.uniform(3.2, 6.5)
    metal = canvas.pick("pole")
    canvas.shape(canvas.upright(x, z, 0, height, 0.09), metal, "pole", z)
    if rng.random() < 0.45:
        reach = -np.sign(x) * rng.uniform(0.8, 1.8)
        arm = canvas.upright(x + reach / 2, z, height - 0.12, height, abs(reach) / 2)
        canvas.shape(arm, metal, "pole", z)
        canvas.lamps.append((*canvas.at(x + reach, height, z), 1.6 * canvas.focal / z, WARM))
    else:
        _draw_sign(canvas, x, z, rng.uniform(2.2, height - 0.5))


def _draw_sign(canvas: Canvas, x: float, z: float, y: float) -> None:
    half, colour = canvas.rng.uniform(0.38, 0.62), canvas.pick("traffic sign")
    scale, kind = canvas.focal / z, canvas.rng.integers(3)
    (cx, cy), pale = canvas.at(x, y, z), canvas.pick("lane marking")
    if kind == 0:
        canvas.disc((cx, cy), (half * scale, half * scale), colour, "traffic sign", z)
    elif kind == 1:
        canvas.shape(canvas.upright(x, z, y - half, y + half, half), colour, "traffic sign", z)
    else:
        tips = [canvas.at(x + u * half, y + v * half, z) for u, v in ((0, 1), (1, -1), (-1, -1))]
        canvas.shape(tips, colour, "traffic sign", z)
    canvas.paint(canvas.upright(x, z, y - half * 0.25, y + half * 0.15, half * 0.4), pale)


def _draw_person(canvas: Canvas, x: float, z: float) -> None:
    tall, half = canvas.rng.uniform(1.45, 1.9), canvas.rng.uniform(0.19, 0.28)
    coat, trousers, skin = (canvas.pick(thing) for thing in ("person", "person", "skin"))
    canvas.shade(canvas.flat(x - half, x + 1.6, z, z + 0.5))
    for step in (-0.55, 0.55):
        leg = canvas.upright(x + half * step, z, 0, tall * 0.5, half * 0.42)
        canvas.shape(leg, trousers * 0.8, "person", z)
    canvas.shape(canvas.upright(x, z, tall * 0.46, tall * 0.85, half), coat, "person", z)
    size = 0.13 * canvas.focal / z
    canvas.disc(canvas.at(x, tall * 0.92, z), (size, size * 1.15), skin, "person", z)


def _draw_car(canvas: Canvas, x: float, z: float) -> None:
    rng, half, length = canvas.rng, canvas.rng.uniform(0.85, 1.0), canvas.rng.uniform(3.4, 4.6)
    waist, roof = rng.uniform(0.8, 1.0), rng.uniform(1.4, 1.85)
    body, glass, far = canvas.pick("car"), canvas.pick("window"), z + length
    canvas.shade(canvas.flat(x - half - 0.2, x + half + 0.9, z - 0.3, far))
    side = x - half if x > 0 else x + half  # the flank the camera can see
    flank = ((0.25, z), (waist, z), (waist, far), (0.25, far))
    canvas.shape([canvas.at(side, y, w) for y, w in flank], body * 0.8, "car", z + length / 2)
    cabin = ((waist, z + 0.3), (roof, z + 0.8), (roof, far - 1.3), (waist, far - 0.6))
    canvas.shape([canvas.at(side * 0.98 + x * 0.02, y, w) for y, w in cabin], glass, "car", far)
    tyre = np.array((24, 24, 26.0))
    for step in (-0.75, 0.75):
        canvas.shape(canvas.upright(x + half * step, z, 0, 0.4, 0.13), tyre, "car", z)
    canvas.shape(canvas.upright(x, z, 0.22, waist, half), body, "car", z)
    canvas.shape(canvas.upright(x, z + 0.4, waist, roof, half * 0.84), body * 1.05, "car", z)
    canvas.paint(canvas.upright(x, z + 0.4, waist + 0.05, roof - 0.12, half * 0.7), glass)
    for step in (-0.78, 0.78):
        light = canvas.upright(x + half * step, z, waist - 0.28, waist - 0.1, 0.15)
        canvas.paint(light, np.array((200, 30, 30.0)) * (0.7 + 0.5 * canvas.look.glow))
        lamp = canvas.at(x + half * step, waist - 0.2, z)
        canvas.lamps.append((*lamp, 0.45 * canvas.focal / z, RED))


WARM: RGB = (255, 196, 120)
RED: RGB = (230, 40, 34)


def _draw_street_life(canvas: Canvas, street: Street) -> None:
    """Poles, trees of the verge, people and cars, from far to near."""
    rng, life = canvas.rng, []
    left, right, pavement, verge = street
    for side, kerb in ((-1, left), (1, right)):
        for z in np.arange(rng.uniform(5, 10), 60, rng.uniform(7, 13)).tolist():
            life.append((z, _draw_pole, kerb + side * 0.4))
        for z in rng.uniform(6, 50, rng.integers(0, 4)).tolist():
            life.append((z, _draw_tree, kerb + side * (pavement + verge * 0.5)))
        for z in rng.uniform(4.5, 26, rng.integers(0, 5)).tolist():
            life.append((z, _draw_person, kerb + side * rng.uniform(0.6, pavement)))
        if rng.random() < 0.6:
            for z in np.arange(rng.uniform(6, 14), 50, rng.uniform(6, 12)).tolist():
                life.append((z, _draw_car, kerb - side * 1.1))
    for z in rng.uniform(7, 45, rng.integers(0, 4)).tolist():
        life.append((z, _draw_car, left + (right - left) * rng.choice([0.3, 0.5, 0.7])))
    for z, draw, x in sorted(life, key=lambda one: -one[0]):
        draw(canvas, x, z)


# ------------------------------------------------------------------------------------- finishing

GROUND = [INDEX[thing] for thing in ("terrain", "sidewalk", "road", "lane marking")]
ROUGHNESS = np.full(len(THINGS), 0.02)
ROUGHNESS[INDEX["vegetation"]], ROUGHNESS[INDEX["terrain"]] = 0.22, 0.14
ROUGHNESS[INDEX["road"]], ROUGHNESS[INDEX["sidewalk"]] = 0.06, 0.05
ROUGHNESS[INDEX["building"]], ROUGHNESS[INDEX["sky"]] = 0.05, 0.01


def _finish(canvas: Canvas) -> tuple[Image8, Image8]:
    """Texture, shadows, wet road, haze, lights, blur and grain over the flat drawing."""
    look, rng, step = canvas.look, canvas.rng, OVERSAMPLING
    pixels = np.asarray(canvas.image.reduce(step), np.float64)
    things = np.asarray(canvas.labels)[::step, ::step]
    depth = np.asarray(canvas.depth)[::step, ::step, None]
    grain = rng.normal(0, 1, (HEIGHT, WIDTH, 1))
    pixels = pixels * (1 + look.texture * ROUGHNESS[things][..., None] * grain)
    cast = (
        np.asarray(canvas.shadows)[::step, ::step, None] / 255 * np.isin(things, GROUND)[..., None]
    )
    pixels = pixels * (1 - look.shadow * cast)
    pixels = _reflect(pixels, things, canvas.horizon / step, look.wet)
    clear = np.exp(-look.haze * depth)
    pixels = pixels * clear + look.haze_colour * (1 - clear)
    pixels = pixels + look.glow * _lights(canvas)
    pixels = pixels * rng.uniform(0.86, 1.14) + rng.normal(0, 3, 3)
    soft = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if look.blur > 0:
        soft = soft.filter(ImageFilter.GaussianBlur(float(look.blur)))
    noisy = np.asarray(soft, np.float64) + rng.normal(0, look.grain, (HEIGHT, WIDTH, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8), things.copy()


def _reflect(pixels: Floats, things: Image8, horizon: float, wet: float) -> Floats:
    """Mirror what stands above the horizon in the road, smeared along the line of sight."""
    rows = np.clip(2 * horizon - np.arange(HEIGHT), 0, HEIGHT - 1).astype(int)
    smeared = sum(pixels[np.clip(rows + shift, 0, HEIGHT - 1)] for shift in (-6, -3, 0, 3, 6)) / 5
    share = wet * np.isin(things, [INDEX["road"], INDEX["lane marking"]])[..., None]
    return np.asarray(pixels * (1 - share) + smeared * share)


def _lights(canvas: Canvas) -> Floats:
    """The glow around street lamps and rear lights, (HEIGHT, WIDTH, 3)."""
    x, y = np.arange(WIDTH), np.arange(HEIGHT)
    glow = np.zeros((HEIGHT, WIDTH, 3))
    for cx, cy, radius, colour in canvas.lamps:
        size = max(radius / OVERSAMPLING * 0.5, 0.8)
        across, down = (
            np.exp(-((axis - centre / OVERSAMPLING) ** 2) / (2 * size**2))
            for axis, centre in ((x, cx), (y, cy))
        )
        glow += 0.7 * down[:, None, None] * across[:, None] * np.array(colour)
    return glow


def scene(domain: Domain, seed: int) -> tuple[Image8, Image8]:
    """One street: the image (HEIGHT, WIDTH, 3) and for each pixel its number in `THINGS`."""
    rng = np.random.default_rng(seed)
    canvas = Canvas(domain(rng), rng)
    width, offset = rng.uniform(6.5, 12.5), rng.uniform(0.3, 0.7)
    street = Street(-width * offset, width * (1 - offset), rng.uniform(1.4, 3.6), rng.uniform(0, 4))
    _draw_sky(canvas)
    _draw_skyline(canvas)
    _draw_ground(canvas, street)
    _draw_rows(canvas, street)
    _draw_street_life(canvas, street)
    return _finish(canvas)


def scenes(domain: Domain, count: int, seed: int) -> tuple[Image8, Image8]:
    """`count` streets: images (count, HEIGHT, WIDTH, 3) and things (count, HEIGHT, WIDTH).

    Every scene has a seed of its own, spread from `seed`, so no two calls share one.
    """
    seeds = np.random.SeedSequence(seed).generate_state(count, np.uint64).tolist()
    images, things = zip(*(scene(domain, one) for one in seeds), strict=True)
    return np.stack(images), np.stack(things)
