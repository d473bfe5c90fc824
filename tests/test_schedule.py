"""Layer weights: every schedule against the formula, and the laws they all obey."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lwmm_hub.errors import UsageError
from lwmm_hub.schedule import (
    SCHEDULES,
    WITHOUT_EFFECT,
    Schedule,
    layer_weights,
    renormalised,
)

NAMES = [f"layer.{j}" for j in range(11)]


def donors(schedule: Schedule, models: int = 2, layers: list[str] = NAMES) -> list[float]:
    """The weight of the last donor in each layer."""
    return [row[-1] for row in layer_weights(schedule, layers, models)]


# --------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize("models", [2, 3, 4, 5])
def test_the_default_is_uniform_at_the_first_layer_and_the_anchor_alone_at_the_last(
    models: int,
) -> None:
    rows = layer_weights(Schedule(), NAMES, models)
    assert rows[0] == (1 / models,) * models
    assert rows[-1] == (1.0, *[0.0] * (models - 1))
    for j, row in enumerate(rows):
        donor = Fraction(10 - j, 10 * models)
        assert row[1:] == pytest.approx([float(donor)] * (models - 1))
        assert row[0] == pytest.approx(float(1 - donor * (models - 1)))


@pytest.mark.parametrize("models", [2, 3, 5])
def test_harmonic(models: int) -> None:
    for j, row in enumerate(layer_weights(Schedule("harmonic"), NAMES, models)):
        assert row[1:] == (1 / (j + models),) * (models - 1)
        assert row[0] == pytest.approx((j + 1) / (j + models))


@pytest.mark.parametrize("models", [2, 3, 4, 5, 7])
def test_isotropic_is_exactly_uniform_in_every_layer(models: int) -> None:
    uniform = [(1 / models,) * models] * len(NAMES)
    assert layer_weights(Schedule("isotropic"), NAMES, models) == uniform
    assert layer_weights(Schedule(endpoint=0.0), NAMES, models) == uniform


def test_cosine_leaves_slowly_and_arrives_slowly() -> None:
    found = donors(Schedule("cosine"))
    expected = [0.5 * (1 - (1 - math.cos(math.pi * j / 10)) / 2) for j in range(11)]
    assert found == pytest.approx(expected)
    assert (found[0], found[5], found[-1]) == pytest.approx((0.5, 0.25, 0.0))


@pytest.mark.parametrize(("layers", "stay"), [(11, 5), (10, 5), (2, 1), (3, 1)])
def test_step_is_the_anchor_alone_from_the_middle_on(layers: int, stay: int) -> None:
    assert donors(Schedule("step"), layers=NAMES[:layers]) == [0.5] * stay + [0.0] * (layers - stay)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
def test_gamma_is_an_exponent_of_the_curve(kind: str, gamma: float) -> None:
    plain = [1 - 2 * d for d in donors(Schedule(kind))]
    found = [1 - 2 * d for d in donors(Schedule(kind, gamma=gamma))]
    assert found == pytest.approx([t**gamma for t in plain])


def test_above_gamma_1_the_donors_stay_longer() -> None:
    early, late = donors(Schedule(gamma=0.5)), donors(Schedule(gamma=2.0))
    assert all(a < b for a, b in zip(early[1:-1], late[1:-1], strict=True))


def test_endpoint_says_how_far_the_ramp_goes() -> None:
    found = donors(Schedule(endpoint=0.25))
    assert found[0] == 0.5
    assert found[-1] == pytest.approx(0.5 * 0.75)


@pytest.mark.parametrize("models", [2, 3, 4])
def test_the_anchor_weight_is_that_before_the_ramp(models: int) -> None:
    rows = layer_weights(Schedule(anchor_weight=0.7), NAMES, models)
    assert rows[0] == pytest.approx((0.7, *[0.3 / (models - 1)] * (models - 1)))
    assert rows[-1] == (1.0, *[0.0] * (models - 1))


def test_an_anchor_weight_of_1_is_the_anchor_alone() -> None:
    assert layer_weights(Schedule(anchor_weight=1.0), NAMES, 3) == [(1.0, 0.0, 0.0)] * 11


def test_an_anchor_weight_of_1_over_m_is_the_default() -> None:
    for models in (2, 3, 5, 6, 7):
        given_it = layer_weights(Schedule(anchor_weight=1 / models), NAMES, models)
        for row, plain in zip(given_it, layer_weights(Schedule(), NAMES, models), strict=True):
            assert row == pytest.approx(plain)


# ------------------------------------------------------------------------------ start and end


@pytest.mark.parametrize(
    ("start", "end"), [(0.2, 0.8), ("layer.2", "layer.8"), (0.2, "layer.8"), ("layer.2", 0.8)]
)
def test_a_ramp_between_two_places(start: float | str, end: float | str) -> None:
    expected = [0.5, 0.5, 0.5, *(0.5 - 0.5 * k / 6 for k in range(1, 6)), 0.0, 0.0, 0.0]
    assert donors(Schedule(start=start, end=end)) == pytest.approx(expected)


def test_a_fraction_between_two_layers_is_not_rounded() -> None:
    found = donors(Schedule(start=0.25))  # j_start = 2.5
    assert found[:3] == [0.5] * 3
    assert found[3] == pytest.approx(0.5 * (1 - 0.5 / 7.5))


@pytest.mark.parametrize("place", [0.5, "layer.5"])
@pytest.mark.parametrize("kind", ["linear", "cosine", "step"])
def test_start_equal_to_end_is_a_step(place: float | str, kind: str) -> None:
    assert donors(Schedule(kind, start=place, end=place)) == [0.5] * 5 + [0.0] * 6


def test_a_step_at_the_first_layer_is_the_anchor_alone() -> None:
    assert layer_weights(Schedule(start=0, end=0), NAMES, 2) == [(1.0, 0.0)] * 11


def test_one_layer_has_no_depth_and_is_uniform() -> None:
    for kind in SCHEDULES:
        assert layer_weights(Schedule(kind), ["only"], 3) == [(1 / 3, 1 / 3, 1 / 3)]
    assert layer_weights(Schedule(start=1.0), ["only"], 2) == [(0.5, 0.5)]
    assert layer_weights(Schedule(start="only"), ["only"], 2) == [(0.5, 0.5)]


@pytest.mark.parametrize("kind", ["linear", "cosine", "step"])
def test_two_layers_are_uniform_and_then_the_anchor(kind: str) -> None:
    assert layer_weights(Schedule(kind), ["a", "b"], 2) == [(0.5, 0.5), (1.0, 0.0)]


def test_one_model_has_all_the_weight() -> None:
    assert layer_weights(Schedule(), ["a", "b"], 1) == [(1.0,), (1.0,)]


# ------------------------------------------------------------------------------- usage errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "quadratic"}, "'quadratic' is unknown: choose linear, cosine, step"),
        ({"start": 0.6, "end": 0.4}, r"start 0\.6 lies after end 0\.4"),
        ({"start": "layer.6", "end": "layer.4"}, r"start layer\.6 lies after end layer\.4"),
        ({"start": "layer.6", "end": 0.5}, r"start layer\.6 lies after end 0\.5"),
        ({"start": 0.7, "end": "layer.6"}, r"start 0\.7 lies after end layer\.6"),
        ({"start": -0.1}, r"start is -0\.1: give a fraction"),
        ({"end": 1.5}, r"end is 1\.5: give a fraction"),
        ({"start": math.nan}, "start is nan"),
        ({"start": "layer.11"}, r"start 'layer\.11' is no shared layer.* 'layer\.0'"),
        ({"end": "layer.1."}, r"end 'layer\.1\.' is no shared layer"),
        ({"start": "0.5"}, r"start '0\.5' is no shared layer"),
        ({"gamma": 0.0}, r"gamma is 0\.0: give a number over 0"),
        ({"gamma": -1.0}, "gamma is"),
        ({"gamma": math.inf}, "gamma is inf"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"endpoint": 1.01}, r"endpoint is 1\.01: give a number from 0 to 1"),
        ({"endpoint": math.nan}, "endpoint is nan"),
        ({"anchor_weight": 0.49}, r"anchor-weight is 0\.49: with 2 models give a number from 1/2"),
        ({"anchor_weight": 1.1}, "anchor-weight is"),
        ({"anchor_weight": math.nan}, "anchor-weight is nan"),
        ({"kind": "harmonic", "start": 0.5}, "start changes nothing in the harmonic schedule"),
        (
            {"kind": "harmonic", "anchor_weight": 0.5},
            "anchor-weight changes nothing in the harmonic",
        ),
    ],
)
def test_options_out_of_range_are_usage_errors(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        layer_weights(Schedule(**options), NAMES, 2)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_an_unknown_layer_is_answered_with_the_names_it_is_part_of() -> None:
    layers = ["stages.0.norm", "stages.3.blocks.0.attn.q", "stages.3.blocks.1.attn.q"]
    with pytest.raises(UsageError, match=r"'stages\.3\.blocks\.0\.attn\.q' or 'stages\.3"):
        layer_weights(Schedule(start="s.3.blocks"), layers, 2)


def test_the_least_anchor_weight_falls_with_the_number_of_models() -> None:
    layer_weights(Schedule(anchor_weight=0.25), NAMES, 4)
    with pytest.raises(UsageError, match="with 3 models"):
        layer_weights(Schedule(anchor_weight=0.25), NAMES, 3)


# --------------------------------------------------------------------------------------- laws

fractions = st.floats(0, 1, allow_nan=False)


@st.composite
def schedules(draw: st.DrawFn, layers: int, models: int) -> Schedule:
    """Any valid schedule."""
    kind = draw(st.sampled_from(SCHEDULES))
    first, last = sorted((draw(fractions), draw(fractions)))
    place = st.sampled_from(["fraction", "name"])
    start: float | str = first
    end: float | str = last
    if layers and draw(place) == "name":
        start = f"l{math.floor(first * (layers - 1))}"
    if layers and draw(place) == "name":
        end = f"l{math.ceil(last * (layers - 1))}"
    weight = draw(st.none() | st.floats(1 / models, 1))
    gamma = draw(st.floats(0.01, 50))
    ramp = {"start": start, "end": end, "gamma": gamma, "endpoint": draw(fractions)}
    ramp["anchor_weight"] = weight
    unknown = WITHOUT_EFFECT.get(kind, ())
    return Schedule(kind, **{name: value for name, value in ramp.items() if name not in unknown})


@settings(deadline=None, max_examples=400)
@given(st.data(), st.integers(1, 60), st.integers(2, 9))
def test_laws_of_every_schedule(data: st.DataObject, layers: int, models: int) -> None:
    schedule = data.draw(schedules(layers, models))
    rows = layer_weights(schedule, [f"l{j}" for j in range(layers)], models)
    assert len(rows) == layers
    before = 0.0
    for row in rows:
        assert math.isclose(math.fsum(row), 1, rel_tol=0, abs_tol=1e-12)
        assert len(set(row[1:])) == 1  # donors weigh alike
        assert row[1] >= 0
        slack = 0 if schedule.anchor_weight is None else 1e-15
        assert row[0] >= row[1] - slack  # no donor outweighs the anchor
        assert row[0] >= before - 1e-12  # which only gains with depth
        before = row[0]


@settings(deadline=None)
@given(fractions, fractions, st.integers(2, 5))
@example(0.5, 0.25, 2)
def test_start_after_end_is_always_refused(start: float, end: float, models: int) -> None:
    assume(start > end)
    with pytest.raises(UsageError, match="lies after end"):
        layer_weights(Schedule(start=start, end=end), NAMES, models)


@settings(deadline=None)
@given(st.integers(2, 8), st.data())
def test_an_anchor_weight_under_1_over_m_is_always_refused(
    models: int, data: st.DataObject
) -> None:
    weight = data.draw(st.floats(-1, 1 / models - 1e-6))
    with pytest.raises(UsageError, match="anchor-weight"):
        layer_weights(Schedule(anchor_weight=weight), NAMES, models)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=6))
def test_renormalised_weights_sum_to_1_and_keep_their_ratio(
    donors_: list[tuple[float, bool]],
) -> None:
    weights = [1.0, *(w for w, _ in donors_)]
    total = sum(weights)
    weights = [w / total for w in weights]
    present = [True, *(there for _, there in donors_)]
    found = renormalised(weights, present)
    assert math.isclose(sum(found), 1)
    for new, old, there in zip(found, weights, present, strict=True):
        assert math.isclose(new * weights[0], old * found[0]) if there else new == 0.0


def test_a_donor_alone_beside_the_anchor_keeps_its_ratio_to_it() -> None:
    assert renormalised((0.5, 0.25, 0.25), (True, False, True)) == pytest.approx((2 / 3, 0, 1 / 3))
    assert renormalised((1.0, 0.0, 0.0), (True, False, True)) == (1.0, 0.0, 0.0)
    third = (1 / 3, 1 / 3, 1 / 3)
    assert renormalised(third, (True, True, True)) == third


@pytest.mark.parametrize("name", ["gamma", "endpoint", "anchor_weight", "start"])
def test_what_is_no_number_is_refused(name: str) -> None:
    value = [0.5] if name == "start" else "2"
    with pytest.raises(UsageError, match=f"{name.replace('_', '-')} is .*: give a"):
        Schedule(**{name: value}).check(2)  # type: ignore[arg-type]
