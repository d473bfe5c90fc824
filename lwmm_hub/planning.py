"""KeyMap + layer weights -> `MergePlan`: how every tensor of the result is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lwmm_hub.checkpoint import DTYPE_CODES, Checkpoint, dtype_name, tensor_bytes
from lwmm_hub.display import plan_html, plan_text
from lwmm_hub.errors import RecipeError, UnrelatedModelsError, UsageError
from lwmm_hub.key_map import KeyMap, SharedParameter, Source
from lwmm_hub.relatedness import Relatedness
from lwmm_hub.schedule import Schedule, layer_weights, renormalised

VERSION = 1
BATCH_NORM = ("linear", "moment", "anchor")
SCOPES = ("auto", "all", "backbone")
DTYPE_OPTIONS = ("auto", "float32", "float16", "bfloat16")
OUTPUT_FORMATS = ("safetensors", "pth")
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class MergeOptions:
    """Everything that decides the numbers of the result, and how they are stored.

    The first six are those of `Schedule`. `batch_norm` says what happens to running statistics:
    `linear` (as the layer's weights), `moment` (mean and variance of the mixture), `anchor`.
    `scope`: `all` merges whatever is shared, `backbone` only that, `auto` leaves out heads that
    turn out unrelated. `dtype` is that of the output's floats, `auto` is the anchor's.
    """

    schedule: str = "linear"
    start: float | str = 0.0
    end: float | str = 1.0
    gamma: float = 1.0
    endpoint: float = 1.0
    anchor_weight: float | None = None
    batch_norm: str = "linear"
    scope: str = "auto"
    allow_unrelated: bool = False
    allow_nonfinite: bool = False
    dtype: str = "auto"
    max_shard_size: str = "5GB"
    output_format: str = "safetensors"

    @property
    def curve(self) -> Schedule:
        """The rule of the layer weights."""
        return Schedule(
            self.schedule, self.start, self.end, self.gamma, self.endpoint, self.anchor_weight
        )

    def check(self, models: int) -> None:
        """Refuse values that are out of range.

        Raises:
            UsageError: which option, and what it may be.
        """
        self.curve.check(models)
        for name, value, choices in (
            ("batch-norm", self.batch_norm, BATCH_NORM),
            ("scope", self.scope, SCOPES),
            ("dtype", self.dtype, DTYPE_OPTIONS),
            ("output-format", self.output_format, OUTPUT_FORMATS),
        ):
            if value not in choices:
                raise UsageError(f"{name} {value!r} is unknown: choose {', '.join(choices)}.")
        parse_size(self.max_shard_size)


def parse_size(text: str) -> int:
    """Bytes of a size as people write it.

    >>> parse_size("5GB"), parse_size("200 MB"), parse_size("1GiB")
    (5000000000, 200000000, 1073741824)

    Raises:
        UsageError: not a size.
    """
    units = {"B": 1, "": 1}
    for power, letter in enumerate("KMGT", start=1):
        units |= {f"{letter}B": 1000**power, f"{letter}IB": 1024**power, letter: 1000**power}
    compact = text.replace(" ", "").upper()
    number = compact.rstrip("BIKMGT")
    try:
        size = float(number) * units[compact[len(number) :]]
    except (KeyError, ValueError):
        size = 0.0
    if not 1 <= size < 1 << 60:
        raise UsageError(f"max-shard-size {text!r} is no size: write e.g. 5GB or 500MB.")
    return int(size)


@dataclass(frozen=True)
class PlannedModel:
    """One parent as the plan, the manifest and the card state it."""

    role: str
    reference: str
    label: str
    commit: str | None
    format: str
    files: tuple[str, ...]
    family: str | None
    dialect: str | None
    parameters: int
    classes: int | None
    license: str | None
    weights: str = "student"
    local: bool = True
    dtype: str = "float32"
    architecture: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    license_text: bool = False
    gated: bool = False
    private: bool = False
    datasets: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    sha256: Mapping[str, str | None] = field(default_factory=dict)
    kept_parts: tuple[str, ...] = ()
    renamed: str = ""


@dataclass(frozen=True)
class Layer:
    """One shared module: its place in depth and the weight of each model there."""

    index: int
    name: str
    part: str
    weights: tuple[float, ...]


@dataclass(frozen=True)
class MergedTensor:
    """How one canonical parameter is made: `weights[i]` times what `sources[i]` names in model i.

    Attributes:
        name: canonical name.
        layer: index of its layer.
        key: the anchor's key.
        shape: of the parameter (a part of the key's tensor where that is fused).
        dtype: of the anchor.
        sources: per model, None where it lacks the parameter or its part is unrelated.
        weights: per model, in the anchor's order; they sum to 1.
    """

    name: str
    layer: int
    key: str
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[Source | None, ...]
    weights: tuple[float, ...]

    @property
    def statistic(self) -> str | None:
        """`running_mean` or `running_var` for batch-norm statistics, else None."""
        leaf = self.name.rpartition(".")[2]
        return leaf if leaf in STATISTICS else None


@dataclass(frozen=True)
class Cost:
    """Bytes that the merge reads, writes and downloads."""

    read_bytes: int = 0
    write_bytes: int = 0
    download_bytes: int = 0


@dataclass(frozen=True)
class MergePlan:
    """How every tensor of the result is made, and why some are the anchor's alone.

    A plan is a value: it can be printed, saved, loaded and run again bit for bit.

    Attributes:
        models: the parents, the anchor first.
        options: what was asked for.
        scope_decided: whether the weights were read and the scope is final.
        layers: the shared layers in depth order.
        merged: one entry per canonical parameter, in depth order.
        kept: key of the anchor -> why it is copied unchanged, in file order.
        unused: per donor, key -> why it is left out.
        warnings: what the user should know.
        cost: bytes to move.
        order_source: where the depth order comes from.
        parts: (name, whether backbone, number of shared parameters).
        relatedness: what the weights said; empty before they are read.
    """

    models: tuple[PlannedModel, ...]
    options: MergeOptions
    scope_decided: bool
    layers: tuple[Layer, ...]
    merged: tuple[MergedTensor, ...]
    kept: Mapping[str, str]
    unused: tuple[Mapping[str, str], ...]
    warnings: tuple[str, ...]
    cost: Cost
    order_source: str
    parts: tuple[tuple[str, bool, int], ...] = ()
    relatedness: tuple[Relatedness, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, ready for JSON (`lwmm-hub plan --json`)."""
        return {
            "version": VERSION,
            "models": [_plain(asdict(model)) for model in self.models],
            "scope_decided": self.scope_decided,
            "options": asdict(self.options),
            "layers": [_plain(asdict(layer)) for layer in self.layers],
            "merged": [_merged_dict(tensor) for tensor in self.merged],
            "kept": [{"key": key, "reason": why} for key, why in self.kept.items()],
            "unused": [
                {"model": i, "key": key, "reason": why}
                for i, keys in enumerate(self.unused, start=1)
                for key, why in keys.items()
            ],
            "warnings": list(self.warnings),
            "cost": asdict(self.cost),
            "order_source": self.order_source,
            "parts": [
                {"name": name, "backbone": backbone, "tensors": n}
                for name, backbone, n in self.parts
            ],
            "relatedness": [_plain(asdict(result)) for result in self.relatedness],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MergePlan:
        """The plan that `to_dict` gave.

        Raises:
            RecipeError: a field is missing, unknown or of the wrong type.
        """
        try:
            return _plan_from_dict(data)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise RecipeError(
                f"this is not a merge plan of version {VERSION} ({type(error).__name__}: {error}). "
                "Make it again with 'lwmm-hub plan --json'."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> MergePlan:
        """Read a plan that `save` wrote.

        Raises:
            RecipeError: not a plan.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeError(f"{Path(path).name} is not a saved plan: {error}.") from error
        return cls.from_dict(data)

    def __str__(self) -> str:
        return plan_text(self.to_dict())

    def _repr_html_(self) -> str:
        return plan_html(self.to_dict())


def plan_merge(
    key_map: KeyMap,
    checkpoints: Sequence[Checkpoint],
    options: MergeOptions | None = None,
    relatedness: Sequence[Relatedness] = (),
    warnings: Sequence[str] = (),
    kept_parts: Sequence[Sequence[str]] | None = None,
) -> MergePlan:
    """Give every shared parameter the weights of its layer.

    Without `relatedness` all shared heads are assumed related, and the plan says that its scope is
    not decided (unless `scope` decides it). `kept_parts` (per model, from a recipe or an earlier
    plan) overrules what `relatedness` would decide.

    Raises:
        UsageError: an option is out of range, or names an unknown layer.
        UnrelatedModelsError: nothing is left to merge.
    """
    options = options or MergeOptions()
    options.check(len(checkpoints))
    left_out, reasons = _left_out(key_map, checkpoints, options, relatedness, kept_parts)
    kept = dict(key_map.kept)
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
            kept[parameter.sources[0].key] = why
        else:
            present.append((parameter, there))
    if not present:
        raise UnrelatedModelsError(
            f"{checkpoints[0].label} and its donors share nothing that --scope {options.scope} "
            "merges. Choose another scope or other models."
        )
    names = list(dict.fromkeys(p.layer for p, _ in present))
    part_of = {p.layer: p.part for p, _ in present}
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
    merged_keys = {tensor.key for tensor in merged}
    anchor = checkpoints[0]
    return MergePlan(
        tuple(
            _planned_model(i, c, key_map, [part for m, part in sorted(left_out) if m == i])
            for i, c in enumerate(checkpoints)
        ),
        options,
        bool(relatedness) or options.scope != "auto",
        tuple(
            Layer(i, name, part_of[name], row)
            for i, (name, row) in enumerate(zip(names, weights, strict=True))
        ),
        merged,
        {key: kept[key] for key in anchor.entries if key in kept and key not in merged_keys},
        tuple(
            _unused_now(i, key_map, merged, reasons, left_out) for i in range(1, len(checkpoints))
        ),
        (*warnings, *_dtype_warnings(merged, checkpoints)),
        _cost(merged, checkpoints, options),
        key_map.order_source,
        tuple(
            (part.name, part.backbone, sum(p.part == part.name for p in key_map.shared))
            for part in key_map.parts
        ),
        tuple(relatedness),
    )


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
    recorded = {(i, part) for i, parts in enumerate(kept_parts or ()) for part in parts}
    judged = {(r.model, r.part): r for r in relatedness if not r.backbone}
    for i, part in sorted(recorded) if kept_parts is not None else judged:
        result = judged.get((i, part))
        if kept_parts is None and result is not None and result.verdict != "unrelated":
            continue
        left_out.add((i, part))
        label = checkpoints[i].label
        if result is None or result.verdict != "unrelated":
            text = f"the {part} of {label} is left out, as the recipe says"
        elif result.cosine is None:
            text = f"nothing in the {part} of {label} shows that it is related"
        else:
            text = f"the {part} of {label} is unrelated (mean cosine {result.cosine:.3f})"
        why[part] = f"{why[part]}; {text}" if part in why else text
    return left_out, why


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
    )


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
    key_map: KeyMap,
    merged: Sequence[MergedTensor],
    reasons: Mapping[str, str],
    left_out: set[tuple[int, str]],
) -> dict[str, str]:
    """Why each of a donor's keys is no source, those of parts that are left out included."""
    used = {s.key for t in merged if (s := t.sources[i]) is not None}
    unused = dict(key_map.unused[i - 1])
    for parameter in key_map.shared:
        source = parameter.sources[i]
        if source is not None and source.key not in used:
            why = "batch-norm statistics stay the anchor's (--batch-norm anchor)"
            if (i, parameter.part) in left_out:
                why = reasons[parameter.part]
            unused.setdefault(source.key, why)
    return unused


def _dtype_warnings(merged: Sequence[MergedTensor], checkpoints: Sequence[Checkpoint]) -> list[str]:
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


def output_dtype(code: str, option: str) -> str:
    """The dtype a float tensor is stored in; others stay as they are.

    >>> output_dtype("F32", "float16"), output_dtype("I64", "float16"), output_dtype("F32", "auto")
    ('F16', 'I64', 'F32')
    """
    floats = ("F64", "F32", "F16", "BF16")
    return DTYPE_CODES[option] if option != "auto" and code in floats else code


def _cost(
    merged: Sequence[MergedTensor], checkpoints: Sequence[Checkpoint], options: MergeOptions
) -> Cost:
    anchor = checkpoints[0]
    read = sum(entry.size for entry in anchor.entries.values())
    for tensor in merged:
        for i, source in enumerate(tensor.sources):
            if i and source is not None and tensor.weights[i]:
                dtype = checkpoints[i].entries[source.key].dtype
                read += tensor_bytes(dtype, tensor.shape)
    write = sum(
        tensor_bytes(output_dtype(entry.dtype, options.dtype), entry.shape)
        for entry in anchor.entries.values()
    )
    return Cost(read, write, sum(c.facts.download_bytes for c in checkpoints))


def _plain(value: Any) -> Any:
    """Tuples as lists, so that a plan equals its JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _merged_dict(tensor: MergedTensor) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": tensor.name,
        "layer": tensor.layer,
        "key": tensor.key,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "sources": [source and source.key for source in tensor.sources],
        "weights": list(tensor.weights),
    }
    if any(source and source.parts > 1 for source in tensor.sources):
        data["parts"] = [source and [source.part, source.parts] for source in tensor.sources]
    return data


def _plan_from_dict(data: Mapping[str, Any]) -> MergePlan:
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']!r} is unknown")
    unused: list[dict[str, str]] = [{} for _ in data["models"][1:]]
    for row in data["unused"]:
        unused[row["model"] - 1][row["key"]] = row["reason"]
    return MergePlan(
        tuple(_from_fields(PlannedModel, row) for row in data["models"]),
        _from_fields(MergeOptions, data["options"]),
        bool(data["scope_decided"]),
        tuple(_from_fields(Layer, row) for row in data["layers"]),
        tuple(_merged_from_dict(row) for row in data["merged"]),
        {row["key"]: row["reason"] for row in data["kept"]},
        tuple(unused),
        tuple(data["warnings"]),
        _from_fields(Cost, data["cost"]),
        data["order_source"],
        tuple((row["name"], row["backbone"], row["tensors"]) for row in data["parts"]),
        tuple(_from_fields(Relatedness, row) for row in data["relatedness"]),
    )


def _merged_from_dict(row: Mapping[str, Any]) -> MergedTensor:
    parts = row.get("parts") or [None] * len(row["sources"])
    sources = tuple(
        None if key is None else Source(key, *(part or (0, 1)))
        for key, part in zip(row["sources"], parts, strict=True)
    )
    weights = tuple(float(w) for w in row["weights"])
    return MergedTensor(
        row["name"], row["layer"], row["key"], tuple(row["shape"]), row["dtype"], sources, weights
    )


def _from_fields(cls: type[Any], row: Mapping[str, Any]) -> Any:
    """A dataclass from plain data: no unknown field, lists as tuples."""
    known = {f.name for f in fields(cls)}
    if unknown := set(row) - known:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
    return cls(**{name: _tuples(value) for name, value in row.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
