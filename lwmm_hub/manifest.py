"""`lwmm_manifest.json`: what a merge was made of and what came out; the card is drawn from it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lwmm_hub.card import card_files, check_card, redact
from lwmm_hub.card.naming import reference_id
from lwmm_hub.checkpoint import TOGETHER, Checkpoint
from lwmm_hub.errors import LwmmError, OutputError
from lwmm_hub.licenses import LicenseDecision, ParentLicense, decide, known_license
from lwmm_hub.planning import MergePlan, PlannedModel
from lwmm_hub.recipe import recipe_of, write_recipe
from lwmm_hub.small_files import read_small
from lwmm_hub.writing import MANIFEST, WrittenFile, stored_dtype, write_text

MANIFEST_VERSION = 1
_MAX_BYTES = 256 << 20  # of a manifest; a merge of a thousand tensors has half a MiB
# What every manifest holds: a type, a table (`...` is any name), or [what each row is]. It says
# where one was changed; what it does not know of is caught by `as_written`.
_WEIGHED = {"name": str, "weights": [float]}
_HOLDS: dict[Any, Any] = {
    "lwmm_hub": str,
    "recipe": str,
    "license": {"rows": [dict]},
    "run": dict,
    "versions": dict,
    "tags": [str],
    "scores": dict | None,
    "relatedness": [{"model": int, "part": str, "verdict": str, "weak_layers": [list]}],
    "plan": {
        "models": [
            {"role": str, "reference": str, "label": str, "format": str, "files": [str],
             "sha256": dict}
        ],
        "options": dict,
        "layers": [{"index": int, "part": str, **_WEIGHED}],
        "merged": [{"layer": int, "key": str, "sources": list, **_WEIGHED}],
        "kept": [{"key": str}],
        "unused": [{"model": int}],
        "warnings": [str],
        "cost": dict,
        "parts": [{"name": str}],
        "lineage": [{"model": int}],
        "inferred": [dict],
    },
    "output": {
        "name": str, "files": {...: {"sha256": str}}, "format": str, "dtype": str,
        "labels": list | None, "pipeline_tag": str | None, "repository": str | None,
    },
}  # fmt: skip


def decide_license(plan: MergePlan, stated: str | None = None) -> LicenseDecision:
    """The licence that a merge of these parents must carry.

    Args:
        plan: the merge.
        stated: what the user says where the parents say nothing that counts.
    """
    return decide([parent for model in plan.models for parent in _licenses_of(model)], stated)


def _licenses_of(model: PlannedModel) -> Iterator[ParentLicense]:
    """What a parent declares, and the licence of what it is made of, which it cannot take away."""
    label = redact(model.label)
    for declared in (model.license or "").split(TOGETHER):
        yield known_license(
            "" if model.local else reference_id(model.reference) or "",
            declared,
            label=label,
            name=model.license_name and redact(model.license_name),
            link=model.license_link and redact(model.license_link),
            gated=model.gated,
            has_text=model.license_text,
        )
    for base in model.base_models:
        found = known_license(base, None, label=f"{label} (made from {base})")
        if found.from_table:
            yield found


def make_manifest(
    plan: MergePlan,
    anchor: Checkpoint,
    name: str,
    written: Sequence[WrittenFile],
    decision: LicenseDecision,
    seconds: float,
    tags: Sequence[str] = (),
) -> dict[str, Any]:
    """`lwmm_manifest.json`: the plan as run, what came out, and nothing local."""
    import numpy

    from lwmm_hub import __version__

    plan = replace(plan, weights_from=_public_origin(plan.weights_from))
    public = public_plan(plan)
    config = anchor.config or {}
    labels = config.get("id2label")
    return {
        "version": MANIFEST_VERSION,
        "lwmm_hub": __version__,
        "plan": public,
        "output": {
            "name": name,
            "files": {f.name: {"sha256": f.sha256, "bytes": f.bytes} for f in written},
            "format": plan.options.output_format,
            "dtype": stored_dtype(anchor, plan),
            "parameters": anchor.parameters,
            "architecture": anchor.architecture,
            "model_type": _text(config.get("model_type")),
            "labels": [str(v) for v in labels.values()] if isinstance(labels, dict) else None,
            "pipeline_tag": _pipeline_tag(plan, anchor),
            "library_name": "transformers" if anchor.architecture else None,
            "repository": None,
        },
        "relatedness": public["relatedness"],
        "license": decision.to_dict(),
        "run": {
            "seconds": round(seconds, 2),
            "hardware": f"{os.cpu_count()} CPU cores",
        },
        "recipe": write_recipe(recipe_of(plan, public=True), f"lwmm-hub {__version__}"),
        "versions": {
            "lwmm_hub": __version__,
            "numpy": numpy.__version__,
            "python": sys.version.partition(" ")[0],
        },
        "scores": None,
        "tags": list(tags),
    }


def _public_origin(found: Mapping[str, Any]) -> dict[str, Any]:
    """How layer weights were found, as anybody's file says, without tokens and local paths."""
    return {
        redact(name): redact(value) if isinstance(value, str) else value
        for name, value in found.items()
    }


def public_plan(plan: MergePlan) -> dict[str, Any]:
    """The plan as plain data in which local models are called by their label, never by a path."""
    data = plan.to_dict()
    for model in data["models"]:
        if model["local"]:
            model["reference"] = model["label"]
    return data


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_PIPELINES = {
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForDepthEstimation": "depth-estimation",
}


def _pipeline_tag(plan: MergePlan, anchor: Checkpoint) -> str:
    stated = plan.models[0].pipeline_tag
    if stated:
        return stated
    name = anchor.architecture or ""
    return next(
        (tag for end, tag in _PIPELINES.items() if name.endswith(end)), "image-segmentation"
    )


def write_card(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Render the card and its figure from the manifest into `folder`.

    Raises:
        CardError: the card would break a rule of the Hub.
    """
    for name, text in card_files(manifest).items():
        if name == "README.md":
            check_card(text, files=[path.name for path in folder.iterdir()])
        write_text(folder / name, text)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a merged folder.

    Raises:
        OutputError: there is none, or it is not one of ours.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(read_small(path, _MAX_BYTES))
    except FileNotFoundError as error:
        if not folder.exists():
            raise OutputError(f"there is no folder {folder}. Name a merged folder.") from error
        raise OutputError(
            f"{folder} has no {MANIFEST}: it was not written by lwmm-hub. Name a merged folder."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        what = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be read ({what}). Merge again.") from error
    if not isinstance(manifest, dict) or manifest.get("version") != MANIFEST_VERSION:
        raise OutputError(f"{path} is not a manifest of version {MANIFEST_VERSION}. Merge again.")
    wrong = _wrong(manifest, _HOLDS)
    if not wrong:
        plan = manifest["plan"]
        rows = [*plan["layers"], *plan["merged"]]
        if any(len(row["weights"]) != len(plan["models"]) for row in rows):
            wrong = ".plan has weights of another number of models"
    if wrong:
        raise OutputError(_CHANGED.format(path, wrong[1:]))
    return manifest


_CHANGED = "{} does not hold what lwmm-hub writes: {}. It was changed. Merge again."


@contextmanager
def as_written(folder: Path) -> Iterator[None]:
    """Where a manifest holds something else than lwmm-hub writes, this is what an error comes from.

    Raises:
        OutputError: instead of whatever our code makes of such values.
    """
    try:
        yield
    except LwmmError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"{type(error).__name__}: {error}"
        raise OutputError(_CHANGED.format(folder / MANIFEST, what)) from error


def _wrong(value: Any, expected: Any) -> str:
    """What of a manifest is missing or of another kind, "" where nothing is."""
    found: Iterable[tuple[str, str]] = ()
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            return " is no table"
        rows = dict.fromkeys(value, expected[...]) if ... in expected else expected
        found = (
            (f".{name}", _wrong(value[name], kind) if name in value else " is missing")
            for name, kind in rows.items()
        )
    elif isinstance(expected, list):
        if not isinstance(value, list):
            return " is no list"
        found = ((f"[{i}]", _wrong(row, expected[0])) for i, row in enumerate(value))
    elif not isinstance(value, (int, float) if expected is float else expected):
        return " is of another type"
    return next((place + wrong for place, wrong in found if wrong), "")


def render_card(folder: str | Path) -> Path:
    """Render README.md and its figure again from a merged folder's manifest; returns its path.

    Raises:
        OutputError: the folder was not written by lwmm-hub.
        CardError: the card would break a rule of the Hub.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    with as_written(folder):
        write_card(folder, manifest)
    return folder / "README.md"
