"""What a notebook shows of our values: short, since each of them knows of every tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
from stories import Models

import lwmm_hub as lw


@pytest.fixture(scope="module")
def parents(tiny: Models) -> list[lw.Checkpoint]:
    return [lw.resolve(str(folder)) for folder in (tiny.anchor, tiny.donor)]


def test_what_stands_alone_in_a_cell_is_one_line(
    parents: list[lw.Checkpoint], tmp_path: Path
) -> None:
    key_map = lw.match(*parents)
    plan = lw.plan_merge(key_map, parents)
    result = lw.merge(plan, output=tmp_path / "m")
    merged, kept = len(plan.merged), len(plan.kept)
    counts = f"{merged} parameters merged, {kept} tensors kept from the anchor"
    assert repr(plan) == f"<MergePlan of 2 models, linear layer weights: {counts}>"
    assert repr(result).startswith(f"<MergeResult {tmp_path / 'm'}: {counts}, ")
    assert repr(key_map).startswith(f"<KeyMap of 2 models: {merged} parameters shared in backbone,")
    anchor = parents[0]
    assert repr(anchor) == (
        f"<Checkpoint {anchor.label}: {len(anchor.entries)} tensors in safetensors, "
        f"{anchor.parameters} parameters>"
    )
    for value in (plan, result, key_map, anchor):
        assert len(repr(value)) < 300
        assert "\n" not in repr(value)
