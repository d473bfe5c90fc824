"""Model cards as the Hub reads them: the YAML block, tags, and what is wrong with it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from .objects import ObjectStore
from .repositories import Tree

# The identifiers the Hub takes in `license:`, from its documentation.
_LICENSE_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma
unknown other
"""
LICENSES = frozenset(_LICENSE_NAMES.split())

# Keys that hold a string or a list of strings.
_TEXT_KEYS = ("base_model", "datasets", "language", "library_name", "license", "metrics", "tags")


def yaml_block(card: str) -> str | None:
    """The text between the two `---` lines a card starts with."""
    match = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", card, re.DOTALL)
    return match[1] if match else None


def card_data(tree: Tree, objects: ObjectStore) -> dict[str, Any]:
    """The metadata of the README of a tree; empty when there is none."""
    readme = tree.get("README.md")
    if readme is None:
        return {}
    block = yaml_block(objects.read(readme.oid).decode(errors="replace"))
    try:
        data = yaml.safe_load(block or "")
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def tags_of(data: dict[str, Any]) -> list[str]:
    """The tags of a repository: its own, and those the Hub makes of other keys."""
    tags = [*_texts(data.get("tags")), *_texts(data.get("library_name"))]
    tags += _texts(data.get("pipeline_tag"))
    for key, prefix in (("base_model", "base_model"), ("datasets", "dataset"), ("license",) * 2):
        tags += [f"{prefix}:{text}" for text in _texts(data.get(key))]
    return tags


def card_problems(card: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings the Hub has about the metadata of a card."""
    block = yaml_block(card)
    try:
        data = yaml.safe_load(block) if block is not None else None
    except yaml.YAMLError as error:
        return [f"YAML: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["The metadata must be a mapping"], []
    errors = [
        f'"{key}" must be a string or a list of strings'
        for key in _TEXT_KEYS
        if key in data and not _is_text_or_texts(data[key])
    ]
    unknown = [text for text in _texts(data.get("license")) if text not in LICENSES]
    errors += [f'"license" must be one of the known licenses, not "{text}"' for text in unknown]
    return errors, []


def _is_text_or_texts(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )


def _texts(value: object) -> list[str]:
    if isinstance(value, list):
        return [str(item) for item in value]
    return [] if value is None else [str(value)]
