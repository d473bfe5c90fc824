"""Plans for people: as text in a terminal, as a table with the ramp in a notebook.

Works on the plain data of `MergePlan.to_dict()`, so nothing here knows how a plan is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lwmm_hub.display.counts import plan_counts
from lwmm_hub.display.grouping import group_name, used_layers
from lwmm_hub.display.ramp import ramp_svg
from lwmm_hub.display.text import escape, one_line, size
from lwmm_hub.errors import in_python
from lwmm_hub.options import changed_options
from lwmm_hub.schedule import TABLE

_BAR = "▏▎▍▌▋▊▉█"


def count(number: int) -> str:
    """Parameters for people.

    >>> count(3719027)
    '3.72 M'
    """
    return f"{number / 1e6:.3g} M" if number >= 10_000 else str(number)


def plan_text(plan: Mapping[str, Any], color: bool = False) -> str:
    """The plan as a few readable tables."""
    lines = [headline(plan), ""]
    lines += _table(_MODEL_COLUMNS, [_model_row(i, m) for i, m in enumerate(plan["models"])])
    lines += ["", *_parts(plan), *_renamed(plan)]
    lines += [_order(plan), ""]
    lines += _layer_table(plan, color)
    lines += _inferred(plan) + _kept(plan) + _unused(plan) + _relatedness(plan) + _lineage(plan)
    if not plan["scope_decided"]:
        lines += ["", _NOT_READ]
    if plan["warnings"]:
        lines += ["", "Warnings", *(f"  - {one_line(text)}" for text in plan["warnings"])]
    return "\n".join([*lines, "", _cost(plan["cost"])])


_NOT_READ = (
    "The weights were not read yet: heads count as related until 'merge' has looked "
    "(--check-weights looks now)."
)


def _cost(cost: Mapping[str, Any]) -> str:
    return (
        f"Cost: reads {size(cost['read_bytes'])}, writes {size(cost['write_bytes'])}, "
        f"downloads {size(cost['download_bytes'])}"
    )


def _order(plan: Mapping[str, Any]) -> str:
    return f"Layers: {len(plan['layers'])}, in the order of {plan['order_source']}"


_FOUND = {"fit": "fitted", "entropy": "entropy-weighted", "drift": "drift-measured"}


def headline(plan: Mapping[str, Any]) -> str:
    """What the plan does, in one line."""
    rule = plan["options"]["schedule"]
    if rule == TABLE:
        method = str((plan.get("weights_from") or {}).get("method", ""))
        rule = _FOUND.get(method, "given")
    changed = [f"{name} {value}" for name, value in changed_options(plan["options"]).items()]
    asked = f" ({', '.join(changed)})" if changed else ""
    return f"{len(plan['models'])} models, {rule} layer weights{asked}: {plan_counts(plan)}"


_MODEL_COLUMNS = ("", "model", "commit", "family", "parameters", "classes", "dtype", "licence")


def _model_row(index: int, model: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "anchor" if index == 0 else f"donor {index}",
        one_line(model["label"]),
        (model["commit"] or "local")[:8],
        model["family"] or "-",
        count(model["parameters"]),
        str(model["classes"] or "-"),
        model["dtype"],
        one_line(model["license_name"] or model["license"] or "none declared"),
    )


def _parts(plan: Mapping[str, Any]) -> list[str]:
    """What counts as backbone and what is judged on its own, with their shared parameters."""
    lines = []
    for title, backbone in (("Backbone", True), ("Head", False)):
        parts = [part for part in plan["parts"] if part["backbone"] is backbone]
        if parts:
            shown = ", ".join(f"{one_line(part['name'])} ({part['tensors']})" for part in parts)
            lines.append(f"{title}: {shown}")
    return lines


def _renamed(plan: Mapping[str, Any]) -> list[str]:
    """The prefix under which a donor's keys match, where there is one."""
    return [
        f"Matched with {one_line(model['renamed'][1:])!r} "
        f"{'put before' if model['renamed'][0] == '+' else 'taken off'} the keys of "
        f"{one_line(model['label'])}"
        for model in plan["models"]
        if model["renamed"]
    ]


def _layer_table(plan: Mapping[str, Any], color: bool) -> list[str]:
    """Weights per stage: range of each model, and the anchor's as a bar."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for layer in used_layers(plan):
        groups.setdefault(stage_name(layer["name"]), []).append(layer)
    names = ["anchor", *(f"donor {i}" for i in range(1, len(plan["models"])))]
    rows = []
    for name, layers in groups.items():
        columns = list(zip(*(layer["weights"] for layer in layers), strict=True))
        rows.append(
            (
                one_line(name),
                f"{layers[0]['index']}-{layers[-1]['index']}",
                *(_span(column) for column in columns),
                _bar(sum(columns[0]) / len(columns[0]), color),
            )
        )
    return _table(("layers", "number", *names, "anchor's share"), rows)


def stage_name(name: str) -> str:
    """The stage of a layer: its name up to the first number.

    >>> stage_name("stages.0.blocks.1.attn.q"), stage_name("head.fuse")
    ('stages.0', 'head')
    """
    group = group_name(name)
    parts = group.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else group


def _span(column: Sequence[float]) -> str:
    """The least and the largest of the weights of a stage, a falling ramp's the other way round.

    >>> _span([0.5, 0.25]), _span([0.5, 0.9, 0.5]), _span([0.5, 0.501])
    ('0.50 to 0.25', '0.50 to 0.90', '0.50')
    """
    ends = min(column), max(column)
    first, last = ends[::-1] if (column[0], column[-1]) == ends[::-1] else ends
    return f"{first:.2f}" if abs(first - last) < 0.005 else f"{first:.2f} to {last:.2f}"


def _bar(share: float, color: bool, width: int = 16) -> str:
    eighths = round(share * width * 8)
    bar = "█" * (eighths // 8) + (_BAR[eighths % 8 - 1] if eighths % 8 else "")
    return f"\033[36m{bar}\033[0m" if color else bar


_SHOWN = 12  # pairs of one donor; all of them are among `plan_rows` and in JSON


def _inferred(plan: Mapping[str, Any]) -> list[str]:
    """What values match and no name does, the least certain first."""
    lines: list[str] = []
    for i, model in enumerate(plan["models"]):
        pairs = [pair for pair in plan.get("inferred", ()) if pair["model"] == i]
        own = sorted((p for p in pairs if not p["follows"]), key=lambda p: float(p["cosine"]))
        if not pairs:
            continue
        lines += [
            "",
            f"Inferred: {len(pairs)} parameters of {one_line(model['label'])} are matched by their "
            f"values, {len(own)} by a cosine of at least {min(p['cosine'] for p in pairs):.3f}; "
            f"{len(pairs) - len(own)} follow their module",
        ]
        lines += [
            f"  {pair['cosine']:.3f}  {one_line(pair['key'])} <- {one_line(pair['source'])}"
            for pair in own[:_SHOWN]
        ]
        if len(own) > _SHOWN:
            lines.append(f"  and {len(own) - _SHOWN} with a higher cosine")
    return lines


def _kept(plan: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    titles = ("Kept from the anchor", "Merged in part")
    for title, reasons in zip(titles, _kept_reasons(plan), strict=True):
        lines += ["", title, *_reason_lines(reasons)] if reasons else []
    return lines


def _kept_reasons(plan: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Reason -> keys of the anchor's tensors that are kept whole, and of those merged in part."""
    merged = {row["key"] for row in plan["merged"]}
    whole: dict[str, list[str]] = {}
    in_part: dict[str, list[str]] = {}
    for row in plan["kept"]:
        found = in_part if row["key"] in merged else whole
        found.setdefault(one_line(row["reason"]), []).append(row["key"])
    return whole, in_part


def _unused(plan: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for model, reasons in _unused_reasons(plan).items():
        label = one_line(plan["models"][model]["label"])
        lines += ["", f"Not used of {label}", *_reason_lines(reasons)]
    return lines


def _unused_reasons(plan: Mapping[str, Any]) -> dict[int, dict[str, list[str]]]:
    """Model -> reason -> its keys that are not used: of the anchor's file, other copies."""
    found: dict[int, dict[str, list[str]]] = {}
    for row in plan["unused"]:
        reasons = found.setdefault(row["model"], {})
        reasons.setdefault(one_line(row["reason"]), []).append(row["key"])
    return found


def _reason_lines(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"  {len(keys):4d}  {why}: {_first(keys)}" for why, keys in reasons.items()]


def _first(keys: Sequence[str]) -> str:
    return one_line(keys[0]) + (", ..." if len(keys) > 1 else "")


def _relatedness(plan: Mapping[str, Any]) -> list[str]:
    if not plan["relatedness"]:
        return []
    rows = [
        (
            f"donor {row['model']}",
            row["part"],
            "-" if row["cosine"] is None else f"{row['cosine']:.3f}",
            str(row["tensors"]),
            row["verdict"] + (f", as {one_line(row['like'])}" if row.get("like") else ""),
        )
        for row in plan["relatedness"]
    ]
    return ["", *_table(("", "part", "mean cosine", "tensors", "verdict"), rows)]


def _lineage(plan: Mapping[str, Any]) -> list[str]:
    """Whether the donors were made from the anchor's pre-training, as far as it is known."""
    lines = [
        f"Same pre-training, donor {row['model']}: {row['verdict']} ({one_line(row['why'])})"
        for row in plan.get("lineage", [])
    ]
    return ["", *lines] if lines else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell."""
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()

    return ["  " + line(head), *("  " + line(row) for row in rows)]


def plan_rows(plan: Mapping[str, Any]) -> list[str]:
    """The plan as tab-separated rows, nothing shortened: for programs that read text."""
    rows = []
    for i, model in enumerate(plan["models"]):
        fields = (
            model["role"], i, model["label"], model["commit"] or "", model["family"] or "",
            model["parameters"], model["classes"] or "", model["dtype"], model["license"] or "",
        )  # fmt: skip
        rows.append(tab_row("model", *fields))
    for tensor in plan["merged"]:
        weights = ",".join(f"{w:.17g}" for w in tensor["weights"])
        rows.append(tab_row("merged", tensor["name"], tensor["layer"], tensor["key"], weights))
    rows += [
        tab_row("inferred", p["model"], p["key"], p["source"], p["cosine"], p["follows"])
        for p in plan.get("inferred", ())
    ]
    rows += [tab_row("kept", row["key"], row["reason"]) for row in plan["kept"]]
    rows += [tab_row("unused", row["model"], row["key"], row["reason"]) for row in plan["unused"]]
    rows += [
        tab_row("lineage", row["model"], row["verdict"], row["why"])
        for row in plan.get("lineage", [])
    ]
    rows += [tab_row("warning", text) for text in plan["warnings"]]
    return [*rows, *(tab_row("cost", name, value) for name, value in plan["cost"].items())]


def merge_rows(data: Mapping[str, Any]) -> list[str]:
    """What `merge --json` prints, as tab-separated rows."""
    names = ("output", "merged", "kept", "merged_in_part", "seconds", "bytes_written", "commit_url")
    given = [name for name in names if name in data]
    rows = [tab_row(name, "" if data[name] is None else data[name]) for name in given]
    return [*rows, *(tab_row("sha256", name, value) for name, value in data["sha256"].items())]


def tab_row(*cells: object) -> str:
    """Cells separated by tabs, each on one line."""
    return "\t".join(one_line(cell) for cell in cells)


def plan_html(plan: Mapping[str, Any]) -> str:
    """The plan as a notebook shows it: parents, ramp, what is kept and why."""

    def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        cells = "".join(f"<th style='text-align:left'>{escape(c)}</th>" for c in head)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{escape(c)}</td>" for c in row) + "</tr>"
            for row in rows
        )
        return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"

    def paragraphs(lines: Sequence[str]) -> str:
        return "".join(f"<p>{escape(one_line(line))}</p>" for line in lines)

    labels = [one_line(model["label"]) for model in plan["models"]]
    heads = [part["name"] for part in plan["parts"] if not part["backbone"]]
    titles = ("kept from the anchor because", "merged but for", "not used because")
    unused = {
        f"{labels[model]}: {why}": keys
        for model, reasons in _unused_reasons(plan).items()
        for why, keys in reasons.items()
    }
    left = "".join(
        table(
            ("tensors", title, ""),
            [(str(len(keys)), why, _first(keys)) for why, keys in reasons.items()],
        )
        for title, reasons in zip(titles, (*_kept_reasons(plan), unused), strict=True)
        if reasons
    )
    inferred = [line for line in _inferred(plan) if line.startswith("Inferred")]
    unread = [] if plan["scope_decided"] else [in_python(_NOT_READ)]
    return (
        f"<div><p><b>{escape(headline(plan))}</b></p>"
        + table(_MODEL_COLUMNS, [_model_row(i, m) for i, m in enumerate(plan["models"])])
        + paragraphs([_order(plan)])
        + ramp_svg(used_layers(plan), labels, heads=heads)
        + paragraphs(inferred)
        + left
        + paragraphs([*_lineage(plan)[1:], *unread, _cost(plan["cost"])])
        + _warnings_html(plan["warnings"])
        + "</div>"
    )


def result_html(headline: str, license: str, warnings: Sequence[str]) -> str:
    """A merge as a notebook shows it: what was done, and what can be done next."""
    steps = (
        "<code>.load()</code> gives the model, <code>.push_to_hub('OWNER/NAME')</code> publishes it"
    )
    return (
        f"<div><p><b>{escape(one_line(headline))}</b></p>"
        f"<p>Licence: {escape(one_line(license))}. {steps}; its <code>README.md</code> is the card."
        f"</p>{_warnings_html(warnings)}</div>"
    )


def _warnings_html(warnings: Sequence[str]) -> str:
    said = "".join(f"<li>{escape(in_python(one_line(text)))}</li>" for text in warnings)
    return f"<ul>{said}</ul>" if said else ""
