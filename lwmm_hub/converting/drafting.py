"""A config.json written from a checkpoint: every value with where it comes from, none guessed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lwmm_hub.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

# of a config beside the weights or given by the user: facts of its own run, or of another machine
NOT_TAKEN = frozenset(
    {"_name_or_path", "_commit_hash", "architectures", "auto_map", "dtype", "torch_dtype"}
    | {"model_type", "transformers_version", "quantization_config"}
)

SHAPES = "shapes"
GIVEN = "given"


@dataclass(frozen=True)
class Origin:
    """What a checkpoint tells of its network beside shapes.

    Attributes:
        keys: of its file, as its own system writes them.
        conventions: table -> the system, and what names do not show of its networks.
    """

    keys: Collection[str]
    conventions: Mapping[str, tuple[str, str]]


@dataclass
class ConfigDraft:
    """The values of a configuration while they are found out.

    Attributes:
        label: the model, for messages.
        given: what the user (or the model's own config.json) says.
        values: field -> value.
        sources: field -> `shapes`, `given`, or the published model it is known from.
    """

    label: str
    given: Mapping[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def derived(self, name: str, value: Any) -> None:
        """A value that the shapes prove.

        Raises:
            CheckpointError: another one is given.
        """
        if name in self.given and _plain(self.given[name]) != _plain(value):
            raise CheckpointError(
                f"{self.label} has {name} {_plain(value)} by the shapes of its weights, but the "
                f"config says {str(_plain(self.given[name]))[:80]}. Mend the config, or leave "
                f"{name} out of it."
            )
        self.values[name], self.sources[name] = _plain(value), SHAPES

    def known(self, source: str | None, **values: Any) -> None:
        """Values that no shape shows: given, or those of the published model `source`.

        Raises:
            CheckpointError: one is neither given nor known.
        """
        unknown = [name for name in values if source is None and name not in self.given]
        if unknown:
            fields = ", ".join(f'"{name}": ...' for name in unknown)
            raise CheckpointError(
                f"{self.label} has the sizes of no published model, so {' and '.join(unknown)} "
                f"cannot be known from its weights. Give a file with {{{fields}}}: --config FILE."
            )
        for name, value in values.items():
            given = name in self.given
            self.values[name] = _plain(self.given[name] if given else value)
            self.sources[name] = GIVEN if given else str(source)

    def numbers(self, name: str, count: int) -> list[int]:
        """A value that has to be `count` positive whole numbers.

        Raises:
            CheckpointError: it is something else.
        """
        value = self.values[name]
        if (
            not isinstance(value, list)
            or len(value) != count
            or any(type(item) is not int or item < 1 for item in value)
        ):
            raise CheckpointError(
                f"{self.label} needs {count} positive numbers as {name}, the config says "
                f"{str(value)[:80]}. Mend the config."
            )
        return value

    def finish(self) -> None:
        """Take over the given fields that say nothing about shapes (labels, dropout, ...)."""
        for name, value in self.given.items():
            if name not in self.values and name not in NOT_TAKEN:
                self.values[name], self.sources[name] = value, GIVEN


@dataclass(frozen=True)
class Described:
    """What the weights are in transformers.

    Attributes:
        expected: every key of the class and its shape, in the order of the forward pass.
        notes: what the user should know of the model.
    """

    expected: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()


def shape_of(shapes: Shapes, key: str, dimensions: int, label: str) -> tuple[int, ...]:
    """The shape of a tensor that the family has to have.

    Raises:
        CheckpointError: it is not there, or has another number of dimensions.
    """
    shape = shapes.get(key)
    if shape is None:
        raise CheckpointError(
            f"{label} lacks {key!r} (as transformers calls it): it is no whole model of its "
            "family. Convert it in its own keys: leave --to out."
        )
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(
            f"{label}: {key!r} has the shape {shape}, which no model of its family has. Convert it "
            "in its own keys: leave --to out."
        )
    return shape


def numbered(keys: Iterable[str], prefix: str) -> int:
    """How many different numbers follow `prefix` in keys.

    >>> numbered(["block.0.a", "block.0.b", "block.2.a", "norm"], "block.")
    2
    """
    found = {key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix)}
    return sum(name.isdecimal() for name in found)


def with_leaves(
    name: str, weight: Sequence[int], leaves: Sequence[str] = ("bias",)
) -> dict[str, tuple[int, ...]]:
    """A module's weight, and its vectors of as many elements as the weight has rows."""
    return {f"{name}.weight": tuple(weight)} | {f"{name}.{leaf}": (weight[0],) for leaf in leaves}


BATCH_NORM = ("bias", "running_mean", "running_var")


def batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a batch norm of `width` channels, its counter the last."""
    return with_leaves(name, (width,), BATCH_NORM) | {f"{name}.num_batches_tracked": ()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
