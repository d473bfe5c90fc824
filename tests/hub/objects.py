"""Content on disk, addressed by its hash: git blobs by sha1, LFS objects by sha256."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from .errors import HubError

_BLOCK = 1 << 20


class ObjectStore:
    """A folder of objects named by their hash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)

    def path(self, oid: str) -> Path:
        return self._folder / oid

    def has(self, oid: str) -> bool:
        return self.path(oid).exists()

    def size(self, oid: str) -> int:
        return self.path(oid).stat().st_size

    def read(self, oid: str) -> bytes:
        return self.path(oid).read_bytes()

    def temporary(self) -> Path:
        """A fresh empty file in the store, to be filled and then adopted."""
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix="part-", delete=False) as file:
            return Path(file.name)

    def put_blob(self, content: bytes) -> str:
        """Store a small file as git does; its sha1 comes back."""
        oid = git_blob_oid(content)
        if not self.has(oid):
            self.path(oid).write_bytes(content)
        return oid

    def put_large(self, content: bytes | Path) -> str:
        """Store a large file; its sha256 comes back."""
        part = self.temporary()
        if isinstance(content, bytes):
            part.write_bytes(content)
        else:
            shutil.copyfile(content, part)
        oid = sha256_of(part)
        self.adopt(part, oid)
        return oid

    def adopt(self, part: Path, sha256: str) -> None:
        """Move a temporary file into place, if it is what it claims to be.

        Raises:
            HubError: 422 when the content has another sha256.
        """
        found = sha256_of(part)
        if found != sha256:
            part.unlink()
            raise HubError(422, f"sha256 mismatch: announced {sha256}, received {found}")
        part.replace(self.path(sha256))


def git_blob_oid(content: bytes) -> str:
    """The sha1 git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
