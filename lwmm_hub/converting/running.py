"""One conversion from reference to published folder."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwmm_hub.checkpoint import SIDE_FILES, Checkpoint, LocalFile
from lwmm_hub.converting.copying import copy_tensors, output_tensors
from lwmm_hub.converting.targets import spell_for_transformers
from lwmm_hub.errors import OutputError, UsageError
from lwmm_hub.merging.segments import OpenFiles
from lwmm_hub.options import DTYPE_OPTIONS
from lwmm_hub.pipeline import output_folder
from lwmm_hub.planning import output_dtype, parse_size
from lwmm_hub.reference import WEIGHT_SUFFIXES, ModelReference
from lwmm_hub.resolving import resolve
from lwmm_hub.resolving.opening import parse_config
from lwmm_hub.writing import (
    CONVERSION,
    check_output,
    copy_beside,
    publish_folder,
    read_beside,
    recover,
    shard,
    start_sync,
    temporary_folder,
    write_index,
    write_json,
    write_text,
)
from lwmm_hub.writing.folder import Words, disk_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEYS = ("own", "transformers")
SUFFIX = ".safetensors"
MAX_LICENSE = 1 << 20
WORDS = Words("result", by="")  # of messages: the output of convert is no option


@dataclass(frozen=True)
class ConversionResult:
    """A converted checkpoint.

    Attributes:
        path: the folder, or the file where one was named.
        source: what it was made of, without any path.
        class_name: the class of transformers that loads it, None in its own keys.
        tensors: how many it holds.
        split: fused tensors of the file that became several.
        left_out: what the file holds and the result does not -> why.
        added: counters that the class has and the file has not; they are 0.
        config_from: field of config.json -> where its value comes from.
        files: weight file -> sha256.
        bytes_written: of weights.
        seconds: wall time.
        warnings: what the user should know.
    """

    path: Path
    source: str
    class_name: str | None
    tensors: int
    split: int
    left_out: Mapping[str, str]
    added: tuple[str, ...]
    config_from: Mapping[str, str]
    files: Mapping[str, str]
    bytes_written: int
    seconds: float
    warnings: tuple[str, ...] = ()

    def load(self, **options: Any) -> PreTrainedModel:
        """The model, loaded by the class of transformers that its config names.

        Raises:
            OutputError: it has no config, or keys are missing or left over.
        """
        from lwmm_hub.loading import load_model

        return load_model(self.path, **options)

    def to_dict(self) -> dict[str, Any]:
        """What `lwmm-hub convert --json` prints."""
        return {
            "output": str(self.path),
            "source": self.source,
            "class": self.class_name,
            "tensors": self.tensors,
            "split": self.split,
            "left_out": dict(self.left_out),
            "added": list(self.added),
            "config_from": dict(self.config_from),
            "seconds": round(self.seconds, 3),
            "bytes_written": self.bytes_written,
            "sha256": dict(self.files),
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        """Some lines for people; every reason for which something was left out is there."""
        what = f" as a {self.class_name}" if self.class_name else ""
        from lwmm_hub.display import one_line

        lines = [
            f"Wrote {self.tensors} tensors{what} to {self.path} "
            f"({self.bytes_written / 1e6:.1f} MB, {self.seconds:.1f} s)"
        ]
        if self.split:
            lines.append(f"split: {self.split} fused tensors of {self.source}")
        for reason, count in Counter(self.left_out.values()).items():
            first = next(key for key, why in self.left_out.items() if why == reason)
            example = one_line(first) if count == 1 else f"{count} tensors, e.g. {one_line(first)}"
            lines.append(f"left out: {example}: {reason}")
        if self.added:
            lines.append(f"added: {len(self.added)} counters of 0, e.g. {self.added[0]}")
        told: dict[str, list[str]] = {}
        for name, source in self.config_from.items():
            told.setdefault(source, []).append(name)
        known = {"shapes": "read off the shapes", "given": "as given"}
        lines += [
            f"config {known.get(source, f'from {source}')}: {', '.join(names)}"
            for source, names in told.items()
        ]
        return "\n".join(lines)


def convert(
    model: str | os.PathLike[str] | ModelReference,
    output: str | os.PathLike[str],
    *,
    to: str = "own",
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    dtype: str = "auto",
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ConversionResult:
    """Write a checkpoint as safetensors; tensors are streamed, whatever their size.

    In its own keys it keeps every tensor; wrappers (`state_dict`), prefixes (`module.`) and other
    copies of the weights are taken off and listed. For transformers its keys become those of a
    class that loads it, and its config.json follows from the shapes; what no shape shows is taken
    from the published model of these sizes, or has to be given.

    Args:
        model: the checkpoint, as `lwmm_hub.merge` takes it; `?weights=ema` chooses a copy.
        output: a folder, which appears whole or not at all; in own keys also `NAME.safetensors`.
        to: whose keys: `own` or `transformers`.
        config: for transformers: a config.json, or the fields of one.
        dtype: of the result's floats: `auto` (as they are), float32, float16 or bfloat16.
        max_shard_size: largest weight file of a folder.
        overwrite: replace what an earlier call wrote there.
        progress: called with the bytes made since the last call.

    Raises:
        UsageError: an option is unknown, or does not go with another.
        CheckpointError: the weights cannot be read, or are of no class of transformers.
        OutputError: the output exists, or cannot be written.
    """
    started = time.monotonic()
    for name, value, choices in (("to", to, KEYS), ("dtype", dtype, DTYPE_OPTIONS)):
        if value not in choices:
            raise UsageError(f"{name} {value!r} is unknown: choose {', '.join(choices)}.")
    parse_size(max_shard_size)
    if config is not None and to == "own":
        raise UsageError("a config goes with --to transformers: leave it out.")
    path = output_folder(output)
    if path.suffix == SUFFIX and to != "own":
        raise UsageError(f"a model of transformers is a folder: name one instead of {path.name}.")
    reference = (
        model if isinstance(model, ModelReference) else ModelReference.parse(os.fspath(model))
    )
    given = _given(config)
    checkpoint = resolve(reference, download=False)
    made = _made(checkpoint, to, given)
    _check_output(made, path, dtype, overwrite)
    if path.suffix in WEIGHT_SUFFIXES and path.suffix != SUFFIX:
        raise UsageError(
            f"convert writes safetensors, and {path.name} sounds like another format: name a "
            f"folder, or {path.stem}{SUFFIX}."
        )
    if reference.on_hub:  # what headers and the disk can refuse, they have by now
        commit = checkpoint.commit or reference.revision
        full = resolve(replace(reference, revision=commit), download=True)
        warnings = tuple(dict.fromkeys((*checkpoint.warnings, *full.warnings)))
        full = replace(full, reference=reference, warnings=warnings)
        made = _made(full, to, given)
    return _write(made, path, dtype, max_shard_size, overwrite, progress, started)


@dataclass(frozen=True)
class _Made:
    """What is to be written."""

    checkpoint: Checkpoint
    left_out: Mapping[str, str]
    config: Mapping[str, Any] | None = None
    class_name: str | None = None
    config_from: Mapping[str, str] | None = None
    split: int = 0
    added: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _made(checkpoint: Checkpoint, to: str, given: Mapping[str, Any]) -> _Made:
    if to == "own":
        return _Made(checkpoint, checkpoint.ignored)
    spelled = spell_for_transformers(checkpoint, given)
    return _Made(
        spelled.checkpoint,
        {**checkpoint.ignored, **spelled.left_out},
        spelled.config,
        spelled.class_name,
        spelled.config_from,
        spelled.split,
        spelled.added,
        spelled.notes,
    )


def _given(config: str | os.PathLike[str] | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if config is None or isinstance(config, Mapping):
        return config or {}
    path = Path(config)
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}: name a config.json with --config.")
    return parse_config(
        read_beside(path.resolve().parent, path.resolve().name, "--config"), path.name
    )


def _check_output(made: _Made, path: Path, dtype: str, overwrite: bool) -> None:
    """Refuse an output that exists, is an input, or does not fit, before anything is read."""
    checkpoint = made.checkpoint
    inputs = [r.path for r in checkpoint.readers.values() if isinstance(r, LocalFile)]
    if not checkpoint.reference.on_hub:
        inputs.append(Path(checkpoint.reference.location))
    if path.suffix == SUFFIX:
        _check_file(path, overwrite, inputs)
        return
    tensors = output_tensors(checkpoint.entries, lambda code: output_dtype(code, dtype))
    check_output(path, overwrite, inputs, sum(tensor.size for tensor in tensors), WORDS)


def _write(
    made: _Made,
    path: Path,
    dtype: str,
    max_shard_size: str,
    overwrite: bool,
    progress: Callable[[int], None] | None,
    started: float,
) -> ConversionResult:
    checkpoint = made.checkpoint
    tensors = output_tensors(checkpoint.entries, lambda code: output_dtype(code, dtype))
    as_file = path.suffix == SUFFIX
    shards = [(path.name, tensors)] if as_file else shard(tensors, max_shard_size)
    with temporary_folder(path, WORDS) as folder:
        with ExitStack() as stack:
            files = OpenFiles([checkpoint], stack)
            sha256 = {}
            try:
                for name, members in shards:
                    sha256[name] = copy_tensors(folder / name, members, checkpoint, files, progress)
            except OSError as error:
                raise disk_error(error, folder, WORDS) from error
        result = ConversionResult(
            path,
            _name_of(checkpoint),
            made.class_name,
            len(tensors),
            made.split,
            made.left_out,
            made.added,
            made.config_from or {},
            sha256,
            sum((folder / name).stat().st_size for name in sha256),
            time.monotonic() - started,
            (*checkpoint.warnings, *made.notes),
        )
        start_sync([folder / name for name in sha256])()
        if as_file:
            _publish_file(folder / path.name, path, overwrite)
            return result
        write_index(folder, shards)
        _write_beside(folder, made, dtype)
        write_json(folder / CONVERSION, _record(result))
        publish_folder(folder, path, overwrite, WORDS)
    return replace(result, seconds=time.monotonic() - started)


def _record(result: ConversionResult) -> dict[str, Any]:
    """What is kept beside the weights: nothing of this machine or of this hour."""
    data = result.to_dict()
    for name in ("output", "seconds"):
        del data[name]
    return data


def _name_of(checkpoint: Checkpoint) -> str:
    """The model, pinned to its commit."""
    commit = f" at {checkpoint.commit}" if checkpoint.commit else ""
    copy = checkpoint.reference.weights
    which = f" ({copy} weights)" if copy != "student" else ""
    return f"{checkpoint.label}{commit}{which}"


def _write_beside(folder: Path, made: _Made, dtype: str) -> None:
    """Configuration, image processor and licence."""
    checkpoint = made.checkpoint
    stored = checkpoint.dtype if dtype == "auto" else dtype
    if made.config is None:
        copy_beside(folder, checkpoint, stored)
    else:
        own = (checkpoint.config or {}).get("model_type") == made.config["model_type"]
        if own:  # what lies beside weights of another system is no processor of transformers
            others = [name for name in SIDE_FILES if name != "config.json"]
            copy_beside(folder, checkpoint, stored, others)
        text = json.dumps({**made.config, "dtype": stored}, indent=2, ensure_ascii=False)
        write_text(folder / "config.json", text + "\n")
    texts = []
    for name in checkpoint.facts.license_files:
        if checkpoint.folder is None:
            break
        path = checkpoint.folder / name
        if path.is_file() and path.stat().st_size <= MAX_LICENSE:
            links = checkpoint.facts.links
            texts.append(read_beside(checkpoint.folder, name, checkpoint.label, links=links))
    if texts:
        (folder / "LICENSE").write_bytes(b"\n\n".join(texts))


def _check_file(path: Path, overwrite: bool, inputs: list[Path]) -> None:
    """Refuse a file that exists or is an input, before anything is read.

    Raises:
        OutputError: with what to do.
    """
    recover(path)
    if path.resolve() in [other.resolve() for other in inputs]:
        raise OutputError(f"{path} is the model itself: choose another name.")
    if path.is_symlink() or path.is_dir():
        raise OutputError(f"{path} is a folder or a link: choose another name.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already. Pass --overwrite to replace it.")


def _publish_file(made: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name.

    Raises:
        OutputError: without `overwrite`, another run has written it meanwhile.
    """
    if overwrite or not hasattr(os, "link"):
        made.replace(path)
        return
    try:
        os.link(made, path)  # unlike a rename it never replaces a file
    except FileExistsError:
        raise OutputError(
            f"{path} was written by another run meanwhile, and is left as it is. Choose another "
            "name."
        ) from None
    except OSError:  # a file system without hard links
        made.replace(path)
