"""KeyMap + layer weights -> `MergePlan`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lwmm_hub.checkpoint import Checkpoint, dtype_name, tensor_bytes
from lwmm_hub.errors import RecipeError, UnrelatedModelsError, UsageError
from lwmm_hub.key_map import (
    KeyMap,
    Reasons,
    SharedParameter,
    ValuePair,
    guess_warnings,
    leave_out,
)
from lwmm_hub.lineage import Lineage, lineage_warnings
from lwmm_hub.meanings import meaning_warnings
from lwmm_hub.options import MergeOptions, output_dtype
from lwmm_hub.planning.noticing import (
    gaps,
    linked,
    links_copied,
    no_config,
    no_mixtures,
    other_classes_kept,
    other_dtypes,
)
from lwmm_hub.planning.values import STATISTICS, Cost, Layer, MergedTensor, MergePlan, PlannedModel
from lwmm_hub.reference import ModelReference
from lwmm_hub.relatedness import Relatedness
from lwmm_hub.schedule import TABLE, layer_weights, renormalised
from lwmm_hub.weight_table import WeightTable, or_backbone


def plan_merge(
    key_map: KeyMap,
    checkpoints: Sequence[Checkpoint],
    options: MergeOptions | None = None,
    relatedness: Sequence[Relatedness] = (),
    warnings: Sequence[str] = (),
    kept_parts: Sequence[Sequence[str]] | None = None,
    lineage: Sequence[Lineage] = (),
    table: WeightTable | None = None,
) -> MergePlan:
    """Give every shared parameter the weights of its layer.

    Without `relatedness` all shared heads are assumed related, and the plan says that its scope is
    not decided (unless `scope` decides it). `kept_parts` (per model, from a recipe or an earlier
    plan) overrules what `relatedness` would decide; it may name layers that are known to be
    untrained in some models. `lineage` is what is known of the models' pre-training. `table` gives
    the layer weights in numbers where `options.schedule` is "table".

    Raises:
        UsageError: an option is out of range, or names an unknown layer.
        UnrelatedModelsError: nothing is left to merge.
        RecipeError: `kept_parts` names no shared head.
    """
    options = options or MergeOptions()
    options.check(len(checkpoints))
    if options.scope == "auto":
        key_map = _without_layers(key_map, checkpoints, kept_parts)
    left_out, reasons = _left_out(key_map, checkpoints, options, relatedness, kept_parts)
    kept = Reasons(key_map.kept)
    present: list[tuple[SharedParameter, tuple[bool, ...]]] = []
    for parameter in key_map.shared:
        there = tuple(
            source is not None and (i, parameter.part) not in left_out
            for i, source in enumerate(parameter.sources)
        )
        why = "" if any(there[1:]) else reasons[parameter.part]
        if not why and options.batch_norm == "anchor" and _is_statistic(parameter.name):
            why = "batch-norm statistics stay the anchor's (--batch-norm anchor)"
        if why:
            assert parameter.sources[0] is not None
            kept.add(parameter.sources[0], parameter.name, why)
        else:
            present.append((parameter, there))
    if not present:
        raise UnrelatedModelsError(
            f"{checkpoints[0].label} and its donors share nothing that --scope {options.scope} "
            "merges. Choose another scope or other models."
        )
    names = list(dict.fromkeys(p.layer for p, _ in present))
    rowless: list[str] = []
    part_of = {p.layer: p.part for p, _ in present}
    if (table is not None) != (options.schedule == TABLE):
        raise UsageError('a table of weights goes with the schedule "table": give both or none.')
    if table is not None:
        shared = {p.layer for p in key_map.shared} | {layer for _, layer in key_map.left_out}
        decided = relatedness or kept_parts is not None or options.scope != "auto"
        open_layers = () if decided else _judged_layers(key_map)
        backbones = _backbones(key_map)
        heads = {layer for layer, part in part_of.items() if part not in backbones}
        weights = table.weights(
            names, len(checkpoints), shared.difference(names), open_layers, heads
        )
        rowless = _rowless(table.without_row(names), heads)
    else:
        weights = layer_weights(options.curve, names, len(checkpoints))
    number = {name: i for i, name in enumerate(names)}
    merged = tuple(
        MergedTensor(
            p.name,
            number[p.layer],
            _key(p),
            p.shape,
            dtype_name(checkpoints[0].entries[_key(p)].dtype),
            tuple(s if ok else None for s, ok in zip(p.sources, there, strict=True)),
            renormalised(weights[number[p.layer]], there),
        )
        for p, there in present
    )
    told = kept.told({tensor.key for tensor in merged})
    anchor = checkpoints[0]
    return MergePlan(
        tuple(
            _planned_model(
                i,
                c,
                key_map,
                [name for m, name in sorted({*left_out, *key_map.left_out}) if m == i],
            )
            for i, c in enumerate(checkpoints)
        ),
        options,
        bool(relatedness) or options.scope != "auto",
        tuple(
            Layer(i, name, part_of[name], row)
            for i, (name, row) in enumerate(zip(names, weights, strict=True))
        ),
        merged,
        {key: told[key] for key in anchor.entries if key in told},
        tuple(
            _unused_now(i, donor, key_map, merged, reasons, left_out)
            for i, donor in enumerate(checkpoints[1:], start=1)
        ),
        (
            *warnings,
            *lineage_warnings(lineage, [c.label for c in checkpoints], relatedness),
            *key_map.warnings,
            *(
                ()
                if table is not None
                else guess_warnings(key_map, checkpoints[0].label, names, weights)
            ),
            *_undecided(key_map, options, relatedness),
            *rowless,
            *_unrelated_parts(relatedness if kept_parts is None else (), left_out, checkpoints),
            *gaps(key_map, checkpoints),
            *no_config(anchor, key_map),
            *linked(checkpoints),
            *other_classes_kept(key_map, options, kept_parts is not None),
            *meaning_warnings(checkpoints),
            *other_dtypes(merged, checkpoints),
            *no_mixtures(merged, options),
        ),
        _cost(merged, checkpoints, options),
        key_map.order_source,
        tuple(
            (part.name, part.backbone, sum(p.part == part.name for p in key_map.shared))
            for part in key_map.parts
        ),
        tuple(relatedness),
        dict(anchor.ignored),
        tuple(lineage),
        _inferred(key_map, merged),
        dict(table.origin) if table is not None else {},
    )


def _inferred(key_map: KeyMap, merged: Sequence[MergedTensor]) -> tuple[ValuePair, ...]:
    """What was matched by values and is merged."""
    used = {
        (i, tensor.key, source.key)
        for tensor in merged
        for i, source in enumerate(tensor.sources)
        if source is not None
    }
    return tuple(p for p in key_map.pairs or () if (p.model, p.key, p.source) in used)


def _left_out(
    key_map: KeyMap,
    checkpoints: Sequence[Checkpoint],
    options: MergeOptions,
    relatedness: Sequence[Relatedness],
    kept_parts: Sequence[Sequence[str]] | None,
) -> tuple[set[tuple[int, str]], dict[str, str]]:
    """(donor, part) pairs that count as absent, and per part why the anchor keeps it."""
    heads = [part.name for part in key_map.parts if not part.backbone]
    models = range(1, len(checkpoints))
    if options.scope == "all":
        return set(), {}
    if options.scope == "backbone":
        return {(i, part) for i in models for part in heads}, dict.fromkeys(
            heads, "outside the backbone (--scope backbone)"
        )
    left_out: set[tuple[int, str]] = set()
    why: dict[str, str] = {}
    known = _judged_parts(key_map)
    recorded = {
        (i, part)
        for i, parts in enumerate(kept_parts or ())
        for part in parts
        if (i, part) not in key_map.left_out
    }
    for _, part in sorted(recorded):
        if part not in known:
            raise RecipeError(
                f"kept_parts names {part!r}, which is no head that the models share. They share: "
                f"{', '.join(map(repr, known)) or 'none'}. Mend the recipe."
            )
    parts = {part.name for part in key_map.parts}
    judged = {(r.model, r.part): r for r in relatedness if not r.backbone and r.part in parts}
    for i, part in sorted(recorded) if kept_parts is not None else judged:
        result = judged.get((i, part))
        if kept_parts is None and result is not None and result.verdict != "unrelated":
            continue
        left_out.add((i, part))
        label = checkpoints[i].label
        if result is None or result.verdict != "unrelated":
            text = f"the {part} of {label} is left out, as the recipe says"
        elif result.like is not None:
            text = (
                f"the {part} of {label} has nothing to judge by, and the {result.like} before it "
                "is unrelated"
            )
        elif result.cosine is None:
            text = f"nothing in the {part} of {label} shows that it is related"
        else:
            text = f"the {part} of {label} is unrelated (mean cosine {result.cosine:.3f})"
        why[part] = f"{why[part]}; {text}" if part in why else text
    return left_out, why


def _judged_parts(key_map: KeyMap) -> list[str]:
    """What the weights may show to be unrelated: heads, and backbones that were guessed."""
    heads = [part.name for part in key_map.parts if not part.backbone]
    guessed = [part.name for part in key_map.parts if part.backbone]
    return heads + (guessed if len(guessed) > 1 else [])


def _judged_layers(key_map: KeyMap) -> set[str]:
    """The layers that the weights, once they are read, may show to be left out."""
    parts = _judged_parts(key_map)
    return {p.layer for p in key_map.shared if p.part in parts} | set(key_map.doubtful)


def _without_layers(
    key_map: KeyMap,
    checkpoints: Sequence[Checkpoint],
    kept_parts: Sequence[Sequence[str]] | None,
) -> KeyMap:
    """The map without layers that are no parts: what `kept_parts` names of them decides.

    Without `kept_parts`, classifiers of other classes are left out. A recipe from before that was
    looked at does not name them, and gives what it gave.
    """
    if kept_parts is None:
        return leave_out(key_map, key_map.other_classes)
    known = {*key_map.doubtful, *(layer for _, layer in key_map.other_classes)}
    return leave_out(
        key_map,
        {
            (i, layer): key_map.other_classes.get(
                (i, layer), f"{layer} of {checkpoints[i].label} is left out, as the recipe says"
            )
            for i, layers in enumerate(kept_parts)
            for layer in layers
            if layer in known
        },
    )


def _undecided(
    key_map: KeyMap, options: MergeOptions, relatedness: Sequence[Relatedness]
) -> list[str]:
    """A warning about layers whose values decide, before they are read."""
    if not key_map.doubtful or relatedness or options.scope != "auto":
        return []
    return [
        f"{', '.join(key_map.doubtful)}: some systems save them untrained under these names. They "
        "are judged when the weights are read (plan --check-weights, or the merge)."
    ]


def _rowless(layers: Sequence[str], heads: Collection[str]) -> list[str]:
    """A warning about layers that a table of weights says nothing of, before they are judged."""
    if not layers:
        return []
    it, them = ("it stays", "it is") if len(layers) == 1 else ("they stay", "they are")
    return [
        f"the table of weights has no row for {_some(layers)}: {it} the anchor's in this plan, and "
        f"a merge with the table is refused unless the weights show that {them} to be left out. "
        f"Add what is missing{or_backbone(layers, heads)}."
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if names[8:] else "")


def _backbones(key_map: KeyMap) -> set[str]:
    return {part.name for part in key_map.parts if part.backbone}


def _unrelated_parts(
    relatedness: Sequence[Relatedness],
    left_out: set[tuple[int, str]],
    checkpoints: Sequence[Checkpoint],
) -> list[str]:
    """A warning per donor of which parts are left out because they are unrelated."""
    warnings = []
    for i, donor in enumerate(checkpoints[1:], start=1):
        parts = list(
            dict.fromkeys(r.part for r in relatedness if r.model == i and (i, r.part) in left_out)
        )
        if parts:
            warnings.append(
                f"the {_some(parts)} of {donor.label} {'is' if len(parts) == 1 else 'are'} "
                "unrelated to the anchor's and left out (--scope all merges all the same)."
            )
    return warnings


def _key(parameter: SharedParameter) -> str:
    assert parameter.sources[0] is not None
    return parameter.sources[0].key


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in STATISTICS


def _planned_model(
    index: int, checkpoint: Checkpoint, key_map: KeyMap, kept_parts: list[str]
) -> PlannedModel:
    facts = checkpoint.facts
    dialects = list(dict.fromkeys(key_map.dialects[index].values()))
    return PlannedModel(
        role="anchor" if index == 0 else "donor",
        reference=str(checkpoint.reference),
        label=checkpoint.label,
        commit=checkpoint.commit,
        format=checkpoint.format,
        files=checkpoint.files,
        family=key_map.families[index],
        dialect=" and ".join(dialects) or None,
        parameters=checkpoint.parameters,
        classes=_classes(checkpoint, key_map.classifiers[index]),
        license=facts.license,
        weights=checkpoint.reference.weights,
        local=not checkpoint.reference.on_hub,
        dtype=checkpoint.dtype,
        architecture=checkpoint.architecture,
        license_name=facts.license_name,
        license_link=facts.license_link,
        license_text=bool(facts.license_files),
        gated=facts.gated,
        private=facts.private,
        datasets=facts.datasets,
        pipeline_tag=facts.pipeline_tag,
        sha256={file: facts.sha256.get(file) for file in checkpoint.files},
        kept_parts=tuple(kept_parts),
        renamed=key_map.prefixes[index - 1] if index else "",
        stage=checkpoint.reference.stage,
        base_models=facts.base_models,
        links=links_copied(index, checkpoint),
        marks=checkpoint.marks,
        path=_path(checkpoint.reference),
    )


def _path(reference: ModelReference) -> str | None:
    """Where a model is on this machine, a copy of one of the Hub included."""
    if reference.on_hub and reference.stand_in is None:
        return None
    place = reference.stand_in.path if reference.stand_in is not None else reference.location
    return str(Path(place).absolute())


def _classes(checkpoint: Checkpoint, classifier: int | None) -> int | None:
    """Number of classes: the classifier's, else what config.json says."""
    if classifier is not None:
        return classifier
    labels = (checkpoint.config or {}).get("id2label")
    number = (checkpoint.config or {}).get("num_labels")
    if isinstance(labels, dict) and labels:
        return len(labels)
    return number if isinstance(number, int) else None


def _unused_now(
    i: int,
    checkpoint: Checkpoint,
    key_map: KeyMap,
    merged: Sequence[MergedTensor],
    reasons: Mapping[str, str],
    left_out: set[tuple[int, str]],
) -> dict[str, str]:
    """Why a donor's keys, or which parts, are no source, those that are left out included."""
    used = {s for t in merged if (s := t.sources[i]) is not None}
    unused = Reasons(key_map.unused[i - 1] | dict(checkpoint.ignored))
    for parameter in key_map.shared:
        source = parameter.sources[i]
        if source is not None and source not in used:
            why = "batch-norm statistics stay the anchor's (--batch-norm anchor)"
            if (i, parameter.part) in left_out:
                why = reasons[parameter.part]
            unused.add(source, parameter.name, why)
    return unused.told({source.key for source in used})


def _cost(
    merged: Sequence[MergedTensor], checkpoints: Sequence[Checkpoint], options: MergeOptions
) -> Cost:
    anchor = checkpoints[0]
    read = sum(entry.size for entry in anchor.entries.values())
    for tensor in merged:
        for i, source in enumerate(tensor.sources):
            if i and source is not None and tensor.weights[i]:
                read += checkpoints[i].entries[source.key].size // source.parts
    download = sum(c.facts.download_bytes for c in checkpoints)
    return Cost(read, written_bytes(anchor, options), download)


def written_bytes(anchor: Checkpoint, options: MergeOptions) -> int:
    """Bytes of weights that a merge with this anchor writes."""
    return sum(
        tensor_bytes(output_dtype(entry.dtype, options.dtype), entry.shape)
        for entry in anchor.entries.values()
    )
