"""`make street`: train the world's models, each from its common ancestor.

    .venv/bin/python examples/street/workbench.py                # all of them into street/
    .venv/bin/python examples/street/workbench.py --only studio  # one, and the ancestor it needs
    .venv/bin/python examples/street/workbench.py --commit       # then halve some into models/
    .venv/bin/python examples/street/workbench.py --seed 1 --output street/seed-1

What is in the output folder already is not trained again. Every seed is fixed and only
deterministic kernels are used, on one thread: the same machine and versions give the same bytes.
"""

from __future__ import annotations

import argparse
import functools
import math
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging
from world.adapting import STRATEGIES, Batch, cross_entropy
from world.data import TRAIN_IDS, draw, segments_of
from world.labels import COARSE, DETAIL, FINE, THINGS, LabelSet
from world.networks import NETWORKS, inherit, pixels_of, processor

HERE = Path(__file__).parent
THREADS = 1  # fixed: another number of threads adds up in another order
BATCH = 8
SCENES = 600  # drawn for each domain, the same for all that are trained on it
REPORT = 50
NAMES = {number: name for name, number in TRAIN_IDS.items()}


MIT, SWIN = "mit-ancestor", "swin-ancestor"


class Course(NamedTuple):
    """One training."""

    name: str
    seed: int
    network: str = "segformer"
    labels: LabelSet = FINE
    domain: str = "arcade"
    steps: int = 450
    ancestor: str | None = MIT
    strategy: str = "source only"  # of adaptation to `target`, where there is one
    target: str | None = None
    rate: float = 1e-3
    classifier_rate: float = 1e-2
    kept: tuple[int, ...] = ()  # steps after which a checkpoint is saved too


def _ancestor(name: str, seed: int, network: str, steps: int) -> Course:
    rates = {"rate": 2e-3, "classifier_rate": 2e-3}
    return Course(name, seed, network, DETAIL, "plain", steps, ancestor=None, **rates)


def _adapted(name: str, seed: int, strategy: str, **others: Any) -> Course:
    return Course(name, seed, **others, strategy=strategy, target="town")


COURSES = {
    course.name: course
    for course in (
        _ancestor(MIT, 1, "segformer", 1400),
        Course("source-only", 11),
        _adapted("self-training", 15, "self-training", kept=(250, 350)),
        _adapted("studio", 16, "self-training", labels=COARSE, domain="studio"),
        _adapted("minimum-entropy", 12, "minimum entropy"),
        _adapted("maximum-squares", 13, "maximum squares"),
        _adapted("adversarial", 14, "adversarial"),
        _adapted("wide-head", 17, "self-training", network="wide segformer"),
        _ancestor(SWIN, 2, "upernet", 700),
        Course("panoptic", 21, "mask2former", steps=450, ancestor=SWIN, classifier_rate=2e-3),
        _adapted("upernet", 22, "self-training", network="upernet", steps=300, ancestor=SWIN),
        Course("studio-source-only", 18, labels=COARSE, domain="studio"),
    )
}
COMMITTED = ("self-training", "studio", "panoptic", "upernet")


class Drawn(NamedTuple):
    """A domain's training scenes."""

    images: Tensor  # uint8, (n, height, width, 3)
    things: np.ndarray  # uint8, (n, height, width)
    segments: list[Any]  # of each: ids (height, width) and what each segment is


@functools.cache
def drawn(domain: str, count: int) -> Drawn:
    found = draw(domain, "train", count, 0)
    images = torch.from_numpy(np.stack([one.image for one in found]))
    things = np.stack([one.things for one in found])
    return Drawn(images, things, [segments_of(one) for one in found])


class Sampler:
    """Batches of one training, mirrored at random."""

    def __init__(self, course: Course) -> None:
        self.rng = np.random.default_rng(course.seed)
        self.source = drawn(course.domain, SCENES)
        self.target = drawn(course.target, SCENES) if course.target else None
        self.labels = torch.from_numpy(course.labels.lookup(THINGS)[self.source.things]).long()
        self.weights = _class_weights(self.labels, len(course.labels.classes))

    def pixels(self, images: Tensor) -> tuple[Tensor, np.ndarray, bool]:
        chosen = self.rng.choice(len(images), BATCH, replace=False)
        pixels, mirrored = pixels_of(images[chosen]), bool(self.rng.random() < 0.5)
        return pixels.flip(-1) if mirrored else pixels, chosen, mirrored

    def labelled(self) -> tuple[Tensor, Tensor]:
        """Pixels, and their labels at half the size."""
        pixels, chosen, mirrored = self.pixels(self.source.images)
        labels = self.labels[chosen].flip(-1) if mirrored else self.labels[chosen]
        return pixels, labels[:, ::2, ::2]

    def segmented(self, labels: LabelSet) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Pixels, and for each image the masks of its segments and their classes."""
        pixels, chosen, mirrored = self.pixels(self.source.images)
        masks, classes = [], []
        for number in chosen.tolist():
            ids, segments = self.source.segments[number]
            ids = ids[::2, ::-2] if mirrored else ids[::2, ::2]
            there = [s for s in segments if not s["iscrowd"] and (ids == s["id"]).any()]
            masks.append(torch.from_numpy(np.stack([ids == s["id"] for s in there])).float())
            classes.append(
                torch.tensor([labels.classes.index(NAMES[s["category_id"]]) for s in there])
            )
        return pixels, masks, classes


def train(course: Course, output: Path) -> None:
    """One training with AdamW: a short warm-up, then a cosine down to nothing."""
    torch.manual_seed(course.seed)
    model = NETWORKS[course.network](course.labels)
    if course.ancestor is not None:
        before = COURSES[course.ancestor]
        weights = model_weights(output / before.name, before)
        inherit(model, course.network, weights, before.network)
    sampler = Sampler(course)
    strategy = STRATEGIES[course.strategy](
        model, lambda pixels: model(pixels).logits, len(course.labels.classes), course.steps
    )
    optimizer = torch.optim.AdamW(_groups(model, course), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: _rate(k, course.steps))
    model.train()
    began = time.monotonic()
    for step in range(course.steps):
        if course.network == "mask2former":
            pixels, masks, classes = sampler.segmented(course.labels)
            loss = model(pixels, mask_labels=masks, class_labels=classes).loss.sum()
        else:
            pixels, labels = sampler.labelled()
            logits = model(pixels).logits
            loss = cross_entropy(logits, labels, sampler.weights)
            if sampler.target is not None:
                target, _, _ = sampler.pixels(sampler.target.images)
                loss = loss + strategy.loss(
                    Batch(pixels, labels, logits, target, sampler.weights), step
                )
        optimizer.zero_grad()
        loss.backward()
        if course.network == "mask2former":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if sampler.target is not None:
            strategy.after(step)
        if (step + 1) % REPORT == 0:
            done = f"{course.name:18} step {step + 1:5}/{course.steps}"
            print(f"{done}  loss {loss.item():7.3f}  {time.monotonic() - began:5.0f} s", flush=True)
        if step + 1 in course.kept:
            save(model, course, output / f"{course.name}-step-{step + 1}")
    save(model, course, output / course.name)


def _class_weights(labels: Tensor, classes: int) -> Tensor:
    """Towards the root of how rare a class is: poles and people are few pixels of a street."""
    share = torch.bincount(labels.flatten(), minlength=classes) / labels.numel()
    return (1 / (classes * share.clamp(min=1e-4))).sqrt().clamp(0.5, 3.0)


def _groups(model: torch.nn.Module, course: Course) -> list[dict[str, Any]]:
    """The classifier may learn faster: when it is new, the rest need not come to meet it."""
    named = list(model.named_parameters())
    head = [p for name, p in named if "classifier" in name or "class_predictor" in name]
    rest = [p for name, p in named if "classifier" not in name and "class_predictor" not in name]
    return [{"params": rest, "lr": course.rate}, {"params": head, "lr": course.classifier_rate}]


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 30)
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-segmentation
tags:
- {network}
- synthetic
---

# {name}: a toy network for drawn streets

{parameters:,} parameters, {count} classes: {classes}.

Trained by `examples/street/workbench.py` of lwmm-hub (course `{name}`, seed {seed}, {steps} steps
of {batch} images) on drawn scenes of {width} x {height} pixels of the domain `{domain}`{adapted},
starting from {ancestor}. It knows no photographs: its only use is in examples and tests.
"""


def save(model: Any, course: Course, folder: Path) -> None:
    model.save_pretrained(folder)
    processor(course.network).save_pretrained(folder)
    adapted = f", adapted to unlabelled `{course.target}` by {course.strategy}"
    height, width = drawn(course.domain, SCENES).images.shape[1:3]
    card = CARD.format(
        **course._asdict() | {"network": model.config.model_type},
        parameters=model.num_parameters(),
        count=len(course.labels.classes),
        classes=", ".join(course.labels.classes),
        batch=BATCH,
        width=width,
        height=height,
        adapted=adapted if course.target else "",
    ).replace("starting from None", "starting from random weights")
    (folder / "README.md").write_text(card, encoding="utf-8")


def model_weights(folder: Path, course: Course) -> dict[str, Tensor]:
    """The weights of a model that was trained before, under its class's own names."""
    return type(NETWORKS[course.network](course.labels)).from_pretrained(folder).state_dict()


def commit(output: Path, models: Path) -> None:
    """Copy the committed models in half precision."""
    for name in COMMITTED:
        folder = models / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(output / name, folder)
        weights = load_file(folder / "model.safetensors")
        halved = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
        print(f"{name:18} {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.2f} MB")


def needed(names: list[str]) -> list[Course]:
    """Courses in an order in which each finds its ancestor."""
    wanted = set(names) | {COURSES[name].ancestor for name in names}
    return [course for course in COURSES.values() if course.name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("street"), help="folder of the models")
    parser.add_argument("--only", nargs="+", choices=COURSES, default=list(COURSES))
    parser.add_argument("--seed", type=int, default=0, help="another one trains other models")
    parser.add_argument("--steps", type=float, default=1.0, help="share of the steps, for a trial")
    parser.add_argument("--commit", action="store_true", help="write the committed ones to models/")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a tenth, changes nothing
    for course in needed(arguments.only):
        if (arguments.output / course.name / "model.safetensors").is_file():
            print(f"{course.name:18} is there already")
            continue
        seed, steps = course.seed + 100 * arguments.seed, round(course.steps * arguments.steps)
        train(course._replace(seed=seed, steps=steps), arguments.output)
    if arguments.commit:
        commit(arguments.output, HERE / "models")


if __name__ == "__main__":
    main()
