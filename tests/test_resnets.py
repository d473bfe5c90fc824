"""ResNets in every spelling: one set of names, one depth order, and what is no ResNet."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import ResNetConfig, ResNetForImageClassification

from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.key_map import KeyMap, match_keys, name_keys, natural_order
from lwmm_hub.tracing import trace_architecture

SHARED = Path(__file__).parents[2] / "shared"
Keys = dict[str, tuple[int, ...]]


def config(layer_type: str = "bottleneck") -> ResNetConfig:
    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 16, 24, 32],
        depths=[2, 1, 11, 1],
        layer_type=layer_type,
        architectures=["ResNetForImageClassification"],
    )


def transformers_keys(layer_type: str = "bottleneck") -> Keys:
    state = ResNetForImageClassification(config(layer_type)).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def torchvision_keys(layer_type: str = "bottleneck") -> Keys:
    """The keys of transformers as torchvision would write them, by KEYS.md, section 2."""
    renamed: Keys = {}
    for key, shape in transformers_keys(layer_type).items():
        module, _, leaf = key.removeprefix("resnet.").rpartition(".")
        if module == "classifier.1":
            renamed[f"fc.{leaf}"] = shape
            continue
        what = "conv" if module.endswith("convolution") else "bn"
        if module.startswith("embedder"):
            renamed[f"{what}1.{leaf}"] = shape
            continue
        numbers = [int(number) for number in re.findall(r"\d+", module)]
        block = f"layer{numbers[0] + 1}.{numbers[1]}"
        if "shortcut" in module:
            renamed[f"{block}.downsample.{'01'[what == 'bn']}.{leaf}"] = shape
        else:
            renamed[f"{block}.{what}{numbers[2] + 1}.{leaf}"] = shape
    return renamed


def entries(keys: Keys) -> dict[str, TensorEntry]:
    return {
        key: TensorEntry(key, "F32" if shape else "I64", shape, "file", i)
        for i, (key, shape) in enumerate(keys.items())
    }


def under(prefix: str, keys: Keys) -> Keys:
    return {prefix + key: shape for key, shape in keys.items() if not key.startswith("fc.")}


def matched(anchor: Keys, donor: Keys) -> KeyMap:
    order = lambda: natural_order(list(anchor))  # noqa: E731
    return match_keys([entries(anchor), entries(donor)], ["anchor", "donor"], order)


def deeplab(classes: int = 19) -> Keys:
    """A tiny AdvEnt: backbone, auxiliary head and head."""
    keys = under("", torchvision_keys())
    for layer, width in ((5, 24), (6, 32)):
        for branch in range(4):
            keys[f"layer{layer}.conv2d_list.{branch}.weight"] = (classes, width, 3, 3)
            keys[f"layer{layer}.conv2d_list.{branch}.bias"] = (classes,)
    return keys


def fada(classes: int = 19) -> Keys:
    keys = under("feature_extractor/backbone.", torchvision_keys())
    for branch in range(4):
        keys[f"classifier/conv2d_list.{branch}.weight"] = (classes, 32, 3, 3)
        keys[f"classifier/conv2d_list.{branch}.bias"] = (classes,)
    return keys


def maskrcnn() -> Keys:
    stem = re.compile(r"^backbone\.body\.(?=conv1|bn1)")
    return {
        stem.sub("backbone.body.stem.", key): shape
        for key, shape in under("backbone.body.", torchvision_keys()).items()
        if not key.endswith("num_batches_tracked")
    }


def detectron2(prefix: str = "backbone.") -> Keys:
    """A ResNet as `build_resnet_backbone` of detectron2 names it: norms in their convolutions."""
    renamed: Keys = {}
    for key, shape in under("", torchvision_keys()).items():
        place, _, leaf = key.rpartition(".")
        place = re.sub(r"^(conv1|bn1)$", r"stem.\1", place)
        place = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", place)
        place = re.sub(r"\bbn(\d)", r"conv\1.norm", place)
        place = place.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        if leaf != "num_batches_tracked":  # frozen, or saved by a zoo
            renamed[f"{prefix}{place}.{leaf}"] = shape
    return renamed


def panoptic_fpn(classes: int = 8) -> Keys:
    """Detectron2's: its pyramid is registered before the backbone that it reads."""
    pyramid = {
        f"backbone.fpn_{kind}{level}.{leaf}": (8, width, 1, 1) if leaf == "weight" else (8,)
        for level, width in ((2, 16), (3, 16), (4, 24), (5, 32))
        for kind in ("lateral", "output")
        for leaf in ("weight", "bias")
    }
    head = {
        "sem_seg_head.p2.0.weight": (8, 8, 3, 3),
        "sem_seg_head.predictor.weight": (classes, 8, 1, 1),
        "sem_seg_head.predictor.bias": (classes,),
    }
    return pyramid | detectron2("backbone.bottom_up.") | head


def test_a_backbone_of_detectron2_merges_with_the_others_and_runs_before_its_pyramid() -> None:
    floats = {key for key, shape in detectron2().items() if shape}
    for prefix in ("", "backbone.", "backbone.bottom_up."):
        for donor in (transformers_keys(), torchvision_keys()):
            found = matched(detectron2(prefix), donor)
            assert {p.sources[0].key for p in found.shared} >= {  # type: ignore[union-attr]
                prefix + key.removeprefix("backbone.") for key in floats
            }
    found = matched(panoptic_fpn(8), panoptic_fpn(80))
    keys = [parameter.sources[0].key for parameter in found.shared]  # type: ignore[union-attr]
    last = max(i for i, key in enumerate(keys) if "bottom_up" in key)
    pyramid = [i for i, key in enumerate(keys) if "fpn_" in key]
    assert len(pyramid) == 16
    assert last < min(pyramid)
    assert keys[-1].startswith("sem_seg_head.p2")


def test_a_mask2former_of_detectron2_is_no_caffe_network_and_a_panoptic_fpn_is() -> None:
    query = {"sem_seg_head.predictor.query_embed.weight": (5, 8)}
    ours, theirs = detectron2() | query, transformers_keys()
    assert not [text for text in matched(ours, theirs).warnings if "stride" in text]
    assert [text for text in matched(panoptic_fpn(), theirs).warnings if "stride" in text]


@pytest.mark.parametrize("layer_type", ["bottleneck", "basic"])
def test_the_order_of_the_table_is_that_of_transformers_forward_pass(layer_type: str) -> None:
    keys = transformers_keys(layer_type)
    traced = trace_architecture(config(layer_type).to_dict(), list(keys)).ranks
    named = name_keys(entries(keys))
    (table,) = named.found
    tabled = [name for name in named.sources if name in named.tables]
    assert {named.sources[name].key for name in tabled} == {k for k in keys if "resnet." in k}
    by_trace = sorted(tabled, key=lambda name: traced[named.sources[name].key])
    places = [table.rank(name.rpartition(".")[0]) for name in by_trace]
    assert places == sorted(places)  # type: ignore[type-var]
    assert len(set(places)) == len({traced[named.sources[name].key] for name in tabled})


@pytest.mark.parametrize("layer_type", ["bottleneck", "basic"])
def test_every_wrapper_of_torchvision_is_the_same_backbone(layer_type: str) -> None:
    plain = torchvision_keys(layer_type)
    anchor = transformers_keys(layer_type)
    floats = [key for key, shape in anchor.items() if shape and "classifier" not in key]
    prefixes = ("", "backbone.", "encoder.", "backbone_layer.", "feature_extractor/backbone.",
                "model.backbone.conv_encoder.model.", "backbone.0.body.")  # fmt: skip
    layers = []
    for prefix in prefixes:
        found = matched(anchor, under(prefix, plain))
        assert {p.sources[0].key for p in found.shared if p.sources[0]} == set(floats)
        assert found.warnings == ()
        layers.append([p.layer for p in found.shared])
    assert all(order == layers[0] for order in layers)


@pytest.mark.parametrize("prefix", ["model.backbone.conv_encoder.model.", "backbone.", ""])
def test_transformers_resnet_is_found_in_other_models(prefix: str) -> None:
    wrapped = {
        prefix + key.removeprefix("resnet."): shape
        for key, shape in transformers_keys().items()
        if "resnet." in key and not key.endswith("num_batches_tracked")  # DETR freezes batch norm
    }
    found = matched(torchvision_keys(), wrapped)
    assert {p.sources[1].key for p in found.shared if p.sources[1]} == set(wrapped)


def test_frozen_and_live_batch_norm_match_in_all_but_the_counters() -> None:
    live = torchvision_keys()
    frozen = {key: shape for key, shape in live.items() if shape}
    for anchor, donor in ((live, frozen), (frozen, live)):
        found = matched(anchor, donor)
        assert {p.sources[0].key for p in found.shared if p.sources[0]} == set(frozen)
    assert set(matched(live, frozen).kept.values()) == {"int64 is never averaged"}


def test_conventions_of_bottlenecks_are_told_apart_by_the_file() -> None:
    assert matched(deeplab(), deeplab()).warnings == ()
    assert matched(maskrcnn(), deeplab()).warnings == ()
    assert matched(fada(), torchvision_keys()).warnings == ()
    for anchor, donor in ((deeplab(), fada()), (fada(), deeplab()), (maskrcnn(), fada())):
        (warning,) = matched(anchor, donor).warnings
        assert "stride in the first convolution" in warning
        assert "stride in the second convolution" in warning
    assert "FADA" in matched(deeplab(), fada()).warnings[0]
    assert "AdvEnt" in matched(deeplab(), fada()).warnings[0]


def test_deeplabs_of_one_level_and_the_file_they_start_from_are_caffe_networks() -> None:
    single = {key: shape for key, shape in deeplab().items() if "layer6" not in key}
    start = {f"Scale.{key}": shape for key, shape in single.items()}
    for anchor, donor in ((deeplab(), start), (single, deeplab()), (start, single)):
        found = matched(anchor, donor)
        assert found.warnings == ()
        assert sum(p.part == "backbone" for p in found.shared) == sum(
            bool(shape) for key, shape in deeplab().items() if "conv2d_list" not in key
        )
    assert len(matched(start, torchvision_keys()).warnings) == 1


def test_the_head_of_fada_is_that_of_advent_without_its_auxiliary() -> None:
    found = matched(deeplab(), fada())
    kept = {key for key, why in found.kept.items() if why == "absent in donor"}
    assert kept == {key for key in deeplab() if key.startswith("layer5")}
    assert [p.part for p in found.shared].count("head") == 8
    assert found.classifiers == (19, 19)
    assert found.shared[-1].layer == "head.branches.3"


def test_the_auxiliary_head_comes_before_the_head() -> None:
    layers = list(dict.fromkeys(p.layer for p in matched(deeplab(), deeplab()).shared))
    assert layers[-8:] == [f"{h}.branches.{i}" for h in ("auxiliary", "head") for i in range(4)]
    assert layers[0] == "stem.conv"
    assert layers.index("stages.2.blocks.9.conv1") < layers.index("stages.2.blocks.10.conv1")


def test_deep_stems_are_stems_and_no_resnet_lends_them_its_own() -> None:
    plain = torchvision_keys()
    body = {key: shape for key, shape in plain.items() if not key.startswith(("conv1.", "bn1."))}
    mmseg = under("backbone.", body)
    timm = {key: shape for key, shape in body.items() if not key.startswith("fc.")}
    for mine, theirs in zip((0, 1, 3, 4, 6, 7), ("conv1.0", "conv1.1", "conv1.3", "conv1.4",
                                                 "conv1.6", "bn1"), strict=True):  # fmt: skip
        leaves = {"weight": (8, 8, 3, 3)} if mine % 3 == 0 else dict.fromkeys(
            ("weight", "bias", "running_mean", "running_var"), (8,)
        )  # fmt: skip
        for leaf, shape in leaves.items():
            mmseg[f"backbone.stem.{mine}.{leaf}"] = shape
            timm[f"{theirs}.{leaf}"] = shape
    found = matched(mmseg, timm)
    assert len(found.shared) == sum(bool(shape) for shape in mmseg.values())
    assert found.shared[0].layer == "deep_stem.conv1"
    assert found.shared[-1].layer.startswith("stages.3.")
    kept = matched(mmseg, plain).kept
    assert all(kept[key] == "absent in donor" for key in mmseg if "stem" in key)
    twice = matched(timm, timm).shared
    assert len({p.sources[0] for p in twice}) == len(twice)  # `bn1` is the stem's third norm
    assert matched(timm, plain).kept["bn1.weight"] == "absent in donor"


def test_shortcuts_that_pool_are_another_convention() -> None:
    pooled = {
        re.sub(r"downsample\.([01])", lambda m: f"downsample.{int(m[1]) + 1}", key): shape
        for key, shape in torchvision_keys().items()
    }
    assert matched(pooled, pooled).warnings == ()
    found = matched(pooled, torchvision_keys())
    assert len(found.shared) == len(matched(pooled, pooled).shared)
    assert "shortcuts that pool" in found.warnings[0]


def test_networks_that_begin_like_a_resnet_are_none() -> None:
    hrnet = {"conv1.weight": (64, 3, 3, 3), "layer1.0.conv2.weight": (64, 64, 3, 3),
             "transition1.0.0.weight": (18, 256, 3, 3)}  # fmt: skip
    assert name_keys(entries(hrnet)).found == ()
    layer = "regnet.encoder.stages.{}.layers.0.layer.{}"
    regnet = {layer.format(3, 0) + ".convolution.weight": (8, 8, 1, 1),
              layer.format(0, 2) + ".attention.0.weight": (2, 8, 1, 1)}  # fmt: skip
    assert name_keys(entries(regnet)).found == ()
    del regnet[layer.format(0, 2) + ".attention.0.weight"]
    assert [table.name for table in name_keys(entries(regnet)).found] == ["resnet"]


def test_a_known_head_behind_an_unknown_backbone_stays_behind_it() -> None:
    keys: Keys = {"classifier/conv2d_list.0.weight": (19, 8, 3, 3), "classifier.4.weight": (19, 8),
                  "classifier.0.convs.0.0.weight": (8, 8), "backbone.a.weight": (8, 3),
                  "backbone.b.weight": (8, 8)}  # fmt: skip
    shared = [p.name for p in matched(keys, keys).shared]
    assert shared[:2] == ["backbone.a.weight", "backbone.b.weight"]


def manifest(name: str) -> dict[str, TensorEntry]:
    if not SHARED.is_dir():
        pytest.skip("../shared is absent")
    rows = json.loads((SHARED / "manifests" / f"{name}.json").read_text(encoding="utf-8"))["keys"]
    codes = {"float32": "F32", "int64": "I64"}
    return {
        key: TensorEntry(key, codes[dtype], tuple(s), "file", i)
        for i, (key, s, dtype) in enumerate(rows)
    }


@pytest.mark.parametrize(
    ("anchor", "donor", "merged", "absent", "theirs_absent"),
    [
        ("mic_hrda_mitb5_19", "hrda_mitb5_19", 1221, 0, 0),
        ("daformer_mitb5_19", "pipa_daformer_mitb5_19", 1206, 0, 0),
        ("hrda_mitb5_19", "hrda_mitb5_16", 1217, 0, 0),
        ("hrda_mitb5_19", "daformer_mitb5_19", 1206, 15, 0),
        ("edaps_mitb5_19", "hrda_mitb5_19", 1206, 42, 16),
        ("edaps_mitb5_19", "daformer_mitb5_19", 1206, 42, 0),
        ("advent_deeplabv2_multi_19", "advent_deeplabv2_multi_19__no_nbt", 536, 0, 0),
        ("advent_deeplabv2_multi_19", "fada_resnet101_bn_19", 528, 8, 0),
        ("fada_resnet101_frozenbn_19", "advent_deeplabv2_multi_19", 528, 0, 112),
        ("fada_resnet101_bn_19", "hf_resnet101_model", 520, 8, 0),
        ("fada_resnet101_bn_19", "smp_unet_resnet101_19", 520, 8, 62),
        ("torchvision_deeplabv3_resnet101_21", "timm_resnet101", 520, 44, 2),
        ("torchvision_resnet50", "mic_det_frcnn_r50fpn_9", 265, 2, 74),
        ("glc_resnet50_OfficeHome_OPDA_15", "torchvision_resnet50", 265, 6, 2),
        ("conmix_r50vitb16_officehome_65", "conmix_r50vitb16_officehome_65", 360, 0, 0),
    ],
)
def test_the_systems_of_the_paper_share_what_they_share(
    anchor: str, donor: str, merged: int, absent: int, theirs_absent: int
) -> None:
    suffix = "__segmentor" if "mitb5" in anchor else ""
    ours, theirs = manifest(anchor + suffix), manifest(donor + suffix)
    order = lambda: natural_order(list(ours))  # noqa: E731
    found = match_keys([ours, theirs], ["anchor", "donor"], order)
    assert len(found.shared) == merged
    assert list(found.kept.values()).count("absent in donor") == absent
    assert list(found.unused[0].values()).count("absent in anchor") == theirs_absent
    sources = {p.sources[0].key for p in found.shared if p.sources[0]}
    assert sources | set(found.kept) == set(ours)
    assert not sources & set(found.kept)


def test_heads_that_only_training_uses_are_not_merged() -> None:
    pipa = manifest("pipa_daformer_mitb5_19__segmentor")
    order = lambda: natural_order(list(pipa))  # noqa: E731
    found = match_keys([pipa, pipa], ["anchor", "donor"], order)
    dead = {key for key, why in found.kept.items() if "PiPa" in why}
    assert dead == {key for key in pipa if key.startswith(("cls_head.", "proj_head."))}
    assert len(dead) == 17


def test_the_semantic_branch_of_the_bottom_up_head_is_daformers() -> None:
    daformer = manifest("daformer_mitb5_19__segmentor")
    bottom_up: dict[str, TensorEntry] = {}
    for key, entry in daformer.items():
        branch = re.sub(r"\b(embed_layers|fuse_layer)\b", r"\1_semantic", key)
        bottom_up[branch] = entry
        if branch != key:
            own = replace(entry, offset=entry.offset + (1 << 40))
            bottom_up[branch.replace("_semantic", "_instance")] = own
    for name, outputs in (("reg_cnt", 1), ("reg_ofs", 2)):
        for leaf, shape in (("weight", (outputs, 256, 1, 1)), ("bias", (outputs,))):
            key = f"decode_head.{name}.{leaf}"
            bottom_up[key] = TensorEntry(key, "F32", shape, "file", len(bottom_up))
    assert len(bottom_up) == 1170  # KEYS.md, section 1
    order = lambda: natural_order(list(bottom_up))  # noqa: E731
    found = match_keys([bottom_up, daformer], ["anchor", "donor"], order)
    assert len(found.shared) == 1206
    own = {key for key, why in found.kept.items() if why == "absent in donor"}
    assert own == {k for k in bottom_up if "instance" in k or "reg_" in k} - {
        k for k in bottom_up if k.endswith("num_batches_tracked")
    }
