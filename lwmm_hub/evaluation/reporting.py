"""Scores of several models side by side: as JSON, as a table, as HTML in a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from lwmm_hub.display import counted, one_line
from lwmm_hub.evaluation.costs import Cost
from lwmm_hub.evaluation.data_sets import DataSet
from lwmm_hub.evaluation.score_table import MOST_SHOWN, OVERALL, per_class
from lwmm_hub.evaluation.values import Scores


@dataclass(frozen=True, repr=False)
class Report:
    """Scores of several models on the same images; the first model is compared with.

    Attributes:
        dataset: what was looked at, as the JSON has it.
        names: of the models, each once.
        scores: one for each.
        notes: what a reader has to know, one line each.
        costs: one for each, where they were measured.
        roles: one for each, where some were added to those that the user named: what it is, such
            as "ramp", and "" for the user's own.
    """

    dataset: Mapping[str, Any]
    names: tuple[str, ...]
    scores: tuple[Scores, ...]
    notes: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()
    roles: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What `lwmm-hub evaluate --json` prints."""
        models = [scores.to_dict() for scores in self.scores]
        for model, cost in zip(models, self.costs, strict=False):
            model["seconds_per_image"] = cost.seconds
            model["relative_cost"] = cost.relative
            model["relative_cost_range"] = list(cost.spread)
        for model, role in zip(models, self.roles, strict=False):
            if role:
                model["role"] = role
        return {
            "version": 1,
            "dataset": dict(self.dataset),
            "models": models,
            "notes": list(self.notes),
        }

    @property
    def part(self) -> str:
        """Which part of the images these are the scores of, "" where of all."""
        if self.dataset.get("shard") is None:
            return ""
        return f"part {self.dataset['shard'] + 1} of {self.dataset.get('shards')}"

    def rows(self) -> list[tuple[str, list[float | None], bool]]:
        """(what, one value per model, whether it is a percentage), classes last."""
        return self._overall() + [row for table in self._per_class() for row in table]

    def _overall(self) -> list[tuple[str, list[float | None], bool]]:
        """The rows that are of no class."""
        found: list[tuple[str, list[float | None], bool]] = []
        for metric in OVERALL:
            values = [getattr(scores, metric.field) for scores in self.scores]
            if any(value is not None for value in values):
                found.append((metric.title, values, True))
        # images per second are of whole runs, reading and the first model's warming up included,
        # and of kept ones: they are in the data, and no comparison
        memory = [scores.peak_memory_mb for scores in self.scores]
        if any(value is not None for value in memory):
            found.append(("peak memory, MB", memory, False))
        if self.costs:
            what = "CPU seconds per image" if self.costs[0].cpu else "seconds per image"
            found.append((what, [cost.seconds for cost in self.costs], False))
            found.append(("relative cost", [cost.relative for cost in self.costs], False))
            for name, end in (("least", 0), ("most", 1)):
                what = f"relative cost, {name} in a round"
                found.append((what, [cost.spread[end] for cost in self.costs], False))
        return found

    def _per_class(self) -> Iterator[list[tuple[str, list[float | None], bool]]]:
        """The rows of classes, metric by metric."""
        there = {f.name for f in fields(Scores) for s in self.scores if getattr(s, f.name)}
        for metric in per_class(there):
            tables = [getattr(scores, metric.field) for scores in self.scores]
            labels = dict.fromkeys(label for table in tables for label in table)
            yield [
                (f"{metric.title} {label}", [table.get(label) for table in tables], True)
                for label in labels
            ]

    @cached_property
    def _shown(self) -> tuple[list[tuple[str, list[float | None], bool]], list[str]]:
        """(the rows of a table for people, notes on those that are left out of it)."""
        rows, notes = self._overall(), list(self.notes)
        for table in self._per_class():
            if len(table) > MOST_SHOWN:
                notes.append(
                    f"the scores of {len(table)} classes are in --json, --format agent and "
                    "--save-to."
                )
                continue
            there = [row for row in table if any(v is not None and v == v for v in row[1])]
            if len(there) < len(table):
                what = table[0][0].partition(" ")[0]
                notes.append(
                    f"{len(table) - len(there)} of {len(table)} classes occur nowhere and have no "
                    f"{what}."
                )
            rows += there
        return rows, notes

    @property
    def title(self) -> str:
        """What was looked at, in one line."""
        images = counted(self.dataset["images"], "image")
        where = one_line(str(self.dataset.get("reference")))
        split = f" ({one_line(str(self.dataset['split']))})" if self.dataset.get("split") else ""
        part = f", {self.part}" if self.part else ""
        return f"{where}{split}, {images}{part}, labels {self.dataset.get('label_space')}"

    def text(self, color: bool = False) -> str:
        """The table for a terminal: percent, differences to the first model, the best in bold."""
        table, notes = self.table(color), self._shown[1]
        shown = [f"note: {one_line(note)}" for note in notes]
        return "\n".join([self.title, "", table, *(["", *shown] if shown else [])])

    def table(self, color: bool = False) -> str:
        """`text` without what stands around the table."""
        header = ["", *map(one_line, self.names)]
        lines = [header]
        bold: list[set[int]] = [set()]
        for what, values, percent in self._shown[0]:
            lines.append([one_line(what), *_cells(values, percent)])
            bold.append(_best(values) if percent else set())
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        shown = []
        for line, best in zip(lines, bold, strict=True):
            cells = [line[0].ljust(widths[0])]
            for i, cell in enumerate(line[1:]):
                padded = cell.rjust(widths[i + 1])
                if i in best:
                    padded = f"\x1b[1m{padded}\x1b[0m" if color else padded
                cells.append(padded)
            shown.append("  ".join(cells).rstrip())
        return "\n".join(shown)

    def __repr__(self) -> str:
        return f"<Report of {', '.join(self.names)} on {self.title}>"

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        notes = "".join(f"<li>{html.escape(one_line(note))}</li>" for note in self._shown[1])
        listed = f"<ul>{notes}</ul>" if notes else ""
        return f"<div><p>{html.escape(self.title)}</p>{self.table_html()}{listed}</div>"

    def table_html(self) -> str:
        """`_repr_html_` without what stands around the table."""
        head = "".join(f"<th>{html.escape(one_line(name))}</th>" for name in self.names)
        body = []
        for what, values, percent in self._shown[0]:
            best = _best(values) if percent else set()
            cells = "".join(
                f"<td style='text-align:right'>{'<b>' if i in best else ''}{html.escape(cell)}"
                f"{'</b>' if i in best else ''}</td>"
                for i, cell in enumerate(_cells(values, percent))
            )
            body.append(f"<tr><td>{html.escape(one_line(what))}</td>{cells}</tr>")
        return f"<table><tr><th></th>{head}</tr>{''.join(body)}</table>"


def describe_data(
    data: DataSet, images: int, part: tuple[int, int] | None = None
) -> dict[str, Any]:
    """A data set as the JSON has it.

    Args:
        data: what was looked at.
        images: how many were.
        part: (which, of how many parts) where one part of the images was looked at, from 0.
    """
    about = {
        "reference": data.reference,
        "revision": data.revision,
        "split": data.split,
        "images": images,
        "label_space": data.space.name,
    }
    return about if part is None else {**about, "shard": part[0], "shards": part[1]}


def gather_notes(told: Sequence[tuple[str, str, Sequence[str]]]) -> tuple[str, ...]:
    """The notes of several models, what is said of several of them once.

    >>> blind = "has no class for wall: 0 where there are any."
    >>> gather_notes([("a", "a", [f"a {blind}"]), ("a", "a-2", [f"a {blind}"]), ("b", "b", [])])
    ('each of a and a-2 has no class for wall: 0 where there are any.',)

    Args:
        told: of each model: what its notes call it, what the table does, and its notes.
    """
    whose: dict[str, list[str]] = {}
    for own, shown, notes in told:
        for note in notes:
            said = note.removeprefix(f"{own} ")
            names = whose.setdefault(said, [])
            if said != note and shown not in names:
                names.append(shown)
    return tuple(
        f"{_each_of(names, len(told))} {said}" if names else said for said, names in whose.items()
    )


def _each_of(names: Sequence[str], count: int) -> str:
    """Some models of `count`, as the subject of a sentence."""
    if len(names) == 1:
        return names[0]
    if len(names) == count > 3:
        return f"each of the {count} models"
    return f"each of {', '.join(names[:-1])} and {names[-1]}"


def _cells(values: Sequence[float | None], percent: bool) -> list[str]:
    """One cell per model; behind the first, the difference to it."""
    cells = []
    first = values[0]
    for i, value in enumerate(values):
        if value is None or math.isnan(value):
            cells.append("-")
        elif not percent:
            cells.append(f"{value:.3g}" if value < 100 else f"{value:.0f}")
        elif i and first is not None and not math.isnan(first):
            cells.append(f"{100 * value:.1f} ({100 * (value - first):+.1f})")
        else:
            cells.append(f"{100 * value:.1f}")
    return cells


def _best(values: Sequence[float | None]) -> set[int]:
    """Which models have the highest value, as far as it is shown; nobody where all have."""
    shown = {
        i: round(100 * value, 1)
        for i, value in enumerate(values)
        if value is not None and not math.isnan(value)
    }
    if len(set(shown.values())) < 2:
        return set()
    top = max(shown.values())
    return {i for i, value in shown.items() if value == top}
