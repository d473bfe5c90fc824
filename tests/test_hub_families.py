"""One backbone matches across the classes and the file spellings of a Hub family.

The pairs are those of KEYS_TRANSFORMERS.md, section 4. What is expected comes from the built models
(`enumerators.hub_models`), never from the names in a file; values tell which key is which tensor.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from enumerators.hub_models import (
    DIALECTS,
    FAMILIES,
    SPECIMENS,
    UNUSED,
    Built,
    Dialect,
    build,
    descend,
    keys_by_tensor,
    last_use,
    write_folder,
)
from enumerators.hub_models.folders import data2vec_head_as_in_4
from enumerators.hub_models.headers import write_headers
from safetensors.numpy import load_file

import lwmm_hub as lw
from lwmm_hub.errors import UnrelatedModelsError

Plan = dict[str, Any]

# what a training or a loss keeps in a float tensor and no average makes sense of
CONSTANTS = ("empty_weight", "attn_mask_probs")
# files of 4.57 hold other keys than those that 5.23 writes by default (elsewhere the two are one)
OLDER_FILES = {"swin", "upernet-swin", "mask2former-swin", "oneformer-swin", "data2vec"}
# 5.23 has other names in memory, which it writes with save_original_format=False
RENAMED = {
    *("swin", "upernet-swin", "mask2former-swin", "oneformer-swin"),
    *("maskformer-swin", "maskformer-resnet"),  # the decoder
    *("detr-segmentation", "detr-detection", "conditional-detr"),
    *("segformer", "segformer-classification", "vit", "beit", "beit-classification"),
    *("dinov2", "dinov2-registers", "dpt-dinov2", "upernet-dinov2", "dinov3"),
}


def dialects_of(name: str) -> list[Dialect]:
    """The spellings in which files of a class differ."""
    found: list[Dialect] = ["5.23"]
    found += ["new names"] if name in RENAMED else []
    found += ["4.57"] if name in OLDER_FILES else []
    return found


class Filed(NamedTuple):
    """A built model in a folder."""

    built: Built
    folder: Path
    dialect: Dialect
    keys: dict[str, str]  # role -> key in the file

    def role_of(self) -> dict[str, str]:
        return {key: role for role, key in self.keys.items()}


Zoo = Callable[..., Filed]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Builds and writes each model once."""
    top = tmp_path_factory.mktemp("zoo")
    transformers.utils.logging.disable_progress_bar()

    @functools.cache
    def built(name: str, seed: int) -> Built:
        return build(name, seed=seed)

    @functools.cache
    def filed(name: str, dialect: Dialect = "5.23", seed: int = 1) -> Filed:
        model = built(name, seed)
        folder = write_folder(model, top / f"{name} {dialect} {seed}", dialect)
        key_of = keys_by_tensor(model, folder)
        keys = {role: key_of[path] for role, path in model.roles.items() if path in key_of}
        return Filed(model, folder, dialect, keys)

    return filed


def shared_roles(anchor: Filed, donor: Filed) -> dict[str, tuple[str, str]]:
    """Role -> the two keys of every pair of float tensors of one role and shape."""
    mine, theirs = anchor.built.shapes(), donor.built.shapes()
    return {
        role: (anchor.keys[role], donor.keys[role])
        for role, (_, floats) in mine.items()
        if floats
        and mine[role] == theirs.get(role)
        and role in anchor.keys
        and role in donor.keys
        and not role.endswith(CONSTANTS)
        and not role.startswith(UNUSED)
    }


def backbone_only(pairs: dict[str, tuple[str, str]]) -> set[tuple[str, str]]:
    return {keys for role, keys in pairs.items() if not role.startswith("head:")}


def merged_pairs(plan: Plan, backbone: bool) -> set[tuple[str, str]]:
    """(anchor's key, donor's key) of what is merged inside or outside the backbone."""
    parts = {part["name"] for part in plan["parts"] if part["backbone"]}
    return {
        (tensor["key"], tensor["sources"][1])
        for tensor in plan["merged"]
        if (plan["layers"][tensor["layer"]]["part"] in parts) is backbone
    }


def assert_accounts_for_every_key(plan: Plan, anchor: Filed) -> dict[str, str]:
    """Each of the anchor's keys is merged or kept, not both; returns the reasons."""
    merged = [tensor["key"] for tensor in plan["merged"]]
    kept = {row["key"]: row["reason"] for row in plan["kept"]}
    in_file = load_file(anchor.folder / "model.safetensors")
    assert len(merged) == len(set(merged))
    assert not set(merged) & set(kept)
    assert set(merged) | set(kept) == set(in_file)
    assert all(reason.strip() for reason in kept.values())
    for key, value in in_file.items():
        if value.dtype.kind != "f" or key.endswith(CONSTANTS):
            assert "never averaged" in kept[key], key
    return kept


# ---------------------------------------------------------------- the enumeration is sound itself


def image(built: Built) -> dict[str, torch.Tensor]:
    config = built.specimen.config
    side = config.get("image_size") or config.get("backbone_config", {}).get("image_size", 64)
    random = torch.Generator().manual_seed(0)
    inputs = {"pixel_values": torch.rand(1, 3, side, side, generator=random)}
    return inputs | {name: torch.zeros(shape) for name, shape in built.specimen.inputs.items()}


def outputs_by_role(built: Built) -> dict[str, torch.Tensor]:
    """What every leaf module of the backbone gave in a forward pass, the last time it ran."""
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    for role, path in built.backbone.items():
        module = built.model.get_submodule(path.rpartition(".")[0])
        if not list(module.children()):

            def note(_m: Any, _i: Any, out: Any, role: str = role.rpartition(".")[0]) -> None:
                if isinstance(out, torch.Tensor):
                    seen[role] = out

            hooks.append(module.register_forward_hook(note))
    with torch.no_grad():
        built.model(**image(built))
    for hook in hooks:
        hook.remove()
    return seen


# twin walks through two codes -> roles whose output differs although they do the same
TWINS = {
    ("swin", "upernet-swin"): (),
    ("swin", "maskformer-swin"): (),
    ("upernet-swin", "maskformer-swin"): (),
    ("segformer", "glpn"): (),
    ("vit", "dpt-vit"): (),
    ("beit", "data2vec"): (),
    ("dinov2", "upernet-dinov2"): (),
    ("dinov2-registers", "eomt"): ("block2", "block3", "last_norm"),  # EoMT's queries come in
    ("dinov3", "eomt-dinov3"): ("block2", "block3", "last_norm"),
}


@pytest.mark.parametrize("twins", TWINS, ids=" and ".join)
def test_equal_roles_do_equal_work(twins: tuple[str, str]) -> None:
    models = [build(name) for name in twins]
    for built in models:
        descend(built, seed=0, noise=0)
    if twins[1] == "eomt":  # its positions leave out cls_token, which has its own added
        state, eomt = models[0].model.state_dict(), models[1].model.state_dict()
        positions = state["dinov2_with_registers.embeddings.position_embeddings"][0]
        eomt["embeddings.position_embeddings.weight"].copy_(positions[1:])
        eomt["embeddings.cls_token"].add_(positions[0])
    first, second = map(outputs_by_role, models)
    common = [role for role in first if role in second and not role.startswith(TWINS[twins])]
    assert len(common) >= 18
    assert any(role.endswith("mlp_out") for role in common)
    if twins == ("upernet-swin", "maskformer-swin"):
        assert {f"stage{s}.norm_map" for s in (0, 1)} <= set(common)
    for role in common:
        a, b = first[role], second[role]
        torch.testing.assert_close(a.reshape(-1), b.reshape(-1), msg=role, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["upernet-swin", "mask2former-swin", "maskformer-swin"])
def test_no_output_depends_on_the_unused_norm_of_a_swin_backbone(name: str) -> None:
    built = build(name)
    unused = [path for role, path in built.backbone.items() if role.startswith(UNUSED)]
    assert len(unused) == 2
    with torch.no_grad():
        before = built.model(**image(built))
        for path in unused:
            built.model.state_dict()[path].mul_(-3).add_(5)
        after = built.model(**image(built))
    logits = [name for name in before if name.endswith("logits")]
    assert logits
    assert all(torch.equal(before[name], after[name]) for name in logits)


@pytest.mark.parametrize("name", SPECIMENS)
def test_every_tensor_of_a_model_is_found_in_its_files(name: str, zoo: Zoo) -> None:
    spelled: dict[Dialect, set[str]] = {}
    for dialect in DIALECTS:
        filed = zoo(name, dialect)
        spelled[dialect] = set(load_file(filed.folder / "model.safetensors"))
        missing = set(filed.built.roles) - set(filed.keys)
        assert all(
            role.endswith("position_index") or (dialect == "4.57" and role.startswith(UNUSED))
            for role in missing
        )
        assert set(filed.keys.values()) <= spelled[dialect]
    assert (spelled["5.23"] != spelled["new names"]) is (name in RENAMED)
    assert (spelled["5.23"] != spelled["4.57"]) is (name in OLDER_FILES)


# ------------------------------------------------------------------------------ the table of pairs


class Pair(NamedTuple):
    """Two classes, and how many float tensors of one role and shape they have.

    Attributes:
        anchor: name of a specimen.
        donor: name of another.
        backbone: tensors that their backbones have in common.
        heads: tensors that their heads have in common, where these are of one kind.
    """

    anchor: str
    donor: str
    backbone: int
    heads: int | None = None


PAIRS = (
    Pair("upernet-swin", "swin", 98),
    Pair("mask2former-swin", "swin", 98),
    Pair("oneformer-swin", "swin", 98),
    Pair("maskformer-swin", "swin", 98),
    Pair("maskformer-swin", "upernet-swin", 106),
    Pair("maskformer-swin", "mask2former-swin", 106),
    Pair("mask2former-swin", "upernet-swin", 106),
    Pair("oneformer-swin", "mask2former-swin", 106, heads=55),
    Pair("upernet-swinv2", "swinv2", 108),
    Pair("upernet-convnext", "convnext", 61),
    Pair("upernet-convnextv2", "convnextv2", 66),
    Pair("upernet-resnet", "resnet", 95),
    Pair("mask2former-resnet", "resnet", 95),
    Pair("maskformer-resnet", "resnet", 95),
    Pair("detr-segmentation", "resnet", 95),
    Pair("detr-segmentation", "mask2former-resnet", 95),
    Pair("detr-segmentation", "detr-detection", 95, heads=81),
    Pair("conditional-detr", "resnet", 95),
    Pair("conditional-detr", "detr-segmentation", 95, heads=87),
    Pair("segformer", "segformer-classification", 130),
    Pair("segformer", "glpn", 130),
    Pair("beit", "beit-classification", 75),
    Pair("data2vec", "data2vec-classification", 75),
    Pair("beit", "data2vec", 75),
    Pair("dpt-vit", "vit", 70),
    Pair("dpt-dinov2", "dinov2", 79),
    Pair("upernet-dinov2", "dinov2", 79),
    Pair("dinov2-registers", "dinov2", 79),
    Pair("eomt", "dinov2", 77),
    Pair("eomt", "dinov2-registers", 78),
    Pair("eomt-dinov3", "dinov3", 74),
    Pair("mobilevit", "mobilevit-classification", 308),
    Pair("mobilenetv2", "mobilenetv2-classification", 260),
)


def dialect_pairs(anchor: str, donor: str) -> list[tuple[Dialect, Dialect]]:
    """Every spelling of each with today's of the other; files of 4.57 with all there are."""
    return [
        (mine, theirs)
        for mine, theirs in itertools.product(dialects_of(anchor), dialects_of(donor))
        if "5.23" in (mine, theirs) or "4.57" in (mine, theirs)
    ]


DIRECTED = [
    (pair, *names)
    for pair in PAIRS
    for names in ((pair.anchor, pair.donor), (pair.donor, pair.anchor))
]
CASES = [
    pytest.param(pair, anchor, donor, mine, theirs, id=f"{anchor} {mine} x {donor} {theirs}")
    for pair, anchor, donor in DIRECTED
    for mine, theirs in dialect_pairs(anchor, donor)
]


@pytest.mark.parametrize(("pair", "first", "second", "mine", "theirs"), CASES)
def test_a_pair_matches_completely(
    pair: Pair, first: str, second: str, mine: Dialect, theirs: Dialect, zoo: Zoo
) -> None:
    anchor, donor = zoo(first, mine, 1), zoo(second, theirs, 2)
    expected = shared_roles(anchor, donor)
    assert len(backbone_only(expected)) == pair.backbone

    plan = lw.plan(anchor.folder, donor.folder).to_dict()
    kept = assert_accounts_for_every_key(plan, anchor)
    assert merged_pairs(plan, backbone=True) == backbone_only(expected)
    heads = merged_pairs(plan, backbone=False)
    alike = heads_alike_in_files(zoo(first), zoo(second))
    by_name = {(anchor.keys[a], donor.keys[b]) for a, b in alike}
    assert heads <= by_name | set(expected.values()) - backbone_only(expected)
    if pair.heads is None:
        return
    assert len(by_name) == pair.heads
    assert by_name <= heads
    shapes, others = anchor.built.shapes(), donor.built.shapes()
    for role, key in anchor.keys.items():
        if role in others and others[role] != shapes[role] and not role.endswith(CONSTANTS):
            assert kept[key] == f"shape differs: {shapes[role][0]} vs {others[role][0]}"


def heads_alike_in_files(first: Filed, second: Filed) -> list[tuple[str, str]]:
    """Roles outside the backbones that files name alike, but for the module around a model."""

    def by_name(filed: Filed) -> dict[tuple[str, tuple[int, ...]], str]:
        shapes, wrapper = filed.built.shapes(), filed.built.specimen.wrapper
        return {
            (key.removeprefix(wrapper), shapes[role][0]): role
            for role, key in filed.keys.items()
            if role.startswith("head:") and shapes[role][1] and not role.endswith(CONSTANTS)
        }

    mine, theirs = by_name(first), by_name(second)
    return [(mine[name], theirs[name]) for name in mine if name in theirs]


def test_the_pairs_touch_every_specimen() -> None:
    assert {name for pair in PAIRS for name in (pair.anchor, pair.donor)} == set(SPECIMENS)


@pytest.mark.parametrize(("anchor", "donor"), [("beit", "vit"), ("vit", "beit")])
@pytest.mark.parametrize("other", ["", "-classification"])
def test_another_pre_training_is_refused_although_names_match(
    anchor: str, donor: str, other: str, zoo: Zoo, tmp_path: Path
) -> None:
    """BEiT's blocks are ViT's but for the bias of the keys: only values tell them apart."""
    first, second = (zoo(name + other if name == "beit" else name) for name in (anchor, donor))
    with pytest.raises(UnrelatedModelsError, match=r"unrelated|no common backbone"):
        lw.merge(first.folder, second.folder, output=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# ---------------------------------------------------------------------------- what comes out loads

PARTNER = {
    name: next(
        pair.donor if pair.anchor == name else pair.anchor
        for pair in PAIRS
        if name in (pair.anchor, pair.donor)
    )
    for name in SPECIMENS
}

ANCHORS = [(name, dialect) for name in SPECIMENS for dialect in dialects_of(name)]

# What 5.23 says when it reads files of 4.57 with these classes, merged or not: it knows no index
# buffers there, and misses the norm that it makes and does not use. Elsewhere it ignores both.
OF_OLDER_FILES = {"mask2former-swin", "oneformer-swin"}


def loading_info(filed: Filed, folder: Path) -> dict[str, Any]:
    model_class = getattr(transformers, filed.built.specimen.model_class)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own making
        _, info = model_class.from_pretrained(folder, output_loading_info=True)
    return {what: keys for what, keys in info.items() if keys}


@pytest.mark.parametrize(("name", "dialect"), ANCHORS)
def test_the_result_has_the_anchors_keys_and_loads(
    name: str, dialect: Dialect, zoo: Zoo, tmp_path: Path
) -> None:
    anchor, donor = zoo(name, dialect, 1), zoo(PARTNER[name], "5.23", 2)
    plan = lw.merge(anchor.folder, donor.folder, output=tmp_path / "merged").plan.to_dict()
    assert {row["verdict"] for row in plan["relatedness"] if row["backbone"]} == {"related"}

    mine = load_file(anchor.folder / "model.safetensors")
    theirs = load_file(donor.folder / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert {k: (v.shape, v.dtype) for k, v in merged.items()} == {
        k: (v.shape, v.dtype) for k, v in mine.items()
    }
    sources = {t["key"]: (t["sources"][1], t["weights"]) for t in plan["merged"]}
    expected = shared_roles(anchor, donor)
    for role, (key, other) in expected.items():
        if not role.startswith("head:"):
            assert sources[key][0] == other
    for key, value in merged.items():
        if key not in sources:
            assert np.array_equal(value, mine[key]), key
            continue
        other, (a, b) = sources[key]
        np.testing.assert_allclose(value, a * mine[key] + b * theirs[other], rtol=1e-4, atol=1e-6)

    if name == "data2vec" and dialect == "4.57":  # 5.23 reads no such head by itself
        with data2vec_head_as_in_4():
            info = loading_info(anchor, tmp_path / "merged")
    else:
        info = loading_info(anchor, tmp_path / "merged")
    if dialect == "4.57" and name in OF_OLDER_FILES:
        unused = {p for role, p in anchor.built.backbone.items() if role.startswith(UNUSED)}
        assert set(info) == {"missing_keys", "unexpected_keys"}
        assert set(info["missing_keys"]) == unused
        assert all(key.endswith(".relative_position_index") for key in info["unexpected_keys"])
    else:
        assert info == {}


# ------------------------------------------------------------------------------------- depth order

# Two codes of one family may read a block's queries, keys, values and positions, which do not
# depend on each other, in another order. A family has one order: that of the first code.
ORDER_AS_IN = {
    "dpt-vit": "vit",
    "data2vec": "beit",
    "data2vec-classification": "beit-classification",
}


@functools.cache
def moments(name: str) -> dict[str, int]:
    """Role -> when it is last used in a forward pass, as this file's own tracer sees it."""
    built = build(name)
    used = last_use(built.model, **image(built))
    return {role: used[path] for role, path in built.backbone.items()}


def roles_by_layer(plan: Plan, anchor: Filed) -> list[set[str]]:
    """The roles in each layer of the plan, in its order."""
    role_of = anchor.role_of()
    layers: list[set[str]] = [set() for _ in plan["layers"]]
    for tensor in plan["merged"]:
        layers[tensor["layer"]].add(role_of[tensor["key"]])
    return layers


@pytest.mark.parametrize(("name", "dialect"), ANCHORS)
def test_layers_come_in_the_order_of_their_last_use(name: str, dialect: Dialect, zoo: Zoo) -> None:
    anchor, donor = zoo(name, dialect, 1), zoo(name, "5.23", 2)
    plan = lw.plan(anchor.folder, donor.folder, scope="backbone").to_dict()
    layers = roles_by_layer(plan, anchor)
    expected = {role for role in shared_roles(anchor, donor) if not role.startswith("head:")}
    assert set().union(*layers) == expected

    when = moments(ORDER_AS_IN.get(name, name))
    found = [{when[role] for role in layer} for layer in layers]
    assert all(len(times) == 1 for times in found)  # weight, bias and statistics of one module
    times = [moment for layer in found for moment in layer]
    assert times == sorted(times)


# Heads follow the backbone as a whole, and each class of a kind of head shares one table: there
# these stand elsewhere than where they are last used.
OUT_OF_ORDER = {
    "eomt": "head:query.",  # comes in half way through the backbone
    "eomt-dinov3": "head:query.",
    "oneformer-swin": "head:model.task_encoder.",
    "conditional-detr": "head:model.decoder.query_scale.",
}


@pytest.mark.parametrize("name", SPECIMENS)
def test_heads_too_come_in_the_order_of_their_last_use(name: str, zoo: Zoo) -> None:
    """All but auxiliary heads, which are side branches, and modules that do not run."""
    anchor, donor = zoo(name, "5.23", 1), zoo(name, "5.23", 2)
    plan = lw.plan(anchor.folder, donor.folder).to_dict()
    assert plan["order_source"].startswith("the table of ")
    assert {t["key"] for t in plan["merged"]} == {
        k for k, _ in shared_roles(anchor, donor).values()
    }
    when = last_use(anchor.built.model, **image(anchor.built))
    apart = ("head:auxiliary_head", OUT_OF_ORDER.get(name, "none"))
    layers = [
        {role for role in layer if role.startswith("head:") and not role.startswith(apart)}
        for layer in roles_by_layer(plan, anchor)
    ]
    found = [{when.get(anchor.built.roles[role]) for role in layer} for layer in layers if layer]
    assert all(len(times) == 1 for times in found)
    times = [moment for layer in found for moment in layer if moment is not None]
    assert times == sorted(times)
    assert times or name == "dinov3"  # a backbone alone


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_has_one_order_and_one_ramp_in_every_class_and_dialect(
    family: str, zoo: Zoo
) -> None:
    orders: dict[tuple[str, str], dict[str, tuple[int, float]]] = {}
    for name, dialect in ANCHORS:
        if SPECIMENS[name].family == family:
            anchor, donor = zoo(name, dialect, 1), zoo(name, dialect, 2)
            plan = lw.plan(anchor.folder, donor.folder, scope="backbone").to_dict()
            role_of = anchor.role_of()
            orders[name, dialect] = {
                role_of[t["key"]]: (t["layer"], t["weights"][0]) for t in plan["merged"]
            }
    assert len(orders) >= 2
    for first in orders.values():
        for second in orders.values():
            common = first.keys() & second.keys()
            assert len(common) > 60

            def ranks(order: dict[str, tuple[int, float]], common: set[str]) -> dict[str, int]:
                layers = sorted({order[role][0] for role in common})
                return {role: layers.index(order[role][0]) for role in common}

            assert ranks(first, common) == ranks(second, common)
            if first.keys() == second.keys():
                assert first == second


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.anchor} x {pair.donor}")
def test_a_pair_has_one_ramp_in_both_directions_and_all_dialects(pair: Pair, zoo: Zoo) -> None:
    ramps: set[tuple[tuple[str, float], ...]] = set()
    for names in ((pair.anchor, pair.donor), (pair.donor, pair.anchor)):
        for mine, theirs in dialect_pairs(*names):
            anchor, donor = zoo(names[0], mine, 1), zoo(names[1], theirs, 2)
            plan = lw.plan(anchor.folder, donor.folder, scope="backbone").to_dict()
            role_of = anchor.role_of()
            ramp = {role_of[t["key"]]: t["weights"][0] for t in plan["merged"]}
            ramps.add(tuple(sorted(ramp.items())))
    assert [len(ramp) for ramp in ramps] == [pair.backbone]


# ------------------------------------------------- one class, other tasks, in the sizes of the Hub

# configs/cityscapes of github.com/facebookresearch/Mask2Former: width, depths, window; queries
# of (panoptic, semantic, instance); classes without the "no object" one
SIZES: dict[str, tuple[int, list[int], int, tuple[int, int, int]]] = {
    "tiny": (96, [2, 2, 6, 2], 7, (100, 100, 100)),
    "small": (96, [2, 2, 18, 2], 7, (100, 100, 100)),
    "base": (128, [2, 2, 18, 2], 12, (100, 100, 100)),
    "large": (192, [2, 2, 18, 2], 12, (200, 100, 200)),
}
TASKS = {"panoptic": 19, "semantic": 19, "instance": 8}
QUERIES = [
    "model.transformer_module.queries_embedder.weight",
    "model.transformer_module.queries_features.weight",
]


def mask2former(size: str, task: str) -> dict[str, Any]:
    width, depths, window, queries = SIZES[size]
    swin = {
        "model_type": "swin",
        "image_size": 224 if window == 7 else 384,
        "embed_dim": width,
        "depths": depths,
        "num_heads": [width // 32 * 2**i for i in range(4)],
        "window_size": window,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    return {
        "model_type": "mask2former",
        "backbone_config": swin,
        "num_queries": queries[list(TASKS).index(task)],
        "num_labels": TASKS[task],
    }


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    top = tmp_path_factory.mktemp("real sizes")

    @functools.cache
    def write(size: str, task: str, older: bool) -> Path:
        index = SIZES[size][2] if older else None
        folder = top / f"{size} {task} {older}"
        config = mask2former(size, task)
        return write_headers("Mask2FormerForUniversalSegmentation", config, folder, index)

    return write


# (panoptic x semantic, panoptic x instance, semantic x instance): keys merged and kept, both ways
COUNTS: dict[tuple[str, bool], tuple[tuple[int, int], ...]] = {
    ("tiny", False): ((553, 3), (551, 5), (551, 5)),
    ("tiny", True): ((553, 13), (551, 15), (551, 15)),
    ("small", False): ((757, 3), (755, 5), (755, 5)),
    ("small", True): ((757, 25), (755, 27), (755, 27)),
    ("base", False): ((757, 3), (755, 5), (755, 5)),
    ("base", True): ((757, 25), (755, 27), (755, 27)),
    ("large", False): ((755, 5), (755, 5), (753, 7)),
    ("large", True): ((755, 27), (755, 27), (753, 29)),
}


@pytest.mark.parametrize("older", [False, True], ids=["5.23", "4.57"])
@pytest.mark.parametrize("size", SIZES)
def test_whole_models_of_one_class_merge_across_tasks(
    size: str, older: bool, real: Callable[..., Path]
) -> None:
    found = []
    for first, second in itertools.combinations(TASKS, 2):
        plans = [
            lw.plan(real(size, a, older), real(size, b, older)).to_dict()
            for a, b in ((first, second), (second, first))
        ]
        kept = [{row["key"]: row["reason"] for row in plan["kept"]} for plan in plans]
        assert set(kept[0]) == set(kept[1])
        classes, queries = TASKS[first] != TASKS[second], SIZES[size][3]
        other_queries = queries[list(TASKS).index(first)] != queries[list(TASKS).index(second)]
        index = {key for key in kept[0] if key.endswith(".relative_position_index")}
        assert len(index) == (sum(SIZES[size][1]) if older else 0)
        unused = {key for key in kept[0] if ".swin.layernorm." in key}
        assert len(unused) == (0 if older else 2)
        assert set(kept[0]) - index - unused == {
            "criterion.empty_weight",
            *(["class_predictor.weight", "class_predictor.bias"] if classes else []),
            *(QUERIES if other_queries else []),
        }
        assert all("never averaged" in kept[0][key] for key in index)
        if other_queries:
            assert kept[0][QUERIES[0]] == "shape differs: " + (
                "(200, 256) vs (100, 256)" if first == "panoptic" else "(100, 256) vs (200, 256)"
            )
        found.append((len(plans[0]["merged"]), len(kept[0])))
        assert [t["key"] for t in plans[0]["merged"]] == [t["key"] for t in plans[1]["merged"]]
    assert tuple(found) == COUNTS[size, older]


@pytest.mark.parametrize("name", sorted(OLDER_FILES))
def test_a_merge_of_older_files_loads_through_its_result(
    name: str, zoo: Zoo, tmp_path: Path
) -> None:
    """What 5.23 does not find is a norm that nothing depends on, or a head that it renamed."""
    anchor, donor = zoo(name, "4.57", 1), zoo(name, "4.57", 2)
    result = lw.merge(anchor.folder, donor.folder, output=tmp_path / "merged")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own making
        model = result.load()
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    state = model.state_dict()
    for role, key in anchor.keys.items():
        path = anchor.built.roles[role]
        assert np.array_equal(state[path].numpy(), merged[key]), key
