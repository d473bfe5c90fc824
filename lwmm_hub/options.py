"""What a user can ask of a merge: every option that decides the numbers of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from lwmm_hub.checkpoint import DTYPE_CODES, MERGEABLE
from lwmm_hub.errors import UsageError
from lwmm_hub.key_map import MATCH
from lwmm_hub.keywords import plain_fields
from lwmm_hub.schedule import Schedule

BATCH_NORM = ("linear", "moment", "anchor")
SCOPES = ("auto", "all", "backbone")
DTYPE_OPTIONS = ("auto", "float32", "float16", "bfloat16")
OUTPUT_FORMATS = ("safetensors", "pth")

if TYPE_CHECKING:
    from typing import TypedDict

    class OptionFields(TypedDict, total=False):
        """The fields of `MergeOptions` as keyword arguments, for type checkers."""

        schedule: str
        start: float | str
        end: float | str
        gamma: float
        endpoint: float
        anchor_weight: float | None
        batch_norm: str
        scope: str
        allow_unrelated: bool
        allow_nonfinite: bool
        dtype: str
        max_shard_size: str | int
        output_format: str
        match: str


@dataclass(frozen=True)
class MergeOptions:
    """Everything that decides the numbers of the result, and how they are stored.

    Attributes:
        schedule: the curve of the layer weights over depth: `linear`, `cosine`, `step`, `harmonic`,
            `isotropic` (the uniform average), or `table`, with numbers given apart.
        start: where the ramp begins: a fraction of depth (0 to 1), or a layer or group that a plan
            lists.
        end: where it ends.
        gamma: its exponent, over 0; above 1 the donors stay longer.
        endpoint: how much of the way to the anchor it goes, 0 to 1.
        anchor_weight: the anchor's weight before the ramp; None is 1/M of M models, the least.
        batch_norm: what happens to running statistics: `linear` (as the layer's weights), `moment`
            (mean and variance of the mixture), `anchor`.
        scope: `all` merges whatever is shared, `backbone` only that, `auto` leaves out heads that
            turn out unrelated.
        allow_unrelated: merge backbones that share no pre-training, too.
        allow_nonfinite: merge NaN and infinity as they come.
        dtype: of the result's floats: `auto` (the anchor's), `float32`, `float16`, `bfloat16`.
        max_shard_size: the largest weight file, e.g. `5GB`.
        output_format: `safetensors`, or `pth` with the anchor's own nesting.
        match: `names` and tables alone, or `values`, too, where no name matches.
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
    match: str = "names"

    def __post_init__(self) -> None:
        plain_fields(self)

    @property
    def curve(self) -> Schedule:
        """The rule of the layer weights."""
        return Schedule(
            self.schedule, self.start, self.end, self.gamma, self.endpoint, self.anchor_weight
        )

    def with_curve(self, curve: Schedule) -> MergeOptions:
        """The same options with another rule of the layer weights."""
        return replace(
            self,
            schedule=curve.kind,
            start=curve.start,
            end=curve.end,
            gamma=curve.gamma,
            endpoint=curve.endpoint,
            anchor_weight=curve.anchor_weight,
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
            ("match", self.match, MATCH),
        ):
            if value not in choices:
                raise UsageError(f"{name} {value!r} is unknown: choose {', '.join(choices)}.")
        parse_size(self.max_shard_size)


# told in words of their own, or of how the files are cut and not of what they hold
_NOT_TOLD = ("schedule", "max_shard_size", "output_format")


def changed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a plan's options as plain data, those to be told to its reader: not as they usually are.

    The schedule is not among them, nor is how the result is stored.

    >>> changed_options({"schedule": "cosine", "start": 0.5, "end": 1, "allow_nonfinite": True})
    {'start': 0.5, 'allow_nonfinite': True}
    """
    usual = {field.name: field.default for field in fields(MergeOptions)}
    return {
        name: options[name]
        for name in usual
        if name in options and name not in _NOT_TOLD and options[name] not in (usual[name], None)
    }


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


def output_dtype(code: str, option: str) -> str:
    """The dtype a float tensor is stored in; others stay as they are.

    >>> output_dtype("F32", "float16"), output_dtype("I64", "float16"), output_dtype("F32", "auto")
    ('F16', 'I64', 'F32')
    """
    return DTYPE_CODES[option] if option != "auto" and code in MERGEABLE else code
