"""ResNet in transformers: its configuration from shapes, and every key it has.

Shapes do not show where a block strides nor whether the first stage does: the published sizes
(He et al., 2015, table 1) stride in the 3x3 convolution as torchvision has it, but for the models
that come from Caffe, which do so in the first 1x1.
"""

from __future__ import annotations

from lwmm_hub.converting.drafting import (
    ConfigDraft,
    Described,
    Origin,
    Shapes,
    batch_norm,
    numbered,
    shape_of,
)
from lwmm_hub.families.resnet import CAFFE

# (kind of block, depths) -> name
PUBLISHED: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "ResNet-18",
    ("basic", (3, 4, 6, 3)): "ResNet-34",
    ("bottleneck", (3, 4, 6, 3)): "ResNet-50",
    ("bottleneck", (3, 4, 23, 3)): "ResNet-101",
    ("bottleneck", (3, 8, 36, 3)): "ResNet-152",
}
WIDTHS = {"basic": (64, 128, 256, 512), "bottleneck": (256, 512, 1024, 2048)}
STEM = 64
EXPANSION = 4
CAFFE_NOTE = (
    "it is of the Caffe lineage: inputs are BGR minus a mean in 0 to 255, and its first pooling "
    "rounds up, which ResNetModel does not"
)
# in a key -> the system does not stride in its last stages but dilates
DILATED_MARKS = ("conv2d_list.", "classifier.0.convs.", "aux_classifier.", "decoder.aspp.")
DILATED_NOTE = (
    "its system dilates the last two stages and ResNetModel strides there: features are smaller, "
    "and other numbers"
)


def describe(shapes: Shapes, draft: ConfigDraft, origin: Origin) -> Described:
    """`ResNetModel`.

    Args:
        shapes: transformers' key -> shape.
        draft: where the configuration is written.
        origin: whether it is of a system whose blocks stride in their first convolution, or of one
            that dilates.
    """
    label = draft.label
    system, convention = origin.conventions.get("resnet", ("", ""))
    caffe = system if convention == CAFFE else ""
    stem = shape_of(shapes, "embedder.embedder.convolution.weight", 4, label)
    first = "encoder.stages.0.layers.0.layer"
    kind = "bottleneck" if f"{first}.2.convolution.weight" in shapes else "basic"
    last = 2 if kind == "bottleneck" else 1
    stages = numbered(shapes, "encoder.stages.")
    depths = [numbered(shapes, f"encoder.stages.{s}.layers.") for s in range(stages)]
    widths = [
        shape_of(shapes, f"encoder.stages.{s}.layers.0.layer.{last}.convolution.weight", 4, label)[
            0
        ]
        for s in range(stages)
    ]
    draft.derived("num_channels", stem[1])
    draft.derived("embedding_size", stem[0])
    draft.derived("hidden_sizes", widths)
    draft.derived("depths", depths)
    draft.derived("layer_type", kind)
    size = PUBLISHED.get((kind, tuple(depths)))
    usual = stem[0] == STEM and tuple(widths) == WIDTHS[kind]
    source = f"published {size}" if size and usual else None
    if caffe:
        draft.known(source, downsample_in_first_stage=False)
        draft.known(caffe, downsample_in_bottleneck=True)
    else:
        draft.known(source, downsample_in_first_stage=False, downsample_in_bottleneck=False)
    strided = draft.values["downsample_in_first_stage"] is True
    expected: dict[str, tuple[int, ...]] = {}
    expected |= {"embedder.embedder.convolution.weight": (stem[0], stem[1], 7, 7)}
    expected |= batch_norm("embedder.embedder.normalization", stem[0])
    before = stem[0]
    for s, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for b in range(depth):
            layer = f"encoder.stages.{s}.layers.{b}"
            if b == 0 and (before != width or s > 0 or strided):
                expected |= _convolution(f"{layer}.shortcut", width, before, 1)
            for i, (rows, columns, kernel) in enumerate(_convolutions(kind, width, before)):
                expected |= _convolution(f"{layer}.layer.{i}", rows, columns, kernel)
            before = width
    dilated = any(mark in key for key in origin.keys for mark in DILATED_MARKS)
    told = ((CAFFE_NOTE, bool(caffe)), (DILATED_NOTE, dilated))
    return Described(expected, tuple(note for note, holds in told if holds))


def _convolutions(kind: str, width: int, before: int) -> tuple[tuple[int, int, int], ...]:
    """(rows, columns, kernel) of the convolutions of a block."""
    if kind == "basic":
        return ((width, before, 3), (width, width, 3))
    inner = width // EXPANSION
    return ((inner, before, 1), (inner, inner, 3), (width, inner, 1))


def _convolution(name: str, rows: int, columns: int, kernel: int) -> dict[str, tuple[int, ...]]:
    weight = {f"{name}.convolution.weight": (rows, columns, kernel, kernel)}
    return weight | batch_norm(f"{name}.normalization", rows)
