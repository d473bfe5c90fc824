"""`ModelReference` -> `Checkpoint`: pinned to a commit, headers only or downloaded whole."""

from __future__ import annotations

import os

from lwmm_hub.checkpoint import Checkpoint
from lwmm_hub.reference import ModelReference
from lwmm_hub.resolving.local import resolve_local

__all__ = ["resolve"]


def resolve(
    reference: ModelReference | str | os.PathLike[str], *, download: bool = False
) -> Checkpoint:
    """Open a model.

    Args:
        reference: the model, its text, or the path of a local one.
        download: fetch the files of a Hub repository; otherwise only configs and headers are read.

    Raises:
        ModelReferenceError: the text names no model.
        ResolveError: the repository, revision or file cannot be found or reached.
        CheckpointError: the weights cannot be read.
    """
    if not isinstance(reference, ModelReference):
        reference = ModelReference.parse(reference)
    if not reference.on_hub:
        return resolve_local(reference)
    from lwmm_hub.resolving.hub import resolve_on_hub  # huggingface_hub, only where it is needed

    return resolve_on_hub(reference, download)
