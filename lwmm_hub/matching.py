"""Checkpoints -> `KeyMap`: match opened models, with the best depth order there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lwmm_hub.checkpoint import Checkpoint, LocalFile
from lwmm_hub.errors import LayerOrderError, UsageError
from lwmm_hub.key_map import (
    DepthOrder,
    KeyMap,
    ValuePair,
    match_keys,
    natural_order,
    registration_order,
    require_shared_backbone,
)
from lwmm_hub.meanings import other_classes


def match(
    anchor: Checkpoint, *donors: Checkpoint, pairs: Sequence[ValuePair] | None = None
) -> KeyMap:
    """Match the parameters of donors with the anchor's; reads no weights.

    Args:
        anchor: the model whose names the result keeps.
        *donors: the models merged into it.
        pairs: what `inferring` matched by values; None where the values were not asked.

    Raises:
        UnrelatedModelsError: a donor shares no backbone parameter of at least two dimensions.
        UsageError: one is not opened.
    """
    models = [anchor, *donors]
    for model in models:
        if not isinstance(model, Checkpoint):
            raise UsageError(f"{model!r} is not opened: lw.resolve opens it.")
    entries = [model.entries for model in models]
    labels = [model.label for model in models]
    key_map = match_keys(entries, labels, depth_order_of(anchor), pairs)
    require_shared_backbone(key_map, entries, labels)
    return replace(key_map, other_classes=other_classes(key_map.shared, models))


def depth_order_of(anchor: Checkpoint) -> Callable[[], DepthOrder]:
    """How to order an architecture without a table: its traced class, its file, or its names.

    The forward pass of the transformers class that config.json names is traced on meta tensors
    (this alone imports torch and transformers). Where that cannot be, a `.pth` file's order of
    registration is taken, else numbers in the names; the reason is part of the order's `source`.
    """

    def find() -> DepthOrder:
        keys = list(anchor.entries)
        fallback = registration_order if anchor.format == "pytorch" else natural_order
        if anchor.architecture is None or anchor.config is None:
            return fallback(keys)
        from lwmm_hub.tracing import trace_architecture

        try:
            traced = trace_architecture(anchor.config, keys)
        except LayerOrderError as error:
            order = fallback(keys)
            return order._replace(source=f"{order.source} ({error.text})")
        how = traced.how.removeprefix("forward pass ")
        source = f"the forward pass of {traced.class_name}, {how}"
        inside = traced.backbone or None
        return DepthOrder(source, traced.ranks, inside, traced.backbone_name, "trace")

    return find


def with_distinct_labels(checkpoints: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
    """The same models, local ones called `latest`, `latest-2`, ... where they are called alike.

    Recipes and `--parent LABEL=PATH` name local models by label, so each has its own.
    """
    taken: set[str] = set()
    distinct = []
    for checkpoint in checkpoints:
        label, number = checkpoint.label, 1
        while not checkpoint.reference.on_hub and label in taken:
            number += 1
            label = f"{checkpoint.label}-{number}"
        taken.add(label)
        same = label == checkpoint.label
        distinct.append(checkpoint if same else replace(checkpoint, name=label))
    return tuple(distinct)


def same_model_warnings(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A warning for every model that is named twice."""
    seen: dict[object, int] = {}
    warnings = []
    for i, checkpoint in enumerate(checkpoints):
        reference = checkpoint.reference
        identity: object = (reference.location, checkpoint.commit, checkpoint.files)
        if not reference.on_hub:
            identity = tuple(
                str(reader.path.resolve())
                for reader in checkpoint.readers.values()
                if isinstance(reader, LocalFile)
            )
        identity = (identity, reference.weights)
        if identity in seen and identity != ((), reference.weights):
            first = seen[identity]
            warnings.append(
                f"{checkpoints[first].label} is named twice (models {first + 1} and {i + 1}): "
                "merging a model with itself gives it back."
            )
        seen.setdefault(identity, i)
    return warnings
