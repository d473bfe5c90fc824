"""Models of transformers built without weights, as the tracer builds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lwmm_hub.tracing.config import MAX_DEPTH, build
from lwmm_hub.tracing.guard import guarded
from lwmm_hub.tracing.names import in_memory_names


def build_on_meta(config: Mapping[str, Any]) -> Any:
    """The class that `config` names, on the meta device."""
    with guarded(config):
        return build(config, MAX_DEPTH)


def names_in_memory(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, str]:
    """File key -> in-memory key (the first, where a tensor is split on loading)."""
    with guarded(config):
        return in_memory_names(build(config, len(keys)), keys)
