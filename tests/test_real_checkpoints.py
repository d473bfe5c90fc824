"""Real trained nets: ESPNetv2 on Cityscapes and Pascal, ESPNet on Cityscapes and CamVid.

They lie beside the project and are never committed. All are pickles from before PyTorch 1.6, of
architectures without a table: matched by name, in the order of registration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import lwmm_hub as lw
from lwmm_hub import Checkpoint, MergePlan
from lwmm_hub.cli.commands import run

Values = Mapping[str, np.ndarray]

CITY = "edgenets/espnetv2_s_{}_city_512x256.pth", "edgenets/espnetv2_s_{}_city_1024x512.pth"
PASCAL = "edgenets/espnetv2_s_1.0_pascal_256x256.pth", "edgenets/espnetv2_s_1.0_pascal_384x384.pth"
ESPNET, CAMVID, ENCODER = (
    "espnet/decoder_espnet_p_2_q_8.pth",
    "espnet/decoder_espnet_p_2_q_8_camvid.pth",
    "espnet/encoder_espnet_p_2_q_8.pth",
)
DECODER_PARTS = [
    *(f"bu_dec_l{i}" for i in (1, 2, 3, 4)),
    *(f"merge_enc_dec_l{i}" for i in (2, 3, 4)),
    *(f"bu_br_l{i}" for i in (2, 3, 4)),
]


@pytest.fixture
def nets(shared: Path) -> Path:
    folder = shared / "checkpoints"
    if not folder.is_dir():
        pytest.skip("../shared/checkpoints is absent")
    return folder


def city(nets: Path, size: str = "1.0") -> tuple[Path, Path]:
    anchor, donor = CITY
    return nets / anchor.format(size), nets / donor.format(size)


def values_of(path: Path) -> dict[str, np.ndarray]:
    """The state dict by torch itself, in the order of registration."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value.numpy() for key, value in state.items()}


def opened(*paths: Path) -> list[Checkpoint]:
    return [lw.resolve(lw.ModelReference.parse(str(path))) for path in paths]


def cosines(plan: MergePlan) -> dict[str, float]:
    """Part -> mean cosine, of parts that have weights of their own to judge by."""
    return {r.part: r.cosine for r in plan.relatedness if r.tensors and r.cosine is not None}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def modules(keys: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(key.rpartition(".")[0] for key in keys))


def expected_merge(anchor: Values, donor: Values, merged: Sequence[str]) -> dict[str, np.ndarray]:
    """The paper's ramp over the layers of the `merged` keys, in float64, written without ours."""
    layers = modules(merged)
    result = dict(anchor)
    for key in merged:
        share = 0.5 * (1 - layers.index(key.rpartition(".")[0]) / (len(layers) - 1))
        result[key] = (1 - share) * anchor[key].astype(np.float64) + share * donor[key]
    return result


def assert_close(found: Values, expected: Values) -> None:
    assert set(found) == set(expected)
    for key, value in expected.items():
        if value.dtype == np.int64:
            assert np.array_equal(found[key], value), key
        else:
            scale = max(1.0, float(np.abs(value).max(initial=0)))
            np.testing.assert_allclose(found[key], value, atol=2e-7 * scale, rtol=1e-6, err_msg=key)


# ------------------------------------------------------------------- one lineage: City and City


@pytest.mark.parametrize("size", ["1.0", "0.5"])
def test_two_resolutions_of_one_data_set_merge_whole(nets: Path, size: str, tmp_path: Path) -> None:
    paths = city(nets, size)
    anchor, donor = (values_of(path) for path in paths)
    same = [key for key in anchor if key in donor and anchor[key].shape == donor[key].shape]
    floats = [key for key in same if anchor[key].dtype == np.float32]
    assert (len(anchor), len(same), len(floats)) == (526, 526, 459)

    result = lw.merge(*paths, output=tmp_path / "merged")
    plan = result.plan
    assert [tensor.key for tensor in plan.merged] == floats
    assert set(plan.kept.values()) == {"int64 is never averaged"}
    assert len(plan.kept) == 67
    assert all(key.endswith(".num_batches_tracked") for key in plan.kept)
    assert plan.warnings == ()

    related = cosines(plan)
    assert related["base_net"] == pytest.approx(0.946, abs=0.002)
    decoder = [related[part] for part in DECODER_PARTS if part.startswith("bu_dec")]
    assert 0.82 < min(decoder) < max(decoder) < 0.86
    assert {r.verdict for r in plan.relatedness} == {"related"}

    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert_close(merged, expected_merge(anchor, donor, floats))


def test_depth_order_is_the_order_of_registration_and_the_plan_says_so(nets: Path) -> None:
    paths = city(nets)
    plan = lw.plan(*paths)
    assert plan.order_source == "the file's own registration order"
    floats = [key for key, value in values_of(paths[0]).items() if value.dtype == np.float32]
    assert [layer.name for layer in plan.layers] == modules(floats)
    assert [layer.index for layer in plan.layers] == list(range(257))
    assert plan.layers[0].weights == (0.5, 0.5)
    assert plan.layers[-1].weights == (1.0, 0.0)


def test_the_plan_prints_the_split_into_backbone_and_heads(nets: Path) -> None:
    for check_weights in (False, True):
        plan = lw.plan(*city(nets), check_weights=check_weights)
        assert [part for part, backbone, _ in plan.parts if backbone] == ["base_net"]
        assert [part for part, backbone, _ in plan.parts if not backbone] == DECODER_PARTS
        lines = str(plan).splitlines()
        assert "Backbone: base_net (315)" in lines
        assert any(line.startswith("Head: bu_dec_l1 (28), ") for line in lines)


@pytest.mark.parametrize(
    "paths", [("city", "1.0"), ("city", "0.5"), ("pascal", "1.0")], ids=" ".join
)
def test_a_file_saved_again_by_todays_torch_merges_to_the_same_bytes(
    nets: Path, tmp_path: Path, paths: tuple[str, str]
) -> None:
    kind, size = paths
    old = list(city(nets, size))
    if kind == "pascal":
        old[1] = nets / PASCAL[0]
    new = []
    for path in old:
        new.append(tmp_path / path.name)
        torch.save(torch.load(path, map_location="cpu", weights_only=True), new[-1])
        assert path.read_bytes()[:2] != b"PK"
        assert new[-1].read_bytes()[:2] == b"PK"
    results = [
        lw.merge(*models, output=tmp_path / name)
        for name, models in (("old", old), ("new", new), ("mixed", [old[0], new[1]]))
    ]
    assert results[0].files == results[1].files == results[2].files
    assert results[0].plan.merged == results[1].plan.merged
    assert results[0].plan.layers == results[1].plan.layers


# ------------------------------------------------- one ancestor, other data sets: City and Pascal


@pytest.mark.parametrize(
    ("pascal", "sampled", "whole"), [(PASCAL[0], 0.687, 0.701), (PASCAL[1], 0.616, 0.632)]
)
def test_another_data_set_shares_the_backbone_and_not_the_decoder(
    nets: Path, tmp_path: Path, pascal: str, sampled: float, whole: float
) -> None:
    paths = city(nets)[0], nets / pascal
    anchor, donor = (values_of(path) for path in paths)
    assert sum(donor[key].shape == value.shape for key, value in anchor.items()) == 524

    result = lw.merge(*paths, output=tmp_path / "merged")
    plan = result.plan
    related = cosines(plan)
    backbone = [k for k, v in anchor.items() if k.startswith("base_net") and v.ndim >= 2]
    alike = [cosine(anchor[key], donor[key]) for key in backbone]
    assert np.mean(alike) == pytest.approx(whole, abs=0.001)
    at_32 = [alike[round(i * (len(alike) - 1) / 31)] for i in range(32)]
    assert related.pop("base_net") == pytest.approx(np.mean(at_32), abs=1e-6)
    assert np.mean(at_32) == pytest.approx(sampled, abs=0.001)
    judged = {r.part: r for r in plan.relatedness}
    assert all(-0.08 < c < 0.1 for part, c in related.items() if not judged[part].like)
    assert {r.part for r in plan.relatedness if r.verdict == "unrelated"} == set(DECODER_PARTS)

    merged = [tensor.key for tensor in plan.merged]
    assert merged == [
        key for key in anchor if key.startswith("base_net") and anchor[key].dtype == np.float32
    ]
    assert (len(merged), len(plan.kept)) == (315, 211)
    label = paths[1].stem
    for part in DECODER_PARTS:
        why = next(
            why
            for key, why in plan.kept.items()
            if key.startswith(part) and "shape" not in why and "int64" not in why
        )
        said = "has nothing to judge by" if judged[part].like else "is unrelated (mean cosine "
        assert why.startswith(f"the {part} of {label} {said}")
    (told,) = [text for text in plan.warnings if "left out (--scope all" in text]
    assert told.startswith(f"the {', '.join(r for r in judged if r in DECODER_PARTS)[:40]}")
    assert plan.kept["bu_dec_l4.merge_layer.3.bias"] == "shape differs: (20,) vs (21,)"

    # The ramp ends with the backbone: the anchor is alone at its last layer.
    assert plan.layers[-1].name.startswith("base_net.level4.6")
    assert plan.layers[-1].weights == (1.0, 0.0)
    assert all(layer.part == "base_net" for layer in plan.layers)
    assert_close(
        load_file(tmp_path / "merged" / "model.safetensors"),
        expected_merge(anchor, donor, merged),
    )


def test_scope_all_keeps_the_classifier_and_the_counters_alone(nets: Path) -> None:
    plan = lw.plan(city(nets)[0], nets / PASCAL[0], scope="all")
    counters = [key for key, why in plan.kept.items() if why == "int64 is never averaged"]
    assert len(counters) == 67
    assert {key: why for key, why in plan.kept.items() if key not in counters} == {
        "bu_dec_l4.merge_layer.3.weight": "shape differs: (20, 10, 1, 1) vs (21, 10, 1, 1)",
        "bu_dec_l4.merge_layer.3.bias": "shape differs: (20,) vs (21,)",
    }
    assert len(plan.merged) == 457
    assert plan.scope_decided


# ------------------------------------------------------------------- no ancestor: City and CamVid


def test_nets_without_a_common_training_are_refused_before_anything_is_written(
    nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(nets / ESPNET), str(nets / CAMVID)]
    assert run(["merge", *models, "-o", str(tmp_path / "merged")]) == 4
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.count("\n") == 1
    assert "are unrelated: their encoder weights have a mean cosine of -0.00" in said
    assert "--allow-unrelated" in said
    assert list(tmp_path.iterdir()) == []

    result = lw.merge(*models, output=tmp_path / "merged", allow_unrelated=True)
    assert any("unrelated" in warning for warning in result.warnings)
    assert cosines(result.plan)["encoder"] == pytest.approx(-0.004, abs=0.002)


# ------------------------------------------------------------------- a part of another model


def test_an_encoder_file_merges_into_the_full_model_under_its_prefix(nets: Path) -> None:
    part, whole = values_of(nets / ENCODER), values_of(nets / ESPNET)
    assert sum(f"encoder.{k}" in whole for k in part) == len(part) == 154

    plan = lw.plan(nets / ESPNET, nets / ENCODER, check_weights=True)
    assert [tensor.key for tensor in plan.merged] == [f"encoder.{key}" for key in part]
    assert plan.models[1].renamed == "+encoder."
    assert f"'encoder.' put before the keys of {Path(ENCODER).stem}" in str(plan)
    assert set(plan.kept.values()) == {f"absent in {Path(ENCODER).stem}"}
    assert len(plan.kept) == len(whole) - 154

    back = lw.plan(nets / ENCODER, nets / ESPNET, check_weights=True)
    assert [tensor.key for tensor in back.merged] == list(part)
    assert back.models[1].renamed == "-encoder."
    assert f"'encoder.' taken off the keys of {Path(ESPNET).stem}" in str(back)
    assert back.kept == {}


# ------------------------------------------------------------------- drift


def test_drift_grows_from_one_lineage_to_one_ancestor_to_none(nets: Path) -> None:
    def drift(*paths: Path) -> dict[tuple[bool, str], dict[str, float]]:
        """(in the backbone, kind) -> means over its parameters."""
        models = opened(*paths)
        key_map = lw.match(*models)
        backbone = {p.name for p in key_map.parts if p.backbone}
        part = {p.name: p.part in backbone for p in key_map.shared}
        rows: dict[tuple[bool, str], list[Any]] = {}
        for d in lw.measure_drift(key_map, models):
            assert 0 <= d.changed <= 1
            assert d.cosine is None or -1.000001 <= d.cosine <= 1.000001
            rows.setdefault((part[d.name], d.kind), []).append(d)
        return {
            group: {
                name: float(np.mean([v for d in found if (v := getattr(d, name)) is not None]))
                for name in ("changed", "distance", "cosine")
            }
            for group, found in rows.items()
        }

    lineage = drift(*city(nets))
    ancestor = drift(city(nets)[0], nets / PASCAL[0])
    none = drift(nets / ESPNET, nets / CAMVID)
    same = drift(city(nets)[0], city(nets)[0])

    assert all(d["changed"] == d["distance"] == 0 for d in same.values())
    assert {kind for _, kind in lineage} == {
        "weight", "bias", "batch-norm mean", "batch-norm variance"
    }  # fmt: skip
    body, head = (True, "weight"), (False, "weight")
    assert lineage[body]["changed"] < lineage[head]["changed"]
    assert lineage[body]["changed"] < ancestor[body]["changed"] < none[body]["changed"]
    assert lineage[body]["distance"] < ancestor[body]["distance"] < none[body]["distance"]
    assert lineage[body]["cosine"] > ancestor[body]["cosine"] > none[body]["cosine"]
    assert 0.3 < lineage[body]["changed"] < 0.6
    assert 0.9 < none[body]["changed"] <= 1
