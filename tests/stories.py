"""The command line as users meet it, in a process of its own or in this one, on tiny models."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from enumerators import (
    TINY,
    ancestor,
    finetuned,
    spell_nvlabs,
    with_classes,
    write_pth,
    write_transformers_folder,
)

PROGRAM = Path(sys.executable).parent / "lwmm-hub"
# what the surroundings of a test run may set, and what would change how results are printed
LOUD = (
    "AI_AGENT",
    "AGENT",
    "CLAUDECODE",
    "CLAUDE_CODE",
    "CODEX_SANDBOX",
    "CURSOR_AGENT",
    "GEMINI_CLI",
    "NO_COLOR",
    "HF_DEBUG",
)


class Finished(NamedTuple):
    """A run that has ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Finished]


def quiet_environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in LOUD} | more


def run(*arguments: str | Path, cwd: Path, **environment: str) -> Finished:
    """`lwmm-hub` in a process of its own."""
    done = subprocess.run(
        [PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env=quiet_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def lwmm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`lwmm-hub` in this process, in an empty folder of its own."""
    from lwmm_hub.cli.commands import run as run_here

    for name in LOUD:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: str | Path) -> Finished:
        capsys.readouterr()
        code = run_here([str(argument) for argument in arguments])
        return Finished(code, *capsys.readouterr())

    return call


class Models(NamedTuple):
    """Tiny SegFormers: three of one lineage with other label sets, a stranger, two `.pth` files."""

    anchor: Path
    donor: Path
    third: Path
    stranger: Path
    pth: Path
    wrapped_pth: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    start = ancestor(TINY, 1)
    lineage = [with_classes(finetuned(start, i), 5 + i, i) for i in range(3)]
    return Models(
        write_transformers_folder(folder / "city", lineage[0], TINY),
        write_transformers_folder(folder / "rain", lineage[1], TINY),
        write_transformers_folder(folder / "night", lineage[2], TINY),
        write_transformers_folder(folder / "stranger", ancestor(TINY, 99), TINY),
        write_pth(folder / "dusk.pth", spell_nvlabs(lineage[1], TINY)),
        write_pth(folder / "dawn.pth", spell_nvlabs(lineage[2], TINY), wrapper="state_dict"),
    )


def everything_below(folder: Path) -> dict[str, int]:
    """Every file and folder, hidden ones included, with its time of change."""
    return {
        str(path.relative_to(folder)): path.lstat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    } | {f"{path.relative_to(folder)}/": 0 for path in folder.rglob("*") if path.is_dir()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_complete(folder: Path) -> dict[str, str]:
    """Everything the manifest speaks of is there and is what it says; returns the checksums."""
    manifest = json.loads((folder / "lwmm_manifest.json").read_text("utf-8"))
    files = manifest["output"]["files"]
    found = {name: sha256(folder / name) for name in files}
    assert found == {name: file["sha256"] for name, file in files.items()}
    for name in ("README.md", "layer_weights.svg", "lwmm_recipe.yaml", "config.json"):
        assert (folder / name).stat().st_size > 0
    return found


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
