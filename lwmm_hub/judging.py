"""A merged folder and a data set -> scores of the merge, its parents and its controls on its card.

The isotropic merge of the same parents is made for the comparison and thrown away; where that is
asked for, so are the other controls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lwmm_hub.card.naming import last_part, reference_id
from lwmm_hub.card.redacting import redact
from lwmm_hub.controls import CONTROLS, ISOTROPIC, controls, isotropic
from lwmm_hub.errors import EvaluationError, LwmmError, OutputError
from lwmm_hub.evaluation.comparing import Column, evaluate_models
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.inference import InferenceOptions
from lwmm_hub.evaluation.label_maps import LabelOptions
from lwmm_hub.evaluation.reporting import Report, gather_notes
from lwmm_hub.evaluation.running import Progress, RunOptions
from lwmm_hub.evaluation.subjects import distinct_names, labels_of_models
from lwmm_hub.manifest import read_manifest, write_card
from lwmm_hub.meanings import all_labels
from lwmm_hub.merge_result import MergeResult
from lwmm_hub.preparing import models_of
from lwmm_hub.reference import ModelReference
from lwmm_hub.resolving import resolve
from lwmm_hub.writing import MANIFEST, write_json


def judge_merge(
    result: MergeResult,
    data: DataSet,
    *,
    inference: InferenceOptions | None = None,
    run: RunOptions | None = None,
    labels: LabelOptions | None = None,
    controlled: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Score a merge beside its parents and the isotropic merge, and write that into its card.

    The anchor's labels have to be the data set's (or `labels` says what to do); donors are compared
    by the names that they share. A donor or control that cannot be evaluated is left out and named.
    Of the report's roles there is one for each column: `anchor`, `donor`, `merged` or the name of a
    control; the anchor is what the others are compared with.

    Args:
        result: the merge.
        data: images with truth.
        inference: how images go through the networks.
        run: which images.
        labels: what to do where the anchor's labels differ from the data set's.
        controlled: whether all controls of layer weights in numbers are scored, too.
        progress: called with (name, images done, images in all or None).

    Raises:
        UsageError: all controls are asked for, and a schedule gives the layer weights.
        LwmmError: the merge or the anchor cannot be evaluated.
    """
    labels = labels or LabelOptions()
    plan = result.plan
    anchor, *donors = models_of(plan)
    if labels.names:
        labels = replace(labels, others=tuple(sorted(labels_of_models([anchor, *donors]))))
    by_name = replace(labels, partial=True)
    beside: tuple[Column, ...] = ()
    if controlled:
        beside = controls(plan, result.folder.name)
    elif plan.options.schedule != ISOTROPIC:
        beside = (isotropic(plan),)
    scored: list[tuple[str, Report]] = []
    notes: list[str] = []

    def score(
        role: str, models: Sequence[Any], options: LabelOptions, columns: Sequence[Column] = ()
    ) -> None:
        found = evaluate_models(
            models, data, labels=options, inference=inference, run=run, columns=columns,
            progress=progress,
        )  # fmt: skip
        scored.append((role, found.report))

    score("anchor", [anchor], labels)
    for donor in donors:
        try:
            score("donor", [donor], by_name)
        except (EvaluationError, OutputError) as error:
            notes.append(f"{donor.label} was not evaluated: {error.text}")
    for column in beside:
        try:
            score(column.name, [], labels, [replace(column, optional=False)])
        except LwmmError as error:
            notes.append(f"{column.name} was not evaluated: {error.text}")
    score("merged", [str(result.folder)], labels)
    report = _together(scored, notes)
    record_scores(result.folder, report.to_dict(), report.roles)
    return report


def check_comparable(anchor: str, data: DataSet, labels: LabelOptions) -> None:
    """Refuse, before the work begins, an anchor whose labels are not the data set's.

    Where its config.json does not name them all, that is left to the evaluation.

    Raises:
        EvaluationError: they differ, and `labels` does not say what to do.
        LwmmError: there is no such model.
    """
    checkpoint = resolve(ModelReference.parse(anchor))
    if (names := all_labels(checkpoint.config)) is not None:
        labels.match(names, data.space, checkpoint.label)


def _together(scored: Sequence[tuple[str, Report]], notes: Sequence[str]) -> Report:
    """One report of several."""
    reports = [report for _, report in scored]
    names = distinct_names(
        ["merged" if role == "merged" else report.names[0] for role, report in scored]
    )
    told = [(r.names[0], name, r.notes) for r, name in zip(reports, names, strict=True)]
    return Report(
        reports[0].dataset,
        names,
        tuple(report.scores[0] for report in reports),
        (*gather_notes(told), *notes),
        roles=tuple(role for role, _ in scored),
    )


def record_scores(
    folder: Path, document: Mapping[str, Any], roles: Sequence[str] | None = None
) -> None:
    """Put the scores of a report (`lwmm-hub evaluate --json`) into a merge's manifest and card.

    Local paths are left out: a model is called by its label, as in the manifest.

    Args:
        folder: of the merge.
        document: the report.
        roles: one for each model; None finds the merge and its parents by their names, and the
            controls by what the report calls them.

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
    parents = manifest["plan"]["models"]
    dataset = dict(document.get("dataset") or {})
    if dataset.get("shards"):
        raise OutputError(
            "the scores are of a part of the images. Run the other parts, then the same command "
            "without --shard, which puts them together."
        )
    entries = []
    for i, model in enumerate(models):
        role = roles[i] if roles is not None else _role(model, folder, parents)
        entry = {**model, "role": role}
        if model.get("commit") is None:
            named = role == "merged" or role in CONTROLS
            entry["reference"] = role if named else last_part(str(model.get("reference")))
        entries.append(entry)
    if "merged" not in [entry["role"] for entry in entries]:
        raise OutputError(
            f"the scores are of other models: none is {folder.name}. Evaluate this folder, too."
        )
    if "/" not in str(dataset.get("reference", "")):
        dataset["revision"] = None  # a fingerprint of local files, which names nothing to others
    elif not dataset.get("revision"):
        dataset["reference"] = last_part(str(dataset["reference"]))
    notes = [redact(str(note)) for note in document.get("notes") or []]
    manifest["scores"] = {**document, "dataset": dataset, "models": entries, "notes": notes}
    write_card(folder, manifest)
    write_json(folder / MANIFEST, manifest)


def _role(model: Mapping[str, Any], folder: Path, parents: Sequence[Mapping[str, Any]]) -> str:
    """What a model of a report is to a merge: what the report says of controls, or by name.

    Parents of one repository are told apart by their commits.
    """
    if model.get("role") in CONTROLS:
        return str(model["role"])
    reference = str(model.get("reference"))
    if model.get("commit") is None and Path(reference).name == folder.name:
        return "merged"
    names = {_called(reference), last_part(_called(reference))}
    found = [
        (parent.get("commit") != model.get("commit"), index)
        for index, parent in enumerate(parents)
        if _called(parent["reference"]) in names
    ]
    return "other" if not found else "anchor" if min(found)[1] == 0 else "donor"


def _called(reference: str) -> str:
    """A repository's id, or the text of what is none."""
    return reference_id(reference) or reference
