"""Merges that would have been wrong without a word: each story was once proved by a reviewer."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from enumerators import (
    TINY,
    ancestor,
    finetuned,
    spell_nvlabs,
    write_pth,
    write_safetensors,
    write_transformers_folder,
)
from safetensors.numpy import load_file

import lwmm_hub as lw
from lwmm_hub.errors import MergeError, OutputError, RecipeError
from lwmm_hub.key_map import leave_out

START = ancestor(TINY, seed=0)
RNG = np.random.default_rng(0)
Tensors = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ran before."""
    monkeypatch.setattr(f"{__name__}.RNG", np.random.default_rng(0))


def tensors(*names: str, like: Tensors | None = None, noise: float = 0.0) -> Tensors:
    """A 6 x 6 weight per name; `like` another model of the same names plus noise."""
    own = {name: RNG.standard_normal((6, 6)).astype(np.float32) for name in names}
    if like is None:
        return own
    return {
        name: (like[name] + noise * own[name]).astype(np.float32) if name in like else own[name]
        for name in names
    }


def save(path: Path, values: Tensors) -> Path:
    return write_safetensors(path, values)


def sources(plan: lw.MergePlan) -> dict[str, str | None]:
    return {t.name: t.sources[1].key if t.sources[1] else None for t in plan.merged}


# ------------------------------------------------------------------------------------- prefixes


def test_a_prefix_that_is_taken_off_never_gives_way_to_another_tensor(tmp_path: Path) -> None:
    anchor = tensors("a.weight", "b.weight", "c.weight", "d.weight")
    donor = {f"m.{name}": value for name, value in anchor.items()}
    donor |= tensors("c.weight", "d.weight")  # of an auxiliary network
    plan = lw.plan(
        save(tmp_path / "anchor.safetensors", anchor), save(tmp_path / "donor.safetensors", donor)
    )
    assert sources(plan) == {name: f"m.{name}" for name in anchor}
    assert {row["key"] for row in plan.to_dict()["unused"]} == {"c.weight", "d.weight"}
    assert any("2 of the anchor's tensors (c.weight, ...)" in text for text in plan.warnings)


@pytest.mark.parametrize("prefix", ["aux.", "ema.", "momentum.encoder."])
def test_a_second_network_does_not_displace_names_that_match_as_they_are(
    prefix: str, tmp_path: Path
) -> None:
    """It covers no more of the anchor, though the donor has more names that would fit."""
    names = [f"layer{i}.weight" for i in range(4)] + ["fc.weight"]
    anchor = tensors(*names)
    donor = tensors(*names, like=anchor, noise=0.1)
    for other in (names, names[2:]):
        both = {**donor, **{f"{prefix}{name}": anchor[name] + 9 for name in other}}
        anchor_file = save(tmp_path / "anchor.safetensors", anchor)
        plan = lw.plan(anchor_file, save(tmp_path / "donor.safetensors", both))
        assert sources(plan) == {name: name for name in names}
        assert not any("instead" in text or "under" in text for text in plan.warnings)
        assert len(plan.unused[0]) == len(other)
        moved = {f"{prefix}{name}": value for name, value in anchor.items()}
        turned = lw.plan(
            save(tmp_path / "long.safetensors", moved), save(tmp_path / "both.safetensors", both)
        )
        kept = all(key == name for name, key in sources(turned).items() if name in both)
        said = any("of the anchor's tensors" in text for text in turned.warnings)
        assert kept != said
        assert kept or other != names


@pytest.mark.parametrize("swapped", [False, True])
def test_two_prefixes_that_fit_equally_well_are_both_named(swapped: bool, tmp_path: Path) -> None:
    """Of two streams alike one is taken, whatever the order of the file, and the user is told."""
    names = [f"layer{i}.weight" for i in range(4)]
    one = tensors(*names)
    streams = [
        {f"{prefix}{name}": value for name, value in one.items()} for prefix in ("rgb.", "depth.")
    ]
    both = {k: v for stream in (streams[::-1] if swapped else streams) for k, v in stream.items()}
    files = {"one": one, "both": both | tensors("fuse.weight")}
    for anchor, donor, whose, advice in (
        ("both", "one", "the anchor", "give a donor whose keys begin with the right prefix."),
        ("one", "both", "the donor", "give a file of the right network alone."),
    ):
        paths = [write_pth(tmp_path / f"{name}.pth", files[name]) for name in (anchor, donor)]
        plan = lw.plan(*paths)
        (said,) = [text for text in plan.warnings if "the first by name" in text]
        assert said == (
            f"{donor} matches {anchor} below 'depth.' of {whose} and as well below 'rgb.': "
            f"'depth.' is taken, the first by name. If that is the wrong one, {advice}"
        )
        assert len(plan.merged) == len(names)
        for tensor in plan.merged:
            (theirs,) = [source.key for source in tensor.sources[1:] if source]
            assert {tensor.key.partition(".")[0], theirs.partition(".")[0]} >= {"depth"}


def test_the_queries_of_moco_are_its_student(tmp_path: Path) -> None:
    """`encoder_k` follows `encoder_q` as a moving average: no choice, and no warning."""
    anchor = tensors(*(f"layer{i}.weight" for i in range(4)))
    donor = {f"encoder_{which}.{k}": v for which in "kq" for k, v in anchor.items()}
    plan = lw.plan(
        save(tmp_path / "anchor.safetensors", anchor), save(tmp_path / "donor.safetensors", donor)
    )
    assert sources(plan) == {name: f"encoder_q.{name}" for name in anchor}
    assert not [text for text in plan.warnings if "encoder_" in text]


def test_a_copy_never_displaces_a_student_that_lacks_a_little(tmp_path: Path) -> None:
    anchor = tensors("a.weight", "b.weight", "c.weight")
    student = tensors("a.weight", "b.weight", like=anchor, noise=0.1)
    copy = {f"ema.{name}": value for name, value in anchor.items()}
    plan = lw.plan(
        save(tmp_path / "anchor.safetensors", anchor),
        save(tmp_path / "donor.safetensors", student | copy),
    )
    assert sources(plan) == {"a.weight": "a.weight", "b.weight": "b.weight"}
    assert plan.kept == {"c.weight": "absent in donor"}


def tiny_mit(prefix: str, without: str = "", seed: int = 1) -> Tensors:
    spelt = spell_nvlabs(finetuned(START, seed), TINY)
    backbone = {key: value for key, value in spelt.items() if key.startswith("backbone.")}
    found = {prefix + key.removeprefix("backbone."): v for key, v in backbone.items()}
    return {key: value for key, value in found.items() if not without or without not in key}


@pytest.mark.parametrize(
    ("without", "taken"),
    [("block1.0.norm1", "student"), ("block", "ema"), ("patch_embed1.norm.weight", "ema")],
)
def test_a_tabled_student_wins_over_a_more_complete_copy_or_it_is_said(
    without: str, taken: str, tmp_path: Path
) -> None:
    donor = tiny_mit("student.net.", without) | tiny_mit("ema.net.", seed=2)
    plan = lw.plan(
        save(tmp_path / "anchor.safetensors", tiny_mit("")),
        save(tmp_path / "donor.safetensors", donor),
    )
    assert {(key or "").partition(".")[0] for key in sources(plan).values()} == {taken}
    said = [text for text in plan.warnings if "a copy that is not the student" in text]
    assert len(said) == (taken == "ema")


@pytest.mark.parametrize("student", ["", "net."])
def test_a_student_without_the_key_that_tells_its_family_is_missed_aloud(
    student: str, tmp_path: Path
) -> None:
    """Of either model: with that key gone the tables see the copy alone."""
    both = tiny_mit(student, "patch_embed1.norm.weight") | tiny_mit("ema.net.", seed=2)
    files = [
        save(tmp_path / "both.safetensors", both),
        save(tmp_path / "other.safetensors", tiny_mit("", seed=3)),
    ]
    result = lw.merge(*files, output=tmp_path / "out", allow_unrelated=True)
    (said,) = (text for text in result.warnings if "a copy that is not the student" in text)
    assert said.startswith("both holds its mit whole only below 'ema.net.'")
    assert said.partition(":")[0] in (tmp_path / "out" / "README.md").read_text("utf-8")
    turned = lw.plan(*reversed(files))
    assert said in turned.warnings


def test_a_teacher_alone_stands_in_for_nobody(tmp_path: Path) -> None:
    """A head of the backbone's words and sizes is no student."""
    teacher = tiny_mit("ema.net.", seed=2)
    norm = {f"head.{key}": teacher[f"ema.net.{key}"] for key in ("norm4.weight", "norm4.bias")}
    plan = lw.plan(
        save(tmp_path / "anchor.safetensors", tiny_mit("")),
        save(tmp_path / "donor.safetensors", teacher | norm),
    )
    assert {(key or "").partition(".")[0] for key in sources(plan).values()} == {"ema"}
    assert not any("a copy that is not the student" in text for text in plan.warnings)


def test_a_part_of_a_fused_tensor_that_stays_the_anchors_is_listed(tmp_path: Path) -> None:
    """Where the donor, which keeps k and v apart, has no bias for v."""
    donor = tmp_path / "donor"
    write_transformers_folder(donor, finetuned(START, 2), TINY)
    theirs = load_file(donor / "model.safetensors")
    key = "segformer.encoder.block.0.0.attention.self.value.bias"
    save(donor / "model.safetensors", {k: v for k, v in theirs.items() if k != key})
    anchor = write_pth(tmp_path / "anchor.pth", spell_nvlabs(finetuned(START, 1), TINY))
    result = lw.merge(anchor, donor, output=tmp_path / "merged")
    fused = "backbone.block1.0.attn.kv.bias"
    assert result.plan.kept[fused].startswith("part 2 of 2 (stages.0.blocks.0.")
    assert result.plan.kept[fused].endswith("absent in donor")
    own = spell_nvlabs(finetuned(START, 1), TINY)[fused]
    made = load_file(tmp_path / "merged" / "model.safetensors")[fused]
    half = len(own) // 2
    assert np.array_equal(made[half:], own[half:])
    assert not np.array_equal(made[:half], own[:half])
    card = (tmp_path / "merged" / "README.md").read_text("utf-8")
    assert "part 2 of 2" in card


def test_a_tensor_that_is_merged_in_part_is_not_counted_as_kept(tmp_path: Path, lwmm) -> None:
    """One number in the headline, the text, the notebook and the card."""
    donor = tmp_path / "donor"
    write_transformers_folder(donor, finetuned(START, 2), TINY)
    theirs = load_file(donor / "model.safetensors")
    gone = "segformer.encoder.block.0.0.attention.self.value.bias"
    save(donor / "model.safetensors", {k: v for k, v in theirs.items() if k != gone})
    anchor = write_pth(tmp_path / "anchor.pth", spell_nvlabs(finetuned(START, 1), TINY))
    result = lw.merge(anchor, donor, output=tmp_path / "merged")
    plan = result.plan
    merged = {tensor.key for tensor in plan.merged}
    kept = [key for key in plan.kept if key not in merged]
    assert len(kept) == len(plan.kept) - 1 > 0
    assert plan.counts == (len(plan.merged), len(kept), 1)
    assert merged | set(kept) == set(lw.resolve(str(anchor)).entries)

    words = f"{len(kept)} tensors kept from the anchor, 1 more in part"
    text = str(plan)
    assert words in text.splitlines()[0]
    why = "part 2 of 2 (stages.0.blocks.0.attn.v.bias): absent in donor"
    blocks = dict(block.split("\n", 1) for block in text.split("\n\n") if "\n" in block)
    rows = [int(line.split()[0]) for line in blocks["Kept from the anchor"].splitlines()]
    assert sum(rows) == len(kept)
    assert blocks["Merged in part"].split() == f"1 {why}: backbone.block1.0.attn.kv.bias".split()
    notebook = plan._repr_html_()
    of_anchor = notebook.partition("not used because")[0]
    assert words in notebook
    first, second = (
        [int(n) for n in re.findall(r"<tr><td[^>]*>(\d+)</td>", part)]
        for part in of_anchor.partition("kept from the anchor because")[2].split("merged but for")
    )
    assert (sum(first), sum(second)) == (len(kept), 1)

    assert f"{len(kept)} tensors kept from the anchor, 1 more in part" in str(result)
    said = lwmm("merge", anchor, donor, "-o", "again")
    assert f", kept {len(kept)} tensors of the anchor, 1 more in part, " in said.out
    said = lwmm("plan", anchor, donor, "-q")
    assert said.out == f"{len(plan.merged)} merged, {len(kept)} kept, 1 more in part\n"
    told = lwmm("merge", anchor, donor, "-o", "again", "--overwrite", "--json").data
    assert (told["merged"], told["kept"]) == (len(plan.merged), len(plan.kept))  # for programs
    assert told["merged_in_part"] == 1
    told = lwmm("merge", anchor, donor, "-o", "again", "--overwrite", "--format", "agent").out
    assert f"\nkept\t{len(plan.kept)}\nmerged_in_part\t1\n" in told

    card = (tmp_path / "merged" / "README.md").read_text("utf-8")
    assert f"{len(kept)} tensors are the anchor's own, 1 more in part;" in card
    cells = [line.split(" | ")[-2] for line in card.splitlines() if line.startswith("| `")]
    counted = [cell for cell in cells if re.fullmatch(r"\d+(, 1 more in part)?", cell)]
    assert sum(int(cell.partition(",")[0]) for cell in counted) == len(kept)
    assert [cell for cell in counted if "," in cell] == ["0, 1 more in part"]


@pytest.mark.parametrize("which", ["key", "value"])
def test_the_part_of_a_donors_fused_tensor_that_is_not_used_is_listed(
    which: str, tmp_path: Path
) -> None:
    """Where the anchor, which keeps k and v apart, has no bias for one of them."""
    anchor = tmp_path / "anchor"
    write_transformers_folder(anchor, finetuned(START, 1), TINY)
    ours = load_file(anchor / "model.safetensors")
    gone = f"segformer.encoder.block.0.0.attention.self.{which}.bias"
    save(anchor / "model.safetensors", {k: v for k, v in ours.items() if k != gone})
    donor = write_pth(tmp_path / "donor.pth", spell_nvlabs(finetuned(START, 2), TINY))
    plan = lw.plan(anchor, donor)
    place = "part 1 of 2 (stages.0.blocks.0.attn.k" if which == "key" else (
        "part 2 of 2 (stages.0.blocks.0.attn.v"
    )  # fmt: skip
    fused = "backbone.block1.0.attn.kv.bias"
    assert plan.unused[0][fused] == f"{place}.bias): absent in anchor"
    assert fused in sources(plan).values()
    whole = [key for key in sources(plan).values() if key and key != fused]
    assert not set(whole) & set(plan.unused[0])
    assert f"{place}.bias): absent in anchor: {fused}" in str(plan)


def test_a_part_that_values_leave_out_is_listed_beside_one_that_is_merged(tmp_path: Path) -> None:
    """Of both models, whose tensors are fused alike; later reasons stand beside earlier ones."""
    models = [spell_nvlabs(finetuned(START, seed), TINY) for seed in (1, 2, 3)]
    files = [write_pth(tmp_path / f"{i}.pth", model) for i, model in enumerate(models)]
    opened = [lw.resolve(str(file)) for file in files]
    key_map = lw.match(*opened)
    fused, layer = "backbone.block1.0.attn.kv.weight", "stages.0.blocks.0.attn"
    half = leave_out(key_map, {(1, f"{layer}.v"): "untrained", (2, f"{layer}.v"): "untrained"})
    plan = lw.plan_merge(half, opened)
    said = f"part 2 of 2 ({layer}.v.weight): untrained"
    assert plan.kept[fused] == plan.unused[0][fused] == plan.unused[1][fused] == said
    whole = leave_out(half, {(1, f"{layer}.k"): "broken", (2, f"{layer}.k"): "untrained"})
    plan = lw.plan_merge(whole, opened)
    assert plan.kept[fused] == f"{said}; part 1 of 2 ({layer}.k.weight): broken; untrained"
    assert plan.unused[0][fused] == f"{said}; part 1 of 2 ({layer}.k.weight): broken"
    one = leave_out(key_map, {(1, f"{layer}.{part}"): "untrained" for part in "kv"})
    plan = lw.plan_merge(one, opened)
    assert fused not in plan.kept
    assert plan.unused[0][fused] == "untrained"
    assert fused not in plan.unused[1]


CONVOLUTION = tensors("body.conv.weight")


@pytest.mark.parametrize("weights", [(0.0, 1.0, 0.0), (0.0, 1 / 3, 2 / 3)])
def test_an_anchor_of_no_weight_and_large_values_leaves_no_trace(
    weights: tuple[float, ...], tmp_path: Path
) -> None:
    """The sum is made from a donor then: nothing cancels."""
    values = (1e5, 1e-3, 2e-3)
    files = [
        save(
            tmp_path / f"{i}.safetensors",
            {**CONVOLUTION, "body.bn.running_var": np.full(5, value, np.float32)},
        )
        for i, value in enumerate(values)
    ]
    lw.merge(*files, output=tmp_path / "out", weights={"body": weights})
    made = load_file(tmp_path / "out" / "model.safetensors")["body.bn.running_var"]
    singles = [np.float64(np.float32(value)) for value in values]
    exact = sum(w * v for w, v in zip(weights, singles, strict=True))
    np.testing.assert_allclose(made, exact, rtol=1e-6)
    if 1.0 in weights:
        assert np.all(made == np.float32(values[weights.index(1.0)]))


def test_nan_of_an_anchor_without_weight_is_named(tmp_path: Path) -> None:
    names = [f"body.{i}.weight" for i in range(40)]  # more than the sample that is looked at before
    sound = tensors(*names) | CONVOLUTION
    broken = {**sound, names[1]: np.full((6, 6), np.nan, np.float32)}
    files = [save(tmp_path / f"{n}.safetensors", v) for n, v in (("a", broken), ("b", sound))]
    with pytest.raises(MergeError, match=r"a has NaN in body\.1\.weight"):
        lw.merge(*files, output=tmp_path / "out", weights={"body": (0.0, 1.0)})


def test_moments_of_an_anchor_without_weight_where_donors_agree(tmp_path: Path) -> None:
    def model(mean: float, spread: float) -> Tensors:
        return {
            **CONVOLUTION,
            "body.bn.running_mean": np.array([mean, 1.0], np.float32),
            "body.bn.running_var": np.array([spread, 2.0], np.float32),
        }

    files = [
        save(tmp_path / f"{i}.safetensors", model(mean, spread))
        for i, (mean, spread) in enumerate([(9.0, 9.0), (1.0, 1.0), (3.0, 1.0)])
    ]
    weights = {"body": (0.0, 0.5, 0.5)}
    lw.merge(*files, output=tmp_path / "out", weights=weights, batch_norm="moment")
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert made["body.bn.running_mean"].tolist() == [2.0, 1.0]
    assert made["body.bn.running_var"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("swapped", [False, True])
def test_names_that_match_as_they_are_stay_beside_a_prefix(tmp_path: Path, swapped: bool) -> None:
    layers = [f"l{i}.weight" for i in range(5)]
    heads = [f"decode_head.c{i}.weight" for i in range(3)]
    short = tensors(*layers, *heads)
    long = {f"backbone.{n}" if n in layers else n: value for n, value in short.items()}
    files = [save(tmp_path / "long.safetensors", long), save(tmp_path / "short.safetensors", short)]
    plan = lw.plan(*(reversed(files) if swapped else files))
    assert len(plan.merged) == 8


def test_of_two_copies_that_match_as_well_the_student_is_taken(tmp_path: Path) -> None:
    anchor = tensors("a.weight", "b.weight", "c.weight")
    donor = {f"{copy}.{n}": v for copy in ("ema", "student") for n, v in anchor.items()}
    plan = lw.plan(
        save(tmp_path / "anchor.safetensors", anchor), save(tmp_path / "donor.safetensors", donor)
    )
    assert plan.models[1].renamed == "-student."


# ------------------------------------------------------------------------------- parts and moments


def test_a_foreign_module_of_a_guessed_backbone_is_left_out(tmp_path: Path) -> None:
    body = [f"body.{i}.weight" for i in range(9)]
    pixel = [f"pixel_module.{i}.weight" for i in range(3)]
    anchor = tensors(*body, *pixel)
    donor = tensors(*body, like=anchor, noise=0.1) | tensors(*pixel)
    result = lw.merge(
        save(tmp_path / "anchor.safetensors", anchor),
        save(tmp_path / "donor.safetensors", donor),
        output=tmp_path / "out",
    )
    assert result.plan.models[1].kept_parts == ("pixel_module",)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert all(np.array_equal(merged[name], anchor[name]) for name in pixel)
    lw.verify(tmp_path / "out")


def test_moments_without_a_mean_merge_linearly(tmp_path: Path) -> None:
    def model(mean: bool) -> Tensors:
        values = tensors("conv.weight")
        values["bn.weight"] = np.ones(4, np.float32)
        values["bn.running_var"] = np.full(4, 9, np.float32)
        return values | ({"bn.running_mean": np.zeros(4, np.float32)} if mean else {})

    files = [
        save(tmp_path / f"{i}.safetensors", model(mean))
        for i, mean in enumerate((True, True, False))
    ]
    lw.merge(*files, output=tmp_path / "out", batch_norm="moment", allow_unrelated=True)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_allclose(merged["bn.running_var"], 9, rtol=1e-6)


def test_a_donor_that_lacks_backbone_layers_is_named(tmp_path: Path) -> None:
    anchor, donor = folders(tmp_path)
    values = load_file(donor / "model.safetensors")
    less = {key: value for key, value in values.items() if ".block.2." not in key}
    plan = lw.plan(anchor, save(tmp_path / "less.safetensors", less))
    missing = len(values) - len(less)
    assert any(f"less lacks {missing} of the" in text for text in plan.warnings)


# ----------------------------------------------------------------------------- recipes and plans


def copies(path: Path, seed: int) -> Path:
    """A training checkpoint with a student and an EMA copy that differ."""
    values = spell_nvlabs(finetuned(START, seed), TINY)
    shifted = {key: np.asarray(value * 2) for key, value in values.items()}
    both = {f"model.{k}": v for k, v in values.items()}
    return write_pth(path, both | {f"ema_model.{k}": v for k, v in shifted.items()})


def test_a_public_recipe_says_which_copy_of_the_weights(tmp_path: Path) -> None:
    file = copies(tmp_path / "latest.pth", 1)
    result = lw.merge(file, f"{file}?weights=ema", output=tmp_path / "out")
    manifest = (tmp_path / "out" / "lwmm_manifest.json").read_text()
    assert "weights: ema" in manifest.replace("\\n", "\n")
    recipe = tmp_path / "public.yaml"
    recipe.write_text(json.loads(manifest)["recipe"])
    parents = {"latest": str(file), "latest-2": str(file)}
    again = lw.merge_recipe(recipe, output=tmp_path / "again", parents=parents)
    assert again.files == result.files


def test_every_copy_of_the_file_that_is_not_merged_is_listed(tmp_path: Path) -> None:
    anchor, donor = copies(tmp_path / "a.pth", 1), copies(tmp_path / "b.pth", 2)
    plan = lw.plan(anchor, donor)
    for model in (0, 1):
        listed = {r["key"] for r in plan.to_dict()["unused"] if r["model"] == model}
        assert any(key.startswith("ema_model.") for key in listed)
    assert lw.MergePlan.from_dict(plan.to_dict()) == plan


def folders(tmp_path: Path) -> tuple[Path, Path]:
    one, two = (
        write_transformers_folder(tmp_path / name, finetuned(START, seed), TINY)
        for name, seed in (("anchor", 1), ("donor", 2))
    )
    return one, two


def test_a_parent_that_changed_since_the_recipe_was_written_is_noticed(tmp_path: Path) -> None:
    anchor, donor = folders(tmp_path)
    lw.merge(anchor, donor, output=tmp_path / "out")
    recipe = tmp_path / "out" / "lwmm_recipe.yaml"
    assert not lw.merge_recipe(recipe, output=tmp_path / "same").warnings
    write_transformers_folder(tmp_path / "other", finetuned(START, 3), TINY)
    (donor / "model.safetensors").write_bytes(
        (tmp_path / "other" / "model.safetensors").read_bytes()
    )
    again = lw.merge_recipe(recipe, output=tmp_path / "again")
    assert "a local model has changed since then" in again.warnings[-1]


def test_a_moved_parent_is_named_by_its_label(tmp_path: Path) -> None:
    anchor, donor = folders(tmp_path)
    result = lw.merge(anchor, donor, output=tmp_path / "out")
    donor.rename(tmp_path / "elsewhere")
    recipe = tmp_path / "out" / "lwmm_recipe.yaml"
    with pytest.raises(RecipeError, match="--parent donor=PATH"):
        lw.merge_recipe(recipe, output=tmp_path / "again")
    parents = {"donor": str(tmp_path / "elsewhere")}
    assert lw.verify(tmp_path / "out", parents=parents).files == result.files


def test_a_plan_that_was_changed_is_not_run_as_if_it_were_not(tmp_path: Path) -> None:
    anchor, donor = folders(tmp_path)
    plan = lw.plan(anchor, donor)
    first = replace(plan.merged[0], weights=(0.0, 1.0))
    changed = replace(plan, merged=(first, *plan.merged[1:]))
    with pytest.raises(RecipeError, match="the plan is not what its models and options give"):
        lw.merge(changed, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_group_of_layers_is_a_place(tmp_path: Path) -> None:
    plan = lw.plan(*folders(tmp_path), start="stages.1", end="stages.2")
    weights = {layer.name: layer.weights[0] for layer in plan.layers}
    assert weights["stages.1.patch_embed.proj"] == 0.5
    assert weights["stages.2.norm"] == 1.0


# ------------------------------------------------------------------------------------ what is lost


def test_overwriting_spares_folders_with_files_of_the_user(tmp_path: Path) -> None:
    anchor, donor = folders(tmp_path)
    lw.merge(anchor, donor, output=tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"did not write: notes\.txt"):
        lw.merge(anchor, donor, output=tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_weights_that_are_linked_into_the_output_are_not_replaced(tmp_path: Path) -> None:
    anchor, donor = folders(tmp_path)
    first = lw.merge(anchor, donor, output=tmp_path / "out")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "model.safetensors").symlink_to(first.folder / "model.safetensors")
    (linked / "config.json").write_bytes((anchor / "config.json").read_bytes())
    with pytest.raises(OutputError, match="holds one of the models"):
        lw.merge(linked, donor, output=tmp_path / "out", overwrite=True)


def test_a_pth_merge_of_a_transformers_model_loads(tmp_path: Path) -> None:
    result = lw.merge(*folders(tmp_path), output=tmp_path / "out", output_format="pth")
    assert list(result.files) == ["pytorch_model.bin"]
    assert isinstance(result.load(), torch.nn.Module)
    again = lw.merge(
        *(tmp_path / n for n in ("anchor", "donor")), output=tmp_path / "out", overwrite=True
    )
    assert list(again.files) == ["model.safetensors"]
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
