"""Layer weights as numbers: a table that was fitted, measured or written by hand."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lwmm_hub.errors import RecipeError, UsageError
from lwmm_hub.foreign_yaml import NotYamlError, TwiceError, each_once, load_values
from lwmm_hub.small_files import read_small_text

MAX_BYTES = 16 << 20
# ways to find a table -> the function of `lwmm_hub` for them
FOUND = {
    "fit": "fit_layer_weights",
    "entropy": "fitting.entropy_layer_weights",
    "drift": "fitting.drift_layer_weights",
}
_SUM = 1e-6  # how far a row may be from 1; what is missing goes to the anchor


@dataclass(frozen=True)
class WeightTable:
    """The weight of each model in each layer.

    Attributes:
        rows: layer (or group of layers, such as `stages.1`) -> weights, the anchor's first.
        origin: how they were found: `method`, and for a fit `images`, `revision`, `seed`, ...
    """

    rows: Mapping[str, tuple[float, ...]]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def check(self, models: int) -> None:
        """Refuse rows that are no weights.

        Raises:
            UsageError: which row, and what is wrong with it.
        """
        for layer, row in self.rows.items():
            if len(row) != models:
                raise UsageError(
                    f"the table has {len(row)} weights for {layer!r}, and there are {models} "
                    "models: give one for each, the anchor's first."
                )
            sound = all(math.isfinite(w) and -_SUM <= w <= 1 + _SUM for w in row)
            if not sound or abs(sum(row) - 1) > _SUM * models:
                raise UsageError(
                    f"the weights for {layer!r} are {', '.join(f'{w:g}' for w in row)}: give "
                    "numbers from 0 to 1 that sum to 1."
                )

    def weights(
        self,
        layers: Sequence[str],
        models: int,
        left_out: Collection[str] = (),
        undecided: Collection[str] = (),
        heads: Collection[str] = (),
    ) -> list[tuple[float, ...]]:
        """A row for each of the shared layers; the longest name that covers a layer decides.

        Args:
            layers: those that are merged.
            models: how many models.
            left_out: shared layers that are not merged; a row for them is no mistake.
            undecided: those of `layers` that may still be left out: without a row they are the
                anchor's.
            heads: those of `layers` that need no row where the backbone alone is merged.

        >>> table = WeightTable({"stages": (0.5, 0.5), "stages.1": (0.75, 0.25)})
        >>> table.weights(["stages.0.norm", "stages.1.norm"], models=2)
        [(0.5, 0.5), (0.75, 0.25)]

        Raises:
            UsageError: a layer has no row, a row no layer, or a row is out of range.
        """
        self.check(models)
        used = {self._covering(layer) for layer in (*layers, *left_out)}
        unknown = [name for name in self.rows if name not in used]
        if unknown and any(name.startswith(f"{unknown[0]}.") for name in (*layers, *left_out)):
            raise UsageError(
                f"the table of weights has a row for {unknown[0]!r}, and other rows for each of "
                "its layers, so that it decides nothing. Leave it out, or the others.",
                about=f"layer_weights.{unknown[0]}",
            )
        if unknown:
            raise UsageError(
                f"the table of weights has a row for {unknown[0]!r}, which is no shared layer of "
                "these models. Leave it out; 'lwmm-hub plan' lists the layers.",
                about=f"layer_weights.{unknown[0]}",
            )
        needed = [layer for layer in self.without_row(layers) if layer not in undecided]
        if needed:
            more = f" and {len(needed) - 1} more" if needed[1:] else ""
            raise UsageError(
                f"the table of weights has no row for the layer {needed[0]!r}{more}. Add what is "
                f"missing ('lwmm-hub plan' lists the layers){or_backbone(needed, heads)}.",
                about="schedule",
            )
        found = []
        for layer in layers:
            name = self._covering(layer)
            if not name:
                found.append((1.0, *[0.0] * (models - 1)))
                continue
            donors = tuple(min(max(float(w), 0.0), 1.0) for w in self.rows[name][1:])
            found.append((max(0.0, _rest(self.rows[name], donors)), *donors))
        return found

    def without_row(self, layers: Sequence[str]) -> list[str]:
        """Those of `layers` that no row covers.

        >>> WeightTable({"stages": (0.5, 0.5)}).without_row(["stages.0.norm", "head.fuse"])
        ['head.fuse']
        """
        return [layer for layer in layers if not self._covering(layer)]

    def _covering(self, layer: str) -> str:
        """The longest name of a row that covers a layer; empty where there is none."""
        while layer and layer not in self.rows:
            layer = layer.rpartition(".")[0]
        return layer


def or_backbone(layers: Collection[str], heads: Collection[str]) -> str:
    """What can be done instead of adding rows for `layers`, where all of them are of `heads`."""
    if not set(heads).issuperset(layers):
        return ""
    return ", or merge the backbone alone with --scope backbone"


def _rest(row: Sequence[float], donors: Sequence[float]) -> float:
    """The anchor's weight: as it stands, where the row sums to 1 exactly, else what is left."""
    return float(row[0]) if math.fsum((row[0], *donors)) == 1 else 1 - math.fsum(donors)


def read_weights(path: Path) -> WeightTable:
    """A table from a file: `layer: [anchor, donor, ...]` in YAML or JSON, a plan or a recipe.

    Raises:
        UsageError: the file is missing, or holds something else.
    """
    try:
        text = read_small_text(path, MAX_BYTES)
        if path.suffix == ".json":
            content = json.loads(text, object_pairs_hook=each_once)
        else:
            content = load_values(text, as_written=("name",))  # of a plan's layer
    except TwiceError as error:
        raise UsageError(f"the table of weights has '{error}' twice. Leave one row out.") from error
    except OSError as error:
        raise UsageError(
            f"cannot read the weights {path}: {error.strerror}. Give its path."
        ) from error
    except (ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, NotYamlError) else "it is not YAML or JSON"
        raise UsageError(
            f"cannot read the weights {path}: {what}. Write 'layer: [anchor, donor]' lines."
        ) from error
    rows, origin = content, None
    if _is_plan(content):
        named = [row for row in content["layers"] if isinstance(row, dict)]
        rows = {n: row.get("weights") for row in named if isinstance(n := row.get("name"), str)}
        if len(rows) != len(content["layers"]):
            raise UsageError(f"{path} is no plan: its layers need a name each. Make it again.")
        origin = content.get("weights_from")
    elif isinstance(content, dict) and "layer_weights" in content:  # a recipe
        rows = content["layer_weights"]
        origin = content.get("weights_from")
    elif isinstance(content, dict) and "models" in content:
        raise UsageError(
            f"{path} is a recipe with a schedule, no numbers: run it with --recipe, or give the "
            "options that it names."
        )
    if not isinstance(rows, dict) or not rows:
        raise UsageError(f"{path} holds no table of weights: write 'layer: [anchor, donor]' lines.")
    try:
        known = origin_of(origin) if origin else {"method": "table"}
    except RecipeError as error:
        raise UsageError(f"{path}: {error} Leave weights_from out.") from error
    return WeightTable({name: _row(name, row, path) for name, row in rows.items()}, known)


def _is_plan(content: Any) -> bool:
    """Whether a file is a plan: `layers` may also be a group, whose row are numbers."""
    layers = content.get("layers") if isinstance(content, dict) else None
    rows = isinstance(layers, list) and any(isinstance(row, dict) for row in layers)
    return rows or (isinstance(layers, list) and "models" in content)


def _row(layer: str, values: object, path: Path) -> tuple[float, ...]:
    numbers = values if isinstance(values, list) else []
    if not numbers or not all(
        type(v) is float or (type(v) is int and abs(v) < 1 << 53) for v in numbers
    ):
        raise UsageError(
            f"{path} has {reprlib.repr(values)} for {layer[:80]!r}: give a list of numbers, "
            "the anchor's weight first."
        )
    return tuple(float(v) for v in numbers)


def origin_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """An origin as it may stand in a recipe: plain values under plain names.

    Raises:
        RecipeError: it is something else.
    """
    plain = {}
    if not isinstance(found, Mapping):
        raise RecipeError("weights_from is no table.")
    for name, value in found.items():
        finite = not isinstance(value, float) or math.isfinite(value)
        plain_value = isinstance(value, str | int | float | bool | None) and finite
        if not isinstance(name, str) or not plain_value:
            raise RecipeError(
                f"weights_from has {str(name)[:80]!r}: a text, a finite number, true, false or "
                "null is expected."
            )
        plain[name] = value
    return plain
