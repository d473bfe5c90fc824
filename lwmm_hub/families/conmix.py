"""The networks of GLC and CoNMix: a backbone, a bottleneck, a classifier under weight norm.

CoNMix keeps them in three files, `F`, `B` and `C`; its default backbone is TransUNet's hybrid of a
ResNet (with group norm) and a ViT-B/16. Its DeiT and ResNet-50 are in their families' tables.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules

R50_VIT = Table(
    name="r50_vit",
    backbone=True,
    dialects=(
        Dialect(
            "CoNMix",
            prefixes=("F/feature_extractor.",),
            signature="transformer.embeddings.hybrid_model.root.conv.weight",
            needs=("F/feature_extractor.decoder.fc.weight",),
            dead={
                "decoder.blocks.{i}.conv1.{b}.*": "never used by CoNMix's network",
                "decoder.blocks.{i}.conv2.{b}.*": "never used by CoNMix's network",
            },
        ),
        Dialect(
            "TransUNet",
            prefixes=("",),
            signature="transformer.embeddings.hybrid_model.root.conv.weight",
        ),
    ),
    order=(
        "transformer.embeddings.hybrid_model.root.conv",
        "transformer.embeddings.hybrid_model.root.gn",
        Repeat(
            "transformer.embeddings.hybrid_model.body.block{}",
            (
                Repeat(
                    "unit{}",
                    (
                        "downsample",
                        "gn_proj",
                        "conv1",
                        "gn1",
                        "conv2",
                        "gn2",
                        "conv3",
                        "gn3",
                    ),
                ),
            ),
        ),
        "transformer.embeddings.patch_embeddings",
        "transformer.embeddings",  # TransUNet's positions
        Repeat(
            "transformer.encoder.layer.{}",
            (
                "attention_norm",
                "attn.query",
                "attn.key",
                "attn.value",
                "attn.out",
                "ffn_norm",
                "ffn.fc1",
                "ffn.fc2",
            ),
        ),
        "transformer.encoder.encoder_norm",
        "decoder.fc",
    ),
)

BOTTLENECK_CLASSIFIER = Table(
    name="bottleneck_classifier",
    backbone=False,
    classifier="head.classifier.weight_v",
    dialects=(
        Dialect(
            "GLC",
            prefixes=("",),
            signature="feat_embed_layer.bottleneck.weight",
            rules=rules(
                ("feat_embed_layer.bottleneck.*", "head.bottleneck.*"),
                ("feat_embed_layer.bn.*", "head.bn.*"),
                ("class_layer.fc.*", "head.classifier.*"),
            ),
        ),
        Dialect(
            "CoNMix",
            prefixes=("",),
            signature="B/bottleneck.weight",
            rules=rules(
                ("B/bottleneck.*", "head.bottleneck.*"),
                ("B/bn.*", "head.bn.*"),
                ("C/fc.*", "head.classifier.*"),
            ),
        ),
    ),
    order=("head.bottleneck", "head.bn", "head.classifier"),
)
