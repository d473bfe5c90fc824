"""Recipes: written and read they are the same; what is wrong is named with its line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from enumerators import TINY, ancestor, finetuned, write_transformers_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import relatives

import lwmm_hub as lw
from lwmm_hub.errors import LwmmError, RecipeError, VerificationError
from lwmm_hub.recipe import (
    Recipe,
    RecipeModel,
    parse_recipe,
    read_recipe,
    recipe_of,
    write_recipe,
)

GOOD = """\
version: 1
models:
- reference: org/anchor@0123456789012345678901234567890123456789
- reference: org/donor@main:run/latest.pth?weights=ema
  kept_parts: [head]
options:
  schedule: linear
  gamma: 2
"""


def parse(text: str) -> Recipe:
    return parse_recipe(text, "recipe.yaml")


def test_a_recipe_says_models_and_options() -> None:
    recipe = parse(GOOD)
    assert [m.reference for m in recipe.models] == [
        "hf://org/anchor@0123456789012345678901234567890123456789",
        "hf://org/donor@main:run/latest.pth?weights=ema",
    ]
    assert recipe.models[1].kept_parts == ("head",)
    assert recipe.options == lw.MergeOptions(gamma=2.0)
    assert type(recipe.options.gamma) is float


# ---------------------------------------------------------------------------------- round trip

printable = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
words = st.text(printable, min_size=1, max_size=30).filter(str.strip)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
hashes = st.dictionaries(words, digests, max_size=3)
parts = st.lists(words, max_size=3).map(tuple)
hub = st.builds(
    RecipeModel,
    st.sampled_from(
        [
            "hf://org/name@0123456789012345678901234567890123456789",
            "hf://org/name",
            "hf://org/name@refs/pr/1:run/latest.pth?weights=ema",
            "./run/latest.pth",
            "../x y/é#1: 'model'?weights=imagenet",
            "/srv/model",
        ]
    ),
    st.none(),
    hashes,
    parts,
)
local = st.builds(RecipeModel, st.none(), words, hashes, parts)
options = st.one_of(
    st.builds(
        lw.MergeOptions,
        schedule=st.sampled_from(["linear", "cosine"]),
        start=st.floats(0, 0.5) | st.sampled_from(["stages.0.norm", "1e5", "null", "0.5"]),
        end=st.floats(0.5, 1) | st.sampled_from(["stages.3.norm", "true", "~"]),
        gamma=st.floats(1e-300, 1e300),
        endpoint=st.floats(0, 1),
        anchor_weight=st.none() | st.floats(0.5, 1),
        batch_norm=st.sampled_from(["linear", "moment", "anchor"]),
        scope=st.sampled_from(["auto", "all", "backbone"]),
        allow_unrelated=st.booleans(),
        allow_nonfinite=st.booleans(),
        dtype=st.sampled_from(["auto", "float16"]),
        max_shard_size=st.sampled_from(["5GB", "200 KiB", "1000"]),
        output_format=st.sampled_from(["safetensors", "pth"]),
    ),
    st.just(lw.MergeOptions("harmonic")),
    st.builds(lw.MergeOptions, schedule=st.just("isotropic"), anchor_weight=st.floats(0.5, 1)),
    st.builds(lw.MergeOptions, schedule=st.just("step"), endpoint=st.floats(0, 1)),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(hub | local, min_size=2, max_size=4), options)
def test_a_recipe_written_and_read_is_the_same(
    models: list[RecipeModel], chosen: lw.MergeOptions
) -> None:
    models[0] = RecipeModel(models[0].reference, models[0].local, models[0].sha256)
    recipe = Recipe(tuple(models), chosen)
    assert parse(write_recipe(recipe, "a test")) == recipe


def test_a_recipe_in_a_folder_finds_its_models_beside_it(tmp_path: Path) -> None:
    folders = [
        write_transformers_folder(tmp_path / name, values, TINY)
        for name, values in zip(("a b", "c"), relatives(2), strict=True)
    ]
    result = lw.merge(*folders, output=tmp_path / "out" / "merged", gamma=2.0)
    path = result.folder / "lwmm_recipe.yaml"
    recipe = read_recipe(path)
    assert recipe.options == result.plan.options
    references = [Path(m.reference or "").resolve() for m in recipe.models]
    assert references == [f.resolve() for f in folders]
    again = lw.merge_recipe(path, output=tmp_path / "again")
    assert again.files == result.files
    assert again.plan.merged == result.plan.merged


def test_a_public_recipe_has_no_paths_and_asks_for_the_parents(tmp_path: Path) -> None:
    folders = [
        write_transformers_folder(tmp_path / name, values, TINY)
        for name, values in zip("ab", relatives(2), strict=True)
    ]
    result = lw.merge(*folders, output=tmp_path / "merged")
    recipe = recipe_of(result.plan, public=True)
    assert [(m.reference, m.local) for m in recipe.models] == [(None, "a"), (None, "b")]
    assert str(tmp_path) not in write_recipe(recipe, "a test")
    with pytest.raises(RecipeError, match="--parent a=PATH"):
        lw.merge_recipe(recipe, output=tmp_path / "again")
    parents = {"a": str(folders[0]), "b": str(folders[1])}
    again = lw.merge_recipe(recipe, output=tmp_path / "again", parents=parents)
    assert again.files == result.files


# --------------------------------------------------------------------------------------- errors


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


D = "0123456789abcdef" * 4
ERRORS = {
    "empty": ("", 1, "a recipe is a table"),
    "a text": ("hello", 1, "a recipe is a table"),
    "a list": ("- a\n- b\n", 1, "a recipe is a table"),
    "no version": (changed("version: 1\n", ""), 1, "'version' is missing"),
    "no models": ("version: 1\n", 1, "'models' is missing"),
    "another version": (changed("version: 1", "version: 2"), 1, "version 2 is unknown"),
    "version as text": (changed("version: 1", "version: one"), 1, "must be a whole number"),
    "version true": (changed("version: 1", "version: true"), 1, "must be a whole number"),
    "unknown field": (GOOD + "colour: red\n", 9, "unknown field 'colour' in a recipe"),
    "unknown option": (GOOD + "  shedule: step\n", 9, "unknown field 'shedule' in options"),
    "unknown model field": (changed("kept_parts", "kept"), 5, "unknown field 'kept' in a model"),
    "field twice": (GOOD + "version: 1\n", 9, "'version' stands in a recipe twice"),
    "option twice": (GOOD + "  gamma: 3\n", 9, "'gamma' stands in options twice"),
    "merge key": (GOOD + "  <<: {gamma: 3}\n", 9, "unknown field '<<'"),
    "key that is a list": (GOOD + "  [a]: 3\n", 9, "unknown field '?'"),
    "models no list": ("version: 1\nmodels: 3\n", 2, "models is a list"),
    "one model": ("version: 1\nmodels:\n- reference: a/b\n", 3, "at least two models"),
    "no model": ("version: 1\nmodels: []\n", 2, "at least two models"),
    "model no table": ("version: 1\nmodels:\n- a/b\n- c/d\n", 3, "a model is a table"),
    "model without name": (changed("reference: org/d", "local: x\n  reference: a/d"), 4, "either"),
    "model with neither": ("version: 1\nmodels:\n- {}\n", 3, "either 'reference' or 'local'"),
    "bad reference": (changed("org/donor@", "org//donor@"), 4, "neither a local path nor a Hub"),
    "bad weights": (changed("=ema", "=emma"), 4, "unknown weights 'emma'"),
    "reference a number": (changed("org/donor@main:run/latest.pth?weights=ema", "3"), 4, "a text"),
    "parts no list": (changed("[head]", "head"), 5, "kept_parts is a list"),
    "parts of numbers": (changed("[head]", "[1]"), 5, "a part must be a text, not '1'"),
    "the anchor keeps all": (
        changed("- reference: org/donor", "  kept_parts: [head]\n- reference: org/donor"),
        4,
        "the first model is the anchor",
    ),
    "short checksum": (changed("kept_parts: [head]", "sha256: {f: abc}"), 5, "64 hexadecimal"),
    "checksum twice": (
        changed("kept_parts: [head]", f"sha256: {{f: {D},\n    f: {D}}}"),
        6,
        "'f' stands in sha256 twice",
    ),
    "sha256 a list": (changed("kept_parts: [head]", "sha256: []"), 5, "table of file names"),
    "options a list": (changed("options:\n", "options: []\nx:\n"), 7, "unknown field 'x'"),
    "options no table": (changed("  schedule: linear\n  gamma: 2\n", "  1\n"), 7, "options is"),
    "schedule": (changed("linear", "quadratic"), 7, "schedule 'quadratic' is unknown"),
    "schedule a number": (changed("linear", "3"), 7, "schedule must be a text, not '3'"),
    "gamma a text": (changed("gamma: 2", "gamma: two"), 8, "gamma must be a number, not 'two'"),
    "gamma null": (changed("gamma: 2", "gamma:"), 8, "gamma must be a number, not ''"),
    "gamma a list": (changed("gamma: 2", "gamma: [2]"), 8, "gamma must be a number"),
    "gamma 0": (changed("gamma: 2", "gamma: 0"), 8, "gamma is 0.0: give a number over 0"),
    "gamma nan": (changed("gamma: 2", "gamma: .nan"), 8, "gamma is nan"),
    "gamma huge": (changed("gamma: 2", "gamma: 1" + "0" * 400), 8, "gamma must be a number"),
    "gamma endless": (changed("gamma: 2", "gamma: 1" + "0" * 5000), 8, "gamma must be a number"),
    "a date": (changed("gamma: 2", "gamma: 2020-99-99"), 8, "gamma must be a number"),
    "bool as int": (changed("gamma: 2", "allow_unrelated: 1"), 8, "must be true or false"),
    "bool as text": (changed("gamma: 2", "allow_unrelated: 'yes'"), 8, "must be true or false"),
    "anchor weight": (changed("gamma: 2", "anchor_weight: 0.4"), 8, "anchor-weight is 0.4"),
    "anchor weight text": (changed("gamma: 2", "anchor_weight: x"), 8, "a number or null"),
    "start after end": (
        changed("gamma: 2", "start: 0.9\n  end: 0.1"),
        8,
        r"start 0.9 lies after end 0.1",
    ),
    "start out of range": (changed("gamma: 2", "start: 3"), 8, "start is 3.0"),
    "harmonic with more": (changed("linear", "harmonic"), 7, "nothing in the harmonic"),
    "dtype": (changed("gamma: 2", "dtype: float8"), 8, "dtype 'float8' is unknown"),
    "scope": (changed("gamma: 2", "scope: head"), 8, "scope 'head' is unknown"),
    "shard size": (changed("gamma: 2", "max_shard_size: 5 apples"), 8, "is no size"),
    "broken yaml": (changed("options:", "options: ["), 8, "Mend the YAML"),
    "a tab": (changed("  gamma", "\tgamma"), 8, "cannot start any token"),
    "two documents": (GOOD + "---\n" + GOOD, 9, "another document"),
    "undefined alias": (changed("gamma: 2", "gamma: *x"), 8, "undefined alias"),
    "a control character": (GOOD + "\x01", 9, "it is not YAML"),
    "python object": (
        changed("gamma: 2", "gamma: !!python/object/apply:os.system ['touch x']"),
        8,
        "gamma must be a number",
    ),
    "python name": (changed("linear", "!!python/name:os.system x"), 7, "schedule must be a text"),
    "bad bool": (changed("gamma: 2", "allow_unrelated: !!bool maybe"), 8, "true or false"),
    "empty int": (changed("version: 1", "version: !!int ''"), 1, "a whole number"),
    "empty float": (changed("gamma: 2", "gamma: !!float ''"), 8, "a number"),
    "bad timestamp": (changed("linear", "!!timestamp x"), 7, "a text"),
    "bad weight tag": (changed("gamma: 2", "anchor_weight: !!float x"), 8, "a number or null"),
    "itself": ("version: 1\nmodels: &a\n- *a\n- *a\n", 2, "a model is a table"),
}  # fmt: skip


@pytest.mark.parametrize("what", ERRORS)
def test_an_error_says_what_and_in_which_line(what: str) -> None:
    text, line, says = ERRORS[what]
    with pytest.raises(RecipeError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith(f"recipe.yaml, line {line}: ")
    assert says in message
    assert "\n" not in message
    assert len(message) < 600


def test_yaml_bombs_and_depths_do_no_harm() -> None:
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)  # noqa: E501
    )  # fmt: skip
    for text in (
        laughs,
        "version: 1\nmodels: " + "[" * 5000,
        "{" * 5000,
        "version: 1\noptions: &a {gamma: *a}\nmodels: []",
        "- " * 3000,
        "a: " * 2,
        "? " * 2000,
    ):
        with pytest.raises(RecipeError) as caught:
            parse(text)
        assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=60) | st.text("-[]{}:&*!|> \n'\"aversion1models", max_size=60))
def test_any_text_is_a_recipe_or_an_error_of_ours(text: str) -> None:
    for whole in (text, GOOD + text, changed("linear", text), changed("gamma: 2", text)):
        with suppress(RecipeError):
            parse(whole)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_tag_on_any_value_is_read_or_an_error_of_ours(data: st.DataObject) -> None:
    tag = data.draw(st.sampled_from("bool int float null str timestamp binary omap pairs set".split()))  # noqa: SIM905, E501  # fmt: skip
    value = data.draw(
        st.sampled_from(["", "x", "1", "0x", "1:60", "[1]", "{a: 1}", "0b", "~", "é"])
    )
    place = data.draw(st.sampled_from(["version: 1", "gamma: 2", "schedule: linear", "[head]"]))
    name = place.partition(":")[0]
    new = f"!!{tag} {value}" if name == "[head]" else f"{name}: !!{tag} {value}"
    with suppress(RecipeError):
        parse(changed(place, new))


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "long.yaml").write_bytes(b"#" * (5 << 20))
    for name, says in (
        ("missing.yaml", "No such file"),
        ("", "Is a directory"),
        ("binary.yaml", "it is not text"),
        ("long.yaml", "over 4 MiB"),
    ):
        with pytest.raises(LwmmError, match=says) as caught:
            read_recipe(tmp_path / name)
        assert isinstance(caught.value, RecipeError)


def test_a_byte_order_mark_and_windows_newlines_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert read_recipe(tmp_path / "r.yaml") == parse(GOOD)


def test_a_recipe_by_hand_is_judged_by_the_weights_when_it_runs(tmp_path: Path) -> None:
    start = ancestor(TINY, 0)
    other = ancestor(TINY, 9)
    anchor = finetuned(start, 1)
    donor = finetuned(start, 2)
    foreign = donor | {name: value for name, value in other.items() if name.startswith("head.")}
    write_transformers_folder(tmp_path / "anchor", anchor, TINY)
    write_transformers_folder(tmp_path / "donor", foreign, TINY)
    text = "version: 1\nmodels:\n- reference: ./anchor\n- reference: ./donor\n"
    (tmp_path / "hand.yaml").write_text(text)
    result = lw.merge_recipe(tmp_path / "hand.yaml", output=tmp_path / "out")
    assert result.plan.models[1].kept_parts == ("head",)
    assert "scope_decided: true" in (tmp_path / "out" / "lwmm_recipe.yaml").read_text()

    (tmp_path / "all.yaml").write_text(f"{text}scope_decided: true\n")
    forced = lw.merge_recipe(tmp_path / "all.yaml", output=tmp_path / "forced")
    assert forced.plan.models[1].kept_parts == ()

    (tmp_path / "typo.yaml").write_text(f"{text}  kept_parts: [haed]\nscope_decided: true\n")
    with pytest.raises(RecipeError, match="'haed', which is no head that the models share"):
        lw.merge_recipe(tmp_path / "typo.yaml", output=tmp_path / "typo")


def test_a_local_parent_with_another_checksum_is_refused(tmp_path: Path) -> None:
    start = ancestor(TINY, 0)
    for name, seed in (("anchor", 1), ("donor", 2)):
        write_transformers_folder(tmp_path / name, finetuned(start, seed), TINY)
    sums = f"    model.safetensors: {'a' * 64}\n"
    text = f"version: 1\nmodels:\n- reference: ./anchor\n- local: donor\n  sha256:\n{sums}"
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(VerificationError, match="'donor' is not the model that the recipe names"):
        lw.merge_recipe(
            tmp_path / "r.yaml", output=tmp_path / "out", parents={"donor": str(tmp_path / "donor")}
        )
    assert not (tmp_path / "out").exists()


def test_a_path_of_another_drive_is_a_path() -> None:
    """As Windows writes it where no relative path leads there."""
    text = "version: 1\nmodels:\n- reference: D:/models/anchor\n- reference: ../donor\n"
    recipe = parse(text)
    assert [model.reference for model in recipe.models] == ["D:/models/anchor", "../donor"]
    assert parse(write_recipe(recipe, "a test")) == recipe
