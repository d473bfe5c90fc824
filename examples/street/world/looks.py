"""How streets look: an appearance is a value, a domain is a way of drawing appearances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
RGB = tuple[float, float, float]
Rng = np.random.Generator


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
    rain: float = 0.0  # share of the image's columns with a streak of rain


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


def _graded(
    base: Appearance, saturation: float, gain: float, tint: RGB, contrast: float = 1.0
) -> dict[str, Floats]:
    """A palette as a camera or a game engine would grade it."""
    found = {}
    for name, colours in base.palette.items():
        grey = colours.mean(-1, keepdims=True)
        graded = (grey + saturation * (colours - grey) - 128) * contrast + 128
        found[name] = np.clip(graded * gain + np.array(tint), 0, 255)
    return found


# Two renderings that nobody would take for a camera's, and a camera's town in poor weather. What
# makes a gap: the palette's grading, texture, noise, blur, haze, wet roads and rain.
ARCADE = replace(
    DAY,
    palette=_graded(DAY, 1.3, 1.0, (10.0, 4.0, -8.0), 1.1),
    jitter=20.0,
    shadow=0.5,
    haze=0.001,
    grain=1.5,
    texture=0.6,
)
STUDIO = replace(
    DAY,
    palette=_graded(DAY, 0.9, 0.85, (28.0, 30.0, 34.0), 0.9),
    jitter=14.0,
    shadow=0.1,
    haze=0.004,
    haze_colour=np.array((220, 224, 236), float),
    grain=0.5,
    texture=0.1,
)
TOWN_DRY = replace(
    DAY,
    palette=_graded(DAY, 0.85, 0.85, (0.0, 4.0, 8.0), 0.9),
    jitter=14.0,
    lit=0.1,
    shadow=0.15,
    haze=0.004,
    haze_colour=np.array((180, 190, 204), float),
    wet=0.1,
    grain=5.0,
    blur=0.3,
    texture=1.4,
)
TOWN_RAIN = replace(
    TOWN_DRY,
    palette=_graded(DAY, 0.7, 0.75, (0.0, 4.0, 10.0), 0.85),
    lit=0.25,
    glow=0.4,
    shadow=0.0,
    haze=0.009,
    haze_colour=np.array((156, 166, 180), float),
    wet=0.35,
    grain=7.0,
    blur=0.6,
    rain=0.12,
)


def _town(rng: Rng) -> Appearance:
    return between(TOWN_DRY, TOWN_RAIN, rng.uniform(0, 1))


DOMAINS: dict[str, Domain] = {
    "plain": _plain,
    "day": towards_night(0.0, 0.1),
    "night": towards_night(0.9, 1.0),
    "dusk": towards_night(0.25, 0.55),  # between the two and touching neither
    "arcade": lambda rng: ARCADE,
    "studio": lambda rng: STUDIO,
    "town": _town,
}
