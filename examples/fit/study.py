r"""Fitted layer weights against everything they have to beat; writes RESULTS.md from what it ran.

    study.py run --log LOG                                              # the street
    study.py run --log LOG --camvid DATA --weights DIR --code EDGENETS \
        [--nets ANCHOR+DONOR ...] [--variants] [--adapted]              # real nets, real scenes
    study.py report --log LOG [--log LOG...]               # writes results.jsonl and RESULTS.md

`run` appends a line to LOG for each result and skips what is there, so it can be stopped at any
time; `report` tells only what finished. See worlds.py for the data.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.utils import logging
from variants import DEFAULT, VARIANTS, varied
from worlds import World, camvid, street

import lwmm_hub as lw
from lwmm_hub.fitting.forwarding import OwnNet
from lwmm_hub.fitting.options import FitOptions
from lwmm_hub.fitting.parents import Group
from lwmm_hub.fitting.running import fit_layer_weights
from lwmm_hub.fitting.teaching import teach
from lwmm_hub.fitting.training import Course
from lwmm_hub.weight_table import WeightTable

HERE = Path(__file__).parent
CONTROLS = ("fit's mean in every layer", "fit shuffled over layers")
RATES = {"all": (1e-5, 1e-4, 1e-3), "norms": (1e-4, 1e-3, 1e-2)}
Rows = Mapping[str, tuple[float, ...]]


class Log:
    """Results on disk, a line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.lines = [json.loads(line) for line in lines]

    def has(self, world: str, seed: int, name: str) -> bool:
        return any((r["world"], r["seed"], r["name"]) == (world, seed, name) for r in self.lines)

    def find(self, world: str, seed: int, name: str) -> dict[str, Any]:
        return next(
            r for r in self.lines if (r["world"], r["seed"], r["name"]) == (world, seed, name)
        )

    def known(self, data: str, seed: int, of: Sequence[str]) -> float | None:
        """The score of the mean of these networks, where it was measured before."""
        for row in self.lines:
            if (row.get("data"), row["seed"], row.get("of")) == (data, seed, list(of)):
                return float(row["miou"])
        return None

    def add(self, world: str, seed: int, name: str, miou: float, **more: Any) -> None:
        row = {"world": world, "seed": seed, "name": name, "miou": miou, **more}
        self.lines.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{world}  seed {seed}  {name}: {miou:.2f}", flush=True)


def merged(world: World, rows: Rows) -> torch.nn.Module:
    """The merge with these layer weights, through the whole of `lw.merge`."""
    models = [model.reference for model in world.plan.models]
    with tempfile.TemporaryDirectory() as scratch:
        result = lw.merge(*models, weights=WeightTable(rows), output=Path(scratch) / "m")
        return world.load(result.folder)


def ramp_of(plan: lw.MergePlan) -> Rows:
    return {layer.name: layer.weights for layer in plan.layers}


def baselines(world: World, seed: int, log: Log) -> None:
    count = len(world.parents)
    names = ["anchor", *(f"donor {i}" if count > 2 else "donor" for i in range(1, count))]
    alone = [(name, [i]) for i, name in enumerate(names)]
    for name, which in [*alone, ("ensemble", list(range(count)))]:
        if log.has(world.name, seed, name):
            continue
        of = sorted(world.members[i] for i in which)
        score = log.known(world.data, seed, of)  # from a pair in the other order
        if score is None:
            score = world.score([world.parents[i] for i in which], which)
        log.add(world.name, seed, name, score, data=world.data, of=of)
    ramp = ramp_of(world.plan)
    even = dict.fromkeys(ramp, (1 / count,) * count)
    for name, rows in (("isotropic", even), ("ramp", ramp)):
        if not log.has(world.name, seed, name):
            log.add(world.name, seed, name, world.score([merged(world, rows)], [0]))


def fits(
    world: World, seed: int, log: Log, names: Sequence[str], budget: Mapping[str, Any]
) -> None:
    for name in names:
        if log.has(world.name, seed, name):
            continue
        began = time.monotonic()
        with varied(name) as options:
            chosen = {"seed": seed, **budget, **options}
            plan = fit_layer_weights(world.plan, world.images, states="", **world.fit, **chosen)
        seconds = time.monotonic() - began
        rows = ramp_of(plan)
        score = world.score([merged(world, rows)], [0])
        origin = dict(plan.weights_from)
        log.add(world.name, seed, name, score, seconds=seconds, rows=rows, origin=origin)


def controls(world: World, seed: int, log: Log) -> None:
    rows = log.find(world.name, seed, DEFAULT)["rows"]
    table = np.array(list(rows.values()))
    mean = np.tile(table.mean(0), (len(table), 1))
    mixed = np.random.default_rng(seed).permutation(table)
    for name, values in zip(CONTROLS, (mean, mixed), strict=True):
        if not log.has(world.name, seed, name):
            chosen = {k: tuple(v) for k, v in zip(rows, values.tolist(), strict=True)}
            log.add(world.name, seed, name, world.score([merged(world, chosen)], [0]))


def adapted(world: World, seed: int, log: Log, budget: Mapping[str, Any]) -> None:
    """The anchor trained on the same images with the same teacher, steps and stopping rule.

    Its learning rate is the best of three by the agreement on the images held back, which is what
    decides about a fit, too.
    """
    options = FitOptions(seed=seed, **budget)
    for what, rates in RATES.items():
        name = f"anchor adapted, {what if what == 'norms' else 'all parameters'}"
        if log.has(world.name, seed, name):
            continue
        began = time.monotonic()
        tries = [_adapt(world, options, what, rate) for rate in rates]
        agreement, rate, network = max(tries, key=lambda t: t[0])
        seconds = time.monotonic() - began
        score = world.score([network], [0])
        log.add(world.name, seed, name, score, seconds=seconds, rate=rate, agreement=agreement)


def _adapt(
    world: World, options: FitOptions, what: str, rate: float
) -> tuple[float, float, torch.nn.Module]:
    """(agreement held back, rate, network) of one training of the anchor."""
    import copy

    labels = world.fit.get("labels") or [
        tuple(p.config.id2label[i] for i in range(p.config.num_labels)) for p in world.parents
    ]
    nets = [
        OwnNet(copy.deepcopy(p).eval(), world.scores, tuple(names), "net")
        for p, names in zip(world.parents, labels, strict=True)
    ]
    numbers = [
        round(i * (len(world.images) - 1) / (options.limit - 1)) for i in range(options.limit)
    ]
    read = world.images.__getitem__
    lessons = list(teach(nets, read, numbers, options.threshold))
    models = len(world.parents)
    blend = SimpleNamespace(groups=(Group(0, (True,) * models),))
    course = Course(nets[0], blend, world.plan, lessons, read, options)  # type: ignore[arg-type]
    network = nets[0].network
    network.requires_grad_(what == "all")
    if what == "norms":
        for module in network.modules():
            if "norm" in type(module).__name__.lower():
                module.requires_grad_(True)
    chosen = [p for p in network.parameters() if p.requires_grad]
    adam = torch.optim.Adam(chosen, lr=rate)
    best, kept = course.agreement(), copy.deepcopy(network.state_dict())
    every = -(-options.steps // options.checks)
    for step in range(options.steps):
        adam.zero_grad()
        batch = course.batch(step)
        total = sum(course.weight_of(lesson) for lesson, _ in batch)
        for lesson, flip in batch:
            (course._loss(lesson, flip) / total).backward()
        adam.step()
        if (step + 1) % every == 0 or step + 1 == options.steps:
            agreement = course.agreement()
            if agreement > best:
                best, kept = agreement, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    return best, rate, network.eval()


def run(arguments: argparse.Namespace) -> None:
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    log = Log(arguments.log[0])
    for job in _jobs(arguments):
        job(log)


SIZES = (("1024x512", "512x256"), ("512x256", "1024x512"))
SMALL = {"limit": 60, "checks": 6}  # of the budget: whole runs have to end on two shared cores


def _jobs(arguments: argparse.Namespace) -> Iterator[Callable[[Log], None]]:
    """The most important first, so that a run that is stopped has told something."""

    def job(
        make: Callable[[], World], seed: int, names: Sequence[str], adapt: bool = False
    ) -> Callable[[Log], None]:
        def go(log: Log) -> None:
            world = make()
            baselines(world, seed, log)
            fits(world, seed, log, names, SMALL)
            if DEFAULT in names:
                controls(world, seed, log)
            if adapt:
                adapted(world, seed, log, SMALL)

        return go

    if arguments.camvid is None:
        worlds = [lambda s=seed: street(s) for seed in range(3)]  # type: ignore[misc]
        for seed, world in enumerate(worlds):
            yield job(world, seed, [DEFAULT])
        for seed, world in enumerate(worlds):
            yield job(world, seed, list(VARIANTS))
        for seed, world in enumerate(worlds):
            yield job(world, seed, [], True)
        return

    def nets(*names: str) -> Callable[[], World]:
        where = (arguments.camvid, arguments.weights, arguments.code)
        return lambda: camvid(names[0], names[1:], *where, (384, 512))

    for names in arguments.nets:
        every = names.split("+")
        if arguments.variants:
            yield job(nets(*every), arguments.seed, list(VARIANTS))
        yield job(nets(*every), arguments.seed, [DEFAULT], arguments.adapted)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument(
        "--log", type=Path, required=True, action="append", help="results, a line each"
    )
    parser.add_argument("--camvid", type=Path, help="folder of CamVid; without it the street runs")
    parser.add_argument("--weights", type=Path, help="folder of the EdgeNets files")
    parser.add_argument("--code", type=Path, help="a copy of the EdgeNets repository")
    parser.add_argument(
        "--nets",
        nargs="+",
        default=[f"{s}_city_{a}+{s}_city_{b}" for s in ("0.5", "1.0") for a, b in SIZES],
        metavar="ANCHOR+DONOR",
        help="their networks, by the names of the files",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the fits on CamVid")
    parser.add_argument("--variants", action="store_true", help="every variant, on CamVid, too")
    parser.add_argument("--adapted", action="store_true", help="the adapted anchor, on CamVid, too")
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments)
    else:
        from report import results

        found = {
            (line["world"], line["seed"], line["name"]): {
                k: v for k, v in line.items() if k != "rows"
            }
            for file in arguments.log
            for line in Log(file).lines
        }
        lines = list(found.values())
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (HERE / "results.jsonl").write_text(text, encoding="utf-8")
        (HERE / "RESULTS.md").write_text(results(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
