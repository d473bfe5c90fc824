"""The residual network (ResNet): of any depth, with basic or bottleneck blocks, plain or deep stem.

Spellings: torchvision and timm (and what wraps them: FADA, segmentation-models-pytorch, DETR, GLC,
mmseg), networks with their stem in a Sequential (`layer0`, as in semseg), AdvEnt and its kin,
maskrcnn-benchmark (MIC detection), detectron2, transformers. Frozen and live batch norm have the
same names but for the counters, which are the anchor's in any case.

Two conventions share all names and shapes. In torchvision's, the stride of a bottleneck is in its
second convolution, and images are RGB, scaled and standardised; in Caffe's it is in the first, and
images are BGR minus a mean. Weights of one are not weights of the other. A third, ResNet-D, is
torchvision's with shortcuts that pool before they convolve.

The order is that of the last use in transformers' forward pass: the shortcut runs after the block.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, KeyRule, Repeat, Table, rules

TORCHVISION = "stride in the second convolution of a bottleneck, standardised RGB images"
POOLED = f"{TORCHVISION}, shortcuts that pool before they convolve"
CAFFE = "stride in the first convolution of a bottleneck, BGR images minus a mean"

# The last stage tells a ResNet from the networks that only begin like one (HRNet, ...).
_SIGNATURE = "layer4.0.conv2.weight"


def _rules(
    before: str, downsample: int = 0, stem: tuple[str, str] = ("conv1", "bn1")
) -> tuple[KeyRule, ...]:
    """Names as in torchvision, `before` those of the stem; `downsample` is its convolution."""
    return rules(
        (f"{before}{stem[0]}.*", "stem.conv.*"),
        (f"{before}{stem[1]}.*", "stem.bn.*"),
        ("layer{s+1}.{b}.conv1.*", "stages.{s}.blocks.{b}.conv1.*"),
        ("layer{s+1}.{b}.bn1.*", "stages.{s}.blocks.{b}.bn1.*"),
        ("layer{s+1}.{b}.conv2.*", "stages.{s}.blocks.{b}.conv2.*"),
        ("layer{s+1}.{b}.bn2.*", "stages.{s}.blocks.{b}.bn2.*"),
        ("layer{s+1}.{b}.conv3.*", "stages.{s}.blocks.{b}.conv3.*"),
        ("layer{s+1}.{b}.bn3.*", "stages.{s}.blocks.{b}.bn3.*"),
        (f"layer{{s+1}}.{{b}}.downsample.{downsample}.*", "stages.{s}.blocks.{b}.shortcut.conv.*"),
        (
            f"layer{{s+1}}.{{b}}.downsample.{downsample + 1}.*",
            "stages.{s}.blocks.{b}.shortcut.bn.*",
        ),
    )


_PLAIN = _rules("")
_DETECTRON2 = rules(
    ("stem.conv1.norm.*", "stem.bn.*"),
    ("stem.conv1.*", "stem.conv.*"),
    *(
        rule
        for i in (1, 2, 3)
        for rule in (
            (f"res{{s+2}}.{{b}}.conv{i}.norm.*", f"stages.{{s}}.blocks.{{b}}.bn{i}.*"),
            (f"res{{s+2}}.{{b}}.conv{i}.*", f"stages.{{s}}.blocks.{{b}}.conv{i}.*"),
        )
    ),
    ("res{s+2}.{b}.shortcut.norm.*", "stages.{s}.blocks.{b}.shortcut.bn.*"),
    ("res{s+2}.{b}.shortcut.*", "stages.{s}.blocks.{b}.shortcut.conv.*"),
)
_LAYER = "encoder.stages.{s}.layers.{b}."

RESNET = Table(
    name="resnet",
    backbone=True,
    dialects=(
        Dialect(
            "AdvEnt, AdaptSegNet or MaxSquare",
            prefixes=("",),
            signature=_SIGNATURE,
            rules=_PLAIN,
            needs=("layer6.conv2d_list.0.weight",),
            convention=CAFFE,
        ),
        Dialect(
            "DeepLabV2 of one level, Caffe",  # AdvEnt and AdaptSegNet without auxiliary head
            prefixes=("", "Scale."),  # the latter in the file that AdaptSegNet starts from
            signature=_SIGNATURE,
            rules=_PLAIN,
            beside=("layer5.conv2d_list.0.weight",),
            convention=CAFFE,
        ),
        Dialect(
            "maskrcnn-benchmark",
            prefixes=("backbone.body.",),
            signature=_SIGNATURE,
            rules=_rules("stem."),
            needs=("backbone.body.stem.conv1.weight",),
            convention=CAFFE,
        ),
        Dialect(
            "FADA",
            prefixes=("feature_extractor/backbone.",),
            signature=_SIGNATURE,
            rules=_PLAIN,
            needs=("classifier/conv2d_list.0.weight",),
            convention=TORCHVISION,
        ),
        Dialect(
            "torchvision",
            prefixes=("", "backbone.", "encoder.", "backbone_layer.", "F/"),
            signature=_SIGNATURE,
            rules=_PLAIN,
            convention=TORCHVISION,
        ),
        Dialect(
            "Mask2Former or MaskFormer of detectron2",
            prefixes=("backbone.",),
            signature="res5.0.conv2.weight",
            rules=_DETECTRON2,
            needs=("sem_seg_head.predictor.query_embed.weight",),
            convention=TORCHVISION,
        ),
        Dialect(
            "detectron2",
            prefixes=("backbone.bottom_up.", "backbone."),
            signature="res5.0.conv2.weight",
            rules=_DETECTRON2,
            convention=CAFFE,
        ),
        Dialect(
            "detectron2 (start of a training)",  # of its zoo, of both conventions
            prefixes=("",),
            signature="res5.0.conv2.weight",
            rules=_DETECTRON2,
        ),
        Dialect(
            "stem in a Sequential",
            prefixes=("", "backbone.", "encoder."),
            signature=_SIGNATURE,
            rules=_rules("layer0.", stem=("0", "1")),
            beside=("layer0.1.running_mean",),
            convention=TORCHVISION,
        ),
        Dialect(
            "ResNet-D",
            prefixes=("", "backbone.", "encoder."),
            signature="layer4.0.downsample.2.weight",
            rules=_rules("", downsample=1),
            convention=POOLED,
        ),
        Dialect(
            "transformers",
            prefixes=("resnet.", ""),
            signature="encoder.stages.3.layers.0.layer.0.convolution.weight",
            without=(
                "encoder.stages.0.layers.0.layer.2.attention.0.weight",  # RegNet
                "embedder.embedder.0.convolution.weight",  # RT-DETR's, which pools in shortcuts
            ),
            rules=rules(
                ("embedder.embedder.convolution.*", "stem.conv.*"),
                ("embedder.embedder.normalization.*", "stem.bn.*"),
                (f"{_LAYER}layer.0.convolution.*", "stages.{s}.blocks.{b}.conv1.*"),
                (f"{_LAYER}layer.0.normalization.*", "stages.{s}.blocks.{b}.bn1.*"),
                (f"{_LAYER}layer.1.convolution.*", "stages.{s}.blocks.{b}.conv2.*"),
                (f"{_LAYER}layer.1.normalization.*", "stages.{s}.blocks.{b}.bn2.*"),
                (f"{_LAYER}layer.2.convolution.*", "stages.{s}.blocks.{b}.conv3.*"),
                (f"{_LAYER}layer.2.normalization.*", "stages.{s}.blocks.{b}.bn3.*"),
                (f"{_LAYER}shortcut.convolution.*", "stages.{s}.blocks.{b}.shortcut.conv.*"),
                (f"{_LAYER}shortcut.normalization.*", "stages.{s}.blocks.{b}.shortcut.bn.*"),
            ),
            convention=TORCHVISION,
        ),
    ),
    order=(
        "stem.conv",
        "stem.bn",
        Repeat(
            "stages.{}",
            (
                Repeat(
                    "blocks.{}",
                    (
                        "conv1",
                        "bn1",
                        "conv2",
                        "bn2",
                        "conv3",
                        "bn3",
                        "shortcut.conv",
                        "shortcut.bn",
                    ),
                ),
            ),
        ),
    ),
)

_DEEP = tuple(f"deep_stem.{kind}{number}" for number in (1, 2, 3) for kind in ("conv", "bn"))


def _deep(*modules: str) -> tuple[KeyRule, ...]:
    """The names of a stem of three convolutions, each before its norm."""
    return rules(*((f"{a}.*", f"{b}.*") for a, b in zip(modules, _DEEP, strict=True)))


RESNET_STEM = Table(
    name="resnet_stem",
    backbone=True,
    dialects=(
        Dialect(
            "mmseg",
            prefixes=("backbone.", ""),
            signature="stem.7.running_mean",
            rules=_deep("stem.0", "stem.1", "stem.3", "stem.4", "stem.6", "stem.7"),
        ),
        Dialect(
            "semseg",
            prefixes=("", "backbone.", "encoder."),
            signature="layer0.7.running_mean",
            rules=_deep("layer0.0", "layer0.1", "layer0.3", "layer0.4", "layer0.6", "layer0.7"),
        ),
        Dialect(
            "three convolutions side by side",  # CSAIL's, CCNet's
            prefixes=("", "backbone.", "encoder."),
            signature="bn3.running_mean",
            rules=_deep("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
            beside=("conv3.weight", "layer1.0.conv1.weight"),
        ),
        Dialect(
            "timm",
            prefixes=("", "backbone.", "encoder."),
            signature="conv1.4.running_mean",
            rules=_deep("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1"),
        ),
    ),
    order=_DEEP,
)
