"""The depth order of a transformers model, from its config.json and the names in its weight file.

No weight is read. The class that `config["architectures"][0]` names is built on the meta device
and one forward pass is traced: a module's rank is the moment its parameters were last used.

The config is untrusted. What is done about it:

- only classes of the installed transformers package are built; `auto_map` and every other field
  that makes transformers fetch code, kernels or weights is dropped; nothing reaches the network;
- integers are compared with the number of keys before anything is built: a depth may not exceed
  the number of keys, an image side `config.MAX_IMAGE_SIDE`, any other number `config.MAX_NUMBER`;
- building and tracing stop after `guard.MAX_SECONDS`, or after absurdly many tensor operations.

torch and transformers are imported inside functions: importing this module costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lwmm_hub.errors import LayerOrderError
from lwmm_hub.tracing.config import build, check_bounds
from lwmm_hub.tracing.forward import module_ranks
from lwmm_hub.tracing.guard import guarded
from lwmm_hub.tracing.names import find_backbone, in_memory_names

__all__ = ["TracedArchitecture", "trace_architecture"]


@dataclass(frozen=True)
class TracedArchitecture:
    """The depth order of one weight file, as transformers' own class runs it.

    Attributes:
        ranks: file key -> rank of its module in depth, from 0. All keys of a module share one
            rank; keys that the class does not know are absent.
        backbone: the file keys of the backbone.
        backbone_name: in-memory path of the backbone module, or of several, joined by ", ";
            empty where the whole model is the backbone.
        class_name: the transformers class.
        how: how the order was found, for the model card.
    """

    ranks: dict[str, int]
    backbone: frozenset[str]
    backbone_name: str
    class_name: str
    how: str


def trace_architecture(config: Mapping[str, Any], keys: Sequence[str]) -> TracedArchitecture:
    """Derive the depth order of the weight file with these `keys` from its `config`.

    Both spellings of the keys are known: the names on disk, and the names that transformers 5
    uses in memory.

    Args:
        config: the content of config.json; not trusted.
        keys: the names of the tensors in the weight file, in any order.

    Raises:
        LayerOrderError: the class is unknown, needs a package that is not installed, cannot be
            built or run from this config, or the config is out of bounds.
    """
    check_bounds(config, len(keys))
    with guarded(config):
        model = build(config, len(keys))
        aliases = in_memory_names(model, keys)
        if not aliases:
            raise LayerOrderError(
                f"None of the {len(keys)} keys belongs to {type(model).__name__}, the class that "
                "config.json names. Check that the config and the weights go together."
            )
        ranks, how = module_ranks(model, len(keys))
        backbone_name, in_backbone = find_backbone(model)
    return TracedArchitecture(
        ranks={key: ranks[name.rpartition(".")[0]] for key, name in aliases.items()},
        backbone=frozenset(key for key, name in aliases.items() if in_backbone(name)),
        backbone_name=backbone_name,
        class_name=type(model).__name__,
        how=how,
    )
