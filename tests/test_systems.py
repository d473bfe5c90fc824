"""The pairs of KEYS.md section 5, between files as the systems of the paper write them.

The files have the depths of the real models, and so every key, at a few channels. Which tensors
two systems share is known from the enumerators (equal `parts`), never from the package's tables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from enumerators import Entry, SegformerSize
from enumerators.systems import ResNetSize
from enumerators.systems.table import LIBRARIES, SYSTEMS, THIN_B5, THIN_R50, THIN_R101, System
from enumerators.systems.values import CAFFE, MIT, Trained
from oracle import canonical, depth_order, in_backbone

import lwmm_hub as lw

Plan = dict[str, Any]

ALL = SYSTEMS | LIBRARIES
ALL["HRDA, 16 classes"] = replace(ALL["HRDA"], thin=THIN_B5.with_classes(16))
ALL["transformers SegFormer, 150 classes"] = replace(
    ALL["transformers SegFormer"], thin=THIN_B5.with_classes(150)
)
ALL["FADA, 16 classes"] = replace(ALL["FADA"], thin=THIN_R101.with_classes(16))
ALL["GLC, 15 classes"] = replace(ALL["GLC"], thin=THIN_R50.with_classes(15))

MIT_SYSTEMS = [name for name, system in ALL.items() if system.thin == THIN_B5]
R101_SYSTEMS = [name for name, system in ALL.items() if system.thin == THIN_R101]

# of the keys that two systems share, what no merge takes by itself
TRAINING_ONLY = ("cls_head.", "proj_head.")
NEVER = ("weight_g", "weight_v", "num_batches_tracked")
CONSTANTS = "rpn.anchor_generator."  # boxes of the anchor's own images
DEAD = "F/feature_extractor.decoder.blocks."  # CoNMix takes its features before them


@dataclass
class Model:
    """A file of one training run, and what is in it."""

    reference: str
    system: System
    run: Trained

    @property
    def entries(self) -> list[Entry]:
        return self.run.entries

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Start of each parameter -> its shape."""
        return {part: shape for entry in self.entries for part, shape in parts_of(entry)}


Models = Callable[..., Model]


def parts_of(entry: Entry) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in entry.parts:
        yield part, (entry.shape[0] // len(entry.parts), *entry.shape[1:]) if entry.shape else ()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """(name, role, tiny, trimmed) -> its file, a training run trimmed to its student.

    File names say nothing of the system, as `latest.pth` does not.
    """
    root = tmp_path_factory.mktemp("systems")

    @functools.cache
    def model(name: str, role: str = "anchor", tiny: bool = False, trimmed: bool = True) -> Model:
        system = ALL[name]
        number = list(ALL).index(name)
        size = system.tiny if tiny else system.thin
        run = system.run(seed=2 * number + (role == "donor"), size=size)
        file = f"{role}-{number}-{tiny:d}{trimmed:d}"
        path = system.save(root, file, run, trimmed=trimmed)
        return Model(f"{path}{QUERIES.get(name, '')}", system, run)

    return model


# what names a model in a folder of two stages
QUERIES = {
    "CoNMix R50-ViT": "?stage=source",
    "CoNMix ResNet-50": "?stage=source",
    "CoNMix DeiT": "?stage=source",
}


@functools.cache
def _plan(anchor: str, donor: str, options: tuple[tuple[str, Any], ...]) -> Plan:
    return lw.plan(anchor, donor, **dict(options)).to_dict()


def plan_of(anchor: Model, donor: Model, **options: Any) -> Plan:
    return _plan(anchor.reference, donor.reference, tuple(options.items()))


def matched(anchor: Model, donor: Model) -> set[str]:
    """Keys of the anchor that the donor has, too: equal start, equal shape, counters included."""
    theirs = donor.parts
    return {
        entry.key
        for entry in anchor.entries
        if entry.parts and all(theirs.get(part) == shape for part, shape in parts_of(entry))
    }


def to_merge(anchor: Model, donor: Model) -> set[str]:
    untrained = (*anchor.system.untrained, *donor.system.untrained)
    out = (*untrained, *TRAINING_ONLY, CONSTANTS, DEAD)
    return {
        key for key in matched(anchor, donor) if not key.startswith(out) and not key.endswith(NEVER)
    }


def assert_every_key_is_accounted_for(plan: Plan, anchor: Model, donor: Model) -> None:
    merged = {tensor["key"] for tensor in plan["merged"]}
    kept = {row["key"]: row["reason"] for row in plan["kept"]}
    assert len(kept) == len(plan["kept"])
    assert merged.isdisjoint(kept)
    assert merged | set(kept) == {entry.key for entry in anchor.entries}
    used = {tensor["sources"][1] for tensor in plan["merged"]}
    unused = {row["key"]: row["reason"] for row in plan["unused"] if row["model"] == 1}
    theirs = {entry.key for entry in donor.entries}
    assert used.isdisjoint(unused)
    assert used <= theirs <= used | set(unused)
    assert all(reason.strip() for reason in (*kept.values(), *unused.values()))


# ------------------------------------------------------------------------------ the pairs


class Pair(NamedTuple):
    """`matched` counts keys of the anchor, counters included; `merged` canonical parameters."""

    number: int
    anchor: str
    donor: str
    matched: int
    merged: int


B5 = "transformers SegFormer"
PAIRS = [
    Pair(1, "MIC", "HRDA", 1126, 1221),
    Pair(1, "HRDA", "MIC, own teacher", 1126, 1221),
    Pair(2, "MIC", "PiPa(HRDA)", 1126, 1221),
    Pair(2, "PiPa(HRDA)", "MIC", 1126, 1221),
    Pair(3, "DAFormer", "PiPa(DAFormer)", 1110, 1206),
    Pair(3, "PiPa(DAFormer)", "DAFormer", 1110, 1206),
    Pair(4, "HRDA", "HRDA, 16 classes", 1122, 1217),
    Pair(5, "HRDA", "DAFormer", 1110, 1206),
    Pair(5, "DAFormer", "HRDA", 1110, 1206),
    Pair(6, "EDAPS", "HRDA", 1110, 1206),
    Pair(6, "EDAPS", "MIC", 1110, 1206),
    Pair(6, "HRDA", "EDAPS", 1110, 1206),
    Pair(7, "EDAPS", "DAFormer", 1110, 1206),
    Pair(7, "DAFormer", "EDAPS", 1110, 1206),
    Pair(8, "DAFormer", B5, 1052, 1156),
    Pair(8, "DAFormer", "transformers SegFormer, new", 1052, 1156),
    Pair(8, "EDAPS", B5, 1052, 1156),
    Pair(8, "EDAPS", "transformers SegFormer, new", 1052, 1156),
    Pair(8, B5, "DAFormer", 1156, 1156),
    Pair(8, "transformers SegFormer, new", "EDAPS", 1156, 1156),
    Pair(8, "DAFormer", "SegFormer", 1052, 1156),
    Pair(8, "SegFormer", "DAFormer", 1052, 1156),
    Pair(9, B5, "transformers SegFormer, 150 classes", 1170, 1169),
    Pair(9, "SegFormer", B5, 1068, 1171),
    Pair(10, B5, "smp Unet MiT", 1156, 1156),
    Pair(10, B5, "smp FPN MiT", 1156, 1156),
    Pair(10, B5, "smp UPerNet MiT", 1156, 1156),
    Pair(10, B5, "smp Segformer MiT", 1172, 1171),
    Pair(10, "smp Unet MiT", B5, 1052, 1156),
    Pair(10, "smp FPN MiT", "HRDA", 1052, 1156),
    Pair(10, "smp UPerNet MiT", "EDAPS", 1052, 1156),
    Pair(10, "transformers GLPN", B5, 1156, 1156),
    Pair(11, "AdvEnt", "MinEnt", 640, 536),
    Pair(11, "AdvEnt", "AdvEnt, old torch", 536, 536),
    Pair(11, "AdvEnt, old torch", "MinEnt", 536, 536),
    Pair(11, "AdvEnt single", "MinEnt", 632, 528),
    Pair(11, "AdvEnt", "MaxSquare", 640, 536),
    Pair(12, "AdvEnt", "FADA", 632, 528),
    Pair(12, "AdvEnt", "FADA FrozenBN", 528, 528),
    Pair(12, "FADA", "AdvEnt", 632, 528),
    Pair(12, "FADA FrozenBN", "AdvEnt single", 528, 528),
    Pair(0, "EDAPS bottom-up", "EDAPS", 1110, 1206),
    Pair(0, "HRDA", "EDAPS bottom-up", 1110, 1206),
    Pair(0, "PiPa(HRDA)", "PiPa(DAFormer)", 1127, 1206),
    Pair(0, "FADA", "FADA FrozenBN", 528, 528),
    Pair(0, "FADA", "FADA, 16 classes", 624, 520),
    Pair(0, "FADA", "torchvision ResNet-101", 624, 520),
    Pair(0, "FADA", "transformers ResNet-101", 624, 520),
    Pair(0, "transformers ResNet-101", "torchvision ResNet-101", 624, 520),
    Pair(0, "torchvision DeepLabV3", "smp Unet", 624, 520),
    Pair(0, "smp Unet", "FADA", 624, 520),
    Pair(0, "GLC", "GLC, 15 classes", 325, 271),
    Pair(0, "GLC", "torchvision ResNet-50", 318, 265),
    Pair(0, "GLC", "CoNMix ResNet-50", 325, 271),
    Pair(0, "CoNMix ResNet-50", "GLC", 325, 271),
    Pair(0, "transformers ResNet-50", "GLC", 318, 265),
    Pair(0, "MIC-det", "MIC-det teacher", 344, 339),
    Pair(0, "MIC-det", "torchvision ResNet-50", 265, 265),
    Pair(0, "torchvision ResNet-50", "MIC-det", 265, 265),
]


def named(pair: Pair) -> str:
    return f"{pair.number or '-'}: {pair.anchor} x {pair.donor}"


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_a_pair_merges_what_it_shares_and_gives_a_reason_for_all_else(
    pair: Pair, models: Models
) -> None:
    anchor, donor = models(pair.anchor, "anchor"), models(pair.donor, "donor")
    assert len(matched(anchor, donor)) == pair.matched
    plan = plan_of(anchor, donor)
    merged = {tensor["key"] for tensor in plan["merged"]}
    assert merged == to_merge(anchor, donor)
    assert len(plan["merged"]) == pair.merged
    assert_every_key_is_accounted_for(plan, anchor, donor)


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_every_merged_parameter_is_made_of_the_same_parameter_of_the_donor(
    pair: Pair, models: Models
) -> None:
    """Keys and values of one tensor never come from another: k is not v, stage 1 not stage 2."""
    anchor, donor = models(pair.anchor, "anchor"), models(pair.donor, "donor")
    ours = {entry.key: entry.parts for entry in anchor.entries}
    theirs = {entry.key: entry.parts for entry in donor.entries}
    for tensor in plan_of(anchor, donor)["merged"]:
        mine, source = tensor["sources"]
        assert tensor["key"] == mine
        assert set(ours[mine]) & set(theirs[source])


@pytest.mark.parametrize(
    ("anchor", "donor", "by_name"),
    [
        ("HRDA", "DAFormer", 1052),
        ("EDAPS", "HRDA", 1052),
        ("DAFormer", "SegFormer", 1053),  # and conv_seg.bias, which SegFormer never uses
        ("EDAPS", "EDAPS bottom-up", 1054),  # and conv_seg, which reads other features
        ("AdvEnt", "FADA", 0),
    ],
)
def test_equal_names_and_shapes_would_say_something_else(
    anchor: str, donor: str, by_name: int, models: Models
) -> None:
    ours, theirs = (
        {(entry.key, entry.shape) for entry in models(name, "anchor").entries}
        for name in (anchor, donor)
    )
    assert len(ours & theirs) == by_name


@pytest.mark.parametrize(
    ("anchor", "donor"), [("MIC", "PiPa(HRDA)"), ("MIC, own teacher", "EDAPS"), (B5, "DAFormer")]
)
def test_the_other_copies_of_a_training_run_change_nothing(
    anchor: str, donor: str, models: Models
) -> None:
    """Student, moving average and ImageNet model lie in one dictionary, told apart by prefix."""
    trimmed = plan_of(models(anchor, "anchor"), models(donor, "donor"))
    one, other = (
        models(name, role, trimmed=False) for name, role in ((anchor, "anchor"), (donor, "donor"))
    )
    plan = plan_of(one, other)
    for kind in ("merged", "layers"):
        assert plan[kind] == trimmed[kind]
    assert list(kept_reasons(plan)) == list(kept_reasons(trimmed))
    assert_every_key_is_accounted_for(plan, one, other)
    for number, model in enumerate((one, other)):
        if model.system.start == MIT and model.system.name != B5:
            unused = {row["key"] for row in plan["unused"] if row["model"] == number}
            for copy in ("ema_model.", "imnet_model."):
                assert {f"{copy}{entry.key}" for entry in model.entries} <= unused


# ------------------------------------------------------------------------------ what is left out


def kept_reasons(plan: Plan) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in plan["kept"]}


def unused_reasons(plan: Plan) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in plan["unused"] if row["model"] == 1}


def test_edaps_keeps_its_thing_heads_and_hrda_its_scale_attention(models: Models) -> None:
    plan = plan_of(models("EDAPS", "anchor"), models("HRDA", "donor"))
    own = [key for key in kept_reasons(plan) if not key.startswith("decode_head.")]
    assert len(own) == 42
    attention = [key for key in unused_reasons(plan) if "scale_attention" in key]
    assert len(attention) == 16
    plan = plan_of(models("HRDA", "anchor"), models("DAFormer", "donor"))
    counters = 1  # of scale_attention, among the 16
    assert len([key for key in kept_reasons(plan) if "scale_attention" in key]) == 15 + counters
    assert len(plan["kept"]) == 16 + 8


@pytest.mark.parametrize(
    ("anchor", "donor"), [("MIC", "PiPa(HRDA)"), ("DAFormer", "PiPa(DAFormer)")]
)
def test_heads_that_pipa_trains_with_are_unused(anchor: str, donor: str, models: Models) -> None:
    plan = plan_of(models(anchor, "anchor"), models(donor, "donor"))
    heads = [key for key in unused_reasons(plan) if key.startswith(TRAINING_ONLY)]
    assert len(heads) == 17


def test_heads_that_pipa_trains_with_are_not_merged_with_each_other(models: Models) -> None:
    plan = plan_of(models("PiPa(HRDA)", "anchor"), models("PiPa(DAFormer)", "donor"))
    reasons = {k: why for k, why in kept_reasons(plan).items() if k.startswith(TRAINING_ONLY)}
    assert len(reasons) == 17
    assert all("train" in why for key, why in reasons.items() if not key.endswith(NEVER))


@pytest.mark.parametrize(
    ("anchor", "donor"), [("SegFormer", "DAFormer"), ("SegFormer", "transformers SegFormer")]
)
def test_the_classifier_that_segformer_never_uses_is_kept_as_such(
    anchor: str, donor: str, models: Models
) -> None:
    plan = plan_of(models(anchor, "anchor"), models(donor, "donor"))
    dead = {k: why for k, why in kept_reasons(plan).items() if ".conv_seg." in k}
    assert len(dead) == 2
    assert all("never used" in why for why in dead.values())
    back = plan_of(models(donor, "anchor"), models(anchor, "donor"))
    assert len([key for key in unused_reasons(back) if ".conv_seg." in key]) == 2


def test_classes_that_differ_keep_the_classifiers(models: Models) -> None:
    plan = plan_of(models("HRDA", "anchor"), models("HRDA, 16 classes", "donor"))
    differing = [key for key, why in kept_reasons(plan).items() if "shape" in why]
    assert differing == [
        f"decode_head.{head}.conv_seg.{leaf}"
        for head in ("head", "scale_attention")
        for leaf in ("weight", "bias")
    ]


@pytest.mark.parametrize(
    ("anchor", "donor"), [("AdaptSegNet", "MaxSquare"), ("MaxSquare", "AdaptSegNet")]
)
def test_branches_that_adaptsegnet_never_trained_are_not_merged(
    anchor: str, donor: str, models: Models
) -> None:
    one, other = models(anchor, "anchor"), models(donor, "donor")
    assert len(matched(one, other)) == 640
    plan = plan_of(one, other, check_weights=True)
    assert {tensor["key"] for tensor in plan["merged"]} == to_merge(one, other)
    assert len(plan["merged"]) == 528
    assert_every_key_is_accounted_for(plan, one, other)
    branches = {k: why for k, why in kept_reasons(plan).items() if "conv2d_list" in k}
    assert len(branches) == 8
    assert all("train" in why or "initial" in why for why in branches.values())


def test_no_branch_is_taken_for_untrained_where_all_four_are(models: Models) -> None:
    plan = plan_of(models("AdvEnt", "anchor"), models("MaxSquare", "donor"), check_weights=True)
    assert len(plan["merged"]) == 536


@pytest.mark.parametrize(
    ("anchor", "donor", "matching"), [("GLC", "GLC", 328), ("GLC", "GLC, 15 classes", 325)]
)
def test_weight_norm_is_never_averaged_in_parts_and_the_plan_says_so(
    anchor: str, donor: str, matching: int, models: Models
) -> None:
    one, other = models(anchor, "anchor"), models(donor, "donor")
    assert len(matched(one, other)) == matching
    plan = plan_of(one, other)
    merged = {tensor["key"] for tensor in plan["merged"]}
    assert not [key for key in merged if key.endswith(("weight_g", "weight_v"))]
    assert_every_key_is_accounted_for(plan, one, other)
    reasons = kept_reasons(plan)
    for leaf in ("weight_g", "weight_v"):
        why = reasons[f"class_layer.fc.{leaf}"]
        assert "weight norm" in why or (matching < 328 and "shape differs" in why)
    assert "class_layer.fc.bias" not in merged
    assert "weight norm" in reasons["class_layer.fc.bias"] or matching < 328
    assert ["weight norm" in warning for warning in plan["warnings"]].count(True) == 1


@pytest.mark.parametrize(
    ("name", "counters"), [("CoNMix R50-ViT", 9), ("CoNMix ResNet-50", 54), ("CoNMix DeiT", 1)]
)
def test_two_runs_of_conmix_share_all_but_counters_and_weight_norm(
    name: str, counters: int, models: Models
) -> None:
    """Its classifier's bias stays beside its weight, which is the product of the two kept."""
    anchor, donor = models(name, "anchor"), models(name, "donor")
    plan = plan_of(anchor, donor)
    assert_every_key_is_accounted_for(plan, anchor, donor)
    merged = {tensor["key"] for tensor in plan["merged"]}
    assert merged == to_merge(anchor, donor) - {"C/fc.bias"}
    reasons = kept_reasons(plan)
    assert all("weight norm" in reasons[f"C/fc.{leaf}"] for leaf in ("weight_g", "weight_v"))
    assert len([key for key in reasons if key.endswith("num_batches_tracked")]) == counters


# ------------------------------------------------------------------------------ refusals, warnings


B0_AND_B1 = [
    SegformerSize((2, 2, 2, 2), widths, decoder_width=8)
    for widths in ((4, 8, 20, 32), (8, 16, 40, 64))
]


@pytest.mark.parametrize("name", ["transformers SegFormer", "transformers SegFormer, new"])
def test_two_sizes_of_segformer_share_twelve_tensors_and_are_refused(
    name: str, tmp_path: Path
) -> None:
    runs = [ALL[name].run(seed, size) for seed, size in enumerate(B0_AND_B1)]
    files = [ALL[name].save(tmp_path, f"b{i}", run) for i, run in enumerate(runs)]
    shapes = [{(e.key, e.shape) for e in run.entries} for run in runs]
    assert [len(s) for s in shapes] == [208, 208]
    assert len(shapes[0] & shapes[1]) == 12
    for anchor, donor in (files, reversed(files)):
        with pytest.raises(lw.LwmmError) as caught:
            lw.plan(anchor, donor)
        assert caught.value.exit_code == 4


@pytest.mark.parametrize("other", ["DAFormer", "CoNMix R50-ViT", "CoNMix DeiT"])
def test_backbones_of_other_architectures_are_refused(other: str, models: Models) -> None:
    for anchor, donor in (("GLC", other), (other, "GLC")):
        with pytest.raises(lw.LwmmError) as caught:
            plan_of(models(anchor, "anchor"), models(donor, "donor"))
        assert caught.value.exit_code == 4


def lineage_warnings(plan: Plan, *systems: str) -> list[str]:
    return [w for w in plan["warnings"] if all(s.lower() in w.lower() for s in systems)]


@pytest.mark.parametrize("other", ["FADA", "FADA FrozenBN"])
def test_caffe_and_torchvision_resnets_match_and_are_warned_about_by_name(
    other: str, models: Models
) -> None:
    for anchor, donor in (("AdvEnt", other), (other, "AdvEnt")):
        plan = plan_of(models(anchor, "anchor"), models(donor, "donor"))
        assert len(lineage_warnings(plan, "AdvEnt", "FADA")) == 1


@pytest.mark.parametrize(
    ("anchor", "donor", "names"),
    [
        ("AdvEnt", "torchvision ResNet-101", ("AdvEnt", "torchvision")),
        ("transformers ResNet-101", "MaxSquare", ("transformers", "MaxSquare")),
        ("MIC-det", "GLC", ("maskrcnn-benchmark", "torchvision")),
        ("torchvision ResNet-50", "MIC-det", ("torchvision", "maskrcnn-benchmark")),
    ],
)
def test_either_kind_of_resnet_is_told_from_the_other(
    anchor: str, donor: str, names: tuple[str, str], models: Models
) -> None:
    plan = plan_of(models(anchor, "anchor"), models(donor, "donor"))
    assert len(lineage_warnings(plan, *names)) == 1


@pytest.mark.parametrize(
    ("anchor", "donor"),
    [
        ("AdvEnt", "MinEnt"),
        ("AdaptSegNet", "MaxSquare"),
        ("FADA", "FADA FrozenBN"),
        ("FADA", "torchvision ResNet-101"),
        ("GLC", "torchvision ResNet-50"),
        ("HRDA", "DAFormer"),
    ],
)
def test_one_pre_training_is_not_warned_about(anchor: str, donor: str, models: Models) -> None:
    plan = plan_of(models(anchor, "anchor"), models(donor, "donor"))
    assert [w for w in plan["warnings"] if "stride" in w or "unlike" in w] == []


def test_caffe_and_torchvision_resnets_are_unrelated_by_their_weights(
    models: Models, tmp_path: Path
) -> None:
    """Until their weights are read they only look alike: 632 names and shapes."""
    anchor, donor = models("AdvEnt", "anchor"), models("FADA", "donor")
    with pytest.raises(lw.LwmmError, match="--allow-unrelated") as caught:
        lw.merge(anchor.reference, donor.reference, output=tmp_path / "merged")
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------ one depth order


def layers_by_start(plan: Plan, anchor: Model) -> list[tuple[str, tuple[float, ...]]]:
    """(neutral module, weights) of the layers in their order, whatever the anchor calls them."""
    parts = {entry.key: list(entry.parts) for entry in anchor.entries}
    modules: dict[int, str] = {}
    for tensor in plan["merged"]:  # a fused tensor comes once per part, in the order of the parts
        modules[tensor["layer"]] = parts[tensor["key"]].pop(0).rpartition(".")[0]
    assert list(modules) == list(range(len(plan["layers"])))
    return [(modules[layer["index"]], tuple(layer["weights"])) for layer in plan["layers"]]


def ramp(modules: list[str]) -> list[tuple[str, tuple[float, ...]]]:
    last = len(modules) - 1
    return [(m, (0.5 + 0.5 * j / last, 0.5 - 0.5 * j / last)) for j, m in enumerate(modules)]


def assert_layers(plan: Plan, anchor: Model, modules: list[str]) -> None:
    expected = ramp(modules)
    found = layers_by_start(plan, anchor)
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, weights), (_, wanted) in zip(found, expected, strict=True):
        assert weights == pytest.approx(wanted), name


@pytest.mark.parametrize("name", MIT_SYSTEMS)
def test_a_layer_of_mit_has_one_weight_in_every_system(name: str, models: Models) -> None:
    modules = [m for m in depth_order(ALL[name].tiny) if in_backbone(m)]
    for anchor, donor in ((name, B5), ("DAFormer", name)):
        one = models(anchor, "anchor", tiny=True)
        plan = plan_of(one, models(donor, "donor", tiny=True), scope="backbone")
        assert_layers(plan, one, modules)
        assert [layer["name"] for layer in plan["layers"]] == [canonical(m) for m in modules]


def resnet_modules(size: ResNetSize) -> list[str]:
    """The order of the forward pass: in a bottleneck the shortcut is added at the end."""
    entries = ALL["torchvision ResNet-101"].entries(size)
    keys = [entry.key.rpartition(".")[0] for entry in entries]
    return [key for key in dict.fromkeys(keys) if key != "fc"]


@pytest.mark.parametrize("name", R101_SYSTEMS)
def test_a_layer_of_a_resnet_has_one_weight_in_every_system(name: str, models: Models) -> None:
    for anchor, donor in ((name, "torchvision ResNet-101"), ("AdvEnt", name)):
        one = models(anchor, "anchor", tiny=True)
        plan = plan_of(one, models(donor, "donor", tiny=True), scope="backbone")
        assert_layers(plan, one, resnet_modules(one.system.tiny))


def test_the_heads_of_the_daformer_family_come_after_the_backbone_in_forward_order(
    models: Models,
) -> None:
    for anchor, donor in (("HRDA", "DAFormer"), ("EDAPS", "MIC"), ("DAFormer", "EDAPS")):
        one = models(anchor, "anchor")
        found = [m for m, _ in layers_by_start(plan_of(one, models(donor, "donor")), one)]
        head = found[found.index("stage4.norm") + 1 :]
        start = "daformer_head."
        assert all(module.startswith(start) for module in head)
        assert head[:4] == [f"{start}embed_layers.{i}.proj" for i in range(4)]
        assert head[-1] == f"{start}conv_seg"
        assert head[-2] == f"{start}fuse_layer.bottleneck.bn"
        assert len(head) == 4 + 2 * 8 + 1


def test_the_classifiers_of_deeplab_come_last_the_one_on_the_third_stage_first(
    models: Models,
) -> None:
    """In a file, too, though it reads what the fourth stage has not seen yet."""
    branches = [f"layer{i}.conv2d_list.{n}" for i in (5, 6) for n in range(4)]
    for anchor, donor in (("AdvEnt", "MinEnt"), ("MaxSquare", "AdvEnt, old torch")):
        one = models(anchor, "anchor", tiny=True)
        plan = plan_of(one, models(donor, "donor", tiny=True))
        assert_layers(plan, one, [*resnet_modules(one.system.tiny), *branches])


def test_a_donor_without_the_head_has_no_weight_there(models: Models) -> None:
    """Three donors of the backbone, two of them with DAFormer's head: the rest is shared anew."""
    anchor = models("DAFormer", "anchor", tiny=True)
    donors = [models(name, "donor", tiny=True) for name in ("EDAPS", "SegFormer", "HRDA")]
    plan = lw.plan(anchor.reference, *(donor.reference for donor in donors)).to_dict()
    merged = {tensor["key"]: tensor for tensor in plan["merged"]}
    last = len(plan["layers"]) - 1
    for key, tensor in merged.items():
        share = 0.25 * (1 - tensor["layer"] / last)
        whole = key.startswith("backbone.")
        assert [source is not None for source in tensor["sources"]] == [True, True, whole, True]
        row = [1 - 3 * share, share, share if whole else 0.0, share]
        assert tensor["weights"] == pytest.approx([weight / sum(row) for weight in row])
    assert len(merged) == len(to_merge(anchor, donors[0]))


def test_values_of_a_start_are_one_over_all_files() -> None:
    """The files of one start are related, those of two are not: what the tests above rest on."""

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        return float(one.ravel() @ other.ravel() / np.linalg.norm(one) / np.linalg.norm(other))

    advent, maxsquare, fada = (ALL[n].run(i).values for i, n in enumerate(
        ("AdvEnt", "MaxSquare", "FADA")))  # fmt: skip
    key = "layer3.7.conv2.weight"
    assert ALL["AdvEnt"].start == ALL["MaxSquare"].start == CAFFE
    assert 0.85 < cosine(advent[key], maxsquare[key]) < 0.97
    assert abs(cosine(advent[key], fada[f"feature_extractor/backbone.{key}"])) < 0.1
    adaptsegnet = ALL["AdaptSegNet"].run(3).values
    for level in (5, 6):
        dead = adaptsegnet[f"layer{level}.conv2d_list.2.weight"]
        assert dead.size >= 4096
        assert dead.std() == pytest.approx(0.01, rel=0.05)
        assert adaptsegnet[f"layer{level}.conv2d_list.0.weight"].std() > 0.02


# ------------------------------------------------------------------------------ one pre-training


def lineage(*paths: Path, **options: Any) -> tuple[str, str]:
    """(the verdict on the donor, the whole plan as printed)."""
    plan = lw.plan(*paths, **options)
    (row,) = plan.to_dict()["lineage"]
    assert row["model"] == 1
    assert row["why"]
    return row["verdict"], str(plan)


def tiny_file(name: str, folder: Path, seed: int, **changes: Any) -> Path:
    system = replace(ALL[name], **changes)
    return system.save(folder, f"m{seed}", system.run(seed, system.tiny))


@pytest.mark.parametrize("check_weights", [False, True])
@pytest.mark.parametrize(
    ("anchor", "donor"), [("DAFormer", "HRDA"), ("EDAPS", "MIC"), ("PiPa(HRDA)", "DAFormer")]
)
def test_equal_imagenet_copies_prove_one_pre_training(
    anchor: str, donor: str, check_weights: bool, tmp_path: Path
) -> None:
    """The copies lie in both files bit for bit; their heads, random in each, say nothing."""
    pair = tiny_file(anchor, tmp_path, 1), tiny_file(donor, tmp_path, 2)
    verdict, printed = lineage(*pair, check_weights=check_weights)
    assert verdict == "proven"
    assert "Same pre-training, donor 1: proven" in printed


def test_unequal_imagenet_copies_refute_one_pre_training(tmp_path: Path) -> None:
    pair = tiny_file("DAFormer", tmp_path, 1), tiny_file("HRDA", tmp_path, 2, start=999)
    verdict, printed = lineage(*pair, check_weights=True, allow_unrelated=True)
    assert verdict == "refuted"
    assert "Same pre-training, donor 1: refuted" in printed


def test_one_number_that_differs_in_the_copies_is_no_proof(tmp_path: Path) -> None:
    import torch

    pair = tiny_file("DAFormer", tmp_path, 1), tiny_file("HRDA", tmp_path, 2)
    content = torch.load(pair[1], weights_only=True)
    content["state_dict"]["imnet_model.backbone.block3.0.mlp.fc1.weight"][0, 0] += 1e-3
    torch.save(content, pair[1])
    assert lineage(*pair)[0] != "proven"


@pytest.mark.parametrize(
    ("anchor", "donor"), [("AdvEnt", "MinEnt"), ("DAFormer", "SegFormer"), ("GLC", "GLC")]
)
def test_without_two_copies_one_pre_training_is_plausible(
    anchor: str, donor: str, tmp_path: Path
) -> None:
    pair = tiny_file(anchor, tmp_path, 1), tiny_file(donor, tmp_path, 2)
    assert lineage(*pair, check_weights=True)[0] == "plausible"


def test_weights_without_likeness_refute_one_pre_training(tmp_path: Path) -> None:
    pair = tiny_file("AdvEnt", tmp_path, 1), tiny_file("FADA", tmp_path, 2)
    verdict, printed = lineage(*pair, check_weights=True, allow_unrelated=True)
    assert verdict == "refuted"
    assert "refuted" in printed
