"""Streets as an ordinary `datasets` table: image, label map, panoptic map and its segments.

>>> table = street_dataset("town", "test", 2, seed=0)
>>> table.column_names
['image', 'semantic', 'panoptic', 'segments_info']
>>> table[0]["image"].size
(192, 96)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from numpy.typing import NDArray
from PIL import Image as Pictures

from world.canvas import Size
from world.labels import COUNTED, FINE, THINGS, Image8
from world.looks import DOMAINS
from world.scenes import Scene, scene, seeds_of

SIZE: Size = (96, 192)
SPLITS = ("train", "validation", "test")
LABEL_SPACE = "cityscapes-19"  # the truth is in its ids, of which the world has ten
TRAIN_IDS = {
    "road": 0,
    "sidewalk": 1,
    "building": 2,
    "pole": 5,
    "traffic sign": 7,
    "vegetation": 8,
    "terrain": 9,
    "sky": 10,
    "person": 11,
    "car": 13,
}
# An object of fewer visible pixels belongs to its class's crowd, which is neither found nor missed.
LEAST_PIXELS = 12
FEATURES = Features(
    {
        "image": Image(),
        "semantic": Image(),
        "panoptic": Image(),
        "segments_info": List(
            {
                "id": Value("int32"),
                "category_id": Value("int32"),
                "area": Value("int32"),
                "bbox": List(Value("int32"), length=4),  # left, top, width, height
                "isthing": Value("bool"),
                "iscrowd": Value("int32"),
            }
        ),
    }
)


def draw(domain: str, split: str, count: int, seed: int) -> list[Scene]:
    """Scenes of a domain; no two of (domain, split, seed) share one.

    Raises:
        ValueError: no such domain or split.
    """
    if domain not in DOMAINS or split not in SPLITS:
        raise ValueError(
            f"no domain {domain!r} or split {split!r}: choose {', '.join(DOMAINS)}, and "
            f"{', '.join(SPLITS)}."
        )
    spread = seeds_of(count, list(DOMAINS).index(domain), SPLITS.index(split), seed)
    return [scene(DOMAINS[domain], one, SIZE) for one in spread]


def segments_of(drawn: Scene) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """The panoptic truth: ids (height, width) from 1 on, and what each segment is."""
    classes = FINE.lookup(THINGS)[drawn.things]
    ids = np.zeros(classes.shape, np.int32)
    segments: list[dict[str, Any]] = []

    def add(mask: NDArray[np.bool_], name: str, crowd: bool = False) -> None:
        ids[mask] = number = len(segments) + 1
        rows, columns = np.nonzero(mask)
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
        segments.append(
            {
                "id": number,
                "category_id": TRAIN_IDS[name],
                "area": len(rows),
                "bbox": box,
                "isthing": name in COUNTED,
                "iscrowd": int(crowd),
            }
        )

    for index, name in enumerate(FINE.classes):
        inside = classes == index
        if name not in COUNTED:
            if inside.any():
                add(inside, name)
            continue
        numbers, areas = np.unique(drawn.objects[inside], return_counts=True)
        for number in numbers[areas >= LEAST_PIXELS].tolist():
            add(inside & (drawn.objects == number), name)
        crowd = inside & np.isin(drawn.objects, numbers[areas < LEAST_PIXELS])
        if crowd.any():
            add(crowd, name, crowd=True)
    return ids, segments


def train_ids(things: Image8) -> Image8:
    """`THINGS` in the ids of `LABEL_SPACE`."""
    table = np.array([TRAIN_IDS[name] for name in FINE.classes], np.uint8)
    return table[FINE.lookup(THINGS)[things]]


def street_dataset(domain: str, split: str, count: int, seed: int = 0) -> Dataset:
    """Streets with truth, drawn anew from the seed.

    Labels are Cityscapes' train ids, so a reader is told `label_space="cityscapes-19"`; a model
    that names fewer classes is compared by name (`map_labels=True`). A panoptic id is
    R + 256 G + 65536 B, as COCO has it.

    Args:
        domain: one of `DOMAINS`; `arcade` and `studio` are the sources, `town` the target.
        split: `train`, `validation` or `test`.
        count: how many scenes.
        seed: another one draws other scenes.

    Raises:
        ValueError: no such domain or split.
    """
    rows: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for drawn in draw(domain, split, count, seed):
        ids, segments = segments_of(drawn)
        panoptic = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        rows["image"].append(Pictures.fromarray(drawn.image))
        rows["semantic"].append(Pictures.fromarray(train_ids(drawn.things)))
        rows["panoptic"].append(Pictures.fromarray(panoptic))
        rows["segments_info"].append(segments)
    return Dataset.from_dict(rows, features=FEATURES)
