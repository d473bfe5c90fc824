"""What a model is called in public: its Hub id, else its label, never where it lies on a disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lwmm_hub.card.escaping import NOTHING, Markdown, code, escape_markdown
from lwmm_hub.card.linting import valid_repo_id
from lwmm_hub.card.redacting import redact
from lwmm_hub.display.text import one_line
from lwmm_hub.reference import is_commit


def text(value: object) -> Markdown:
    """Any value from a manifest as Markdown: tokens and local paths removed, all else escaped."""
    return escape_markdown(redact(one_line(str(value))))


def cell(value: object) -> Markdown:
    """A value for a table, a dash where there is none."""
    return NOTHING if value is None else text(value) or NOTHING


def name_in_code(value: object) -> Markdown:
    """A key, hash or file name as a code span, under the same rules as `text`."""
    return code(redact(one_line(str(value))))


def hub_id(model: Mapping[str, Any]) -> str | None:
    """The Hub id of one of the plan's models, or None for a local one.

    >>> hub_id({"reference": "org/name@main:run/latest.pth", "commit": "0" * 40})
    'org/name'
    >>> hub_id({"reference": "runs/latest", "commit": None})
    """
    if model.get("local", model.get("commit") is None):
        return None
    return reference_id(str(model.get("reference", "")))


def reference_id(reference: str) -> str | None:
    """The `org/name` in the text of a reference, or None where there is none.

    >>> reference_id("hf://org/name@rev/file.pth?weights=ema"), reference_id("./a/b")
    ('org/name', None)
    """
    bare = re.split(r"[@:?]", reference.removeprefix("hf://"), maxsplit=1)[0]
    repo = "/".join(bare.split("/")[:2]) if reference.startswith("hf://") else bare
    return repo if valid_repo_id(repo) else None


def public_names(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each model is called on the card, all different.

    >>> public_names([{"reference": "/home/me/run", "role": "anchor", "commit": None}])
    ['local anchor']
    """
    names = []
    for index, model in enumerate(models):
        role = "anchor" if index == 0 else f"donor {index}"
        own = hub_id(model) or redact(one_line(str(model.get("label") or ""))) or f"local {role}"
        names.append(own)
    twice = {name for name in names if names.count(name) > 1}
    for index, (name, model) in enumerate(zip(names, models, strict=True)):
        if name in twice:
            commit = model.get("commit")
            short = commit[:7] if is_commit(commit) and isinstance(commit, str) else f"{index + 1}"
            names[index] = f"{name}@{short}"
    if len(set(names)) < len(names):
        names = [f"{name} ({index + 1})" for index, name in enumerate(names)]
    return names


def linked_name(model: Mapping[str, Any], name: str) -> Markdown:
    """The public name of a model, linked to the merged commit where it is on the Hub."""
    repo, commit = hub_id(model), model.get("commit")
    if repo is None:
        return text(name)
    at = f"/tree/{commit}" if is_commit(commit) else ""
    return Markdown(f"[{text(name)}](https://huggingface.co/{repo}{at})")


def last_part(path: str) -> str:
    r"""The name at the end of a path, in whatever system's spelling.

    >>> last_part("C:\\runs\\merged/"), last_part("me/x")
    ('merged', 'x')
    """
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
