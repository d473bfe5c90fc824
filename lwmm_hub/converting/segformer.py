"""SegFormer in transformers: its configuration from shapes, and every key it has.

Source of the published sizes: Xie et al., SegFormer (2021), table 6; the numbers of heads and the
strides are the same in all of them, and no shape shows them.
"""

from __future__ import annotations

from lwmm_hub.converting.drafting import (
    GIVEN,
    ConfigDraft,
    Described,
    Origin,
    Shapes,
    batch_norm,
    numbered,
    shape_of,
    with_leaves,
)
from lwmm_hub.errors import CheckpointError

# (widths, depths) -> name
PUBLISHED: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {
    ((32, 64, 160, 256), (2, 2, 2, 2)): "MiT-B0",
    ((64, 128, 320, 512), (2, 2, 2, 2)): "MiT-B1",
    ((64, 128, 320, 512), (3, 4, 6, 3)): "MiT-B2",
    ((64, 128, 320, 512), (3, 4, 18, 3)): "MiT-B3",
    ((64, 128, 320, 512), (3, 8, 27, 3)): "MiT-B4",
    ((64, 128, 320, 512), (3, 6, 40, 3)): "MiT-B5",
}
HEADS, STRIDES = (1, 2, 5, 8), (4, 2, 2, 2)
PATCHES, REDUCTIONS, MLP_RATIO = (7, 3, 3, 3), (8, 4, 2, 1), 4


def describe_backbone(shapes: Shapes, draft: ConfigDraft, _: Origin) -> Described:
    """`SegformerModel`: keys under `encoder.`."""
    return Described(_backbone(shapes, draft, "encoder."))


def describe_segmenter(shapes: Shapes, draft: ConfigDraft, _: Origin) -> Described:
    """`SegformerForSemanticSegmentation`: `segformer.encoder.` and `decode_head.`."""
    expected = _backbone(shapes, draft, "segformer.encoder.")
    widths = draft.values["hidden_sizes"]
    width = shape_of(shapes, "decode_head.linear_c.0.proj.weight", 2, draft.label)[0]
    classes = shape_of(shapes, "decode_head.classifier.weight", 4, draft.label)[0]
    draft.derived("decoder_hidden_size", width)
    for i, columns in enumerate(widths):
        expected |= with_leaves(f"decode_head.linear_c.{i}.proj", (width, columns))
    expected["decode_head.linear_fuse.weight"] = (width, len(widths) * width, 1, 1)
    expected |= batch_norm("decode_head.batch_norm", width)
    expected |= with_leaves("decode_head.classifier", (classes, width, 1, 1))
    return Described(expected, _name_labels(draft, classes))


def _name_labels(draft: ConfigDraft, classes: int) -> tuple[str, ...]:
    """`id2label` as given, else transformers' own stand-ins, which is said."""
    given = draft.given.get("id2label")
    if given is not None:
        named = {str(i): label for i, label in given.items()} if isinstance(given, dict) else {}
        if len(named) != classes or not all(str(i) in named for i in range(classes)):
            raise CheckpointError(
                f"{draft.label} has {classes} classes, and the config's id2label does not name the "
                f"numbers 0 to {classes - 1}. Mend the config."
            )
        draft.values["id2label"] = {str(i): str(named[str(i)]) for i in range(classes)}
        draft.values["label2id"] = {label: int(i) for i, label in draft.values["id2label"].items()}
        draft.sources |= dict.fromkeys(("id2label", "label2id"), GIVEN)
        return ()
    labels = {str(i): f"LABEL_{i}" for i in range(classes)}
    draft.values["id2label"] = labels
    draft.values["label2id"] = {label: int(i) for i, label in labels.items()}
    draft.sources |= dict.fromkeys(("id2label", "label2id"), "stand-ins")
    return (
        f"the names of its {classes} classes are not in the weights: they are called LABEL_0 to "
        f"LABEL_{classes - 1}. Give an id2label with --config FILE.",
    )


def _backbone(shapes: Shapes, draft: ConfigDraft, prefix: str) -> dict[str, tuple[int, ...]]:
    label = draft.label
    stages = numbered(shapes, f"{prefix}patch_embeddings.")
    embeddings = [
        shape_of(shapes, f"{prefix}patch_embeddings.{s}.proj.weight", 4, label)
        for s in range(stages)
    ]
    widths = [shape[0] for shape in embeddings]
    depths = [numbered(shapes, f"{prefix}block.{s}.") for s in range(stages)]
    reductions, ratios = [], []
    for s, width in enumerate(widths):
        block = f"{prefix}block.{s}.0"
        hidden = shape_of(shapes, f"{block}.mlp.dense1.weight", 2, label)[0]
        reducing = f"{block}.attention.self.sr.weight" in shapes
        reductions.append(
            shape_of(shapes, f"{block}.attention.self.sr.weight", 4, label)[2] if reducing else 1
        )
        ratios.append(hidden // width if hidden % width == 0 else hidden / width)
    draft.derived("num_channels", embeddings[0][1])
    draft.derived("num_encoder_blocks", stages)
    draft.derived("depths", depths)
    draft.derived("hidden_sizes", widths)
    draft.derived("patch_sizes", [shape[2] for shape in embeddings])
    draft.derived("sr_ratios", reductions)
    draft.derived("mlp_ratios", ratios)
    size = PUBLISHED.get((tuple(widths), tuple(depths)))
    usual = (tuple(draft.values["patch_sizes"]), tuple(reductions)) == (PATCHES, REDUCTIONS)
    source = f"published {size}" if size and usual and set(ratios) == {MLP_RATIO} else None
    draft.known(source, num_attention_heads=HEADS, strides=STRIDES)
    draft.numbers("strides", stages)
    for width, heads in zip(widths, draft.numbers("num_attention_heads", stages), strict=True):
        if width % heads:
            raise CheckpointError(
                f"{label}: {width} channels cannot be shared by {heads} heads. Mend "
                "num_attention_heads in the config."
            )
    expected: dict[str, tuple[int, ...]] = {}
    before = embeddings[0][1]
    for s, (width, depth, ratio) in enumerate(zip(widths, depths, ratios, strict=True)):
        patch = embeddings[s][2]
        expected |= with_leaves(f"{prefix}patch_embeddings.{s}.proj", (width, before, patch, patch))
        expected |= with_leaves(f"{prefix}patch_embeddings.{s}.layer_norm", (width,))
        for b in range(depth):
            expected |= _block(f"{prefix}block.{s}.{b}", width, reductions[s], round(ratio * width))
        expected |= with_leaves(f"{prefix}layer_norm.{s}", (width,))
        before = width
    return expected


def _block(name: str, width: int, reduction: int, hidden: int) -> dict[str, tuple[int, ...]]:
    attention = f"{name}.attention.self"
    tensors = with_leaves(f"{name}.layer_norm_1", (width,))
    for part in ("query", "key", "value"):
        tensors |= with_leaves(f"{attention}.{part}", (width, width))
    if reduction > 1:
        tensors |= with_leaves(f"{attention}.sr", (width, width, reduction, reduction))
        tensors |= with_leaves(f"{attention}.layer_norm", (width,))
    tensors |= with_leaves(f"{name}.attention.output.dense", (width, width))
    tensors |= with_leaves(f"{name}.layer_norm_2", (width,))
    tensors |= with_leaves(f"{name}.mlp.dense1", (hidden, width))
    tensors |= with_leaves(f"{name}.mlp.dwconv.dwconv", (hidden, 1, 3, 3))
    return tensors | with_leaves(f"{name}.mlp.dense2", (width, hidden))
