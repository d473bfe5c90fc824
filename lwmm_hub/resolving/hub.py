"""Models on the Hub: pinned to a commit, read by ranges, downloaded through the ordinary cache."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, not re-exported
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
    httpx,
)

from lwmm_hub.checkpoint import SIDE_FILES, ByteReader, Checkpoint, LocalFile, ModelFacts
from lwmm_hub.errors import CheckpointError, ResolveError
from lwmm_hub.reference import WEIGHT_SUFFIXES, ModelReference
from lwmm_hub.resolving.choosing import choose_weights, shard_names, stage_files
from lwmm_hub.resolving.hub_cache import (
    cache_of,
    keep_sound,
    remember,
    remember_checksums,
    remembered,
    remembered_checksums,
)
from lwmm_hub.resolving.hub_errors import LIBRARY, hub_errors, not_here
from lwmm_hub.resolving.local import (
    facts_from,
    facts_of_card,
    is_license_file,
    open_folder,
    placed,
    processor_of,
)
from lwmm_hub.resolving.opening import (
    NeedsDownload,
    check_config_size,
    open_files,
    parse_config,
)
from lwmm_hub.resolving.refusing import refuse_no_numbers, refuse_quantised

HEAD = 1 << 16  # bytes of one range request, at least
TRIES = 3  # of a range whose connection breaks
KEEP = 1 << 22  # longest range that is kept in memory
_REFUSED = (401, 403, 404)  # what a deleted, renamed or private repository is answered with
KEEP_ALL = 1 << 24  # of all ranges of a file together
MAX_TEXT = 10 << 20  # bytes of a card; a longer one is not downloaded
MAX_LICENSE, MOST_LICENSES = 1 << 20, 64  # bytes of a licence that is downloaded, and how many
MAX_BESIDE = 64 << 20  # of a file that the model needs beside its weights, such as a tokenizer


class HubFile:
    """A file on the Hub, read by ranges; what was read lately is not asked for again."""

    derived = False

    def __init__(self, reference: ModelReference, commit: str, name: str, size: int) -> None:
        self.name, self.size = name, size
        self._reference = reference
        self._url = huggingface_hub.hf_hub_url(reference.location, name, revision=commit)
        self._kept: list[tuple[int, bytes]] = []

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises:
            CheckpointError: the file ends before.
            ResolveError: the Hub did not send them.
        """
        if offset < 0 or offset + length > self.size:
            raise CheckpointError(
                f"{self.name} ends at byte {self.size}, but bytes {offset} to {offset + length} "
                "are asked for: the file is damaged. Ask its author for a sound copy."
            )
        for start, data in self._kept:
            if start <= offset and offset + length <= start + len(data):
                return data[offset - start : offset - start + length]
        data = self._fetch(offset, min(self.size, offset + max(length, HEAD)))
        if len(data) <= KEEP:
            self._kept.append((offset, data))
            while sum(len(kept) for _, kept in self._kept) > KEEP_ALL:
                del self._kept[0]
        return data[:length]

    def _fetch(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`; a broken connection goes on where it broke."""
        data = bytearray()
        with hub_errors(self._reference):
            for _ in range(TRIES):
                self._receive(start, stop, data)
                if len(data) >= stop - start:
                    return bytes(data[: stop - start])
        raise ResolveError(
            f"the connection broke {TRIES} times while reading {self.name} of "
            f"{self._reference.location}. Try again later."
        )

    def _receive(self, start: int, stop: int, data: bytearray) -> None:
        """Append what arrives of `start` to `stop` behind the `data` that is there already."""
        headers = build_hf_headers(library_name=LIBRARY)
        headers |= {"Range": f"bytes={start + len(data)}-{stop - 1}", "Accept-Encoding": "identity"}
        with http_stream_backoff(
            "GET",
            self._url,
            headers=headers,
            follow_redirects=True,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        ) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise ResolveError(
                    f"the server sends all of {self.name} where a part was asked for. Download the "
                    f"model ('hf download {self._reference.location} --local-dir DIR') and name "
                    "that folder."
                )
            try:  # here: the client would send an error of the body through its own loop
                for block in response.iter_bytes():
                    data += block
                    if len(data) >= stop - start:
                        break
            except httpx.TransportError:
                return


def resolve_on_hub(reference: ModelReference, download: bool) -> Checkpoint:
    """Open a model of the Hub.

    Raises:
        ResolveError: it cannot be found or reached, with the next step.
        CheckpointError: the weights cannot be read.
    """
    with hub_errors(reference):
        if constants.HF_HUB_OFFLINE:
            return _from_cache(reference)
        try:
            info = _info_of(reference)
        except HfHubHTTPError as error:
            if (kept := _kept(reference, error)) is not None:
                return kept
            raise
        return _resolve(reference, info, download)


def _kept(reference: ModelReference, error: HfHubHTTPError) -> Checkpoint | None:
    """The commit in the cache where the Hub refuses it; None where it is not there as a whole.

    Repositories are deleted, renamed and made private, and a commit stays what it was.
    """
    status = error.response.status_code if error.response is not None else None
    if status not in _REFUSED or not reference.pinned:
        return None
    try:
        found = _from_cache(reference)
    except (ResolveError, CheckpointError):
        return None
    text = (
        f"the Hub does not give {reference.location} at {str(reference.revision)[:8]} (it answers "
        f"{status}): it was read from the cache. Keep a copy of it."
    )
    return replace(found, warnings=(*found.warnings, text))


def fetch_files(
    reference: ModelReference, needed: Collection[str], also: Collection[str] = ()
) -> tuple[Path, dict[str, str]] | None:
    """Files at the top of a repository, none of them its weights, whose checksums the Hub has.

    Offline it is what was fetched so before.

    Args:
        reference: of a model on the Hub; it is pinned to the commit that it is now.
        needed: names of files.
        also: of those that are fetched where they are there.

    Returns:
        The folder that holds them all, and weight file -> sha256; None where one that is needed is
        not there.

    Raises:
        ResolveError: the repository cannot be found or reached, with the next step.
    """
    with hub_errors(reference):
        if constants.HF_HUB_OFFLINE:
            return _fetched_before(reference)
        info = _info_of(reference)
        names = {s.rfilename for s in info.siblings or ()}
        if not names.issuperset(needed):
            return None
        pinned, commit = replace(reference, location=info.id), str(info.sha)
        paths = [
            _fetch(pinned, commit, name) for name in (*needed, *sorted(names.intersection(also)))
        ]
    checksums = {
        s.rfilename: s.lfs.sha256
        for s in info.siblings or ()
        if s.lfs and s.rfilename.endswith(WEIGHT_SUFFIXES)
    }
    remember(pinned.location, pinned.revision, commit)
    remember_checksums(pinned.location, commit, checksums)
    return paths[0].parent, checksums


def _fetched_before(reference: ModelReference) -> tuple[Path, dict[str, str]]:
    """What `fetch_files` gave when it could ask the Hub."""
    commit, folder = _snapshot(reference)
    checksums = remembered_checksums(reference.location, commit)
    if checksums is None:
        raise ResolveError(
            f"the cache holds {reference} without the checksums that the Hub has of its weights, "
            "and HF_HUB_OFFLINE is set. Run once without HF_HUB_OFFLINE."
        )
    return folder, checksums


def _info_of(reference: ModelReference) -> Any:
    """What the Hub says of a model at a revision, with sizes and checksums of its files."""
    api = huggingface_hub.HfApi(library_name=LIBRARY)
    try:
        return api.model_info(reference.location, revision=reference.revision, files_metadata=True)
    except TypeError as error:  # the client takes fields of a card for arguments of its own
        raise ResolveError(
            f"the Hub's client cannot read the card of {reference.location}. Download the "
            f"model ('hf download {reference.location} --local-dir DIR') and name that folder."
        ) from error


def _resolve(reference: ModelReference, info: Any, download: bool) -> Checkpoint:
    label = reference.label
    sizes = {s.rfilename: int(s.size or 0) for s in info.siblings or ()}
    commit = str(info.sha)
    stage, parts, warnings = None, dict[str, str](), tuple[str, ...]()
    if reference.file is None:
        stage, parts, warnings = stage_files(sizes, reference.stage, label)
    elif reference.stage is not None:
        raise ResolveError(
            f"{reference}: '?stage=' chooses among a repository's files: name no file."
        )
    chosen = reference.file or next(iter(parts.values()), None) or choose_weights(sizes, label)
    if chosen not in sizes:
        _no_such_file(reference, chosen, sizes)
    pinned = replace(reference, location=info.id, stage=stage)
    remember(pinned.location, pinned.revision, commit)
    config_name = _beside(chosen, "config.json")
    config = None
    if config_name in sizes:
        check_config_size(sizes[config_name], f"{label}: {config_name}")
        content = _fetch(pinned, commit, config_name).read_bytes()
        config = parse_config(content, f"{label}: {config_name}")
    refuse_quantised(config, label)
    index, files = None, list(parts.values()) or [chosen]
    if chosen.endswith(".json"):
        check_config_size(sizes[chosen], f"{label}: {chosen}")
        index = parse_config(_fetch(pinned, commit, chosen).read_bytes(), chosen)
        files = shard_names(index, label, chosen, sizes)
    cached = {name: path for name in files if (path := _in_cache(pinned, commit, name))}
    facts = _facts(info, files, sizes, cached)
    if info.id != reference.location:
        warnings += (f"{reference.location} is called {info.id} by now: use that name.",)
    if not download:
        readers: list[ByteReader] = [
            LocalFile(cached[name], name)
            if name in cached
            else HubFile(pinned, commit, name, sizes[name])
            for name in files
        ]
        try:
            opened = open_files(readers, label, reference.weights, index, chosen, parts)
        except NeedsDownload:
            download = True
        else:
            refuse_no_numbers(opened.entries, label)
            # what is not in the cache would cost a request: the merge itself looks again
            processor = processor_of(lambda name: _cached_bytes(pinned, commit, chosen, name))
            return opened.checkpoint(pinned, commit, config, facts, warnings, processor=processor)
    beside = [name for side in SIDE_FILES if (name := _beside(chosen, side)) in sizes]
    _check_beside(beside, sizes, label)
    texts = [n for n in facts.license_files if sizes[n] < MAX_LICENSE][:MOST_LICENSES]
    card = [n for n in ("README.md",) if sizes.get(n, MAX_TEXT) < MAX_TEXT]
    for name in (*beside, *card, *texts):
        _fetch(pinned, commit, name)
    folder = None
    for name in files:
        path = _fetch(pinned, commit, name)
        told = facts.sha256.get(name)
        if name not in cached and told and not keep_sound(path, told):
            raise ResolveError(
                f"{name} of {pinned.location} arrived damaged: its sha256 is not the one that the "
                "Hub has. Try again; if that does not help, tell its owner."
            )
        folder = Path(str(path)[: -len(name)])
    assert folder is not None
    found = open_folder(folder, pinned, None if parts else chosen, commit, facts)
    return replace(placed(found, folder, facts), warnings=(*found.warnings, *warnings))


def _check_beside(names: Sequence[str], sizes: Mapping[str, int], label: str) -> None:
    """Refuse files of absurd size before any of them is downloaded."""
    for name in names:
        if sizes[name] > MAX_BESIDE:
            raise CheckpointError(
                f"{label}: {name} has {sizes[name]} bytes: that is no part of a model. Download "
                "the weights alone and name their file."
            )


def _fetch(reference: ModelReference, commit: str, name: str) -> Path:
    """A file in the cache, downloaded if it is not there yet."""
    try:
        return Path(
            huggingface_hub.hf_hub_download(
                reference.location, name, revision=commit, library_name=LIBRARY
            )
        )
    except RuntimeError as error:  # hf_xet's
        raise ResolveError(
            f"the download of {name} of {reference.location} broke off. Try again; it goes on "
            "where it broke."
        ) from error


def _in_cache(reference: ModelReference, commit: str, name: str) -> Path | None:
    found = huggingface_hub.try_to_load_from_cache(reference.location, name, revision=commit)
    return Path(found) if isinstance(found, str) else None


def _cached_bytes(reference: ModelReference, commit: str, chosen: str, name: str) -> bytes | None:
    path = _in_cache(reference, commit, _beside(chosen, name))
    return path.read_bytes() if path is not None else None


def _beside(file: str, name: str) -> str:
    """`name` in the folder of `file`."""
    folder = file.rpartition("/")[0]
    return f"{folder}/{name}" if folder else name


def _facts(
    info: Any, files: Sequence[str], sizes: Mapping[str, int], cached: Collection[str]
) -> ModelFacts:
    declared = info.card_data.to_dict() if info.card_data is not None else {}
    checksums = {
        s.rfilename: s.lfs.sha256 for s in info.siblings or () if s.lfs and s.rfilename in files
    }
    return facts_from(
        declared,
        license_files=tuple(sorted(filter(is_license_file, sizes))),
        gated=bool(info.gated),
        private=bool(info.private),
        sha256=checksums,
        download_bytes=sum(sizes[name] for name in files if name not in cached),
        pipeline_tag=info.pipeline_tag,
    )


def _from_cache(reference: ModelReference) -> Checkpoint:
    """Open what the cache holds, without any request."""
    commit, folder = _snapshot(reference)
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    weights = [name for name in names if name.endswith(WEIGHT_SUFFIXES)]
    if not weights or (reference.file is not None and reference.file not in names):
        raise ResolveError(
            f"the cache holds {reference} without its weights, and HF_HUB_OFFLINE is set. Run once "
            "without HF_HUB_OFFLINE."
        )
    blobs = {name: (folder / name).resolve().name for name in weights}
    facts = replace(
        facts_of_card(folder),
        sha256={name: blob for name, blob in blobs.items() if re.fullmatch(r"[0-9a-f]{64}", blob)},
    )
    found = open_folder(folder, reference, reference.file, commit, facts)
    own = {name: digest for name, digest in facts.sha256.items() if name in found.files}
    return placed(found, folder, replace(facts, sha256=own))


def _snapshot(reference: ModelReference) -> tuple[str, Path]:
    """The commit that a revision was when it was last asked for, and its folder in the cache."""
    repo = reference.location
    commit = remembered(repo, reference.revision)
    folder = cache_of(repo) / "snapshots" / (commit or "")
    if commit is None or not folder.is_dir():
        raise ResolveError(
            f"{reference} is not in the cache, and HF_HUB_OFFLINE is set. Run once without "
            f"HF_HUB_OFFLINE, or name a local folder.{not_here(reference)}"
        )
    return commit, folder


def _no_such_file(reference: ModelReference, file: str, sizes: dict[str, int]) -> NoReturn:
    near = difflib.get_close_matches(file, sizes, n=3, cutoff=0.4)
    there = sorted(name for name in sizes if name.endswith(WEIGHT_SUFFIXES))
    hint = f" Its weight files are {', '.join(map(repr, there[:8]))}." if there else ""
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else hint
    raise ResolveError(f"{reference.location} has no file {file!r}.{hint}")
