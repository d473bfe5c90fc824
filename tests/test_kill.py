"""Runs that are killed, interrupted or meet each other: the folder is the old one or complete."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from enumerators import SegformerSize, ancestor, finetuned, write_transformers_folder
from stories import (
    PROGRAM,
    Command,
    Models,
    assert_complete,
    everything_below,
    leftovers,
    quiet_environment,
    run,
)

# about 60 MB, so that reading, adding and writing take a moment
MIDDLE = SegformerSize(depths=(1, 1, 4, 2), widths=(64, 128, 320, 512))
POINTS = 20


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("middle")
    start = ancestor(MIDDLE, 3)
    city = write_transformers_folder(folder / "city", start, MIDDLE)
    rain = write_transformers_folder(folder / "rain", finetuned(start, 1), MIDDLE)
    assert 55e6 < (city / "model.safetensors").stat().st_size < 110e6
    return city, rain


def start_merge(models: tuple[Path, ...], folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, "merge", *models, "-o", "out", *more],
        cwd=folder,
        env=quiet_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_work(process: subprocess.Popen[str], folder: Path) -> float:
    """Wait until the run has made its temporary folder; returns the seconds since then."""
    known = set(leftovers(folder))
    while process.poll() is None:
        if set(leftovers(folder)) - known:
            return time.monotonic()
        time.sleep(0.001)
    return time.monotonic()


@pytest.fixture(scope="module")
def expected(
    middle: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], dict[str, str], float]:
    """Checksums of the old (isotropic) and the new (linear) merge, and how long the work takes."""
    folder = tmp_path_factory.mktemp("expected")
    assert run("merge", *middle, "-o", "out", "--schedule", "isotropic", cwd=folder).code == 0
    old = assert_complete(folder / "out")
    shutil.rmtree(folder / "out")
    process = start_merge(middle, folder)
    begun = wait_for_work(process, folder)
    process.communicate()
    seconds = time.monotonic() - begun
    assert process.returncode == 0
    new = assert_complete(folder / "out")
    assert old != new
    return old, new, seconds


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_is_killed_leaves_the_old_folder_or_the_whole_new_one(
    overwrite: bool,
    middle: tuple[Path, Path],
    expected: tuple[dict[str, str], dict[str, str], float],
    tmp_path: Path,
) -> None:
    old, new, seconds = expected
    out = tmp_path / "out"
    more = ["--overwrite"] if overwrite else []
    if overwrite:
        assert run("merge", *middle, "-o", "out", "--schedule", "isotropic", cwd=tmp_path).code == 0
    points = random.Random(2409 + overwrite)
    killed = 0
    for point in range(3 * POINTS):
        if killed == POINTS:
            break
        before = assert_complete(out) if out.exists() else None
        process = start_merge(middle, tmp_path, *more)
        if point % 4 == 0:  # anywhere, from the start of Python on
            time.sleep(points.uniform(0, 0.5))
        else:  # while it works; the last tenth is where folders are moved
            wait_for_work(process, tmp_path)
            time.sleep(seconds * points.uniform(0, 1.0))
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed += 1
        else:  # the kill came too late: this machine is faster than it was
            assert process.returncode == 0
            seconds *= 0.9
        if out.exists():
            found = assert_complete(out)
            assert found == new or found == before == old
        else:
            assert not overwrite
        # a next run that finishes, whatever state it starts from
        if not overwrite and out.exists():
            shutil.rmtree(out)
        if point % 5 == 4:
            done = run("merge", *middle, "-o", "out", *more, cwd=tmp_path)
            assert (done.code, done.err) == (0, "")
            assert assert_complete(out) == new
            assert leftovers(tmp_path) == []
            if overwrite:
                again = run(
                    "merge", *middle, "-o", "out", "--schedule", "isotropic", "--overwrite",
                    cwd=tmp_path,
                )  # fmt: skip
                assert again.code == 0
            else:
                shutil.rmtree(out)
    assert killed == POINTS


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_is_interrupted_exits_130_and_leaves_nothing(
    overwrite: bool,
    middle: tuple[Path, Path],
    expected: tuple[dict[str, str], dict[str, str], float],
    tmp_path: Path,
) -> None:
    old, new, seconds = expected
    more = ["--overwrite"] if overwrite else []
    if overwrite:
        assert run("merge", *middle, "-o", "out", "--schedule", "isotropic", cwd=tmp_path).code == 0
    points = random.Random(130)
    interrupted = 0
    for _ in range(12):
        if interrupted == 5:
            break
        before = everything_below(tmp_path)
        process = start_merge(middle, tmp_path, *more)
        wait_for_work(process, tmp_path)
        time.sleep(seconds * points.uniform(0, 0.7))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        if process.returncode == 130:
            interrupted += 1
            assert (out, err.strip()) == ("", "lwmm-hub: interrupted")
            if not overwrite and not (tmp_path / "out").exists():
                assert everything_below(tmp_path) == before
        else:
            assert process.returncode == 0
            seconds *= 0.7
        assert leftovers(tmp_path) == []
        if (tmp_path / "out").exists():  # the old one, or it was finished just before
            assert assert_complete(tmp_path / "out") in (old, new)
        if not overwrite:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert interrupted == 5


def test_an_interrupted_run_takes_the_folders_it_made_along(
    middle: tuple[Path, Path], tmp_path: Path
) -> None:
    process = start_merge(middle, tmp_path, "-o", "deep/er/out")
    while not (tmp_path / "deep/er").is_dir():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert everything_below(tmp_path) == {}


@pytest.mark.parametrize("overwrite", [False, True])
def test_runs_at_the_same_time_do_not_destroy_each_other(
    overwrite: bool, middle: tuple[Path, Path], tmp_path: Path
) -> None:
    more = ["--overwrite"] if overwrite else []
    schedules = ("linear", "isotropic", "cosine")
    runs = [start_merge(middle, tmp_path, "--schedule", s, *more) for s in schedules]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in runs]
    codes = sorted(code for _, _, code in ended)
    assert codes == ([0, 0, 0] if overwrite else [0, 1, 1]), ended
    for _, err, code in ended:
        if code:
            assert "out was written by another run" in err or "out exists already" in err
            assert err.count("\n") == 1
    assert_complete(tmp_path / "out")
    assert leftovers(tmp_path) == []
    if not overwrite:  # the folder is the one of the run that says so
        winner = schedules[[code for _, _, code in ended].index(0)]
        assert f"schedule: {winner}" in (tmp_path / "out/lwmm_recipe.yaml").read_text()


def test_a_run_leaves_the_folder_of_another_one_that_works(
    tiny: Models, lwmm: Command, tmp_path: Path
) -> None:
    fcntl = pytest.importorskip("fcntl")
    here = tmp_path / "here"
    busy, left = here / ".merged.lwmm-0123.tmp", here / ".merged.lwmm-4567.tmp"
    others = here / ".merged2.lwmm-89.tmp"
    for folder in (busy, left, others):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    descriptor = os.open(busy, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert lwmm("merge", tiny.anchor, tiny.donor).code == 0
        assert leftovers(here) == [busy.name, others.name]
        assert (busy / "model.safetensors").read_bytes() == b"half"
    finally:
        os.close(descriptor)


def test_a_folder_that_was_set_aside_comes_back(
    tiny: Models, lwmm: Command, tmp_path: Path
) -> None:
    """Where folders cannot be swapped, a run may be killed between two renames."""
    here = tmp_path / "here"
    assert lwmm("merge", tiny.anchor, tiny.donor).code == 0
    before = assert_complete(here / "merged")
    (here / "merged").rename(here / ".merged.lwmm-0123.old")
    refused = lwmm("merge", tiny.anchor, tiny.third)
    assert refused.code == 1
    assert "merged exists already" in refused.err
    assert assert_complete(here / "merged") == before
    assert leftovers(here) == []


@pytest.mark.parametrize("fails", [None, 1, 2])
def test_without_a_swap_of_folders_the_old_one_is_set_aside(
    fails: int | None,
    tiny: Models,
    lwmm: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lwmm_hub.writing import folder

    here = tmp_path / "here"
    assert lwmm("merge", tiny.anchor, tiny.donor).code == 0
    old = assert_complete(here / "merged")
    monkeypatch.setattr(folder, "_exchange", lambda one, other: False)
    calls, rename = [], os.rename

    def breaking(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == fails:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", breaking)
    found = lwmm("merge", tiny.anchor, tiny.third, "--overwrite")
    monkeypatch.setattr(os, "rename", rename)
    if fails is None:
        assert found.code == 0
        assert assert_complete(here / "merged") != old
        assert leftovers(here) == []
        return
    assert found.code == 130
    assert lwmm("merge", tiny.anchor, tiny.third).code == 1  # exists already: it came back
    assert assert_complete(here / "merged") == old
    assert leftovers(here) == []


def test_nothing_is_synced_after_it_has_its_name(
    tiny: Models, lwmm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and the folder are synced before the folder gets its name, its parent after."""
    events: list[str] = []
    rename, fsync = os.rename, os.fsync

    def noted_rename(source: Path, target: Path) -> None:
        events.append("named")
        rename(source, target)

    def noted_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc")
    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    assert lwmm("merge", tiny.anchor, tiny.donor).code == 0
    at = events.index("named")
    assert events[at + 1 :] == ["here"]
    files = {path.name for path in (tmp_path / "here" / "merged").iterdir()}
    assert files <= set(events[:at])
