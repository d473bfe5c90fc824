"""The systems by name: what each lists, where it starts, how it saves, at sizes for tests.

`SYSTEMS` are the paper's, `LIBRARIES` the formats of the same backbones elsewhere.

The thin sizes have the depths of the real models, and so their keys, at a few channels. The tiny
ones are shallow, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..dialects import (
    Entry,
    glpn,
    segformer_nvlabs,
    segformer_smp,
    segformer_transformers_new,
    segformer_transformers_old,
)
from ..size import SegformerSize
from . import files
from .files import Layout, Nested, save
from .mit import (
    daformer,
    edaps,
    edaps_bottom_up,
    hrda,
    pipa_daformer,
    pipa_hrda,
    smp_fpn,
    smp_unet,
    smp_upernet,
)
from .resnets import (
    ResNetSize,
    conmix_resnet,
    deeplab_multi,
    deeplab_single,
    fada,
    glc,
    mic_detection,
    smp_unet_resnet,
    torchvision_deeplabv3,
    torchvision_resnet,
    transformers_resnet,
)
from .values import CAFFE, DEIT, MIT, MSRA, R50_VIT, TORCHVISION, Trained, train
from .vits import VitSize, conmix_deit, conmix_r50_vit

THIN_B5 = SegformerSize((3, 6, 40, 3), (4, 8, 12, 16), decoder_width=8)
THIN_R101 = ResNetSize((3, 4, 23, 3), width=4, head_width=8)
THIN_R50 = ResNetSize((3, 4, 6, 3), width=4, num_classes=20, head_width=8)
THIN_VIT = VitSize(
    width=16,
    patches=9,
    patch=4,
    deit_classes=20,
    bottleneck=8,
    root_width=4,
    decoder_widths=(16, 8, 8, 4),
)

Size = Any  # SegformerSize, ResNetSize or VitSize


@dataclass(frozen=True)
class System:
    """One system of the paper.

    Attributes:
        name: as the paper spells it.
        entries: the student's tensors at a size, in file order.
        thin: the size with the real depths.
        start: seed of what it was pre-trained from.
        layout: how its training code saves it.
        untrained: beginnings of the keys that keep their initial values.
    """

    name: str
    entries: Callable[[Any], list[Entry]]
    thin: Size
    start: int
    layout: Layout
    untrained: tuple[str, ...] = ()

    @property
    def tiny(self) -> Size:
        """One or two blocks a stage."""
        if isinstance(self.thin, VitSize):
            return replace(self.thin, depth=2, units=(1, 2, 1))
        return replace(self.thin, depths=(2, 1, 1, 2))

    def run(self, seed: int, size: Size | None = None) -> Trained:
        """One training run from the system's start."""
        size = self.thin if size is None else size
        return train(self.entries(size), self.start, seed, self.untrained)

    def save(self, folder: Path, name: str, run: Trained, **how: Any) -> Path:
        """The run as this system's training code writes it; see `files.save`."""
        return save(folder, name, self.layout, run, **how)

    def nest(self, values: Any) -> Nested:
        """Any values per key, where the file of this system has them."""
        return self.layout.nest(values)


_BRANCHES = tuple(f"layer{i}.conv2d_list.{n}." for i in (5, 6) for n in (2, 3))

SYSTEMS = {
    system.name: system
    for system in (
        System("DAFormer", daformer, THIN_B5, MIT, files.TRAINING_RUN),
        System("HRDA", hrda, THIN_B5, MIT, files.TRAINING_RUN),
        System("MIC", hrda, THIN_B5, MIT, files.TRAINING_RUN),
        System("MIC, own teacher", hrda, THIN_B5, MIT, files.EXTRA_TEACHER_RUN),
        System("PiPa(DAFormer)", pipa_daformer, THIN_B5, MIT, files.PIPA_RUN),
        System("PiPa(HRDA)", pipa_hrda, THIN_B5, MIT, files.PIPA_RUN),
        System("EDAPS", edaps, THIN_B5, MIT, files.TRAINING_RUN),
        System("EDAPS bottom-up", edaps_bottom_up, THIN_B5, MIT, files.TRAINING_RUN),
        System("SegFormer", segformer_nvlabs, THIN_B5, MIT, files.MMCV),
        System("AdvEnt", deeplab_multi, THIN_R101, CAFFE, files.PLAIN),
        System("MinEnt", deeplab_multi, THIN_R101, CAFFE, files.PLAIN),
        System("AdvEnt single", deeplab_single, THIN_R101, CAFFE, files.PLAIN),
        System(
            "AdvEnt, old torch",
            lambda size: deeplab_multi(size, counters=False),
            THIN_R101,
            CAFFE,
            files.PLAIN,
        ),
        System("AdaptSegNet", deeplab_multi, THIN_R101, CAFFE, files.PLAIN, _BRANCHES),
        System(
            "AdaptSegNet, old torch",
            lambda size: deeplab_multi(size, counters=False),
            THIN_R101,
            CAFFE,
            files.PLAIN,
            _BRANCHES,
        ),
        System("MaxSquare", deeplab_multi, THIN_R101, CAFFE, files.MAXSQUARE),
        System("FADA", fada, THIN_R101, TORCHVISION, files.FADA),
        System(
            "FADA FrozenBN",
            lambda size: fada(size, frozen=True),
            THIN_R101,
            TORCHVISION,
            files.DISTRIBUTED_FADA,
        ),
        System("GLC", glc, THIN_R50, TORCHVISION, files.GLC),
        System("CoNMix R50-ViT", conmix_r50_vit, THIN_VIT, R50_VIT, files.CONMIX),
        System(
            "CoNMix ResNet-50",
            conmix_resnet,
            replace(THIN_R50, num_classes=65),
            TORCHVISION,
            files.CONMIX,
        ),
        System("CoNMix DeiT", conmix_deit, THIN_VIT, DEIT, files.PARALLEL_CONMIX),
        System(
            "MIC-det",
            mic_detection,
            replace(THIN_R50, num_classes=9),
            MSRA,
            files.DETECTION,
        ),
        System(
            "MIC-det teacher",
            mic_detection,
            replace(THIN_R50, num_classes=9),
            MSRA,
            files.DETECTION_TEACHER,
        ),
    )
}


def _library(name: str, entries: Callable[[Any], list[Entry]], thin: Size, start: int) -> System:
    return System(name, entries, thin, start, files.SAFETENSORS)


NARROW = (16, 12, 8, 8, 4)  # of a Unet's decoder

LIBRARIES = {
    system.name: system
    for system in (
        _library("transformers SegFormer", segformer_transformers_old, THIN_B5, MIT),
        _library("transformers SegFormer, new", segformer_transformers_new, THIN_B5, MIT),
        _library("transformers GLPN", glpn, THIN_B5, MIT),
        _library("smp Segformer MiT", segformer_smp, THIN_B5, MIT),
        _library("smp Unet MiT", lambda size: smp_unet(size, NARROW), THIN_B5, MIT),
        _library("smp FPN MiT", lambda size: smp_fpn(size, 8, 4), THIN_B5, MIT),
        _library("smp UPerNet MiT", lambda size: smp_upernet(size, 8), THIN_B5, MIT),
        _library("torchvision ResNet-101", torchvision_resnet, THIN_R101, TORCHVISION),
        _library("torchvision ResNet-50", torchvision_resnet, THIN_R50, TORCHVISION),
        _library("torchvision DeepLabV3", torchvision_deeplabv3, THIN_R101, TORCHVISION),
        _library("smp Unet", lambda size: smp_unet_resnet(size, NARROW), THIN_R101, TORCHVISION),
        _library("transformers ResNet-101", transformers_resnet, THIN_R101, TORCHVISION),
        _library("transformers ResNet-50", transformers_resnet, THIN_R50, TORCHVISION),
    )
}
