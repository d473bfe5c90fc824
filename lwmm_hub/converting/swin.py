"""Swin in transformers: its configuration from shapes, and every key it has.

Everything that decides the result shows in the shapes but the size of the images it was made for,
which counts only where positions are embedded absolutely.
"""

from __future__ import annotations

import math

from lwmm_hub.converting.drafting import (
    ConfigDraft,
    Described,
    Origin,
    Shapes,
    numbered,
    shape_of,
    with_leaves,
)
from lwmm_hub.errors import CheckpointError


def describe(shapes: Shapes, draft: ConfigDraft, _: Origin) -> Described:
    """`SwinModel`."""
    label = draft.label
    patches = shape_of(shapes, "embeddings.patch_embeddings.projection.weight", 4, label)
    stages = max(1, numbered(shapes, "encoder.layers."))
    heads, windows = [], set()
    for s in range(stages):
        block = f"encoder.layers.{s}.blocks.0.attention.self"
        offsets, count = shape_of(shapes, f"{block}.relative_position_bias_table", 2, label)
        heads.append(count)
        windows.add((math.isqrt(offsets) + 1) // 2)
    if len(windows) != 1:
        raise CheckpointError(
            f"{label} has windows of several sizes, {sorted(windows)}, which SwinModel cannot "
            "have. Convert it in its own keys: leave --to out."
        )
    (window,) = windows
    width = patches[0]
    depths = [numbered(shapes, f"encoder.layers.{s}.blocks.") for s in range(stages)]
    first = "encoder.layers.0.blocks.0"
    hidden = shape_of(shapes, f"{first}.intermediate.dense.weight", 2, label)[0]
    biased = f"{first}.attention.self.query.bias" in shapes
    absolute = shapes.get("embeddings.position_embeddings")
    draft.derived("num_channels", patches[1])
    draft.derived("patch_size", patches[2])
    draft.derived("embed_dim", width)
    draft.derived("depths", depths)
    draft.derived("num_heads", heads)
    draft.derived("window_size", window)
    draft.derived("mlp_ratio", hidden / width)
    draft.derived("qkv_bias", biased)
    draft.derived("use_absolute_embeddings", absolute is not None)
    if absolute is not None:
        if len(absolute) != 3:
            raise CheckpointError(
                f"{label} has position embeddings of an unknown form. Leave --to out."
            )
        draft.derived("image_size", math.isqrt(absolute[1]) * patches[2])
    expected = with_leaves("embeddings.norm", (width,))
    if absolute is not None:
        expected["embeddings.position_embeddings"] = absolute
    expected |= with_leaves(
        "embeddings.patch_embeddings.projection", (width, patches[1], patches[2], patches[2])
    )
    for s, depth in enumerate(depths):
        channels = width << s
        for b in range(depth):
            block = f"encoder.layers.{s}.blocks.{b}"
            inner = round(hidden / width * channels)
            expected |= _block(block, channels, heads[s], window, inner, biased)
        if s + 1 < stages:
            merging = f"encoder.layers.{s}.downsample"
            expected |= with_leaves(f"{merging}.norm", (4 * channels,))
            expected[f"{merging}.reduction.weight"] = (2 * channels, 4 * channels)
    return Described(expected | with_leaves("layernorm", (width << (stages - 1),)))


def _block(
    name: str, width: int, heads: int, window: int, hidden: int, biased: bool
) -> dict[str, tuple[int, ...]]:
    attention = f"{name}.attention.self"
    tensors = with_leaves(f"{name}.layernorm_before", (width,))
    for part in ("query", "key", "value"):
        leaves = ("bias",) if biased else ()
        tensors |= with_leaves(f"{attention}.{part}", (width, width), leaves)
    offsets = (2 * window - 1) ** 2
    tensors[f"{attention}.relative_position_bias_table"] = (offsets, heads)
    tensors |= with_leaves(f"{name}.attention.output.dense", (width, width))
    tensors |= with_leaves(f"{name}.layernorm_after", (width,))
    tensors |= with_leaves(f"{name}.intermediate.dense", (hidden, width))
    return tensors | with_leaves(f"{name}.output.dense", (width, hidden))
