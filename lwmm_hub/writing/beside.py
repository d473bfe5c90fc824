"""What lies beside the weights: configuration, image processor, and how texts are written."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lwmm_hub.checkpoint import SIDE_FILES, Checkpoint, dtype_name
from lwmm_hub.errors import CheckpointError
from lwmm_hub.planning import MergePlan
from lwmm_hub.small_files import leads_out, read_small

MAX_BESIDE = 256 << 20  # bytes of a file beside the weights; the largest tokenizers have 40 MB


def copy_side_files(folder: Path, anchor: Checkpoint, plan: MergePlan) -> None:
    """Configuration and image processor of the anchor, unchanged but for `dtype`."""
    copy_beside(folder, anchor, stored_dtype(anchor, plan), follow=True)  # a push looks at links


def copy_beside(
    folder: Path,
    model: Checkpoint,
    dtype: str,
    names: Sequence[str] = SIDE_FILES,
    follow: bool = False,
) -> None:
    """What lies beside a model's weights, unchanged but for the `dtype` in config.json.

    Args:
        folder: to be written to.
        model: whose.
        dtype: the true one.
        names: of the files.
        follow: copy what a link leads to outside the model's folder.

    Raises:
        CheckpointError: one cannot be read, is absurdly long, or a link that is not followed.
    """
    if model.folder is None:
        return
    for name in names:
        source = model.folder / name
        if source.is_file():
            text = read_beside(model.folder, name, model.label, follow, model.facts.links)
            if name == "config.json":
                text = _with_dtype(text, dtype)
            (folder / name).write_bytes(text)


def read_beside(
    folder: Path, name: str, label: str, follow: bool = False, links: Collection[str] = ()
) -> bytes:
    """A file that lies beside a parent's weights, to be copied into what may be published.

    Args:
        folder: of the model.
        name: of the file.
        label: of the model.
        follow: read what a link leads to elsewhere.
        links: names that are such links, or were when an earlier merge copied them.

    Raises:
        CheckpointError: it cannot be read, is absurdly long, or a link to a file elsewhere that
            is not to be followed.
    """
    path = folder / name
    try:
        if not follow and (name in links or leads_out(path, folder)):
            raise _elsewhere(label, path.name)
        return read_small(path, MAX_BESIDE)
    except OSError as error:
        next_step = "Check its permissions."
        if error.errno == errno.EFBIG:
            next_step = "Move it elsewhere, or ask its author for a sound copy."
        raise CheckpointError(
            f"{label}: cannot read {path.name}: {error.strerror or error}. {next_step}"
        ) from error


def _elsewhere(label: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{label}: {name} comes over a link from outside its folder, and would be copied into what "
        "may be published. Put a copy of that file in its place, or remove the link."
    )


def stored_dtype(anchor: Checkpoint, plan: MergePlan) -> str:
    """The usual name of the dtype that the output's floats are stored in."""
    option = plan.options.dtype
    return anchor.dtype if option == "auto" else option


def _with_dtype(text: bytes, dtype: str) -> bytes:
    """config.json as it is where its dtype is true, else with the true one."""
    config = json.loads(text)
    said = [config[name] for name in ("dtype", "torch_dtype") if name in config]
    if all(name == dtype for name in said) and (said or dtype == dtype_name("F32")):
        return text
    if "torch_dtype" in config:
        config["torch_dtype"] = dtype
    config["dtype"] = dtype
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with plain newlines on every system, in one step.

    What bore the name is replaced, never written through: it may be a link to a file elsewhere.
    """
    if path.is_file() and not path.is_symlink() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))  # as it was meant
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        fresh.write_bytes(text.encode())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write readable JSON: an entry of a table on a line, an item of a list on a line."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    write_text(path, _json(data, encode, "") + "\n")


def _json(value: Any, encode: Callable[[Any], str], indent: str) -> str:
    """Tables spread over lines, the items of their lists each on one.

    `json` indents in Python, which takes five times as long for a plan of a thousand tensors.
    """
    inner = f"{indent} "
    if isinstance(value, Mapping) and any(isinstance(v, Mapping | list) for v in value.values()):
        rows = [f"{encode(str(k))}: {_json(v, encode, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(inner + row for row in rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        return "[\n" + ",\n".join(inner + encode(item) for item in value) + f"\n{indent}]"
    return encode(value)
