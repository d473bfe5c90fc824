"""Models in folders and files on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lwmm_hub.checkpoint import SIDE_FILES, TOGETHER, Checkpoint, LocalFile, ModelFacts, marks_of
from lwmm_hub.errors import CheckpointError, ResolveError, VerificationError
from lwmm_hub.foreign_yaml import NotYamlError, load_texts
from lwmm_hub.reference import WEIGHT_SUFFIXES, ModelReference, StandIn, is_repository_id
from lwmm_hub.resolving.choosing import choose_weights, shard_names, stage_files
from lwmm_hub.resolving.opening import MAX_CONFIG, check_config_size, open_files, parse_config
from lwmm_hub.resolving.refusing import refuse_no_numbers, refuse_quantised
from lwmm_hub.small_files import leads_out, read_small

MAX_FRONT_MATTER = 1 << 20  # bytes
MERGED = "lwmm_manifest.json"  # as `writing` calls it, which stands below this room
_LONGEST_MANIFEST = 256 << 20  # bytes
LICENSE_FOLDERS = ("LICENSES", "LICENCES")  # as the REUSE specification has it
# LICENSE.md, LICENSE-MIT, MIT-LICENSE.txt, UNLICENSE, COPYING.LESSER, THIRD_PARTY_NOTICES, ...
_LICENSE_FILE = re.compile(
    r"(?:[\w. -]*[-_ ])?(?:(?:UN)?LICEN[CS]ES?|COPYING|COPYRIGHT|(?:THIRD[-_ ]?PARTY)?NOTICES?"
    r"|USE[-_ ]POLICY)(?:[-_. ](?!PLATE)[\w.-]*)?",
    re.IGNORECASE,
)
_MOST_LICENSES, _MOST_BASES = 16, 64  # that a card lists
_LONGEST_LICENSE = 96  # characters of its id
_NO_TEXTS = (*WEIGHT_SUFFIXES, ".json", ".yaml", ".yml", ".py", ".png", ".jpg", ".svg")


def resolve_local(reference: ModelReference) -> Checkpoint:
    """Open a folder or file.

    Raises:
        ResolveError: it is not there, or it is not clear which file holds the weights.
        CheckpointError: the weights cannot be read.
    """
    path = Path(reference.location)
    try:
        if path.is_dir():
            found = open_folder(path, reference)
        elif path.is_file():
            found = open_folder(path.parent, reference, path.name)
        else:
            raise ResolveError(f"There is no file or folder {str(path)!r}. Check the path.")
        return replace(found, marks=marks_of(path, found.files))
    except OSError as error:
        where = Path(error.filename or path).name
        raise ResolveError(
            f"{reference.label}: cannot read {where}: {error.strerror or error}. Check its "
            "permissions and its disk."
        ) from error


def resolve_stand_in(reference: ModelReference, copy: StandIn) -> Checkpoint:
    """Open a copy on disk in the place of the Hub's, whose checksums it was found to have.

    Raises:
        ResolveError: it is not clear which file holds the weights.
        CheckpointError: the weights cannot be read.
        VerificationError: its weights are in other files than those that have a checksum.
    """
    path = Path(copy.path)
    folder, file = (path, reference.file) if path.is_dir() else (path.parent, path.name)
    facts = replace(facts_of_card(folder), sha256=copy.sha256)
    try:
        found = open_folder(folder, reference, file, reference.revision, facts)
    except OSError as error:
        raise ResolveError(
            f"the copy of {reference.location} cannot be read: {error.strerror or error}. Check "
            "its permissions and its disk."
        ) from error
    if other := sorted(set(found.files) - copy.sha256.keys()):
        raise VerificationError(
            f"the copy of {reference.location} has its weights in {other[0]}, of which the recipe "
            "has no sha256. Give the files of that commit alone."
        )
    text = (
        f"{reference.location} was read from a copy on disk with the recipe's sha256; the files "
        "beside its weights were not compared."
    )
    return replace(placed(found, folder, facts), warnings=(*found.warnings, text))


def placed(found: Checkpoint, top: Path, facts: ModelFacts) -> Checkpoint:
    """The model with the facts of its repository, whose licence texts lie at the top.

    Their names are as seen from the folder that was opened, which is another one where a file
    below the top was named.
    """
    assert found.folder is not None
    above = "../" * len(found.folder.relative_to(top).parts)
    texts = tuple(above + name for name in facts.license_files)
    return replace(found, facts=replace(facts, license_files=texts))


def open_folder(
    folder: Path,
    reference: ModelReference,
    file: str | None = None,
    commit: str | None = None,
    facts: ModelFacts | None = None,
) -> Checkpoint:
    """Open the weights in a folder; `file` names them where it is not to be found out.

    Raises:
        ResolveError: it is not clear which file holds the weights.
        CheckpointError: the weights cannot be read.
    """
    names = {p.relative_to(folder).as_posix() for p in folder.iterdir() if p.is_file()}
    label = reference.label
    home = (folder / file).parent if file else folder  # the config lies beside the weights
    config = _read_config(home, label)
    refuse_quantised(config, label)
    stage, parts, warnings = None, dict[str, str](), tuple[str, ...]()
    if file is None:
        stage, parts, warnings = stage_files(names, reference.stage, label)
    elif reference.stage is not None:
        raise ResolveError(f"{label}: '?stage=' chooses among the files of a folder: name that.")
    chosen = file or next(iter(parts.values()), None) or choose_weights(names, label)
    index = None
    files = list(parts.values()) or [chosen]
    if chosen.endswith(".json"):
        index = parse_config(_read(folder / chosen, label), f"{label}: {chosen}")
        there = names | {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        files = shard_names(index, label, chosen, there)
    readers = [LocalFile(folder / name, name) for name in files]
    opened = open_files(readers, label, reference.weights, index, chosen, parts)
    refuse_no_numbers(opened.entries, label)
    staged = replace(reference, stage=stage)
    processor = processor_of(lambda name: _content(home / name))
    facts = facts or facts_of_card(folder)
    return opened.checkpoint(staged, commit, config, facts, warnings, home, processor)


def _read(path: Path, label: str) -> bytes:
    """A configuration or index, unless it is absurdly long."""
    try:
        check_config_size(path.stat().st_size, f"{label}: {path.name}")
        return read_small(path, MAX_CONFIG)
    except OSError as error:
        raise ResolveError(
            f"{label}: cannot read {path.name}: {error.strerror}. Check its permissions."
        ) from error


def _content(path: Path) -> bytes | None:
    """The content of a small file, None where there is none."""
    return read_small(path, MAX_CONFIG) if path.is_file() else None


def _read_config(folder: Path, label: str) -> dict[str, Any] | None:
    path = folder / "config.json"
    return parse_config(_read(path, label), f"{label}: config.json") if path.is_file() else None


def processor_of(read: Callable[[str], bytes | None]) -> dict[str, Any] | None:
    """The settings of a model's image processor; None where there are none that can be read.

    They are asked for a warning only: what is wrong with a file shows where it is copied.

    Args:
        read: gives the content of a file beside the weights, None where there is none.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            found = parse_config(read(name) or b"", name)
        except (CheckpointError, OSError):
            continue
        inner = found.get("image_processor", found)
        return inner if isinstance(inner, dict) else found
    return None


def facts_of_card(folder: Path) -> ModelFacts:
    """What the front matter of a folder's README.md declares; nothing is guessed."""
    path = folder / "README.md"
    declared = front_matter(_beginning(path)) if path.is_file() else {}
    beside = list(folder.iterdir())
    for path in beside[:]:
        if path.name.upper() in LICENSE_FOLDERS and path.is_dir():
            beside += path.iterdir()
    found = [path.relative_to(folder).as_posix() for path in beside if path.is_file()]
    texts = sorted(filter(is_license_file, found))
    copied = [name for name in (*SIDE_FILES, *texts) if name in found]
    before = _links_merged(folder)
    links = tuple(name for name in copied if name in before or leads_out(folder / name, folder))
    return facts_from(declared, license_files=tuple(texts), links=links)


def _links_merged(folder: Path) -> set[str]:
    """What an earlier merge copied over links into a folder: merged again it is no more public."""
    path = folder / MERGED
    if not path.is_file():
        return set()
    try:
        models = json.loads(read_small(path, _LONGEST_MANIFEST))["plan"]["models"]
        links = {name for model in models for name in model.get("links") or ()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()
    # texts of all parents are in one file
    return {name if name in SIDE_FILES else "LICENSE" for name in links}


def _beginning(path: Path) -> str:
    """As much of a card as its front matter may take, whatever its length."""
    with path.open("rb") as file:
        return file.read(MAX_FRONT_MATTER + 8).decode("utf-8", "replace").replace("\r\n", "\n")


def front_matter(text: str) -> dict[str, Any]:
    """The YAML at the head of a card, empty where there is none or it is broken.

    Only texts, lists and tables are built; numbers, dates and the like are None. It counts as
    broken where it has aliases or merge keys, by which a few lines describe gigabytes, or is nested
    deeply.
    """
    if not text.startswith("---"):
        return {}
    head, found, _ = text[3:].partition("\n---")
    if not found or len(head) > MAX_FRONT_MATTER:
        return {}
    try:
        declared = load_texts(head)
    except NotYamlError:
        return {}
    return declared if isinstance(declared, dict) else {}


def is_license_file(name: str) -> bool:
    """Whether a file of a repository is a licence text or notice, by its path there.

    >>> [is_license_file(name) for name in ("LICENSE-MIT", "LICENSES/MIT.txt", "COPYING.LESSER")]
    [True, True, True]
    >>> is_license_file("license_plates.txt"), is_license_file("docs/LICENSE")
    (False, False)
    """
    folder, _, own = name.rpartition("/")
    if own.endswith(_NO_TEXTS):
        return False
    if folder:
        return folder.upper() in LICENSE_FOLDERS
    return _LICENSE_FILE.fullmatch(own) is not None


def _licenses(declared: Sequence[str]) -> list[str]:
    """Each licence that a card lists; of a list nobody says that one may be chosen, so all hold."""
    found = list(dict.fromkeys(text.strip() for text in declared if text.strip()))
    sane = len(found) <= _MOST_LICENSES and all(len(text) <= _LONGEST_LICENSE for text in found)
    return found if sane else ["other"]


def facts_from(declared: Mapping[str, Any], **known: Any) -> ModelFacts:
    """Facts from the metadata of a card; whatever has another type than it should is left out."""

    def text(name: str) -> str | None:
        return next((item for item in texts(name) if item.strip()), None)

    def texts(name: str) -> tuple[str, ...]:
        value = declared.get(name)
        items = value if isinstance(value, list) else [value]
        return tuple(item for item in items if isinstance(item, str))

    return ModelFacts(
        license=TOGETHER.join(_licenses(texts("license"))) or None,
        license_name=text("license_name"),
        license_link=text("license_link"),
        datasets=texts("datasets"),
        base_models=tuple(filter(is_repository_id, texts("base_model")))[:_MOST_BASES],
        pipeline_tag=known.pop("pipeline_tag", None) or text("pipeline_tag"),
        **known,
    )
