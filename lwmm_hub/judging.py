"""A merged folder and a data set -> scores of the merge, its parents and its baseline on its card.

The isotropic merge of the same parents is made for the comparison and thrown away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lwmm_hub.card.naming import last_part
from lwmm_hub.errors import EvaluationError, LwmmError, OutputError
from lwmm_hub.evaluation.comparing import evaluate_models
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.inference import InferenceOptions
from lwmm_hub.evaluation.reporting import Report
from lwmm_hub.evaluation.running import Progress, RunOptions
from lwmm_hub.evaluation.subjects import LabelOptions, distinct_names
from lwmm_hub.manifest import read_manifest, write_card
from lwmm_hub.merge_result import MergeResult
from lwmm_hub.pipeline import run_merge
from lwmm_hub.planning import MergeOptions
from lwmm_hub.preparing import models_of
from lwmm_hub.writing import MANIFEST, write_json


@dataclass(frozen=True)
class Judged:
    """Scores of a merge, its parents and the isotropic merge on the same images.

    Attributes:
        report: the scores; the anchor is what the others are compared with.
        roles: one for each column: `anchor`, `donor`, `isotropic` or `merged`.
    """

    report: Report
    roles: tuple[str, ...]


def judge_merge(
    result: MergeResult,
    data: DataSet,
    *,
    inference: InferenceOptions | None = None,
    run: RunOptions | None = None,
    labels: LabelOptions | None = None,
    progress: Progress | None = None,
) -> Judged:
    """Score a merge beside its parents and the isotropic merge, and write that into its card.

    The anchor's labels have to be the data set's (or `labels` says what to do); donors are compared
    by the names that they share, and one that cannot be evaluated is left out and named.

    Raises:
        LwmmError: the merge or the anchor cannot be evaluated.
    """
    labels = labels or LabelOptions()
    by_name = replace(labels, partial=True)
    anchor, *donors = models_of(result.plan)
    scored: list[tuple[str, Report]] = []
    notes: list[str] = []

    def score(role: str, reference: Any, options: LabelOptions) -> None:
        found = evaluate_models(
            [reference], data, labels=options, inference=inference, run=run, progress=progress
        )
        scored.append((role, found.report))

    score("anchor", anchor, labels)
    for donor in donors:
        try:
            score("donor", donor, by_name)
        except (EvaluationError, OutputError) as error:
            notes.append(f"{donor.label} was not evaluated: {error}")
    with tempfile.TemporaryDirectory() as scratch:
        isotropic = Path(scratch) / "isotropic"
        if result.plan.options.schedule != "isotropic" and _make_isotropic(result, isotropic):
            score("isotropic", str(isotropic), labels)
    score("merged", str(result.folder), labels)
    judged = _together(scored, notes)
    record_scores(result.folder, judged.report.to_dict(), judged.roles)
    return judged


def _make_isotropic(result: MergeResult, folder: Path) -> bool:
    """The same parents, merged uniformly; whether that could be done."""
    plan = result.plan
    options = replace(
        MergeOptions(schedule="isotropic"),
        **{
            name: getattr(plan.options, name)
            for name in ("batch_norm", "scope", "allow_unrelated", "allow_nonfinite", "dtype",
                         "match")
        },
    )  # fmt: skip
    try:
        run_merge(
            models_of(plan),
            options,
            kept_parts=tuple(model.kept_parts for model in plan.models),
            output=folder,
            overwrite=False,
            threads=None,
            progress=None,
            tags=(),
            started=0.0,
            pairs_sha256=plan.pairs_sha256,
        )
    except LwmmError:
        return False
    return True


def _together(scored: Sequence[tuple[str, Report]], notes: Sequence[str]) -> Judged:
    """One report of several."""
    reports = [report for _, report in scored]
    names = [
        role if role in ("isotropic", "merged") else report.names[0] for role, report in scored
    ]
    told = [note for report in reports for note in report.notes]
    report = Report(
        reports[0].dataset,
        distinct_names(names),
        tuple(report.scores[0] for report in reports),
        (*told, *notes),
    )
    return Judged(report, tuple(role for role, _ in scored))


def record_scores(
    folder: Path, document: Mapping[str, Any], roles: Sequence[str] | None = None
) -> None:
    """Put the scores of a report (`lwmm-hub evaluate --json`) into a merge's manifest and card.

    Local paths are left out: a model is called by its label, as in the manifest.

    Args:
        folder: of the merge.
        document: the report.
        roles: one for each model; None finds the merge by its name.

    Raises:
        OutputError: the folder is not a merge, or the document is no report.
        CardError: the card would break a rule of the Hub.
    """
    manifest = read_manifest(folder)
    models = document.get("models")
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise OutputError(
            "the scores are no report of lwmm-hub evaluate. Write one with --save-to."
        )
    parents = [model["reference"] for model in manifest["plan"]["models"]]
    entries = []
    for i, model in enumerate(models):
        role = roles[i] if roles is not None else _role(model, folder, parents)
        entry = {**model, "role": role}
        if model.get("commit") is None:
            name = {"merged": "merged", "isotropic": "isotropic"}.get(role)
            entry["reference"] = name or last_part(str(model.get("reference")))
        entries.append(entry)
    if "merged" not in [entry["role"] for entry in entries]:
        raise OutputError(
            f"the scores are of other models: none is {folder.name}. Evaluate this folder, too."
        )
    dataset = dict(document.get("dataset") or {})
    if "/" not in str(dataset.get("reference", "")):
        dataset["revision"] = None  # a fingerprint of local files, which names nothing to others
    elif not dataset.get("revision"):
        dataset["reference"] = last_part(str(dataset["reference"]))
    manifest["scores"] = {**document, "dataset": dataset, "models": entries}
    write_card(folder, manifest)
    write_json(folder / MANIFEST, manifest)


def _role(model: Mapping[str, Any], folder: Path, parents: Sequence[str]) -> str:
    """What a model of a report is to a merge, by its reference."""
    reference = str(model.get("reference"))
    if model.get("commit") is None and Path(reference).name == folder.name:
        return "merged"
    plain = reference.removeprefix("hf://").partition("@")[0]
    if plain == parents[0] or last_part(plain) == parents[0]:
        return "anchor"
    return "donor" if plain in parents or last_part(plain) in parents else "other"
