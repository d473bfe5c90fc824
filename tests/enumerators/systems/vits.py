"""CoNMix: a feature extractor F, a bottleneck B and a classifier C, each in a file of its own.

Keys are `F/...`, `B/...` and `C/...`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..dialects import Entry
from .listing import Entries, batch_norm, conv, norm, prefixed, tensor
from .resnets import bottleneck_layer, weight_normed


@dataclass(frozen=True)
class VitSize:
    """A vision transformer and, where it has one, the ResNet before it."""

    width: int
    depth: int = 12
    patches: int = 196
    patch: int = 16
    mlp_ratio: int = 4
    deit_classes: int = 1000  # of ImageNet; what CoNMix takes as DeiT's features
    num_classes: int = 65
    bottleneck: int = 256
    root_width: int = 64
    units: tuple[int, int, int] = (3, 4, 9)
    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 16)


DEIT_S = VitSize(width=384)
DEIT_B = VitSize(width=768)
DEIT_B_384 = VitSize(width=768, patches=576)
R50_VIT_B = VitSize(width=768)


def _head(size: VitSize, features: int) -> list[Entry]:
    return [
        *bottleneck_layer("B/", size.bottleneck, features),
        *weight_normed("C/", size.num_classes, size.bottleneck),
    ]


def conmix_deit(size: VitSize, distilled: bool = False) -> list[Entry]:
    """DeiT in timm's names; its 1000 ImageNet scores are the features. Fused q, k and v."""
    width, tokens = size.width, size.patches + 1 + distilled

    def features() -> Entries:
        yield tensor("cls_token", 1, 1, width)
        if distilled:
            yield tensor("dist_token", 1, 1, width)
        yield tensor("pos_embed", 1, tokens, width)
        yield from conv("patch_embed.proj", width, 3, size.patch, size.patch)
        for b in range(size.depth):
            key = f"blocks.{b}"
            yield from norm(f"{key}.norm1", width)
            for leaf, columns in (("weight", (width,)), ("bias", ())):
                parts = tuple(f"{key}.attn.{name}.{leaf}" for name in "qkv")
                yield Entry(f"{key}.attn.qkv.{leaf}", (3 * width, *columns), "F32", parts)
            yield from conv(f"{key}.attn.proj", width, width)
            yield from norm(f"{key}.norm2", width)
            yield from conv(f"{key}.mlp.fc1", size.mlp_ratio * width, width)
            yield from conv(f"{key}.mlp.fc2", width, size.mlp_ratio * width)
        yield from norm("norm", width)
        yield from conv("head", size.deit_classes, width)
        if distilled:
            yield from conv("head_dist", size.deit_classes, width)

    return [*prefixed("F/", features()), *_head(size, size.deit_classes)]


def conmix_r50_vit(size: VitSize) -> list[Entry]:
    """TransUNet's R50-ViT-B/16, of whose decoder CoNMix uses `fc` alone."""
    root, width = size.root_width, size.width
    transformer, decoder = "feature_extractor.transformer", "feature_extractor.decoder"
    deepest = 2 ** (len(size.units) + 1) * root  # of the ResNet
    features = 2 * deepest

    def resnet() -> Entries:
        key = f"{transformer}.embeddings.hybrid_model"
        yield from conv(f"{key}.root.conv", root, 3, 7, 7, bias=False)
        yield from norm(f"{key}.root.gn", root)
        columns = root
        for i, units in enumerate(size.units, start=1):
            rows = 2 ** (i + 1) * root
            for unit in range(1, units + 1):
                yield from _unit(f"{key}.body.block{i}.unit{unit}", columns, rows, unit == 1)
                columns = rows

    def encoder() -> Entries:
        yield from conv(f"{transformer}.embeddings.patch_embeddings", width, deepest, 1, 1)
        for b in range(size.depth):
            key = f"{transformer}.encoder.layer.{b}"
            yield from norm(f"{key}.attention_norm", width)
            yield from norm(f"{key}.ffn_norm", width)
            yield from conv(f"{key}.ffn.fc1", size.mlp_ratio * width, width)
            yield from conv(f"{key}.ffn.fc2", width, size.mlp_ratio * width)
            for name in ("query", "key", "value", "out"):
                yield from conv(f"{key}.attn.{name}", width, width)
        yield from norm(f"{transformer}.encoder.encoder_norm", width)

    def unused_decoder() -> Entries:
        yield from conv(f"{decoder}.fc", features, width)
        above, skips = deepest // 2, (deepest // 2, deepest // 4, root, 0)
        for i, (skip, rows) in enumerate(zip(skips, size.decoder_widths, strict=True)):
            for n, columns in ((1, above + skip), (2, rows)):
                key = f"{decoder}.blocks.{i}.conv{n}"
                yield from conv(f"{key}.0", rows, columns, 3, 3, bias=False)
                yield from batch_norm(f"{key}.1", rows)
            above = rows

    whole = [*resnet(), *encoder(), *unused_decoder()]
    return [*prefixed("F/", whole), *_head(size, features)]


def _unit(key: str, columns: int, rows: int, first: bool) -> Iterator[Entry]:
    """A bottleneck of the ResNet: each group norm is registered before its convolution."""
    inner = rows // 4
    shapes = ((inner, columns, 1, 1), (inner, inner, 3, 3), (rows, inner, 1, 1))
    for n, (out, *shape) in enumerate(shapes, start=1):
        yield from norm(f"{key}.gn{n}", out)
        yield from conv(f"{key}.conv{n}", out, *shape, bias=False)
    if first:
        yield from conv(f"{key}.downsample", rows, columns, 1, 1, bias=False)
        yield from norm(f"{key}.gn_proj", rows)
