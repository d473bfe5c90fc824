"""A model card's front matter against the Hub's rules, offline."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from lwmm_hub.errors import CardError
from lwmm_hub.foreign_yaml import NotYamlError, TwiceError, load_values
from lwmm_hub.licenses import LICENSES, suggest_license

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)(?:\r?\n|\A)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
BASE_MODEL_RELATIONS = ("adapter", "finetune", "merge", "quantized")
PIPELINE_TAGS = frozenset(
    (
        "any-to-any",
        "audio-classification",
        "audio-text-to-text",
        "audio-to-audio",
        "automatic-speech-recognition",
        "depth-estimation",
        "document-question-answering",
        "feature-extraction",
        "fill-mask",
        "graph-ml",
        "image-classification",
        "image-feature-extraction",
        "image-segmentation",
        "image-text-to-image",
        "image-text-to-text",
        "image-text-to-video",
        "image-to-3d",
        "image-to-image",
        "image-to-text",
        "image-to-video",
        "keypoint-detection",
        "mask-generation",
        "multiple-choice",
        "object-detection",
        "other",
        "question-answering",
        "reinforcement-learning",
        "robotics",
        "sentence-similarity",
        "summarization",
        "table-question-answering",
        "table-to-text",
        "tabular-classification",
        "tabular-regression",
        "tabular-to-text",
        "text-classification",
        "text-generation",
        "text-ranking",
        "text-retrieval",
        "text-to-3d",
        "text-to-audio",
        "text-to-image",
        "text-to-speech",
        "text-to-video",
        "time-series-forecasting",
        "token-classification",
        "translation",
        "unconditional-image-generation",
        "video-classification",
        "video-text-to-text",
        "video-to-video",
        "visual-document-retrieval",
        "visual-question-answering",
        "voice-activity-detection",
        "zero-shot-classification",
        "zero-shot-image-classification",
        "zero-shot-object-detection",
    )
)

_REPO_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_LICENSE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")
_LICENSE_FILE = re.compile(r"(?i)(?:LICEN[CS]E|COPYING)[\w.-]*")


class Problem(NamedTuple):
    """One thing a card says wrongly: the field of the front matter, and what to do."""

    field: str
    message: str

    def __str__(self) -> str:
        """Field and message on one line."""
        return " ".join(f"{self.field}: {self.message}".split())


def lint_card(text: str, *, files: Collection[str] = ()) -> list[Problem]:
    r"""Everything the Hub would refuse, or take and misread, in a card's front matter.

    `files` are the names of the files beside the card.

    >>> [str(problem) for problem in lint_card("---\nlicense: apache\n---\n")]
    ["license: the Hub has no licence 'apache'; did you mean 'apache-2.0'?"]
    >>> [problem.field for problem in lint_card("---\nbase_model: 3\n---\n")]
    ['base_model']
    """
    found = FRONT_MATTER.match(text)
    if not found:
        return [Problem("front matter", "the card has to begin with YAML between two '---' lines")]
    try:
        fields = parse_front_matter(found[1])
    except CardError as error:
        return [Problem("front matter", str(error))]
    problems = _lint_license(fields, files)
    for name, check in _CHECKS.items():
        if name in fields:
            problems += [Problem(name, message) for message in check(fields[name])]
    if "base_model_relation" in fields and "base_model" not in fields:
        problems.append(Problem("base_model_relation", "it says nothing without a base_model"))
    return problems


def check_card(text: str, *, files: Collection[str] = ()) -> None:
    """Do nothing where `lint_card` finds nothing.

    Raises:
        CardError: The first problem, in one line.
    """
    problems = lint_card(text, files=files)
    if problems:
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CardError(f"The model card breaks a rule of the Hub: {problems[0]}{more}")


def parse_front_matter(text: str) -> dict[str, Any]:
    r"""The front matter as a dict; keys have to be unique.

    >>> parse_front_matter("license: mit\ntags: [merge]")
    {'license': 'mit', 'tags': ['merge']}

    Raises:
        CardError: It is not YAML, not a mapping, or a key is there twice.
    """
    try:
        fields = load_values(text)
    except TwiceError as error:
        raise CardError(f"not valid YAML: the key '{error}' is there twice") from None
    except NotYamlError as error:
        raise CardError(f"not valid YAML: {error}") from None
    if not isinstance(fields, dict):
        raise CardError("it has to be a mapping of fields, 'license: ...' and so on")
    return fields


def valid_repo_id(text: object) -> bool:
    """Whether `text` can name a repository on the Hub.

    >>> valid_repo_id("nvidia/mit-b0"), valid_repo_id("gpt2"), valid_repo_id(3)
    (True, True, False)
    >>> valid_repo_id("./merged"), valid_repo_id("a/b/c"), valid_repo_id("a--b"), valid_repo_id("")
    (False, False, False, False)
    """
    if not isinstance(text, str) or text.endswith(".git") or "--" in text or ".." in text:
        return False
    parts = text.split("/")
    return len(parts) <= 2 and all(_REPO_NAME.fullmatch(part) for part in parts)


def _lint_license(fields: Mapping[str, Any], files: Collection[str]) -> list[Problem]:
    problems = []
    stated = fields.get("license")
    declared = stated if isinstance(stated, list) else [stated] if "license" in fields else []
    for each in declared:
        if not isinstance(each, str):
            problems.append(Problem("license", f"{each!r} is not text; leave it out if unknown"))
        elif each not in LICENSES:
            near = suggest_license(each)
            hint = f"did you mean {near!r}?" if near else "use 'other' with a license_name"
            problems.append(Problem("license", f"the Hub has no licence {each!r}; {hint}"))
    name, address = fields.get("license_name"), fields.get("license_link")
    if "other" in declared:
        if name is None:
            problems.append(Problem("license_name", "'license: other' needs a license_name"))
        if address is None and not any(_LICENSE_FILE.fullmatch(file) for file in files):
            problems.append(
                Problem("license_link", "'license: other' needs a license_link or a LICENSE file")
            )
    if name is not None and not (isinstance(name, str) and _LICENSE_NAME.fullmatch(name)):
        problems.append(
            Problem(
                "license_name", f"{name!r} is not a name of lower-case letters, digits, - and ."
            )
        )
    if address is not None and not _is_license_link(address):
        problems.append(
            Problem("license_link", f"{address!r} is neither a web address nor a LICENSE file")
        )
    return problems


def _is_license_link(address: object) -> bool:
    return isinstance(address, str) and bool(
        re.fullmatch(r"https?://\S+", address) or _LICENSE_FILE.fullmatch(address)
    )


def _base_model(value: object) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    if not entries:
        return ["the list is empty; leave the field out"]
    return [
        f"{entry!r} is not a repository id such as 'org/name'"
        for entry in entries
        if not valid_repo_id(entry)
    ]


def _one_of(allowed: Collection[str]) -> Callable[[object], list[str]]:
    def check(value: object) -> list[str]:
        if isinstance(value, str) and value in allowed:
            return []
        from difflib import get_close_matches

        near = get_close_matches(str(value), list(allowed), n=1)
        return [
            f"{value!r} is not known to the Hub{f'; did you mean {near[0]!r}?' if near else ''}"
        ]

    return check


def _text(value: object) -> list[str]:
    return [] if isinstance(value, str) and value.strip() else [f"{value!r} is not text"]


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        return [f"{value!r} is not a list"]
    return [f"{entry!r} is not text" for entry in value if not isinstance(entry, str) or not entry]


def _model_index(value: object) -> list[str]:
    """The shape the Hub asks for: name, results of task, dataset and metrics with finite values."""
    import math

    if not isinstance(value, list) or not value:
        return ["it has to be a list of models"]
    found: list[str] = []
    for model in value:
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            found.append("a model has no name")
            continue
        results = model.get("results")
        if not isinstance(results, list) or not results:
            found.append(f"{model['name']!r} has no list of results")
            continue
        for result in results:
            result = result if isinstance(result, dict) else {}
            for part, needed in (("task", ("type",)), ("dataset", ("type", "name"))):
                given = result.get(part)
                for key in needed:
                    if not isinstance(given, dict) or not isinstance(given.get(key), str):
                        found.append(f"a result has no {part} {key}")
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or not metrics:
                found.append("a result has no metrics")
                continue
            for metric in metrics:
                if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
                    found.append("a metric has no type")
                    continue
                score = metric.get("value")
                number = isinstance(score, (int, float)) and math.isfinite(score)
                if isinstance(score, bool) or not (number or isinstance(score, str)):
                    found.append(f"the value of {metric['type']!r} is not a finite number")
    return found


_CHECKS: dict[str, Callable[[object], list[str]]] = {
    "base_model": _base_model,
    "base_model_relation": _one_of(BASE_MODEL_RELATIONS),
    "pipeline_tag": _one_of(sorted(PIPELINE_TAGS)),
    "library_name": _text,
    "tags": _texts,
    "datasets": _texts,
    "metrics": _texts,
    "model-index": _model_index,
}
