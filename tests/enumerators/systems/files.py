"""Values to files, nested and named as each system's training code saves them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..dialects import fill
from ..files import CITYSCAPES_LABELS, write_safetensors
from ..neutral import Values
from .listing import prefixed
from .mit import pipa_trainer
from .resnets import fada_discriminator
from .values import Trained, imagenet_model, moving_average

Nested = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """Where a state dict lies in a file.

    Attributes:
        wrapper: key of the dictionary that holds it, "" where it is the file.
        prefix: before every key.
        around: (the nested state dict, the run) -> the whole content of the file.
        suffix: of the file; "" for a folder with a file per dictionary, `<stage>_<name>.pt`.
    """

    wrapper: str = ""
    prefix: str = ""
    around: Callable[[Nested, Trained], Nested] = lambda nested, run: nested
    suffix: str = ".pth"

    def nest(self, values: Mapping[str, Any]) -> Nested:
        """The student alone, where the file has it; `part/key` lies in a dictionary `part`."""
        nested: Nested = {}
        for key, value in values.items():
            part, _, name = key.rpartition("/")
            inner = nested
            for step in filter(None, (self.wrapper, part)):
                inner = inner.setdefault(step, {})
            inner[self.prefix + name] = value
        return nested


def save(
    folder: Path,
    name: str,
    layout: Layout,
    run: Trained,
    stage: str = "source",
    trimmed: bool = False,
) -> Path:
    """Write the run as `name` with the layout's suffix; CoNMix's is a folder.

    Of a whole training run a trimmed file holds the student alone, as people share it.
    """
    if trimmed and layout.prefix == "model.":
        layout = MMCV
    content = layout.around(layout.nest(run.values), run)
    path = folder / f"{name}{layout.suffix}"
    if layout.suffix == ".safetensors":
        return write_safetensors(path, content)
    if layout.suffix:
        return _save(path, content)
    path.mkdir(exist_ok=True)
    for part, state in content.items():
        _save(path / f"{stage}_{part}.pt", state)
    return path


def _save(path: Path, content: Nested) -> Path:
    import torch

    def in_torch(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.copy())
        if isinstance(value, dict):
            kind = OrderedDict if any(isinstance(v, np.ndarray) for v in value.values()) else dict
            return kind((key, in_torch(item)) for key, item in value.items())
        return value

    torch.save(in_torch(content), path)
    return path


# what lies around the weights -------------------------------------------------------------------

META = {
    "mmcv_version": "1.3.7",
    "time": "Tue Mar  1 12:00:00 2022",
    "seed": 0,
    "epoch": 14,
    "iter": 40000,
    "CLASSES": CITYSCAPES_LABELS,
    "PALETTE": [[128, 64, 128], [244, 35, 232]],
    "hook_msgs": {},
}


def _adamw(run: Trained) -> Nested:
    """State of the first two parameters; optimizers hold tensors, too, and are never weights."""
    values = list(run.values.values())[:2]
    state = {i: {"step": 40000, "exp_avg": v, "exp_avg_sq": v * v} for i, v in enumerate(values)}
    return {"state": state, "param_groups": [{"lr": 6e-5, "params": [0, 1]}]}


def _sgd(run: Trained) -> Nested:
    values = list(run.values.values())[:2]
    state = {i: {"momentum_buffer": v} for i, v in enumerate(values)}
    return {"state": state, "param_groups": [{"lr": 1e-4, "momentum": 0.9, "params": [0, 1]}]}


def _of_mmcv(nested: Nested, run: Trained) -> Nested:
    return {"meta": META, **nested, "optimizer": _adamw(run)}


def _whole_run(nested: Nested, run: Trained) -> Nested:
    copies = {f"ema_model.{k}": v for k, v in moving_average(run).items()}
    copies |= {f"imnet_model.{k}": v for k, v in imagenet_model(run).items()}
    return _of_mmcv({"state_dict": nested["state_dict"] | copies}, run)


def _pipa_run(nested: Nested, run: Trained) -> Nested:
    """With the layers that PiPa's trainer keeps beside the three copies."""
    classes = run.values["cls_head.3.weight"].shape[0]
    width = run.values["proj_head.proj.2.weight"].shape[0]
    content = _whole_run(nested, run)
    content["state_dict"] |= fill(pipa_trainer(classes, width), run.seed)
    return content


def _extra_teacher_run(nested: Nested, run: Trained) -> Nested:
    """MIC whose teacher has a pace of its own keeps a second moving average below `mic.`."""
    content = _whole_run(nested, run)
    teacher: Values = {f"mic.teacher.ema_model.{k}": v for k, v in moving_average(run).items()}
    content["state_dict"] |= teacher
    return content


def _of_maxsquare(nested: Nested, run: Trained) -> Nested:
    """The best score is numpy's, as its evaluation returns it."""
    best = np.float64(0.464)
    return {"epoch": 9, "iteration": 27000, **nested, "optimizer": _sgd(run), "best_MIou": best}


def _of_fada(nested: Nested, run: Trained) -> Nested:
    optimizers = {"optimizer_fea": _sgd(run), "optimizer_cls": _sgd(run)}
    return {"iteration": 40000, **nested, **optimizers}


def _of_adversarial_fada(nested: Nested, run: Trained) -> Nested:
    classes, columns, *_ = run.values["classifier/conv2d_list.0.weight"].shape
    discriminator = prefixed("module.", fada_discriminator(classes, columns, width=8))
    content = _of_fada(nested, run)
    content["model_D"] = fill(discriminator, run.seed)
    content["optimizer_D"] = _adamw(run)
    return content


def _of_detection(nested: Nested, run: Trained) -> Nested:
    scheduler = {"milestones": (40000,), "gamma": 0.1, "last_epoch": 60000}
    return {**nested, "optimizer": _sgd(run), "scheduler": scheduler, "iteration": 59999}


def _of_teacher(nested: Nested, run: Trained) -> Nested:
    return {**nested, "iteration": 59999}


PLAIN = Layout()
MMCV = Layout("state_dict", around=_of_mmcv)
TRAINING_RUN = Layout("state_dict", "model.", _whole_run)
PIPA_RUN = Layout("state_dict", "model.", _pipa_run)
EXTRA_TEACHER_RUN = Layout("state_dict", "model.", _extra_teacher_run)
MAXSQUARE = Layout("state_dict", "module.", _of_maxsquare)
FADA = Layout(around=_of_fada)
DISTRIBUTED_FADA = Layout("", "module.", _of_adversarial_fada)
GLC = Layout("model_state_dict", around=lambda nested, run: {"epoch": 49, **nested})
CONMIX = Layout(suffix="")
PARALLEL_CONMIX = Layout("", "module.", suffix="")
DETECTION = Layout("model", around=_of_detection)
DETECTION_TEACHER = Layout("model", "ema_model.", _of_teacher)
SAFETENSORS = Layout(suffix=".safetensors")
