"""Layer weights in numbers: from a file, a mapping, a plan; through recipe, verify and back."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from clients import assert_one_line, client, files_of
from enumerators import TINY, ancestor, finetuned, write_transformers_folder
from hub import TestHub
from safetensors.numpy import load_file, save_file

import lwmm_hub as lw
from lwmm_hub.errors import RecipeError, UsageError
from lwmm_hub.weight_table import WeightTable, read_weights

GROUPS = {
    "stages.0": (0.25, 0.75),
    "stages.1": (0.5, 0.5),
    "stages.2": (0.75, 0.25),
    "stages.3": (1.0, 0.0),
    "head": (0.0, 1.0),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    origin = ancestor(TINY, 0)
    return tuple(  # type: ignore[return-value]
        write_transformers_folder(folder / name, finetuned(origin, seed), TINY)
        for seed, name in enumerate(("anchor", "donor"), start=1)
    )


def test_each_tensor_is_made_with_the_numbers_of_its_layer(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    result = lw.merge(*pair, output=tmp_path / "m", weights=GROUPS)
    ours, theirs, made = (
        load_file(folder / "model.safetensors") for folder in (*pair, tmp_path / "m")
    )
    wanted = {layer.name: layer.weights for layer in result.plan.layers}
    assert all(wanted[n] == w for g, w in GROUPS.items() for n in wanted if n.startswith(g))
    for tensor in result.plan.merged:
        a, d = wanted[result.plan.layers[tensor.layer].name]
        expected = a * ours[tensor.key].astype(np.float64) + d * theirs[tensor.key]
        np.testing.assert_allclose(made[tensor.key], expected, atol=1e-6, err_msg=tensor.key)
    key = "decode_head.linear_fuse.weight"
    np.testing.assert_allclose(made[key], theirs[key], atol=1e-6)


def test_a_plan_with_numbers_runs_again_from_recipe_json_and_itself(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    first = lw.merge(*pair, output=tmp_path / "first", weights=GROUPS)
    plan = lw.MergePlan.from_dict(json.loads(json.dumps(first.plan.to_dict())))
    assert plan == first.plan
    assert plan.weights_from == {"method": "table"}
    again = lw.merge(plan, output=tmp_path / "again")
    recipe = lw.merge_recipe(tmp_path / "first" / "lwmm_recipe.yaml", output=tmp_path / "recipe")
    assert first.files == again.files == recipe.files
    assert lw.verify(tmp_path / "first").files == first.files
    saved = tmp_path / "plan.json"
    saved.write_text(json.dumps(first.plan.to_dict()), encoding="utf-8")
    for source in (saved, tmp_path / "first" / "lwmm_recipe.yaml"):
        made = lw.merge(*pair, output=tmp_path / f"from {source.stem}", weights=source)
        assert made.files == first.files


def test_the_numbers_of_a_ramp_give_the_ramps_merge(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    ramp = lw.merge(*pair, output=tmp_path / "ramp")
    rows = {layer.name: layer.weights for layer in ramp.plan.layers}
    table = lw.merge(*pair, output=tmp_path / "table", weights=rows)
    assert table.files == ramp.files
    assert table.plan.merged == ramp.plan.merged


def test_the_card_says_that_numbers_were_given(pair: tuple[Path, Path], tmp_path: Path) -> None:
    lw.merge(*pair, output=tmp_path / "m", weights=GROUPS)
    card = (tmp_path / "m" / "README.md").read_text("utf-8")
    assert "Layer weights: given as numbers" in card
    assert "ramp" not in card.partition("## Layer weights")[0]


def test_a_whole_weight_of_a_donor_that_lacks_a_tensor_is_the_anchors(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    third = write_transformers_folder(tmp_path / "third", finetuned(ancestor(TINY, 0), 3), TINY)
    rows = dict.fromkeys(("stages", "head"), (0.0, 1.0, 0.0))
    result = lw.merge(pair[0], pair[1], third, output=tmp_path / "m", weights=rows)
    made, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "m", pair[1]))
    for tensor in result.plan.merged:
        np.testing.assert_allclose(made[tensor.key], theirs[tensor.key], atol=1e-6)


@pytest.fixture(scope="module")
def other_head(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The donor with the head of another training, which the merge leaves out."""
    folder = tmp_path_factory.mktemp("other") / "donor"
    shutil.copytree(pair[1], folder)
    tensors, theirs = load_file(folder / "model.safetensors"), ancestor(TINY, 99)
    stranger = load_file(
        write_transformers_folder(folder.parent / "stranger", theirs, TINY) / "model.safetensors"
    )
    head = {key: value for key, value in stranger.items() if key.startswith("decode_head")}
    save_file(tensors | head, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_table_needs_no_rows_for_a_head_that_is_left_out_and_may_have_them(
    pair: tuple[Path, Path], other_head: Path, tmp_path: Path
) -> None:
    """Whether it is, a plan from headers does not know: both tables can be planned and merged."""
    backbone = {name: row for name, row in GROUPS.items() if name != "head"}
    made = []
    for name, rows in (("whole", GROUPS), ("backbone", backbone)):
        plan = lw.plan(pair[0], other_head, weights=rows)
        assert not plan.scope_decided
        head = [layer.weights for layer in plan.layers if layer.part == "head"]
        assert set(head) == {rows.get("head", (1.0, 0.0))}
        for way, result in (
            ("plan", lw.merge(plan, output=tmp_path / f"{name} plan")),
            ("table", lw.merge(pair[0], other_head, output=tmp_path / name, weights=rows)),
        ):
            assert {layer.part for layer in result.plan.layers} == {"backbone"}, way
            assert "decode_head.linear_fuse.weight" in result.plan.kept
            made.append(result.files)
    assert made == made[:1] * 4
    with pytest.raises(UsageError, match="no row for the layer 'head"):
        lw.merge(*pair, output=tmp_path / "related", weights=backbone)


def test_a_plan_says_which_layers_have_no_row_before_a_merge_refuses_them(
    pair: tuple[Path, Path], other_head: Path, tmp_path: Path, lwmm
) -> None:
    """Headers do not tell whether they are merged at all."""
    Path("t.yaml").write_text("stages: [0.5, 0.5]\nhead.fuse: [1, 0]\n", encoding="utf-8")
    how = ("--weights", "t.yaml")
    done = lwmm("plan", *pair, *how, "--json")
    (said,) = done.data["warnings"]
    open_layers = [row["name"] for row in done.data["layers"] if row["part"] == "head"]
    open_layers.remove("head.fuse")
    assert len(open_layers) > 3
    assert said.startswith(f"the table of weights has no row for {', '.join(open_layers)}: they")
    assert said.endswith("Add what is missing, or merge the backbone alone with --scope backbone.")
    refused = lwmm("merge", *pair, *how, "-o", "m")
    more = f"no row for the layer {open_layers[0]!r} and {len(open_layers) - 1} more. Add what"
    assert_one_line(refused, more, "the layers), or merge the backbone alone with --scope", code=2)
    assert_one_line(lwmm("plan", *pair, *how, "--check-weights"), more, code=2)

    assert lwmm("plan", *pair, *how, "--scope", "backbone", "--json").data["warnings"] == []
    assert lwmm("merge", *pair, *how, "--scope", "backbone", "-o", "m").code == 0
    assert said in lwmm("plan", pair[0], other_head, *how, "--json").data["warnings"]
    merged = lwmm("merge", pair[0], other_head, *how, "-o", "other", "--json").data
    assert not any("no row" in text for text in merged["warnings"])
    assert not any("no row" in text for text in lw.plan(*pair, weights=GROUPS).warnings)


def test_the_backbone_alone_is_offered_only_where_that_helps(pair: tuple[Path, Path]) -> None:
    lacking = {name: row for name, row in GROUPS.items() if name not in ("stages.3", "head")}
    with pytest.raises(UsageError, match=r"no row for the layer 'stages\.3") as refused:
        lw.plan(*pair, weights=lacking)
    assert "--scope" not in str(refused.value)
    with pytest.raises(UsageError, match=r"no row for the layer 'head") as refused:
        lw.plan(*pair, weights={"stages": (0.5, 0.5)}, scope="all")
    assert "--scope backbone" in str(refused.value)


def test_numbers_for_models_of_the_hub_with_unlike_heads(
    pair: tuple[Path, Path], other_head: Path, tmp_path: Path, hub: TestHub
) -> None:
    """What is refused before the download must not ask for rows of a head that is left out."""
    for name, folder in (("org/a", pair[0]), ("org/b", other_head)):
        hub.create_repo(name, files_of(folder))
    with client(hub, tmp_path / "home", tmp_path / "cwd") as run:
        done = run("merge", "org/a", "org/b", "--weights", "drift", "-o", "drift")
        assert done.code == 0, done.err
        done = run("merge", "org/a", "org/b", "--weights", "drift/lwmm_recipe.yaml", "-o", "again")
        assert done.code == 0, done.err
        done = run("merge", "--recipe", "drift/lwmm_recipe.yaml", "-o", "recipe")
        assert done.code == 0, done.err
        (tmp_path / "cwd" / "b.yaml").write_text("stages: [0.5, 0.5]\n")
        done = run("plan", "org/a", "org/b", "--weights", "b.yaml", "--json")
        (said,) = (text for text in json.loads(done.out)["warnings"] if "no row for" in text)
        assert said.endswith("with --scope backbone.")
        (tmp_path / "cwd" / "t.yaml").write_text("stages: [0.5, 0.5]\nneck: [0.5, 0.5]\n")
        done = run("merge", "org/a", "org/b", "--weights", "t.yaml", "-o", "wrong")
        assert_one_line(done, "a row for 'neck'", code=2)
    files = [
        (tmp_path / "cwd" / name / "model.safetensors").read_bytes()
        for name in ("drift", "again", "recipe")
    ]
    assert files == files[:1] * 3


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"stages": (0.5, 0.5)}, "no row for the layer 'head"),
        ({**GROUPS, "neck": (0.5, 0.5)}, "a row for 'neck', which is no shared layer"),
        ({**GROUPS, "stages": (0.5, 0.5)}, "for 'stages', and other rows for each of its layers"),
        ({**GROUPS, "head": (0.5, 0.6)}, "weights for 'head' are 0.5, 0.6: give"),
        ({**GROUPS, "head": (-0.5, 1.5)}, "weights for 'head' are -0.5, 1.5"),
        ({**GROUPS, "head": (float("nan"), 1.0)}, "weights for 'head' are nan"),
        ({**GROUPS, "head": (0.5, 0.25, 0.25)}, "3 weights for 'head', and there are 2"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    rows: dict[str, tuple[float, ...]], said: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        lw.merge(*pair, output=tmp_path / "m", weights=rows)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("just text", "no table of weights"),
        ("version: 1\nmodels: []\n", "a recipe with a schedule"),
        ("a: 0.5", "has 0.5 for 'a': give a list"),
        ("a: [true, 0]", "give a list of numbers"),
        ("a: [false, 1]", "give a list of numbers"),
        ("a: [x", "line 1: expected ','"),
        ("", "no table of weights"),
        ("a: [1, 0]\nb: [1, 0]\na: [0.5, 0.5]", "has 'a' twice"),
        ("layer_weights: {a: [1, 0], a: [0.5, 0.5]}", "has 'a' twice"),
        ("layer_weights: {a: [1, 0]}\nweights_from: {fit: [1]}", "Leave weights_from out"),
        ("layer_weights: {a: [1, 0]}\nweights_from: fit", "Leave weights_from out"),
        ("layers: [{name: a, weights: [1, 0]}, {name: a, weights: [1, 0]}]", "is no plan"),
        ("layers: [{}, 2]", "is no plan"),
        (f"a: [1{'0' * 400}, 0]", "give a list of numbers"),
        ('a: [!!bool "x", 1]', "it is not YAML. Write"),
        ('a: [!!int "", 1]', "it is not YAML. Write"),
        ("a: [!!timestamp x, 1]", "it is not YAML. Write"),
        (f"a: [{'1:' * 400_000}1, 1]", "line 1: it is too long"),
        ("? [a]\n: [1, 0]", "line 1: a name is no text"),
        ("1.10: [1, 0]\n'1.10': [0, 1]", "has '1.10' twice"),
        ("<<: {a: [1, 0]}\nb: [1, 0]", "line 1: merge keys"),
        ("layers: [{name: [a], weights: [1, 0]}]", "is no plan"),
        ("layer_weights: {a: [1, 0]}\nweights_from: {seed: .nan}", "has 'seed': a text, a finite"),
        ("layer_weights: {a: [1, 0]}\nweights_from: {seed: .inf}", "Leave weights_from out"),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(
                f"b{i}: &{b} [{', '.join([f'*{a}'] * 8)}]\n"
                for i, (a, b) in enumerate(itertools.pairwise("abcdefghijklm"))
            ),
            "give a list of numbers",
        ),
    ],
)
def test_a_file_that_is_no_table_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        read_weights(file)
    if text.startswith("layers"):  # a plan is JSON
        json_file = tmp_path / "plan.json"
        json_file.write_text(json.dumps(yaml.safe_load(text)), encoding="utf-8")
        with pytest.raises(UsageError, match=said):
            read_weights(json_file)
    with pytest.raises(UsageError, match="No such file"):
        read_weights(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "layer_weights:\n  {}",
        "layers:\n- {{name: {}",
    ],
    ids=["table", "recipe", "plan"],
)
@pytest.mark.parametrize("names", [("1.1", "1.10"), ("010", "8"), ("1_0", "10"), ("on", "True")])
def test_a_name_is_the_text_as_written(text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """To YAML 1.10 is the number 1.1: the layer of that name had the weights of another."""
    file = tmp_path / "weights.yaml"
    joint, end = (", weights: ", "}\n- {name: ") if "layers" in text else (": ", "\n")
    rows = [f"{name}{joint}{row}" for name, row in zip(names, ("[1, 0]", "[0, 1]"), strict=True)]
    indented = end + "  " if "layer_weights" in text else end
    closing = "}" if "layers" in text else ""
    file.write_text(text.format(indented.join(rows)) + closing, encoding="utf-8")
    assert read_weights(file).rows == {names[0]: (1.0, 0.0), names[1]: (0.0, 1.0)}


def test_each_layer_has_the_weights_of_its_own_name(tmp_path: Path) -> None:
    """Through a table, the recipe that was written, and one that was written by hand."""
    noise = np.random.default_rng(0)
    layers = ("1.1", "1.2", "1.10")
    tensors = {f"{n}.weight": noise.standard_normal((16, 16)).astype("f4") for n in layers}
    for name, more in (("a", 0.0), ("d", 0.125)):
        moved = {key: value + np.float32(more) for key, value in tensors.items()}
        save_file(moved, tmp_path / f"{name}.safetensors", metadata={"format": "pt"})
    table = "1.1: [1.0, 0.0]\n1.2: [0.75, 0.25]\n1.10: [0.5, 0.5]\n"
    (tmp_path / "w.yaml").write_text(table, encoding="utf-8")
    models = [tmp_path / "a.safetensors", tmp_path / "d.safetensors"]
    first = lw.merge(*models, output=tmp_path / "first", weights=tmp_path / "w.yaml")
    wanted = {"1.1": (1.0, 0.0), "1.2": (0.75, 0.25), "1.10": (0.5, 0.5)}
    assert {layer.name: layer.weights for layer in first.plan.layers} == wanted
    recipe = tmp_path / "first" / "lwmm_recipe.yaml"
    assert lw.merge_recipe(recipe, output=tmp_path / "again").files == first.files
    text = recipe.read_text("utf-8").replace("'1.10':", "1.10:").replace("'1.1':", "1.1:")
    assert text != recipe.read_text("utf-8")
    recipe.write_text(text, encoding="utf-8")
    assert lw.merge_recipe(recipe, output=tmp_path / "by hand").files == first.files


def test_numbers_with_an_exponent_are_numbers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """To PyYAML `1e-5`, as Python and JSON write it, is a text."""
    table = tmp_path / "w.yaml"
    table.write_text("stages: [5e-1, 5.0E-1]\nhead: [1e0, 0.e+3]\n")
    assert read_weights(table).rows == {"stages": (0.5, 0.5), "head": (1.0, 0.0)}
    first = lw.merge(*pair, output=tmp_path / "first", weights=table)
    recipe = tmp_path / "first" / "lwmm_recipe.yaml"
    text = recipe.read_text("utf-8")
    recipe.write_text(text.replace("[0.5, 0.5]", "[5e-1, 5E-1]"), encoding="utf-8")
    assert "[5e-1, 5E-1]" in recipe.read_text("utf-8")
    assert lw.merge_recipe(recipe, output=tmp_path / "again").files == first.files
    for text in ("stages: ['5e-1', 0.5]", "stages: [5e, 0.5]", "stages: [e5, 0.5]"):
        table.write_text(text)
        with pytest.raises(UsageError, match="give a list of numbers"):
            read_weights(table)


@pytest.mark.parametrize("row", ["10", b"10", 0.5, [None, 1], ["0.5", 0.5], [[0.5], 0.5], None])
def test_a_mapping_has_rows_of_numbers(row: object, pair: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="for 'head': give a list of numbers, the anchor's"):
        lw.plan(*pair, weights={**GROUPS, "head": row})
    with pytest.raises(UsageError, match=r"^weights is of type list: give a mapping"):
        lw.plan(*pair, weights=[("head", (1, 0))])


def test_a_group_may_be_called_layers(tmp_path: Path) -> None:
    """A plan has a list of that name, too."""
    noise = np.random.default_rng(0)
    values = {f"layers.{i}.weight": noise.standard_normal((8, 8)).astype("f4") for i in range(3)}
    moved = {key: value + np.float32(0.125) for key, value in values.items()}
    models = [tmp_path / "a.safetensors", tmp_path / "d.safetensors"]
    for path, tensors in zip(models, (values, moved), strict=True):
        save_file(tensors, path, metadata={"format": "pt"})
    for name in ("w.yaml", "w.json"):
        (tmp_path / name).write_text('{"layers": [0.25, 0.75]}', encoding="utf-8")
        plan = lw.plan(*models, weights=tmp_path / name)
        assert {layer.weights for layer in plan.layers} == {(0.25, 0.75)}


def test_a_file_that_is_too_large_is_called_so(tmp_path: Path) -> None:
    file = tmp_path / "weights.yaml"
    with file.open("wb") as stream:
        stream.truncate((16 << 20) + 1)
    with pytest.raises(UsageError, match="over 16 MiB"):
        read_weights(file)


def test_a_row_that_stands_twice_in_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    file.write_text('{"a": [0.5, 0.5], "a": [1, 0]}', encoding="utf-8")
    with pytest.raises(UsageError, match="has 'a' twice"):
        read_weights(file)


def test_a_recipe_with_numbers_alone_or_wrong_ones_names_its_line(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    lw.merge(*pair, output=tmp_path / "m", weights=GROUPS)
    recipe = tmp_path / "m" / "lwmm_recipe.yaml"
    text = recipe.read_text("utf-8")
    for broken, said in (
        (text.replace("schedule: table", "schedule: linear"), "layer_weights go with"),
        (text.replace("[0.25, 0.75]", "[0.25, 0.85]", 1), r"line \d+: the weights for"),
        (text.replace("[0.25, 0.75]", "[0.25, x]", 1), "a weight must be a number"),
        (text.replace("method: table", "method: [1]"), "method must be"),
        (text.replace("method: table", "method: .nan"), r"line \d+: weights_from has 'method'"),
        (text.replace("version: 1", f"version: {'1:' * 400_000}1"), "version must be a whole"),
    ):
        recipe.write_text(broken, encoding="utf-8")
        with pytest.raises(RecipeError, match=said):
            lw.merge_recipe(recipe, output=tmp_path / "again")


def test_numbers_and_a_schedule_exclude_each_other(pair: tuple[Path, Path], lwmm) -> None:
    Path("w.yaml").write_text(
        "\n".join(f"{name}: {list(row)}" for name, row in GROUPS.items()), encoding="utf-8"
    )
    found = lwmm("merge", *pair, "-o", "m", "--weights", "w.yaml", "--gamma", "2")
    assert found.code == 2
    assert "leave --gamma out" in found.err
    found = lwmm("merge", *pair, "-o", "m", "--weights", "w.yaml", "--json")
    assert found.code == 0
    assert found.data["merged"] > 0


def test_rows_close_to_one_are_completed_by_the_anchor() -> None:
    third = 1 / 3
    (row,) = WeightTable({"a": (third, third, third)}).weights(["a"], 3)
    assert sum(row) == pytest.approx(1, abs=1e-15)
    (row,) = WeightTable({"a": (0.4999999, 0.5)}).weights(["a"], 2)
    assert row == (0.5, 0.5)


def test_where_weights_come_from_is_told_without_tokens_and_paths(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    token = "hf_" + "aB3" * 11
    rows = "".join(f"  {name}: {list(row)}\n" for name, row in GROUPS.items())
    origin = f"{{method: fit, images: /home/zoe/x, token: {token}, ~/zoe: 1, seed: 3}}"
    (tmp_path / "w.yaml").write_text(f"weights_from: {origin}\nlayer_weights:\n{rows}", "utf-8")
    lw.merge(*pair, output=tmp_path / "m", weights=tmp_path / "w.yaml")
    for name in ("lwmm_manifest.json", "README.md"):
        text = (tmp_path / "m" / name).read_text("utf-8")
        assert "zoe" not in text
        assert token not in text
    manifest = json.loads((tmp_path / "m" / "lwmm_manifest.json").read_text("utf-8"))
    assert manifest["plan"]["weights_from"] == {
        "method": "fit", "images": "[local path]", "token": "[token]", "[local path]": 1, "seed": 3
    }  # fmt: skip
