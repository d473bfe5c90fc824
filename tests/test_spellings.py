"""One pair of models in every spelling: the same merged values and the same layer weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from enumerators import (
    B0,
    B5,
    TINY,
    Entry,
    SegformerSize,
    glpn,
    mit_nvlabs,
    segformer_model_only,
    segformer_model_only_old,
    segformer_nvlabs,
    segformer_smp,
    segformer_transformers_4,
    segformer_transformers_new,
    segformer_transformers_old,
    spell,
    write_pth,
    write_safetensors,
    write_transformers_folder,
)
from oracle import (
    Values,
    assert_within_rounding,
    bits,
    canonical,
    depth_order,
    in_backbone,
    merge_by_hand,
    module,
    read,
    relatives,
    save,
    stranger,
    unspell,
)

import lwmm_hub as lw
from lwmm_hub.checkpoint.safetensors import write_header

CLASSES = 7  # of the donors; the anchors have TINY's 5


class Spelling(NamedTuple):
    """How a system lists a model, and writes it; `head` is False where it has another task."""

    entries: Callable[[SegformerSize], list[Entry]]
    write: Callable[[Path, Values], Path]
    head: bool = True


def _folder(dialect: str, sharded: bool = False) -> Callable[[Path, Values], Path]:
    def write(path: Path, values: Values) -> Path:
        size = TINY.with_classes(len(values["head.classifier.bias"]))
        return write_transformers_folder(path, values, size, dialect, sharded)  # type: ignore[arg-type]

    return write


def _file(
    entries: Callable[[SegformerSize], list[Entry]],
    suffix: str = ".safetensors",
    prefix: str = "",
    wrapper: str | None = None,
) -> Callable[[Path, Values], Path]:
    def write(path: Path, values: Values) -> Path:
        path.mkdir(parents=True)
        tensors = spell(entries(TINY.with_classes(len(values["head.classifier.bias"]))), values)
        if suffix == ".safetensors":
            named = {prefix + key: value for key, value in tensors.items()}
            return write_safetensors(path / f"model{suffix}", named)
        return write_pth(path / f"latest{suffix}", tensors, wrapper, prefix)  # type: ignore[arg-type]

    return write


WHOLE = {
    "transformers, old": Spelling(segformer_transformers_old, _folder("old")),
    "transformers, new": Spelling(segformer_transformers_new, _folder("new")),
    "transformers 4 .bin": Spelling(
        segformer_transformers_4, _file(segformer_transformers_4, ".bin")
    ),
    "nvlabs .pth": Spelling(
        segformer_nvlabs, _file(segformer_nvlabs, ".pth", "module.", "state_dict")
    ),
    "smp .safetensors": Spelling(segformer_smp, _file(segformer_smp)),
    "smp .pth": Spelling(segformer_smp, _file(segformer_smp, ".pth")),
}
BACKBONES = {
    "glpn": Spelling(glpn, _file(glpn), head=False),
    "glpn .bin": Spelling(glpn, _file(glpn, ".bin"), head=False),
    "mit_b0.pth": Spelling(mit_nvlabs, _file(mit_nvlabs, ".pth"), head=False),
    "model only, old": Spelling(
        segformer_model_only_old, _file(segformer_model_only_old), head=False
    ),
    "model only, new": Spelling(segformer_model_only, _file(segformer_model_only), head=False),
}
SPELLINGS = WHOLE | BACKBONES


@pytest.fixture(scope="module")
def pair() -> list[Values]:
    return relatives(2, classes=(TINY.num_classes, CLASSES))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, pair: list[Values]) -> dict[str, list[Path]]:
    """Spelling -> the file or folder of the anchor and of the donor."""
    root = tmp_path_factory.mktemp("spellings")
    return {
        name: [
            spelling.write(root / name.replace(" ", "_") / role, values)
            for role, values in zip(("anchor", "donor"), pair, strict=True)
        ]
        for name, spelling in SPELLINGS.items()
    }


def merge(anchor: Path, donor: Path, output: Path, **options: object) -> lw.MergeResult:
    return lw.merge(anchor, donor, output=output, **options)


def weights_by_layer(result: lw.MergeResult) -> dict[str, tuple[float, ...]]:
    return {layer.name: layer.weights for layer in result.plan.layers}


@pytest.fixture(scope="module")
def merged(
    files: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Values, dict[str, tuple[float, ...]]]:
    """The merge of the pair in transformers' old names, in neutral names."""
    output = tmp_path_factory.mktemp("reference") / "merged"
    result = merge(files["transformers, old"][0], files["transformers, old"][1], output)
    return unspell(segformer_transformers_old(TINY), read(output)), weights_by_layer(result)


@pytest.fixture(scope="module")
def merged_backbone(
    files: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Values, dict[str, tuple[float, ...]]]:
    output = tmp_path_factory.mktemp("reference") / "merged"
    anchor, donor = files["transformers, old"]
    result = merge(anchor, donor, output, scope="backbone")
    values = unspell(segformer_transformers_old(TINY), read(output))
    return {k: v for k, v in values.items() if in_backbone(k)}, weights_by_layer(result)


def test_the_merge_is_what_the_method_says(
    pair: list[Values], merged: tuple[Values, dict[str, tuple[float, ...]]]
) -> None:
    assert_within_rounding(merged[0], merge_by_hand(pair, TINY))


def test_the_layers_are_those_of_the_forward_pass(
    merged: tuple[Values, dict[str, tuple[float, ...]]],
) -> None:
    shared = [canonical(m) for m in depth_order(TINY) if m != "head.classifier"]
    assert list(merged[1]) == shared


@pytest.mark.parametrize(("anchor", "donor"), list(itertools.product(WHOLE, WHOLE)))
def test_any_two_spellings_merge_to_the_same_values(
    anchor: str,
    donor: str,
    files: dict[str, list[Path]],
    pair: list[Values],
    merged: tuple[Values, dict[str, tuple[float, ...]]],
    tmp_path: Path,
) -> None:
    result = merge(files[anchor][0], files[donor][1], tmp_path / "merged")
    tensors = read(tmp_path / "merged")
    entries = SPELLINGS[anchor].entries(TINY)
    expected, layers = merged
    assert weights_by_layer(result) == layers
    assert set(tensors) == {entry.key for entry in entries}
    assert {k: v.shape for k, v in tensors.items()} == {e.key: e.shape for e in entries}
    found = unspell(entries, tensors)
    assert all(bits(found[name]) == bits(value) for name, value in expected.items())
    assert len(result.plan.merged) == 161  # 2 classifier tensors and a counter less than 164
    for entry in entries:
        if not entry.parts:  # mmseg's conv_seg, which no network uses
            assert "never used" in result.plan.kept[entry.key]


@pytest.mark.parametrize(
    ("anchor", "donor"),
    [
        pair
        for pair in itertools.product(SPELLINGS, SPELLINGS)
        if pair[0] in BACKBONES or pair[1] in BACKBONES
    ],
)
def test_backbones_of_other_tasks_merge_to_the_same_values(
    anchor: str,
    donor: str,
    files: dict[str, list[Path]],
    merged_backbone: tuple[Values, dict[str, tuple[float, ...]]],
    tmp_path: Path,
) -> None:
    result = merge(files[anchor][0], files[donor][1], tmp_path / "merged", scope="backbone")
    entries = SPELLINGS[anchor].entries(TINY)
    found = unspell(entries, read(tmp_path / "merged"))
    expected, layers = merged_backbone
    assert weights_by_layer(result) == layers
    assert all(bits(found[name]) == bits(value) for name, value in expected.items())


# ---------------------------------------------------------------------------- details of spellings


def test_a_fused_tensor_counts_as_two_parameters_of_two_layers(
    files: dict[str, list[Path]],
) -> None:
    plan = lw.plan(files["nvlabs .pth"][0], files["transformers, old"][1])
    fused = [t for t in plan.merged if t.key == "backbone.block1.0.attn.kv.weight"]
    assert [t.name for t in fused] == [
        "stages.0.blocks.0.attn.k.weight",
        "stages.0.blocks.0.attn.v.weight",
    ]
    assert [t.shape for t in fused] == [(8, 8), (8, 8)]
    assert fused[0].layer + 1 == fused[1].layer
    assert fused[0].weights != fused[1].weights
    assert [s and s.key for s in fused[1].sources] == [
        "backbone.block1.0.attn.kv.weight",
        "segformer.encoder.block.0.0.attention.self.value.weight",
    ]


def test_a_fused_tensor_of_which_one_part_is_shared_is_merged_in_that_part_alone(
    pair: list[Values], files: dict[str, list[Path]], tmp_path: Path
) -> None:
    tensors = spell(segformer_transformers_old(TINY), relatives(2)[1])
    lacking = {k: v for k, v in tensors.items() if "block.0.0.attention.self.value" not in k}
    donor = save(tmp_path / "donor" / "model.safetensors", lacking)
    result = lw.merge(files["nvlabs .pth"][0], donor, output=tmp_path / "merged")
    found = unspell(segformer_nvlabs(TINY), read(tmp_path / "merged"))
    value, key = (f"stage1.block0.{name}.weight" for name in ("value", "key"))
    assert bits(found[value]) == bits(pair[0][value])
    assert not np.array_equal(found[key], pair[0][key])
    why = result.plan.kept["backbone.block1.0.attn.kv.weight"]
    assert why == "part 2 of 2 (stages.0.blocks.0.attn.v.weight): absent in model"
    names = [t.name for t in result.plan.merged if t.key == "backbone.block1.0.attn.kv.weight"]
    assert names == ["stages.0.blocks.0.attn.k.weight"]


def test_smp_under_a_prefix_and_a_backbone_under_mmsegs(
    files: dict[str, list[Path]],
    pair: list[Values],
    merged_backbone: tuple[Values, dict[str, tuple[float, ...]]],
    tmp_path: Path,
) -> None:
    prefixed = _file(segformer_smp, prefix="model.")(tmp_path / "smp", pair[0])
    mmseg = write_pth(tmp_path / "b.pth", spell(mit_nvlabs(TINY, "backbone."), pair[1]))
    lw.merge(prefixed, mmseg, output=tmp_path / "merged", scope="backbone")
    tensors = read(tmp_path / "merged")
    assert all(key.startswith("model.") for key in tensors)
    short = {key.removeprefix("model."): value for key, value in tensors.items()}
    found = unspell(segformer_smp(TINY), short)
    assert all(bits(found[k]) == bits(v) for k, v in merged_backbone[0].items())


def test_the_classifier_is_merged_where_the_classes_are_as_many(tmp_path: Path) -> None:
    one, two = relatives(2)
    anchor = write_transformers_folder(tmp_path / "a", one, TINY)
    donor = _file(segformer_smp)(tmp_path / "b", two)
    result = lw.merge(anchor, donor, output=tmp_path / "merged", end=1.0, endpoint=0.5)
    found = unspell(segformer_transformers_old(TINY), read(tmp_path / "merged"))

    def rows(layers: int, models: int) -> list[tuple[float, ...]]:
        donors = [0.5 * (1 - 0.5 * j / (layers - 1)) for j in range(layers)]
        return [(1 - d, d) for d in donors]

    assert_within_rounding(found, merge_by_hand([one, two], TINY, rows))
    assert list(result.plan.kept) == ["decode_head.batch_norm.num_batches_tracked"]
    assert result.plan.layers[-1].name == "head.classifier"


def test_an_anchor_without_a_head_takes_nothing_from_the_donors(
    files: dict[str, list[Path]], tmp_path: Path
) -> None:
    plan = lw.plan(files["mit_b0.pth"][0], files["transformers, old"][1])
    assert {layer.part for layer in plan.layers} == {"backbone"}
    heads = {key for key in plan.unused[0] if key.startswith("decode_head.")}
    assert len(heads) == 16
    assert set(plan.unused[0]) == heads
    assert all(why == "absent in latest" for why in plan.unused[0].values())


# ------------------------------------------------------------------------------ the two real sizes


@pytest.fixture(scope="module")
def b0(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Values], list[Path]]:
    root = tmp_path_factory.mktemp("b0")
    models = relatives(2, B0, (19, 150))
    folders = [
        write_transformers_folder(root / role, values, B0)
        for role, values in zip(("anchor", "donor"), models, strict=True)
    ]
    return models, folders


def headers_only(path: Path, entries: list[Entry]) -> Path:
    """A file with the header of a model and zeros that take no room on the disk."""
    head = write_header([(e.key, e.dtype, e.shape) for e in entries], {"format": "pt"})
    size = sum((8 if e.dtype == "I64" else 4) * int(np.prod(e.shape)) for e in entries)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return path


def matching(one: list[Entry], other: list[Entry]) -> int:
    there = {entry.key: entry.shape for entry in other}
    return sum(there.get(entry.key) == entry.shape for entry in one)


@pytest.mark.parametrize("scope", ["auto", "all"])
def test_b0_of_19_and_150_classes(
    scope: str, b0: tuple[list[Values], list[Path]], tmp_path: Path
) -> None:
    models, (anchor, donor) = b0
    ours = segformer_transformers_old(B0)
    assert len(ours) == 208
    assert matching(ours, segformer_transformers_old(B0.with_classes(150))) == 206
    result = lw.merge(anchor, donor, output=tmp_path / "merged", scope=scope)
    assert len(result.plan.merged) == 205
    assert list(result.plan.kept) == [
        "decode_head.batch_norm.num_batches_tracked",
        "decode_head.classifier.bias",
        "decode_head.classifier.weight",
    ]
    assert result.warnings == ()
    found = unspell(ours, read(tmp_path / "merged"))
    assert_within_rounding(found, merge_by_hand(models, B0))
    for key in result.plan.kept:
        assert bits(read(tmp_path / "merged")[key]) == bits(read(anchor)[key])


def test_b5_of_19_and_150_classes_by_its_headers(tmp_path: Path) -> None:
    ours, theirs = (segformer_transformers_old(B5.with_classes(n)) for n in (19, 150))
    assert len(ours) == 1172
    assert matching(ours, theirs) == 1170
    anchor = headers_only(tmp_path / "anchor.safetensors", ours)
    donor = headers_only(tmp_path / "donor.safetensors", theirs)
    plan = lw.plan(anchor, donor, scope="all")
    assert (len(plan.merged), len(plan.kept)) == (1169, 3)
    layers = [canonical(m) for m in depth_order(B5) if m != "head.classifier"]
    assert [layer.name for layer in plan.layers] == layers
    last = len(layers) - 1
    for j, layer in enumerate(plan.layers):
        assert layer.weights == pytest.approx((0.5 + 0.5 * j / last, 0.5 - 0.5 * j / last))


def test_b5_in_four_spellings_has_the_same_layers(tmp_path: Path) -> None:
    plans = []
    for i, entries in enumerate(
        (
            segformer_transformers_old,
            segformer_transformers_new,
            segformer_nvlabs,
            segformer_smp,
        )
    ):
        anchor = headers_only(tmp_path / f"anchor{i}.safetensors", entries(B5))
        donor = headers_only(
            tmp_path / f"donor{i}.safetensors", segformer_nvlabs(B5.with_classes(150))
        )
        plans.append(lw.plan(anchor, donor))
    assert all(plan.layers == plans[0].layers for plan in plans)
    weights = [{t.name: t.weights for t in plan.merged} for plan in plans]
    assert all(w == weights[0] and len(w) == 1169 for w in weights)


def test_every_key_is_accounted_for(b0: tuple[list[Values], list[Path]], tmp_path: Path) -> None:
    donor = write_pth(tmp_path / "d.pth", spell(segformer_nvlabs(B0), b0[0][0]))
    plan = lw.plan(b0[1][0], donor, b0[1][1])
    keys = {entry.key for entry in segformer_transformers_old(B0)}
    merged = {tensor.key for tensor in plan.merged}
    assert merged | set(plan.kept) == keys
    assert not merged & set(plan.kept)
    for i, entries in enumerate((segformer_nvlabs(B0), segformer_transformers_old(B0)), start=1):
        used = {source.key for t in plan.merged if (source := t.sources[i]) is not None}
        assert used | set(plan.unused[i - 1]) == {entry.key for entry in entries}
        assert not used & set(plan.unused[i - 1])


# ------------------------------------------------------------------------------ other starts


def test_an_independent_model_is_refused_and_nothing_is_written(
    b0: tuple[list[Values], list[Path]], tmp_path: Path
) -> None:
    other = write_transformers_folder(tmp_path / "other", stranger(B0), B0)
    with pytest.raises(lw.LwmmError, match="--allow-unrelated") as caught:
        lw.merge(b0[1][0], other, output=tmp_path / "merged")
    assert type(caught.value).__name__ == "UnrelatedModelsError"
    assert caught.value.exit_code == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]
    result = lw.merge(b0[1][0], other, output=tmp_path / "merged", allow_unrelated=True)
    backbone, head = result.warnings
    assert "is unrelated to the anchor (their backbone weights" in backbone
    assert head.startswith("the head of other is unrelated to the anchor's and left out")


def test_other_sizes_are_refused_by_their_headers(tmp_path: Path) -> None:
    anchor = headers_only(tmp_path / "b0.safetensors", segformer_transformers_old(B0))
    donor = headers_only(tmp_path / "b5.safetensors", segformer_smp(B5))
    with pytest.raises(lw.LwmmError, match="different sizes") as caught:
        lw.plan(anchor, donor)
    assert caught.value.exit_code == 4


def test_swapping_key_and_value_would_be_seen(pair: list[Values]) -> None:
    """The oracle tells k from v: a merge with them swapped is not within rounding."""
    swapped: Mapping[str, np.ndarray] = {
        name: pair[1][name.replace("key", "value") if "key" in name else name] for name in pair[1]
    }
    with pytest.raises(AssertionError):
        assert_within_rounding(merge_by_hand([pair[0], swapped], TINY), merge_by_hand(pair, TINY))
    assert all(module(name) for name in pair[0])
