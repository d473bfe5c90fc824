"""`MergePlan`: a value that says how every tensor of the result is made."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lwmm_hub.display import Counts, count_tensors, headline, plan_html, plan_text
from lwmm_hub.errors import RecipeError
from lwmm_hub.key_map import Source, ValuePair, pairs_sha256
from lwmm_hub.lineage import Lineage
from lwmm_hub.options import MergeOptions
from lwmm_hub.relatedness import Relatedness
from lwmm_hub.schedule import TABLE
from lwmm_hub.small_files import read_small
from lwmm_hub.weight_table import WeightTable, origin_of

VERSION = 1
STATISTICS = ("running_mean", "running_var")
_MAX_BYTES = 256 << 20  # of a saved plan
_ROUNDING = 1e-6  # by which a weight may lie outside 0 to 1


@dataclass(frozen=True)
class PlannedModel:
    """One parent as the plan, the manifest and the card state it.

    `base_models` are what it says that it was made from. `links` are files that are copied into the
    result and are links to others outside the model's folder. `marks` are what the files of a local
    one are known again by, and `path` is where it is: the plan in memory knows that wherever the
    program goes, and no file holds it.
    """

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
    stage: str | None = None
    base_models: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    path: str | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Layer:
    """One shared module: its place in depth and the weight of each model there.

    Models that lack it count as if they had it: `MergedTensor.weights` are those that are used.
    """

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


@dataclass(frozen=True, repr=False)
class MergePlan:
    """How every tensor of the result is made, and why some are the anchor's alone.

    A plan is a value: it can be printed, saved, loaded and run again bit for bit.

    Attributes:
        models: the parents, the anchor first.
        options: what was asked for.
        scope_decided: whether the weights were read and the scope is final.
        layers: the shared layers in depth order.
        merged: one entry per canonical parameter, in depth order.
        kept: key of the anchor -> why it, or which part of it, is copied unchanged; in file order.
        unused: per donor, key -> why it is left out.
        warnings: what the user should know.
        cost: bytes to move.
        order_source: where the depth order comes from.
        parts: (name, whether backbone, number of shared parameters).
        relatedness: what the weights said; empty before they are read.
        ignored: key of the anchor's file that is not the model's (other copies) -> why.
        lineage: per donor of which something is known, whether it was made from the same
            pre-training as the anchor.
        inferred: what is merged because the values match, where no name does.
        weights_from: how the layer weights were found, where no schedule gives them.
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
    ignored: Mapping[str, str] = field(default_factory=dict)
    lineage: tuple[Lineage, ...] = ()
    inferred: tuple[ValuePair, ...] = ()
    weights_from: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)

    @property
    def counts(self) -> Counts:
        """How much is merged, and how much stays the anchor's: what all that is told counts by."""
        return count_tensors((tensor.key for tensor in self.merged), self.kept)

    @property
    def table(self) -> WeightTable | None:
        """The layer weights as numbers, where no schedule gives them."""
        if self.options.schedule != TABLE:
            return None
        return WeightTable({layer.name: layer.weights for layer in self.layers}, self.weights_from)

    @property
    def pairs_sha256(self) -> str | None:
        """A checksum of what was matched by values; None where nothing was."""
        return pairs_sha256(self.inferred)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, ready for JSON (`lwmm-hub plan --json`)."""
        return {
            "version": VERSION,
            "models": [_model_dict(model) for model in self.models],
            "scope_decided": self.scope_decided,
            "options": _plain(self.options),
            "layers": [_plain(layer) for layer in self.layers],
            "merged": [_merged_dict(tensor) for tensor in self.merged],
            "kept": [{"key": key, "reason": why} for key, why in self.kept.items()],
            "unused": [
                {"model": i, "key": key, "reason": why}
                for i, keys in enumerate((self.ignored, *self.unused))
                for key, why in keys.items()
            ],
            "warnings": list(self.warnings),
            "cost": _plain(self.cost),
            "order_source": self.order_source,
            "parts": [
                {"name": name, "backbone": backbone, "tensors": n}
                for name, backbone, n in self.parts
            ],
            "relatedness": [_plain(result) for result in self.relatedness],
            "lineage": [_plain(result) for result in self.lineage],
            "inferred": [_plain(pair) for pair in self.inferred],
        } | ({"weights_from": dict(self.weights_from)} if self.weights_from else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MergePlan:
        """The plan that `to_dict` gave.

        Raises:
            RecipeError: a field is missing, unknown or of the wrong type.
        """
        try:
            return _plan_from_dict(data)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
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
            data = json.loads(read_small(Path(path), _MAX_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            what = error.strerror if isinstance(error, OSError) else str(error)
            raise RecipeError(
                f"cannot read the plan {path}: {what}. Name a file that plan.save wrote."
            ) from error
        return cls.from_dict(data)

    def __repr__(self) -> str:  # of all fields it would fill a notebook; `print` shows them
        return f"<MergePlan of {headline(self.to_dict())}>"

    def __str__(self) -> str:
        return plan_text(self.to_dict())

    def _repr_html_(self) -> str:
        return plan_html(self.to_dict())


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as a dict of its fields, tuples as lists, so that a plan equals its JSON."""
    return {name: _listed(item) for name, item in vars(value).items()}


def _listed(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_listed(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _model_dict(model: PlannedModel) -> dict[str, Any]:
    row = _plain(model)
    del row["path"]
    for name in ("base_models", "links", "marks"):
        if not row[name]:
            del row[name]
    return row


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
    options = _from_fields(MergeOptions, data["options"])
    options.check(len(data["models"]))
    unused: list[dict[str, str]] = [{} for _ in data["models"]]
    for row in data["unused"]:
        if row["model"] < 0:
            raise ValueError(f"there is no model {row['model']}")
        unused[row["model"]][row["key"]] = row["reason"]
    plan = MergePlan(
        tuple(_from_fields(PlannedModel, row) for row in data["models"]),
        options,
        data["scope_decided"],
        tuple(_from_fields(Layer, row) for row in data["layers"]),
        tuple(_merged_from_dict(row) for row in data["merged"]),
        {row["key"]: row["reason"] for row in data["kept"]},
        tuple(unused[1:]),
        _tuples(data["warnings"]),
        _from_fields(Cost, data["cost"]),
        data["order_source"],
        tuple((row["name"], row["backbone"], row["tensors"]) for row in data["parts"]),
        tuple(_from_fields(Relatedness, row) for row in data["relatedness"]),
        unused[0],
        tuple(_from_fields(Lineage, row) for row in data.get("lineage", [])),
        tuple(_from_fields(ValuePair, row) for row in data.get("inferred", ())),
        origin_of(data.get("weights_from", {})),
    )
    _check_weights(plan)
    return _checked(plan)


def _check_weights(plan: MergePlan) -> None:
    """Refuse rows that do not fit the number of models: they could not even be shown."""
    models, layers = len(plan.models), len(plan.layers)
    rows: list[Layer | MergedTensor] = [*plan.layers, *plan.merged]
    for row in rows:
        sound = all(-_ROUNDING <= weight <= 1 + _ROUNDING for weight in row.weights)
        if len(row.weights) != models or not sound:
            raise ValueError(f"{row.name!r} has no weight from 0 to 1 for each of {models} models")
    for tensor in plan.merged:
        if len(tensor.sources) != models or not 0 <= tensor.layer < layers:
            raise ValueError(f"{tensor.name!r} has no source for each model, or no layer")
    for donor in (*(r.model for r in plan.relatedness), *(found.model for found in plan.lineage)):
        if not 0 < donor < models:
            raise ValueError(f"there is no donor {donor}")


def _merged_from_dict(row: Mapping[str, Any]) -> MergedTensor:
    parts = row.get("parts") or [None] * len(row["sources"])
    sources = tuple(
        None if key is None else _checked(Source(key, *(part or (0, 1))))
        for key, part in zip(row["sources"], parts, strict=True)
    )
    weights = tuple(w + 0.0 for w in row["weights"])  # unlike float(), takes no text
    shape = _tuples(row["shape"])
    return _checked(
        MergedTensor(row["name"], row["layer"], row["key"], shape, row["dtype"], sources, weights)
    )


def _from_fields(cls: type[Any], row: Mapping[str, Any]) -> Any:
    """A dataclass from plain data: no unknown field, lists as tuples."""
    known = {f.name for f in fields(cls) if f.compare}  # the others are of a plan in memory
    if unknown := set(row) - known:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
    return _checked(cls(**{name: _tuples(value) for name, value in row.items()}))


_Value = TypeVar("_Value")


@functools.cache
def _types_of(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _checked(value: _Value) -> _Value:
    """The dataclass itself, if its fields have the types that it declares."""
    cls = type(value)
    for name, kind in _types_of(cls).items():  # type: ignore[arg-type]  # a class is hashable
        if not _fits(getattr(value, name), kind):
            raise TypeError(f"{cls.__name__}.{name} has the wrong type")
    return value


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a declared type, to the last item; an int is a float, a bool no int."""
    inner = get_args(kind)
    if isinstance(value, tuple) and get_origin(kind) is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if isinstance(value, Mapping) and get_origin(kind) is Mapping:
        return all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if inner:
        return get_origin(kind) in (UnionType, Union) and any(_fits(value, k) for k in inner)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
