"""Are models related? The cosine of a sample of weights, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from enumerators import TINY, cast, segformer_nvlabs, segformer_transformers_old, spell, write_pth
from oracle import Values, in_backbone, relatives, save, stranger

import lwmm_hub as lw
from lwmm_hub.errors import UnrelatedModelsError
from lwmm_hub.key_map import SharedParameter
from lwmm_hub.relatedness import (
    SAMPLE,
    Relatedness,
    measure_relatedness,
    require_related,
    sample,
)


def judge(tmp_path: Path, *models: Values) -> tuple[Relatedness, ...]:
    checkpoints = []
    for i, tensors in enumerate(models):
        path = save(tmp_path / f"m{i}.safetensors", tensors)
        checkpoints.append(lw.resolve(str(path)))
    return measure_relatedness(lw.match(*checkpoints), checkpoints)


def old(values: Values) -> Values:
    return spell(segformer_transformers_old(TINY), values)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one.astype("f8").ravel(), other.astype("f8").ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def mean_cosine(one: Values, other: Values, backbone: bool) -> float:
    """Over all tensors of at least two dimensions, where there are at most 32."""
    names = [n for n in one if in_backbone(n) == backbone and one[n].ndim >= 2]
    assert len(names) <= SAMPLE or backbone
    return float(np.mean([cosine(one[n], other[n]) for n in names]))


def test_the_cosine_is_the_mean_over_tensors_of_at_least_two_dimensions(tmp_path: Path) -> None:
    one, two = relatives(2)
    backbone, head = judge(tmp_path, old(one), old(two))
    assert (backbone.part, head.part) == ("backbone", "head")
    assert (backbone.backbone, head.backbone) == (True, False)
    assert (backbone.tensors, head.tensors) == (32, 6)
    assert (backbone.verdict, head.verdict) == ("related", "related")
    assert head.cosine == pytest.approx(mean_cosine(one, two, backbone=False), abs=1e-5)
    assert backbone.cosine == pytest.approx(mean_cosine(one, two, backbone=True), abs=0.02)
    assert not backbone.identical


def test_norms_and_biases_do_not_blur_it(tmp_path: Path) -> None:
    """They are near 1 and alike in all networks; the matrices are orthogonal."""
    results = judge(tmp_path, old(relatives(1)[0]), old(stranger()))
    assert [r.verdict for r in results] == ["unrelated", "unrelated"]
    assert all(r.cosine is not None and abs(r.cosine) < 0.1 for r in results)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtype_and_spelling_hardly_change_it(dtype: str, tmp_path: Path) -> None:
    one, two = relatives(2)
    plain = judge(tmp_path, old(one), old(two))
    anchor = write_pth(tmp_path / "a.pth", cast(spell(segformer_nvlabs(TINY), one), dtype))
    donor = save(tmp_path / "b.safetensors", old(two))
    checkpoints = [lw.resolve(str(path)) for path in (anchor, donor)]
    other = measure_relatedness(lw.match(*checkpoints), checkpoints)
    assert [r.cosine for r in other] == pytest.approx([r.cosine for r in plain], abs=1e-3)


def test_the_same_weights_are_identical(tmp_path: Path) -> None:
    values = old(relatives(1)[0])
    results = judge(tmp_path, values, values)
    assert [r.cosine for r in results] == pytest.approx([1, 1])
    assert all(r.identical for r in results)
    (warning,) = require_related(results, ["a", "b"], False)
    assert warning == "b has the same backbone weights as the anchor, bit for bit."


def test_each_donor_is_judged_on_its_own(tmp_path: Path) -> None:
    one, two = relatives(2)
    results = judge(tmp_path, old(one), old(two), old(stranger()))
    verdicts = {(r.model, r.part): r.verdict for r in results}
    assert verdicts == {
        (1, "backbone"): "related",
        (1, "head"): "related",
        (2, "backbone"): "unrelated",
        (2, "head"): "unrelated",
    }
    with pytest.raises(UnrelatedModelsError, match="anchor and bad are unrelated"):
        require_related(results, ["anchor", "good", "bad"], False)


def layers_with(values: Callable[[int], np.ndarray], count: int = 10) -> Values:
    return {f"backbone.{i}.weight": values(i) for i in range(count)}


def mixed(angle: float, i: int, other: bool) -> np.ndarray:
    """Matrices whose cosine is the cosine of `angle`."""
    random = np.random.default_rng(i)
    base, apart = (random.standard_normal(4096) for _ in range(2))
    apart -= base * (apart @ base) / (base @ base)
    apart *= np.sqrt((base @ base) / (apart @ apart))
    value = np.cos(angle) * base + np.sin(angle) * apart if other else base
    return value.reshape(64, 64).astype(np.float32)


@pytest.mark.parametrize(
    ("wanted", "verdict"),
    [(0.95, "related"), (0.51, "related"), (0.49, "weak"), (0.11, "weak"), (0.09, "unrelated")],
)
def test_the_two_thresholds(wanted: float, verdict: str, tmp_path: Path) -> None:
    angle = float(np.arccos(wanted))
    (result,) = judge(
        tmp_path,
        layers_with(lambda i: mixed(angle, i, False)),
        layers_with(lambda i: mixed(angle, i, True)),
    )
    assert result.cosine == pytest.approx(wanted, abs=1e-4)
    assert result.verdict == verdict


def test_one_unrelated_layer_makes_a_warning_that_names_it(tmp_path: Path) -> None:
    one = layers_with(lambda i: mixed(0.1, i, False))
    two = layers_with(lambda i: mixed(np.pi / 2 if i in (3, 7) else 0.1, i, True))
    (result,) = judge(tmp_path, one, two)
    assert result.verdict == "weak"
    assert {name for name, _ in result.weak_layers} == {"backbone.3", "backbone.7"}
    (warning,) = require_related([result], ["a", "b"], False)
    assert "only weakly related" in warning
    assert "backbone.3 " in warning
    assert "backbone.7 " in warning
    paths = [save(tmp_path / f"{i}.safetensors", v) for i, v in enumerate((one, two))]
    merged = lw.merge(*paths, output=tmp_path / "merged")
    assert merged.warnings == (warning.replace("of b ", "of 1 "),)


def test_many_weak_layers_are_counted(tmp_path: Path) -> None:
    (result,) = judge(
        tmp_path,
        layers_with(lambda i: mixed(0.0, i, False)),
        layers_with(lambda i: mixed(np.pi / 2 if i < 8 else 0.0, i, True)),
    )
    (warning,) = require_related([result], ["a", "b"], False)
    assert warning.endswith("and 3 more.")


def test_tensors_of_norm_zero_are_skipped(tmp_path: Path) -> None:
    def zeroed(other: bool) -> Values:
        values = layers_with(lambda i: mixed(0.0, i, other))
        values["backbone.4.weight"] = np.zeros((64, 64), np.float32)
        return values

    (result,) = judge(tmp_path, zeroed(False), zeroed(True))
    assert result.tensors == 9
    assert result.cosine == pytest.approx(1)


def test_a_backbone_of_zeros_shows_no_relation(tmp_path: Path) -> None:
    values = layers_with(lambda i: np.zeros((4, 4), np.float32))
    (result,) = judge(tmp_path, values, values)
    assert (result.verdict, result.cosine) == ("unrelated", None)
    with pytest.raises(UnrelatedModelsError, match="no backbone weight that could be compared"):
        require_related([result], ["a", "b"], False)


def test_huge_weights_are_compared_in_double_precision(tmp_path: Path) -> None:
    one = layers_with(lambda i: mixed(0.1, i, False) * np.float32(1e30))
    two = layers_with(lambda i: mixed(0.1, i, True) * np.float32(1e30))
    (result,) = judge(tmp_path, one, two)
    assert result.tensors == 10
    assert result.cosine == pytest.approx(np.cos(0.1), abs=1e-4)


@pytest.mark.parametrize("scale", [2.0**-66, 2.0**-74, 2.0**-100, 2.0**-140])
def test_tiny_weights_are_compared_in_double_precision(scale: float, tmp_path: Path) -> None:
    """Their squares are no numbers of float32: they had a wrong cosine, then none."""
    one, other = (
        layers_with(lambda i, other=other: np.float32(scale) * mixed(0.6, i, other), 3)
        for other in (False, True)
    )
    (result,) = judge(tmp_path, one, other)
    assert result.tensors == 3
    assert result.cosine == pytest.approx(np.cos(0.6), abs=1e-4 if scale > 1e-40 else 2e-2)


def parameters(count: int) -> list[SharedParameter]:
    return [SharedParameter(f"l{i}.weight", f"l{i}", "backbone", (2, 2), ()) for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 47, 63, 64, 65, 1000])
def test_the_sample_is_all_or_32_at_equal_steps_of_depth(count: int) -> None:
    everything = parameters(count)
    chosen = sample(everything)
    assert len(chosen) == min(count, SAMPLE)
    places = [everything.index(p) for p in chosen]
    assert places == sorted(set(places))
    if count:
        assert (places[0], places[-1]) == (0, count - 1)
    if count > SAMPLE:
        steps = np.diff(places)
        assert steps.max() - steps.min() <= 1


def test_a_part_without_matrices_follows_the_part_before_it(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def model(head: float) -> Values:
        return {
            "backbone.0.weight": mixed(0.1, 0, False),
            "decoder.0.weight": mixed(head, 1, head > 0),
            "fc.bias": random.standard_normal(4).astype(np.float32),
        }

    results = {r.part: r for r in judge(tmp_path, model(0.0), model(np.pi / 2))}
    assert results["decoder"].verdict == "unrelated"
    assert results["fc"].verdict == "unrelated"
    assert (results["fc"].tensors, results["fc"].cosine) == (0, None)
    assert (results["fc"].like, results["decoder"].like) == ("decoder", None)
    results = {r.part: r for r in judge(tmp_path, model(0.0), model(0.2))}
    assert results["fc"].verdict == "related"


def test_an_unrelated_backbone_can_be_allowed(tmp_path: Path) -> None:
    results = judge(tmp_path, old(relatives(1)[0]), old(stranger()))
    (warning,) = require_related(results, ["a", "b"], True)
    assert warning.startswith("b is unrelated to the anchor (their backbone weights have a mean")
    assert warning.endswith("merged as asked.")
