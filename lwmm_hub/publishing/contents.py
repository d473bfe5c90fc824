"""What the commit of a merge holds: its files as they are, and texts that show nothing local."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lwmm_hub.card import assert_publishable, card_files, check_card, redact
from lwmm_hub.card.redacting import TOKEN
from lwmm_hub.checkpoint import SIDE_FILES
from lwmm_hub.errors import CardError
from lwmm_hub.licenses import LicenseDecision, license_file, with_new_heading
from lwmm_hub.publishing.targets import fail
from lwmm_hub.recipe import Recipe, write_recipe
from lwmm_hub.reference import is_repository_id
from lwmm_hub.small_files import leads_out
from lwmm_hub.writing import MANIFEST, RECIPE
from lwmm_hub.writing.weights import INDEX

LICENSE = "LICENSE"
_TEXTS = {"", ".json", ".md", ".svg", ".txt", ".yaml", ".yml"}
_LONGEST_TEXT = 10 << 20
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))")  # of JSON


def public_files(
    folder: Path,
    manifest: dict[str, Any],
    recipe: Recipe,
    decision: LicenseDecision,
    repo: str,
    token: str,
    earlier: dict[str, Any] | None,
) -> dict[str, bytes | Path]:
    """What the commit holds: weights as they are; card, recipe and manifest without local paths.

    Files that no merge writes are left out, whatever they are.
    """
    made_by = f"lwmm-hub {manifest['lwmm_hub']}"
    for model, parent in zip(manifest["plan"]["models"], recipe.models, strict=True):
        model["sha256"] = {**model["sha256"], **parent.sha256}
        model.pop("marks", None)  # they say nothing to others, and differ from copy to copy
    manifest["output"].pop("beside", None)  # of files as they are here
    manifest = _redacted(manifest)  # labels and warnings, say, are texts of others
    manifest = {
        **manifest,
        "recipe": write_recipe(recipe, made_by),
        "license": decision.to_dict(),
        "output": {**manifest["output"], "repository": repo},
    }
    manifest = _as_before(manifest, earlier)
    ours = {*manifest["output"]["files"], INDEX, *SIDE_FILES, LICENSE}
    files: dict[str, bytes | Path] = {
        path.name: path for path in sorted(folder.iterdir()) if path.name in ours and path.is_file()
    }
    for name in (*SIDE_FILES, LICENSE):
        if name in files and leads_out(folder / name, folder):
            fail(folder, f"its {name} is a link to a file outside it: put a copy in its place")
    texts = {name: text.encode() for name, text in card_files(manifest).items()}
    texts[RECIPE] = manifest["recipe"].encode()
    texts[MANIFEST] = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    if "config.json" in files:
        try:
            texts["config.json"] = public_config(folder / "config.json")
        except ValueError:
            fail(folder, "its config.json is not JSON: mend it or merge again")
    if decision.stated is not None:
        files.pop(LICENSE, None)
        if (text := _license_text(folder, decision)) is not None:
            texts[LICENSE] = text.encode()
    check_card(texts["README.md"].decode(), files=[*files, *texts])
    for name, content in {**files, **texts}.items():
        _check_content(name, content, token)
    return {**files, **texts}


def public_config(path: Path) -> bytes:
    """config.json without local paths: what other texts say is redacted as on the card.

    Older transformers left one in `_name_or_path`, which is left out.

    Raises:
        ValueError: it is not JSON.
    """
    data = path.read_bytes()
    config = json.loads(data)
    public = _redacted(_without_paths(config))
    if public == config:
        return data
    return (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def _without_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_paths(item)
        for key, item in value.items()
        if key != "_name_or_path" or (isinstance(item, str) and is_repository_id(item))
    }


def _redacted(value: Any) -> Any:
    """A JSON value without local paths in its texts and names.

    A token stays, to be refused: it has to be revoked.
    """
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    if isinstance(value, dict):
        return {_redacted(key): _redacted(item) for key, item in value.items()}
    return redact(value) if isinstance(value, str) and not TOKEN.search(value) else value


def _check_content(name: str, content: bytes | Path, token: str) -> None:
    """Refuse a file that shows a token or, where it is ours or settings, a local path.

    Raises:
        CardError: with the file's name.
    """
    if isinstance(content, Path):
        if content.suffix not in _TEXTS or content.stat().st_size > _LONGEST_TEXT:
            return
        content = content.read_bytes()
    text = content.decode("utf-8", "replace")
    if name.endswith(".json"):
        text = _ESCAPE.sub(_unescaped, text)
    try:
        assert_publishable(text, token=token, paths=name != LICENSE)
    except CardError as error:
        raise CardError(f"{name} is not fit to publish: {error}") from error


def _unescaped(escape: re.Match[str]) -> str:
    r"""The character that an escape in JSON stands for; a space for the end of a line."""
    if escape[1]:
        return chr(int(escape[1], 16))
    return " " if escape[2] in "nrtbf" else escape[2]


def _as_before(manifest: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """The manifest with the time and cost of an earlier push that differs in nothing else.

    So the same merge pushed again changes no file, and the Hub makes no commit.
    """
    if earlier is None:
        return manifest
    plan, before = manifest["plan"], earlier.get("plan")
    if not isinstance(before, dict) or not {"run", "plan"} <= earlier.keys():
        return manifest
    same = {
        **manifest,
        "run": earlier["run"],
        "output": {**manifest["output"], "name": (earlier.get("output") or {}).get("name")},
        "plan": {**plan, "cost": before.get("cost")},
    }
    return same if json.loads(json.dumps(same)) == earlier else manifest


def _license_text(folder: Path, decision: LicenseDecision) -> str | None:
    """LICENSE for a licence that the user states: its heading made again, the texts as they are."""
    path = folder / LICENSE
    return (
        with_new_heading(path.read_text("utf-8"), decision)
        if path.is_file()
        else license_file(decision)
    )
