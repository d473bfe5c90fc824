"""What a street consists of, and the label sets that tell it apart more or less finely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Image8 = NDArray[np.uint8]

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
COUNTED = ("person", "car")  # told apart one by one in panoptic truth; the rest is stuff
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
# The order of Cityscapes' train ids; `CITY` has neither terrain nor signs, as SYNTHIA lacks some.
FINE = LabelSet(
    "fine",
    (
        "road",
        "sidewalk",
        "building",
        "pole",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "car",
    ),
)
COARSE = LabelSet("coarse", CITY.classes)
LABEL_SETS = {labels.name: labels for labels in (CITY, DETAIL, FINE, COARSE)}
