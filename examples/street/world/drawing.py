"""What stands in a street, drawn onto a canvas from far to near."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from world.canvas import Canvas, ink
from world.looks import RGB, Floats


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
        pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=ink(low + 18))


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
    canvas.new_object()
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
    canvas.new_object()
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


def draw_street(canvas: Canvas) -> None:
    """A whole street with all that is in it."""
    rng = canvas.rng
    width, offset = rng.uniform(6.5, 12.5), rng.uniform(0.3, 0.7)
    street = Street(-width * offset, width * (1 - offset), rng.uniform(1.4, 3.6), rng.uniform(0, 4))
    _draw_sky(canvas)
    _draw_skyline(canvas)
    _draw_ground(canvas, street)
    _draw_rows(canvas, street)
    _draw_street_life(canvas, street)
