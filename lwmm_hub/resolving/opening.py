"""Weight files -> tensors: the same for files on disk and files read by ranges on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lwmm_hub.checkpoint import ByteReader, Checkpoint, LocalFile, ModelFacts, TensorEntry
from lwmm_hub.checkpoint.copies import PAIRS, dotless_average, holds_copy, is_dotless_counter
from lwmm_hub.checkpoint.layout import classes_in
from lwmm_hub.checkpoint.safetensors import RESERVED, read_safetensors
from lwmm_hub.errors import CheckpointError
from lwmm_hub.reference import ModelReference
from lwmm_hub.resolving.choosing import check_shards

# copies of one network in a training checkpoint (DAFormer, HRDA, MIC, EDAPS): prefix of the keys
COPIES = {"student": "model.", "ema": "ema_model.", "imagenet": "imnet_model."}
HOW = {name: f"?weights={name}" for name in COPIES} | {"student": "without '?weights='"}
MAX_CONFIG = 10 << 20
MAX_NAME = 512  # characters of a tensor's name; those of models have at most 200


@dataclass(frozen=True)
class OpenedFiles:
    """What the weight files of one model hold.

    `copy` is the one that was taken where a file keeps several in dictionaries of their own, and
    `others` may be asked for instead.
    """

    format: str
    entries: Mapping[str, TensorEntry]
    readers: Mapping[str, ByteReader]
    path: tuple[str, ...] = ()
    prefix: str = ""
    parts: tuple[str, ...] = ()
    ignored: Mapping[str, str] | None = None
    warnings: tuple[str, ...] = ()
    part_files: Mapping[str, str] = field(default_factory=dict)
    pretraining: Mapping[str, TensorEntry] = field(default_factory=dict)
    copy: str = "student"
    others: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def checkpoint(
        self,
        reference: ModelReference,
        commit: str | None,
        config: Mapping[str, Any] | None,
        facts: ModelFacts,
        warnings: Sequence[str],
        folder: Path | None = None,
        processor: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """The model, with what its place says of it; `warnings` come after the files' own."""
        return Checkpoint(
            reference,
            commit,
            self.format,
            self.entries,
            self.readers,
            config,
            folder,
            path=self.path,
            prefix=self.prefix,
            parts=self.parts,
            ignored=self.ignored or {},
            facts=facts,
            warnings=(*self.warnings, *warnings),
            part_files=self.part_files,
            pretraining=self.pretraining,
            processor=processor,
            classes=self.classes,
        )


def open_files(
    readers: Sequence[ByteReader],
    label: str,
    weights: str,
    index: Mapping[str, Any] | None = None,
    index_name: str = "",
    part_files: Mapping[str, str] | None = None,
) -> OpenedFiles:
    """Read the headers of a model's files and pick the wanted copy of its weights.

    `part_files` (part -> file, in the order of `readers`) says that each file is a part of the
    model with keys of its own: they become `part/key`.

    Raises:
        CheckpointError: a file is damaged, a tensor stands in two files or in none or has a name
            that cannot be written, or there is no such copy.
    """
    opened = [_open_of(label, reader, weights) for reader in readers]
    if len({file.copy for file in opened}) > 1:
        raise CheckpointError(
            f"{label} has the {weights!r} weights in some of its files only. Save the ones "
            "to merge in files of their own with torch.save."
        )
    if part_files:
        opened = _as_parts(opened, part_files)
    if len(opened) == 1:
        merged = opened[0]
    else:
        entries: dict[str, TensorEntry] = {}
        for part in opened:
            if twice := entries.keys() & part.entries.keys():
                raise CheckpointError(
                    f"{label}: {min(twice)[:120]!r} stands in two of its files. Download it again."
                )
            entries |= part.entries
        together = {name: reader for part in opened for name, reader in part.readers.items()}
        warnings = tuple(dict.fromkeys(text for part in opened for text in part.warnings))
        merged = replace(opened[0], entries=entries, readers=together, warnings=warnings)
    longest = max(map(len, merged.entries), default=0)
    if longest > MAX_NAME:
        raise CheckpointError(
            f"{label} has a tensor whose name has {longest} characters; at most {MAX_NAME} are "
            "read. Rename it and save the model again."
        )
    if index is not None:
        found = {merged.prefix + key: entry.file for key, entry in merged.entries.items()}
        check_shards(index, found, label, index_name)
    if not merged.entries:
        raise CheckpointError(f"{label} holds no tensors. Name a file with weights.")
    chosen = _choose_copy(merged, label, weights)
    if RESERVED in chosen.entries:
        raise CheckpointError(
            f"{label} has a tensor called {RESERVED!r}, which no safetensors file can hold. Rename "
            "it and save the model again."
        )
    return chosen


def _as_parts(opened: Sequence[OpenedFiles], part_files: Mapping[str, str]) -> list[OpenedFiles]:
    """Each file's keys below the name of its part; a prefix that not all have stays in the keys."""
    prefixes = {file.prefix for file in opened}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    parts = []
    for part, file in zip(part_files, opened, strict=True):
        stay = "" if file.prefix == prefix else file.prefix
        entries = {
            f"{part}/{stay}{key}": replace(entry, key=f"{part}/{stay}{key}")
            for key, entry in file.entries.items()
        }
        parts.append(
            replace(
                file,
                entries=entries,
                path=(),
                prefix=prefix,
                parts=tuple(part_files),
                part_files=dict(part_files),
            )
        )
    return parts


def _open_of(label: str, reader: ByteReader, weights: str) -> OpenedFiles:
    """One file; a message about it names the model too, since many files have the same name."""
    alone = label == PurePosixPath(reader.name).stem
    try:
        opened = _open(reader, weights)
    except CheckpointError as error:
        if alone:
            raise
        raise type(error)(f"{label}: {error}") from error
    if alone:
        return opened
    return replace(opened, warnings=tuple(f"{label}: {text}" for text in opened.warnings))


def _open(reader: ByteReader, weights: str) -> OpenedFiles:
    if reader.name.endswith(".safetensors"):
        if reader.size and reader.size < 512:
            _refuse_pointer(reader)
        entries, _ = read_safetensors(reader)
        return OpenedFiles("safetensors", entries, {reader.name: reader})
    from lwmm_hub.checkpoint import pytorch

    kind = pytorch.sniff(reader)
    if kind == "safetensors":
        entries, _ = read_safetensors(reader)
        return OpenedFiles("safetensors", entries, {reader.name: reader})
    if kind == "zip" or not isinstance(reader, LocalFile):
        if kind != "zip":
            raise NeedsDownload(reader.name)
        pickled = pytorch.read_pytorch_zip(reader, locate=isinstance(reader, LocalFile))
        source: ByteReader = reader
    else:
        pickled, source = pytorch.read_pytorch(reader)
    state = pytorch.find_state_dicts(pickled.tree, reader.name, weights)
    readers: dict[str, ByteReader] = {reader.name: source}
    found = {key: replace(entry, file=reader.name) for key, entry in state.entries.items()}
    if isinstance(reader, LocalFile):
        found, gathered = pytorch.contiguous(found, source)
        if gathered is not None:
            readers[gathered.name] = gathered
    return OpenedFiles(
        "pytorch",
        found,
        readers,
        state.path,
        state.prefix,
        state.parts,
        dict.fromkeys(state.unused, "not part of the state dict"),
        state.warnings,
        copy=state.copy,
        others=state.others,
        classes=classes_in(pickled.tree),
    )


class NeedsDownload(Exception):
    """A legacy pickle on the Hub: it has no index, so it is downloaded whole."""


def _refuse_pointer(reader: ByteReader) -> None:
    """A Git LFS pointer gets its own message."""
    from lwmm_hub.checkpoint.pytorch import sniff

    sniff(reader)


def _choose_copy(opened: OpenedFiles, label: str, weights: str) -> OpenedFiles:
    """Keep the wanted copy where a file holds several; strip its prefix, list the others."""
    outermost = {key.partition(".")[0] for key in opened.entries if "." in key}
    there = {name: prefix[:-1] in outermost for name, prefix in COPIES.items()}
    if opened.copy == "student" and not there["ema"] and not there["imagenet"]:
        copies, who = dotless_average(opened.entries)
        if copies and weights in ("student", "ema"):
            return _without_dots(opened, label, weights, copies, who)
    apart = weights != "student" and not there["ema"] and opened.copy == "student"
    teacher = _teacher(opened.entries) if apart else None
    if weights == "ema" and teacher:
        return _below(opened, teacher)
    # a checkpoint that was trimmed to its student, as against a model with an attribute `model`
    trimmed = opened.format == "pytorch" and all(
        any(key.startswith(COPIES["student"] + part) for key in opened.entries)
        for part in ("backbone.", "decode_head.")
    )
    wanted = weights
    if weights == "ema" == opened.copy and not there["ema"]:
        wanted = "student"  # the average of all that its student's dictionary holds
    several = there["ema"] or there["imagenet"]
    if not several and opened.copy == weights and not (trimmed and wanted == "student"):
        return opened
    if not several and weights == "student" and not trimmed:
        return opened
    trained = [name for name in ("student", "ema") if there[name]]
    if wanted == "student" and trained == ["ema"]:  # MIC detection keeps its teacher like that
        wanted = "ema"
        text = f"{label} has no student, only its teacher (?weights=ema): that is taken."
        opened = replace(opened, warnings=(*opened.warnings, text))
    if not there[wanted]:
        have = {name for name, found in there.items() if found} if several else {opened.copy}
        have |= {*opened.others, *(["ema"] if teacher else [])}
        if have == {"student"}:
            raise CheckpointError(
                f"{label} holds one copy of its weights, no {weights!r}. Leave '?weights=' out."
            )
        listed = ", ".join(f"{name} ({HOW[name]})" for name in COPIES if name in have)
        raise CheckpointError(
            f"{label} has no {weights!r} weights. It has: {listed}. Name one of them."
        )
    start = COPIES["imagenet"]
    pretraining = {
        key[len(start) :]: entry
        for key, entry in opened.entries.items()
        if wanted != "imagenet" and key.startswith(start)
    }
    return replace(_below(opened, COPIES[wanted]), pretraining=pretraining)


def _without_dots(
    opened: OpenedFiles, label: str, weights: str, copies: Mapping[str, str], who: str
) -> OpenedFiles:
    """The student, or its average under the same keys; what has no average is the student's."""
    aside = {key for key in opened.entries if is_dotless_counter(key)} | set(copies.values())
    source = copies if weights == "ema" else {}
    entries = {
        key: replace(opened.entries[source.get(key, key)], key=key)
        for key in opened.entries
        if key not in aside
    }
    other = "student" if weights == "ema" else "ema"
    ignored = {**(opened.ignored or {})}
    for key in sorted(aside - set(source.values())):
        counter = is_dotless_counter(key)
        ignored[key] = "a counter" if counter else f"another copy of the weights ({HOW[other]})"
    text = (
        f"{label} keeps an average of its weights under names without dots, as {who} does: the "
        f"{'average' if weights == 'ema' else 'student'} is taken ({HOW[other]}: the other one)."
    )
    if who.startswith("mmcv"):
        text += " Where that hook ran before the one that saves, each has the other's name."
    warnings = (*opened.warnings, text)
    return replace(opened, entries=entries, ignored=ignored, warnings=warnings, copy=weights)


def _teacher(entries: Mapping[str, TensorEntry]) -> str | None:
    """What stands before the keys of an average, where a state dict holds its student as well."""
    for student, teacher in PAIRS:
        average, own = (
            {key[len(p) :]: entry for key, entry in entries.items() if key.startswith(p)}
            for p in (teacher, student)
        )
        if holds_copy(average, own):
            return teacher
    return None


def _below(opened: OpenedFiles, prefix: str) -> OpenedFiles:
    """The tensors whose keys begin with `prefix`, without it; the others are listed."""
    entries, ignored = {}, dict(opened.ignored or {})
    for key, entry in opened.entries.items():
        if key.startswith(prefix):
            short = key[len(prefix) :]
            entries[short] = replace(entry, key=short)
        else:
            other = next((n for n, p in COPIES.items() if key.startswith(p)), None)
            ignored[key] = (
                f"another copy of the weights (?weights={other})"
                if other and prefix in COPIES.values() and opened.copy == "student"
                else "outside the chosen copy of the weights"
            )
    return replace(opened, entries=entries, prefix=opened.prefix + prefix, ignored=ignored)


def check_config_size(size: int, name: str) -> None:
    """Refuse a configuration that is absurdly long, before it is downloaded or parsed.

    Raises:
        CheckpointError: it is.
    """
    if size > MAX_CONFIG:
        raise CheckpointError(
            f"{name} has {size} bytes: that is no configuration. Ask its author for a sound copy."
        )


def parse_config(data: bytes, name: str) -> dict[str, Any]:
    """The content of a JSON file that is a table.

    Raises:
        CheckpointError: it is not one, or absurdly long.
    """
    check_config_size(len(data), name)
    try:
        config = json.loads(data)
        if b"\\u" in data or b"\xed" in data:  # halves of characters, which no file can hold
            text = json.dumps(config, ensure_ascii=False)
            config = json.loads(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not JSON. Download it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{name} is not a table of settings. Download it again.")
    return config
