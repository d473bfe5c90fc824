"""The names of a model's tensors: from file to memory, and which of them are the backbone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Classes whose renamed heads transformers has no table for (transformers 5.23).
_BORROWED_RENAMES = {"Data2VecVisionForSemanticSegmentation": "BeitForSemanticSegmentation"}

# Constants in files of older classes -> a tensor of the same module, by which that is found.
_OLD_CONSTANTS = {
    "num_batches_tracked": "running_mean",  # batch norms that are frozen now
    "relative_position_index": "relative_position_bias_table",  # Swin, before transformers 5
}

_BACKBONE_PATH = re.compile(r"(\w+\.)*?(backbone|pixel_level_module\.encoder|vision_encoder)")
_HEAD_MODULE = re.compile(
    r"head|classif|predict|decode|neck|fpn|mask|query|queries|criterion|upscale|proj|label|logit"
    r"|^fc$"
)


@contextlib.contextmanager
def borrowed_renames(class_name: str) -> Iterator[bool]:
    """Lend a class the renames of its sibling where transformers has none for it; says whether.

    Files of transformers 4 need them; files that 5.23 wrote itself are read without.
    """
    sibling = _BORROWED_RENAMES.get(class_name)
    try:
        import transformers.conversion_mapping as mapping
    except ImportError:
        sibling = None
    if sibling is None:
        yield False
        return
    tables: Any = mapping
    own, lent = (tables.get_checkpoint_conversion_mapping(n) for n in (class_name, sibling))
    if own is not None or lent is None:
        yield False
        return
    tables.register_checkpoint_conversion_mapping(class_name, lent)
    try:
        yield True
    finally:
        tables._checkpoint_conversion_mapping_cache.pop(class_name, None)
        tables.USER_REGISTERED_MAPPINGS.discard(class_name)


def in_memory_names(model: Any, keys: Sequence[str]) -> dict[str, str]:
    """Map each file key to the in-memory key it is loaded into; unknown keys are left out.

    Constants that older classes saved are named beside the tensor they belong to.
    """
    known = dict(model.named_buffers(remove_duplicate=False))
    known.update(model.state_dict())
    rename = _renamer(model, known)
    aliases = {}
    for key in keys:
        name = next((name for name in (rename(key), key) if name in known), None)
        module, _, leaf = key.rpartition(".")
        if name is None and leaf in _OLD_CONSTANTS:
            sibling = rename(f"{module}.{_OLD_CONSTANTS[leaf]}")
            name = f"{sibling.rpartition('.')[0]}.{leaf}" if sibling in known else None
        if name is not None:
            aliases[key] = name
    return aliases


def _renamer(model: Any, known: dict[str, Any]) -> Callable[[str], str]:
    """Return transformers' renaming of file keys; the identity where it has no such thing."""
    try:
        import transformers.conversion_mapping as mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )
    except ImportError:
        return str

    def split(transforms: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        return (
            [one for one in transforms if isinstance(one, WeightRenaming)],
            [one for one in transforms if isinstance(one, WeightConverter)],
        )

    tables: Any = mapping
    lists = [split(tables.get_model_conversion_mapping(model))]
    borrowed = _BORROWED_RENAMES.get(type(model).__name__)
    if borrowed is not None:
        lists.append(split(tables.get_checkpoint_conversion_mapping(borrowed) or []))

    prefix = model.base_model_prefix

    def rename(key: str) -> str:
        for renamings, converters in lists:
            name, _ = rename_source_key(key, renamings, converters, prefix, known)
            if name in known:
                return str(name)
        name, _ = rename_source_key(key, [], [], prefix, known)
        return str(name)

    return rename


def find_backbone(model: Any) -> tuple[str, Callable[[str], bool]]:
    """Return the backbone's path and a test whether an in-memory key lies in it."""
    names = list(model.state_dict())

    def under(path: str) -> Callable[[str], bool]:
        return lambda name: name.startswith(f"{path}.")

    def is_part(path: str) -> bool:
        return 0 < sum(map(under(path), names)) < len(names)

    paths = [path for path, _ in model.named_modules() if _BACKBONE_PATH.fullmatch(path)]
    paths = [path for path in paths if "embeddings" not in path]
    for path in [*sorted(paths, key=lambda path: path.count(".")), model.base_model_prefix]:
        if path and is_part(path):
            return path, under(path)
    # No module is the backbone (EoMT): all but the heads at the top of the tree.
    tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
    chosen = [top for top in tops if not _HEAD_MODULE.search(top)]
    if len(chosen) in (0, len(tops)):
        return "", lambda _: True
    return ", ".join(chosen), lambda name: name.partition(".")[0] in chosen
