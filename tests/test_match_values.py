"""Values decide where neither names, tables nor a prefix match: nets with other names, merged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import ClassVar

import numpy as np
import pytest
import yaml
from clients import lwmm_hub
from enumerators import TINY, ancestor, finetuned, spell_nvlabs, write_pth
from hub import TestHub
from safetensors.numpy import save_file
from stories import Command, everything_below, lwmm  # noqa: F401  a fixture

import lwmm_hub as lw
from lwmm_hub.checkpoint import ByteReader, Checkpoint, TensorEntry
from lwmm_hub.errors import RecipeError, UnrelatedModelsError, UsageError, VerificationError
from lwmm_hub.inferring import comparing, infer_pairs
from lwmm_hub.key_map import ValuePair, match_keys, natural_order

Values = dict[str, np.ndarray]

WIDTHS = 16, 24
WORDS = {
    "stem": "entry", "conv": "proj", "norm": "bn", "stages": "layer", "norm1": "ln_before",
    "norm2": "ln_after", "attn": "mixer", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out",
    "mlp": "ffn", "fc1": "up", "fc2": "down", "down": "shrink", "head": "decoder",
    "fuse": "squeeze", "classifier": "logits",
}  # fmt: skip


def shapes(depth: int = 2) -> dict[str, tuple[int, ...]]:
    """A small net: a stem with batch norm, two stages of transformer blocks, a head."""
    found: dict[str, tuple[int, ...]] = {}

    def module(name: str, *weight: int, statistics: bool = False) -> None:
        found[f"{name}.weight"] = weight
        found[f"{name}.bias"] = weight[:1]
        if statistics:
            found[f"{name}.running_mean"] = found[f"{name}.running_var"] = weight[:1]
            found[f"{name}.num_batches_tracked"] = ()

    module("stem.conv", WIDTHS[0], 3, 7, 7)
    module("stem.norm", WIDTHS[0], statistics=True)
    for s, width in enumerate(WIDTHS):
        for b in range(depth):
            block = f"stages.{s}.{b}"
            module(f"{block}.norm1", width)
            for name in ("q", "k", "v", "out"):
                module(f"{block}.attn.{name}", width, width)
            module(f"{block}.norm2", width)
            module(f"{block}.mlp.fc1", 2 * width, width)
            module(f"{block}.mlp.fc2", width, 2 * width)
        if s == 0:
            module("stages.0.down", WIDTHS[1], width, 2, 2)
    module("head.fuse", 8, WIDTHS[1], 1, 1)
    module("head.norm", 8, statistics=True)
    module("head.classifier", 5, 8, 1, 1)
    return found


def start(seed: int = 0, depth: int = 2) -> Values:
    """An untrained net of random values; norm layers are near one and zero, as they are."""
    rng = np.random.default_rng(seed)
    values: Values = {}
    for key, shape in shapes(depth).items():
        if not shape:
            values[key] = np.asarray(seed, np.int64)
            continue
        value = rng.standard_normal(shape)
        if len(shape) == 1:
            value = 0.1 * value + key.endswith(("norm.weight", "norm1.weight", "norm2.weight"))
        values[key] = (np.abs(value) if key.endswith("var") else value).astype(np.float32)
    return values


def tuned(values: Values, noise: float, seed: int) -> Values:
    """The net after a training: every tensor moved by `noise` times its own spread."""
    rng = np.random.default_rng([seed, 7])
    return {
        key: value if value.dtype == np.int64
        else value + (noise * value.std() * rng.standard_normal(value.shape)).astype(np.float32)
        for key, value in values.items()
    }  # fmt: skip


def renamed(values: Mapping[str, np.ndarray], words: Mapping[str, str] = WORDS) -> Values:
    """The same net as another library names its modules, in the same order."""
    return {reword(key, words): value for key, value in values.items()}


def reword(key: str, words: Mapping[str, str] = WORDS) -> str:
    *modules, leaf = key.split(".")
    return ".".join([*(words.get(word, word) for word in modules), leaf])


@dataclass(frozen=True)
class Pair:
    """Two relatives, and the second under other names."""

    anchor: Path
    donor: Path
    other_names: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("nets")
    anchor, donor = (tuned(start(), 0.3, seed) for seed in (1, 2))
    return Pair(
        write_pth(folder / "city.pth", anchor),
        write_pth(folder / "rain.pth", donor),
        write_pth(folder / "other.pth", renamed(donor)),
    )


def opened(*paths: Path) -> list[Checkpoint]:
    return [lw.resolve(str(path)) for path in paths]


def floats(values: Mapping[str, np.ndarray]) -> list[str]:
    return [key for key, value in values.items() if value.dtype == np.float32]


# ------------------------------------------------------------------------------ the whole story


def test_the_command_line_suggests_refuses_merges_and_verifies(
    pair: Pair,
    lwmm: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    models = pair.anchor, pair.other_names
    number = len(floats(start()))

    refused = lwmm("plan", *models)
    assert (refused.code, refused.out) == (4, "")
    assert "city and other share no parameter" in refused.err
    assert "--match values" in refused.err
    refused = lwmm("plan", *models, "--check-weights")
    assert (refused.code, refused.out) == (4, "")
    assert f"but {number} parameters match by their values (lowest cosine 0.9" in refused.err
    assert refused.err.endswith("Pass --match values to merge them.\n")
    refused = lwmm("merge", *models, "-o", tmp_path / "merged")
    assert (refused.code, refused.out) == (4, "")
    assert "--match values" in refused.err
    assert not (tmp_path / "merged").exists()
    assert lwmm("merge", *models, "--match", "shapes").code == 2

    planned = lwmm("plan", *models, "--match", "values", "--format", "human")
    assert planned.code == 0
    assert f"Inferred: {number} parameters of other are matched by their values" in planned.out
    assert re.search(r"  0\.9\d\d  \S+ <- \S+\n", planned.out)
    rows = lwmm("plan", *models, "--match", "values", "--format", "agent").out.splitlines()
    assert sum(row.startswith("inferred\t1\t") for row in rows) == number

    done = lwmm("merge", *models, "--match", "values", "-o", tmp_path / "merged", "--json")
    assert done.code == 0
    assert (done.data["merged"], done.data["warnings"]) == (number, [])
    by_name = lwmm("merge", pair.anchor, pair.donor, "-o", tmp_path / "by name", "--json")
    assert done.data["sha256"] == by_name.data["sha256"]

    assert lwmm("verify", tmp_path / "merged").code == 0
    recipe = tmp_path / "merged" / "lwmm_recipe.yaml"
    again = lwmm("merge", "--recipe", recipe, "-o", tmp_path / "again", "--json")
    assert again.data["sha256"] == done.data["sha256"]
    assert again.data["warnings"] == []
    card = (tmp_path / "merged" / "README.md").read_text("utf-8")
    assert f"{number} parameters were matched by values, not by name (lowest centred" in card
    assert "Options: match values." in card
    assert "matched by values" not in (tmp_path / "by name" / "README.md").read_text("utf-8")


def test_a_plan_with_inferred_matches_is_a_value(pair: Pair, tmp_path: Path) -> None:
    plan = lw.plan(pair.anchor, pair.other_names, match="values", check_weights=True)
    assert lw.MergePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert {(p.key, p.source) for p in plan.inferred} == {
        (key, reword(key)) for key in floats(start())
    }
    anchor, donor = tuned(start(), 0.3, 1), tuned(start(), 0.3, 2)
    for found in plan.inferred:
        leader = found.follows or found.key
        assert (anchor[found.key].ndim >= 2) == (not found.follows)
        assert anchor[leader].ndim >= 2
        expected = np.corrcoef(anchor[leader].ravel(), donor[leader].ravel())[0, 1]
        assert found.cosine == pytest.approx(expected, abs=1e-6)
    assert {r.verdict for r in plan.relatedness} == {"related"}
    by_name = lw.plan(pair.anchor, pair.donor, check_weights=True)
    assert by_name.inferred == ()
    assert by_name.layers == plan.layers
    merged = lw.merge(plan, output=tmp_path / "merged")
    assert merged.plan.inferred == plan.inferred
    old = {key: value for key, value in by_name.to_dict().items() if key != "inferred"}
    del old["options"]["match"]  # as written before there was such an option
    assert lw.MergePlan.from_dict(old) == by_name


def test_a_recipe_whose_parents_match_otherwise_is_refused(pair: Pair, tmp_path: Path) -> None:
    lw.merge(pair.anchor, pair.other_names, match="values", output=tmp_path / "merged")
    path = tmp_path / "merged" / "lwmm_recipe.yaml"
    recipe = yaml.safe_load(path.read_text("utf-8"))
    assert re.fullmatch("[0-9a-f]{64}", recipe["pairs_sha256"])
    recipe["pairs_sha256"] = "0" * 64
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(VerificationError, match="match other tensors than when the recipe"):
        lw.merge_recipe(path, output=tmp_path / "again")
    assert not (tmp_path / "again").exists()
    recipe["pairs_sha256"] = "yes"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match="64 hexadecimal digits"):
        lw.merge_recipe(path, output=tmp_path / "again")
    del recipe["pairs_sha256"]  # written by hand: matched anew
    path.write_text(yaml.safe_dump(recipe))
    assert lw.merge_recipe(path, output=tmp_path / "again").plan.inferred


def test_drift_is_that_of_the_models_with_equal_names(
    pair: Pair,
    lwmm: Command,  # noqa: F811
) -> None:
    assert lwmm("drift", pair.anchor, pair.other_names).code == 4
    found = lwmm("drift", pair.anchor, pair.other_names, "--match", "values", "--json").data
    assert found["drift"] == lwmm("drift", pair.anchor, pair.donor, "--json").data["drift"]


def test_a_file_without_order_is_matched_by_containers(pair: Pair, tmp_path: Path) -> None:
    """Safetensors files are alphabetical: norms stand beside others there than in the net."""
    anchor, donor = tuned(start(), 0.3, 1), renamed(tuned(start(), 0.3, 2))
    save_file(anchor, tmp_path / "a.safetensors")
    save_file(donor, tmp_path / "b.safetensors")
    models = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    result = lw.merge(*models, match="values", output=tmp_path / "merged")
    assert {(p.key, p.source) for p in result.plan.inferred} == {
        (key, reword(key)) for key in floats(anchor)
    }


def test_fused_tensors_of_a_table_are_matched_whole(tmp_path: Path) -> None:
    """A SegFormer of NVlabs (kv in one tensor) against one whose names no table knows."""
    one, two = (spell_nvlabs(finetuned(ancestor(TINY, 1), i), TINY) for i in (1, 2))
    words: dict[str, str] = {}
    nonsense = {
        ".".join(w if w.isdigit() else words.setdefault(w, f"x{len(words)}") for w in parts)
        + f".{leaf}": value
        for key, value in two.items()
        for *parts, leaf in [key.split(".")]
    }
    files = [
        write_pth(tmp_path / f"{name}.pth", values)
        for name, values in (("one", one), ("two", two), ("nonsense", nonsense))
    ]
    by_name = lw.merge(*files[:2], output=tmp_path / "by name")
    by_values = lw.merge(files[0], files[2], match="values", output=tmp_path / "by values")
    assert len(by_values.plan.inferred) == len({t.key for t in by_values.plan.merged})
    assert {t.name for t in by_name.plan.merged} - {t.name for t in by_values.plan.merged} == set()
    assert by_values.files == by_name.files


def test_a_donor_of_the_hub_is_matched_pushed_and_verified(hub: TestHub, tmp_path: Path) -> None:
    number = len(floats(start()))
    for i, (name, net) in enumerate((("org/a", start()), ("org/b", renamed(start()))), start=1):
        path = tmp_path / f"{i}.safetensors"
        save_file(tuned(net, 0.2, i), path)
        card = b"---\nlicense: apache-2.0\n---\n"
        hub.create_repo(name, {"model.safetensors": path.read_bytes(), "README.md": card})
    place = {"hub": hub, "home": tmp_path / "home", "cwd": tmp_path / "cwd"}
    refused = lwmm_hub("plan", "org/a", "org/b", "--check-weights", **place)
    assert refused.code == 4  # nothing whole is downloaded only to say how much would match
    assert "--match values" in refused.err
    done = lwmm_hub("merge", "org/a", "org/b", "--match", "values", "--push", "alice/ab", "--json",
                    **place, token="alice")  # fmt: skip
    assert (done.code, done.data["merged"]) == (0, number)
    assert (
        f"{number} parameters were matched by values" in hub.files("alice/ab")["README.md"].decode()
    )
    assert lwmm_hub("verify", "alice/ab", **place, token="alice").code == 0


# ------------------------------------------------------------------------------ who wins


def test_names_win_and_values_fill_in_the_rest(tmp_path: Path) -> None:
    """Half of the donor has the anchor's names; two of its tensors stand under each other's."""
    anchor, donor = tuned(start(), 0.2, 1), tuned(start(), 0.2, 2)
    q, k = "stages.0.0.attn.q.weight", "stages.0.0.attn.k.weight"
    donor[q], donor[k] = donor[k], donor[q]
    half = {re.sub(r"^stages\.1", "late", key): value for key, value in donor.items()}
    files = write_pth(tmp_path / "a.pth", anchor), write_pth(tmp_path / "b.pth", half)

    plain = lw.plan(*files)
    late = {key for key in floats(anchor) if key.startswith("stages.1")}
    assert set(plain.kept) >= late
    plan = lw.plan(*files, match="values")
    sources = {t.key: t.sources[1].key for t in plan.merged if t.sources[1]}
    assert (sources[q], sources[k]) == (q, k)
    assert {p.key for p in plan.inferred} == late
    assert all(p.source == p.key.replace("stages.1", "late") for p in plan.inferred)
    assert set(plan.kept) == set(anchor) - set(floats(anchor))


def test_a_tensor_of_the_same_name_and_another_shape_makes_room(tmp_path: Path) -> None:
    """Other classes under the classifier's name; the anchor's classes under an auxiliary's."""
    anchor, donor = tuned(start(), 0.2, 1), tuned(start(), 0.2, 2)
    for leaf in ("weight", "bias"):
        donor[f"aux.{leaf}"] = donor[f"head.classifier.{leaf}"]
        donor[f"head.classifier.{leaf}"] = np.ones((7, *donor[f"aux.{leaf}"].shape[1:]), "f4")
    files = write_pth(tmp_path / "a.pth", anchor), write_pth(tmp_path / "b.pth", donor)
    assert "shape differs" in lw.plan(*files).kept["head.classifier.weight"]
    plan = lw.plan(*files, match="values")
    assert [(p.key, p.source) for p in plan.inferred] == [
        (f"head.classifier.{leaf}", f"aux.{leaf}") for leaf in ("weight", "bias")
    ]
    for leaf in ("weight", "bias"):
        why = plan.unused[0][f"head.classifier.{leaf}"]
        assert why == "another tensor has its place"


def test_values_of_one_donor_do_not_hide_that_another_shares_nothing(tmp_path: Path) -> None:
    nets = tuned(start(), 0.2, 1), renamed(tuned(start(), 0.2, 2)), renamed(start(9))
    files = [
        write_pth(tmp_path / f"{name}.pth", net) for name, net in zip("abc", nets, strict=True)
    ]
    with pytest.raises(UnrelatedModelsError, match="a and c share no parameter"):
        lw.plan(*files, check_weights=True)


def test_each_donor_is_matched_on_its_own(tmp_path: Path) -> None:
    nets = [tuned(start(), 0.2, seed) for seed in (1, 2, 3)]
    files = [
        write_pth(tmp_path / f"{i}.pth", net)
        for i, net in enumerate((nets[0], nets[1], renamed(nets[2])))
    ]
    plan = lw.plan(*files, match="values")
    assert {p.model for p in plan.inferred} == {2}
    assert len(plan.inferred) == len(plan.merged) == len(floats(nets[0]))
    assert all(None not in tensor.sources for tensor in plan.merged)
    assert f"Inferred: {len(plan.inferred)} parameters of 2" in plan._repr_html_()


def test_a_pair_that_does_not_fit_is_refused(pair: Pair) -> None:
    anchor, donor = opened(pair.anchor, pair.other_names)
    q, k = "stages.0.0.attn.q.weight", "stages.0.0.attn.k.weight"
    for source, why in (
        ("nothing", "there is no such tensor"),
        (reword("stem.conv.weight"), "shapes"),
    ):
        with pytest.raises(UsageError, match=why):
            lw.match(anchor, donor, pairs=[ValuePair(1, q, source, 0.9)])
    same = opened(pair.anchor, pair.donor)
    with pytest.raises(UsageError, match="it is matched by name"):
        lw.match(*same, pairs=[ValuePair(1, q, k, 0.9)])


def test_a_plan_by_names_that_leaves_most_over_says_what_values_can_do(tmp_path: Path) -> None:
    anchor, donor = tuned(start(), 0.2, 1), tuned(start(), 0.2, 2)
    most = {k if k.startswith("stem") else reword(k): v for k, v in donor.items()}
    files = write_pth(tmp_path / "a.pth", anchor), write_pth(tmp_path / "b.pth", most)
    assert any(
        re.match(r"\d+ tensors of b have shapes of the anchor's, but other names: --match", w)
        for w in lw.plan(*files).warnings
    )
    assert any(
        re.match(r"names aside, \d+ parameters match by their values \(lowest cosine 0\.9", w)
        for w in lw.plan(*files, check_weights=True).warnings
    )
    assert not any("--match" in w for w in lw.plan(*files, match="values").warnings)
    assert lw.plan(write_pth(tmp_path / "c.pth", donor), files[0]).warnings == ()


def test_a_network_of_another_training_matches_nothing(tmp_path: Path) -> None:
    files = [
        write_pth(tmp_path / "a.pth", start(1, depth=6)),
        write_pth(tmp_path / "b.pth", renamed(start(2, depth=6))),
    ]
    assert infer_pairs(opened(*files)).pairs == ()
    before = everything_below(tmp_path)
    with pytest.raises(UnrelatedModelsError, match="neither by name nor by values"):
        lw.merge(*files, match="values", output=tmp_path / "merged")
    assert everything_below(tmp_path) == before


# ------------------------------------------------------------------------------ hard values


def save_nets(folder: Path, *nets: Values) -> list[Checkpoint]:
    return opened(*(write_pth(folder / f"{i}.pth", net) for i, net in enumerate(nets)))


def test_constants_and_nan_are_not_matched(tmp_path: Path) -> None:
    anchor, donor = tuned(start(), 0.1, 1), tuned(start(), 0.1, 2)
    constant, broken = "stages.0.0.attn.q.weight", "stages.1.1.mlp.fc1.weight"
    for net in (anchor, donor):
        net[constant] = np.full_like(net[constant], 0.02)  # no power of two: sums are rounded
    donor[broken][3, 3] = np.nan
    anchor["stages.1.0.mlp.fc2.weight"][0, 0] = np.inf
    pairs = infer_pairs(save_nets(tmp_path, anchor, renamed(donor))).pairs
    missing = set(floats(anchor)) - {p.key for p in pairs}
    assert missing == {
        constant, constant.replace("weight", "bias"),
        broken, broken.replace("weight", "bias"),
        "stages.1.0.mlp.fc2.weight", "stages.1.0.mlp.fc2.bias",
    }  # fmt: skip
    assert all(p.source == reword(p.key) for p in pairs)


def test_two_copies_of_the_donor_are_no_match(tmp_path: Path) -> None:
    anchor, donor = tuned(start(), 0.1, 1), renamed(tuned(start(), 0.1, 2))
    copies = {f"{net}.{k}": v for net in ("x", "y") for k, v in donor.items()}
    found = infer_pairs(save_nets(tmp_path, anchor, copies))
    assert found.pairs == ()
    assert len(found.unsure) == sum(anchor[key].ndim >= 2 for key in anchor)
    with pytest.raises(UnrelatedModelsError, match="holds one copy of its network"):
        lw.plan(tmp_path / "0.pth", tmp_path / "1.pth", match="values")


def test_norms_that_could_be_either_stay_the_anchors_and_the_plan_says_so(tmp_path: Path) -> None:
    """At their first values two norms of a block look alike, and their names do not help."""
    nets = [tuned(start(), 0.1, seed) for seed in (1, 2)]
    for net in nets:
        for name in ("norm1", "norm2"):
            net[f"stages.0.1.{name}.weight"][:], net[f"stages.0.1.{name}.bias"][:] = 1, 0
    # in one gap of the file: the second norm is made right behind the first
    order = [k for k in nets[0] if ".0.1.norm2." not in k]
    at = order.index("stages.0.1.norm1.bias") + 1
    order[at:at] = ["stages.0.1.norm2.weight", "stages.0.1.norm2.bias"]
    nets = [{key: net[key] for key in order} for net in nets]
    checkpoints = save_nets(tmp_path, nets[0], renamed(nets[1]))
    plan = lw.plan(tmp_path / "0.pth", tmp_path / "1.pth", match="values")
    apart = {
        f"stages.0.1.{name}.{leaf}" for name in ("norm1", "norm2") for leaf in ("weight", "bias")
    }
    assert {key for key, why in plan.kept.items() if why.endswith("by name and by values")} == apart
    assert any(w.startswith("4 tensors of one dimension (first stages.0.1") for w in plan.warnings)
    assert {p.key for p in infer_pairs(checkpoints).pairs} == set(floats(nets[0])) - apart


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("shuffled", [1, 2])
def test_norms_of_units_in_another_order_match_nothing(
    shuffled: int, grouped: bool, tmp_path: Path
) -> None:
    """A donor whose hidden units are shuffled is the same function, and no tensor of them fits."""
    leaves = "weight", "bias", "running_mean", "running_var"
    sizes = {1: (16, 32, 1, 1), 2: (16, 16, 3, 3), 3: (32, 16, 1, 1)}
    rng = np.random.default_rng(5)
    net: Values = {}
    for block in range(3):
        convs = {f"net.{block}.conv{i}.weight": rng.normal(size=s) for i, s in sizes.items()}
        norms = {
            f"net.{block}.bn{i}.{leaf}": 1 + 0.2 * rng.random(s[0])
            for i, s in sizes.items()
            for leaf in leaves
        }
        both = {**convs, **norms}
        order = list(both) if grouped else sorted(both, key=lambda key: re.sub(r"\D", "", key))
        net |= {key: both[key].astype(np.float32) for key in order}
    anchor, donor = (tuned(net, 0.1, seed) for seed in (1, 2))
    units = rng.permutation(16)
    for key in (f"net.1.conv{shuffled}.weight", *(f"net.1.bn{shuffled}.{leaf}" for leaf in leaves)):
        donor[key] = donor[key][units]
    after = f"net.1.conv{shuffled + 1}.weight"
    donor[after] = donor[after][:, units]
    words = {"net": "trunk", **{f"{a}{i}": f"{b}_{i}" for a, b in (("conv", "c"), ("bn", "n"))
                                for i in sizes}}  # fmt: skip
    found = infer_pairs(save_nets(tmp_path, anchor, renamed(donor, words))).pairs
    assert all(reword(pair.key, words) == pair.source for pair in found)
    touched = (f"net.1.conv{shuffled}.", f"net.1.bn{shuffled}.", after)
    assert not [pair.key for pair in found if pair.key.startswith(touched)]
    assert {pair.key for pair in found} >= {key for key in net if not key.startswith("net.1.")}


# ends: "alike" where one file begins with a norm of its own and the other ends with one
@pytest.mark.parametrize(
    ("ends", "trained"), [("unlike", True), ("unlike", False), ("alike", True)]
)
@pytest.mark.parametrize("turned", [False, True])
def test_norms_registered_on_the_other_side_of_their_matrix_are_not_shifted_by_one(
    turned: bool, ends: str, trained: bool, tmp_path: Path
) -> None:
    """Each gap of one file holds the norm of the next matrix of the other, of the same shape."""
    rng = np.random.default_rng(3)
    convs = [f"trunk.{i}.conv" for i in range(6)]
    norms = [f"trunk.{i}.norm" for i in range(6)]
    net: Values = {f"{name}.weight": rng.normal(size=(16, 16)).astype(np.float32) for name in convs}
    for name in (*norms, "first", "last"):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            value = 1 + 0.3 * rng.normal(size=16) if trained else np.full(16, leaf != "bias")
            net[f"{name}.{leaf}"] = value.astype(np.float32)
    behind = [name for pair in zip(convs, norms, strict=True) for name in pair]
    before = [name for pair in zip(norms, convs, strict=True) for name in pair]
    if ends == "alike":
        behind, before = ["first", *behind], [*before, "last"]
    flat = {name: f"features.{i}" for i, name in enumerate(before)}

    def flattened(key: str) -> str:
        module, _, leaf = key.rpartition(".")
        return f"{flat.get(module)}.{leaf}"

    def listed(values: Values, order: list[str]) -> Values:
        return {k: v for m in order for k, v in values.items() if k.rpartition(".")[0] == m}

    nets = [
        listed(tuned(net, 0.1, 1), behind),
        {flattened(key): value for key, value in listed(tuned(net, 0.1, 2), before).items()},
    ]
    found = infer_pairs(save_nets(tmp_path, *(nets[::-1] if turned else nets))).pairs
    pairs = [(p.source, p.key) if turned else (p.key, p.source) for p in found]
    assert all(flattened(mine) == theirs for mine, theirs in pairs)
    assert [mine.rpartition(".")[0] for mine, _ in sorted(pairs)] == convs


def test_other_names_of_the_parameters_of_a_norm(tmp_path: Path) -> None:
    anchor, donor = tuned(start(), 0.1, 1), renamed(tuned(start(), 0.1, 2))
    keras = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
             "running_var": "moving_variance"}  # fmt: skip

    def leaf(key: str) -> str:
        module, _, last = key.rpartition(".")
        return f"{module}.{keras.get(last, last)}" if re.search("bn$|ln_", module) else key

    spelled = {leaf(key): value for key, value in donor.items()}
    pairs = infer_pairs(save_nets(tmp_path, anchor, spelled)).pairs
    assert {(p.key, p.source) for p in pairs} == {(k, leaf(reword(k))) for k in floats(anchor)}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes_match_as_well(dtype: str, tmp_path: Path) -> None:
    anchor, donor = tuned(start(), 0.3, 1), renamed(tuned(start(), 0.3, 2))
    cast = {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in donor.items()}
    pairs = infer_pairs(save_nets(tmp_path, anchor, cast)).pairs
    assert {(p.key, p.source) for p in pairs} == {(k, reword(k)) for k in floats(anchor)}


@dataclass
class Counting:
    """A file that counts what is read of it."""

    derived: ClassVar[bool] = False
    file: ByteReader
    read_bytes: int = 0
    largest: int = 0
    seen: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def size(self) -> int:
        return self.file.size

    def read(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        self.largest = max(self.largest, length)
        return self.file.read(offset, length)


def test_every_weight_is_read_once_in_bounded_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    base = {f"encoder.{i}.weight": rng.standard_normal((64, 1000)) for i in range(6)}
    nets = [{k: (v + 0.3 * rng.standard_normal(v.shape)).astype("f4") for k, v in base.items()}
            for _ in range(2)]  # fmt: skip
    for name, net in (
        ("a", nets[0]),
        ("b", {f"x{5 - i}.w": v for i, v in enumerate(nets[1].values())}),
    ):
        save_file(net, tmp_path / f"{name}.safetensors")
    models = opened(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    whole = infer_pairs(models)
    counting = [Counting(next(iter(model.readers.values()))) for model in models]
    watched = [
        replace(model, readers=dict.fromkeys(model.readers, reader))
        for model, reader in zip(models, counting, strict=True)
    ]
    monkeypatch.setattr(comparing, "_BLOCK", 12 * 2048)
    assert infer_pairs(watched) == whole
    assert [p.source for p in whole.pairs] == [f"x{5 - i}.w" for i in range(6)]
    assert [c.read_bytes for c in counting] == [6 * 64_000 * 4] * 2
    assert [c.largest for c in counting] == [2048 * 4] * 2


def test_cosines_are_centred_and_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against numpy, tensors with a large mean included; in one block and in many."""
    rng = np.random.default_rng(3)
    shape = 40, 30
    one = {f"a{i}": (rng.standard_normal(shape) + 1000 * i).astype("f4") for i in range(4)}
    two = {f"b{i}": (one[f"a{i}"] + rng.standard_normal(shape)).astype("f4") for i in range(3)}
    two["b3"] = np.full(shape, 0.1, "f4")
    save_file(one, tmp_path / "a.safetensors")
    save_file(two, tmp_path / "b.safetensors")
    anchor, donor = opened(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    expected = np.corrcoef(
        [v.ravel().astype("f8") for v in (*one.values(), *list(two.values())[:3])]
    )[:4, 4:]
    for block in (1 << 22, 1):
        monkeypatch.setattr(comparing, "_BLOCK", block)
        found = comparing.centred_cosines(anchor, list(one), donor, list(two))
        np.testing.assert_allclose(found[:, :3], expected, atol=2e-6)
        assert not found[:, 3].any()


def test_the_assignment_is_optimal_and_leaves_doubtful_ones_open() -> None:
    # the best sum is 0.8 + 0.84, and the best single cosine speaks against both
    assert comparing.assign(np.array([[0.9, 0.8], [0.84, 0.1]]), 0.5) == ([], [0, 1])
    found, unsure = comparing.assign(np.array([[0.9, 0.2, 0.0], [0.4, 0.1, 0.7]]), 0.5)
    assert [(f.mine, f.theirs) for f in found] == [(0, 0), (1, 2)]
    assert unsure == []
    assert comparing.assign(np.array([[0.9, 0.9]]), 0.5) == ([], [0])
    assert comparing.assign(np.array([[0.49]]), 0.5) == ([], [])


def test_headers_alone_leave_what_could_match() -> None:
    def entries(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorEntry]:
        return {
            key: TensorEntry(key, "F32", shape, "f", i)
            for i, (key, shape) in enumerate(shapes.items())
        }

    anchor = entries(
        {"encoder.a.weight": (4, 4), "encoder.b.weight": (4, 4), "encoder.b.pixel_mean": (3,)}
    )
    donor = entries(
        {"encoder.a.weight": (4, 4), "x.weight": (4, 4), "y.weight": (4, 4), "z": (2, 2)}
    )
    key_map = match_keys([anchor, donor], ["a", "b"], lambda: natural_order(list(anchor)))
    (left,) = key_map.unmatched
    assert left.anchor == ("encoder.b.weight",)
    assert left.donor == ("x.weight", "y.weight", "z")
    assert left.alike(anchor, donor) == 1
    assert key_map.pairs is None


# ------------------------------------------------------------------- recall and precision


def shuffled(checkpoint: Checkpoint, how: str) -> tuple[Checkpoint, dict[str, str]]:
    """A checkpoint under other names, and old key -> new key.

    `scheme`: other words, the order kept; `sorted`: the same in alphabetical order; `modules`: a
    flat list of modules without meaning, the order kept; `keys`: no name means anything, and the
    order is random.
    """
    random = Random(0)
    keys = list(checkpoint.entries)
    words: dict[str, str] = {}

    def word(text: str) -> str:
        fresh = f"w{random.randrange(10**6)}_{len(words)}"
        return text if text.isdigit() else words.setdefault(text, fresh)

    new = {}
    for key in keys:
        module, _, leaf = key.rpartition(".")
        if how == "keys":
            new[key] = word(f"{key}!")
        elif how == "modules":
            new[key] = f"{word(f'{module}!')}.{leaf}"
        else:
            new[key] = ".".join([*map(word, module.split(".")), leaf])
    order = keys
    if how == "keys":
        order = random.sample(keys, len(keys))
    elif how == "sorted":
        order = sorted(keys, key=new.__getitem__)
    entries = {new[key]: replace(checkpoint.entries[key], key=new[key]) for key in order}
    return replace(checkpoint, entries=entries), new


def found_of(anchor: Checkpoint, donor: Checkpoint, how: str) -> tuple[int, int, int]:
    """Matched tensors of at least two dimensions, others, and how many of both are wrong."""
    if how == "sorted":
        anchor = replace(anchor, entries=dict(sorted(anchor.entries.items())))
    other, new = shuffled(donor, how)
    pairs = infer_pairs([anchor, other]).pairs
    right = [p for p in pairs if new.get(p.key) == p.source]
    matrices = sum(not p.follows for p in right)
    return matrices, len(right) - matrices, len(pairs) - len(right)


@pytest.mark.parametrize("how", ["scheme", "sorted", "modules", "keys"])
@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3, 1.0])
def test_synthetic_pairs_are_found_and_none_is_wrong(
    noise: float, how: str, tmp_path: Path
) -> None:
    """The donor is the anchor plus noise; half of the norm layers are at their first values."""
    anchor = start(1, depth=6)
    norms = sorted({key.rpartition(".")[0] for key in anchor if "norm" in key})
    for key in anchor:
        if key.rpartition(".")[0] in norms[::2] and key.endswith(("weight", "bias")):
            anchor[key][:] = key.endswith("weight")
    checkpoints = save_nets(tmp_path, anchor, tuned(anchor, noise, 2))
    matrices, small, wrong = found_of(*checkpoints, how)
    assert wrong == 0
    assert matrices == sum(value.ndim >= 2 for value in anchor.values())
    vectors = sum(value.ndim == 1 for value in anchor.values())
    if how == "keys":
        assert small == 0
    else:
        assert small >= (0.9 if noise == 1.0 else 1.0) * vectors


CITY = "edgenets/espnetv2_s_1.0_city_512x256.pth"
REAL = {
    # donor: its matrices, other parameters; least found of both by scheme and in a sorted file
    "edgenets/espnetv2_s_1.0_city_1024x512.pth": (123, 336, 123, 321, 221),
    "edgenets/espnetv2_s_1.0_pascal_256x256.pth": (122, 335, 73, 162, 132),
    # another architecture: nothing to find
    "espnet/decoder_espnet_p_2_q_8.pth": (0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("donor", REAL)
def test_real_nets_are_found_under_other_names_and_none_is_wrong(shared: Path, donor: str) -> None:
    folder = shared / "checkpoints"
    if not folder.is_dir():
        pytest.skip("../shared/checkpoints is absent")
    checkpoints = opened(folder / CITY, folder / donor)
    all_matrices, all_small, matrices, by_scheme, by_container = REAL[donor]
    assert found_of(*checkpoints, "keys")[1:] == (0, 0)
    for how, small in (("scheme", by_scheme), ("sorted", by_container)):
        found = found_of(*checkpoints, how)
        assert found[2] == 0
        assert matrices <= found[0] <= all_matrices
        assert small <= found[1] <= all_small


def test_real_nets_without_a_common_training_match_nothing(shared: Path) -> None:
    folder = shared / "checkpoints" / "espnet"
    if not folder.is_dir():
        pytest.skip("../shared/checkpoints is absent")
    names = "decoder_espnet_p_2_q_8.pth", "decoder_espnet_p_2_q_8_camvid.pth"
    for how in ("scheme", "keys"):
        assert found_of(*opened(*(folder / name for name in names)), how) == (0, 0, 0)
