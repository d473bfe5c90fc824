"""Mask2Former as its authors save it on detectron2: keys, shapes, and what the network computes.

Written from the public code of facebookresearch/Mask2Former and transformers' conversion script,
without the package's tables. An entry's `parts` are the keys that transformers' files have for it.
`feature_maps` and `logits` are a second opinion on what each key does: they share no code with
transformers, and list the keys that they read, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .dialects import Entry

LEVELS, POINTS = 3, 4  # maps that the pixel decoder attends to, places per map and head
GROUPS = 32  # of its norms


@dataclass(frozen=True)
class Mask2FormerSize:
    """Sizes of a Mask2Former on Swin; `blocks` are those of the transformer decoder."""

    depths: tuple[int, ...] = (1, 1, 2, 1)
    heads: tuple[int, ...] = (1, 2, 2, 4)
    width: int = 8
    patch: int = 2
    window: int = 4
    ratio: int = 2
    hidden: int = 64
    pixel_layers: int = 2
    pixel_ffn: int = 16
    blocks: int = 2
    ffn: int = 16
    attention_heads: int = 2
    queries: int = 5
    classes: int = 19
    projected: bool = False

    @property
    def widths(self) -> list[int]:
        """Channels of the four feature maps."""
        return [self.width * 2**s for s in range(4)]


# what transformers calls a Swin-T of Cityscapes, one of the zoo
SWIN_T = Mask2FormerSize(
    (2, 2, 6, 2), (3, 6, 12, 24), 96, 4, 7, 4, 256, 6, 1024, 9, 2048, 8, 100, 19
)


def authors(size: Mask2FormerSize, older: bool = False) -> list[Entry]:
    """The whole network in the order of its file; `older` as files before two renamings have it."""
    return [*swin(size), *pixel_decoder(size, older), *predictor(size, older), *_criterion(size)]


def _both(key: str, *shape: int, part: str) -> Iterator[Entry]:
    """Weight and bias of a module; `shape` is the weight's."""
    yield Entry(f"{key}.weight", shape, "F32", (f"{part}.weight",))
    yield Entry(f"{key}.bias", shape[:1], "F32", (f"{part}.bias",))


def _criterion(size: Mask2FormerSize) -> Iterator[Entry]:
    yield Entry("criterion.empty_weight", (size.classes + 1,), "F32", ())


def swin(size: Mask2FormerSize) -> Iterator[Entry]:
    """Microsoft's Swin, with a norm for each feature map and buffers of integers."""
    theirs = "model.pixel_level_module.encoder"
    stem = f"{theirs}.embeddings"
    yield from _both(
        "backbone.patch_embed.proj",
        *(size.width, 3, size.patch, size.patch),
        part=f"{stem}.patch_embeddings.projection",
    )
    yield from _both("backbone.patch_embed.norm", size.width, part=f"{stem}.norm")
    for s, (depth, heads, width) in enumerate(
        zip(size.depths, size.heads, size.widths, strict=True)
    ):
        for b in range(depth):
            key = f"backbone.layers.{s}.blocks.{b}"
            part = f"{theirs}.encoder.layers.{s}.blocks.{b}"
            attention = f"{part}.attention.self"
            table = "relative_position_bias_table"
            yield from _both(f"{key}.norm1", width, part=f"{part}.layernorm_before")
            rows = (2 * size.window - 1) ** 2
            yield Entry(f"{key}.attn.{table}", (rows, heads), "F32", (f"{attention}.{table}",))
            area = size.window**2
            yield Entry(f"{key}.attn.relative_position_index", (area, area), "I64", ())
            for leaf, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
                fused = tuple(f"{attention}.{name}.{leaf}" for name in ("query", "key", "value"))
                yield Entry(f"{key}.attn.qkv.{leaf}", shape, "F32", fused)
            yield from _both(
                f"{key}.attn.proj", width, width, part=f"{part}.attention.output.dense"
            )
            yield from _both(f"{key}.norm2", width, part=f"{part}.layernorm_after")
            wide = size.ratio * width
            yield from _both(f"{key}.mlp.fc1", wide, width, part=f"{part}.intermediate.dense")
            yield from _both(f"{key}.mlp.fc2", width, wide, part=f"{part}.output.dense")
        if s < 3:
            key = f"backbone.layers.{s}.downsample"
            part = f"{theirs}.encoder.layers.{s}.downsample"
            weight = (f"{part}.reduction.weight",)
            yield Entry(f"{key}.reduction.weight", (2 * width, 4 * width), "F32", weight)
            yield from _both(f"{key}.norm", 4 * width, part=f"{part}.norm")
    for s, width in enumerate(size.widths):
        norm = f"{theirs}.hidden_states_norms.stage{s + 1}"
        yield from _both(f"backbone.norm{s}", width, part=norm)


def pixel_decoder(size: Mask2FormerSize, older: bool = False) -> Iterator[Entry]:
    """Deformable attention over three maps, and a convolution each for the fourth."""
    ours = "sem_seg_head" if older else "sem_seg_head.pixel_decoder"
    theirs = "model.pixel_level_module.decoder"
    hidden = size.hidden
    for i, width in enumerate(reversed(size.widths[1:])):
        key, part = f"{ours}.input_proj.{i}", f"{theirs}.input_projections.{i}"
        yield from _both(f"{key}.0", hidden, width, 1, 1, part=f"{part}.0")
        yield from _both(f"{key}.1", hidden, part=f"{part}.1")
    embedding = (f"{theirs}.level_embed",)
    yield Entry(f"{ours}.transformer.level_embed", (LEVELS, hidden), "F32", embedding)
    places = size.attention_heads * LEVELS * POINTS
    for b in range(size.pixel_layers):
        key = f"{ours}.transformer.encoder.layers.{b}"
        part = f"{theirs}.encoder.layers.{b}"
        for name, rows in (
            ("sampling_offsets", 2 * places),
            ("attention_weights", places),
            ("value_proj", hidden),
            ("output_proj", hidden),
        ):
            yield from _both(
                f"{key}.self_attn.{name}", rows, hidden, part=f"{part}.self_attn.{name}"
            )
        yield from _both(f"{key}.norm1", hidden, part=f"{part}.self_attn_layer_norm")
        yield from _both(f"{key}.linear1", size.pixel_ffn, hidden, part=f"{part}.fc1")
        yield from _both(f"{key}.linear2", hidden, size.pixel_ffn, part=f"{part}.fc2")
        yield from _both(f"{key}.norm2", hidden, part=f"{part}.final_layer_norm")
    yield from _both(
        f"{ours}.mask_features", hidden, hidden, 1, 1, part=f"{theirs}.mask_projection"
    )
    for name, shape in (
        ("adapter_1", (hidden, size.width, 1, 1)),
        ("layer_1", (hidden, hidden, 3, 3)),
    ):
        yield Entry(f"{ours}.{name}.weight", shape, "F32", (f"{theirs}.{name}.0.weight",))
        yield from _both(f"{ours}.{name}.norm", hidden, part=f"{theirs}.{name}.1")


def predictor(size: Mask2FormerSize, older: bool = False) -> Iterator[Entry]:
    """The transformer decoder: all self-attentions, all cross-attentions, all feed-forwards."""
    ours, theirs = "sem_seg_head.predictor", "model.transformer_module"
    hidden = size.hidden
    fused = (("weight", (3 * hidden, hidden)), ("bias", (3 * hidden,)))
    for b in range(size.blocks):
        key = f"{ours}.transformer_self_attention_layers.{b}"
        part = f"{theirs}.decoder.layers.{b}.self_attn"
        for leaf, shape in fused:
            parts = tuple(f"{part}.{name}_proj.{leaf}" for name in "qkv")
            yield Entry(f"{key}.self_attn.in_proj_{leaf}", shape, "F32", parts)
        yield from _both(f"{key}.self_attn.out_proj", hidden, hidden, part=f"{part}.out_proj")
        yield from _both(f"{key}.norm", hidden, part=f"{part}_layer_norm")
    for b in range(size.blocks):
        key = f"{ours}.transformer_cross_attention_layers.{b}"
        part = f"{theirs}.decoder.layers.{b}.cross_attn"
        for leaf, shape in fused:
            name = f"{key}.multihead_attn.in_proj_{leaf}"
            yield Entry(name, shape, "F32", (f"{part}.in_proj_{leaf}",))
        yield from _both(f"{key}.multihead_attn.out_proj", hidden, hidden, part=f"{part}.out_proj")
        yield from _both(f"{key}.norm", hidden, part=f"{part}_layer_norm")
    for b in range(size.blocks):
        key = f"{ours}.transformer_ffn_layers.{b}"
        part = f"{theirs}.decoder.layers.{b}"
        yield from _both(f"{key}.linear1", size.ffn, hidden, part=f"{part}.fc1")
        yield from _both(f"{key}.linear2", hidden, size.ffn, part=f"{part}.fc2")
        yield from _both(f"{key}.norm", hidden, part=f"{part}.final_layer_norm")
    yield from _both(f"{ours}.decoder_norm", hidden, part=f"{theirs}.decoder.layernorm")
    for name, rows, part in (
        ("static_query" if older else "query_feat", size.queries, "queries_features"),
        ("query_embed", size.queries, "queries_embedder"),
        ("level_embed", LEVELS, "level_embed"),
    ):
        weight = (f"{theirs}.{part}.weight",)
        yield Entry(f"{ours}.{name}.weight", (rows, hidden), "F32", weight)
    for i in range(LEVELS if size.projected else 0):
        part = f"{theirs}.input_projections.{i}"
        yield from _both(f"{ours}.input_proj.{i}", hidden, hidden, 1, 1, part=part)
    yield from _both(f"{ours}.class_embed", size.classes + 1, hidden, part="class_predictor")
    for i in range(3):
        part = f"{theirs}.decoder.mask_predictor.mask_embedder.{i}.0"
        yield from _both(f"{ours}.mask_embed.layers.{i}", hidden, hidden, part=part)


# ------------------------------------------------------------------------------- what it computes


class Weights:
    """The tensors below one prefix; `read` lists the keys in the order of their reading."""

    def __init__(self, values: dict[str, Tensor], prefix: str, read: list[str]) -> None:
        self.values, self.prefix, self.read = values, prefix, read

    def __getitem__(self, key: str) -> Tensor:
        self.read.append(self.prefix + key)
        return self.values[self.prefix + key]

    def within(self, name: str) -> Weights:
        return Weights(self.values, f"{self.prefix}{name}.", self.read)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"])

    def grouped(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, GROUPS, self[f"{name}.weight"], self[f"{name}.bias"])


@torch.no_grad()
def feature_maps(
    values: dict[str, Tensor], pixels: Tensor, size: Mask2FormerSize, read: list[str]
) -> list[Tensor]:
    """The four normed maps of Swin (Liu et al., 2021), finest first.

    Args:
        values: the file of a network.
        pixels: (batch, 3, height, width), both sides multiples of each stage's windows.
        size: of the network.
        read: the keys that were read are put behind it.
    """
    swin = Weights(values, "backbone.", read)
    stem = swin.within("patch_embed")
    x = F.conv2d(pixels, stem["proj.weight"], stem["proj.bias"], stride=size.patch)
    x = stem.norm("norm", x.permute(0, 2, 3, 1))  # channels last, as everywhere below
    maps = []
    for s, (depth, heads) in enumerate(zip(size.depths, size.heads, strict=True)):
        for b in range(depth):
            block = swin.within(f"layers.{s}.blocks.{b}")
            shift = size.window // 2 if b % 2 else 0
            normed = block.norm("norm1", x)
            x = x + _windowed(block.within("attn"), normed, heads, size.window, shift)
            x = x + block.linear("mlp.fc2", F.gelu(block.linear("mlp.fc1", block.norm("norm2", x))))
        maps.append(swin.norm(f"norm{s}", x).permute(0, 3, 1, 2))
        if s < 3:
            merging = swin.within(f"layers.{s}.downsample")
            corners = ((0, 0), (1, 0), (0, 1), (1, 1))
            x = torch.cat([x[:, row::2, column::2] for row, column in corners], -1)
            x = F.linear(merging.norm("norm", x), merging["reduction.weight"])
    return maps


def _windowed(attention: Weights, x: Tensor, heads: int, window: int, shift: int) -> Tensor:
    """Attention within windows, which a shift moves over the borders of those before."""
    _, high, wide, width = x.shape
    x = x.roll((-shift, -shift), (1, 2))
    one = _windows(x, window)
    query, key, value = (
        attention.linear("qkv", one).unflatten(2, (3, heads, width // heads)).permute(2, 0, 3, 1, 4)
    )
    place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    apart = place[:, None] - place[None] + window - 1
    row = apart[..., 0] * (2 * window - 1) + apart[..., 1]
    bias = attention["relative_position_bias_table"][row].permute(2, 0, 1)
    scores = query @ key.transpose(-2, -1) / (width // heads) ** 0.5 + bias
    if shift:  # what the roll brought together is apart in the image
        region = [
            torch.arange(n).ge(n - window).long() + torch.arange(n).ge(n - shift)
            for n in (high, wide)
        ]
        labels = (3 * region[0][:, None] + region[1])[None, :, :, None]
        mine = _windows(labels, window)[..., 0]
        apart = (mine[:, :, None] != mine[:, None]).repeat(len(x), 1, 1)[:, None]
        scores = scores.masked_fill(apart, -torch.inf)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    out = attention.linear("proj", mixed).unflatten(1, (window, window))
    grid = (len(x), high // window, wide // window)
    out = out.unflatten(0, grid).permute(0, 1, 3, 2, 4, 5).reshape(len(x), high, wide, width)
    return out.roll((shift, shift), (1, 2))


def _windows(x: Tensor, window: int) -> Tensor:
    """(batch, height, width, channels) as (windows, places, channels)."""
    batch, high, wide, width = x.shape
    x = x.view(batch, high // window, window, wide // window, window, width)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, width)


@torch.no_grad()
def logits(
    values: dict[str, Tensor], maps: list[Tensor], size: Mask2FormerSize, read: list[str]
) -> tuple[Tensor, Tensor]:
    """Scores of classes and of masks per query: the head.

    Args:
        values: the file of a network in the authors' newer spelling.
        maps: what the backbone makes of images: (batch, channels, height, width), finest first.
        size: of the network.
        read: the keys that were read are put behind it.
    """
    head = Weights(values, "sem_seg_head.", read)
    masks, scales = _pixels(head.within("pixel_decoder"), maps, size)
    return _predict(head.within("predictor"), scales, masks, size)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _positions(x: Tensor) -> Tensor:
    """Sines and cosines of the normalised row and column, as tokens of the width of `x`."""
    batch, width, *grid = x.shape
    half = width // 2
    pace = 10000 ** (2 * (torch.arange(half, dtype=x.dtype) // 2) / half)
    waves = []
    for count in grid:
        place = torch.arange(1, count + 1, dtype=x.dtype) / (count + 1e-6) * 2 * torch.pi
        angle = place[:, None] / pace
        odd = torch.arange(half) % 2 == 1
        waves.append(torch.where(odd, angle.cos(), angle.sin()))
    rows = waves[0][:, None].expand(-1, grid[1], -1)
    columns = waves[1][None].expand(grid[0], -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1).expand(batch, -1, -1)


def _pixels(
    pixels: Weights, maps: list[Tensor], size: Mask2FormerSize
) -> tuple[Tensor, list[Tensor]]:
    """The mask features, and the three maps for the transformer, coarsest first."""
    coarse = maps[:0:-1]
    projected = []
    for i, x in enumerate(coarse):
        layer = pixels.within(f"input_proj.{i}")
        projected.append(layer.grouped("1", F.conv2d(x, layer["0.weight"], layer["0.bias"])))
    level = pixels["transformer.level_embed"]
    position = torch.cat([_positions(x) + level[i] for i, x in enumerate(projected)], 1)
    grids = [x.shape[2:] for x in projected]
    tokens = torch.cat([_tokens(x) for x in projected], 1)
    for b in range(size.pixel_layers):
        layer = pixels.within(f"transformer.encoder.layers.{b}")
        attended = _deformable(layer.within("self_attn"), tokens, position, grids, size)
        tokens = layer.norm("norm1", tokens + attended)
        wide = layer.linear("linear1", tokens).relu()
        tokens = layer.norm("norm2", tokens + layer.linear("linear2", wide))
    pieces = tokens.split([h * w for h, w in grids], 1)
    scales = [
        piece.transpose(1, 2).unflatten(2, grid) for piece, grid in zip(pieces, grids, strict=True)
    ]
    lateral = pixels.grouped("adapter_1.norm", F.conv2d(maps[0], pixels["adapter_1.weight"]))
    finest = lateral + _resized(scales[-1], lateral.shape[2:])
    finest = F.conv2d(finest, pixels["layer_1.weight"], padding=1)
    finest = pixels.grouped("layer_1.norm", finest).relu()
    masks = F.conv2d(finest, pixels["mask_features.weight"], pixels["mask_features.bias"])
    return masks, scales


def _resized(x: Tensor, grid: torch.Size) -> Tensor:
    return F.interpolate(x, grid, mode="bilinear", align_corners=False)


def _deformable(
    attention: Weights,
    tokens: Tensor,
    position: Tensor,
    grids: list[torch.Size],
    size: Mask2FormerSize,
) -> Tensor:
    """Deformable attention (Zhu et al., 2021): each token looks at a few places of each map."""
    batch, length, width = tokens.shape
    heads = size.attention_heads
    values = attention.linear("value_proj", tokens).unflatten(2, (heads, width // heads))
    asked = tokens + position
    offsets = attention.linear("sampling_offsets", asked)
    offsets = offsets.view(batch, length, heads, LEVELS, POINTS, 2)
    shares = attention.linear("attention_weights", asked).view(batch, length, heads, -1)
    shares = shares.softmax(-1).view(batch, length, heads, LEVELS, POINTS)
    centers = torch.cat([_centers(grid, tokens.dtype) for grid in grids])
    found = torch.zeros(batch, length, heads, width // heads, dtype=tokens.dtype)
    pieces = values.split([h * w for h, w in grids], 1)
    for i, (piece, (high, wide)) in enumerate(zip(pieces, grids, strict=True)):
        step = torch.tensor([wide, high], dtype=tokens.dtype)
        places = centers[None, :, None, None] + offsets[:, :, :, i] / step
        for head in range(heads):
            image = piece[:, :, head].transpose(1, 2).unflatten(2, (high, wide))
            seen = F.grid_sample(image, 2 * places[:, :, head] - 1, align_corners=False)
            found[:, :, head] += torch.einsum("bcnp,bnp->bnc", seen, shares[:, :, head, i])
    return attention.linear("output_proj", found.flatten(2))


def _centers(grid: torch.Size, dtype: torch.dtype) -> Tensor:
    """(x, y) of the middle of each pixel, between 0 and 1."""
    y, x = ((torch.arange(n, dtype=dtype) + 0.5) / n for n in grid)
    return torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1).flatten(0, 1)


def _predict(
    decoder: Weights, scales: list[Tensor], masks: Tensor, size: Mask2FormerSize
) -> tuple[Tensor, Tensor]:
    """Masked cross-attention to one map after the other, then self-attention, then an MLP."""
    memory, places = [], []
    for i, x in enumerate(scales):
        places.append(_positions(x))
        if size.projected:
            layer = decoder.within(f"input_proj.{i}")
            x = F.conv2d(x, layer["weight"], layer["bias"])
        memory.append(_tokens(x) + decoder["level_embed.weight"][i])
    batch = len(masks)
    where = decoder["query_embed.weight"].expand(batch, -1, -1)
    what = decoder["query_feat.weight"].expand(batch, -1, -1)

    def predicted() -> tuple[Tensor, Tensor]:
        normed = decoder.norm("decoder_norm", what)
        classes = decoder.linear("class_embed", normed)
        x = decoder.linear("mask_embed.layers.0", normed).relu()
        x = decoder.linear("mask_embed.layers.1", x).relu()
        x = decoder.linear("mask_embed.layers.2", x)
        return classes, torch.einsum("bqc,bchw->bqhw", x, masks)

    heads = size.attention_heads
    _, drawn = predicted()
    for b in range(size.blocks):
        level = b % LEVELS
        inside = _resized(drawn, scales[level].shape[2:]).flatten(2).sigmoid() >= 0.5
        inside = inside | ~inside.any(-1, keepdim=True)  # who sees nothing sees everything
        layer = decoder.within(f"transformer_cross_attention_layers.{b}")
        keys = memory[level] + places[level]
        seen = _attend(
            layer.within("multihead_attn"), what + where, keys, memory[level], heads, inside
        )
        what = layer.norm("norm", what + seen)
        layer = decoder.within(f"transformer_self_attention_layers.{b}")
        seen = _attend(layer.within("self_attn"), what + where, what + where, what, heads)
        what = layer.norm("norm", what + seen)
        layer = decoder.within(f"transformer_ffn_layers.{b}")
        wide = layer.linear("linear1", what).relu()
        what = layer.norm("norm", what + layer.linear("linear2", wide))
        classes, drawn = predicted()
    return classes, drawn


def _attend(
    attention: Weights,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    inside: Tensor | None = None,
) -> Tensor:
    """Attention of torch's fused layer: a third of its rows each for queries, keys, values."""
    weight, bias = attention["in_proj_weight"].chunk(3), attention["in_proj_bias"].chunk(3)
    query, key, value = (
        F.linear(x, weight[i], bias[i]).unflatten(2, (heads, -1)).transpose(1, 2)
        for i, x in enumerate((query, key, value))
    )
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    if inside is not None:
        scores = scores.masked_fill(~inside[:, None], -torch.inf)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return attention.linear("out_proj", mixed)
