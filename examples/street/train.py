"""Train the two models of this example from one common ancestor, reproducibly.

    .venv/bin/python examples/street/train.py                      # rewrites anchor/ and donor/
    .venv/bin/python examples/street/train.py --output elsewhere   # leaves them alone

1. The ancestor learns flat drawings in random colours in the finer label set, from random weights.
2. `anchor` goes on from it by day in the label set *city*, with a new classifier.
3. `donor` goes on from it by rainy night in the label set *detail*, with a new classifier.

All seeds are fixed and only deterministic kernels are used: the same machine and the same versions
give the same bytes again. Other machines or versions differ in the last bits of their sums, and
the weights drift apart from there.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from transformers import SegformerForSemanticSegmentation
from world.labels import CITY, DETAIL, THINGS, LabelSet
from world.looks import DOMAINS
from world.networks import Weights, inherit, pixels_of, processor, segformer
from world.scenes import HEIGHT, WIDTH, scenes
from world.scoring import score, streets

HERE = Path(__file__).parent
THREADS = 1  # fixed: another number of threads adds up in another order
BATCH = 16


class Course(NamedTuple):
    """One training: what is seen, in which label set, and for how long."""

    name: str
    labels: LabelSet
    domain: str
    seed: int
    scenes: int
    steps: int
    learning_rate: float
    classifier_rate: float


ANCESTOR = Course("ancestor", DETAIL, "plain", 1, 2000, 1400, 2e-3, 2e-3)
ANCHOR = Course("anchor", CITY, "day", 2, 1200, 700, 1e-3, 1e-2)
DONOR = Course("donor", DETAIL, "night", 3, 1200, 700, 1e-3, 1e-2)


def train(course: Course, ancestor: Weights | None = None) -> SegformerForSemanticSegmentation:
    """One training with AdamW: a short warm-up, then a cosine down to nothing."""
    torch.manual_seed(course.seed)
    rng = np.random.default_rng(course.seed)
    model = segformer(course.labels)
    if ancestor is not None:
        inherit(model, "segformer", ancestor, "segformer")
    images, things = scenes(DOMAINS[course.domain], course.scenes, course.seed)
    truth = torch.from_numpy(course.labels.lookup(THINGS)[things]).long()
    optimizer = torch.optim.AdamW(_groups(model, course), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: _rate(k, course.steps))
    model.train()
    for step in range(course.steps):
        chosen = rng.choice(course.scenes, BATCH, replace=False)
        pixels, target = pixels_of(torch.from_numpy(images[chosen])), truth[chosen]
        if rng.random() < 0.5:
            pixels, target = pixels.flip(-1), target.flip(-1)
        logits = model(pixels).logits
        # Half the image's size, twice the logits': a finer loss costs more and teaches no more.
        target = target[:, ::2, ::2]
        logits = functional.interpolate(logits, size=target.shape[1:], mode="bilinear")
        loss = functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            done = f"{course.name:9}step {step + 1:5}/{course.steps}"
            print(f"{done}  loss {loss.item():.3f}", flush=True)
    return model.eval()


def _groups(model: SegformerForSemanticSegmentation, course: Course) -> list[dict[str, object]]:
    """The classifier may learn faster: when it is new, the rest need not come to meet it."""
    head = list(model.decode_head.classifier.parameters())
    rest = [p for name, p in model.named_parameters() if "classifier" not in name]
    return [
        {"params": rest, "lr": course.learning_rate},
        {"params": head, "lr": course.classifier_rate},
    ]


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 50)
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def cosines(anchor: Weights, donor: Weights) -> dict[str, list[float]]:
    """Uncentred cosine similarity of each shared tensor of two dimensions or more, by part."""
    found: dict[str, list[float]] = {"segformer": [], "decode_head": []}
    for key, one in anchor.items():
        if one.ndim >= 2 and "classifier" not in key:
            pair = one.flatten().double(), donor[key].flatten().double()
            found[key.split(".")[0]].append(float(functional.cosine_similarity(*pair, dim=0)))
    return found


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-segmentation
tags:
- segformer
- synthetic
---

# {name}: a toy SegFormer for streets by {domain}

{parameters:,} parameters, {count} classes: {classes}.

Trained by `examples/street/train.py` of lwmm-hub on {scenes} drawn scenes of {width} x {height}
pixels by {domain}, from the same ancestor as its sibling. It knows no photographs: its only use is
to be merged in the example and the tests.
"""


def save(model: SegformerForSemanticSegmentation, course: Course, folder: Path) -> None:
    model.save_pretrained(folder)
    processor("segformer", (HEIGHT, WIDTH)).save_pretrained(folder)
    card = CARD.format(
        name=course.name,
        domain=course.domain,
        parameters=model.num_parameters(),
        count=len(course.labels.classes),
        classes=", ".join(course.labels.classes),
        scenes=course.scenes,
        width=WIDTH,
        height=HEIGHT,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE, help="folder for anchor/ and donor/")
    parser.add_argument("--steps", type=float, default=1.0, help="share of the steps, for a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a tenth, changes nothing
    began = time.monotonic()
    courses = [
        c._replace(steps=round(c.steps * arguments.steps)) for c in (ANCESTOR, ANCHOR, DONOR)
    ]
    ancestor = train(courses[0]).state_dict()
    models = {course.name: train(course, ancestor) for course in courses[1:]}
    for course in courses[1:]:
        save(models[course.name], course, arguments.output / course.name)
        data = streets(DOMAINS[course.domain], 100, 1001, CITY, course.domain)
        accuracy = score(arguments.output / course.name, data).pixel_accuracy or 0.0
        print(f"{course.name}: {100 * accuracy:.1f} % of pixels right by {course.domain}")
    alike = cosines(*(model.state_dict() for model in models.values()))
    for part, values in alike.items():
        print(f"{part}: cosine {np.mean(values):.3f} on average, {min(values):.3f} at least")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
