"""`make demo`: merge the two models of this example and look at streets neither of them knows.

    .venv/bin/python examples/street/demo.py [--output demo] [--scenes 100]

The anchor was trained by day, the donor by rainy night with other labels. The scenes here are
drawn at dusk, from seeds that no training used. Writes `merged/` with its card and `street.png`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import measure
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scenes import CITY, HEIGHT, WIDTH, Image8

import lwmm_hub as lw

HERE = Path(__file__).parent
SHOWN = 4  # the first scenes of the test set, not chosen ones
COLOURS = {  # those of Cityscapes
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "vegetation": (107, 142, 35),
    "sky": (70, 130, 180),
    "car": (0, 0, 142),
    "person": (220, 20, 60),
    "pole": (220, 220, 0),
}
PALETTE = np.array([COLOURS[name] for name in CITY.classes], np.uint8)
