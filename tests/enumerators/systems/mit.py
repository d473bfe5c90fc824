"""Systems on the Mix Transformer: DAFormer, HRDA, MIC, PiPa, EDAPS, and smp's other decoders.

`size.decoder_width` is the width of DAFormer's embeddings (256 in every config of the systems).
Keys are those of the bare network: what the prefix `model.` of a whole training run strips to.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..dialects import Entry, mit_nvlabs
from ..size import SegformerSize
from .listing import Entries, batch_norm, conv, norm, prefixed

DILATED = (1, 2, 3)  # branches of the pyramid with a separable convolution, after the plain one
THINGS = 8  # Cityscapes' classes with instances
ANCHORS = 3  # per place


def daformer(size: SegformerSize) -> list[Entry]:
    """DAFormer: MiT and a head of depthwise separable pyramid pooling."""
    head = _daformer_head("decode_head", size)
    return [*mit_nvlabs(size, "backbone."), *head]


def hrda(size: SegformerSize) -> list[Entry]:
    """HRDA, and MIC on HRDA: DAFormer's head and a second one that weighs the two scales."""
    return [*mit_nvlabs(size, "backbone."), *_hrda_head(size)]


def pipa_daformer(size: SegformerSize) -> list[Entry]:
    """PiPa on DAFormer: two more heads, used in training alone."""
    return [*daformer(size), *_pipa_heads(size)]


def pipa_hrda(size: SegformerSize) -> list[Entry]:
    """PiPa on HRDA."""
    return [*hrda(size), *_pipa_heads(size)]


def edaps(size: SegformerSize) -> list[Entry]:
    """EDAPS as its README trains it: DAFormer's head for stuff, Mask R-CNN's for things."""
    return [
        *mit_nvlabs(size, "backbone."),
        *_mask_rcnn(size),
        *_daformer_head("decode_head", size),
    ]


def edaps_bottom_up(size: SegformerSize) -> list[Entry]:
    """EDAPS' ablation: one head with a second decoder for centers and offsets of instances."""

    def head() -> Entries:
        key, width = "decode_head", size.decoder_width
        start = "daformer_head"  # the semantic half is one
        yield from conv(f"{key}.conv_seg", size.num_classes, width, 1, 1, of=f"{start}.conv_seg")
        yield from conv(f"{key}.conv_center", 1, width, 1, 1)
        yield from conv(f"{key}.conv_offset", 2, width, 1, 1)
        yield from _embed_layers(f"{key}.embed_layers_semantic", size, f"{start}.embed_layers")
        yield from _pyramid(f"{key}.fuse_layer_semantic", size, f"{start}.fuse_layer")
        yield from _embed_layers(f"{key}.embed_layers_instance", size)
        yield from _pyramid(f"{key}.fuse_layer_instance", size)

    return [*mit_nvlabs(size, "backbone."), *head()]


def training_run(student: Iterable[Entry]) -> list[Entry]:
    """What mmcv saves of a whole run: the student, its moving average, the ImageNet model."""
    student = list(student)
    copies = ("model.", "ema_model.", "imnet_model.")
    return [entry for copy in copies for entry in prefixed(copy, student)]


def pipa_training_run(student: Iterable[Entry], size: SegformerSize) -> list[Entry]:
    """PiPa's run also has layers of its own beside the three copies."""
    return [*training_run(student), *pipa_trainer(size.num_classes, size.decoder_width)]


def pipa_trainer(classes: int, width: int) -> list[Entry]:
    """The layers of PiPa's trainer itself, which belong to none of its three networks."""
    return [
        *conv("project.0", width, width, 1, 1),
        *conv("project.2", width // 2, width, 1, 1),
        *conv("classifier", classes, width, 1, 1),
    ]


# heads -------------------------------------------------------------------------------------------


def _daformer_head(key: str, size: SegformerSize) -> Entries:
    start = "daformer_head"
    yield from conv(
        f"{key}.conv_seg", size.num_classes, size.decoder_width, 1, 1, of=f"{start}.conv_seg"
    )
    yield from _embed_layers(f"{key}.embed_layers", size, f"{start}.embed_layers")
    yield from _pyramid(f"{key}.fuse_layer", size, f"{start}.fuse_layer")


def _hrda_head(size: SegformerSize) -> Entries:
    yield from _daformer_head("decode_head.head", size)
    key, width = "decode_head.scale_attention", size.decoder_width
    yield from conv(f"{key}.conv_seg", size.num_classes, width, 1, 1)
    yield from _embed_layers(f"{key}.embed_layers", size)
    yield from conv(f"{key}.fuse_layer.conv", width, 4 * width, 1, 1, bias=False)
    yield from batch_norm(f"{key}.fuse_layer.bn", width)


def _embed_layers(key: str, size: SegformerSize, of: str | None = None) -> Entries:
    for i, width in enumerate(size.widths):
        start = None if of is None else f"{of}.{i}.proj"
        yield from conv(f"{key}.{i}.proj", size.decoder_width, width, of=start)


def _pyramid(key: str, size: SegformerSize, of: str | None = None) -> Entries:
    """Separable ASPP of mmseg: a 1 x 1 branch, three separable ones, and what joins the four."""
    narrow, wide = size.decoder_width, 4 * size.decoder_width
    start = key if of is None else of

    def module(name: str, shape: tuple[int, ...]) -> Entries:
        yield from conv(f"{key}.{name}.conv", *shape, bias=False, of=f"{start}.{name}.conv")
        yield from batch_norm(f"{key}.{name}.bn", shape[0], of=f"{start}.{name}.bn")

    yield from module("aspp_modules.0", (narrow, wide, 1, 1))
    for branch in DILATED:
        yield from module(f"aspp_modules.{branch}.depthwise_conv", (wide, 1, 3, 3))
        yield from module(f"aspp_modules.{branch}.pointwise_conv", (narrow, wide, 1, 1))
    yield from module("bottleneck", (narrow, wide, 3, 3))


def _pipa_heads(size: SegformerSize) -> Entries:
    """`cls_head` and `proj_head`: pixel and patch contrast, nothing that segments."""
    narrow, wide = size.decoder_width, 4 * size.decoder_width
    yield from conv("cls_head.0", wide, wide, 3, 3)
    yield from batch_norm("cls_head.1.0", wide)
    yield from conv("cls_head.3", size.num_classes, wide, 1, 1, bias=False)
    yield from conv("proj_head.proj.0", wide, wide, 1, 1)
    yield from batch_norm("proj_head.proj.1.0", wide)
    yield from conv("proj_head.proj.2", narrow, wide, 1, 1)


def _mask_rcnn(size: SegformerSize) -> Entries:
    narrow, wide = size.decoder_width, 4 * size.decoder_width
    for i, width in enumerate(size.widths):
        yield from conv(f"neck.lateral_convs.{i}.conv", narrow, width, 1, 1)
    for i in range(len(size.widths)):
        yield from conv(f"neck.fpn_convs.{i}.conv", narrow, narrow, 3, 3)
    yield from conv("rpn_head.rpn_conv", narrow, narrow, 3, 3)
    yield from conv("rpn_head.rpn_cls", ANCHORS, narrow, 1, 1)
    yield from conv("rpn_head.rpn_reg", 4 * ANCHORS, narrow, 1, 1)
    yield from conv("roi_head.bbox_head.fc_cls", THINGS + 1, wide)
    yield from conv("roi_head.bbox_head.fc_reg", 4 * THINGS, wide)
    yield from conv("roi_head.bbox_head.shared_fcs.0", wide, narrow * 7 * 7)
    yield from conv("roi_head.bbox_head.shared_fcs.1", wide, wide)
    for i in range(4):
        yield from conv(f"roi_head.mask_head.convs.{i}.conv", narrow, narrow, 3, 3)
    yield from conv("roi_head.mask_head.upsample", narrow, narrow, 2, 2)
    yield from conv("roi_head.mask_head.conv_logits", THINGS, narrow, 1, 1)


# segmentation-models-pytorch ---------------------------------------------------------------------


UNET = (256, 128, 64, 32, 16)  # smp's default widths, whatever the encoder


def smp_unet(size: SegformerSize, widths: tuple[int, ...] = UNET) -> list[Entry]:
    """The Unet of smp; its decoder has no skip at half resolution."""
    decoder = unet_decoder(size.widths[-1], (*size.widths[2::-1], 0, 0), size.num_classes, widths)
    return [*mit_nvlabs(size, "encoder."), *decoder]


def unet_decoder(
    deepest: int,
    skips: tuple[int, ...],
    classes: int,
    widths: tuple[int, ...] = UNET,
) -> Entries:
    above = deepest
    for i, (skip, width) in enumerate(zip(skips, widths, strict=True)):
        for n, columns in ((1, above + skip), (2, width)):
            yield from conv(f"decoder.blocks.{i}.conv{n}.0", width, columns, 3, 3, bias=False)
            yield from batch_norm(f"decoder.blocks.{i}.conv{n}.1", width)
        above = width
    yield from conv("segmentation_head.0", classes, above, 3, 3)


def smp_fpn(size: SegformerSize, pyramid: int = 256, merged: int = 128) -> list[Entry]:
    """The FPN of smp."""

    def decoder() -> Entries:
        *shallow, deepest = size.widths
        yield from conv("decoder.p5", pyramid, deepest, 1, 1)
        for level, width in zip((4, 3, 2), reversed(shallow), strict=True):
            yield from conv(f"decoder.p{level}.skip_conv", pyramid, width, 1, 1)
        for i, blocks in enumerate((3, 2, 1, 1)):
            for b in range(blocks):
                key = f"decoder.seg_blocks.{i}.block.{b}.block"
                columns = pyramid if b == 0 else merged
                yield from conv(f"{key}.0", merged, columns, 3, 3, bias=False)
                yield from norm(f"{key}.1", merged)
        yield from conv("segmentation_head.0", size.num_classes, merged, 1, 1)

    return [*mit_nvlabs(size, "encoder."), *decoder()]


def smp_upernet(size: SegformerSize, width: int = 256) -> list[Entry]:
    """The UPerNet of smp 0.5."""

    def conv_and_norm(key: str, columns: int, kernel: int) -> Entries:
        yield from conv(f"{key}.0", width, columns, kernel, kernel, bias=False)
        yield from batch_norm(f"{key}.1", width)

    def decoder() -> Entries:
        *shallow, deepest = size.widths
        for i, columns in enumerate(size.widths):
            yield from norm(f"decoder.feature_norms.{i}", columns)
        for i in range(4):
            yield from conv_and_norm(f"decoder.psp.blocks.{i}.1", deepest, 1)
        yield from conv_and_norm("decoder.psp.out_conv", deepest + 4 * width, 3)
        for i, columns in enumerate(reversed(shallow)):
            yield from conv_and_norm(f"decoder.fpn_lateral_blocks.{i}.conv_norm_relu", columns, 1)
        for i in range(len(shallow)):
            yield from conv_and_norm(f"decoder.fpn_conv_blocks.{i}", width, 3)
        yield from conv_and_norm("decoder.fusion_block", 4 * width, 3)
        yield from conv("segmentation_head.0", size.num_classes, width, 1, 1)

    return [*mit_nvlabs(size, "encoder."), *decoder()]
