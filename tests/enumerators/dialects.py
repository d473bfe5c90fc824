"""How each system names the parameters of a SegFormer, in the order of its files.

Each `<system>(size)` is a list of entries; an entry says which neutral parameters it holds
(several when the system fuses them, stacked by rows; none when the neutral model lacks it).
`spell_<system>(values, size)` writes neutral values down in that system's names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from .neutral import Shape, Values, neutral_shapes, random_value
from .size import SegformerSize

STAGES = (1, 2, 3, 4)
CONV_SEG_WIDTH = 128  # mmseg's `channels`, 128 in every SegFormer config of NVlabs


class Entry(NamedTuple):
    """One tensor of a file; `parts` are the neutral names it holds, stacked by rows."""

    key: str
    shape: Shape
    dtype: str
    parts: tuple[str, ...] = ()


Named = Iterator[tuple[str, tuple[str, ...]]]  # key, neutral parts


def _both(key: str, *parts: str) -> Named:
    """Weight and bias of a module."""
    for leaf in ("weight", "bias"):
        yield f"{key}.{leaf}", tuple(f"{part}.{leaf}" for part in parts)


def _batch_norm(key: str, part: str) -> Named:
    yield from _both(key, part)
    yield f"{key}.running_mean", (f"{part}.mean",)
    yield f"{key}.running_var", (f"{part}.variance",)
    yield f"{key}.num_batches_tracked", (f"{part}.counter",)


def _entries(named: Named, size: SegformerSize) -> list[Entry]:
    """Shapes and dtypes from the neutral parts; fused rows add up."""
    shapes = neutral_shapes(size)
    entries = []
    for key, parts in named:
        first, *others = (shapes[part] for part in parts)
        rows = (sum(shape[0] for shape in (first, *others)), *first[1:]) if first else ()
        entries.append(Entry(key, rows, "F32" if first else "I64", parts))
    return entries


# NVlabs and everything built on its MiT (mmseg, DAFormer, smp) -----------------------------------


def _mit(size: SegformerSize, prefix: str) -> Named:
    for s in STAGES:
        yield from _both(f"{prefix}patch_embed{s}.proj", f"stage{s}.embed")
        yield from _both(f"{prefix}patch_embed{s}.norm", f"stage{s}.embed_norm")
    for s, depth, reduction in zip(STAGES, size.depths, size.sr_ratios, strict=True):
        for b in range(depth):
            key, part = f"{prefix}block{s}.{b}", f"stage{s}.block{b}"
            yield from _both(f"{key}.norm1", f"{part}.norm_attention")
            yield from _both(f"{key}.attn.q", f"{part}.query")
            yield from _both(f"{key}.attn.kv", f"{part}.key", f"{part}.value")
            yield from _both(f"{key}.attn.proj", f"{part}.output")
            if reduction > 1:
                yield from _both(f"{key}.attn.sr", f"{part}.reduce")
                yield from _both(f"{key}.attn.norm", f"{part}.reduce_norm")
            yield from _both(f"{key}.norm2", f"{part}.norm_mlp")
            yield from _both(f"{key}.mlp.fc1", f"{part}.mlp_in")
            yield from _both(f"{key}.mlp.dwconv.dwconv", f"{part}.mlp_conv")
            yield from _both(f"{key}.mlp.fc2", f"{part}.mlp_out")
        yield from _both(f"{prefix}norm{s}", f"stage{s}.norm")


def mit_nvlabs(size: SegformerSize, prefix: str = "") -> list[Entry]:
    """The backbone alone, as in NVlabs' `mit_b0.pth`."""
    return _entries(_mit(size, prefix), size)


def segformer_nvlabs(size: SegformerSize) -> list[Entry]:
    """NVlabs' SegFormer in mmseg; `conv_seg` is built by the base class and never run."""

    def live_head() -> Named:
        for s in reversed(STAGES):
            yield from _both(f"decode_head.linear_c{s}.proj", f"head.project{s}")
        yield "decode_head.linear_fuse.conv.weight", ("head.fuse.weight",)
        yield from _batch_norm("decode_head.linear_fuse.bn", "head.norm")
        yield from _both("decode_head.linear_pred", "head.classifier")

    classes = size.num_classes
    return [
        *_entries(_mit(size, "backbone."), size),
        Entry("decode_head.conv_seg.weight", (classes, CONV_SEG_WIDTH, 1, 1), "F32"),
        Entry("decode_head.conv_seg.bias", (classes,), "F32"),
        *_entries(live_head(), size),
    ]


def segformer_smp(size: SegformerSize) -> list[Entry]:
    """segmentation-models-pytorch; `mlp_stage.0` reads the deepest stage."""

    def named() -> Named:
        yield from _mit(size, "encoder.")
        for i, s in enumerate(reversed(STAGES)):
            yield from _both(f"decoder.mlp_stage.{i}.linear", f"head.project{s}")
        yield "decoder.fuse_stage.0.weight", ("head.fuse.weight",)
        yield from _batch_norm("decoder.fuse_stage.1", "head.norm")
        yield from _both("segmentation_head.0", "head.classifier")

    return _entries(named(), size)


# transformers ------------------------------------------------------------------------------------


def _old_embed(prefix: str, s: int) -> Named:
    yield from _both(f"{prefix}patch_embeddings.{s - 1}.proj", f"stage{s}.embed")
    yield from _both(f"{prefix}patch_embeddings.{s - 1}.layer_norm", f"stage{s}.embed_norm")


def _old_blocks(size: SegformerSize, prefix: str, s: int, output_last: bool) -> Named:
    for b in range(size.depths[s - 1]):
        key, part = f"{prefix}block.{s - 1}.{b}", f"stage{s}.block{b}"
        yield from _both(f"{key}.layer_norm_1", f"{part}.norm_attention")
        for name in ("query", "key", "value"):
            yield from _both(f"{key}.attention.self.{name}", f"{part}.{name}")
        if not output_last:
            yield from _both(f"{key}.attention.output.dense", f"{part}.output")
        if size.sr_ratios[s - 1] > 1:
            yield from _both(f"{key}.attention.self.sr", f"{part}.reduce")
            yield from _both(f"{key}.attention.self.layer_norm", f"{part}.reduce_norm")
        if output_last:
            yield from _both(f"{key}.attention.output.dense", f"{part}.output")
        yield from _both(f"{key}.layer_norm_2", f"{part}.norm_mlp")
        yield from _both(f"{key}.mlp.dense1", f"{part}.mlp_in")
        yield from _both(f"{key}.mlp.dwconv.dwconv", f"{part}.mlp_conv")
        yield from _both(f"{key}.mlp.dense2", f"{part}.mlp_out")


def _old_norm(prefix: str, s: int) -> Named:
    yield from _both(f"{prefix}layer_norm.{s - 1}", f"stage{s}.norm")


def _old_encoder(size: SegformerSize, prefix: str) -> Named:
    """Old names in the order of transformers 5's modules: one stage after the other."""
    for s in STAGES:
        yield from _old_embed(prefix, s)
        yield from _old_blocks(size, prefix, s, output_last=False)
        yield from _old_norm(prefix, s)


def _old_encoder_by_kind(size: SegformerSize, prefix: str) -> Named:
    """Old names in the order of the 4.x (and GLPN) modules: embeddings, blocks, norms."""
    for s in STAGES:
        yield from _old_embed(prefix, s)
    for s in STAGES:
        yield from _old_blocks(size, prefix, s, output_last=True)
    for s in STAGES:
        yield from _old_norm(prefix, s)


def _new_encoder(size: SegformerSize, prefix: str) -> Named:
    for s, depth, reduction in zip(STAGES, size.depths, size.sr_ratios, strict=True):
        stage = f"{prefix}stages.{s - 1}"
        yield from _both(f"{stage}.patch_embeddings.proj", f"stage{s}.embed")
        yield from _both(f"{stage}.patch_embeddings.layer_norm", f"stage{s}.embed_norm")
        for b in range(depth):
            key, part = f"{stage}.blocks.{b}", f"stage{s}.block{b}"
            yield from _both(f"{key}.layernorm_before", f"{part}.norm_attention")
            yield from _both(f"{key}.attention.q_proj", f"{part}.query")
            yield from _both(f"{key}.attention.k_proj", f"{part}.key")
            yield from _both(f"{key}.attention.v_proj", f"{part}.value")
            yield from _both(f"{key}.attention.o_proj", f"{part}.output")
            if reduction > 1:
                reducer = f"{key}.attention.sequence_reduction"
                yield from _both(f"{reducer}.sequence_reduction", f"{part}.reduce")
                yield from _both(f"{reducer}.layer_norm", f"{part}.reduce_norm")
            yield from _both(f"{key}.layernorm_after", f"{part}.norm_mlp")
            yield from _both(f"{key}.mlp.fc1", f"{part}.mlp_in")
            yield from _both(f"{key}.mlp.dwconv.dwconv", f"{part}.mlp_conv")
            yield from _both(f"{key}.mlp.fc2", f"{part}.mlp_out")
        yield from _both(f"{stage}.layer_norm", f"stage{s}.norm")


def _transformers_head(projections: str) -> Named:
    for s in STAGES:
        yield from _both(f"decode_head.{projections}.{s - 1}.proj", f"head.project{s}")
    yield "decode_head.linear_fuse.weight", ("head.fuse.weight",)
    yield from _batch_norm("decode_head.batch_norm", "head.norm")
    yield from _both("decode_head.classifier", "head.classifier")


def segformer_transformers_old(size: SegformerSize) -> list[Entry]:
    """The names on disk, in the order transformers 5 holds and hands them to safetensors."""
    encoder = _old_encoder(size, "segformer.encoder.")
    return [*_entries(encoder, size), *_entries(_transformers_head("linear_c"), size)]


def segformer_transformers_4(size: SegformerSize) -> list[Entry]:
    """The same names in the order of a `pytorch_model.bin` written by transformers 4."""
    encoder = _old_encoder_by_kind(size, "segformer.encoder.")
    return [*_entries(encoder, size), *_entries(_transformers_head("linear_c"), size)]


def segformer_transformers_new(size: SegformerSize) -> list[Entry]:
    """The names in memory of transformers 5."""
    encoder = _new_encoder(size, "segformer.")
    return [*_entries(encoder, size), *_entries(_transformers_head("linear_projections"), size)]


def segformer_model_only(size: SegformerSize) -> list[Entry]:
    """`SegformerModel` of transformers 5, in memory: the backbone without prefix."""
    return _entries(_new_encoder(size, ""), size)


def segformer_model_only_old(size: SegformerSize) -> list[Entry]:
    """`SegformerModel` on disk."""
    return _entries(_old_encoder(size, "encoder."), size)


def glpn(size: SegformerSize) -> list[Entry]:
    """`GLPNForDepthEstimation`: SegFormer's backbone in old names under a depth decoder."""

    def layer(key: str, *weight: int) -> Iterator[Entry]:
        yield Entry(f"{key}.weight", weight, "F32")
        yield Entry(f"{key}.bias", weight[:1], "F32")

    def convolution_and_norm(key: str, rows: int, columns: int) -> Iterator[Entry]:
        yield from layer(f"{key}.0", rows, columns, 3, 3)
        yield from layer(f"{key}.1", rows)
        yield Entry(f"{key}.1.running_mean", (rows,), "F32")
        yield Entry(f"{key}.1.running_var", (rows,), "F32")
        yield Entry(f"{key}.1.num_batches_tracked", (), "I64")

    def decoder(width: int) -> Iterator[Entry]:
        for i, stage_width in enumerate(reversed(size.widths)):
            stage = f"decoder.stages.{i}"
            if stage_width != width:
                yield from layer(f"{stage}.convolution", width, stage_width, 1, 1)
            if i > 0:
                fusion = f"{stage}.fusion.convolutional_layer"
                yield from convolution_and_norm(f"{fusion}1", width, 2 * width)
                yield from convolution_and_norm(f"{fusion}2", width // 2, width)
                yield from layer(f"{fusion}3", 2, width // 2, 3, 3)
        yield from layer("head.head.0", width, width, 3, 3)
        yield from layer("head.head.2", 1, width, 3, 3)

    encoder = _entries(_old_encoder_by_kind(size, "glpn.encoder."), size)
    return [*encoder, *decoder(size.decoder_width)]


# values ------------------------------------------------------------------------------------------


def fill(entries: Iterable[Entry], seed: int) -> Values:
    """Random values for the entries, in their order; they depend on key and seed alone."""
    return {e.key: random_value(e.key, e.shape, e.dtype, seed) for e in entries}


def spell(entries: Iterable[Entry], values: Mapping[str, np.ndarray], seed: int = 0) -> Values:
    """Neutral values in the names of the entries; what the neutral model lacks is random."""
    spelled = {}
    for entry in entries:
        parts = [values[part] for part in entry.parts]
        if not parts:
            value = random_value(entry.key, entry.shape, entry.dtype, seed)
        else:
            value = np.concatenate(parts) if len(parts) > 1 else parts[0].copy()
        assert value.shape == entry.shape, (entry, value.shape)
        spelled[entry.key] = value
    return spelled


def _with_the_classes_of(values: Mapping[str, np.ndarray], size: SegformerSize) -> SegformerSize:
    return size.with_classes(len(values["head.classifier.bias"]))


def spell_mit_nvlabs(
    values: Mapping[str, np.ndarray], size: SegformerSize, prefix: str = ""
) -> Values:
    return spell(mit_nvlabs(size, prefix), values)


def spell_nvlabs(values: Mapping[str, np.ndarray], size: SegformerSize, seed: int = 0) -> Values:
    """The seed is for the dead `conv_seg`."""
    return spell(segformer_nvlabs(_with_the_classes_of(values, size)), values, seed)


def spell_smp(values: Mapping[str, np.ndarray], size: SegformerSize) -> Values:
    return spell(segformer_smp(_with_the_classes_of(values, size)), values)


def spell_transformers_old(values: Mapping[str, np.ndarray], size: SegformerSize) -> Values:
    return spell(segformer_transformers_old(_with_the_classes_of(values, size)), values)


def spell_transformers_4(values: Mapping[str, np.ndarray], size: SegformerSize) -> Values:
    return spell(segformer_transformers_4(_with_the_classes_of(values, size)), values)


def spell_transformers_new(values: Mapping[str, np.ndarray], size: SegformerSize) -> Values:
    return spell(segformer_transformers_new(_with_the_classes_of(values, size)), values)


def spell_model_only(values: Mapping[str, np.ndarray], size: SegformerSize) -> Values:
    return spell(segformer_model_only(size), values)


def spell_model_only_old(values: Mapping[str, np.ndarray], size: SegformerSize) -> Values:
    return spell(segformer_model_only_old(size), values)


def spell_glpn(values: Mapping[str, np.ndarray], size: SegformerSize, seed: int = 0) -> Values:
    """The seed is for the depth decoder, which SegFormer does not have."""
    return spell(glpn(size), values, seed)
