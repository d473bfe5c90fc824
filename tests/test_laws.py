"""Laws of a merge that hold for any models, options, threads and chunks."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from enumerators import (
    TINY,
    cast,
    segformer_nvlabs,
    segformer_transformers_old,
    spell,
    write_pth,
    write_transformers_folder,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import (
    Values,
    assert_within_rounding,
    read,
    relatives,
    same_bits,
    save,
    unspell,
)

import lwmm_hub as lw
from lwmm_hub.checkpoint.safetensors import write_header
from lwmm_hub.errors import RecipeError
from lwmm_hub.merging import TargetFile, arithmetic, merge_files, output_tensors
from lwmm_hub.planning import MergedTensor
from lwmm_hub.schedule import SCHEDULES, WITHOUT_EFFECT
from lwmm_hub.writing import write_weights

BATCH_NORM = ("linear", "moment", "anchor")
SLOW = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
BITS = {
    "float16": (np.uint16, np.dtype("f2"), 0x7C00),
    "bfloat16": (np.uint16, np.dtype(ml_dtypes.bfloat16), 0x7F80),
    "float32": (np.uint32, np.dtype("f4"), 0x7F800000),
    "float64": (np.uint64, np.dtype("f8"), 0x7FF0000000000000),
}


def run(folder: Path, paths: Sequence[Path], **options: Any) -> Values:
    """The result of a merge without card, licence and manifest."""
    checkpoints = [lw.resolve(str(path)) for path in paths]
    key_map = lw.match(*checkpoints)
    plan = lw.plan_merge(key_map, checkpoints, lw.MergeOptions(**options))
    folder.mkdir()
    write_weights(folder, plan, checkpoints)
    return read(folder)


# ---------------------------------------------------------------- a model with itself


@st.composite
def options(draw: st.DrawFn, models: int) -> dict[str, Any]:
    """Any valid options of the numbers."""
    schedule = draw(st.sampled_from(SCHEDULES))
    chosen: dict[str, Any] = {
        "schedule": schedule,
        "batch_norm": draw(st.sampled_from(BATCH_NORM)),
        "scope": draw(st.sampled_from(["auto", "all", "backbone"])),
    }
    start, end = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    ramp = {
        "start": start,
        "end": end,
        "gamma": draw(st.floats(0.1, 5)),
        "endpoint": draw(st.floats(0, 1)),
        "anchor_weight": draw(st.none() | st.floats(1 / models, 1)),
    }
    unknown = WITHOUT_EFFECT.get(schedule, ())
    return chosen | {name: value for name, value in ramp.items() if name not in unknown}


@st.composite
def networks(draw: st.DrawFn) -> Values:
    """Any finite bit pattern: signed zeros, subnormals, extremes, in every dtype."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values: Values = {}
    shapes = [(4, 3), (5,), (2, 2, 3, 3), (), (1, 1), (3, 0)]
    for i, shape in enumerate(shapes):
        unsigned, dtype, infinity = BITS[draw(st.sampled_from(sorted(BITS)))]
        top = np.iinfo(unsigned).max
        codes = random.integers(0, top, shape, unsigned, endpoint=True)
        codes = np.where((codes & infinity) == infinity, codes & ~unsigned(infinity), codes)
        special = np.array([0, 1 << (np.iinfo(unsigned).bits - 1), 1, infinity - 1], unsigned)
        flat = codes.astype(unsigned).reshape(-1)
        flat[: len(special)] = special[: len(flat)]
        part = "backbone" if i < 4 else "head"
        leaf = "running_mean" if shape == (5,) else "weight"
        values[f"{part}.{i}.{leaf}"] = flat.reshape(shape).view(dtype)
        if leaf == "running_mean":
            values[f"{part}.{i}.running_var"] = flat.reshape(shape).view(dtype).copy()
    values["backbone.9.counter"] = np.array([draw(st.integers(-(2**63), 2**63 - 1))])
    return values


@settings(SLOW, max_examples=80)
@given(st.data(), networks(), st.integers(2, 5))
def test_merging_a_model_with_itself_gives_it_back_bit_for_bit(
    data: st.DataObject, values: Values, models: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        paths = [save(Path(name) / f"{i}.safetensors", values) for i in range(models)]
        found = run(Path(name) / "m", paths, **data.draw(options(models)))
    assert same_bits(found, values)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("batch_norm", BATCH_NORM)
def test_a_segformer_with_itself_in_another_spelling_is_itself(
    dtype: str, batch_norm: str, tmp_path: Path
) -> None:
    neutral = relatives(1)[0]
    neutral["stage1.embed.bias"][:3] = [-0.0, 1e-45, -1e-42]
    anchor = cast(spell(segformer_transformers_old(TINY), neutral), dtype)
    one = save(tmp_path / "a.safetensors", anchor)
    two = write_pth(tmp_path / "b.pth", cast(spell(segformer_nvlabs(TINY), neutral), dtype))
    found = run(tmp_path / "m", [one, two, two], batch_norm=batch_norm, endpoint=0.7)
    assert same_bits(found, anchor)


# --------------------------------------------------------------------- the donors' order


@settings(SLOW, max_examples=25)
@given(st.data(), st.integers(3, 4))
def test_the_order_of_the_donors_changes_the_last_bits_at_most(
    data: st.DataObject, models: int
) -> None:
    chosen = data.draw(options(models))
    order = data.draw(st.permutations(range(1, models)))
    neutral = relatives(models)
    with tempfile.TemporaryDirectory() as name:
        paths = [
            save(Path(name) / f"{i}.safetensors", spell(segformer_transformers_old(TINY), values))
            for i, values in enumerate(neutral)
        ]
        plain = run(Path(name) / "m", paths, **chosen)
        other = run(Path(name) / "n", [paths[0], *(paths[i] for i in order)], **chosen)
    assert_within_rounding(other, plain)


# ---------------------------------------------------------------------- threads and chunks


def merged_bytes(
    plan: lw.MergePlan, checkpoints: Sequence[lw.Checkpoint], threads: int, chunk: int | None
) -> tuple[bytes, str]:
    """The output file and its sha256 as `merge_files` tells it."""
    tensors = output_tensors(plan, checkpoints[0])
    head = write_header([(t.key, t.dtype, t.shape) for t in tensors], {"format": "pt"})
    with tempfile.TemporaryFile() as file:
        target = TargetFile(tensors, head, file.fileno())
        (digest,) = merge_files(plan, checkpoints, [target], threads, chunk)
        file.seek(0)
        return file.read(), digest


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Parents in three dtypes and spellings, big enough for many ranges; one huge difference."""
    root = tmp_path_factory.mktemp("mixed")
    size = TINY.__class__(depths=(1, 1, 1, 1), widths=(16, 32, 64, 128), decoder_width=64)
    one, two, three = relatives(3, size=size)
    one["head.fuse.weight"][5, 5] = 3e38
    two["head.fuse.weight"][5, 5] = -3e38
    three["head.fuse.weight"][5, 5] = -3e38
    old, fused = segformer_transformers_old(size), segformer_nvlabs(size)
    return [
        write_pth(root / "a.pth", spell(fused, one)),
        save(root / "b.safetensors", spell(old, two)),
        save(root / "c.safetensors", cast(spell(old, three), "bfloat16")),
    ]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("batch_norm", ["linear", "moment"])
@pytest.mark.parametrize("anchor", [0, 1])
def test_the_result_depends_on_neither_threads_nor_chunks(
    dtype: str, batch_norm: str, anchor: int, mixed: list[Path]
) -> None:
    paths = [mixed[anchor], *(p for i, p in enumerate(mixed) if i != anchor)]
    checkpoints = [lw.resolve(str(path)) for path in paths]
    plan = lw.plan_merge(
        lw.match(*checkpoints), checkpoints, lw.MergeOptions(dtype=dtype, batch_norm=batch_norm)
    )
    expected, digest = merged_bytes(plan, checkpoints, 1, None)
    assert hashlib.sha256(expected).hexdigest() == digest
    for threads, chunk in itertools.product((1, 2, 3, 4), (4096, 64 * 1024, 1 << 20)):
        assert merged_bytes(plan, checkpoints, threads, chunk) == (expected, digest)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("block", [97, 4096])
def test_nor_on_how_many_elements_are_added_at_once(
    block: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spelt = (spell(segformer_transformers_old(TINY), values) for values in relatives(3, size=TINY))
    paths = [
        save(tmp_path / f"{i}.safetensors", cast(values, dtype)) for i, values in enumerate(spelt)
    ]
    checkpoints = [lw.resolve(str(path)) for path in paths]
    plan = lw.plan_merge(lw.match(*checkpoints), checkpoints)
    expected = merged_bytes(plan, checkpoints, 1, None)
    monkeypatch.setattr(arithmetic, "BLOCK", block)  # 131 072 is more than these tensors have
    assert merged_bytes(plan, checkpoints, 2, None) == expected


@settings(SLOW, max_examples=15)
@given(threads=st.integers(1, 8), chunk=st.integers(520, 50_000))
def test_odd_chunks_too(threads: int, chunk: int, mixed: list[Path]) -> None:
    checkpoints = [lw.resolve(str(path)) for path in mixed]
    plan = lw.plan_merge(lw.match(*checkpoints), checkpoints)
    expected = merged_bytes(plan, checkpoints, 2, None)
    assert merged_bytes(plan, checkpoints, threads, chunk) == expected


def test_merging_twice_gives_the_same_bytes(mixed: list[Path], tmp_path: Path) -> None:
    one = lw.merge(*mixed, output=tmp_path / "one", threads=1)
    two = lw.merge(*mixed, output=tmp_path / "two", threads=4)
    assert one.files == two.files
    name = "model.safetensors"
    digest = hashlib.sha256((tmp_path / "two" / name).read_bytes()).hexdigest()
    assert two.files == {name: digest}


# -------------------------------------------------------------------------- plans are values


@settings(SLOW, max_examples=25)
@given(data=st.data(), decided=st.booleans(), fused=st.booleans())
def test_a_plan_saved_and_loaded_is_the_same_plan(
    data: st.DataObject, decided: bool, fused: bool, mixed: list[Path]
) -> None:
    paths = mixed if fused else mixed[:0:-1]
    chosen = data.draw(options(len(paths)))
    plan = lw.plan(*paths, check_weights=decided, **chosen)
    assert lw.MergePlan.from_dict(plan.to_dict()) == plan
    assert lw.MergePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    with tempfile.TemporaryDirectory() as name:
        plan.save(Path(name) / "plan.json")
        loaded = lw.MergePlan.load(Path(name) / "plan.json")
    assert loaded == plan
    assert loaded.to_dict() == plan.to_dict()
    assert str(loaded) == str(plan)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scope_decided", "no"),
        ("scope_decided", 1),
        ("warnings", "abc"),
        ("warnings", [1]),
        ("order_source", 5),
        ("kept", [{"key": 1, "reason": "why"}]),
        ("kept", [{"key": "a", "reason": None}]),
        ("unused", [{"model": -1, "key": "a", "reason": "why"}]),
        ("unused", [{"model": 9, "key": "a", "reason": "why"}]),
        ("parts", [{"name": "a", "backbone": "yes", "tensors": 1}]),
        ("cost", {"read_bytes": "much"}),
        ("cost", {"read_bytes": True}),
        ("layers", [{"index": 0, "name": "a", "part": "b", "weights": "11"}]),
        ("layers", []),
        (
            "relatedness",
            [
                {
                    "model": 9,
                    "part": "a",
                    "backbone": True,
                    "cosine": 1.0,
                    "tensors": 1,
                    "verdict": "related",
                }
            ],
        ),
        ("lineage", [{"model": 0, "verdict": "proven", "why": "x"}]),
    ],
)
def test_a_plan_with_a_field_of_another_type_is_none(
    field: str, value: object, mixed: list[Path]
) -> None:
    data = lw.plan(*mixed).to_dict()
    assert field in data
    with pytest.raises(RecipeError, match="not a merge plan of version 1"):
        lw.MergePlan.from_dict({**data, field: value})


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("models", "label", 1),
        ("models", "files", "model.safetensors"),
        ("models", "sha256", {"a": 1}),
        ("models", "parameters", 1.5),
        ("merged", "shape", "88"),
        ("merged", "shape", [8, "8"]),
        ("merged", "weights", ["0.5", "0.5", "0"]),
        ("merged", "weights", [10**400, 0, 0]),
        ("merged", "sources", [1, None, None]),
        ("merged", "layer", None),
        ("merged", "layer", 10**30),
        ("merged", "weights", [1.0, 0.0]),
        ("merged", "weights", [float("inf"), 0.0, 0.0]),
        ("layers", "weights", [1.0, 0.0]),
        ("layers", "weights", [1e308, 0.0, 0.0]),
        ("layers", "weights", [float("nan"), 0.0, 0.0]),
    ],
)
def test_a_row_of_a_plan_with_a_field_of_another_type_is_none(
    table: str, field: str, value: object, mixed: list[Path]
) -> None:
    data = lw.plan(*mixed).to_dict()
    assert field in data[table][0]
    data[table][0][field] = value
    with pytest.raises(RecipeError, match="not a merge plan of version 1"):
        lw.MergePlan.from_dict(data)


def test_every_row_of_a_plan_sums_to_1(mixed: list[Path]) -> None:
    plan = lw.plan(*mixed)
    for tensor in plan.merged:
        assert sum(tensor.weights) == pytest.approx(1)
        assert len(tensor.weights) == len(tensor.sources) == 3
        assert all(w == 0 for w, s in zip(tensor.weights, tensor.sources, strict=True) if not s)
    assert [layer.index for layer in plan.layers] == list(range(len(plan.layers)))


def test_a_loaded_plan_merges_to_the_same_bytes(mixed: list[Path], tmp_path: Path) -> None:
    plan = lw.plan(*mixed, check_weights=True, gamma=2.0)
    plan.save(tmp_path / "plan.json")
    one = lw.merge(lw.MergePlan.load(tmp_path / "plan.json"), output=tmp_path / "one")
    two = lw.merge(*mixed, output=tmp_path / "two", gamma=2.0)
    assert one.files == two.files


def _without(plan: dict[str, Any], field: str) -> dict[str, Any]:
    return {k: v for k, v in plan.items() if k != field}


BROKEN = {
    "no table": lambda plan: [plan],
    "another version": lambda plan: plan | {"version": 2},
    "no models": lambda plan: _without(plan, "models"),
    "models without role": lambda plan: plan | {"models": [{}]},
    "an unknown option": lambda plan: plan | {"options": plan["options"] | {"colour": 1}},
    "an option of another type": lambda plan: plan | {"options": plan["options"] | {"gamma": "x"}},
    "a layer of another type": lambda plan: plan | {"layers": [1]},
    "weights that are no numbers": lambda plan: (
        plan | {"merged": [plan["merged"][0] | {"weights": ["x", "y", "z"]}]}
    ),
    "sources that are too few": lambda plan: (
        plan | {"merged": [plan["merged"][0] | {"sources": [], "parts": [[0, 1]]}]}
    ),
    "a model that is not there": lambda plan: (
        plan | {"unused": [{"model": 9, "key": "k", "reason": "r"}]}
    ),
    "no cost": lambda plan: plan | {"cost": None},
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_plan_is_refused_in_one_line(how: str, mixed: list[Path], tmp_path: Path) -> None:
    broken = BROKEN[how](lw.plan(*mixed).to_dict())
    (tmp_path / "plan.json").write_text(json.dumps(broken))
    with pytest.raises(RecipeError) as caught:
        lw.MergePlan.load(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "null", '"text"', "\0", "[" * 5000])
def test_a_file_that_is_no_plan_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(RecipeError) as caught:
        lw.MergePlan.load(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError):
        lw.MergePlan.load(tmp_path / "missing.json")


def test_plans_that_differ_are_different(mixed: list[Path]) -> None:
    plan = lw.plan(*mixed)
    assert plan != lw.plan(*mixed, gamma=2.0)
    first = replace(plan.merged[0], weights=(1.0, 0.0, 0.0))
    assert isinstance(first, MergedTensor)
    assert plan != replace(plan, merged=(first, *plan.merged[1:]))


# ------------------------------------------------------------------------------ the public names


def test_every_public_name_stays_callable_after_a_merge(tmp_path: Path) -> None:
    """Submodules share names with functions (`lw.plan`, `lw.merge`): importing them hides none."""
    one, two = relatives(2)
    a = write_transformers_folder(tmp_path / "a", one, TINY)
    b = write_transformers_folder(tmp_path / "b", two, TINY)
    for again in range(2):
        plan = lw.plan(a, b, check_weights=True)
        lw.merge(plan, output=tmp_path / f"merged{again}")
        lw.render_card(tmp_path / f"merged{again}")
        opened = [lw.resolve(str(path)) for path in (a, b)]
        lw.measure_drift(lw.match(*opened), opened)
        assert all(callable(getattr(lw, name)) for name in lw.__all__)
        assert set(lw.__all__) <= set(dir(lw))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lw.nothing  # noqa: B018


def test_the_steps_give_what_merge_gives(mixed: list[Path], tmp_path: Path) -> None:
    checkpoints = [lw.resolve(str(path), download=True) for path in mixed]
    plan = lw.plan_merge(lw.match(*checkpoints), checkpoints)
    (tmp_path / "steps").mkdir()
    written = lw.write_model(tmp_path / "steps", plan, checkpoints)
    result = lw.merge(*mixed, output=tmp_path / "merged")
    assert {file.name: file.sha256 for file in written} == result.files
    size = (tmp_path / "steps" / "model.safetensors").stat().st_size
    assert [file.bytes for file in written] == [size] == [result.bytes_written]


def within(found: Mapping[str, np.ndarray]) -> Values:
    return unspell(segformer_transformers_old(TINY), found)


def test_options_left_at_their_defaults_change_nothing(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / f"{i}.safetensors", spell(segformer_transformers_old(TINY), values))
        for i, values in enumerate(relatives(2))
    ]
    plain = run(tmp_path / "m", paths)
    stated = run(
        tmp_path / "n", paths, schedule="linear", start=0.0, end=1.0, gamma=1.0, endpoint=1.0,
        anchor_weight=0.5, batch_norm="linear", scope="all",
    )  # fmt: skip
    assert same_bits(within(plain), within(stated))
