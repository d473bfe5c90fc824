"""The enumerators of the paper's systems agree with the manifests, entry by entry at full size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from enumerators import B5, Entry, segformer_transformers_old
from enumerators.systems import (
    DEIT_B,
    DEIT_B_384,
    DEIT_S,
    R50,
    R50_VIT_B,
    R101,
    conmix_deit,
    conmix_r50_vit,
    daformer,
    deeplab_multi,
    deeplab_single,
    edaps,
    edaps_bottom_up,
    fada,
    glc,
    hrda,
    mic_detection,
    pipa_daformer,
    pipa_hrda,
    pipa_training_run,
    smp_fpn,
    smp_unet,
    smp_unet_resnet,
    smp_upernet,
    torchvision_deeplabv3,
    torchvision_resnet,
    training_run,
    transformers_resnet,
)

CODES = {"float32": "F32", "int64": "I64"}
DAFORMER = replace(B5, decoder_width=256)

Listing = list[tuple[str, tuple[int, ...], str]]


def listing(entries: list[Entry]) -> Listing:
    return [(entry.key, entry.shape, entry.dtype) for entry in entries]


def manifest(shared: Path, name: str) -> Listing:
    path = shared / "manifests" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    content = json.loads(path.read_text(encoding="utf-8"))
    return [(key, tuple(shape), CODES[dtype]) for key, shape, dtype in content["keys"]]


IN_MANIFESTS: dict[str, Callable[[], list[Entry]]] = {
    "daformer_mitb5_19__segmentor": lambda: daformer(DAFORMER),
    "daformer_mitb5_16__segmentor": lambda: daformer(DAFORMER.with_classes(16)),
    "daformer_mitb5_19__checkpoint": lambda: training_run(daformer(DAFORMER)),
    "hrda_mitb5_19__segmentor": lambda: hrda(DAFORMER),
    "hrda_mitb5_16__segmentor": lambda: hrda(DAFORMER.with_classes(16)),
    "hrda_mitb5_19__checkpoint": lambda: training_run(hrda(DAFORMER)),
    "mic_hrda_mitb5_19__segmentor": lambda: hrda(DAFORMER),
    "mic_hrda_mitb5_19__checkpoint": lambda: training_run(hrda(DAFORMER)),
    "pipa_daformer_mitb5_19__segmentor": lambda: pipa_daformer(DAFORMER),
    "pipa_daformer_mitb5_19__checkpoint": lambda: pipa_training_run(
        pipa_daformer(DAFORMER), DAFORMER
    ),
    "edaps_mitb5_19__segmentor": lambda: edaps(DAFORMER),
    "edaps_mitb5_19__checkpoint": lambda: training_run(edaps(DAFORMER)),
    "smp_unet_mit_b5_19": lambda: smp_unet(B5),
    "smp_fpn_mit_b5_19": lambda: smp_fpn(B5),
    "advent_deeplabv2_multi_19": lambda: deeplab_multi(R101),
    "advent_deeplabv2_multi_19__no_nbt": lambda: deeplab_multi(R101, counters=False),
    "advent_deeplabv2_single_19": lambda: deeplab_single(R101),
    "adaptsegnet_deeplabmulti_19": lambda: deeplab_multi(R101),
    "adaptsegnet_deeplabmulti_19__no_nbt": lambda: deeplab_multi(R101, counters=False),
    "maxsquare_deeplabmulti_19": lambda: deeplab_multi(R101),
    "fada_resnet101_bn_19": lambda: fada(R101),
    "fada_resnet101_bn_16": lambda: fada(R101.with_classes(16)),
    "fada_resnet101_frozenbn_19": lambda: fada(R101, frozen=True),
    "glc_resnet50_Office31_OPDA_20": lambda: glc(R50.with_classes(20)),
    "glc_resnet50_OfficeHome_OPDA_15": lambda: glc(R50.with_classes(15)),
    "conmix_deit_s_officehome_65": lambda: conmix_deit(DEIT_S),
    "conmix_deit_b_officehome_65": lambda: conmix_deit(DEIT_B),
    "conmix_r50vitb16_officehome_65": lambda: conmix_r50_vit(R50_VIT_B),
    "mic_det_frcnn_r50fpn_9": lambda: mic_detection(R50.with_classes(9)),
    "torchvision_resnet50": lambda: torchvision_resnet(R50.with_classes(1000)),
    "torchvision_resnet101": lambda: torchvision_resnet(R101.with_classes(1000)),
    "timm_resnet101": lambda: torchvision_resnet(R101.with_classes(1000)),
    "torchvision_deeplabv3_resnet101_21": lambda: torchvision_deeplabv3(R101.with_classes(21)),
    "smp_unet_resnet101_19": lambda: smp_unet_resnet(R101),
    "hf_resnet101_model": lambda: transformers_resnet(R101),
}


@pytest.mark.parametrize("name", IN_MANIFESTS)
def test_an_enumeration_is_its_manifest_entry_by_entry(name: str, shared: Path) -> None:
    assert listing(IN_MANIFESTS[name]()) == manifest(shared, name)


def test_every_manifest_has_an_enumerator(shared: Path) -> None:
    """Those of SegFormer itself are compared in `test_enumerators`."""
    there = {path.stem for path in (shared / "manifests").glob("*.json")} - {"INDEX"}
    others = {name for name in there if name.startswith(("hf_segformer", "nvlabs_", "smp_segf"))}
    assert set(IN_MANIFESTS) == there - others


# KEYS.md section 1: what has no manifest is composed of what has one
COMPOSED: dict[str, tuple[Callable[[], list[Entry]], int]] = {
    "PiPa(HRDA)": (lambda: pipa_hrda(DAFORMER), 1143),
    "PiPa(HRDA), whole run": (lambda: pipa_training_run(pipa_hrda(DAFORMER), DAFORMER), 3435),
    "EDAPS bottom-up": (lambda: edaps_bottom_up(DAFORMER), 1170),
    "EDAPS bottom-up, whole run": (lambda: training_run(edaps_bottom_up(DAFORMER)), 3510),
    "AdvEnt single, no counters": (lambda: deeplab_single(R101, counters=False), 528),
    "CoNMix DeiT-B distilled 384": (lambda: conmix_deit(DEIT_B_384, distilled=True), 165),
    "smp UPerNet MiT-B5": (lambda: smp_upernet(B5), 1134),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composed_enumeration_has_the_number_of_keys_that_the_system_saves(name: str) -> None:
    entries, count = COMPOSED[name]
    keys = [entry.key for entry in entries()]
    assert (len(keys), len(set(keys))) == (count, count)


def test_the_parts_of_a_whole_model_are_where_the_paper_has_them() -> None:
    def groups(entries: list[Entry], depth: int = 1) -> dict[str, int]:
        return dict(Counter(".".join(entry.key.split(".")[:depth]) for entry in entries))

    assert groups(edaps(DAFORMER)) == {
        "backbone": 1052, "neck": 16, "rpn_head": 6, "roi_head": 20, "decode_head": 58,
    }  # fmt: skip
    assert groups(pipa_hrda(DAFORMER)) == {
        "backbone": 1052, "decode_head": 74, "cls_head": 8, "proj_head": 9,
    }  # fmt: skip
    assert groups(edaps_bottom_up(DAFORMER)) == {"backbone": 1052, "decode_head": 118}
    by_part = Counter(entry.key.split("/")[0] for entry in conmix_r50_vit(R50_VIT_B))
    assert by_part == {"F": 402, "B": 7, "C": 3}
    assert groups(mic_detection(R50), 2)["backbone.body"] == 265


def test_related_systems_name_one_start() -> None:
    """The parts, by which values are made, agree with what systems share by KEYS.md."""

    def parts(entries: list[Entry]) -> set[str]:
        return {part for entry in entries for part in entry.parts}

    assert len(parts(hrda(DAFORMER)) & parts(daformer(DAFORMER))) == 1110 + 104  # kv apart
    assert parts(edaps(DAFORMER)) > parts(daformer(DAFORMER))
    assert parts(edaps_bottom_up(DAFORMER)) > parts(daformer(DAFORMER))
    backbone = {part for part in parts(segformer_transformers_old(B5)) if part.startswith("stage")}
    assert len(backbone) == 1156
    assert backbone < parts(smp_upernet(B5))
    assert parts(fada(R101)) == parts(deeplab_single(R101))
    assert parts(transformers_resnet(R101)) < parts(deeplab_multi(R101))
    for entries in (hrda(DAFORMER), conmix_deit(DEIT_S), mic_detection(R50), pipa_hrda(DAFORMER)):
        assert len(parts(entries)) == sum(len(entry.parts) for entry in entries)
