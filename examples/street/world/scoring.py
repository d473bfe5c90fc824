"""Folders of models -> scores on drawn streets, by lwmm_hub's own evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.inference import InferenceOptions
from lwmm_hub.evaluation.label_maps import LabelOptions
from lwmm_hub.evaluation.label_spaces import LabelSpace, custom_space, label_space
from lwmm_hub.evaluation.running import RunOptions, evaluate_subjects
from lwmm_hub.evaluation.subjects import Ensemble, HubModel, Subject
from lwmm_hub.evaluation.values import Sample, Scores
from world.labels import COARSER, THINGS, Image8, LabelSet
from world.looks import Domain
from world.scenes import scenes

BATCH = 8
OPTIONS = InferenceOptions(device="cpu", batch_size=BATCH)
Model = Path | Sequence[Path]  # several are an ensemble


def space_of(labels: LabelSet) -> LabelSpace:
    """A label set as evaluation knows it, in Cityscapes' colours where it has them."""
    city = label_space("cityscapes-19")
    colors = dict(zip(city.labels, city.colors, strict=True))
    made = custom_space(labels.classes, labels.name)
    chosen = [colors.get(n, c) for n, c in zip(labels.classes, made.colors, strict=True)]
    return replace(made, colors=np.array(chosen, np.uint8))


def streets(domain: Domain, count: int, seed: int, labels: LabelSet, name: str) -> DataSet:
    """Scenes of the demo's size with their label maps, in memory."""
    return data_of(*scenes(domain, count, seed), labels, name)


def data_of(images: Image8, things: Image8, labels: LabelSet, name: str) -> DataSet:
    truth = labels.lookup(THINGS)[things]

    def samples(start: int, step: int) -> Iterator[Sample]:
        for k in range(start, len(images), step):
            yield Sample(f"{name}, scene {k}", images[k], truth[k])

    return DataSet(name, None, None, space_of(labels), "semantic", len(images), samples)


def subject(model: Model, data: DataSet) -> Subject:
    """A folder as something to evaluate; where it is finer than the truth, `COARSER` says how."""
    if not isinstance(model, Path):
        return Ensemble([_loaded(member, data) for member in model])
    return _loaded(model, data)


def _loaded(folder: Path, data: DataSet) -> HubModel:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own, wanted = set(config["id2label"].values()), set(data.space.labels)
    names = {fine: COARSER[fine] for fine in (own - wanted) & set(COARSER)}
    return HubModel(str(folder), data.space, LabelOptions(partial=True, names=names), OPTIONS)


def score(model: Model, data: DataSet, task: str | None = None) -> Scores:
    """One model's scores, counted from the first image to the last."""
    run = RunOptions(task=task, batch_size=BATCH, states="")
    return evaluate_subjects([subject(model, data)], data, run)[0]


def mean_iou(scores: Scores, classes: Sequence[str]) -> float:
    """The mean over some of the classes, as the paper scores over SYNTHIA's."""
    return float(np.mean([scores.iou[name] for name in classes]))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is its head."""
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = ([c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)
