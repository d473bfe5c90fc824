"""The forward pass of NVlabs' SegFormer as plain functions over an NVlabs-spelled state dict.

Written from the paper (Xie et al., 2021, sections 3.1 and 3.2) and the facts below, to have a
second opinion on what each key does that shares no code with transformers:

- `attn.kv` is Linear(C, 2C), read as (2, heads, C / heads): the first C rows are the keys;
- the norms of blocks and stages have eps 1e-6, those of patch embeddings and of the reduced
  sequence PyTorch's default 1e-5;
- the head concatenates c4, c3, c2, c1; its batch norm is followed by a ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .size import SegformerSize

BLOCK_EPS = 1e-6
DEFAULT_EPS = 1e-5


@torch.no_grad()
def nvlabs_logits(tensors: Mapping[str, np.ndarray], size: SegformerSize, pixels: Tensor) -> Tensor:
    """Logits (batch, classes, height / 4, width / 4) for pixels (batch, 3, height, width)."""
    weights = {key: torch.from_numpy(value) for key, value in tensors.items()}
    return _head(
        _Scope(weights, "decode_head."), _backbone(_Scope(weights, "backbone."), size, pixels)
    )


class _Scope:
    """The tensors below one prefix."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str) -> None:
        self.weights, self.prefix = weights, prefix

    def __getitem__(self, key: str) -> Tensor:
        return self.weights[self.prefix + key]

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.weights

    def within(self, name: str) -> _Scope:
        return _Scope(self.weights, f"{self.prefix}{name}.")

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)

    def convolution(self, name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, self[f"{name}.weight"], self[f"{name}.bias"], **options)


def _backbone(mit: _Scope, size: SegformerSize, image: Tensor) -> list[Tensor]:
    """The feature maps c1, c2, c3, c4."""
    maps = []
    for s, (depth, heads) in enumerate(zip(size.depths, size.heads, strict=True), start=1):
        stride, padding = (4, 3) if s == 1 else (2, 1)
        image = mit.convolution(f"patch_embed{s}.proj", image, stride=stride, padding=padding)
        grid = image.shape[2:]
        x = mit.norm(f"patch_embed{s}.norm", _tokens(image), DEFAULT_EPS)
        for b in range(depth):
            block = mit.within(f"block{s}.{b}")
            normed = block.norm("norm1", x, BLOCK_EPS)
            x = x + _attention(block.within("attn"), normed, grid, heads)
            x = x + _mix_ffn(block.within("mlp"), block.norm("norm2", x, BLOCK_EPS), grid)
        image = _image(mit.norm(f"norm{s}", x, BLOCK_EPS), grid)
        maps.append(image)
    return maps


def _attention(attn: _Scope, x: Tensor, grid: torch.Size, heads: int) -> Tensor:
    batch, length, width = x.shape
    query = attn.linear("q", x).reshape(batch, length, heads, width // heads).transpose(1, 2)
    if "sr.weight" in attn:
        ratio = attn["sr.weight"].shape[-1]
        reduced = attn.convolution("sr", _image(x, grid), stride=ratio)
        x = attn.norm("norm", _tokens(reduced), DEFAULT_EPS)
    key, value = (
        attn.linear("kv", x).reshape(batch, -1, 2, heads, width // heads).permute(2, 0, 3, 1, 4)
    )
    scores = query @ key.transpose(-2, -1) * (width // heads) ** -0.5
    mixed = scores.softmax(dim=-1) @ value
    return attn.linear("proj", mixed.transpose(1, 2).reshape(batch, length, width))


def _mix_ffn(mlp: _Scope, x: Tensor, grid: torch.Size) -> Tensor:
    hidden = _image(mlp.linear("fc1", x), grid)
    hidden = mlp.convolution("dwconv.dwconv", hidden, padding=1, groups=hidden.shape[1])
    return mlp.linear("fc2", F.gelu(_tokens(hidden)))


def _head(head: _Scope, maps: list[Tensor]) -> Tensor:
    grid = maps[0].shape[2:]
    projected = []
    for s, feature in reversed(list(enumerate(maps, start=1))):
        image = _image(head.linear(f"linear_c{s}.proj", _tokens(feature)), feature.shape[2:])
        projected.append(F.interpolate(image, size=grid, mode="bilinear", align_corners=False))
    fused = F.conv2d(torch.cat(projected, dim=1), head["linear_fuse.conv.weight"])
    bn = head.within("linear_fuse.bn")
    fused = F.batch_norm(
        fused, bn["running_mean"], bn["running_var"], bn["weight"], bn["bias"], eps=DEFAULT_EPS
    )
    return head.convolution("linear_pred", fused.relu())


def _tokens(image: Tensor) -> Tensor:
    """(batch, channels, height, width) -> (batch, height * width, channels)."""
    return image.flatten(2).transpose(1, 2)


def _image(tokens: Tensor, grid: torch.Size) -> Tensor:
    """(batch, height * width, channels) -> (batch, channels, height, width)."""
    return tokens.transpose(1, 2).unflatten(2, grid)
