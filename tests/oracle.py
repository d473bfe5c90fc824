"""A second opinion on the numbers of a merge, written from the method and without `lwmm_hub`.

It works on neutral SegFormers (`enumerators.neutral`): the depth order, the layer weights and the
weighted sums, all in float64. `unspell` takes a file back to neutral names, so that the same oracle
judges every spelling.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from enumerators import TINY, Entry, SegformerSize, ancestor, finetuned, with_classes
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

Values = dict[str, np.ndarray]
Rows = list[tuple[float, ...]]

# transformers' forward pass of one block; METHOD.md: the reduced sequence is made before k and v
BLOCK = [
    "norm_attention",
    "query",
    "reduce",
    "reduce_norm",
    "key",
    "value",
    "output",
    "norm_mlp",
    "mlp_in",
    "mlp_conv",
    "mlp_out",
]
CANONICAL = {
    "embed": "patch_embed.proj",
    "embed_norm": "patch_embed.norm",
    "norm": "norm",
    "norm_attention": "norm1",
    "query": "attn.q",
    "reduce": "attn.sr",
    "reduce_norm": "attn.sr_norm",
    "key": "attn.k",
    "value": "attn.v",
    "output": "attn.proj",
    "norm_mlp": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_conv": "mlp.dwconv",
    "mlp_out": "mlp.fc2",
    "fuse": "head.fuse",
    "head norm": "head.fuse_norm",
    "classifier": "head.classifier",
}


def depth_order(size: SegformerSize) -> list[str]:
    """Neutral modules in the order of the forward pass."""
    modules = []
    for s, (depth, reduction) in enumerate(zip(size.depths, size.sr_ratios, strict=True), start=1):
        modules += [f"stage{s}.embed", f"stage{s}.embed_norm"]
        for b in range(depth):
            modules += [
                f"stage{s}.block{b}.{name}"
                for name in BLOCK
                if reduction > 1 or not name.startswith("reduce")
            ]
        modules.append(f"stage{s}.norm")
    projections = [f"head.project{s}" for s in (1, 2, 3, 4)]
    return [*modules, *projections, "head.fuse", "head.norm", "head.classifier"]


def module(name: str) -> str:
    return name.rpartition(".")[0]


def in_backbone(name: str) -> bool:
    return name.startswith("stage")


def canonical(neutral_module: str) -> str:
    """What `lwmm_hub` calls a neutral module."""
    if found := re.fullmatch(r"head\.project(\d)", neutral_module):
        return f"head.projections.{int(found[1]) - 1}"
    if neutral_module == "head.norm":
        return CANONICAL["head norm"]
    stage, *block, name = neutral_module.split(".")
    if stage == "head":
        return CANONICAL[name]
    place = f"stages.{int(stage.removeprefix('stage')) - 1}"
    place += "".join(f".blocks.{b.removeprefix('block')}" for b in block)
    return f"{place}.{CANONICAL[name]}"


# ----------------------------------------------------------------------------------- the formulas


def linear_ramp(layers: int, models: int) -> Rows:
    """H_i(j) = (1 - j / (N - 1)) / M for donors, the rest for the anchor."""
    rows = []
    for j in range(layers):
        donor = (1 - j / (layers - 1)) / models
        rows.append((1 - donor * (models - 1), *[donor] * (models - 1)))
    return rows


def merge_by_hand(
    models: Sequence[Mapping[str, np.ndarray]],
    size: SegformerSize,
    rows: Callable[[int, int], Rows] = linear_ramp,
    shared: Callable[[str], bool] = lambda name: True,
) -> Values:
    """The merged neutral model in float64: sum_i H_i(j) theta_i where shared, else the anchor's.

    A donor that lacks a parameter, or has it in another shape, has weight 0 there and the others
    are renormalised.
    """
    anchor = models[0]
    present = {
        name: [name in m and m[name].shape == value.shape for m in models]
        for name, value in anchor.items()
        if value.dtype.kind != "i" and shared(name)
    }
    present = {name: there for name, there in present.items() if any(there[1:])}
    layers = [m for m in depth_order(size) if any(module(name) == m for name in present)]
    weights = dict(zip(layers, rows(len(layers), len(models)), strict=True))
    merged = dict(anchor)
    for name, there in present.items():
        row = [w if ok else 0.0 for w, ok in zip(weights[module(name)], there, strict=True)]
        merged[name] = sum(
            w / sum(row) * m[name].astype(np.float64) for w, m in zip(row, models, strict=True) if w
        )
    return merged


# ----------------------------------------------------------------------------------- files


def unspell(entries: Iterable[Entry], tensors: Mapping[str, np.ndarray]) -> Values:
    """The neutral values in a file: what `spell` wrote, taken back."""
    values = {}
    for entry in entries:
        if entry.parts:
            pieces = np.split(tensors[entry.key], len(entry.parts)) if entry.shape else None
            for i, part in enumerate(entry.parts):
                values[part] = pieces[i] if pieces else tensors[entry.key]
    return values


def read(folder: Path) -> Values:
    """All tensors of a folder, shards together."""
    tensors: Values = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def stored(path: Path) -> dict[str, str]:
    """Key -> dtype, in the library's own words."""
    with safe_open(path, "numpy") as file:
        return {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118


def save(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A safetensors file without a config."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: np.require(value, requirements="C") for key, value in tensors.items()}, path)
    return path


def bits(value: np.ndarray) -> bytes:
    """The bytes of a tensor: equal bits, not only equal numbers."""
    return np.require(value, requirements="C").tobytes()


def same_bits(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and bits(one[k]) == bits(other[k]) for k in one
    )


def assert_within_rounding(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], scale: float = 4
) -> None:
    """Every tensor equals the float64 values to a few units in the last place of its dtype.

    The unit is that of the largest number in the tensor, since differences of the parents are
    rounded at their own size.
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.dtype.kind == "i":
            assert np.array_equal(found[name], value), name
            continue
        unit = np.finfo(np.float32).eps * scale * max(float(np.abs(value).max()), 1e-30)
        np.testing.assert_allclose(
            found[name].astype(np.float64), value, rtol=0, atol=unit, err_msg=name
        )


# ----------------------------------------------------------------------------------- families


def relatives(
    count: int, size: SegformerSize = TINY, classes: Sequence[int] | None = None, seed: int = 0
) -> list[Values]:
    """Neutral models of one ancestor: independent noise of 0.3 std each, own classifiers."""
    origin = ancestor(size, seed)
    models = [finetuned(origin, seed + 1 + i) for i in range(count)]
    if classes is not None:
        models = [
            with_classes(m, n, seed + 100 + i) if n != size.num_classes else m
            for i, (m, n) in enumerate(zip(models, classes, strict=True))
        ]
    return models


def stranger(size: SegformerSize = TINY, seed: int = 77) -> Values:
    """A model of another start."""
    return ancestor(size, seed)
