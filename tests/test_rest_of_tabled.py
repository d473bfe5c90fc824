"""What no table names, in a model whose backbone one knows: where it stands, in which part."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from deeplabs import norm
from deeplabs import shapes as deeplab_shapes
from enumerators import TINY, mit_nvlabs, write_pth, write_safetensors

import lwmm_hub as lw
from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.key_map import DepthOrder, KeyMap, match_keys, natural_order, registration_order

Shapes = dict[str, tuple[int, ...]]

RESNET = {key: shape for key, shape in deeplab_shapes().items() if "conv2d_list" not in key}


def resnet(prefix: str, stem: bool = True) -> Shapes:
    """A ResNet below a prefix, with its own stem or with none."""
    return {prefix + k: s for k, s in RESNET.items() if stem or k.startswith("layer")}


def conv(name: str, inner: int, outer: int, size: int = 1) -> Shapes:
    return {f"{name}.weight": (outer, inner, size, size)}


def entries(shapes: Shapes) -> dict[str, TensorEntry]:
    return {
        key: TensorEntry(key, "F32" if shape else "I64", shape, "file", i)
        for i, (key, shape) in enumerate(shapes.items())
    }


def by_registration(shapes: Shapes) -> KeyMap:
    found = entries(shapes)
    return match_keys([found, found], ["a", "b"], lambda: registration_order(list(found)))


def by_name(shapes: Shapes) -> KeyMap:
    found = entries(dict(sorted(shapes.items())))
    return match_keys([found, found], ["a", "b"], lambda: natural_order(list(found)))


def modules(key_map: KeyMap, part: str = "") -> list[str]:
    """Modules of the anchor's keys in depth order, of one part or of all."""
    keys = [p.sources[0].key for p in key_map.shared if p.sources[0] and part in ("", p.part)]
    return list(dict.fromkeys(key.rpartition(".")[0] for key in keys))


def without_stages(names: Iterable[str]) -> list[str]:
    return [name for name in names if ".layer" not in f".{name}".replace(".layer0", "")]


# --------------------------------------------------------------------------- stems and first paths

DEEP = {0: (3, 4), 3: (4, 4), 6: (4, 8)}


def semseg_pspnet(stem: str = "layer0.{}", norms: str = "layer0.{}") -> Shapes:
    """As hszhao/semseg registers it: the stem in a Sequential, heads of three names."""
    shapes: Shapes = {}
    for i, (at, (inner, outer)) in enumerate(DEEP.items(), start=1):
        flat = "layer" not in stem
        shapes |= conv(stem.format(i if flat else at), inner, outer, 3)
        shapes |= norm(norms.format(i if flat else at + 1), outer)
    return (
        shapes
        | resnet("", stem=False)
        | {
            **conv("ppm.features.0.1", 32, 8),
            **norm("ppm.features.0.2", 8),
            **conv("cls.0", 40, 8, 3),
            **norm("cls.1", 8),
            **conv("cls.4", 8, 5),
            **conv("aux.0", 24, 8, 3),
            **conv("aux.4", 8, 5),
        }
    )


@pytest.mark.parametrize("spelling", [("layer0.{}", "layer0.{}"), ("conv{}", "bn{}")])
def test_a_deep_stem_of_semseg_or_csail_is_the_beginning_of_the_backbone(
    spelling: tuple[str, str],
) -> None:
    shapes = semseg_pspnet(*spelling)
    stem = [key.rpartition(".")[0] for key in shapes]
    stem = list(dict.fromkeys(name for name in stem if name.startswith(("layer0", "conv", "bn"))))
    for found in (by_registration(shapes), by_name(shapes)):
        assert without_stages(modules(found)) == [
            *stem, "aux.0", "aux.4", "ppm.features.0.1", "ppm.features.0.2",
            "cls.0", "cls.1", "cls.4",
        ]  # fmt: skip
        assert modules(found, "backbone")[: len(stem)] == stem
        assert modules(found)[-1] == "cls.4"
    mmseg = {f"stem.{at}.weight": (outer, inner, 3, 3) for at, (inner, outer) in DEEP.items()}
    for at, (_, outer) in DEEP.items():
        mmseg |= norm(f"stem.{at + 1}", outer)
    donor = entries({f"backbone.{k}": s for k, s in (mmseg | resnet("", stem=False)).items()})
    crossed = match_keys([entries(shapes), donor], ["a", "b"], lambda: natural_order(list(shapes)))
    assert modules(crossed)[: len(stem)] == stem


def test_a_plain_stem_in_a_sequential_is_torchvisions() -> None:
    stem = {"conv1.": "layer0.0.", "bn1.": "layer0.1."}
    shapes = dict(RESNET)
    for old, new in stem.items():
        found = {key: shape for key, shape in RESNET.items() if key.startswith(old)}
        shapes = {key: shape for key, shape in shapes.items() if key not in found}
        shapes |= {new + key.removeprefix(old): shape for key, shape in found.items()}
    anchor, donor = entries(shapes), entries(RESNET)
    key_map = match_keys([anchor, donor], ["a", "b"], lambda: natural_order(list(anchor)))
    assert modules(key_map)[:2] == ["layer0.0", "layer0.1"]
    assert {p.part for p in key_map.shared} == {"backbone"}
    assert set(key_map.kept.values()) == {"int64 is never averaged"}


@pytest.mark.parametrize("first", [False, True])
def test_a_path_of_its_own_that_reads_images_stands_before_the_backbone(first: bool) -> None:
    """BiSeNet's spatial path, registered before the context path or behind it."""
    path = conv("sp.conv1.conv", 3, 8, 7) | norm("sp.conv1.bn", 8) | conv("sp.out.conv", 8, 8)
    context = resnet("cp.resnet.")
    shapes = (path | context if first else context | path) | {
        **conv("ffm.conv", 40, 8),
        **conv("conv_out.conv", 8, 5),
    }
    for found in (by_registration(shapes), by_name(shapes)):
        assert without_stages(modules(found)) == [
            "sp.conv1.conv", "sp.conv1.bn", "sp.out.conv", "cp.resnet.conv1", "cp.resnet.bn1",
            "ffm.conv", "conv_out.conv",
        ]  # fmt: skip
        assert modules(found, "head") == ["ffm.conv", "conv_out.conv"]
        assert "what reads images before the backbone" in found.order_source


def test_a_stem_of_several_modules_is_followed_from_the_image_to_the_backbone() -> None:
    """Only the file's order tells that the second convolution stands between."""
    shapes = conv("first", 3, 8, 3) | conv("second", 8, 8, 3) | resnet("net.") | conv("tail", 32, 5)
    assert without_stages(modules(by_registration(shapes))) == [
        "first", "second", "net.conv1", "net.bn1", "tail"
    ]  # fmt: skip
    assert without_stages(modules(by_name(shapes))) == [
        "first", "net.conv1", "net.bn1", "second", "tail"
    ]  # fmt: skip


def test_what_is_registered_before_the_backbone_and_reads_no_image_stays_behind_it() -> None:
    """DETR registers its transformer, its heads and its queries before the backbone."""
    detr: Shapes = {
        "transformer.encoder.layers.0.self_attn.in_proj_weight": (24, 8),
        "transformer.encoder.layers.0.linear1.weight": (16, 8),
        "class_embed.weight": (6, 8),
        "query_embed.weight": (7, 8),
        **conv("input_proj", 32, 8),
    }
    found = by_registration(detr | resnet("backbone.0.body."))
    before = list(dict.fromkeys(key.rpartition(".")[0] for key in detr))
    assert modules(found, "head") == before
    assert modules(found)[-len(before) :] == before


@pytest.mark.parametrize(
    "late",
    [
        conv("decoder.refine", 3, 8, 3),  # called like a head
        {"mask.up.weight": (8, 3, 2, 2), "mask.up.bias": (3,)},  # a transposed convolution
        {"mix.weight": (8, 3)},
    ],
    ids=["head", "transposed", "linear"],
)
def test_three_channels_in_a_head_are_no_image(late: Shapes) -> None:
    shapes = resnet("backbone.") | late | conv("other", 32, 5)
    for found in (by_registration(shapes), by_name(shapes)):
        name = next(iter(late)).rpartition(".")[0]
        assert name in modules(found, "head")
        assert modules(found)[0] == "backbone.conv1"


# ------------------------------------------------------------------------------ beside and within


def test_two_streams_alike_are_both_the_backbone_and_side_by_side() -> None:
    head = conv("decoder.fuse", 64, 8) | conv("decoder.out", 8, 5)
    shapes = resnet("rgb.") | resnet("depth.") | head
    for found in (by_registration(shapes), by_name(shapes)):
        order = modules(found)
        assert order[:4] == ["depth.conv1", "rgb.conv1", "depth.bn1", "rgb.bn1"]
        assert order[-2:] == modules(found, "head") == ["decoder.fuse", "decoder.out"]
        assert [n.removeprefix("rgb.") for n in order if n.startswith("rgb.")] == [
            n.removeprefix("depth.") for n in order if n.startswith("depth.")
        ]
        crossed = [p for p in found.shared if len({s.key for s in p.sources if s}) > 1]
        assert not crossed


@pytest.mark.parametrize("other", ["teacher.", "small."])
def test_a_teacher_or_a_smaller_network_runs_beside_the_backbone(other: str) -> None:
    """Their first convolution reads images, too: that alone would put all of them in front."""
    beside = {k: s for k, s in resnet(other).items() if other == "teacher." or ".layer2" not in k}
    shapes = beside | resnet("net.") | conv("score", 32, 5)
    for found in (by_registration(shapes), by_name(shapes)):
        order = modules(found)
        assert order[:3] == ["net.conv1", f"{other}conv1", "net.bn1"]
        assert order.index(f"{other}layer4.0.conv1") == order.index("net.layer4.0.conv1") + 1
        assert modules(found, "head") == ["score"]


def test_fused_parts_of_a_second_stream_stand_where_their_first_part_does() -> None:
    shapes = {e.key: e.shape for prefix in ("a.", "b.") for e in mit_nvlabs(TINY, prefix=prefix)}
    found = modules(by_name(shapes))
    assert found.index("b.block1.0.attn.kv") < found.index("a.block1.0.attn.proj")
    assert found.index("a.block1.0.attn.kv") < found.index("b.block1.0.attn.kv")


def test_what_a_file_registers_among_the_layers_of_a_backbone_stays_there() -> None:
    shapes: Shapes = {}
    for key, shape in resnet("backbone.").items():
        shapes[key] = shape
        if key == "backbone.layer1.0.bn3.num_batches_tracked":
            shapes |= conv("backbone.layer1.0.attention.gate", 16, 16)
            shapes |= conv("backbone.layer1.0.attention.mix", 16, 16)
    shapes |= conv("backbone.adapter.down", 32, 4) | conv("decode_head.out", 32, 5)
    found = by_registration(shapes)
    order = modules(found)
    at = order.index("backbone.layer1.0.bn3")
    assert order[at + 1 : at + 3] == [
        "backbone.layer1.0.attention.gate", "backbone.layer1.0.attention.mix"
    ]  # fmt: skip
    assert order[-2:] == ["backbone.adapter.down", "decode_head.out"]
    assert modules(found, "head") == ["decode_head.out"]
    assert "what stands among the backbone's layers there" in found.order_source
    # names alone say that they are of the backbone, and no more
    named = by_name(shapes)
    assert modules(named, "head") == ["decode_head.out"]
    assert "what else lies in the backbone at its end" in named.order_source


def test_a_head_inside_a_backbones_container_is_a_head() -> None:
    shapes = resnet("encoder.") | {"encoder.fc.weight": (10, 32)} | conv("decoder.0", 32, 5)
    for found in (by_registration(shapes), by_name(shapes)):
        assert set(modules(found, "head")) == {"encoder.fc", "decoder.0"}


def test_a_wrapper_of_the_whole_model_is_no_container_of_its_backbone() -> None:
    shapes = resnet("net.") | conv("net.fuse", 32, 8) | conv("net.score", 8, 5)
    shapes |= {"loss.weight": (5, 5)}
    for found in (by_registration(shapes), by_name(shapes)):
        assert sorted(modules(found, "head")) == ["loss", "net.fuse", "net.score"]


def test_a_trace_says_where_everything_stands() -> None:
    """What the class calls its backbone may hold a decoder; what runs among its layers is of it."""
    shapes = conv("prompt", 3, 8) | resnet("backbone.") | conv("tail.a", 8, 8)
    shapes |= conv("tail.b", 8, 5) | conv("pre", 5, 5) | conv("gate", 4, 4)
    ran = ["prompt", "pre", *modules(by_registration(resnet("backbone."))), "tail.b", "tail.a"]
    inside = "backbone.layer1.0.conv1"
    ran.insert(ran.index(inside) + 1, "gate")
    keys = list(shapes)
    traced = DepthOrder(
        "the oracle",
        {key: ran.index(key.rpartition(".")[0]) for key in keys},
        frozenset(k for k in keys if k.startswith(("backbone", "gate", "pre.", "tail.b"))),
        "backbone",
        "trace",
    )
    found = entries(shapes)
    key_map = match_keys([found, found], ["a", "b"], lambda: traced)
    order = modules(key_map)
    assert order[0] == "pre"
    assert order[order.index(inside) + 1] == "gate"
    assert order[-3:] == modules(key_map, "head") == ["prompt", "tail.b", "tail.a"]


# ------------------------------------------------------------------------------- a story, in bytes


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_foreign_head_is_left_out_though_the_stem_is_related(ending: str, tmp_path: Path) -> None:
    """The stem was once judged with the head, whose mean it lifted over the line."""
    shapes = {k: s for k, s in semseg_pspnet().items() if s}
    base, other = (values(shapes, seed) for seed in (0, 1))
    donor = {k: v + 0.1 * values({k: v.shape}, 9)[k] for k, v in base.items()}
    donor |= {k: v for k, v in other.items() if k.startswith(("ppm.", "cls.", "aux."))}
    write = write_pth if ending == "pth" else write_safetensors
    files = [write(tmp_path / f"{n}.{ending}", v) for n, v in (("anchor", base), ("donor", donor))]
    plan = lw.merge(*files, output=tmp_path / "merged").plan
    assert plan.layers[0].name == "deep_stem.conv1"
    assert plan.layers[0].weights == (0.5, 0.5)
    assert {layer.part for layer in plan.layers} == {"backbone"}
    assert all(key.startswith(("ppm.", "cls.", "aux.")) for key in plan.kept)


def values(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    found = {key: random.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    return {k: np.abs(v) + 0.5 if k.endswith("running_var") else v for k, v in found.items()}
