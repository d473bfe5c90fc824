"""Street scenes with exact truth, drawn from a seed; no data set is needed.

A scene is *layout* (what stands where, seen by a pinhole camera) and *appearance* (colours, light,
haze, rain, grain). A domain is a way of drawing appearances.

    >>> from world.looks import DOMAINS
    >>> drawn = scene(DOMAINS["dusk"], seed=7)
    >>> drawn.image.shape, drawn.things.shape, drawn.objects.shape, drawn.image.dtype
    ((128, 160, 3), (128, 160), (128, 160), dtype('uint8'))
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from world.canvas import OVERSAMPLING, Canvas, Size
from world.drawing import draw_street
from world.labels import INDEX, THINGS, Image8
from world.looks import Domain, Floats, Rng

WIDTH, HEIGHT = 160, 128  # of the demo's scenes


class Scene(NamedTuple):
    """One street.

    Attributes:
        image: uint8 RGB, (height, width, 3).
        things: uint8, (height, width): the number of each pixel's class in `THINGS`.
        objects: int32, (height, width): the same number above 0 on each person and each car.
    """

    image: Image8
    things: Image8
    objects: NDArray[np.int32]


GROUND = [INDEX[thing] for thing in ("terrain", "sidewalk", "road", "lane marking")]
ROUGHNESS = np.full(len(THINGS), 0.02)
ROUGHNESS[INDEX["vegetation"]], ROUGHNESS[INDEX["terrain"]] = 0.22, 0.14
ROUGHNESS[INDEX["road"]], ROUGHNESS[INDEX["sidewalk"]] = 0.06, 0.05
ROUGHNESS[INDEX["building"]], ROUGHNESS[INDEX["sky"]] = 0.05, 0.01


def _finish(canvas: Canvas) -> Scene:
    """Texture, shadows, wet road, haze, lights, blur and grain over the flat drawing."""
    look, rng, step = canvas.look, canvas.rng, OVERSAMPLING
    pixels = np.asarray(canvas.image.reduce(step), np.float64)
    things = np.asarray(canvas.labels)[::step, ::step]
    depth = np.asarray(canvas.depth)[::step, ::step, None]
    grain = rng.normal(0, 1, (*canvas.size, 1))
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
    noisy = np.asarray(soft, np.float64) + rng.normal(0, look.grain, (*canvas.size, 3))
    if look.rain > 0:
        noisy = _rain(noisy, look.rain, rng)
    objects = np.asarray(canvas.objects)[::step, ::step].astype(np.int32)
    return Scene(np.clip(noisy, 0, 255).astype(np.uint8), things.copy(), objects)


def _rain(pixels: Floats, share: float, rng: Rng) -> Floats:
    """Slanted streaks a little brighter than what is behind them."""
    height, width = pixels.shape[:2]
    rows, streaks = np.arange(height), np.zeros((height, width))
    for column in rng.uniform(-height * 0.2, width, round(width * share)).tolist():
        top, length = rng.uniform(-8, height), rng.uniform(6, 18)
        wet = (rows >= top) & (rows < top + length)
        at = np.round(column + 0.2 * rows).astype(int)
        inside = wet & (at >= 0) & (at < width)
        streaks[rows[inside], at[inside]] = rng.uniform(0.15, 0.4)
    return np.asarray(pixels + streaks[..., None] * (210 - pixels))


def _reflect(pixels: Floats, things: Image8, horizon: float, wet: float) -> Floats:
    """Mirror what stands above the horizon in the road, smeared along the line of sight."""
    last = len(pixels) - 1
    rows = np.clip(2 * horizon - np.arange(last + 1), 0, last).astype(int)
    smeared = sum(pixels[np.clip(rows + shift, 0, last)] for shift in (-6, -3, 0, 3, 6)) / 5
    share = wet * np.isin(things, [INDEX["road"], INDEX["lane marking"]])[..., None]
    return np.asarray(pixels * (1 - share) + smeared * share)


def _lights(canvas: Canvas) -> Floats:
    """The glow around street lamps and rear lights, (height, width, 3)."""
    height, width = canvas.size
    x, y = np.arange(width), np.arange(height)
    glow = np.zeros((height, width, 3))
    for cx, cy, radius, colour in canvas.lamps:
        size = max(radius / OVERSAMPLING * 0.5, 0.8)
        across, down = (
            np.exp(-((axis - centre / OVERSAMPLING) ** 2) / (2 * size**2))
            for axis, centre in ((x, cx), (y, cy))
        )
        glow += 0.7 * down[:, None, None] * across[:, None] * np.array(colour)
    return glow


def scene(domain: Domain, seed: int, size: Size = (HEIGHT, WIDTH)) -> Scene:
    """One street of (height, width) `size`."""
    rng = np.random.default_rng(seed)
    canvas = Canvas(domain(rng), rng, size)
    draw_street(canvas)
    return _finish(canvas)


def seeds_of(count: int, *seed: int) -> list[int]:
    """A seed for each of `count` scenes, spread so that no two calls share one."""
    return np.random.SeedSequence(seed).generate_state(count, np.uint64).tolist()


def scenes(
    domain: Domain, count: int, seed: int, size: Size = (HEIGHT, WIDTH)
) -> tuple[Image8, Image8]:
    """`count` streets: images (count, height, width, 3) and things (count, height, width)."""
    drawn = [scene(domain, one, size) for one in seeds_of(count, seed)]
    return np.stack([one.image for one in drawn]), np.stack([one.things for one in drawn])
