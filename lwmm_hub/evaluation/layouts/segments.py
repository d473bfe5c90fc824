"""COCO's panoptic JSON: which segments each panoptic map has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lwmm_hub.errors import EvaluationError

MAX_JSON = 2 << 30


def read_document(path: Path) -> dict[str, Any]:
    """A JSON file with a table at its top.

    Raises:
        EvaluationError: it is missing, no JSON, or something else.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise EvaluationError(f"{path.name} is too large for annotations.")
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise EvaluationError(
            f"{path.name} is missing: it says what the segments are. Complete the data set, or use "
            "--task semantic."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, EvaluationError):
            raise
        raise EvaluationError(f"{path.name} is no JSON. Download it again.") from error
    if not isinstance(content, dict):
        raise EvaluationError(f"{path.name} is no table of annotations. Download it again.")
    return content


def read_segments(path: Path) -> dict[str, list[dict[str, Any]]]:
    """File name of a panoptic map -> its segments.

    Raises:
        EvaluationError: the JSON is missing or not as COCO writes it.
    """
    document = read_document(path)
    try:
        return {str(a["file_name"]): list(a["segments_info"]) for a in document["annotations"]}
    except (KeyError, TypeError) as error:
        raise EvaluationError(
            f"{path.name} has no annotations with file_name and segments_info. Get the panoptic "
            "annotations of the data set."
        ) from error
