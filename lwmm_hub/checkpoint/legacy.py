"""Files of `torch.save` before PyTorch 1.6 (and `_use_new_zipfile_serialization=False`).

Their tensors follow a stream of pickles, and are loaded whole, by torch itself in its restricted
mode; the bytes then lie in a spooled file, contiguous, and are read like those of any other file.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from lwmm_hub.checkpoint.entries import DTYPE_CODES, TensorEntry
from lwmm_hub.checkpoint.layout import PickledFile, lay_out
from lwmm_hub.checkpoint.rebuilding import PYTHON_2_MODULES, unsafe
from lwmm_hub.checkpoint.spool import ALWAYS_ALLOWED, MAX_EXPANSION, SpooledFile, new_spool
from lwmm_hub.checkpoint.unpickling import check_pickles
from lwmm_hub.checkpoint.zip_archive import damaged
from lwmm_hub.errors import CheckpointError, UnsafePickleError

if TYPE_CHECKING:
    import torch


MAX_PICKLE = 64 * 1024 * 1024
PICKLES = 5  # magic number, version, machine, content, names of storages; then come their bytes


def read_legacy(path: Path, name: str) -> tuple[PickledFile, SpooledFile]:
    """The tensors of a legacy file, and the file that now holds their bytes.

    The pickles run through our own machine first, which is bounded where torch's is not.

    Tensors that were one view stay one: their entries have the same offset.

    Args:
        path: the file on disk.
        name: what to call it in a message.

    Raises:
        UnsafePickleError: torch's restricted mode refuses what the pickle names.
        CheckpointError: the file is damaged, a tar archive, or holds tensors that are not dense.
    """
    import torch

    with path.open("rb") as file:
        file.seek(257)
        if file.read(5) == b"ustar":
            raise CheckpointError(
                f"{name} is a tar archive of PyTorch before 0.1.10, which cannot be read safely. "
                "Load it with the PyTorch that wrote it and save its state dict again."
            )
    with path.open("rb") as file:
        storages = check_pickles(file.read(MAX_PICKLE), name, PICKLES)
    if not isinstance(storages, list) or not all(isinstance(key, str) for key in storages):
        raise damaged(name, "its storages have no list of names")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that torch itself wrote into old files
            root = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 (torch raises anything for a damaged file)
        raise _as_ours(error, name) from None
    spooled = new_spool(name)
    limit = max(MAX_EXPANSION * path.stat().st_size, ALWAYS_ALLOWED)
    places: dict[object, int] = {}

    def as_entry(value: object) -> TensorEntry | None:
        if not isinstance(value, torch.Tensor):
            return None
        code, shape = _kind(value, name), tuple(value.shape)
        view = (value.data_ptr(), code, shape, value.stride())
        if view not in places or not value.numel():
            if spooled.size + value.numel() * value.element_size() > limit:
                raise CheckpointError(
                    f"{name}: its expanded tensors need more than {limit} bytes. Save the state "
                    "dict again after tensor.contiguous()."
                )
            flat = value.detach().contiguous().as_strided((value.numel(),), (1,))
            # flatten() would leave a single element the stride that it had, which has no bytes
            places[view] = spooled.append(flat.view(torch.uint8).numpy().data)
        return TensorEntry("", code, shape, name, places[view])

    return lay_out(name, root, as_entry), spooled


def _kind(tensor: torch.Tensor, name: str) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    layout = str(tensor.layout).removeprefix("torch.")
    if dtype not in DTYPE_CODES or layout != "strided" or tensor.is_neg() or tensor.is_conj():
        raise CheckpointError(
            f"{name} holds a {layout} tensor of {dtype}, which cannot be merged. Convert it to a "
            "dense tensor of another dtype and save the state dict again."
        )
    return DTYPE_CODES[dtype]


def _as_ours(error: Exception, name: str) -> CheckpointError:
    """One line of ours for what torch raised, without its advice to switch the check off."""
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]*\w)", text)
    if named is not None:
        module, _, attribute = named[1].rpartition(".")  # torch drops `builtins.`
        return unsafe(name, f"{PYTHON_2_MODULES.get(module, module) or 'builtins'}.{attribute}")
    if "Unsupported operand" in text:
        return CheckpointError(
            f"{name} is a file of the old format with pickle instructions that torch's restricted "
            "reader does not know: nothing was executed. Where you trust it, load it with the "
            "code that wrote it and save the weights alone: torch.save(model.state_dict(), ...)."
        )
    if re.search(r"Can only (build|create|append|extend|persist)|only \w+ of storage", text):
        return UnsafePickleError(
            f"{name} was refused by torch's restricted reader: nothing was executed. Where you "
            "trust the file, load it with the code that wrote it and save the weights alone: "
            "torch.save(model.state_dict(), ...)."
        )
    return damaged(name, f"torch cannot read it ({type(error).__name__})")
