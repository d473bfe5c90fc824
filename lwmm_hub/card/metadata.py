"""The front matter of a card: a dict of plain values, and its YAML."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from lwmm_hub.card.escaping import is_web_address
from lwmm_hub.card.linting import PIPELINE_TAGS, valid_repo_id
from lwmm_hub.card.naming import hub_id, last_part, public_names, reference_id
from lwmm_hub.card.redacting import redact
from lwmm_hub.display.text import one_line
from lwmm_hub.evaluation.score_table import HUB_TASKS, MOST_SHOWN, OVERALL, Metric, per_class
from lwmm_hub.licenses import LICENSES
from lwmm_hub.reference import is_commit

SCORES = tuple(metric for metric in OVERALL if metric.hub_type)
"""What a card says of an evaluation as a whole."""


def front_matter(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The card's metadata; what the manifest does not say is left out."""
    plan, output = manifest.get("plan") or {}, manifest.get("output") or {}
    models = plan.get("models") or []
    anchor = models[0] if models else {}
    fields: dict[str, Any] = {}
    parents = _unique(hub_id(model) for model in models)
    if parents:
        fields["base_model"] = parents
        fields["base_model_relation"] = "merge"
    family = output.get("model_type") or anchor.get("family")
    asked = manifest.get("tags") or []
    fields["tags"] = _unique(["merge", "model-merging", "lwmm-hub", family, *asked])
    fields["library_name"] = _plain(output.get("library_name"))
    task = output.get("pipeline_tag") or anchor.get("pipeline_tag")
    fields["pipeline_tag"] = task if task in PIPELINE_TAGS else None
    fields |= _license(manifest.get("license") or {})
    fields["datasets"] = _unique(
        name for model in models for name in model.get("datasets") or [] if valid_repo_id(name)
    )
    index, metrics = _model_index(manifest, fields["pipeline_tag"])
    fields["metrics"] = metrics
    fields["model-index"] = index
    return {key: value for key, value in fields.items() if value not in (None, [])}


def dump(fields: Mapping[str, Any]) -> str:
    r"""`fields` as YAML, one line for each value.

    >>> dump({"license": "mit", "tags": ["a: b", "- c"]})
    "license: mit\ntags:\n- 'a: b'\n- '- c'\n"
    """
    import yaml

    return yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True, width=2**31 - 1)


def _license(decision: Mapping[str, Any]) -> dict[str, str]:
    license_id = decision.get("license")
    if not isinstance(license_id, str) or license_id not in LICENSES:
        return {}
    fields = {"license": license_id}
    name, address = _plain(decision.get("name")), decision.get("link")
    if license_id == "other":
        fields["license_name"] = name or "see-license-file"
        fields["license_link"] = "LICENSE"
    if isinstance(address, str) and is_web_address(address):
        fields["license_link"] = address
    return fields


def _model_index(
    manifest: Mapping[str, Any], tag: str | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The merged model's finite scores in the Hub's shape, and the metrics among them.

    The task is what was evaluated; of scores that do not say it, what the model is for (`tag`).
    """
    scores, output = manifest.get("scores") or {}, manifest.get("output") or {}
    own = merged_scores(manifest)
    if own is None:
        return [], []
    found = [
        {"type": metric.hub_type, "value": own[metric.field], "name": metric.heading}
        for metric in SCORES
        if finite(own.get(metric.field))
    ]
    metrics = [entry["type"] for entry in found]
    for metric in class_metrics([own]):
        scored = own[metric.field]
        if len(scored) > MOST_SHOWN:
            continue
        found += [
            {
                "type": metric.hub_type,
                "value": value,
                "name": f"{metric.heading} ({_plain(label) or '?'})",
            }
            for label, value in scored.items()
            if finite(value)
        ]
    if not found:
        return [], []
    dataset = scores.get("dataset") or {}
    name = dataset_name(dataset)
    where = {"name": name, "type": name if valid_repo_id(name) and "/" in name else "local"}
    if isinstance(dataset.get("split"), str):
        where["split"] = _plain(dataset["split"]) or "unknown"
    if is_commit(dataset.get("revision")):
        where["revision"] = dataset["revision"]
    task = HUB_TASKS.get(str(own.get("task"))) or tag or "image-segmentation"
    result = {"task": {"type": task}, "dataset": where, "metrics": found}
    title = _plain(last_part(str(output.get("repository") or output.get("name") or "")))
    return [{"name": title or "merged", "results": [result]}], metrics


def class_metrics(entries: Iterable[Mapping[str, Any]]) -> list[Metric]:
    """What the evaluated models are scored in class by class."""
    return per_class({field for entry in entries for field, value in entry.items() if value})


def merged_scores(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entry of the evaluation that is the merged model's: by role, by name, else the first."""
    entries = (manifest.get("scores") or {}).get("models") or []
    output = manifest.get("output") or {}
    names = {"merged", output.get("name"), output.get("repository")} - {None}
    for entry in entries:
        if entry.get("role") == "merged" or last_part(str(entry.get("reference"))) in names:
            return _mapping(entry)
        if entry.get("reference") in names:
            return _mapping(entry)
    known = {str(m.get("reference")) for m in (manifest.get("plan") or {}).get("models") or []}
    if entries and str(entries[0].get("reference")) not in known:
        return _mapping(entries[0])
    return None


def score_names(manifest: Mapping[str, Any]) -> list[str]:
    """What each evaluated model is called on the card."""
    models = (manifest.get("plan") or {}).get("models") or []
    names = dict(zip((str(m.get("reference")) for m in models), public_names(models), strict=True))
    shown = []
    merged = merged_scores(manifest)
    for entry in (manifest.get("scores") or {}).get("models") or []:
        reference = str(entry.get("label") or entry.get("reference"))
        if entry is merged:
            shown.append("this model")
        elif str(entry.get("reference")) in names:
            shown.append(names[str(entry["reference"])])
        elif is_commit(entry.get("commit")):
            shown.append(reference_id(reference) or last_part(reference))
        else:
            shown.append(last_part(reference))
    return shown


def dataset_name(dataset: Mapping[str, Any]) -> str:
    """The data set's Hub id, else the last part of where it lies; only a Hub's has a revision."""
    reference = str(dataset.get("reference") or "")
    name = (reference_id(reference) if dataset.get("revision") else None) or last_part(reference)
    return _plain(name) or "a local data set"


def finite(value: object) -> bool:
    """Whether `value` is a number that can stand in a table: no NaN, none beyond all floats."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def _mapping(entry: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = entry
    return found


def _plain(value: object) -> str | None:
    """Text without what a card may not show, or None where nothing is left."""
    return (redact(one_line(value)) or None) if isinstance(value, str) else None


def _unique(values: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(filter(None, map(_plain, values))))
