"""An order that only names suggest is told wherever it decides weights, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from enumerators import TINY, mit_nvlabs, write_pth, write_safetensors
from stories import Command

import lwmm_hub as lw

Tensors = dict[str, np.ndarray]

UNET = ("inc.conv", "down1.conv", "down2.conv", "up1.conv", "up2.conv", "outc.conv")
ODD = ("entrance.conv", "valley.conv", "ascent.conv")
SAID = "is guessed from their names and may be wrong"


def tensors(*layers: str, seed: int = 0) -> Tensors:
    random = np.random.default_rng(0)
    own = np.random.default_rng(seed)
    first = {f"{layer}.weight": random.standard_normal((8, 8)) for layer in layers}
    return {
        key: (value + 0.2 * own.standard_normal(value.shape)).astype(np.float32)
        for key, value in first.items()
    }


def pair(folder: Path, *layers: str, ending: str = "safetensors") -> list[Path]:
    write = write_pth if ending == "pth" else write_safetensors
    return [write(folder / f"{i}.{ending}", tensors(*layers, seed=i)) for i in (1, 2)]


def told(plan: lw.MergePlan) -> list[str]:
    return [text for text in plan.warnings if SAID in text]


@pytest.mark.parametrize("layers", [UNET, ODD], ids=["U-Net", "names of no kind"])
def test_plan_merge_and_card_say_that_an_order_is_guessed(
    layers: tuple[str, ...], lwmm: Command, tmp_path: Path
) -> None:
    files = pair(tmp_path, *layers)
    planned = lwmm("plan", *files)
    merged = lwmm("merge", *files, "-o", tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    for text in (planned.out + planned.err, merged.out + merged.err, card):
        assert SAID in " ".join(text.split())
    (said,) = told(lw.plan(*files))
    assert "of the layers (" in said
    for advice in ("a .pth file of 1,", "config.json", "--schedule isotropic", "--weights FILE"):
        assert advice in said


def test_a_file_that_keeps_an_order_is_believed(tmp_path: Path) -> None:
    assert told(lw.plan(*pair(tmp_path, *ODD))) != []
    plan = lw.plan(*pair(tmp_path, *ODD, ending="pth"))
    assert [layer.name for layer in plan.layers] == list(ODD)
    assert told(plan) == []


def test_where_the_order_decides_nothing_nothing_is_said(tmp_path: Path) -> None:
    files = pair(tmp_path, *ODD)
    assert told(lw.plan(*files, schedule="isotropic")) == []
    table = tmp_path / "weights.json"
    table.write_text('{"entrance": [0.7, 0.3], "valley": [0.6, 0.4], "ascent": [0.9, 0.1]}')
    assert told(lw.plan(*files, weights=table)) == []
    assert told(lw.plan(*files, schedule="cosine")) != []


def test_numbers_alone_are_no_guess(tmp_path: Path) -> None:
    assert told(lw.plan(*pair(tmp_path, *(f"blocks.{i}.conv" for i in (0, 2, 10))))) == []


def test_of_a_model_that_tables_know_only_the_rest_is_guessed(tmp_path: Path) -> None:
    """One layer behind the tables has no order among its like; two have."""
    backbone = {e.key: np.ones(e.shape, np.float32) for e in mit_nvlabs(TINY, prefix="backbone.")}
    for extra, expected in (((), 0), (("a.fuse",), 0), (("a.fuse", "b.score"), 1)):
        files = [
            write_safetensors(tmp_path / f"{i}.safetensors", backbone | tensors(*extra, seed=i))
            for i in (1, 2)
        ]
        said = told(lw.plan(*files))
        assert len(said) == expected
        assert all("of 2 layers (a.fuse to b.score)" in text for text in said)


def test_two_streams_alike_are_no_guess(tmp_path: Path) -> None:
    both = {
        e.key: np.ones(e.shape, np.float32)
        for prefix in ("rgb.", "depth.")
        for e in mit_nvlabs(TINY, prefix=prefix)
    }
    files = [write_safetensors(tmp_path / f"{i}.safetensors", both) for i in (1, 2)]
    assert told(lw.plan(*files)) == []
