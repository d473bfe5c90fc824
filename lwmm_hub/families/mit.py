"""The Mix Transformer (MiT), backbone of SegFormer and GLPN, and SegFormer's all-MLP head.

Spellings: transformers on disk, transformers 5 in memory (`save_original_format=False`), NVlabs and
everything built on mmseg (DAFormer, HRDA, MIC, EDAPS, ...), segmentation-models-pytorch.
The order is that of the last use in transformers' forward pass.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, Repeat, Table, rules

_MMSEG_BACKBONE = rules(
    ("patch_embed{s+1}.proj.*", "stages.{s}.patch_embed.proj.*"),
    ("patch_embed{s+1}.norm.*", "stages.{s}.patch_embed.norm.*"),
    ("block{s+1}.{b}.norm1.*", "stages.{s}.blocks.{b}.norm1.*"),
    ("block{s+1}.{b}.attn.q.*", "stages.{s}.blocks.{b}.attn.q.*"),
    (
        "block{s+1}.{b}.attn.kv.*",
        "stages.{s}.blocks.{b}.attn.k.*",
        "stages.{s}.blocks.{b}.attn.v.*",
    ),
    ("block{s+1}.{b}.attn.sr.*", "stages.{s}.blocks.{b}.attn.sr.*"),
    ("block{s+1}.{b}.attn.norm.*", "stages.{s}.blocks.{b}.attn.sr_norm.*"),
    ("block{s+1}.{b}.attn.proj.*", "stages.{s}.blocks.{b}.attn.proj.*"),
    ("block{s+1}.{b}.norm2.*", "stages.{s}.blocks.{b}.norm2.*"),
    ("block{s+1}.{b}.mlp.fc1.*", "stages.{s}.blocks.{b}.mlp.fc1.*"),
    ("block{s+1}.{b}.mlp.dwconv.dwconv.*", "stages.{s}.blocks.{b}.mlp.dwconv.*"),
    ("block{s+1}.{b}.mlp.fc2.*", "stages.{s}.blocks.{b}.mlp.fc2.*"),
    ("norm{s+1}.*", "stages.{s}.norm.*"),
)

MIT = Table(
    name="mit",
    backbone=True,
    dialects=(
        Dialect(
            "transformers",
            prefixes=("segformer.encoder.", "glpn.encoder.", "encoder."),
            signature="patch_embeddings.0.layer_norm.weight",
            beside=("patch_embeddings.0.proj.weight",),  # PVT has `projection`
            rules=rules(
                ("patch_embeddings.{s}.proj.*", "stages.{s}.patch_embed.proj.*"),
                ("patch_embeddings.{s}.layer_norm.*", "stages.{s}.patch_embed.norm.*"),
                ("block.{s}.{b}.layer_norm_1.*", "stages.{s}.blocks.{b}.norm1.*"),
                ("block.{s}.{b}.attention.self.query.*", "stages.{s}.blocks.{b}.attn.q.*"),
                ("block.{s}.{b}.attention.self.key.*", "stages.{s}.blocks.{b}.attn.k.*"),
                ("block.{s}.{b}.attention.self.value.*", "stages.{s}.blocks.{b}.attn.v.*"),
                ("block.{s}.{b}.attention.self.sr.*", "stages.{s}.blocks.{b}.attn.sr.*"),
                (
                    "block.{s}.{b}.attention.self.layer_norm.*",
                    "stages.{s}.blocks.{b}.attn.sr_norm.*",
                ),
                ("block.{s}.{b}.attention.output.dense.*", "stages.{s}.blocks.{b}.attn.proj.*"),
                ("block.{s}.{b}.layer_norm_2.*", "stages.{s}.blocks.{b}.norm2.*"),
                ("block.{s}.{b}.mlp.dense1.*", "stages.{s}.blocks.{b}.mlp.fc1.*"),
                ("block.{s}.{b}.mlp.dwconv.dwconv.*", "stages.{s}.blocks.{b}.mlp.dwconv.*"),
                ("block.{s}.{b}.mlp.dense2.*", "stages.{s}.blocks.{b}.mlp.fc2.*"),
                ("layer_norm.{s}.*", "stages.{s}.norm.*"),
            ),
        ),
        Dialect(
            "transformers, new names",
            prefixes=("segformer.", ""),
            signature="stages.0.patch_embeddings.layer_norm.weight",
            rules=rules(
                ("stages.{s}.patch_embeddings.proj.*", "stages.{s}.patch_embed.proj.*"),
                ("stages.{s}.patch_embeddings.layer_norm.*", "stages.{s}.patch_embed.norm.*"),
                ("stages.{s}.blocks.{b}.layernorm_before.*", "stages.{s}.blocks.{b}.norm1.*"),
                ("stages.{s}.blocks.{b}.attention.q_proj.*", "stages.{s}.blocks.{b}.attn.q.*"),
                ("stages.{s}.blocks.{b}.attention.k_proj.*", "stages.{s}.blocks.{b}.attn.k.*"),
                ("stages.{s}.blocks.{b}.attention.v_proj.*", "stages.{s}.blocks.{b}.attn.v.*"),
                (
                    "stages.{s}.blocks.{b}.attention.sequence_reduction.sequence_reduction.*",
                    "stages.{s}.blocks.{b}.attn.sr.*",
                ),
                (
                    "stages.{s}.blocks.{b}.attention.sequence_reduction.layer_norm.*",
                    "stages.{s}.blocks.{b}.attn.sr_norm.*",
                ),
                ("stages.{s}.blocks.{b}.attention.o_proj.*", "stages.{s}.blocks.{b}.attn.proj.*"),
                ("stages.{s}.blocks.{b}.layernorm_after.*", "stages.{s}.blocks.{b}.norm2.*"),
                ("stages.{s}.blocks.{b}.mlp.fc1.*", "stages.{s}.blocks.{b}.mlp.fc1.*"),
                ("stages.{s}.blocks.{b}.mlp.dwconv.dwconv.*", "stages.{s}.blocks.{b}.mlp.dwconv.*"),
                ("stages.{s}.blocks.{b}.mlp.fc2.*", "stages.{s}.blocks.{b}.mlp.fc2.*"),
                ("stages.{s}.layer_norm.*", "stages.{s}.norm.*"),
            ),
        ),
        Dialect(
            "mmseg",
            prefixes=("backbone.", ""),
            signature="patch_embed1.norm.weight",
            rules=_MMSEG_BACKBONE,
        ),
        Dialect(
            "segmentation-models-pytorch",
            prefixes=("encoder.", "model.encoder."),
            signature="patch_embed1.norm.weight",
            rules=_MMSEG_BACKBONE,
        ),
    ),
    order=(
        Repeat(
            "stages.{}",
            (
                "patch_embed.proj",
                "patch_embed.norm",
                Repeat(
                    "blocks.{}",
                    (
                        "norm1",
                        "attn.q",
                        "attn.sr",
                        "attn.sr_norm",
                        "attn.k",
                        "attn.v",
                        "attn.proj",
                        "norm2",
                        "mlp.fc1",
                        "mlp.dwconv",
                        "mlp.fc2",
                    ),
                ),
                "norm",
            ),
        ),
    ),
)

SEGFORMER_HEAD = Table(
    name="segformer",
    backbone=False,
    classifier="head.classifier.weight",
    dialects=(
        Dialect(
            "transformers",
            prefixes=("decode_head.",),
            signature="linear_c.0.proj.weight",
            rules=rules(
                ("linear_c.{i}.proj.*", "head.projections.{i}.*"),
                ("linear_fuse.*", "head.fuse.*"),
                ("batch_norm.*", "head.fuse_norm.*"),
                ("classifier.*", "head.classifier.*"),
            ),
        ),
        Dialect(
            "transformers, new names",
            prefixes=("decode_head.",),
            signature="linear_projections.0.proj.weight",
            rules=rules(
                ("linear_projections.{i}.proj.*", "head.projections.{i}.*"),
                ("linear_fuse.*", "head.fuse.*"),
                ("batch_norm.*", "head.fuse_norm.*"),
                ("classifier.*", "head.classifier.*"),
            ),
        ),
        Dialect(
            "mmseg",
            prefixes=("decode_head.",),
            signature="linear_c1.proj.weight",
            rules=rules(
                ("linear_c{i+1}.proj.*", "head.projections.{i}.*"),
                ("linear_fuse.conv.*", "head.fuse.*"),
                ("linear_fuse.bn.*", "head.fuse_norm.*"),
                ("linear_pred.*", "head.classifier.*"),
            ),
            dead={"conv_seg.*": "never used by the network (mmseg leaves it untrained)"},
        ),
        Dialect(
            "segmentation-models-pytorch",
            prefixes=("", "model."),
            signature="decoder.mlp_stage.0.linear.weight",
            rules=rules(
                ("decoder.mlp_stage.{3-i}.linear.*", "head.projections.{i}.*"),
                ("decoder.fuse_stage.0.*", "head.fuse.*"),
                ("decoder.fuse_stage.1.*", "head.fuse_norm.*"),
                ("segmentation_head.0.*", "head.classifier.*"),
            ),
        ),
    ),
    order=(Repeat("head.projections.{}", ("",)), "head.fuse", "head.fuse_norm", "head.classifier"),
)
