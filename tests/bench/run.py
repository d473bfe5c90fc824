"""Measure `lwmm-hub merge` against a ten-line torch script and against moving the bytes.

`make bench`. Whole processes: wall time, CPU time (user + system) and peak memory of each, as the
system accounts for them (`os.wait4`). They take turns, so that a busy machine is busy for
all; medians; ratios are made within one run. This process imports nothing but the standard
library, since a child's peak memory begins at its parent's.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MERGE = str(Path(sysconfig.get_path("scripts")) / "lwmm-hub")
OURS, SCRIPT, MOVE = "lwmm-hub merge", "ten-line script", "cat + dd"
FLOOR = "cat + dd + sha256"  # what cannot be left out: read all, write the result, hash it
LARGE = 1_000_000_000
WEIGHTS = {"safetensors": "model.safetensors", "pth": "pytorch_model.bin"}


@dataclass(frozen=True)
class Case:
    """Models to merge: one of `models.SIZES`, their dtype, the classes of each."""

    size: str
    dtype: str
    classes: tuple[int, ...]
    format: str = "safetensors"  # or pth: a zip archive of torch.save

    @property
    def name(self) -> str:
        kind = "" if self.format == "safetensors" else f" {self.format}"
        return f"{self.size}{kind}, {self.dtype}, {' x '.join(map(str, self.classes))} classes"


CASES = (
    Case("B5", "float32", (19, 19)),
    Case("B5", "float32", (19, 150)),
    Case("B5", "float32", (19, 150, 19, 150)),
    Case("B5", "bfloat16", (19, 150)),
    Case("B5", "float16", (19, 150)),
    Case("1.2 GB", "float32", (19, 150)),
    Case("1.2 GB", "bfloat16", (19, 150)),
    Case("1.2 GB", "float16", (19, 150)),
    Case("1.2 GB", "float32", (19, 150), "pth"),
)


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    wall: float
    cpu: float
    memory: float  # MB, peak


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a process to its end; nothing that another one left is waiting for the disk then."""
    os.sync()
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace")
            sys.exit(f"{' '.join(command)} failed:\n{text}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        statistics.median(c.wall for c in costs),
        statistics.median(c.cpu for c in costs),
        statistics.median(c.memory for c in costs),
    )


def commands(folder: Path, models: int, format: str) -> dict[str, tuple[Sequence[str], Path]]:
    """What is compared: name -> (command, what it leaves behind)."""
    inputs = [str(folder / str(i)) for i in range(models)]
    files = [f"{path}/{WEIGHTS[format]}" for path in inputs]
    merged, script, moved = (folder / name for name in ("merged", "script", "moved"))
    move = 'output=$1; first=$2; shift; cat "$@" > /dev/null'
    move += ' && dd if="$first" of="$output" bs=1M conv=fsync status=none'
    hashed = "import hashlib, sys; file, found = open(sys.argv[1], 'rb'), hashlib.sha256(); "
    hashed += "[found.update(part) for part in iter(lambda: file.read(1 << 20), b'')]"
    floor = f'{move} && "$python" -c "{hashed}" "$output"'
    return {
        OURS: ([MERGE, "merge", *inputs, "-o", str(merged), "-q"], merged),
        SCRIPT: ([sys.executable, str(HERE / "ten_lines.py"), *files, str(script)], script),
        MOVE: (["sh", "-c", move, "sh", str(moved), *files], moved),
        FLOOR: (["sh", "-c", f"python={sys.executable}; {floor}", "sh", str(moved), *files], moved),
    }


def generate(folder: Path, case: Case) -> int:
    """Write the models of a case; bytes of all inputs, which the page cache holds then."""
    classes = [str(number) for number in case.classes]
    program = [sys.executable, str(HERE / "models.py"), str(folder), case.size, case.dtype]
    subprocess.run([*program, case.format, *classes], check=True)
    return sum(path.stat().st_size for path in folder.glob(f"*/{WEIGHTS[case.format]}"))


def compare(case: Case, repeats: int, scratch: Path) -> list[str]:
    """Measure one case; rows of the table and, after them, what was (not) met."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        size = generate(folder, case)
        programs = commands(folder, len(case.classes), case.format)
        costs: dict[str, list[Cost]] = {program: [] for program in programs}
        warm_up = 1 if repeats > 1 else 0
        for repeat in range(repeats + warm_up):
            for program, (command, left) in programs.items():
                cost = measure(command)
                if repeat >= warm_up:
                    costs[program].append(cost)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    found = {program: median(row) for program, row in costs.items()}
    script = found[SCRIPT]
    spread = {program: [c.wall for c in row] for program, row in costs.items()}
    for program, cost in found.items():
        low, high = min(spread[program]), max(spread[program])
        say(
            f"| {case.name} | {program} | {cost.wall:.2f} ({low:.2f} to {high:.2f}) "
            f"| {cost.cpu:.2f} | {cost.memory:.0f} | {cost.wall / script.wall:.2f} "
            f"| {cost.cpu / script.cpu:.2f} |"
        )
    return judge(case, found, size)


def judge(case: Case, found: Mapping[str, Cost], size: int) -> list[str]:
    """The targets, one line each."""
    ours, script, move = (found[program] for program in (OURS, SCRIPT, MOVE))
    half = case.dtype == "float16"
    memory = ("peak memory", ours.memory, 100, " MB")
    targets = [
        ("CPU of the script's", ours.cpu / script.cpu, 0.40 if half else 0.30, "x"),
        ("wall of the script's", ours.wall / script.wall, 0.40 if half else 0.35, "x"),
        memory,
    ]
    if case.format == "pth":  # its tensors lie in another order than they are written
        targets = [memory]
    elif size >= LARGE:
        targets.append(("wall of cat + dd", ours.wall / move.wall, 2.5, "x"))
    return [
        f"{'met   ' if value <= limit else 'MISSED'}  {case.name}: {what} "
        f"{value:.3g}{unit} (at most {limit:g}{unit})"
        for what, value, limit, unit in targets
    ]


def plan_on_a_hub(repeats: int, scratch: Path) -> list[str]:
    """`lwmm-hub plan` of two B5 on the test Hub, each time with an empty cache."""
    case = Case("B5", "float32", (19, 150))
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        size = generate(Path(name), case)
        server = subprocess.Popen(
            [sys.executable, str(HERE / "serve.py"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdin is not None
        assert server.stdout is not None
        ready: dict[str, Any] = json.loads(server.stdout.readline())
        costs, sent = [], 0
        for i in range(repeats):
            environment = {**ready["environment"], "HF_HOME": f"{name}/home-{i}"}
            command = [MERGE, "plan", *ready["models"], "--json"]
            costs.append(measure(command, environment))
            server.stdin.write("\n")
            server.stdin.flush()
            sent = int(server.stdout.readline())
        server.stdin.close()
        server.wait()
    cost = median(costs)
    say(
        f"\n`lwmm-hub plan` of two B5 on a Hub (loopback, empty cache): {cost.wall:.2f} s wall, "
        f"{cost.cpu:.2f} s CPU, {cost.memory:.0f} MB, {sent} of {size} bytes "
        f"({sent / size:.3%})."
    )
    share = sent / size
    return [
        f"{'met   ' if cost.wall < 1 else 'MISSED'}  plan: {cost.wall:.2f} s, imports and all "
        "(under 1 s after import)",
        f"{'met   ' if share < 0.01 else 'MISSED'}  plan: {share:.3%} of the bytes (under 1 %)",
    ]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def compile_package() -> None:
    """Compile our modules, as an installer does for every package.

    The other programs' libraries were installed compiled; ours is linked, and where
    PYTHONDONTWRITEBYTECODE is set each run would compile it anew.
    """
    where = "import lwmm_hub; print(lwmm_hub.__path__[0])"
    found = subprocess.run(
        [sys.executable, "-c", where], check=True, capture_output=True, text=True
    )
    compileall.compile_dir(found.stdout.strip(), quiet=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="B5 only, once")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name has this in it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's)")
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else arguments.repeats
    cases = [case for case in CASES if not (arguments.quick and case.size != "B5")]
    cases = [case for case in cases if (arguments.only or "") in case.name]
    say(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}; median of {repeats}, "
        "interleaved, warm page cache\n"
    )
    say("| models | program | wall s (min to max) | CPU s | peak MB | wall/script | CPU/script |")
    say("|---|---|---|---|---|---|---|")
    verdicts = []
    compile_package()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="lwmm-bench-") as scratch:
        for case in cases:
            verdicts += compare(case, repeats, Path(scratch))
        if not arguments.only:
            verdicts += plan_on_a_hub(repeats, Path(scratch))
    say("\nTargets\n")
    for line in verdicts:
        say(f"    {line}")


if __name__ == "__main__":
    main()
