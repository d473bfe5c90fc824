"""Every number of a merge once more, written from the method alone, in double precision.

Nothing here asks `lwmm_hub` how a weight is made: what it made is compared with formulas of
METHOD.md over the files that it read.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import Rows, Values, read, save
from test_fitting import STREET, Image, Own, changed, look, modules, pictures, weights

import lwmm_hub as lw
from lwmm_hub.errors import UsageError
from lwmm_hub.fitting import drift_layer_weights, entropy_layer_weights, fit_layer_weights
from lwmm_hub.fitting.running import VERSION

__all__ = ["modules"]  # a fixture

SLOW = settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
DTYPES = {"f8": 2.0**-53, "f4": 2.0**-24, "f2": 2.0**-11, "bf16": 2.0**-8}  # and half a last place


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bf16" else name)


# ------------------------------------------------------------------------------------ the formulas


def rows_of(
    kind: str,
    layers: int,
    models: int,
    start: float = 0.0,
    end: float = 1.0,
    gamma: float = 1.0,
    endpoint: float = 1.0,
    anchor_weight: float | None = None,
) -> Rows:
    """H_i(j) of METHOD.md."""
    if kind == "harmonic":
        return [((j + 1) / (j + models), *[1 / (j + models)] * (models - 1)) for j in range(layers)]
    share = (1 - (1 / models if anchor_weight is None else anchor_weight)) / (models - 1)
    first, last = start * (layers - 1), end * (layers - 1)
    rows = []
    for j in range(layers):
        s = float(j >= first) if first == last else (j - first) / (last - first)
        s = min(max(s, 0.0), 1.0)
        t = {
            "linear": s**gamma,
            "cosine": ((1 - math.cos(math.pi * s)) / 2) ** gamma,
            "step": float(s >= 0.5),
            "isotropic": 0.0,
        }[kind]
        donor = share * (1 - endpoint * t * (layers > 1))
        rows.append((1 - donor * (models - 1), *[donor] * (models - 1)))
    return rows


def left(row: Sequence[float], there: Sequence[bool]) -> list[float]:
    """The weights where some models lack a parameter; the anchor's alone where nothing is left."""
    kept = [w if ok else 0.0 for w, ok in zip(row, there, strict=True)]
    total = sum(kept)
    return [w / total for w in kept] if total else [1.0, *[0.0] * (len(row) - 1)]


def layer_of(name: str) -> str:
    return name.rpartition(".")[0]


def merged_by_formula(
    models: Sequence[Values], rows: Mapping[str, Sequence[float]], batch_norm: str
) -> Values:
    """sum_i H_i theta_i of every parameter that a donor has, too, in float64."""
    made = dict(models[0])
    for name, own in models[0].items():
        there = [name in m and m[name].shape == own.shape for m in models]
        statistic = name.endswith(("running_mean", "running_var"))
        if own.dtype.kind == "i" or not any(there[1:]) or (statistic and batch_norm == "anchor"):
            continue
        row = left(rows[layer_of(name)], there)
        values = [m[name].astype(float) if w else 0.0 for m, w in zip(models, row, strict=True)]
        made[name] = np.asarray(sum(w * v for w, v in zip(row, values, strict=True)))
        twin = name.removesuffix("running_var") + "running_mean"
        if batch_norm == "moment" and name.endswith("running_var") and sum(w > 0 for w in row) > 1:
            if [twin in m for m in models] != there:
                continue  # the mean is of other models than the variance: no mixture
            means = [m[twin].astype(float) if w else 0.0 for m, w in zip(models, row, strict=True)]
            mean = sum(w * v for w, v in zip(row, means, strict=True))
            made[name] = np.asarray(
                sum(w * (v + (mu - mean) ** 2) for w, v, mu in zip(row, values, means, strict=True))
            )
    return made


def assert_numbers(found: Values, expected: Values, models: Sequence[Values]) -> None:
    """Rounded once to the dtype they are stored in; sums are of float32, of float64 in float64."""
    assert found.keys() == expected.keys() == models[0].keys()
    for name, own in models[0].items():
        assert found[name].dtype == own.dtype
        if expected[name] is own:
            assert found[name].tobytes() == own.tobytes(), name
            continue
        there = [m[name] for m in models if name in m and m[name].shape == own.shape]
        sharers = [value.astype(float) for value in there if value.size]
        sums = DTYPES["f8" if {value.dtype.str[1:] for value in there} == {"f8"} else "f4"]
        stored = next(half for code, half in DTYPES.items() if dtype_of(code) == own.dtype)
        size = max((float(np.abs(v).max()) for v in sharers), default=0.0)
        gap = np.abs(found[name].astype(float) - expected[name])
        assert (gap <= 1.001 * stored * np.abs(expected[name]) + 2 * sums * size * 12).all(), name


# ------------------------------------------------------------------------------ merges of all kinds


@st.composite
def merges(draw: st.DrawFn) -> tuple[list[Values], dict[str, Any]]:
    """2 to 9 models of 1 to 5 layers, of any dtypes, with gaps; and options."""
    count, layers = draw(st.integers(2, 9)), draw(st.sampled_from([1, 2, 3, 5]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = [random.standard_normal((4, 3)) for _ in range(layers)]
    models = []
    for m in range(count):
        values: dict[str, Any] = {}
        for j, origin in enumerate(base):
            values |= {
                f"backbone.{j}.weight": origin + 0.3 * random.standard_normal(origin.shape),
                f"backbone.{j}.bias": random.standard_normal(4 - (m > 0 and random.random() < 0.2)),
                f"backbone.{j}.scale": random.standard_normal(()),
                f"backbone.{j}.empty": np.zeros((0, 3)),
                f"backbone.{j}.running_mean": random.standard_normal(4),
                f"backbone.{j}.running_var": random.random(4) + 0.1,
            }
            for leaf in ("running_mean", "running_var"):
                if m and random.random() < 0.2:
                    del values[f"backbone.{j}.{leaf}"]
        kind = dtype_of(draw(st.sampled_from(sorted(DTYPES))))
        made = {name: np.asarray(value, kind) for name, value in values.items()}
        counters = {f"backbone.{j}.num_batches_tracked": np.array(m) for j in range(layers)}
        models.append(made | counters)
    schedule = draw(st.sampled_from(["linear", "cosine", "step", "harmonic", "isotropic"]))
    options: dict[str, Any] = {"schedule": schedule}
    if schedule not in ("harmonic", "isotropic"):
        first, last = sorted(draw(st.tuples(*[st.sampled_from([0.0, 0.3, 0.5, 1.0])] * 2)))
        endpoint = draw(st.sampled_from([0.0, 0.25, 1.0]))
        options |= {"start": first, "end": last, "endpoint": endpoint}
    if schedule in ("linear", "cosine"):
        options["gamma"] = draw(st.sampled_from([0.01, 1.0, 3.0, 500.0]))
    if schedule != "harmonic":
        options["anchor_weight"] = draw(st.sampled_from([None, 1 / count, 0.5 + 0.5 / count, 1.0]))
    return models, options


@SLOW
@given(case=merges(), batch_norm=st.sampled_from(["linear", "moment", "anchor"]))
def test_a_merge_is_the_sum_that_the_method_says(
    case: tuple[list[Values], dict[str, Any]],
    batch_norm: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    models, options = case
    folder = tmp_path_factory.mktemp("merge")
    paths = [save(folder / f"m{i}.safetensors", m) for i, m in enumerate(models)]
    result = lw.merge(*paths, output=folder / "merged", batch_norm=batch_norm, **options)
    names = list(dict.fromkeys(layer_of(name) for name in models[0]))
    chosen = {"kind" if name == "schedule" else name: value for name, value in options.items()}
    rows = rows_of(layers=len(names), models=len(models), **chosen)
    np.testing.assert_allclose([layer.weights for layer in result.plan.layers], rows, atol=1e-15)
    expected = merged_by_formula(models, dict(zip(names, rows, strict=True)), batch_norm)
    assert_numbers(read(folder / "merged"), expected, models)
    # the same numbers as a table, as a saved plan, from the recipe and of a fresh merge of itself
    table = {layer.name: layer.weights for layer in result.plan.layers}
    again = lw.merge(*paths, output=folder / "table", batch_norm=batch_norm, weights=table)
    assert again.plan.merged == result.plan.merged
    assert again.files == result.files
    assert lw.verify(folder / "table").files == lw.verify(folder / "merged").files == result.files
    result.plan.save(folder / "plan.json")
    assert lw.MergePlan.load(folder / "plan.json") == result.plan
    made = folder / "merged" / "model.safetensors"
    once_more = lw.merge(made, made, output=folder / "itself", schedule="isotropic")
    assert once_more.files == result.files


@SLOW
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(2, 5),
    factor=st.sampled_from([-1.0, 2.0, 2.0**20, 2.0**-20]),
    schedule=st.sampled_from(["linear", "cosine", "harmonic", "isotropic"]),
    dtype=st.sampled_from(["f4", "f8"]),
)
def test_a_merge_goes_with_scale_and_with_channels_and_lies_between_its_parents(
    seed: int,
    count: int,
    factor: float,
    schedule: str,
    dtype: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    random = np.random.default_rng(seed)
    models = [
        {f"b.{j}.weight": random.standard_normal((6, 5)).astype(dtype) for j in range(3)}
        for _ in range(count)
    ]
    order = random.permutation(6)
    made = []
    for change in (lambda v: v, lambda v: v * np.dtype(dtype).type(factor), lambda v: v[order]):
        folder = tmp_path_factory.mktemp("law")
        paths = [
            save(folder / f"m{i}.safetensors", {name: change(v) for name, v in m.items()})
            for i, m in enumerate(models)
        ]
        how: dict[str, Any] = {"allow_unrelated": True, "scope": "all", "schedule": schedule}
        lw.merge(*paths, output=folder / "merged", **how)
        made.append(read(folder / "merged"))
    plain, scaled, permuted = made
    for name, value in plain.items():
        assert (scaled[name] == value * np.dtype(dtype).type(factor)).all()
        assert (permuted[name] == value[order]).all()
        every = np.stack([m[name] for m in models])
        slack = 8 * np.finfo(dtype).eps * np.abs(every).max(0)
        assert (value >= every.min(0) - slack).all()
        assert (value <= every.max(0) + slack).all()


@SLOW
@given(case=merges(), data=st.data())
def test_a_table_is_read_as_its_longest_names_say(
    case: tuple[list[Values], dict[str, Any]],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Rows as people write them: of one group, of layers, ends of 0 and 1, sums a little off."""
    models, _ = case
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    def row() -> list[float]:
        if random.random() < 0.3:  # one model alone
            return np.eye(len(models))[random.integers(len(models))].tolist()
        found = random.dirichlet(np.ones(len(models))).round(6)
        return [float(w) for w in found]

    layers = list(dict.fromkeys(layer_of(name) for name in models[0]))
    names = ["backbone", *(n for n in layers if random.random() < 0.5)]
    names = names[:-1] if len(names) == len(layers) + 1 else names  # else the group decides nothing
    table = {name: row() for name in names}
    folder = tmp_path_factory.mktemp("table")
    paths = [save(folder / f"m{i}.safetensors", m) for i, m in enumerate(models)]
    lines = [f"{name}: [{', '.join(map(repr, row))}]\n" for name, row in table.items()]
    (folder / "w.yaml").write_text("".join(lines), encoding="utf-8")
    lw.merge(*paths, output=folder / "merged", weights=folder / "w.yaml")
    rows = {}
    for layer in layers:
        _, *donors = table.get(layer, table["backbone"])
        rows[layer] = (max(0.0, 1 - math.fsum(donors)), *donors)  # what is missing is the anchor's
    expected = merged_by_formula(models, rows, "linear")
    assert_numbers(read(folder / "merged"), expected, models)


def test_numbers_of_a_sweep_by_numpy_are_written_as_numbers(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """The recipe could not be written, after all was merged."""
    options: dict[str, Any] = {
        "start": np.float64(0.25),
        "gamma": np.float32(2),
        "anchor_weight": np.linspace(0.5, 1, 3)[1],
        "end": np.int64(1),
        "allow_nonfinite": np.True_,
    }
    result = lw.merge(*trio[:2], output=tmp_path / "m", **options)
    plain = {name: value.item() for name, value in options.items()}
    assert lw.merge(*trio[:2], output=tmp_path / "plain", **plain).files == result.files
    assert lw.merge_recipe(tmp_path / "m", output=tmp_path / "again").files == result.files
    result.plan.save(tmp_path / "plan.json")
    assert lw.MergePlan.load(tmp_path / "plan.json") == result.plan
    fit: dict[str, Any] = {
        "lr": np.float64(0.1),
        "seed": np.int64(1),
        "threshold": np.float32(0.25),
    }
    fit |= {"steps": np.int64(1), "states": ""}
    made = fit_layer_weights(lw.plan(*trio[:2]), pictures(2), **fit)
    lw.merge(made, output=tmp_path / "fitted")
    assert lw.verify(tmp_path / "fitted").files
    made = entropy_layer_weights(lw.plan(*trio[:2]), pictures(2), seed=np.int64(3))  # type: ignore[arg-type]
    lw.merge(made, output=tmp_path / "entropy")
    assert lw.verify(tmp_path / "entropy").files


@pytest.mark.parametrize("name", ["start", "end", "gamma", "endpoint", "anchor_weight"])
def test_true_is_no_number(name: str, trio: tuple[Path, Path, Path]) -> None:
    """A recipe with it could not be read."""
    with pytest.raises(UsageError, match="is True: give a"):
        lw.plan(*trio[:2], **{name: True})


# -------------------------------------------------------------------- what is shown is what is used


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An anchor that was trained, a relative, and one with the head of another training."""
    folder = tmp_path_factory.mktemp("trio")
    anchor = Path(shutil.copytree(STREET, folder / "a"))
    processor = json.loads((anchor / "preprocessor_config.json").read_text())
    processor["size"] = {"height": 64, "width": 64}
    (anchor / "preprocessor_config.json").write_text(json.dumps(processor))
    one, other = changed(folder / "d", anchor, 2, 0.5), changed(folder / "e", anchor, 3, 0.5)
    tensors = read(other)
    random = np.random.default_rng(0)
    for name, value in tensors.items():
        if name.startswith("decode_head") and value.ndim > 1:
            tensors[name] = (value.std() * random.standard_normal(value.shape)).astype("f4")
    save(other / "model.safetensors", tensors)
    return anchor, one, other


def test_a_donor_whose_head_is_left_out_has_no_weight_there_wherever_weights_are_shown(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    result = lw.merge(*trio, output=tmp_path / "m", schedule="isotropic")
    assert [model.kept_parts for model in result.plan.models] == [(), (), ("head",)]
    used = {result.plan.layers[t.layer].part: t.weights for t in result.plan.merged}
    assert used == {"backbone": (1 / 3, 1 / 3, 1 / 3), "head": (0.5, 0.5, 0.0)}
    [line] = [line for line in str(result.plan).splitlines() if re.match(r" +head +\d", line)]
    assert line.split()[2:5] == ["0.50", "0.50", "0.00"]
    for drawn in (
        result.plan._repr_html_(),
        (tmp_path / "m" / "layer_weights.svg").read_text("utf-8"),
    ):
        assert ": 0.33 at the first layer, 0.50 at the last" in drawn
        assert "donor: e: 0.33 at the first layer, 0.00 at the last" in drawn
    card = (tmp_path / "m" / "README.md").read_text("utf-8")
    assert (
        "isotropic, the same in every layer that all models have; 0.333 for each model at the "
        "first shared layer, 0.50 for the anchor at the last." in " ".join(card.split())
    )


def test_the_weights_of_a_stage_are_told_from_the_least_to_the_largest(
    trio: tuple[Path, Path, Path],
) -> None:
    plan = lw.plan(*trio[:2])
    rows = {layer.name: (0.5, 0.5) for layer in plan.layers}
    rows["stages.1.blocks.0.attn.q"] = (0.125, 0.875)
    shown = str(lw.plan(*trio[:2], weights=rows)).splitlines()
    [line] = [line for line in shown if line.startswith("  stages.1 ")]
    assert "0.12 to 0.50" in line
    assert "0.50 to 0.88" in line
    [ramp] = [line for line in str(plan).splitlines() if line.startswith("  stages.0 ")]
    assert re.search(r"0\.50 to 0\.6\d +0\.50 to 0\.3\d", ramp)


# ------------------------------------------------------------------------------------------- drift


def test_a_drift_ramp_is_the_drift_that_adds_up(trio: tuple[Path, Path, Path]) -> None:
    made = drift_layer_weights(lw.plan(*trio, anchor_weight=0.4, endpoint=0.75))
    models = [read(folder) for folder in trio]
    expected: list[list[float]] = []
    for model in (1, 2):
        drifts = []
        for layer in made.layers:
            gaps = []
            for tensor in made.merged:
                if tensor.layer != layer.index or tensor.sources[model] is None:
                    continue
                a, b = (models[i][tensor.key].astype(float) for i in (0, model))
                if np.linalg.norm(a):
                    gaps.append(float(np.linalg.norm(a - b) / np.linalg.norm(a)))
            drifts.append(float(np.mean(gaps)) if gaps else 0.0)
        total = np.cumsum([0.0, *drifts[1:]])
        expected.append(list(0.3 * (1 - 0.75 * total / total[-1])))
    np.testing.assert_allclose(weights(made)[:, 1:].T, expected, atol=1e-9)
    np.testing.assert_allclose(weights(made).sum(1), 1, atol=1e-15)
    assert made.weights_from["anchor_weight"] == 0.4
    assert made.weights_from["endpoint"] == 0.75


# ----------------------------------------------------------------------------------------- entropy


def test_entropy_weights_are_those_of_the_networks_own_logits(
    trio: tuple[Path, Path, Path],
) -> None:
    images = pictures(3)
    plan = lw.plan(*trio, schedule="cosine", anchor_weight=0.5)
    made = entropy_layer_weights(plan, images)
    priors = np.zeros(3)
    processor = transformers.AutoImageProcessor.from_pretrained(trio[0])
    networks = [
        transformers.AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
        for folder in trio
    ]
    for image in images:
        entropies = []
        for network in networks:
            with torch.no_grad():
                inputs = processor(images=image, return_tensors="pt")
                p = network(**inputs).logits[0].double().softmax(0).numpy()
            entropies.append(-(p * np.log(p)).sum(0) / np.log(len(p)))
        sure = np.exp(-np.stack(entropies))
        priors += (sure / sure.sum(0)).mean((1, 2)) / len(images)
    rows = rows_of("cosine", len(made.layers), 3, anchor_weight=0.5)
    np.testing.assert_allclose(
        weights(made)[:, 1:], np.array(rows)[:, 1:] * priors[1:] * 3, atol=1e-6
    )
    found = [made.weights_from[f"prior_{i}"] for i in range(3)]
    np.testing.assert_allclose(found, priors, atol=1e-6)
    assert sum(found) == pytest.approx(1)


def test_a_donor_that_a_table_gives_all_cannot_have_more(
    trio: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """H_i = p_i M H_i' would be over 1 where a donor is surer than the anchor."""
    sure = Path(shutil.copytree(trio[1], tmp_path / "sure"))
    tensors = read(sure)
    for leaf in ("weight", "bias"):
        tensors[f"decode_head.classifier.{leaf}"] *= 5
    save(sure / "model.safetensors", tensors)
    table = {"stages": (0.5, 0.5), "head": (0.0, 1.0)}
    plan = lw.plan(trio[0], sure, weights=table, scope="all")
    with pytest.raises(UsageError, match=r"^the donors have 1 of the layer 'head\..*a schedule"):
        entropy_layer_weights(plan, pictures(1))


# --------------------------------------------------------------------------------------------- fit

FIT: dict[str, Any] = {"steps": 8, "lr": 0.2, "batch_size": 2, "threshold": 0.5, "checks": 4}
# layer -> weights of the fit below. Where they change, a half-done fit of before must not go on:
# raise `VERSION` of `lwmm_hub.fitting.running`, and write the new numbers under it.
FITTED = {
    4: {
        "stem": (0.4519, 0.1322, 0.4159),
        "norm": (0.2740, 0.5599, 0.1661),
        "slope": (0.3927, 0.1340, 0.4733),
        "deep": (0.5392, 0.3520, 0.1089),
        "norm2": (0.9545, 0.0228, 0.0227),
        "head": (0.9107, 0.0446, 0.0448),
    },
}


def fit_by_hand(every: Sequence[Own], images: Sequence[Image], power: float) -> dict[str, Any]:
    """Eight steps of Adam on the logits of a softmax over models, with nothing of the tool's."""
    count, names = len(every), ["stem", "norm", "slope", "deep", "norm2", "head"]
    states = [{k: v.double() for k, v in module.state_dict().items()} for module in every]
    lessons = []
    for image in images:
        with torch.no_grad():
            p = torch.stack([look(module, image).softmax(0) for module in every]).mean(0)
        sure, label = p.max(0)
        lessons.append(torch.where(sure >= FIT["threshold"], label, -1))
    order = np.random.default_rng(0).permutation(len(images))
    held, taught = list(order[:1]), list(order[1:])  # a fifth of six, rounded
    labels = torch.stack(lessons)
    parts = torch.stack([(labels == c).sum() for c in range(3)]).double() / (labels >= 0).sum()
    class_weights = parts.clamp_min(1e-3) ** -power
    class_weights /= (class_weights * parts).sum()

    start = torch.tensor(rows_of("linear", len(names), count), dtype=torch.float64)
    logits = start.clamp(min=0.02 / (count - 1))
    logits = (logits / logits.sum(1, keepdim=True)).log()

    def blended(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        made = {}
        for key in states[0]:
            row = rows[names.index(key.rpartition(".")[0])]
            made[key] = sum(row[i] * state[key] for i, state in enumerate(states))  # type: ignore[assignment]
        return made

    def loss(p: dict[str, torch.Tensor], number: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.from_numpy(images[number].copy()).permute(2, 0, 1)[None].double() / 128 - 1
        x = torch.nn.functional.conv2d(x, p["stem.weight"], p["stem.bias"], padding=1)
        shape = (1, -1, 1, 1)
        mean, spread = p["norm.running_mean"].view(shape), p["norm.running_var"].view(shape)
        x = (x - mean) / (spread + 1e-5).sqrt()
        x = x * p["norm.weight"].view(shape) + p["norm.bias"].view(shape)
        x = torch.where(x > 0, x, x * p["slope.weight"].view(shape))
        x = torch.nn.functional.conv2d(x, p["deep.weight"], padding=1)
        mean, spread = p["norm2.running_mean"].view(shape), p["norm2.running_var"].view(shape)
        x = torch.tanh((x - mean) / (spread + 1e-5).sqrt())
        x = torch.nn.functional.conv2d(x, p["head.weight"], p["head.bias"])
        log = (x[0, :, ::4, ::4] * 3).log_softmax(0)
        sure = lessons[number] >= 0
        target = lessons[number][sure]
        weight = class_weights[target]
        return -(weight * log[:, sure].gather(0, target[None])[0]).sum(), weight.sum()

    def agreement(rows: torch.Tensor) -> float:
        with torch.no_grad():
            found = [loss(blended(rows), number) for number in held]
        return math.exp(-float(sum(f[0] for f in found)) / float(sum(f[1] for f in found)))

    before = best = agreement(start)
    best_rows = start
    offsets = torch.zeros_like(logits)
    first, second = torch.zeros_like(logits), torch.zeros_like(logits)
    for step in range(FIT["steps"]):
        offsets.requires_grad_(True)
        p = blended((logits + offsets).softmax(1))
        chosen = []
        for place in (2 * step, 2 * step + 1):
            epoch = np.random.default_rng([0, place // len(taught)]).permutation(len(taught))
            chosen.append(taught[epoch[place % len(taught)]])
        found = [loss(p, number) for number in chosen]
        whole = sum(f[0] for f in found) / sum(f[1] for f in found)
        (slope,) = torch.autograd.grad(whole, offsets)
        offsets = offsets.detach()
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        mean, spread = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        offsets = offsets - FIT["lr"] * mean / (spread.sqrt() + 1e-8)
        if (step + 1) % 2 == 0:
            rows = (logits + offsets).softmax(1)
            if (now := agreement(rows)) > best:
                best, best_rows = now, rows
    table: NDArray[np.float64] = best_rows.numpy()
    return {"before": before, "after": best, "rows": dict(zip(names, table, strict=True))}


def fitted(modules: tuple[list[Own], list[Path]], **options: Any) -> lw.MergePlan:
    every, files = modules
    plan = lw.plan(*files, scope="all", allow_unrelated=True)
    return fit_layer_weights(
        plan,
        pictures(6),
        look,
        modules=every[0],
        labels=zoo.LABELS,
        states="",
        **FIT,
        **options,
    )


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_fit_is_adam_on_the_weighted_cross_entropy(
    power: float, modules: tuple[list[Own], list[Path]]
) -> None:
    made = fitted(modules, balance=power)
    expected = fit_by_hand(modules[0], pictures(6), power)
    origin = made.weights_from
    assert origin["result"] == "fitted"
    assert origin["agreement_before"] == pytest.approx(expected["before"], abs=1e-5)
    assert origin["agreement_after"] == pytest.approx(expected["after"], abs=1e-4)
    for layer in made.layers:
        np.testing.assert_allclose(
            layer.weights, expected["rows"][layer.name], atol=1e-3, err_msg=layer.name
        )


def test_a_fit_with_other_numbers_has_another_version(
    modules: tuple[list[Own], list[Path]],
) -> None:
    made = {layer.name: layer.weights for layer in fitted(modules).layers}
    for name, row in FITTED[VERSION].items():
        assert made[name] == pytest.approx(row, abs=2e-3), name
