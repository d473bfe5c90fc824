"""A checkpoint in transformers' keys: which class it is, and where each of its tensors lies.

The family tables hold all knowledge of keys. A class here says which tables it is made of, what
stands before their keys in its files, and how its configuration follows from shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lwmm_hub.checkpoint import Checkpoint, TensorEntry
from lwmm_hub.checkpoint.spool import derived_spool
from lwmm_hub.converting import resnet, segformer, swin
from lwmm_hub.converting.drafting import ConfigDraft, Described, Origin, Shapes
from lwmm_hub.errors import CheckpointError, UsageError
from lwmm_hub.families import Dialect, Table
from lwmm_hub.key_map import NamedKeys, Source, name_keys

DIALECT = "transformers"
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Target:
    """A class of transformers.

    Attributes:
        name: the class.
        model_type: what its config.json says.
        prefixes: table -> what stands before its keys in a file of this class.
        describe: its configuration and keys, from shapes and what its system is known for.
    """

    name: str
    model_type: str
    prefixes: Mapping[str, str]
    describe: Callable[[Shapes, ConfigDraft, Origin], Described]


# the first whose tables a file all has is taken
TARGETS = (
    Target(
        "SegformerForSemanticSegmentation",
        "segformer",
        {"mit": "segformer.encoder.", "segformer": "decode_head."},
        segformer.describe_segmenter,
    ),
    Target("SegformerModel", "segformer", {"mit": "encoder."}, segformer.describe_backbone),
    Target("ResNetModel", "resnet", {"resnet": ""}, resnet.describe),
    Target("SwinModel", "swin", {"swin": ""}, swin.describe),
)

# in transformers' spelling of a family -> why its class neither has nor needs such a tensor
NOT_LOADED = {
    "relative_position_index": "a constant of the window size",
    "hidden_states_norms.": "a norm of the feature maps that a backbone hands to its head",
    "embeddings.mask_token": "for pre-training with masks only",
}
# (table, dialect) -> what its network does that the class of transformers does not
OTHER_FUNCTIONS = {
    ("resnet", "ResNet-D"): "it pools in its shortcuts (ResNet-D), which a ResNetModel does not",
}


@dataclass(frozen=True)
class Spelled:
    """A checkpoint in transformers' keys.

    Attributes:
        checkpoint: its entries under their new keys, in the order of the forward pass.
        class_name: the class that loads it.
        config: its config.json.
        config_from: field -> `shapes`, `given` or the published model it is known from.
        left_out: key of the file -> why it is not in the result.
        split: fused tensors that became several.
        added: keys of counters that the file does not have; they are 0.
        notes: what the user should know.
    """

    checkpoint: Checkpoint
    class_name: str
    config: Mapping[str, Any]
    config_from: Mapping[str, str]
    left_out: Mapping[str, str]
    split: int
    added: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())


def spell_for_transformers(checkpoint: Checkpoint, given: Mapping[str, Any]) -> Spelled:
    """A checkpoint as a class of transformers saves it.

    Args:
        checkpoint: opened on this machine.
        given: fields of the configuration that the user gives.

    Raises:
        CheckpointError: it is of no family with a class here, it lacks tensors that the class
            needs, or a value of the configuration shows in no shape and is not given.
        UsageError: the given configuration is that of another kind of model.
    """
    label = checkpoint.label
    named = name_keys(checkpoint.entries)
    target = _target_of(named, label)
    for told in (given, checkpoint.config or {}):
        if told is given and told.get("model_type", target.model_type) != target.model_type:
            raise UsageError(
                f"{label} becomes a {target.name}, and the config given is that of a "
                f"{str(told['model_type'])[:40]!r}. Give one of model_type {target.model_type!r}."
            )
    for table, dialect in named.dialects.items():
        if table in target.prefixes and (why := OTHER_FUNCTIONS.get((table, dialect))):
            raise CheckpointError(f"{label}: {why}. Convert it in its own keys: leave --to out.")
        places = named.places.get(table, ())
        if table in target.prefixes and len(places) > 1:
            raise CheckpointError(
                f"{label} holds {len(places)} {table} networks alike, under "
                f"{' and '.join(map(repr, places))}: which of them is meant cannot be known. "
                "Convert it in its own keys (leave --to out), or name a file that holds one."
            )
    own = checkpoint.config or {}
    known = own if own.get("model_type") == target.model_type else {}
    entries, origins, left_out = _renamed(checkpoint.entries, named, target)
    _refuse_foreign_parts(left_out, origins, named, target, label)
    draft = ConfigDraft(label, {**known, **given})
    shapes = {key: entry.shape for key, entry in entries.items()}
    described = target.describe(shapes, draft, Origin(checkpoint.entries, named.conventions))
    draft.finish()
    for key in [key for key in entries if key not in described.expected]:
        why = next((why for mark, why in NOT_LOADED.items() if mark in key), None)
        if why is None:
            raise CheckpointError(
                f"{label} holds {key!r} (as transformers calls it), which a {target.name} of its "
                "sizes has not. Convert it in its own keys: leave --to out."
            )
        left_out[origins[key]] = why
    added = _check(entries, described.expected, target.name, label)
    counters, readers = _zeros(added, checkpoint)
    ordered = {key: {**entries, **counters}[key] for key in described.expected}
    return Spelled(
        replace(checkpoint, entries=ordered, readers=readers, path=(), prefix="", parts=()),
        target.name,
        {"architectures": [target.name], "model_type": target.model_type} | draft.values,
        draft.sources,
        left_out,
        sum(count > 1 for count in Counter(origins.values()).values()),
        added,
        described.notes,
    )


def _target_of(named: NamedKeys, label: str) -> Target:
    found = {table.name for table in named.found}
    for target in TARGETS:
        if set(target.prefixes) <= found:
            return target
    kinds = ", ".join(target.name for target in TARGETS)
    raise CheckpointError(
        f"{label} has the keys of none of the models that can be written for transformers "
        f"({kinds}). Convert it in its own keys: leave --to out."
    )


def _renamed(
    entries: Mapping[str, TensorEntry], named: NamedKeys, target: Target
) -> tuple[dict[str, TensorEntry], dict[str, str], dict[str, str]]:
    """Entries under transformers' keys; the file's key of each; why other keys are left out."""
    found: dict[str, TensorEntry] = {}
    origins: dict[str, str] = {}
    left_out = dict(named.dead)
    for name, source in named.sources.items():
        table = named.tables.get(name)
        if table is None or table.name not in target.prefixes:
            left_out[source.key] = f"not part of a {target.name}"
            continue
        key = _key_of(_dialect(table), name)
        if key is None:
            left_out[source.key] = f"a {target.name} has nothing like it"
            continue
        key = target.prefixes[table.name] + key
        found[key] = _part(entries[source.key], source, key)
        origins[key] = source.key
    return found, origins, left_out


def _refuse_foreign_parts(
    left_out: Mapping[str, str],
    origins: Mapping[str, str],
    named: NamedKeys,
    target: Target,
    label: str,
) -> None:
    """Refuse a model whose blocks do more than those of the class (squeeze-and-excite, ...).

    Raises:
        CheckpointError: a block holds tensors for which the class has no place.
    """
    blocks = {block for key in origins.values() for block in _blocks_around(key)}
    for key in left_out:
        if key not in named.dead and not blocks.isdisjoint(_blocks_around(key)):
            raise CheckpointError(
                f"{label} holds {key!r} inside a block, and the blocks of a {target.name} have "
                "nothing like it: it is another model. Convert it in its own keys: leave --to out."
            )


def _blocks_around(key: str) -> list[str]:
    """The numbered modules that a tensor lies in.

    >>> _blocks_around("layer1.0.se.fc.1.weight")
    ['layer1.0', 'layer1.0.se.fc.1']
    """
    steps = key.split(".")
    return [".".join(steps[: i + 1]) for i, step in enumerate(steps) if step.isdecimal()]


def _dialect(table: Table) -> Dialect:
    return next(dialect for dialect in table.dialects if dialect.name == DIALECT)


def _key_of(dialect: Dialect, name: str) -> str | None:
    """The key of a canonical name: rules read backwards, or the name where there are none."""
    if not dialect.rules:
        return name
    for rule in dialect.rules:
        if (key := rule.key(name)) is not None:
            return key
    return None


def _part(entry: TensorEntry, source: Source, key: str) -> TensorEntry:
    """One of the equal parts of a tensor along its first axis, which lie one after the other."""
    shape = source.shape({source.key: entry})
    offset = entry.offset + entry.size // source.parts * source.part
    return replace(entry, key=key, shape=shape, offset=offset)


def _check(
    entries: Mapping[str, TensorEntry],
    expected: Mapping[str, tuple[int, ...]],
    class_name: str,
    label: str,
) -> tuple[str, ...]:
    """Counters that are missing; anything else that is not as it should be is an error."""
    missing = [key for key in expected if key not in entries]
    lost = [key for key in missing if not key.endswith(COUNTER)]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise CheckpointError(
            f"{label} lacks {lost[0]!r}{more} (as transformers calls it), which a {class_name} "
            "needs: it is no whole model. Convert it in its own keys: leave --to out."
        )
    for key, shape in expected.items():
        if key in entries and entries[key].shape != shape and not key.endswith(COUNTER):
            raise CheckpointError(
                f"{label}: {key!r} (as transformers calls it) has the shape {entries[key].shape}, "
                f"a {class_name} of its sizes has {shape}. Convert it in its own keys: leave --to "
                "out."
            )
    return tuple(missing)


def _zeros(
    keys: tuple[str, ...], checkpoint: Checkpoint
) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """Counters of 0, and the readers of all files with the one that holds them."""
    if not keys:
        return {}, dict(checkpoint.readers)
    spooled = derived_spool(f"{checkpoint.label} (counters)")
    offset = spooled.append(bytes(8))
    entries = {key: TensorEntry(key, "I64", (), spooled.name, offset) for key in keys}
    return entries, {**checkpoint.readers, spooled.name: spooled}
