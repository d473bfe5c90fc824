"""The metrics as modules of `evaluate`; importing that takes seconds, so only this file does."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import lwmm_hub.evaluation
from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation import Boxes, ConfusionMatrix, Panoptic, Segment
from lwmm_hub.evaluation.modules import (
    classification_module,
    detection_module,
    panoptic_module,
    semantic_module,
)

PREDICTION = np.array([[0, 1, 1], [2, 2, 2]])
TRUTH = np.array([[0, 1, 255], [2, 2, 1]])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []  # no copy of a batch is kept


def test_importing_the_metrics_imports_neither_evaluate_nor_torch() -> None:
    code = (
        "import sys, lwmm_hub.evaluation.modules, lwmm_hub.evaluation as e; e.PanopticCounts;"
        "print([m for m in ('evaluate', 'datasets', 'torch', 'transformers', 'pycocotools')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_semantic_module_scores_as_the_matrix_does(home: Path) -> None:
    import evaluate

    module = semantic_module(3, labels=["road", "sky", "car"])
    assert isinstance(module, evaluate.EvaluationModule)
    matrix = ConfusionMatrix(3, labels=["road", "sky", "car"])
    module.add(prediction=PREDICTION, reference=TRUTH)
    module.add_batch(predictions=[PREDICTION] * 2, references=[TRUTH, TRUTH[::-1]])
    for truth in (TRUTH, TRUTH, TRUTH[::-1]):
        matrix.update(PREDICTION, truth)
    assert len(module) == 3
    assert module.state == matrix
    wanted = {name: value for name, value in matrix.scores().fields().items() if value is not None}
    assert module.compute() == wanted
    assert len(module) == 0  # begins anew
    alone = module.compute(predictions=[PREDICTION], references=[TRUTH])
    assert alone["pixel_accuracy"] == pytest.approx(4 / 5)
    json.dumps(alone)


def test_a_trainers_predictions_go_in_as_they_come(home: Path) -> None:
    from transformers import EvalPrediction

    logits = np.eye(3)[np.stack([PREDICTION, PREDICTION])].transpose(0, 3, 1, 2)
    batch = EvalPrediction(predictions=logits, label_ids=np.stack([TRUTH, TRUTH]))
    module = semantic_module(3)
    scores = module.compute(predictions=batch.predictions.argmax(1), references=batch.label_ids)
    assert scores["pixel_accuracy"] == pytest.approx(4 / 5)


def test_states_of_several_processes_add_up(home: Path) -> None:
    parts = [semantic_module(3) for _ in range(2)]
    for part in parts:
        part.add(prediction=PREDICTION, reference=TRUTH)
    assert (parts[0].state + parts[1].state).counts.sum() == 10


def test_panoptic_modules_take_values_and_what_transformers_gives(home: Path) -> None:
    module = panoptic_module([{"id": 4, "name": "car", "isthing": 1}])
    truth = Panoptic(np.array([[1, 1, 0]], np.int32), (Segment(1, 4),))
    processed = {
        "segmentation": np.array([[3, 3, 3]]),
        "segments_info": [{"id": 3, "label_id": 4, "was_fused": False, "score": 0.9}],
    }
    scores = module.compute(predictions=[processed, truth], references=[truth, truth])
    assert scores["pq"] == 1.0
    assert math.isnan(scores["pq_stuff"])
    with pytest.raises(EvaluationError, match="segments_info"):
        module.add(prediction=np.zeros((1, 3)), reference=truth)


def test_classification_and_detection_modules(home: Path) -> None:
    known = classification_module(2, with_unknown=True)
    assert known.compute(predictions=[0, 1, 2], references=[0, 0, 2])["h_score"] == 2 / 3
    box = np.array([[0, 0, 9, 9]], np.float32)
    truth = Boxes(box, np.array([0]))
    found = Boxes(box, np.array([0]), np.array([0.5], np.float32))
    detector = detection_module(["cat"])
    assert detector.compute(predictions=[found], references=[truth])["map"] == pytest.approx(1.0)
    with pytest.raises(EvaluationError, match="given as"):
        detector.add(prediction=[1, 2, 3, 4], reference=truth)


def test_modules_are_told_apart_where_they_are_combined(home: Path) -> None:
    import evaluate

    both = evaluate.combine([semantic_module(2), classification_module(2)])
    scores = both.compute(predictions=[[0, 1]], references=[[0, 1]])
    assert scores["miou"] == scores["accuracy"] == 1.0
    assert set(scores) >= {"lwmm_semantic_class_accuracy", "lwmm_classification_class_accuracy"}


def test_what_is_missing_is_said(home: Path) -> None:
    module = semantic_module(3)
    with pytest.raises(EvaluationError, match="nothing to score"):
        module.compute()
    with pytest.raises(EvaluationError, match="one of them is missing"):
        module.add(prediction=PREDICTION)
    with pytest.raises(EvaluationError, match="2 predictions for 1 references"):
        module.add_batch(predictions=[PREDICTION] * 2, references=[TRUTH])
    with pytest.raises(EvaluationError, match="not weights"):
        module.compute(predictions=[PREDICTION], references=[TRUTH], weights=[1])


@pytest.mark.parametrize(
    ("package", "module"), [("evaluate", "modules.py"), ("pycocotools", "detection.py")]
)
def test_one_module_alone_imports_a_package_that_is_slow_or_optional(
    package: str, module: str
) -> None:
    folder = Path(lwmm_hub.evaluation.__file__).parent
    found = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.partition(".")[0] == package for name in names):
                found.add(path.name)
    assert found == {module}
