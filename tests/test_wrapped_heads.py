"""A head is found below whatever wraps the model, and the wrapper changes no layer's weight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from deeplabs import shapes as deeplab_shapes
from enumerators import (
    TINY,
    ancestor,
    finetuned,
    mit_nvlabs,
    segformer_nvlabs,
    spell_transformers_old,
    write_pth,
    write_safetensors,
    write_transformers_folder,
)
from on_meta import build_on_meta
from safetensors.numpy import load_file
from test_tracing import config_of

import lwmm_hub as lw
from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.key_map import KeyMap, match_keys, name_keys, natural_order

WRAPPERS = ("model.", "net.", "segformer_model.", "self_model.model.")
WITH_HEADS = (
    "SegformerForSemanticSegmentation",
    "UperNetForSemanticSegmentation: Swin",
    "Mask2FormerForUniversalSegmentation: Swin",
    "MaskFormerForInstanceSegmentation: Swin",
    "DPTForSemanticSegmentation",
    "GLPNForDepthEstimation",
    "MobileNetV2ForSemanticSegmentation",
    "MobileViTForSemanticSegmentation",
    "EomtForUniversalSegmentation",
)

Keys = dict[str, TensorEntry]


def entries(shapes: Mapping[str, tuple[int, ...]], wrapper: str = "") -> Keys:
    named = {wrapper + key: shape for key, shape in shapes.items()}
    return {
        key: TensorEntry(key, "F32" if shape else "I64", shape, "file", i)
        for i, (key, shape) in enumerate(named.items())
    }


def matched(anchor: Keys, donor: Keys) -> KeyMap:
    return match_keys([anchor, donor], ["anchor", "donor"], lambda: natural_order(list(anchor)))


@pytest.mark.parametrize("name", WITH_HEADS)
def test_a_wrapped_donor_gives_its_head_as_a_plain_one_does(name: str) -> None:
    """What a training loop saves: `state_dict()`, in the names that transformers has in memory."""
    state = build_on_meta(config_of(name)).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    plain = entries(shapes)
    expected = matched(plain, plain)
    assert {p.part for p in expected.shared} == {"backbone", "head"}
    for wrapper in WRAPPERS:
        wrapped = entries(shapes, wrapper)
        for mine, theirs in ((plain, wrapped), (wrapped, plain), (wrapped, wrapped)):
            found = matched(mine, theirs)
            before = "" if mine is plain else wrapper
            assert layers(found, before) == layers(expected)
            assert found.kept == {before + key: why for key, why in expected.kept.items()}
            assert found.families == expected.families
            assert not found.warnings


def layers(key_map: KeyMap, wrapper: str = "") -> list[tuple[str, int, str]]:
    """What the anchor's parameters lie in, without the wrapper, and their parts, in depth order."""
    mine = [(p.sources[0], p.part) for p in key_map.shared]
    return [(s.key.removeprefix(wrapper), s.part, part) for s, part in mine if s]


def test_a_checkpoint_of_lightning_merges_as_the_plain_file_does(tmp_path: Path) -> None:
    start = ancestor(TINY, 0)
    mine, theirs = (finetuned(start, seed) for seed in (1, 2))
    anchor = write_transformers_folder(tmp_path / "anchor", mine, TINY)
    theirs = spell_transformers_old(theirs, TINY)
    plain = write_safetensors(tmp_path / "donor.safetensors", theirs)
    wrapped = write_pth(tmp_path / "donor.ckpt", theirs, wrapper="state_dict", prefix="model.")
    expected = lw.merge(anchor, plain, output=tmp_path / "expected")
    found = lw.merge(anchor, wrapped, output=tmp_path / "found")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("expected", "found")]
    assert all(np.array_equal(value, weights[1][key]) for key, value in weights[0].items())
    assert found.plan.layers == expected.plan.layers
    assert found.plan.layers[-1].name == "head.classifier"


def test_a_head_lies_below_the_wrapper_of_its_own_backbone() -> None:
    """Of two networks in a file, the head is that of the backbone that is taken."""
    shapes = {e.key: e.shape for e in segformer_nvlabs(TINY)}
    both = entries(shapes, "a.") | entries(shapes, "b.")
    found = name_keys(both, prefer={("mit", "b.backbone.")})
    assert {s.key[:2] for n, s in found.sources.items() if n in found.tables} == {"b."}
    assert found.places["segformer"] == ("b.decode_head.",)


def test_a_head_is_not_taken_from_a_teacher_whose_backbone_is_not() -> None:
    student = entries({e.key: e.shape for e in mit_nvlabs(TINY, prefix="backbone.")})
    teacher = entries({e.key: e.shape for e in segformer_nvlabs(TINY)}, "ema_model.")
    anchor = entries({e.key: e.shape for e in segformer_nvlabs(TINY)})
    found = matched(anchor, student | teacher)
    assert {p.part for p in found.shared} == {"backbone"}
    assert found.kept["decode_head.linear_pred.weight"] == "absent in donor"


def test_a_head_below_another_wrapper_is_found_where_the_anchor_has_it() -> None:
    """A training script that keeps backbone and head as two attributes of its own."""
    shapes = {e.key: e.shape for e in segformer_nvlabs(TINY)}
    apart = entries(
        {("enc." if key.startswith("backbone") else "seg.") + key: s for key, s in shapes.items()}
    )
    plain = entries(shapes)
    for mine, theirs in ((plain, apart), (apart, plain)):
        found = matched(mine, theirs)
        assert [p.name for p in found.shared] == [p.name for p in matched(plain, plain).shared]


def test_attention_over_scales_is_not_looked_for_in_a_head_that_begins_like_it() -> None:
    """HRDA's second head is spelt as DAFormer's first: only below its own name is it itself."""
    backbone = {e.key: e.shape for e in mit_nvlabs(TINY, prefix="backbone.")}
    head = {f"embed_layers.{i}.proj.weight": (16, 8) for i in range(4)} | {
        "conv_seg.weight": (19, 16, 1, 1)
    }
    daformer = entries(backbone | {f"decode_head.{key}": shape for key, shape in head.items()})
    hrda = entries(
        backbone
        | {f"decode_head.head.{key}": shape for key, shape in head.items()}
        | {f"decode_head.scale_attention.{key}": shape for key, shape in head.items()}
    )
    found = matched(daformer, hrda)
    pairs = {s[0].key: s[1].key for p in found.shared if (s := p.sources)[0] and s[1]}
    assert pairs["decode_head.conv_seg.weight"] == "decode_head.head.conv_seg.weight"
    assert {t.name for t in name_keys(daformer, heads=name_keys(hrda).found).found} == {
        "mit",
        "daformer",
    }


def test_a_wrapped_network_of_advent_keeps_its_convention() -> None:
    """The key that tells Caffe's ResNet from torchvision's is looked for beside the backbone."""
    for wrapper in ("", "net."):
        named = name_keys(entries(deeplab_shapes(), wrapper))
        assert named.dialects["resnet"] == "AdvEnt, AdaptSegNet or MaxSquare"
        assert named.family == "deeplabv2"
