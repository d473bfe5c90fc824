"""Matching: which parameters models share, in which order, and why others are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from enumerators import (
    B0,
    TINY,
    Entry,
    mit_nvlabs,
    segformer_nvlabs,
    segformer_smp,
    segformer_transformers_new,
    segformer_transformers_old,
    spell,
    write_pth,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import canonical, depth_order, module, relatives, save

import lwmm_hub as lw
from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.families import TABLES, Dialect, Table
from lwmm_hub.key_map import (
    DepthOrder,
    KeyMap,
    Source,
    match_keys,
    name_keys,
    natural,
    natural_order,
    registration_order,
)

Shape = tuple[int, ...]


def entries_of(listing: list[Entry]) -> dict[str, TensorEntry]:
    return {e.key: TensorEntry(e.key, e.dtype, e.shape, "file", i) for i, e in enumerate(listing)}


def plain(dtype: str = "F32", **shapes: Shape) -> dict[str, TensorEntry]:
    """Entries of a model that no table knows; `__` stands for a dot."""
    keys = {key.replace("__", "."): shape for key, shape in shapes.items()}
    return {
        key: TensorEntry(key, dtype, shape, "file", i)
        for i, (key, shape) in enumerate(keys.items())
    }


def matched(*models: dict[str, TensorEntry]) -> KeyMap:
    labels = ["anchor", *(f"donor{i}" for i in range(1, len(models)))]
    return match_keys(models, labels, lambda: natural_order(list(models[0])))


# ------------------------------------------------------------------------------------ the tables

DIALECTS = [
    pytest.param(table, dialect, id=f"{table.name}-{dialect.name}")
    for table in TABLES
    for dialect in table.dialects
]


@pytest.mark.parametrize(("table", "dialect"), DIALECTS)
@settings(deadline=None, max_examples=40)
@given(
    stage=st.integers(0, 3),
    block=st.integers(0, 120),
    leaf=st.sampled_from(
        ["weight", "bias", "running_mean", "running_var", "num_batches_tracked", "gamma_1"]
    ),
)
def test_every_rule_can_be_undone(
    table: Table, dialect: Dialect, stage: int, block: int, leaf: str
) -> None:
    """Names -> key -> names, for every rule; and no other rule claims one of the names."""
    for rule in dialect.rules:
        for target in rule.targets:
            name = target.replace("{s}", str(stage)).replace("{i}", str(stage))
            name = name.replace("{s+1}", str(stage + 1))
            name = name.replace("{b}", str(block)).replace("*", leaf)
            key = rule.key(name)
            assert key is not None
            names = rule.names(key)
            assert name in names
            assert len(names) == len(rule.targets)
            assert {rule.key(other) for other in names} == {key}
            assert dialect.names(key) == names
            assert [r for r in dialect.rules if r.key(name)] == [rule]
            assert table.rank(module(name)) is not None


@pytest.mark.parametrize(("table", "dialect"), DIALECTS)
def test_numbers_out_of_range_and_other_keys_have_no_name(table: Table, dialect: Dialect) -> None:
    for rule in dialect.rules:
        for field in ("{s+1}", "{i+1}"):
            if field in rule.source:
                zero = rule.source.replace(field, "0").replace("{b}", "0").replace("*", "weight")
                assert rule.names(zero) == ()  # counted from 1
        for field in ("{s}", "{3-i}"):
            if field in rule.source:
                odd = rule.source.replace(field, "01").replace("{b}", "0").replace("*", "weight")
                assert rule.names(odd) == ()  # no system writes leading zeros
        if "{3-i}" in rule.source:
            assert rule.names(rule.source.replace("{3-i}", "4").replace("*", "weight")) == ()
    for key in ("", ".", "weight", "norm1", "block1.0.attn.qq.weight", "norm1.weight.weight"):
        named = [name for name in dialect.names(key) if table.rank(module(name)) is not None]
        assert named == []


# (table, dialect) -> modules that the networks of this spelling do not have
HYBRID = {"bit", "embeddings.hybrid_projection"}
POSITIONS = {"embeddings.position_embeddings"}  # EoMT's own
PYRAMID = {"neck.up4.conv1", "neck.up4.norm", "neck.up4.conv2", "neck.up2.conv"}  # BEiT's
QUERY_AND_KEY = {f"head.blocks.{{b}}.{a}_attn.{m}" for a in ("self", "encoder") for m in "qk"}
CONTENT_AND_POSITION = {
    f"{module}_{what}" for module in QUERY_AND_KEY for what in ("content", "position")
} | {"head.blocks.{b}.encoder_attn.q_sine"}
LACKING: dict[tuple[str, str], set[str]] = {
    ("swin", "transformers, MaskFormer"): {"norm"},
    ("swin", "transformers, new names, backbone"): {"norm"},
    ("swin", "transformers, new names"): {"stage_norms.{s}"},
    ("convnext", "timm"): {"stage_norms.{s}"},
    ("convnext", "timm, features alone"): {"stage_norms.{s}"},
    ("vit", "transformers, new names"): HYBRID,
    ("vit", "timm"): HYBRID
    | {"blocks.{b}", "blocks.{b}.attn.relative_position_bias", "relative_position_bias"}
    | {"pooler.dense", "pooler.layernorm"},
    ("vit", "BEiT's authors"): HYBRID | {"pooler.dense"},
    ("dinov2", "transformers"): POSITIONS,
    ("dinov2", "transformers, new names"): POSITIONS,
    ("dinov2", "authors"): POSITIONS,
    ("upernet", "transformers"): PYRAMID,
    ("upernet", "mmseg"): PYRAMID,
    ("dpt", "transformers"): {f"head.depth.{m}" for m in ("projection", "conv1", "conv2", "conv3")},
    ("dpt", "transformers, depth"): {
        f"head.{m}{n}" for m in ("", "auxiliary.") for n in ("conv", "norm", "classifier")
    },
    ("detr", "transformers"): CONTENT_AND_POSITION,
    ("detr", "transformers, new names"): CONTENT_AND_POSITION,
    ("detr", "transformers, Conditional DETR"): QUERY_AND_KEY,
    ("detr", "transformers, Conditional DETR, new names"): QUERY_AND_KEY,
}


def modules_of(dialect: Dialect) -> set[str]:
    """What a dialect's rules name, one name for all of a hybrid's ResNet."""
    targets = {module(target) for rule in dialect.rules for target in rule.targets}
    return {
        "bit" if target.startswith("bit.") else target.replace("{s+1}", "{s}") for target in targets
    }


def test_every_dialect_names_the_same_parameters() -> None:
    """All spellings of a table have the same canonical modules: none lacks a rule."""
    for table in TABLES:
        everything = set().union(*map(modules_of, table.dialects))
        for dialect in table.dialects:
            lacking = everything - modules_of(dialect) if dialect.rules else set()
            assert lacking == LACKING.get((table.name, dialect.name), set()), dialect.name


def test_names_of_tables_and_their_modules_are_distinct() -> None:
    """Names stand for tables in plans, and a model's tables may not name two things alike."""
    assert len({table.name for table in TABLES}) == len(TABLES)
    for table in TABLES:
        assert len({dialect.name for dialect in table.dialects}) == len(table.dialects)
        assert all("." in dialect.signature for dialect in table.dialects)


def test_no_table_mistakes_the_file_of_another() -> None:
    """No key of one spelling alone brings another family in: signatures are its own."""
    for table in TABLES:
        for dialect in table.dialects:
            keys = {dialect.signature, *dialect.beside}
            for prefix in (*dialect.prefixes, "wrapper."):
                file = plain(**{f"{prefix}{key}".replace(".", "__"): (6, 2) for key in keys})
                found = {t.name for t in name_keys(file).found if t.backbone == table.backbone}
                assert found <= {table.name}, (dialect.name, prefix, keys)
                if table.backbone or prefix != "wrapper.":
                    assert found or dialect.needs


@pytest.mark.parametrize(
    "listing",
    [segformer_transformers_old, segformer_transformers_new, segformer_nvlabs, segformer_smp],
)
def test_the_tables_name_every_key_as_the_enumerators_do(listing: object) -> None:
    ours = listing(B0)  # type: ignore[operator]
    named = name_keys(entries_of(ours))
    expected = {
        (e.key, i, len(e.parts)): f"{canonical(module(part))}.{part.rpartition('.')[2]}"
        for e in ours
        for i, part in enumerate(e.parts)
    }
    leaves = {"mean": "running_mean", "variance": "running_var", "counter": "num_batches_tracked"}
    found = {(s.key, s.part, s.parts): name for name, s in named.sources.items()}
    assert found == {
        place: ".".join([*name.split(".")[:-1], leaves.get(leaf := name.split(".")[-1], leaf)])
        for place, name in expected.items()
    }
    assert set(named.dead) == {e.key for e in ours if not e.parts}
    assert named.family == "segformer"


def test_the_order_of_the_table_is_that_of_the_forward_pass() -> None:
    ours = entries_of(segformer_smp(TINY))
    shared = matched(ours, ours).shared
    layers = list(dict.fromkeys(p.layer for p in shared))
    assert layers == [canonical(m) for m in depth_order(TINY)]


def test_the_order_of_a_file_does_not_matter() -> None:
    listing = segformer_nvlabs(TINY)
    maps = [
        matched(entries_of(order), entries_of(order))
        for order in (listing, listing[::-1], sorted(listing))
    ]
    layers = [list(dict.fromkeys(p.layer for p in m.shared)) for m in maps]
    assert layers[0] == layers[1] == layers[2]


def test_a_block_numbered_ten_comes_after_block_nine() -> None:
    size = B0.__class__(depths=(1, 1, 12, 1), widths=(8, 16, 24, 32), decoder_width=16)
    ours = entries_of(sorted(segformer_transformers_old(size)))
    layers = list(dict.fromkeys(p.layer for p in matched(ours, ours).shared))
    assert layers.index("stages.2.blocks.9.norm1") < layers.index("stages.2.blocks.10.norm1")


def test_parts_of_a_tensor_that_cannot_be_halved_keep_their_key() -> None:
    listing = [
        e._replace(shape=(15, *e.shape[1:])) if "block1.0.attn.kv.bias" in e.key else e
        for e in segformer_nvlabs(TINY)
    ]
    named = name_keys(entries_of(listing))
    key = "backbone.block1.0.attn.kv.bias"
    assert named.sources[key] == Source(key)
    assert "stages.0.blocks.0.attn.k.bias" not in named.sources


def test_extra_keys_of_a_tabled_model_come_after_the_tables() -> None:
    extra = {"edge_head.conv.weight": (4, 8), "edge_head.conv.bias": (4,)}
    spelled = {key.replace(".", "__"): shape for key, shape in extra.items()}
    ours = entries_of(segformer_nvlabs(TINY)) | plain(**spelled)
    shared = matched(ours, ours).shared
    assert [p.name for p in shared[-2:]] == list(extra)
    assert shared[-1].part == "head"


def test_an_auxiliary_head_stands_between_the_backbone_and_the_head_that_a_table_knows() -> None:
    ours = entries_of(segformer_nvlabs(TINY))
    alone = [(p.name, p.part) for p in matched(ours, ours).shared]
    ours |= plain(auxiliary_head__conv__weight=(4, 8))
    found = [(p.name, p.part) for p in matched(ours, ours).shared]
    at = [part for _, part in alone].index("head")
    assert found == [*alone[:at], ("auxiliary_head.conv.weight", "head"), *alone[at:]]


def test_a_backbone_is_found_below_any_wrapper_and_its_student_first() -> None:
    ours = entries_of(mit_nvlabs(TINY, prefix="backbone."))
    wrapped = entries_of(mit_nvlabs(TINY, prefix="net.body.trunk."))
    found = matched(ours, wrapped)
    assert len(found.shared) == len(matched(ours, ours).shared)
    assert found.unused == ({},)
    teacher = entries_of(mit_nvlabs(TINY, prefix="teacher.net.")) | wrapped
    sources = {p.sources[1].key for p in matched(ours, teacher).shared if p.sources[1]}
    assert sources == set(wrapped)


def streams(*prefixes: str) -> dict[str, TensorEntry]:
    """One file with a network of the same size below each of the prefixes."""
    return entries_of([entry for p in prefixes for entry in mit_nvlabs(TINY, prefix=p)])


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (("rgb.", "depth."), ("depth.", "rgb.")),
        (("depth.", "rgb."), ("rgb.",)),
        (("rgb.",), ("depth.", "rgb.")),
    ],
)
def test_two_networks_alike_in_one_file_never_cross(
    mine: tuple[str, ...], theirs: tuple[str, ...]
) -> None:
    found = matched(streams(*mine), streams(*theirs))
    pairs = [tuple(s.key for s in p.sources if s) for p in found.shared]
    assert all(len(set(pair)) == 1 for pair in pairs)
    assert {key for key, _ in pairs} == set(streams(*mine)) & set(streams(*theirs))
    assert not found.warnings


def test_which_of_several_networks_alike_was_taken_is_said() -> None:
    found = matched(streams("rgb.", "depth."), streams("backbone."))
    (warning,) = found.warnings
    assert "anchor holds 2 mit networks alike ('depth.', 'rgb.')" in warning
    assert "'depth.' of anchor is matched with 'backbone.' of donor1" in warning


@pytest.mark.parametrize(
    "copy", ["model_ema.", "ema_net.", "module.teacher.", "a.ema.", "encoder_k."]
)
def test_a_teacher_by_any_name_is_not_taken_for_the_student(copy: str) -> None:
    found = matched(streams(copy, "zoo.net."), streams("backbone."))
    assert {p.sources[0].key for p in found.shared if p.sources[0]} == set(streams("zoo.net."))
    assert not found.warnings


def test_a_key_that_is_spelt_like_a_canonical_name_does_not_match_it() -> None:
    head = [e for e in segformer_nvlabs(TINY) if e.key.startswith("decode_head.linear_fuse")]
    ours = entries_of(segformer_nvlabs(TINY))
    shape = next(e.shape for e in head if e.key.endswith("conv.weight"))
    donor = entries_of(mit_nvlabs(TINY, prefix="backbone.")) | plain(head__fuse__weight=shape)
    found = matched(ours, donor)
    assert "head.fuse.weight" not in {p.name for p in found.shared}
    assert found.kept["decode_head.linear_fuse.conv.weight"] == "absent in donor1"
    assert found.unused == ({"head.fuse.weight": "absent in anchor"},)


def test_a_key_of_the_anchor_that_a_table_calls_another_tensor_is_kept_and_says_so() -> None:
    ours = entries_of(segformer_transformers_old(TINY))
    name = "stages.0.norm.weight"
    odd = ours | {name: TensorEntry(name, "F32", (7,), "file", 0)}
    for donor in (ours, odd):
        found = matched(odd, donor)
        assert len(found.shared) == len(matched(ours, ours).shared)
        assert found.kept[name] == "it is called as a table calls another tensor"


@pytest.mark.parametrize("leaf", ["position_ids", "num_updates", "weight_mask", "attn_mask"])
def test_indices_counters_and_masks_cast_to_floats_stay_the_anchors(leaf: str) -> None:
    ours = plain("BF16", **{"encoder__a__weight": (4, 4), f"encoder__a__{leaf}": (4, 4)})
    found = matched(ours, ours)
    assert [p.name for p in found.shared] == ["encoder.a.weight"]
    assert found.kept[f"encoder.a.{leaf}"].endswith("is never averaged")


def test_what_no_table_knows_behind_a_tabled_backbone_is_asked_for_its_order() -> None:
    extra = plain(neck__b__weight=(4, 8), neck__a__weight=(8, 8))
    ours = entries_of(mit_nvlabs(TINY, prefix="backbone.")) | extra
    asked = DepthOrder("the oracle", {"neck.b.weight": 0, "neck.a.weight": 1})
    found = match_keys([ours, ours], ["anchor", "donor"], lambda: asked)
    assert [p.name for p in found.shared[-2:]] == ["neck.b.weight", "neck.a.weight"]
    assert found.order_source.endswith("; the rest by the oracle")


def test_a_prefix_of_the_head_alone_is_found_behind_a_tabled_backbone() -> None:
    ours = entries_of(mit_nvlabs(TINY, prefix="backbone.")) | plain(
        neck__a__weight=(4, 8), neck__b__weight=(8, 8)
    )
    donor = entries_of(mit_nvlabs(TINY, prefix="backbone.")) | plain(
        model__neck__a__weight=(4, 8), model__neck__b__weight=(8, 8)
    )
    found = matched(ours, donor)
    assert found.prefixes == ("-model.",)
    assert [p.name for p in found.shared[-2:]] == ["neck.a.weight", "neck.b.weight"]


def test_shapes_of_parts_are_their_own() -> None:
    ours = plain(a__weight=(6, 2), b=())
    assert Source("a.weight", 1, 2).shape(ours) == (3, 2)
    assert Source("a.weight").shape(ours) == (6, 2)
    assert Source("b").shape(ours) == ()


# ---------------------------------------------------------------------------- models without table


def test_natural_order_counts_and_puts_the_backbone_first() -> None:
    keys = ["head.fc.weight", "backbone.10.w", "backbone.9.w", "mid.x", "decoder.a", "alone"]
    order = natural_order(keys)
    assert sorted(keys, key=lambda k: order.ranks[k]) == [
        "backbone.9.w",
        "backbone.10.w",
        "alone",
        "mid.x",
        "decoder.a",
        "head.fc.weight",
    ]


def test_registration_order_is_that_of_the_first_tensor_of_a_module() -> None:
    order = registration_order(["z.weight", "a.weight", "z.bias"])
    assert [order.ranks[k] for k in ("z.weight", "z.bias", "a.weight")] == [0, 0, 1]


@settings(deadline=None)
@given(st.lists(st.text("ab.0123456789", max_size=12), max_size=12))
def test_natural_keys_can_always_be_compared(texts: list[str]) -> None:
    once = sorted(texts, key=natural)
    assert [natural(t) for t in once] == sorted(natural(t) for t in texts)


def test_why_each_key_is_left_out() -> None:
    anchor = plain(backbone__a=(4, 4), backbone__b=(3,), backbone__c=(2, 2)) | plain(
        "I64", backbone__n=()
    )
    donor = plain(backbone__a=(4, 4), backbone__b=(5,), head__z=(1,)) | plain(
        "I64", backbone__n=(), backbone__c=(2, 2)
    )
    found = matched(anchor, donor)
    assert [p.name for p in found.shared] == ["backbone.a"]
    assert found.kept == {
        "backbone.b": "shape differs: (3,) vs (5,)",
        "backbone.c": "int64 in donor1",
        "backbone.n": "int64 is never averaged",
    }
    assert found.unused == (
        {
            "backbone.b": "shape differs: (3,) vs (5,)",
            "head.z": "absent in anchor",
            "backbone.n": "int64 is never averaged",
            "backbone.c": "int64 is never averaged",
        },
    )


def test_reasons_name_the_donor_where_there_are_several() -> None:
    anchor = plain(backbone__a=(4, 4), backbone__b=(3,), backbone__c=(2,))
    one = plain(backbone__a=(4, 4), backbone__b=(5,), backbone__c=(2,))
    two = plain(backbone__a=(4, 4))
    found = matched(anchor, one, two)
    assert found.kept == {"backbone.b": "shape differs: (3,) vs (5,) in donor1; absent in donor2"}
    shared = {p.name: [s is not None for s in p.sources] for p in found.shared}
    assert shared == {"backbone.a": [True, True, True], "backbone.c": [True, True, False]}


@pytest.mark.parametrize(
    ("put_on", "taken_off", "said"),
    [
        ("", "module.model.", "-module.model."),
        ("encoder.", "", "+encoder."),
        ("net.encoder.", "", "+net.encoder."),
    ],
)
def test_one_prefix_between_two_files_is_found_and_reported(
    put_on: str, taken_off: str, said: str
) -> None:
    keys = {f"layer{i}.conv.weight": (4, 4) for i in range(3)}
    anchor = plain(**{(put_on + k).replace(".", "__"): v for k, v in keys.items()})
    donor = plain(**{(taken_off + k).replace(".", "__"): v for k, v in keys.items()})
    found = matched(anchor, donor)
    assert found.prefixes == (said,)
    assert [p.name for p in found.shared] == list(anchor)
    assert [p.sources[1] and p.sources[1].key for p in found.shared] == list(donor)
    assert found.unused == ({},)


def test_no_prefix_is_taken_where_names_agree_better_as_they_are() -> None:
    ours = plain(a__b__c=(2, 2), a__b__d=(2, 2), b__c=(3, 3), x__y=(2, 2))
    assert matched(ours, ours).prefixes == ("",)


def test_parts_are_the_top_level_modules_where_no_one_knows_better() -> None:
    ours = plain(base_net__a=(2, 2), decoder__b=(2, 2), extra__c=(2, 2))
    parts = matched(ours, ours).parts
    assert [(part.name, part.backbone) for part in parts] == [
        ("base_net", True),
        ("extra", False),
        ("decoder", False),
    ]


def test_without_a_known_name_everything_but_heads_is_backbone() -> None:
    ours = plain(stage1__a=(2, 2), stage2__b=(2, 2), classifier__c=(2, 2))
    parts = {part.name: part.backbone for part in matched(ours, ours).parts}
    assert parts == {"stage1": True, "stage2": True, "classifier": False}


# ------------------------------------------------------------------------------ nothing shared


def refused(tmp_path: Path, *models: dict[str, np.ndarray]) -> str:
    paths = [save(tmp_path / f"m{i}.safetensors", m) for i, m in enumerate(models)]
    with pytest.raises(lw.LwmmError) as caught:
        lw.plan(*paths)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_shared_names_the_nearest_misses(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    one, two = ({f"{p}.conv{i}.weight": random.random((3, 3), np.float32) for i in (1, 2)}
                for p in ("a.x", "b.y.z"))  # fmt: skip
    two["other.scale"] = np.ones(2, np.float32)
    assert "share no parameter" in refused(tmp_path, one, two | {"q.r": np.ones(1, np.float32)})


def test_vectors_alone_are_no_shared_backbone(tmp_path: Path) -> None:
    ones = np.ones(4, np.float32)
    matrix = np.ones((2, 2), np.float32)
    text = refused(
        tmp_path,
        {"backbone.norm.weight": ones, "backbone.conv.weight": matrix},
        {"backbone.norm.weight": ones, "other.conv.weight": np.ones((2, 3), np.float32)},
    )
    assert "no common backbone" in text


def test_shared_heads_alone_are_refused(tmp_path: Path) -> None:
    """SegFormer B0 and B1 share head tensors only."""
    narrow, wide = relatives(1)[0], relatives(1, size=B0)[0]
    head = {k: v for k, v in spell(segformer_transformers_old(TINY), narrow).items() if "head" in k}
    other = {
        k: v
        for k, v in spell(segformer_transformers_old(B0), wide).items()
        if not k.startswith("decode_head")
    }
    text = refused(tmp_path, spell(segformer_transformers_old(TINY), narrow), head | other)
    assert "only 15 parameters outside the backbone" in text
    assert "different sizes" in text


def test_the_second_donor_is_the_one_named(tmp_path: Path) -> None:
    neutral = relatives(2)
    a, b = (
        write_pth(tmp_path / f"{name}.pth", spell(segformer_nvlabs(TINY), values))
        for name, values in zip("ab", neutral, strict=True)
    )
    c = save(tmp_path / "stranger.safetensors", {"x.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(lw.LwmmError, match="a and stranger share no parameter"):
        lw.plan(a, b, c)


def test_a_donor_that_is_a_backbone_alone_shares_it(tmp_path: Path) -> None:
    one, two = relatives(2)
    anchor = write_pth(tmp_path / "a.pth", spell(segformer_nvlabs(TINY), one))
    donor = write_pth(tmp_path / "b.pth", spell(mit_nvlabs(TINY), two))
    plan = lw.plan(anchor, donor)
    assert {layer.part for layer in plan.layers} == {"backbone"}
    assert plan.kept["decode_head.linear_c4.proj.weight"] == "absent in b"
    assert plan.unused == ({},)
