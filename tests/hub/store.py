"""All repositories of the Hub, and how files become entries of their trees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from .errors import HubError, RepositoryMoved, revision_not_found
from .objects import ObjectStore, git_blob_oid
from .repositories import Commit, Entry, Gate, Repository, RepositoryType

# What every new repository of the real Hub holds, shortened.
GITATTRIBUTES = (
    b"*.bin filter=lfs diff=lfs merge=lfs -text\n"
    b"*.pth filter=lfs diff=lfs merge=lfs -text\n"
    b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
)

# Extensions the Hub sends to LFS whatever their size.
_LFS_EXTENSION_NAMES = """
.bin .ckpt .gguf .gz .h5 .msgpack .npy .npz .onnx .parquet .pickle .pkl .pt .pth .safetensors .tar
.tflite .zip
"""
LFS_EXTENSIONS = frozenset(_LFS_EXTENSION_NAMES.split())


# Regular git files may not be larger than this.
LFS_THRESHOLD = 10 * 1024 * 1024

# How much of a file the client sends along for the choice between LFS and git.
SAMPLE_SIZE = 512


def belongs_in_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file in LFS: by extension, by size, or because it is binary."""
    return Path(path).suffix in LFS_EXTENSIONS or size > LFS_THRESHOLD or b"\0" in sample


class Store:
    """Repositories by type and id, with the names they had before."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        self.repositories: dict[tuple[RepositoryType, str], Repository] = {}
        self._moved: dict[tuple[RepositoryType, str], str] = {}

    def get(self, kind: RepositoryType, repository_id: str) -> Repository | None:
        """The repository of that name, or None.

        Raises:
            RepositoryMoved: When it has another name now.
        """
        repository = self.repositories.get((kind, repository_id))
        if repository is None and (kind, repository_id) in self._moved:
            raise RepositoryMoved(repository_id, self._moved[kind, repository_id])
        return repository

    def create(
        self,
        kind: RepositoryType,
        repository_id: str,
        author: str,
        *,
        private: bool = False,
        gated: Gate = False,
    ) -> Repository:
        """Create a repository whose first commit holds `.gitattributes`, as on the real Hub."""
        repository = Repository(kind, repository_id, private, gated)
        tree = {".gitattributes": self.regular_entry(GITATTRIBUTES)}
        repository.commit("refs/heads/main", tree, title="initial commit", author=author)
        self.repositories[kind, repository_id] = repository
        self._moved.pop((kind, repository_id), None)
        return repository

    def delete(self, repository: Repository) -> None:
        del self.repositories[repository.type, repository.id]

    def move(self, repository: Repository, new_id: str) -> None:
        """Rename a repository; the old name redirects from now on.

        Raises:
            HubError: 409 when the new name is taken.
        """
        key = (repository.type, new_id)
        if key in self.repositories:
            raise HubError(409, f"{new_id} exists already")
        self.delete(repository)
        for old_key, target in list(self._moved.items()):
            if old_key[0] == repository.type and target == repository.id:
                self._moved[old_key] = new_id
        self._moved[repository.type, repository.id] = new_id
        self._moved.pop(key, None)
        repository.id = new_id
        self.repositories[key] = repository

    def add_files(
        self,
        repository: Repository,
        files: Mapping[str, bytes | Path],
        *,
        revision: str,
        message: str,
        author: str,
        delete: Iterable[str] = (),
    ) -> Commit:
        """Commit files given by a test; a branch that does not exist yet starts at `main`."""
        reference = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if reference not in repository.references:
            if reference != f"refs/heads/{revision}":
                raise revision_not_found(revision)
            repository.references[reference] = repository.resolve("main").sha
        tree = dict(repository.resolve(reference).tree)
        for path in delete:
            del tree[path]
        for path, content in files.items():
            tree[path] = self.entry(path, content)
        return repository.commit(reference, tree, title=message, author=author)

    def entry(self, path: str, content: bytes | Path) -> Entry:
        """Store a file where the Hub would: in git, or in LFS."""
        if isinstance(content, Path):
            with content.open("rb") as file:
                sample = file.read(SAMPLE_SIZE)
            size = content.stat().st_size
        else:
            sample, size = content[:SAMPLE_SIZE], len(content)
        if belongs_in_lfs(path, size, sample):
            return self.lfs_entry(self.objects.put_large(content))
        return self.regular_entry(content if isinstance(content, bytes) else content.read_bytes())

    def regular_entry(self, content: bytes) -> Entry:
        return Entry(self.objects.put_blob(content), len(content))

    def lfs_entry(self, sha256: str, xet_hash: str | None = None) -> Entry:
        """The entry of a stored LFS object: git holds a pointer file to it."""
        size = self.objects.size(sha256)
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{sha256}")
        pointer = "\n".join([*lines, f"size {size}", ""]).encode()
        return Entry(git_blob_oid(pointer), size, sha256, xet_hash, len(pointer))
