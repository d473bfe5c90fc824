"""Every table against the transformers classes it stands for: all keys named, in traced order.

The order of a table is that of the last use in the forward pass. Where two classes of one family
run their modules in unlike orders, the table follows one of them and `DIFFERENCES` names the other.
"""

from __future__ import annotations

import functools
import json
import re

import pytest
import test_tracing
from on_meta import build_on_meta
from test_tracing import (
    BEIT,
    CONVNEXT,
    DETR,
    DINOV2,
    MOBILEVIT,
    ONEFORMER,
    STAGES,
    SWIN,
    VIT,
    ZOO,
    Config,
    in_upernet,
    on,
    spellings,
)

from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.families import TABLES
from lwmm_hub.key_map import NamedKeys, name_keys
from lwmm_hub.tracing import TracedArchitecture, trace_architecture

DINOV3: Config = {**VIT, "model_type": "dinov3_vit", "intermediate_size": 32}
EOMT: Config = {**VIT, "num_queries": 7, "num_blocks": 2, "num_upscale_blocks": 1}
MOBILEVITV2: Config = {"model_type": "mobilevitv2", "width_multiplier": 0.25, "image_size": 64}
SWINV2: Config = {**SWIN, "model_type": "swinv2"}
UNET = {key: value for key, value in BEIT.items() if key != "out_indices"}
MODELS: dict[str, Config] = {
    **{name: config for name, (config, _, _) in ZOO.items()},
    "UperNetForSemanticSegmentation: BEiT": in_upernet(
        {**UNET, "model_type": "beit", "reshape_hidden_states": True}, 16
    ),
    "UperNetForSemanticSegmentation: DINOv2": in_upernet(DINOV2, 16),
    "UperNetForSemanticSegmentation: Swin V2": in_upernet(SWINV2, 48),
    "SwinModel": SWIN,
    "SwinBackbone": {**SWIN, "out_features": STAGES},
    "SwinBackbone: first stages": {**SWIN, "out_features": STAGES[:2]},
    "Swinv2ForImageClassification": SWINV2,
    "MaskFormerSwinModel": {**SWIN, "model_type": "maskformer-swin"},
    "ConvNextForImageClassification": CONVNEXT,
    "ConvNextV2ForImageClassification": {**CONVNEXT, "model_type": "convnextv2"},
    "ViTModel": {**VIT, "model_type": "vit"},
    "DeiTForImageClassificationWithTeacher": {**VIT, "model_type": "deit"},
    "BeitModel": {**UNET, "model_type": "beit", "use_shared_relative_position_bias": True},
    "Data2VecVisionForImageClassification": {**BEIT, "model_type": "data2vec-vision"},
    "Data2VecVisionModel": {
        **UNET,
        "model_type": "data2vec-vision",
        "use_shared_relative_position_bias": True,
    },
    "Dinov2WithRegistersForImageClassification": {**DINOV2, "model_type": "dinov2_with_registers"},
    "Dinov2ForImageClassification: giant": {**DINOV2, "use_swiglu_ffn": True},
    "Dinov2Backbone": {**DINOV2, "out_features": STAGES},
    "EomtForUniversalSegmentation: giant": {**EOMT, "model_type": "eomt", "use_swiglu_ffn": True},
    "DINOv3ViTModel": DINOV3,
    "DINOv3ViTModel: gated": {**DINOV3, "use_gated_mlp": True},
    "DINOv3ViTBackbone": {**DINOV3, "out_features": STAGES},
    "EomtDinov3ForUniversalSegmentation": {
        **EOMT,
        "model_type": "eomt_dinov3",
        "intermediate_size": 32,
    },
    "MobileNetV2ForImageClassification": ZOO["MobileNetV2ForSemanticSegmentation"][0],
    "MobileViTForImageClassification": MOBILEVIT,
    "MobileViTV2ForImageClassification": MOBILEVITV2,
    "MobileViTV2ForSemanticSegmentation": MOBILEVITV2,
    "DetrForObjectDetection": {"model_type": "detr", **DETR},
}

# tables of other tests, and what no table needs to know
RESNET = "embedder.embedder"
ALONE = ("classifier.", "cls_classifier.", "distillation_classifier.")
CONSTANTS = ("criterion.empty_weight", "attn_mask_probs")

# class[: variant] -> layers (a part of their name) that a table places otherwise than the class
DIFFERENCES: dict[str, tuple[str, ...]] = {
    # the table follows BEiT, which adds its positions before the block's norm
    "Data2VecVisionForSemanticSegmentation": ("attn.relative_position_bias",),
    "Data2VecVisionForImageClassification": ("attn.relative_position_bias",),
    "Data2VecVisionModel": ("attn.relative_position_bias",),
    # the table follows ViT, whose query comes first
    "DPTForSemanticSegmentation": (".attn.q", "fusion.0."),
    "DPTForDepthEstimation: hybrid": (".attn.q", "fusion.0."),
    # the first fusion layer has a branch that never runs
    "DPTForDepthEstimation: DINOv2": ("fusion.0.",),
    # queries enter between two blocks of the backbone
    "EomtForUniversalSegmentation": ("query",),
    "EomtForUniversalSegmentation: giant": ("query",),
    "EomtDinov3ForUniversalSegmentation": ("query",),
    # what it shares with Mask2Former is a table of its own, before OneFormer's
    "OneFormerForUniversalSegmentation": ("task_mlp", "criterion"),
    # it reads the table of all blocks once, at the start; Data2Vec does in every block
    "BeitModel": ("relative_position_bias.",),
}


def entries(keys: list[str]) -> dict[str, TensorEntry]:
    """Tensors whose first axis can be split into two and three."""
    return {key: TensorEntry(key, "F32", (6, 2), "file", i) for i, key in enumerate(keys)}


@functools.cache
def traced(name: str) -> tuple[tuple[list[str], TracedArchitecture], ...]:
    """Keys as transformers writes them and as it keeps them, each with what tracing gives."""
    if name in ZOO:
        old, new, architecture = test_tracing.traced_zoo(name)
    else:
        config = config_of(name)
        old, new = spellings(config)
        architecture = trace_architecture(config, old)
    if old == new:
        return ((old, architecture),)
    return ((old, architecture), (new, trace_architecture(config_of(name), new)))


def config_of(name: str) -> Config:
    config = {**MODELS[name], "architectures": [name.partition(":")[0]]}
    return dict(json.loads(json.dumps(config)))


def layers(named: NamedKeys) -> list[tuple[str, str]]:
    """(layer, one of its keys) in the order of the tables."""
    modules: dict[str, set[str]] = {}
    for name, table in named.tables.items():
        modules.setdefault(table.name, set()).add(name.rpartition(".")[0])
    ranks = {table.name: table.ranks(modules.get(table.name, ())) for table in named.found}
    found: dict[str, tuple[tuple[object, ...], str]] = {}
    for name, source in named.sources.items():
        if name in named.tables:
            table = named.tables[name]
            layer = name.rpartition(".")[0]
            rank = (not table.backbone, TABLES.index(table), *ranks[table.name].get(layer, ()))
            found.setdefault(layer, (rank, source.key))
    return [(layer, key) for layer, (_, key) in sorted(found.items(), key=lambda item: item[1][0])]


@pytest.mark.parametrize("name", MODELS)
def test_tables_name_every_key_in_the_order_of_the_forward_pass(name: str) -> None:
    for keys, architecture in traced(name):
        named = name_keys(entries(keys))
        known = {source.key for name, source in named.sources.items() if name in named.tables}
        left = set(keys) - known - set(named.dead)
        tabled = [key for key in left if RESNET not in key and "encoder.stages" not in key]
        assert [key for key in tabled if not key.startswith((*ALONE, *CONSTANTS))] == []
        assert set(named.dead) == unused_norm(name, keys)

        backbones = [table for table in named.found if table.backbone]
        assert len(backbones) == (0 if any(RESNET in key for key in left) else 1)
        if name in ZOO and backbones:
            mine = {named.tables.get(n) in backbones for n, s in named.sources.items()
                    if s.key in architecture.backbone}  # fmt: skip
            assert mine == {True}

        ours = [(layer, architecture.ranks[key]) for layer, key in layers(named)]
        other = DIFFERENCES.get(name, ())
        ranks = [rank for layer, rank in ours if not any(part in f"{layer}." for part in other)]
        assert ranks == sorted(ranks)
        if other:
            every = [rank for _, rank in ours]
            assert every != sorted(every), "no difference any more"


def unused_norm(name: str, keys: list[str]) -> set[str]:
    """The final norm of a Swin that is a backbone: run, and never looked at."""
    if name.startswith("Swin") and "Backbone" not in name:
        return set()
    ends = ("swin.layernorm", "encoder.model.layernorm")
    return {key for key in keys if key.rpartition(".")[0].endswith(ends)}


def test_every_backbone_and_head_is_met_by_a_model() -> None:
    met = {
        (table.name, named.dialects[table.name])
        for name in MODELS
        for keys, _ in traced(name)
        for named in [name_keys(entries(keys))]
        for table in named.found
    }
    transformers = {
        (table.name, dialect.name)
        for table in TABLES
        for dialect in table.dialects
        if dialect.name.startswith(("transformers", "EoMT"))
    }
    assert transformers - met == {("dinov2", "EoMT, giant on disk")}  # written by transformers 4


@pytest.mark.parametrize("name", ["UperNetForSemanticSegmentation: Swin", "Dinov2Model"])
def test_both_spellings_have_the_same_layers(name: str) -> None:
    (old, _), (new, _) = traced(name)
    mine, theirs = name_keys(entries(old)), name_keys(entries(new))
    assert [layer for layer, _ in layers(mine)] == [layer for layer, _ in layers(theirs)]


def test_the_text_mapper_of_oneformers_training_is_a_part_of_its_head() -> None:
    training = {"is_training": True, "text_encoder_width": 128}
    config = {**ONEFORMER, **on(SWIN), **training}
    keys, _ = spellings({**config, "architectures": ["OneFormerForUniversalSegmentation"]})
    named = name_keys(entries(keys))
    assert any("text_mapper" in key for key in keys)
    assert set(named.sources) == set(named.tables)


# ------------------------------------------------- spellings of others than transformers, by hand


def leaves(*modules: str) -> list[str]:
    return [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]


def blocks_of_timm(prefix: str) -> list[str]:
    modules = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return leaves(*(f"{prefix}.{module}" for module in modules))


def swin_of_others(first_downsample: int) -> list[str]:
    """Microsoft's Swin merges patches behind a stage, timm's before the next."""
    keys = leaves("patch_embed.proj", "patch_embed.norm", "norm")
    for stage, depth in enumerate(SWIN["depths"]):
        for block in range(depth):
            keys += blocks_of_timm(f"layers.{stage}.blocks.{block}")
            keys.append(f"layers.{stage}.blocks.{block}.attn.relative_position_bias_table")
        if stage < 3:
            downsample = f"layers.{stage + first_downsample}.downsample"
            keys += [*leaves(f"{downsample}.norm"), f"{downsample}.reduction.weight"]
    return keys


def convnext_of_authors() -> list[str]:
    keys = leaves("norm")
    for stage in range(4):
        keys += leaves(f"downsample_layers.{stage}.0", f"downsample_layers.{stage}.1")
        block = f"stages.{stage}.0"
        keys += leaves(*(f"{block}.{m}" for m in ("dwconv", "norm", "pwconv1", "pwconv2")))
        keys.append(f"{block}.gamma")
    return keys


def convnext_of_timm() -> list[str]:
    keys = leaves("stem.0", "stem.1", "head.norm")
    for stage in range(4):
        if stage:
            keys += leaves(f"stages.{stage}.downsample.0", f"stages.{stage}.downsample.1")
        block = f"stages.{stage}.blocks.0"
        keys += leaves(*(f"{block}.{m}" for m in ("conv_dw", "norm", "mlp.fc1", "mlp.fc2")))
        keys.append(f"{block}.gamma")
    return keys


def vit_of_timm(*tokens: str) -> list[str]:
    keys = ["cls_token", "pos_embed", *tokens, *leaves("patch_embed.proj", "norm")]
    return keys + [key for block in range(4) for key in blocks_of_timm(f"blocks.{block}")]


def beit_of_authors() -> list[str]:
    keys = ["cls_token", *leaves("patch_embed.proj", "fc_norm")]
    for block in range(4):
        names = [*blocks_of_timm("")]
        names.remove(".attn.qkv.bias")
        own = [".gamma_1", ".gamma_2", ".attn.q_bias", ".attn.v_bias"]
        own.append(".attn.relative_position_bias_table")
        keys += [f"blocks.{block}{name}" for name in [*names, *own]]
    return keys


def dinov2_of_authors(gated: bool) -> list[str]:
    keys = vit_of_timm("mask_token")
    for block in range(4):
        keys += [f"blocks.{block}.ls1.gamma", f"blocks.{block}.ls2.gamma"]
    if gated:
        keys = [key.replace("fc1", "w12").replace("fc2", "w3") for key in keys]
    return keys


def features_alone(keys: list[str]) -> list[str]:
    """As `timm.create_model(..., features_only=True)` registers a network, stages side by side."""
    return [re.sub(r"^(layers|stages|stem)\.(\d)", r"\1_\2", key) for key in keys]


OTHERS: dict[str, tuple[list[str], str, str]] = {
    "Swin, Microsoft": (swin_of_others(0), "swin", "SwinModel"),
    "Swin, timm": (swin_of_others(1), "swin", "SwinModel"),
    "ConvNeXt, authors": (convnext_of_authors(), "convnext", "ConvNextForImageClassification"),
    "ConvNeXt, timm": (convnext_of_timm(), "convnext", "ConvNextForImageClassification"),
    "Swin, timm's features": (features_alone(swin_of_others(1)), "swin", "SwinModel"),
    "ConvNeXt, timm's features": (
        features_alone(convnext_of_timm()),
        "convnext",
        "ConvNextForImageClassification",
    ),
    "ViT, timm": (vit_of_timm(), "vit", "ViTForImageClassification"),
    "DeiT, timm": (vit_of_timm("dist_token"), "vit", "DeiTForImageClassificationWithTeacher"),
    "BEiT, authors": (beit_of_authors(), "vit", "BeitForImageClassification"),
    "DINOv2, authors": (dinov2_of_authors(False), "dinov2", "Dinov2ForImageClassification"),
    "DINOv2, giant": (dinov2_of_authors(True), "dinov2", "Dinov2ForImageClassification: giant"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("prefix", ["", "backbone.", "encoder.model.", "net.student."])
def test_other_systems_name_the_same_parameters(name: str, prefix: str) -> None:
    keys, family, model = OTHERS[name]
    (theirs, _), *_ = traced(model)
    ours = name_keys(entries([prefix + key for key in keys]))
    expected = name_keys(entries(theirs))

    def names(named: NamedKeys) -> set[str]:
        found = {n for n, table in named.tables.items() if table.name == family}
        return found - {"embeddings.mask_token"}  # of the pre-training, not in every file

    assert set(ours.sources) == set(ours.tables)
    assert names(ours) == names(expected)
    fused = [(n, s.part) for n, s in ours.sources.items() if s.parts == 3 and ".0." in n]
    assert [part for n, part in fused if ".attn.q." in n] == [0] * (len(fused) // 3)
    assert [part for n, part in fused if ".attn.k." in n] == [1] * (len(fused) // 3)
    assert [part for n, part in fused if ".attn.v." in n] == [2] * (len(fused) // 3)


# ------------------------------------------------------------------- foreigners with known names

FOREIGN = {
    "PvtModel": {"model_type": "pvt", "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
                 "num_attention_heads": [1, 1, 1, 1], "image_size": 32},
    "RTDetrResNetBackbone": {"model_type": "rt_detr_resnet", "embedding_size": 8,
                             "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "RegNetModel": {"model_type": "regnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16],
                    "depths": [1, 1, 1, 1], "groups_width": 4},
    "SamVisionModel": {"model_type": "sam_vision_model", "hidden_size": 16, "mlp_dim": 32,
                       "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
                       "global_attn_indexes": [1], "window_size": 2, "output_channels": 8},
    "CLIPVisionModel": {"model_type": "clip_vision_model", "hidden_size": 16,
                        "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "HieraModel": {"model_type": "hiera", "embed_dim": 8, "image_size": [32, 32],
                   "depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1},
    "DINOv3ConvNextModel": {"model_type": "dinov3_convnext", "hidden_sizes": [8, 8, 16, 16],
                            "depths": [1, 1, 1, 1]},
}  # fmt: skip


@pytest.mark.parametrize("wrapper", ["", "encoder.", "net."])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_network_with_some_of_a_tables_names_is_not_taken_for_it(
    name: str, wrapper: str
) -> None:
    model = build_on_meta({"architectures": [name], **FOREIGN[name]})
    keys = [wrapper + key for key in model.state_dict()]
    assert name_keys(entries(keys)).found == ()


@pytest.mark.parametrize(
    ("like", "own"),
    [
        (dinov2_of_authors(False), "storage_tokens"),  # DINOv3's authors
        (beit_of_authors(), "reg_token"),  # DINOv3 in timm
        (beit_of_authors(), "blocks.0.attn.proj_l.weight"),  # CaiT
    ],
)
def test_later_networks_in_the_words_of_earlier_ones_are_none_of_them(
    like: list[str], own: str
) -> None:
    assert len(name_keys(entries(like)).found) == 1
    assert name_keys(entries([*like, own])).found == ()
