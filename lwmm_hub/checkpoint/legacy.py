"""Files that are pickles from their first byte on: of `torch.save` before PyTorch 1.6, of numpy.

The first (and those of `_use_new_zipfile_serialization=False`) are five pickles, and then the bytes
of the storages that they name, each behind the number of its elements: tensors are read in place.

A file of `pickle.dump` is one pickle with its arrays in it, such as those of detectron2's model
zoo; the values are copied into a spooled file.

Layout: `_legacy_save` in `torch/serialization.py` of PyTorch 2.13; `array_reduce` in
`numpy/_core/src/multiarray/methods.c` of numpy 2.4.
"""

from __future__ import annotations

from typing import IO

from lwmm_hub.checkpoint.arrays import ArraySpool
from lwmm_hub.checkpoint.entries import ByteReader, LocalFile, TensorEntry
from lwmm_hub.checkpoint.layout import PickledFile, lay_out
from lwmm_hub.checkpoint.rebuilding import PickledArray, PickledTensor, Storage, item_bytes
from lwmm_hub.checkpoint.unpickling import MAX_PICKLE, Pickles
from lwmm_hub.checkpoint.zip_archive import damaged, shown
from lwmm_hub.errors import CheckpointError

MAX_TEXTS = 1 << 30  # bytes of a pickle of arrays that are held; protocol 2 writes values as text
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001  # the only one there was


def read_legacy(file: LocalFile) -> tuple[PickledFile, ByteReader]:
    """The tensors of a file, and what holds their bytes: the file, or a spooled one.

    Raises:
        UnsafePickleError: it names something that is neither a tensor nor a plain container.
        CheckpointError: it is damaged, a tar archive, big-endian, or holds tensors that are not
            dense.
    """
    name, size = file.name, file.size
    with file.path.open("rb") as stream:
        stream.seek(257)
        if stream.read(5) == b"ustar":
            raise CheckpointError(
                f"{name} is a tar archive of PyTorch before 0.1.10, which cannot be read safely. "
                "Load it with the PyTorch that wrote it and save its state dict again."
            )
        stream.seek(0)
        storages: dict[str, Storage] = {}

        def declare(storage: Storage) -> None:
            if storages.setdefault(storage.key, storage) != storage:
                raise damaged(name, f"the storage {shown(storage.key)} has two sizes or dtypes")

        pickles = Pickles(stream, size, name, declare)
        first = pickles.load(max(MAX_PICKLE, min(size, MAX_TEXTS)))
        if first != _MAGIC:
            spool = ArraySpool(file)
            return lay_out(name, first, spool.as_entry, PickledArray), spool.spooled
        version, machine, root, keys = (pickles.load() for _ in range(4))
        if version != _VERSION:
            raise damaged(name, "it is of an unknown version")
        if isinstance(machine, dict) and machine.get("little_endian") is False:
            raise CheckpointError(
                f"{name} was written on a big-endian machine. Save it again on a little-endian "
                "one: torch.save(torch.load(...), ...)."
            )
        starts = _starts(stream, pickles.at, size, name, storages, keys)

    def as_entry(value: object) -> TensorEntry | None:
        if not isinstance(value, PickledTensor):
            return None
        offset = starts[value.storage.key] + value.offset * item_bytes(value.dtype)
        return TensorEntry("", value.dtype, value.shape, name, offset, value.strides)

    return lay_out(name, root, as_entry), file


def _starts(
    stream: IO[bytes], at: int, size: int, name: str, storages: dict[str, Storage], keys: object
) -> dict[str, int]:
    """Where the bytes of each storage begin; they lie one behind the other from `at` on.

    Raises:
        CheckpointError: they are not those that the pickle names, or the file ends before.
    """
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise damaged(name, "its storages have no list of names")
    if len(keys) != len(storages) or storages.keys() != set(keys):
        raise damaged(name, "it lists other storages than its tensors have")
    starts = {}
    for key in keys:
        stream.seek(at)
        count, starts[key] = int.from_bytes(stream.read(8), "little"), at + 8
        storage = storages[key]
        at += 8 + storage.count * item_bytes(storage.dtype)
        if at > size:
            raise damaged(name, f"the storage {shown(key)} reaches beyond its end")
        if count != storage.count:
            raise damaged(
                name, f"the storage {shown(key)} has {count} elements, not {storage.count}"
            )
    return starts
