"""Systems on ResNet: AdvEnt, MinEnt, AdaptSegNet, MaxSquare, FADA, GLC, MIC detection, libraries.

Every entry starts from what torchvision calls it (`layer1.0.conv2.weight`), or, in heads, from its
own key; whether two files share a start is up to the seed of their values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..dialects import Entry
from .listing import Entries, batch_norm, conv, prefixed, tensor
from .mit import UNET, unet_decoder


@dataclass(frozen=True)
class ResNetSize:
    """Bottlenecks per stage, width of the first one, classes, width of the other layers."""

    depths: tuple[int, int, int, int]
    width: int = 64
    num_classes: int = 19
    head_width: int = 256

    def with_classes(self, num_classes: int) -> ResNetSize:
        return replace(self, num_classes=num_classes)

    @property
    def stages(self) -> list[tuple[int, int, int]]:
        """(number from 1, bottlenecks, channels of the output) of each stage."""
        return [(i, depth, 2 ** (i + 1) * self.width) for i, depth in enumerate(self.depths, 1)]


R101 = ResNetSize((3, 4, 23, 3))
R50 = ResNetSize((3, 4, 6, 3))
BRANCHES = 4  # dilated convolutions of a DeepLab classifier


def resnet(size: ResNetSize, counters: bool = True, downsample_first: bool = False) -> list[Entry]:
    """A ResNet without classifier, in torchvision's order or in that of maskrcnn-benchmark."""

    def stem() -> Entries:
        yield from conv("conv1", size.width, 3, 7, 7, bias=False)
        yield from batch_norm("bn1", size.width, counters)

    def bottleneck(key: str, columns: int, rows: int) -> Entries:
        inner = rows // 4
        for n, (out, *shape) in enumerate(
            ((inner, columns, 1, 1), (inner, inner, 3, 3), (rows, inner, 1, 1)), start=1
        ):
            yield from conv(f"{key}.conv{n}", out, *shape, bias=False)
            yield from batch_norm(f"{key}.bn{n}", out, counters)

    def downsample(key: str, columns: int, rows: int) -> Entries:
        yield from conv(f"{key}.downsample.0", rows, columns, 1, 1, bias=False)
        yield from batch_norm(f"{key}.downsample.1", rows, counters)

    def blocks() -> Entries:
        columns = size.width
        for i, depth, rows in size.stages:
            for b in range(depth):
                key = f"layer{i}.{b}"
                main = bottleneck(key, columns, rows)
                side = downsample(key, columns, rows) if b == 0 else iter(())
                yield from (*side, *main) if downsample_first else (*main, *side)
                columns = rows

    return [*stem(), *blocks()]


# semantic segmentation ---------------------------------------------------------------------------


def _deeplab_classifier(key: str, columns: int, classes: int, of: str) -> Entries:
    for n in range(BRANCHES):
        yield from conv(f"{key}conv2d_list.{n}", classes, columns, 3, 3, of=f"{of}.conv2d_list.{n}")


def deeplab_multi(size: ResNetSize, counters: bool = True) -> list[Entry]:
    """AdvEnt and MinEnt, AdaptSegNet, MaxSquare: classifiers on the third and the fourth stage."""
    *_, third, fourth = (rows for _, _, rows in size.stages)
    return [
        *resnet(size, counters),
        *_deeplab_classifier("layer5.", third, size.num_classes, "layer5"),
        *_deeplab_classifier("layer6.", fourth, size.num_classes, "layer6"),
    ]


def deeplab_single(size: ResNetSize, counters: bool = True) -> list[Entry]:
    """AdvEnt's single-level variant, whose classifier is still called the sixth layer."""
    fourth = size.stages[-1][2]
    classifier = _deeplab_classifier("layer6.", fourth, size.num_classes, "layer6")
    return [*resnet(size, counters), *classifier]


def fada(size: ResNetSize, frozen: bool = False) -> list[Entry]:
    """FADA: two networks in one file. Frozen batch norm in its first stages, batch norm later."""
    fourth = size.stages[-1][2]
    return [
        *prefixed("feature_extractor/backbone.", resnet(size, counters=not frozen)),
        *_deeplab_classifier("classifier/", fourth, size.num_classes, "layer6"),
    ]


def fada_discriminator(classes: int, columns: int, width: int = 512) -> list[Entry]:
    """What FADA's adversarial stage trains against, saved beside the two networks."""
    return [
        *conv("D.0", width, columns, 3, 3),
        *conv("D.2", width // 2, width, 3, 3),
        *conv("cls1", classes, width // 2, 3, 3),
        *conv("cls2", classes, width // 2, 3, 3),
    ]


# classification ----------------------------------------------------------------------------------


def bottleneck_layer(key: str, width: int, columns: int) -> Iterator[Entry]:
    """A linear layer that its module names after its batch norm; GLC and CoNMix have one each."""
    yield from batch_norm(f"{key}bn", width, of="embedding.bn")
    yield from conv(f"{key}bottleneck", width, columns, of="embedding.bottleneck")


def weight_normed(key: str, rows: int, columns: int) -> Iterator[Entry]:
    """A linear layer under torch's weight norm: bias, length and direction of each row."""
    for leaf, shape in (("bias", (rows,)), ("weight_g", (rows, 1)), ("weight_v", (rows, columns))):
        yield tensor(f"{key}fc.{leaf}", *shape, of=f"classifier.{leaf}")


def glc(size: ResNetSize) -> list[Entry]:
    """GLC's source model on ResNet-50."""
    return [
        *prefixed("backbone_layer.", resnet(size)),
        *bottleneck_layer("feat_embed_layer.", size.head_width, size.stages[-1][2]),
        *weight_normed("class_layer.", size.num_classes, size.head_width),
    ]


def conmix_resnet(size: ResNetSize) -> list[Entry]:
    """CoNMix with `--net resnet50`: its three files around torchvision's backbone."""
    return [
        *prefixed("F/", resnet(size)),
        *bottleneck_layer("B/", size.head_width, size.stages[-1][2]),
        *weight_normed("C/", size.num_classes, size.head_width),
    ]


# detection ---------------------------------------------------------------------------------------

LEVELS = 5  # of the pyramid, the pooled one included


def mic_detection(size: ResNetSize) -> list[Entry]:
    """MIC on Faster R-CNN with a pyramid, as maskrcnn-benchmark registers it."""
    narrow, wide, anchors = size.head_width, 4 * size.head_width, 3

    def body() -> Entries:
        for entry in resnet(size, counters=False, downsample_first=True):
            stem = "" if entry.key.startswith("layer") else "stem."
            yield entry._replace(key=f"backbone.body.{stem}{entry.key}")

    def pyramid() -> Entries:
        for i, _, rows in size.stages:
            yield from conv(f"backbone.fpn.fpn_inner{i}", narrow, rows, 1, 1)
            yield from conv(f"backbone.fpn.fpn_layer{i}", narrow, narrow, 3, 3)

    def proposals() -> Entries:
        for level in range(LEVELS):
            yield tensor(f"rpn.anchor_generator.cell_anchors.{level}", anchors, 4)
        yield from conv("rpn.head.conv", narrow, narrow, 3, 3)
        yield from conv("rpn.head.cls_logits", anchors, narrow, 1, 1)
        yield from conv("rpn.head.bbox_pred", 4 * anchors, narrow, 1, 1)

    def boxes() -> Entries:
        key = "roi_heads.box"
        yield from conv(f"{key}.feature_extractor.fc6", wide, narrow * 7 * 7)
        yield from conv(f"{key}.feature_extractor.fc7", wide, wide)
        yield from conv(f"{key}.predictor.cls_score", size.num_classes, wide)
        yield from conv(f"{key}.predictor.bbox_pred", 4 * size.num_classes, wide)

    def domain() -> Entries:
        image, instance = "da_heads.imghead.da_img_conv", "da_heads.inshead.da_ins_fc"
        for level in range(LEVELS):
            yield from conv(f"{image}1_level{level}", 2 * narrow, narrow, 1, 1)
            yield from conv(f"{image}2_level{level}", 1, 2 * narrow, 1, 1)
        for level in range(LEVELS - 1):
            yield from conv(f"{instance}1_level{level}", wide, wide)
            yield from conv(f"{instance}2_level{level}", wide, wide)
            yield from conv(f"{instance}3_level{level}", 1, wide)

    return [*body(), *pyramid(), *proposals(), *boxes(), *domain()]


# libraries ---------------------------------------------------------------------------------------


def torchvision_resnet(size: ResNetSize) -> list[Entry]:
    """The ImageNet classifier of torchvision and of timm."""
    return [*resnet(size), *conv("fc", size.num_classes, size.stages[-1][2])]


def torchvision_deeplabv3(size: ResNetSize) -> list[Entry]:
    """The DeepLabV3 of torchvision with its auxiliary classifier."""
    width = size.head_width
    *_, third, fourth = (rows for _, _, rows in size.stages)

    def conv_and_norm(key: str, first: int, columns: int, kernel: int) -> Entries:
        yield from conv(f"{key}{first}", width, columns, kernel, kernel, bias=False)
        yield from batch_norm(f"{key}{first + 1}", width)

    def head() -> Entries:
        pyramid = "classifier.0.convs."
        yield from conv_and_norm(f"{pyramid}0.", 0, fourth, 1)
        for branch in (1, 2, 3):
            yield from conv_and_norm(f"{pyramid}{branch}.", 0, fourth, 3)
        yield from conv_and_norm(f"{pyramid}4.", 1, fourth, 1)  # after the pooling
        yield from conv_and_norm("classifier.0.project.", 0, 5 * width, 1)
        yield from conv_and_norm("classifier.", 1, width, 3)
        yield from conv("classifier.4", size.num_classes, width, 1, 1)
        yield from conv_and_norm("aux_classifier.", 0, third, 3)
        yield from conv("aux_classifier.4", size.num_classes, third // 4, 1, 1)

    return [*prefixed("backbone.", resnet(size)), *head()]


def smp_unet_resnet(size: ResNetSize, widths: tuple[int, ...] = UNET) -> list[Entry]:
    """The Unet of smp: skips from the first three stages and the stem."""
    *skips, deepest = (rows for _, _, rows in size.stages)
    skips = [*reversed(skips), size.width, 0]
    decoder = unet_decoder(deepest, tuple(skips), size.num_classes, widths)
    return [*prefixed("encoder.", resnet(size)), *decoder]


def transformers_resnet(size: ResNetSize, prefix: str = "") -> list[Entry]:
    """`ResNetModel` of transformers, whose shortcuts come first in each block."""

    def renamed(entry: Entry) -> Entry:
        *place, module, leaf = entry.key.split(".")
        if not place:
            kind = "convolution" if module == "conv1" else "normalization"
            return entry._replace(key=f"{prefix}embedder.embedder.{kind}.{leaf}")
        stage, block, *inner = (*place, module)
        key = f"{prefix}encoder.stages.{int(stage.removeprefix('layer')) - 1}.layers.{block}"
        if inner[0] == "downsample":
            kind = ("convolution", "normalization")[int(inner[1])]
            return entry._replace(key=f"{key}.shortcut.{kind}.{leaf}")
        kind = "convolution" if module.startswith("conv") else "normalization"
        return entry._replace(key=f"{key}.layer.{int(module[-1]) - 1}.{kind}.{leaf}")

    return [renamed(entry) for entry in resnet(size, downsample_first=True)]
