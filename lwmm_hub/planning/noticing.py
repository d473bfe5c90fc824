"""What the user should know of a plan: one line each, of what configurations and headers show."""

from __future__ import annotations

from collections.abc import Sequence

from lwmm_hub.checkpoint import Checkpoint, dtype_name
from lwmm_hub.key_map import KeyMap
from lwmm_hub.meanings import class_warnings
from lwmm_hub.options import MergeOptions
from lwmm_hub.planning.values import MergedTensor


def no_config(anchor: Checkpoint, key_map: KeyMap) -> list[str]:
    """A warning where the anchor's keys are those of transformers, which asks for more."""
    spelt = any(dialect.startswith("transformers") for dialect in key_map.dialects[0].values())
    if not spelt or anchor.config is not None:
        return []
    return [
        f"{anchor.label} has no config.json, so transformers will not load the result: put the "
        "model's own beside its weights."
    ]


def links_copied(index: int, model: Checkpoint) -> tuple[str, ...]:
    """Which files that are copied from beside a model's weights are links to others elsewhere.

    Of a donor (`index` is not 0) these are licence texts alone.
    """
    texts = model.facts.license_files
    return tuple(name for name in model.facts.links if not index or name in texts)


def linked(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A warning per model of which something is copied that lies elsewhere."""
    found = [(model.label, links_copied(i, model)) for i, model in enumerate(checkpoints)]
    return [
        f"{', '.join(names)} of {label} comes over a link from outside its folder: it is copied, "
        "and the merge cannot be pushed. Put a copy in the place of the link for that."
        for label, names in found
        if names
    ]


def other_classes_kept(key_map: KeyMap, options: MergeOptions, recorded: bool) -> list[str]:
    """What becomes of classifiers whose rows are other classes; `recorded`: a recipe decides."""
    if options.scope == "backbone":  # no head is merged
        return []
    how = "--scope all" if options.scope == "all" or not recorded else "as the recipe says"
    return class_warnings(key_map.other_classes, key_map.left_out, how)


def gaps(key_map: KeyMap, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A warning per donor that lacks a part of the backbone: its model may be another size."""
    backbone = {part.name for part in key_map.parts if part.backbone}
    apart = [
        key
        for key, why in key_map.kept.items()
        if key_map.part_of_key.get(key) in backbone
        and why.startswith(("absent", "shape differs", "part "))
    ]
    shared = [p for p in key_map.shared if p.part in backbone]
    warnings = []
    for i, donor in enumerate(checkpoints[1:], start=1):
        missing = len(apart) + sum(p.sources[i] is None for p in shared)
        if missing:
            warnings.append(
                f"{donor.label} lacks {missing} of the {len(shared) + len(apart)} backbone "
                "parameters: the anchor's are kept there."
            )
    return warnings


def other_dtypes(merged: Sequence[MergedTensor], checkpoints: Sequence[Checkpoint]) -> list[str]:
    """One warning per donor whose floats are stored in another dtype than the anchor's."""
    warnings = []
    for i, donor in enumerate(checkpoints[1:], start=1):
        pairs = {
            (checkpoints[0].entries[t.key].dtype, donor.entries[s.key].dtype)
            for t in merged
            if (s := t.sources[i]) is not None
        }
        for mine, theirs in sorted(pair for pair in pairs if pair[0] != pair[1]):
            warnings.append(
                f"{donor.label} has {dtype_name(theirs)} tensors where the anchor has "
                f"{dtype_name(mine)}: they are merged in "
                f"{'float64' if 'F64' in (mine, theirs) else 'float32'} and stored as the anchor's."
            )
    return warnings


def no_mixtures(merged: Sequence[MergedTensor], options: MergeOptions) -> list[str]:
    """A warning where `--batch-norm moment` is asked for and a variance has no means beside it."""
    if options.batch_norm != "moment":
        return []
    there = {t.name: [source is not None for source in t.sources] for t in merged if t.statistic}
    apart = [
        name
        for name, models in there.items()
        if name.endswith("running_var")
        and there.get(name.removesuffix("running_var") + "running_mean") != models
    ]
    if not apart:
        return []
    return [
        f"{len(apart)} batch-norm variances (first {apart[0]}) are merged linearly: not all models "
        "that have them have the mean, too, or they have the mean alone."
    ]
