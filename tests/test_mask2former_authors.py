"""Mask2Former as its authors save it on detectron2, beside transformers' in every respect.

`enumerators.mask2former` lists keys and shapes and computes what the network computes, both without
the package's tables.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from enumerators import Entry
from enumerators.hub_models import SPECIMENS
from enumerators.hub_models.headers import write_headers
from enumerators.mask2former import SWIN_T, Mask2FormerSize, authors, feature_maps, logits
from enumerators.neutral import finetuned, random_value
from oracle import bits, read, unspell
from safetensors.numpy import load_file, save_file
from test_hub_families import mask2former as real_config
from test_resnets import detectron2 as resnet_of_detectron2

import lwmm_hub as lw
from lwmm_hub.checkpoint import TensorEntry
from lwmm_hub.key_map import KeyMap, match_keys, name_keys, natural_order

TINY = Mask2FormerSize()  # the specimen's
HEAD = "sem_seg_head."
HEADS = ("mask2former pixel decoder", "mask2former")
UNUSED = {f"model.pixel_level_module.encoder.swin.layernorm.{leaf}" for leaf in ("weight", "bias")}
LOSS = {"criterion.empty_weight"}
CLASS = "Mask2FormerForUniversalSegmentation"
Shapes = dict[str, tuple[int, ...]]


def shapes_of(entries: Iterable[Entry]) -> Shapes:
    return {entry.key: entry.shape for entry in entries}


def part_shapes(entries: Iterable[Entry]) -> Shapes:
    """Keys of transformers, and shapes, of what the authors' entries hold."""
    return {
        part: (entry.shape[0] // len(entry.parts), *entry.shape[1:])
        for entry in entries
        for part in entry.parts
    }


def file_of(shapes: Shapes) -> dict[str, TensorEntry]:
    kinds = {key: "I64" if key.endswith("position_index") else "F32" for key in shapes}
    return {
        key: TensorEntry(key, kinds[key], shapes[key], "file", i) for i, key in enumerate(shapes)
    }


def matched(anchor: Shapes, donor: Shapes) -> KeyMap:
    files = [file_of(anchor), file_of(donor)]
    return match_keys(files, ["anchor", "donor"], lambda: natural_order(list(anchor)))


def pairs(found: KeyMap) -> list[tuple[str, str, int]]:
    """(anchor's key, donor's key, which part of the one or the other) of all that merges."""
    return [
        (mine.key, theirs.key, max(mine.part, theirs.part))
        for mine, theirs in (parameter.sources for parameter in found.shared)
        if mine and theirs
    ]


def expected_pairs(entries: Iterable[Entry]) -> set[tuple[str, str, int]]:
    return {(entry.key, part, i) for entry in entries for i, part in enumerate(entry.parts)}


def config(size: Mask2FormerSize) -> transformers.Mask2FormerConfig:
    settings = {**SPECIMENS["mask2former-swin"].config, "num_labels": size.classes}
    settings["enforce_input_projection"] = size.projected
    settings |= dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size"), size.hidden)
    return transformers.Mask2FormerConfig.from_dict(settings)


# ----------------------------------------------------------------------------- what is the same


@pytest.fixture(scope="module")
def swin_t(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """What transformers' own model of the real size holds."""
    folder = tmp_path_factory.mktemp("swin-t") / "model"
    write_headers(CLASS, real_config("tiny", "semantic"), folder, None)
    return {key: entry.shape for key, entry in lw.resolve(folder).entries.items()}


@pytest.mark.parametrize("older", [False, True])
def test_every_tensor_of_a_real_model_has_its_counterpart(older: bool, swin_t: Shapes) -> None:
    entries = authors(SWIN_T, older)
    both = part_shapes(entries)
    assert both == {key: swin_t[key] for key in swin_t.keys() - UNUSED - LOSS}
    ours = shapes_of(entries)
    there = matched(ours, swin_t)
    assert set(pairs(there)) == expected_pairs(entries)
    assert len(there.shared) == len(both) == 553
    index = {key for key in ours if key.endswith("relative_position_index")}
    assert there.kept.keys() == index | LOSS
    assert all("never averaged" in why for why in there.kept.values())
    back = matched(swin_t, ours)
    assert {(b, a, part) for a, b, part in pairs(back)} == expected_pairs(entries)
    assert back.kept.keys() == UNUSED | LOSS
    assert there.warnings == back.warnings == ()
    layers = [[parameter.layer for parameter in found.shared] for found in (there, back)]
    assert layers[0] == layers[1] == [p.layer for p in matched(swin_t, swin_t).shared]


def test_older_and_newer_files_of_the_authors_are_one_network() -> None:
    older, newer = authors(TINY, older=True), authors(TINY)
    assert shapes_of(older) != shapes_of(newer)
    found = matched(shapes_of(older), shapes_of(newer))
    rename = {mine.key: theirs.key for mine, theirs in zip(older, newer, strict=True)}
    assert {(a, b) for a, b, _ in pairs(found)} == {
        (entry.key, rename[entry.key]) for entry in older if entry.parts
    }


@pytest.mark.parametrize("wrapper", ["", "module.", "net.model."])
def test_another_task_keeps_its_classifier_and_queries_below_any_wrapper(wrapper: str) -> None:
    """On ResNet, too: the head is found beside it."""
    other = dataclasses.replace(TINY, classes=8, queries=9)
    theirs = shapes_of(authors(other))
    found = matched(
        {wrapper + key: shape for key, shape in shapes_of(authors(TINY)).items()}, theirs
    )
    predictor = f"{wrapper}{HEAD}predictor."
    assert {key: why for key, why in found.kept.items() if "never averaged" not in why} == {
        f"{predictor}query_feat.weight": "shape differs: (5, 64) vs (9, 64)",
        f"{predictor}query_embed.weight": "shape differs: (5, 64) vs (9, 64)",
        f"{predictor}class_embed.weight": "shape differs: (20, 64) vs (9, 64)",
        f"{predictor}class_embed.bias": "shape differs: (20,) vs (9,)",
    }
    head = {key: shape for key, shape in theirs.items() if key.startswith(HEAD)}
    on_resnet = {wrapper + key: shape for key, shape in (resnet_of_detectron2() | head).items()}
    named = name_keys(file_of(on_resnet))
    assert [table.name for table in named.found] == ["resnet", *HEADS]
    assert all(name in named.tables for name, source in named.sources.items() if HEAD in source.key)


def test_an_original_oneformer_is_not_read_as_a_mask2former() -> None:
    """Its decoder has the same names, more layers, and no rows in the tables."""
    ours = shapes_of(authors(TINY)) | {
        f"{HEAD}predictor.class_transformer.decoder.norm.weight": (32,)
    }
    named = name_keys(file_of(ours))
    assert [table.name for table in named.found] == ["swin"]


# ------------------------------------------------------------------------------ what it computes


def doubles(size: Mask2FormerSize) -> dict[str, torch.Tensor]:
    """A network of the authors; in double precision, so that no mask flips by rounding."""
    values: dict[str, torch.Tensor] = {}
    for entry in authors(size):
        if entry.parts:
            value = random_value(entry.key, entry.shape, "F32", 5)
            values[entry.key] = torch.from_numpy(np.asarray(value)).double()
    return values


def in_transformers(
    values: dict[str, torch.Tensor], size: Mask2FormerSize, folder: Path
) -> dict[str, torch.Tensor]:
    """The same tensors under transformers' names, as the tables pair them."""
    transformers.Mask2FormerForUniversalSegmentation(config(size)).save_pretrained(folder)
    theirs = {k: v.shape for k, v in load_file(folder / "model.safetensors").items()}
    sources = matched(theirs, {key: tuple(v.shape) for key, v in values.items()}).shared
    return {
        mine.key: values[source.key].chunk(source.parts)[source.part]
        for mine, source in (parameter.sources for parameter in sources)
        if mine and source
    }


def scores(
    tensors: dict[str, torch.Tensor], size: Mask2FormerSize, pixels: torch.Tensor, folder: Path
) -> list[torch.Tensor]:
    """What transformers makes of the images with a file of these tensors."""
    folder.mkdir()
    config(size).save_pretrained(folder)
    stored = {key: np.ascontiguousarray(value.numpy()) for key, value in tensors.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    model, told = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        folder, dtype=torch.float64, output_loading_info=True
    )
    assert set(told["missing_keys"]) <= UNUSED | LOSS
    assert not told["unexpected_keys"]
    with torch.no_grad():
        found = model.eval()(pixels)
        maps = model.model.pixel_level_module.encoder(pixels).feature_maps
    return [found.class_queries_logits, found.masks_queries_logits, *maps]


@functools.cache
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("projected", [False, True])
def test_the_tensors_that_the_tables_pair_do_the_same_work(projected: bool, tmp_path: Path) -> None:
    """And a swap of queries and keys, in either attention that is fused, is seen."""
    size = dataclasses.replace(TINY, projected=projected)
    values = doubles(size)
    keys: list[str] = []
    maps = feature_maps(values, images(), size, keys)
    ours = [*logits(values, maps, size, keys), *maps]
    assert set(keys) == set(values)
    tensors = in_transformers(values, size, tmp_path / "names")
    theirs = scores(tensors, size, images(), tmp_path / "same")
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
    for i, (query, key) in enumerate(((".q_proj.", ".k_proj."), (".query.", ".key."))):
        swap = {
            name: tensors[name.replace(query, key) if query in name else name.replace(key, query)]
            for name in tensors
        }
        other = scores(swap, size, images(), tmp_path / f"swapped {i}")
        assert (ours[0] - other[0]).abs().max() > 1e-3


def test_no_tensor_of_the_head_is_without_effect() -> None:
    """So that equal outputs say something about each."""
    values = doubles(TINY)
    maps = feature_maps(values, images(), TINY, [])
    before = logits(values, maps, TINY, [])
    for key in [key for key in values if key.startswith(HEAD)]:
        noise = torch.rand(values[key].shape, generator=torch.Generator().manual_seed(1)).double()
        after = logits({**values, key: values[key] + noise}, maps, TINY, [])
        change = max((a - b).abs().max() for a, b in zip(before, after, strict=True))
        assert change > 1e-4, key


# ------------------------------------------------------------------------------------ what merges

SPELLINGS = ("authors", "authors, older", "transformers")


def network(seed: int) -> dict[str, np.ndarray]:
    """One training run, by transformers' keys; all runs come from one start."""
    start = {
        part: random_value(part, shape, "F32", 9)
        for part, shape in part_shapes(authors(TINY)).items()
    }
    return finetuned(start, seed)


def write(folder: Path, spelling: str, seed: int) -> Path:
    """A run as its system saves it: a pickle of arrays, a file of torch, a folder."""
    parts = network(seed)
    if spelling == "transformers":
        torch.manual_seed(seed)
        model = transformers.Mask2FormerForUniversalSegmentation(config(TINY))
        model.save_pretrained(folder / f"{seed}")
        path = folder / f"{seed}" / "model.safetensors"
        save_file(load_file(path) | parts, path, {"format": "pt"})
        return folder / f"{seed}"
    values = {}
    for entry in authors(TINY, older="older" in spelling):
        if entry.parts:
            values[entry.key] = np.concatenate([parts[part] for part in entry.parts])
        else:
            kind = np.int64 if entry.dtype == "I64" else np.float32
            values[entry.key] = np.full(entry.shape, seed, kind)
    if spelling == "authors":
        path = folder / f"{seed}.pkl"
        path.write_bytes(pickle.dumps({"model": values, "__author__": "someone"}))
        return path
    path = folder / f"{seed}.pth"
    state = {key: torch.from_numpy(value) for key, value in values.items()}
    torch.save({"model": state, "iteration": 9}, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folders = {spelling: tmp_path_factory.mktemp("run") for spelling in SPELLINGS}
    return {name: [write(folders[name], name, seed) for seed in (1, 2)] for name in SPELLINGS}


def by_part(folder: Path, spelling: str) -> dict[str, np.ndarray]:
    if spelling == "transformers":
        return {k: v for k, v in read(folder).items() if k not in UNUSED | LOSS}
    entries = [entry for entry in authors(TINY, older="older" in spelling) if entry.parts]
    return unspell(entries, read(folder))


@pytest.mark.parametrize(("anchor", "donor"), list(itertools.product(SPELLINGS, SPELLINGS)))
def test_any_two_spellings_merge_to_the_same_values_with_the_same_weights(
    anchor: str, donor: str, files: dict[str, list[Path]], tmp_path: Path
) -> None:
    first = lw.merge(files["transformers"][0], files["transformers"][1], output=tmp_path / "known")
    result = lw.merge(files[anchor][0], files[donor][1], output=tmp_path / "merged")
    assert [(layer.name, layer.weights) for layer in result.plan.layers] == [
        (layer.name, layer.weights) for layer in first.plan.layers
    ]
    known, found = by_part(tmp_path / "known", "transformers"), by_part(tmp_path / "merged", anchor)
    assert found.keys() == known.keys()
    assert all(bits(found[name]) == bits(known[name]) for name in known)
    own = network(1)
    assert not any(bits(found[name]) == bits(own[name]) for name in own if "class_pred" not in name)


def test_layers_are_counted_in_the_order_in_which_the_network_runs(
    files: dict[str, list[Path]],
) -> None:
    plan = lw.plan(*files["authors"])
    merged = list(dict.fromkeys(t.key.rpartition(".")[0] for t in plan.merged))
    keys: list[str] = []
    values = doubles(TINY)
    logits(values, feature_maps(values, images(), TINY, keys), TINY, keys)
    last_use = list(dict.fromkeys(key.rpartition(".")[0] for key in reversed(keys)))[::-1]
    runs = [module for module in last_use if module.startswith(HEAD)]
    classes = f"{HEAD}predictor.class_embed"  # transformers predicts classes after all masks
    assert [key for key in merged if key.startswith(HEAD)] == [
        *(module for module in runs if module != classes),
        classes,
    ]
    assert plan.layers[-1].weights == (1.0, 0.0)
