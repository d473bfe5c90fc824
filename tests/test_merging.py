"""The arithmetic of a merge on real files: dtypes, finiteness, batch norm, heads, many models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from enumerators import (
    B5,
    TINY,
    cast,
    segformer_transformers_old,
    spell,
    write_pth,
    write_transformers_folder,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    Values,
    assert_within_rounding,
    bits,
    in_backbone,
    merge_by_hand,
    read,
    relatives,
    same_bits,
    save,
    stored,
    stranger,
    unspell,
)
from safetensors import safe_open

import lwmm_hub as lw
from lwmm_hub import floats, merging
from lwmm_hub.checkpoint import MERGEABLE, LocalFile
from lwmm_hub.checkpoint.safetensors import read_safetensors, write_header
from lwmm_hub.errors import MergeError, UsageError

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {
    "float64": np.dtype("f8"),
    "float32": np.dtype("f4"),
    "float16": np.dtype("f2"),
    "bfloat16": BF16,
}
CLASSIFIER = "decode_head.classifier.weight"


def net(seed: int = 0, **more: np.ndarray) -> Values:
    """A small network that no table knows: a backbone of three layers and a head."""
    random = np.random.default_rng(0)
    own = np.random.default_rng([1, seed])
    values = {}
    for name, shape in (
        ("backbone.0.weight", (8, 3)),
        ("backbone.0.bias", (8,)),
        ("backbone.1.weight", (8, 8)),
        ("backbone.2.weight", (6, 8)),
        ("head.weight", (4, 6)),
    ):
        origin = random.standard_normal(shape, np.float32)
        values[name] = origin + np.float32(0.3) * own.standard_normal(shape, np.float32)
    return values | {key.replace("__", "."): value for key, value in more.items()}


def merge(tmp_path: Path, *models: Mapping[str, np.ndarray], **options: object) -> lw.MergeResult:
    """Write the models as safetensors files and merge them into `tmp_path / "merged"`."""
    paths = [save(tmp_path / f"model{i}.safetensors", m) for i, m in enumerate(models)]
    return lw.merge(*paths, output=tmp_path / "merged", overwrite=True, **options)


def weights(layers: int, j: int, models: int = 2) -> float:
    """A donor's weight in layer j of the default ramp."""
    return (1 - j / (layers - 1)) / models


# ------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_merged_and_stored_as_it_is(dtype: str, tmp_path: Path) -> None:
    one, two = ({k: v.astype(DTYPES[dtype]) for k, v in net(seed).items()} for seed in (1, 2))
    result = merge(tmp_path, one, two)
    found = read(tmp_path / "merged")
    real = np.float64 if dtype == "float64" else np.float32
    for j, name in ((0, "backbone.0.weight"), (1, "backbone.1.weight"), (2, "backbone.2.weight")):
        a, b = one[name].astype(real), two[name].astype(real)
        expected = a - real(weights(4, j)) * (a - b)
        assert found[name].dtype == DTYPES[dtype]
        assert bits(found[name]) == bits(expected.astype(DTYPES[dtype]))
    assert bits(found["head.weight"]) == bits(one["head.weight"])
    assert not [w for w in result.warnings if "dtype" in w or "tensors where" in w]


@pytest.mark.parametrize("mine", DTYPES)
@pytest.mark.parametrize("theirs", DTYPES)
def test_mixed_dtypes_give_the_anchors_and_a_warning(
    mine: str, theirs: str, tmp_path: Path
) -> None:
    one = {k: v.astype(DTYPES[mine]) for k, v in net(1).items()}
    two = {k: v.astype(DTYPES[theirs]) for k, v in net(2).items()}
    result = merge(tmp_path, one, two, schedule="isotropic")
    found = read(tmp_path / "merged")
    real = np.float64 if "float64" in (mine, theirs) else np.float32
    for name in one:
        a, b = one[name].astype(real), two[name].astype(real)
        assert bits(found[name]) == bits((a - real(0.5) * (a - b)).astype(DTYPES[mine]))
    expected = (
        []
        if mine == theirs
        else [
            f"model1 has {theirs} tensors where the anchor has {mine}: they are merged in "
            f"{np.dtype(real).name} and stored as the anchor's."
        ]
    )
    assert list(result.warnings) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("anchor", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("said", ["dtype", "torch_dtype", "nothing"])
def test_the_dtype_option_is_that_of_the_files_and_of_the_config(
    dtype: str, anchor: str, said: str, tmp_path: Path
) -> None:
    one, two = relatives(2)
    write_transformers_folder(tmp_path / "a", one, TINY, dtype=anchor)  # type: ignore[arg-type]
    write_transformers_folder(tmp_path / "b", two, TINY)
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    config.pop("dtype")
    config |= {} if said == "nothing" else {said: anchor}
    path.write_text(json.dumps(config))
    lw.merge(tmp_path / "a", tmp_path / "b", output=tmp_path / "m", dtype=dtype)
    kinds = set(stored(tmp_path / "m" / "model.safetensors").values())
    assert kinds == {{"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype], "I64"}
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert written.get("dtype", written.get("torch_dtype", "float32")) == dtype
    assert {written[n] for n in ("dtype", "torch_dtype") if n in written} <= {dtype}
    assert {k: v for k, v in written.items() if "dtype" not in k} == {
        k: v for k, v in config.items() if "dtype" not in k
    }


def test_the_config_is_the_anchors_byte_for_byte_where_its_dtype_is_true(tmp_path: Path) -> None:
    one, two = relatives(2)
    anchor = write_transformers_folder(tmp_path / "a", one, TINY)
    donor = write_transformers_folder(tmp_path / "b", two, TINY)
    lw.merge(anchor, donor, output=tmp_path / "m")
    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "m" / name).read_bytes() == (anchor / name).read_bytes()


def test_a_kept_tensor_is_stored_in_the_asked_dtype_too(tmp_path: Path) -> None:
    extra = np.array([1 + 2**-12, 3.0], np.float32)
    merge(tmp_path, net(1, head__own=extra), net(2), dtype="float16")
    found = read(tmp_path / "merged")["head.own"]
    assert found.dtype == np.float16
    assert np.array_equal(found, extra.astype(np.float16))


def test_a_value_too_large_for_float16_is_an_error_that_names_it(tmp_path: Path) -> None:
    big = {"backbone__1__scale": np.array([7e4, 1.0], np.float32)}
    with pytest.raises(MergeError, match=r"backbone\.1\.scale .* too large for float16\."):
        merge(tmp_path, net(1, **big), net(2, **big), dtype="float16")
    assert not (tmp_path / "merged").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    merge(tmp_path, net(1, **big), net(2, **big), dtype="bfloat16")
    for extreme in (65519.0, -65519.0):  # rounds to the largest float16
        fits = {"backbone__1__scale": np.array([extreme], np.float32)}
        merge(tmp_path, net(1, **fits), net(2, **fits), dtype="float16")
        assert abs(read(tmp_path / "merged")["backbone.1.scale"][0]) == 65504


def test_a_float64_too_large_for_float32_is_an_error(tmp_path: Path) -> None:
    big = {"backbone__1__scale": np.array([1e300])}
    with pytest.raises(MergeError, match=r"too large for float32"):
        merge(tmp_path, net(1, **big), net(2, **big), dtype="float32")
    merge(tmp_path, net(1, **big), net(2, **big))
    assert read(tmp_path / "merged")["backbone.1.scale"][0] == 1e300


@pytest.mark.parametrize("kind", ["i8", "i4", "i2", "i1", "u1", "?"])
def test_integers_and_booleans_are_the_anchors(kind: str, tmp_path: Path) -> None:
    mine = np.array([[0, 1], [1, 1]]).astype(kind)
    result = merge(tmp_path, net(1, backbone__1__index=mine), net(2, backbone__1__index=mine[::-1]))
    found = read(tmp_path / "merged")["backbone.1.index"]
    assert found.dtype == mine.dtype
    assert np.array_equal(found, mine)
    assert "is never averaged" in result.plan.kept["backbone.1.index"]


def test_float8_is_kept_bit_for_bit(tmp_path: Path) -> None:
    mine = bytes(range(16))
    paths = []
    for i, code in enumerate((mine, mine[::-1])):
        values = {k: ("F32", v.shape, bits(v)) for k, v in net(i).items()}
        values["backbone.1.code"] = ("F8_E4M3", (16,), code)
        head = write_header([(k, d, s) for k, (d, s, _) in values.items()], {})
        paths.append(tmp_path / f"{i}.safetensors")
        paths[-1].write_bytes(head + b"".join(data for _, _, data in values.values()))
    result = lw.merge(*paths, output=tmp_path / "merged")
    assert result.plan.kept["backbone.1.code"] == "float8_e4m3fn is never averaged"
    entries, _ = read_safetensors(LocalFile(tmp_path / "merged" / "model.safetensors", "merged"))
    entry = entries["backbone.1.code"]
    written = (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert written[entry.offset : entry.offset + 16] == mine


def test_what_only_the_anchor_has_is_copied_bit_for_bit(tmp_path: Path) -> None:
    odd = np.array([-0.0, 1e-45, -1e-40, 3.4e38, 1 / 3], np.float32)
    result = merge(tmp_path, net(1, head__own=odd), net(2, head__theirs=odd))
    assert bits(read(tmp_path / "merged")["head.own"]) == bits(odd)
    assert "head.theirs" not in read(tmp_path / "merged")
    assert result.plan.kept == {"head.own": "absent in model1"}
    assert result.plan.unused == ({"head.theirs": "absent in model0"},)


def test_empty_tensors_and_scalars(tmp_path: Path) -> None:
    def odd(value: float) -> dict[str, np.ndarray]:
        return {
            "backbone__1__none": np.zeros((0, 4), np.float32),
            "backbone__1__scale": np.array(value, np.float32),
        }

    merge(tmp_path, net(1, **odd(1.0)), net(2, **odd(2.0)), schedule="isotropic")
    found = read(tmp_path / "merged")
    assert found["backbone.1.none"].shape == (0, 4)
    assert found["backbone.1.scale"].shape == ()
    assert found["backbone.1.scale"] == 1.5


# ------------------------------------------------------------------------------- NaN and infinity


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("key", ["backbone.0.bias", "backbone.1.weight"])
def test_a_parent_that_is_not_finite_is_named(
    bad: float, model: int, dtype: str, key: str, tmp_path: Path
) -> None:
    models = [{k: v.astype(DTYPES[dtype]) for k, v in net(seed).items()} for seed in (1, 2)]
    models[model][key].flat[2] = bad
    what = "NaN" if np.isnan(bad) else "infinite values"
    with pytest.raises(MergeError, match=f"model{model} has {what} in {key}.*--allow-nonfinite"):
        merge(tmp_path, *models)
    assert not (tmp_path / "merged").exists()
    merge(tmp_path, *models, allow_nonfinite=True)
    found = read(tmp_path / "merged")[key]
    assert not np.isfinite(found.flat[2].astype(np.float64))
    assert np.isfinite(np.delete(found.astype(np.float64), 2)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("block", [5, 13])
def test_what_is_wrong_is_named_in_whatever_block_it_lies(
    block: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging.arithmetic, "BLOCK", block)
    models = [{k: v.astype(DTYPES[dtype]) for k, v in net(seed).items()} for seed in (1, 2)]
    models[1]["backbone.1.weight"].flat[60] = np.nan
    with pytest.raises(MergeError, match=r"model1 has NaN in backbone\.1\.weight"):
        merge(tmp_path, *models)
    models[1]["backbone.1.weight"].flat[60] = 0
    models = [{k: v.astype(np.float32) for k, v in model.items()} for model in models]
    models[0]["backbone.2.weight"].flat[40] = 1e6
    with pytest.raises(MergeError, match=r"backbone\.2\.weight has .* too large for float16"):
        merge(tmp_path, *models, dtype="float16")


def test_nan_in_a_tensor_that_only_the_anchor_has(tmp_path: Path) -> None:
    own = np.array([1, np.nan], np.float32)
    with pytest.raises(MergeError, match=r"model0 has NaN in head\.own"):
        merge(tmp_path, net(1, head__own=own), net(2))
    merge(tmp_path, net(1, head__own=own), net(2), allow_nonfinite=True)
    assert bits(read(tmp_path / "merged")["head.own"]) == bits(own)


def test_a_donor_of_weight_0_is_not_read(tmp_path: Path) -> None:
    """At the last layer the anchor is alone, so that NaN in the donor's head passes."""
    bad = net(2)
    bad["head.weight"][:] = np.nan
    merge(tmp_path, net(1), bad)
    assert bits(read(tmp_path / "merged")["head.weight"]) == bits(net(1)["head.weight"])
    with pytest.raises(MergeError, match=r"model1 has NaN in head\.weight"):
        merge(tmp_path, net(1), bad, endpoint=0.5)


def test_a_tensor_that_is_not_used_may_hold_anything(tmp_path: Path) -> None:
    without = merge(tmp_path, net(1), net(2))
    result = merge(tmp_path, net(1), net(2, head__theirs=np.array([np.nan], np.float32)))
    assert result.files == without.files, "the same bytes"
    assert without.plan.unused == ({},)
    assert result.plan.unused == ({"head.theirs": "absent in model0"},)


def test_a_model_that_is_nan_throughout_is_named_and_not_called_unrelated(tmp_path: Path) -> None:
    """What a diverged training run leaves."""
    for model in (0, 1):
        models = [net(1), net(2)]
        models[model] = {k: np.full_like(v, np.nan) for k, v in net().items()}
        with pytest.raises(MergeError, match=f"model{model} has NaN"):
            merge(tmp_path, *models)


def test_infinities_that_agree_stay_where_they_are_allowed(tmp_path: Path) -> None:
    mask = {"backbone__1__mask": np.array([-np.inf, 0.0, np.inf], np.float32)}
    with pytest.raises(MergeError, match="infinite values"):
        merge(tmp_path, net(1, **mask), net(2, **mask))
    merge(tmp_path, net(1, **mask), net(2, **mask), allow_nonfinite=True)
    assert bits(read(tmp_path / "merged")["backbone.1.mask"]) == bits(mask["backbone__1__mask"])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_difference_beyond_the_dtype_is_no_error(dtype: str, tmp_path: Path) -> None:
    """The parents and the result are finite; only theta_anchor - theta_donor is not."""
    top = float(np.finfo(dtype).max)
    one = {"backbone__1__scale": np.array([top, 1.0, top], dtype)}
    two = {"backbone__1__scale": np.array([-top, 2.0, top], dtype)}
    merge(tmp_path, net(1, **one), net(2, **two), schedule="isotropic")
    assert read(tmp_path / "merged")["backbone.1.scale"].tolist() == [0.0, 1.5, top]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_nor_where_infinity_is_allowed(dtype: str, tmp_path: Path) -> None:
    """What is finite in all parents has the same sum; what is not stays as it is made."""
    top = float(ml_dtypes.finfo(DTYPES[dtype]).max) * 0.75
    values = [[top, -top, top, np.inf, np.nan, 1.0], [-top, top, -np.inf, np.inf, 1.0, 2.0]]
    models = [
        net(i, backbone__3__weight=np.array([row]).astype(DTYPES[dtype]))
        for i, row in enumerate(values)
    ]
    merge(tmp_path, *models, allow_nonfinite=True, schedule="isotropic")
    made = read(tmp_path / "merged")["backbone.3.weight"].astype(float)[0]
    np.testing.assert_array_equal(made, [0, 0, -np.inf, np.inf, np.nan, 1.5])


def test_one_huge_difference_does_not_change_its_neighbours(tmp_path: Path) -> None:
    """Where the sum is made again in double precision, only what overflowed is replaced."""
    random = np.random.default_rng(3)
    one, two = (random.standard_normal((100, 100), np.float32) for _ in range(2))
    two += one
    models = [net(1, backbone__1__scale=v.copy()) for v in (one, two)]
    merge(tmp_path, *models, schedule="linear")
    plain = read(tmp_path / "merged")["backbone.1.scale"]
    models[0]["backbone.1.scale"][50, 50] = np.finfo("f4").max
    models[1]["backbone.1.scale"][50, 50] = -np.finfo("f4").max
    merge(tmp_path, *models, schedule="linear")
    found = read(tmp_path / "merged")["backbone.1.scale"]
    assert np.isfinite(found).all()
    found[50, 50] = plain[50, 50]
    assert bits(found) == bits(plain)


# ---------------------------------------------------------------------------------- batch norm


def batch_norm(seed: int, dtype: str = "f4") -> Values:
    random = np.random.default_rng([2, seed])
    return {
        "backbone.1.norm.weight": random.standard_normal(8).astype(dtype),
        "backbone.1.norm.bias": random.standard_normal(8).astype(dtype),
        "backbone.1.norm.running_mean": random.standard_normal(8).astype(dtype),
        "backbone.1.norm.running_var": random.random(8).astype(dtype) + 1,
        "backbone.1.norm.num_batches_tracked": np.array(100 + seed),
    }


@pytest.mark.parametrize("models", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_moments_are_those_of_the_mixture(models: int, dtype: str, tmp_path: Path) -> None:
    parents = [net(i) | batch_norm(i, dtype) for i in range(models)]
    result = merge(tmp_path, *parents, batch_norm="moment")
    found = read(tmp_path / "merged")
    layer = next(x for x in result.plan.layers if x.name == "backbone.1.norm")
    means = [p["backbone.1.norm.running_mean"].astype("f8") for p in parents]
    spreads = [p["backbone.1.norm.running_var"].astype("f8") for p in parents]
    second = sum(w * (v + m**2) for w, m, v in zip(layer.weights, means, spreads, strict=True))
    mean = sum(w * m for w, m in zip(layer.weights, means, strict=True))
    tolerance = 1e-6 if dtype == "f4" else 1e-14
    for name, expected in (("running_mean", mean), ("running_var", second - mean**2)):
        tensor = found[f"backbone.1.norm.{name}"]
        assert tensor.dtype == dtype
        np.testing.assert_allclose(tensor, expected, rtol=tolerance, atol=tolerance)
    for name in ("weight", "bias"):
        values = [p[f"backbone.1.norm.{name}"].astype("f8") for p in parents]
        expected = sum(w * v for w, v in zip(layer.weights, values, strict=True))
        tensor = found[f"backbone.1.norm.{name}"]
        np.testing.assert_allclose(tensor, expected, rtol=tolerance, atol=tolerance)
    assert found["backbone.1.norm.num_batches_tracked"] == 100


def test_the_mixture_has_the_moments_of_the_pooled_samples(tmp_path: Path) -> None:
    """Two samples of equal size, 1/2 each: mean and variance of both together."""
    random = np.random.default_rng(4)
    samples = [random.standard_normal((1000, 8)) * (i + 1) + i for i in range(2)]
    parents = []
    for i, sample in enumerate(samples):
        own = batch_norm(i, "f8")
        own["backbone.1.norm.running_mean"] = sample.mean(axis=0)
        own["backbone.1.norm.running_var"] = sample.var(axis=0)
        parents.append(net(i) | own)
    merge(tmp_path, *parents, batch_norm="moment", schedule="isotropic")
    found = read(tmp_path / "merged")
    pooled = np.concatenate(samples)
    np.testing.assert_allclose(found["backbone.1.norm.running_mean"], pooled.mean(axis=0))
    np.testing.assert_allclose(found["backbone.1.norm.running_var"], pooled.var(axis=0))


def test_equal_variances_with_other_means_are_no_equal_mixture(tmp_path: Path) -> None:
    """As in freshly initialised batch norms: every variance is 1, the means moved apart."""
    parents = [net(i) | batch_norm(i) for i in range(2)]
    for parent in parents:
        parent["backbone.1.norm.running_var"] = np.ones(8, np.float32)
    parents[1]["backbone.1.norm.running_mean"][0] = parents[0]["backbone.1.norm.running_mean"][0]
    merge(tmp_path, *parents, batch_norm="moment", schedule="isotropic")
    a, b = (p["backbone.1.norm.running_mean"].astype("f8") for p in parents)
    found = read(tmp_path / "merged")["backbone.1.norm.running_var"]
    np.testing.assert_allclose(found, 1 + (a - b) ** 2 / 4, rtol=1e-6)
    assert found[0] == 1


def test_statistics_are_merged_as_their_layer_by_default(tmp_path: Path) -> None:
    parents = [net(i) | batch_norm(i) for i in range(2)]
    result = merge(tmp_path, *parents)
    rows = {t.name: t.weights for t in result.plan.merged if ".norm." in t.name}
    assert len(rows) == 4
    assert len(set(rows.values())) == 1
    found = read(tmp_path / "merged")
    (row,) = set(rows.values())
    for name in ("running_mean", "running_var"):
        a, b = (p[f"backbone.1.norm.{name}"] for p in parents)
        np.testing.assert_allclose(
            found[f"backbone.1.norm.{name}"], row[0] * a + row[1] * b, rtol=1e-6
        )


def test_the_anchors_statistics_can_be_kept(tmp_path: Path) -> None:
    parents = [net(i) | batch_norm(i) for i in range(2)]
    result = merge(tmp_path, *parents, batch_norm="anchor")
    found = read(tmp_path / "merged")
    for name in ("running_mean", "running_var"):
        key = f"backbone.1.norm.{name}"
        assert bits(found[key]) == bits(parents[0][key])
        assert "--batch-norm anchor" in result.plan.kept[key]
        assert "--batch-norm anchor" in result.plan.unused[0][key]
    assert not np.array_equal(found["backbone.1.norm.weight"], parents[0]["backbone.1.norm.weight"])
    layers = [layer.name for layer in result.plan.layers]
    assert layers == [layer.name for layer in lw.plan(*_paths(tmp_path, 2)).layers]


def _paths(tmp_path: Path, count: int) -> list[Path]:
    return [tmp_path / f"model{i}.safetensors" for i in range(count)]


@pytest.mark.parametrize(
    ("lost", "count"), [((), 0), (("mean",), 1), (("var",), 1), (("mean", "var"), 0)]
)
def test_a_variance_without_its_mean_is_merged_linearly_and_said(
    lost: tuple[str, ...], count: int, tmp_path: Path
) -> None:
    models = [net(i) | batch_norm(i) for i in range(3)]
    names = [name for name in models[2] if name.endswith(tuple(f"running_{what}" for what in lost))]
    for name in names:
        del models[2][name]
    result = merge(tmp_path, *models, batch_norm="moment")
    said = [text for text in result.warnings if "are merged linearly" in text]
    assert len(said) == count
    made = read(tmp_path / "merged")
    for tensor in result.plan.merged:
        if count and tensor.statistic == "running_var":
            there = [(w, m[tensor.key]) for w, m in zip(tensor.weights, models, strict=True) if w]
            linear = sum(w * v.astype(float) for w, v in there)
            np.testing.assert_allclose(made[tensor.key], linear, rtol=1e-6)
    assert not [t for t in merge(tmp_path, *models).warnings if "are merged linearly" in t]


def test_moments_where_a_donor_lacks_the_layer(tmp_path: Path) -> None:
    parents = [net(0) | batch_norm(0), net(1), net(2) | batch_norm(2)]
    merge(tmp_path, *parents, batch_norm="moment", schedule="isotropic")
    found = read(tmp_path / "merged")
    a, b = (parents[i]["backbone.1.norm.running_mean"].astype("f8") for i in (0, 2))
    np.testing.assert_allclose(found["backbone.1.norm.running_mean"], (a + b) / 2, rtol=1e-6)
    u, v = (parents[i]["backbone.1.norm.running_var"].astype("f8") for i in (0, 2))
    spread = (u + v) / 2 + (a - b) ** 2 / 4
    np.testing.assert_allclose(found["backbone.1.norm.running_var"], spread, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_statistic_that_is_not_finite_is_named_under_moments_too(
    bad: float, tmp_path: Path
) -> None:
    parents = [net(i) | batch_norm(i) for i in range(2)]
    parents[1]["backbone.1.norm.running_mean"][3] = bad
    with pytest.raises(MergeError, match=r"model1 has (NaN|infinite values) in .*running_mean"):
        merge(tmp_path, *parents, batch_norm="moment")


def test_moments_in_half_precision_with_a_fused_anchor(tmp_path: Path) -> None:
    """SegFormer's own batch norm, float16 against bfloat16, from a `.pth` file."""
    one, two = relatives(2)
    anchor = write_pth(
        tmp_path / "a.pth", cast(spell(segformer_transformers_old(TINY), one), "float16")
    )
    donor = save(
        tmp_path / "b.safetensors", cast(spell(segformer_transformers_old(TINY), two), "bfloat16")
    )
    result = lw.merge(anchor, donor, output=tmp_path / "m", batch_norm="moment")
    found = read(tmp_path / "m")
    row = next(x.weights for x in result.plan.layers if x.name == "head.fuse_norm")
    key = "decode_head.batch_norm.running_var"
    means = [
        two_["head.norm.mean"].astype(t).astype("f8")
        for two_, t in ((one, np.float16), (two, BF16))
    ]
    spreads = [
        two_["head.norm.variance"].astype(t).astype("f8")
        for two_, t in ((one, np.float16), (two, BF16))
    ]
    mean = row[0] * means[0] + row[1] * means[1]
    expected = sum(w * (s + (m - mean) ** 2) for w, s, m in zip(row, spreads, means, strict=True))
    np.testing.assert_allclose(found[key].astype("f8"), expected, rtol=1e-3)


# --------------------------------------------------------------------------- three and more models


@pytest.mark.parametrize("models", [3, 4, 5])
@pytest.mark.parametrize("schedule", ["linear", "harmonic", "isotropic"])
def test_many_models(models: int, schedule: str, tmp_path: Path) -> None:
    parents = relatives(models)
    folders = [
        write_transformers_folder(tmp_path / f"m{i}", values, TINY)
        for i, values in enumerate(parents)
    ]
    result = lw.merge(*folders, output=tmp_path / "merged", schedule=schedule)
    found = unspell(segformer_transformers_old(TINY), read(tmp_path / "merged"))

    def rows(layers: int, count: int) -> list[tuple[float, ...]]:
        donors = {
            "linear": [(1 - j / (layers - 1)) / count for j in range(layers)],
            "harmonic": [1 / (j + count) for j in range(layers)],
            "isotropic": [1 / count] * layers,
        }[schedule]
        return [(1 - d * (count - 1), *[d] * (count - 1)) for d in donors]

    assert_within_rounding(found, merge_by_hand(parents, TINY, rows))
    assert [m.role for m in result.plan.models] == ["anchor", *["donor"] * (models - 1)]


def test_a_donor_that_lacks_a_parameter_leaves_its_share_to_the_others(tmp_path: Path) -> None:
    parents = relatives(3)
    lacking = {k: v for k, v in parents[1].items() if not k.startswith("stage2.block0.query")}
    paths = [
        save(
            tmp_path / f"m{i}.safetensors",
            {
                e.key: values[e.parts[0]]
                for e in segformer_transformers_old(TINY)
                if e.parts[0] in values
            },
        )
        for i, values in enumerate((parents[0], lacking, parents[2]))
    ]
    result = lw.merge(*paths, output=tmp_path / "merged")
    found = unspell(segformer_transformers_old(TINY), read(tmp_path / "merged"))
    assert_within_rounding(found, merge_by_hand([parents[0], lacking, parents[2]], TINY))
    tensor = next(t for t in result.plan.merged if t.name == "stages.1.blocks.0.attn.q.weight")
    row = result.plan.layers[tensor.layer].weights
    assert tensor.sources[1] is None
    assert tensor.weights == pytest.approx(
        (row[0] / (row[0] + row[2]), 0, row[2] / (row[0] + row[2]))
    )


def test_a_donor_with_other_classes_leaves_the_classifier_to_those_that_have_them(
    tmp_path: Path,
) -> None:
    parents = relatives(3, classes=(5, 7, 5))
    folders = [
        write_transformers_folder(tmp_path / f"m{i}", values, TINY)
        for i, values in enumerate(parents)
    ]
    result = lw.merge(*folders, output=tmp_path / "merged", endpoint=0.5)
    last = next(t for t in result.plan.merged if t.key == CLASSIFIER)
    assert last.sources[1] is None
    assert last.weights == pytest.approx((4 / 5, 0, 1 / 5))  # of 2/3, 1/6, 1/6
    found = read(tmp_path / "merged")[CLASSIFIER]
    name = "head.classifier.weight"
    expected = 0.8 * parents[0][name] + 0.2 * parents[2][name]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert result.plan.unused[0][CLASSIFIER].startswith("shape differs")


# --------------------------------------------------------------------------------------- scope


def with_head_of(values: Values, other: Values) -> Values:
    return {k: v if in_backbone(k) else other[k] for k, v in values.items()}


@pytest.fixture
def foreign_head(tmp_path: Path) -> tuple[list[Values], list[Path]]:
    """An anchor, a donor of one ancestor with a decoder of another start, and a full relative."""
    one, two, three = relatives(3)
    models = [one, with_head_of(two, stranger()), three]
    folders = [
        write_transformers_folder(tmp_path / f"m{i}", values, TINY)
        for i, values in enumerate(models)
    ]
    return models, folders


def test_an_unrelated_head_stays_the_anchors_and_the_ramp_ends_with_the_backbone(
    foreign_head: tuple[list[Values], list[Path]], tmp_path: Path
) -> None:
    models, folders = foreign_head
    result = lw.merge(*folders[:2], output=tmp_path / "merged")
    found = unspell(segformer_transformers_old(TINY), read(tmp_path / "merged"))
    assert_within_rounding(found, merge_by_hand(models[:2], TINY, shared=in_backbone))
    assert {layer.part for layer in result.plan.layers} == {"backbone"}
    assert result.plan.layers[-1].weights == (1.0, 0.0)
    kept = result.plan.kept["decode_head.linear_fuse.weight"]
    assert kept.startswith("the head of m1 is unrelated (mean cosine ")
    assert result.plan.unused[0]["decode_head.linear_fuse.weight"] == kept
    assert result.plan.scope_decided
    assert result.plan.models[1].kept_parts == ("head",)


def test_an_unrelated_head_is_left_out_for_that_donor_alone(
    foreign_head: tuple[list[Values], list[Path]], tmp_path: Path
) -> None:
    models, folders = foreign_head
    result = lw.merge(*folders, output=tmp_path / "merged")
    headless = {k: v for k, v in models[1].items() if in_backbone(k)}
    found = unspell(segformer_transformers_old(TINY), read(tmp_path / "merged"))
    assert_within_rounding(found, merge_by_hand([models[0], headless, models[2]], TINY))
    assert [m.kept_parts for m in result.plan.models] == [(), ("head",), ()]
    fuse = next(t for t in result.plan.merged if t.name == "head.fuse.weight")
    assert fuse.sources[1] is None
    assert fuse.sources[2] is not None
    assert "unrelated" in result.plan.unused[0]["decode_head.linear_fuse.weight"]
    assert set(result.plan.unused[1]) == {"decode_head.batch_norm.num_batches_tracked"}


def test_scope_all_merges_a_foreign_head_as_asked(
    foreign_head: tuple[list[Values], list[Path]], tmp_path: Path
) -> None:
    models, folders = foreign_head
    lw.merge(*folders[:2], output=tmp_path / "merged", scope="all")
    found = unspell(segformer_transformers_old(TINY), read(tmp_path / "merged"))
    assert_within_rounding(found, merge_by_hand(models[:2], TINY))


def test_scope_backbone_keeps_every_head(
    foreign_head: tuple[list[Values], list[Path]], tmp_path: Path
) -> None:
    models, folders = foreign_head
    result = lw.merge(folders[0], folders[2], output=tmp_path / "merged", scope="backbone")
    found = unspell(segformer_transformers_old(TINY), read(tmp_path / "merged"))
    expected = merge_by_hand([models[0], models[2]], TINY, shared=in_backbone)
    assert_within_rounding(found, expected)
    assert "--scope backbone" in result.plan.kept["decode_head.linear_fuse.weight"]


def test_a_plan_says_whether_the_weights_were_read(
    foreign_head: tuple[list[Values], list[Path]],
) -> None:
    folders = foreign_head[1]
    draft = lw.plan(*folders)
    assert not draft.scope_decided
    assert draft.relatedness == ()
    assert any(layer.part == "head" for layer in draft.layers)
    decided = lw.plan(*folders, check_weights=True)
    assert decided.scope_decided
    assert decided.models[1].kept_parts == ("head",)
    for scope in ("all", "backbone"):
        assert lw.plan(*folders, scope=scope).scope_decided


def test_a_decided_plan_is_merged_as_it_was_decided(
    foreign_head: tuple[list[Values], list[Path]], tmp_path: Path
) -> None:
    folders = foreign_head[1]
    plan = lw.plan(*folders, check_weights=True)
    by_plan = lw.merge(plan, output=tmp_path / "one")
    direct = lw.merge(*folders, output=tmp_path / "two")
    assert by_plan.files == direct.files
    assert by_plan.plan.merged == plan.merged
    assert by_plan.plan.kept.keys() == plan.kept.keys()
    draft = lw.merge(lw.plan(*folders), output=tmp_path / "three")
    assert draft.files == direct.files
    assert draft.plan.scope_decided


def test_parts_count_what_is_shared(foreign_head: tuple[list[Values], list[Path]]) -> None:
    plan = lw.plan(*foreign_head[1][:2])
    assert plan.parts == (("backbone", True, 148), ("head", False, 15))


def test_the_same_model_twice_is_said_and_gives_the_model_back(tmp_path: Path) -> None:
    folder = write_transformers_folder(tmp_path / "a", relatives(1)[0], TINY)
    result = lw.merge(folder, folder, output=tmp_path / "m")
    assert any("is named twice (models 1 and 2)" in w for w in result.warnings)
    assert same_bits(read(folder), read(tmp_path / "m"))


# ---------------------------------------------------------------------------------- usage errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scope": "head"}, "scope 'head' is unknown: choose auto, all, backbone"),
        ({"batch_norm": "mean"}, "batch-norm 'mean' is unknown: choose linear, moment, anchor"),
        ({"dtype": "float64"}, "dtype 'float64' is unknown"),
        ({"output_format": "bin"}, "output-format 'bin' is unknown"),
        ({"max_shard_size": "many"}, "max-shard-size 'many' is no size"),
        ({"start": "stages.9"}, r"start 'stages\.9' is no shared layer"),
        ({"shedule": "linear"}, "unknown option 'shedule'"),
        ({"anchor_weight": 0.3}, "anchor-weight"),
    ],
)
def test_options_that_are_wrong_are_usage_errors(
    options: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        merge(tmp_path, net(1), net(2), **options)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("threads", [0, -1])
def test_a_merge_takes_a_thread_at_least(threads: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"threads is {threads}: give a number from 1 on"):
        merge(tmp_path, net(1), net(2), threads=threads)


def test_one_model_is_no_merge_and_a_plan_takes_no_options(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", net(1))
    with pytest.raises(UsageError, match="at least one donor"):
        lw.merge(path, output=tmp_path / "merged")
    plan = lw.plan(path, save(tmp_path / "b.safetensors", net(2)))
    with pytest.raises(UsageError, match="pass it alone"):
        lw.merge(plan, output=tmp_path / "merged", gamma=2.0)


# -------------------------------------------------------------------------------------- floats


def every_half() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize("which", ["all", "finite", "positive"])
def test_every_float16_is_widened_as_numpy_does(which: str) -> None:
    halves = every_half()
    if which == "finite":
        halves = halves[np.isfinite(halves)]
    if which == "positive":
        halves = halves[:0x7C00]
    with np.errstate(invalid="ignore"):
        expected = halves.astype(np.float32)
    found = floats.widen(halves.copy(), "F16", np.empty(len(halves), np.float32))
    assert bits(found) == bits(expected)
    wide = floats.widen(halves.copy(), "F16", np.empty(len(halves), np.float64))
    assert bits(wide) == bits(halves.astype(np.float64))


@pytest.mark.parametrize("beside", [1.0, -65504.0, -0.0, 2.0**-24])
def test_every_float16_that_is_not_finite_is_seen_beside_finite_ones(beside: float) -> None:
    for half in every_half()[~np.isfinite(every_half())]:
        pair = np.array([beside, half], np.float16)
        found = floats.widen(pair, "F16", np.empty(2, np.float32))
        with np.errstate(invalid="ignore"):
            assert bits(found) == bits(pair.astype(np.float32))


def test_every_bfloat16_is_widened_by_sixteen_zero_bits() -> None:
    codes = np.arange(1 << 16, dtype=np.uint32)
    codes = codes[(codes & 0x7FFF) <= 0x7F80]  # not NaN, whose payload is free
    found = floats.widen(
        codes.astype(np.uint16).view(BF16), "BF16", np.empty(len(codes), np.float32)
    )
    assert bits(found) == bits(codes << 16)


def around(values: np.ndarray) -> np.ndarray:
    """float32 values, the midpoints between neighbours, and one float32 step to either side."""
    wide = np.unique(values[np.isfinite(values)].astype(np.float64))
    points = np.concatenate([wide, (wide[1:] + wide[:-1]) / 2]).astype(np.float32)
    up = np.nextafter(points, np.float32(np.inf))
    down = np.nextafter(points, np.float32(-np.inf))
    return np.concatenate([points, up, down, np.float32([0.0, -0.0, 1e-45, -1e-45])])


def test_float16_is_rounded_as_numpy_does_at_every_tie() -> None:
    values = around(every_half())
    out = np.empty(len(values), np.float16)
    assert floats.narrow(values, "F16", out)
    assert bits(out) == bits(values.astype(np.float16))


def test_float16_is_rounded_the_same_in_room_that_is_given() -> None:
    values = around(every_half())
    expected = values.astype(np.float16)
    out = np.empty(len(values), np.float16)
    assert floats.narrow_fitting(values, "F16", out, np.empty(len(values), np.uint32))
    assert bits(out) == bits(expected)


@pytest.mark.parametrize("extreme", [65520.0, -65520.0, np.inf, -np.inf, np.nan, -np.nan])
def test_float16_that_does_not_fit_leaves_the_values_alone(extreme: float) -> None:
    values = np.array([1.0, extreme, 1e-6], np.float32)
    before, out, room = bits(values), np.empty(3, np.float16), np.empty(3, np.uint32)
    assert not floats.narrow_fitting(values, "F16", out, room)
    assert bits(values) == before


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_float16_is_rounded_as_numpy_does(seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << 32, 5000, dtype=np.uint32)
    for values in (codes.view(np.float32), codes.view(np.float32)[np.abs(codes.view("f4")) < 6e4]):
        with np.errstate(over="ignore", invalid="ignore"):
            expected = values.astype(np.float16)
        out = np.empty(len(values), np.float16)
        fits = floats.narrow(values, "F16", out)
        assert bits(out) == bits(expected)
        assert fits == (np.isinf(expected).sum() == np.isinf(values).sum())


@pytest.mark.parametrize("extreme", [65519.99, 65520.0, -65520.0, 1e30, np.inf, np.nan])
def test_float16_overflow_is_told_from_infinity(extreme: float) -> None:
    values = np.array([1.0, extreme], np.float32)
    out = np.empty(2, np.float16)
    fits = floats.narrow(values, "F16", out)
    assert fits == (not np.isfinite(extreme) or abs(np.float32(extreme)) < 65520)
    with np.errstate(over="ignore"):
        assert bits(out) == bits(values.astype(np.float16))


def rounded_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round half to even by exact arithmetic on the float64 values; finite, normal, in range."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bfloat16_is_rounded_to_nearest_even_at_every_tie(dtype: type) -> None:
    codes = np.arange(0x0080, 0x7F00, dtype=np.uint16)
    values = around(codes.view(BF16).astype(np.float32))
    values = values[(np.abs(values) > 1.2e-38)].astype(dtype)
    if dtype is np.float64:  # nearer to a tie than float32 can say
        values = np.concatenate([values, np.nextafter(values, 0), np.nextafter(values, np.inf)])
    out = np.empty(len(values), BF16)
    assert floats.narrow(values, "BF16", out)
    assert np.array_equal(out.astype(np.float64), rounded_to_bfloat16(values))


def test_bfloat16_of_what_is_not_finite_is_that_of_ml_dtypes() -> None:
    top = np.finfo(np.float32).max
    for row in ([np.nan, -np.nan, 1.0], [np.inf, -np.inf, -0.0], [top, 1.0], [-top, np.inf]):
        values, out = np.array(row, np.float32), np.empty(len(row), np.uint16)
        with np.errstate(over="ignore"):
            expected = values.astype(BF16)
        assert floats.narrow(values, "BF16", out) == (abs(row[0]) != top)
        assert bits(out) == bits(expected)


def test_narrowing_nothing_and_widening_nothing() -> None:
    assert floats.narrow(np.empty(0, np.float32), "F16", np.empty(0, np.float16))
    assert floats.narrow(np.empty(0, np.float32), "BF16", np.empty(0, BF16))
    assert len(floats.widen(np.empty(0, np.float16), "F16", np.empty(0, np.float32))) == 0


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_finiteness_is_seen_and_large_sums_are_no_alarm(dtype: str) -> None:
    top = np.finfo(dtype).max
    assert floats.all_finite(np.full(10, top, dtype))
    assert floats.all_finite(np.empty(0, dtype))
    for bad in (np.nan, np.inf, -np.inf):
        assert not floats.all_finite(np.array([1.0, bad, top], dtype))
    assert not floats.all_finite(np.array([np.inf, -np.inf], dtype))


# ------------------------------------------------------------------------------- files that change


def test_a_file_that_becomes_shorter_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        buffer = memoryview(bytearray(4))
        merging.read_at(descriptor, buffer, 3)
        assert bytes(buffer) == b"3456"
        with pytest.raises(lw.LwmmError, match="became shorter"):
            merging.read_at(descriptor, memoryview(bytearray(4)), 8)
    finally:
        os.close(descriptor)


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    made: list[int] = []
    paths = [save(tmp_path / f"{i}.safetensors", net(i)) for i in range(2)]
    report: Callable[[int], None] = made.append
    result = lw.merge(*paths, output=tmp_path / "m", progress=report)
    assert sum(made) == result.plan.cost.write_bytes == sum(v.nbytes for v in net().values())
    assert {"F64", "F32", "F16", "BF16"} == MERGEABLE


def test_a_merge_of_the_largest_segformers_is_the_float64_sum(tmp_path: Path) -> None:
    """B5, 85 million parameters: the first, some middle and the last tensors in depth order."""
    entries = [e for e in segformer_transformers_old(B5) if e.dtype == "F32"]
    random = np.random.default_rng(5)
    start = {e.key: random.random(e.shape, np.float32) for e in entries}
    donor = {key: value[..., ::-1] * np.float32(0.5) for key, value in start.items()}
    files = [save(tmp_path / f"{i}.safetensors", m) for i, m in enumerate((start, donor))]
    result = lw.merge(*files, output=tmp_path / "merged")
    assert len(result.plan.merged) == len(entries)
    count = len(result.plan.layers)
    with safe_open(result.folder / "model.safetensors", "numpy") as file:
        for tensor in result.plan.merged[:: len(entries) // 40] + result.plan.merged[-1:]:
            weight = (1 - tensor.layer / (count - 1)) / 2
            one, other = (m[tensor.key].astype(np.float64) for m in (start, donor))
            expected = (1 - weight) * one + weight * other
            assert_within_rounding({"": file.get_tensor(tensor.key)}, {"": expected})
