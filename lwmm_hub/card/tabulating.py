"""The tables of a card: where the weights come from, what happened to each layer, the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lwmm_hub.card.escaping import NOTHING, Markdown, table
from lwmm_hub.card.finding import start_of
from lwmm_hub.card.metadata import (
    SCORES,
    class_metrics,
    dataset_name,
    finite,
    merged_scores,
    score_names,
)
from lwmm_hub.card.naming import (
    cell,
    last_part,
    linked_name,
    name_in_code,
    public_names,
    text,
)
from lwmm_hub.card.wording import listed, weight, weight_range, weights_in_words
from lwmm_hub.display.counts import counted
from lwmm_hub.display.grouping import LayerGroup, layer_groups, used_layers
from lwmm_hub.display.text import size
from lwmm_hub.evaluation.score_table import MOST_SHOWN
from lwmm_hub.reference import is_commit
from lwmm_hub.schedule import TABLE

MANY_ROWS = 250
_NOT_RECORDED = Markdown("not recorded")


def provenance(manifest: Mapping[str, Any], names: Sequence[str]) -> dict[str, Markdown]:
    """The parents file by file, the files of the merge, and how far the parents are related."""
    plan = manifest.get("plan") or {}
    rows: list[list[object]] = []
    for model, name in zip(plan.get("models") or [], names, strict=True):
        hashes = model.get("sha256") or {}
        for file in list(hashes) or model.get("files") or ["?"]:
            digest, commit = hashes.get(file), model.get("commit")
            copy = model.get("weights")
            shown = name_in_code(last_part(str(file)))
            rows.append(
                [
                    text(model.get("role") or ("donor" if rows else "anchor")),
                    linked_name(model, name),
                    name_in_code(commit) if is_commit(commit) else Markdown("local"),
                    Markdown(f"{shown} ({text(copy)})") if copy not in (None, "student") else shown,
                    name_in_code(digest) if digest else _NOT_RECORDED,
                    cell(model.get("dtype")),
                    _number(model.get("parameters")),
                    _number(model.get("classes")),
                ]
            )
    headings = ["Role", "Model", "Commit", "File", "SHA-256", "Dtype", "Parameters", "Classes"]
    return {
        "provenance_table": table(headings, rows),
        "output_table": _output(manifest.get("output") or {}),
        "relatedness_table": _relatedness(
            manifest.get("relatedness") or plan.get("relatedness") or [], names
        ),
        "lineage": _lineage(plan.get("lineage") or [], names),
    }


def layer_section(manifest: Mapping[str, Any], names: Sequence[str]) -> dict[str, Markdown]:
    """The figure's words, the folded tables, and the run's warnings."""
    plan = manifest.get("plan") or {}
    layers = used_layers(plan)
    alt, caption = "", "No layer was merged."
    if layers:
        first, last = layers[0]["weights"][0], layers[-1]["weights"][0]
        numbers = (plan.get("options") or {}).get("schedule") == TABLE
        alt = f"Layer weight of each model over {counted(len(layers), 'layer')}"
        course = (
            f"goes from {weight(first)} at the first layer to {weight(last)} at the last"
            if first != last
            else f"is {weight(first)} at the first and at the last layer"
        )
        course = weights_in_words(layers) if numbers else course
        caption = (
            f"The anchor's weight {course} ({counted(len(layers), 'shared layer')}, from "
            f"{name_in_code(layers[0].get('name') or '?')} to "
            f"{name_in_code(layers[-1].get('name') or '?')}). {_began(plan)}A layer is one module "
            f"with parameters; depth is taken from {text(plan.get('order_source') or 'the names')}."
        )
    warnings = plan.get("warnings") or []
    return {
        "figure_alt": Markdown(alt),
        "figure_caption": Markdown(caption),
        "group_table": _groups(layer_groups(plan), len(names)),
        "unused_table": _unused(plan.get("unused") or [], names),
        "warnings_list": Markdown("\n".join(f"- {text(warning)}" for warning in warnings)),
    }


def _began(plan: Mapping[str, Any]) -> str:
    """What the dashed lines of the figure are, where there are any."""
    found = start_of(plan)
    return f"Dashed: {found[0]}. " if found is not None else ""


def evaluation(manifest: Mapping[str, Any]) -> dict[str, Markdown]:
    """Scores of the merge beside those of its parents and baselines, or that there are none."""
    scores = manifest.get("scores") or {}
    entries = scores.get("models") or []
    if not entries:
        words = "This model was not evaluated."
        return {"evaluation": Markdown(words), "class_scores": Markdown("")}
    names = score_names(manifest)
    columns = [metric for metric in SCORES if _any_finite(entries, metric.field)]
    # images per second are of whole runs, with reading, and of kept ones: no comparison
    speed = _any_finite(entries, "relative_cost")
    inference = ["Cost of inference"] * speed
    headings = ["Model", *(f"{metric.heading} (%)" for metric in columns), *inference]
    rows = []
    for entry, name in zip(entries, names, strict=True):
        shown = text(name)
        row = [Markdown(f"**{shown}**") if name == "this model" else shown]
        row += [_percent(entry.get(metric.field)) for metric in columns]
        rows.append([*row, *[_decimal(entry.get("relative_cost"))] * speed])
    dataset = scores.get("dataset") or {}
    words = f"On {text(dataset_name(dataset))}"
    if dataset.get("split"):
        words += f", split {text(dataset['split'])}"
    if is_commit(dataset.get("revision")):
        words += f", revision {name_in_code(dataset['revision'])}"
    if isinstance(dataset.get("images"), int):
        words += f", {counted(dataset['images'], 'image')}"
    if dataset.get("label_space"):
        words += f", label space {text(dataset['label_space'])}"
    words += "; all models on the same images."
    missing = _not_compared(manifest, names)
    return {
        "evaluation": Markdown(f"{words}{missing}\n\n{table(headings, rows)}{_notes(scores)}"),
        "class_scores": _class_scores(entries, names),
    }


def _output(output: Mapping[str, Any]) -> Markdown:
    rows = [
        [
            name_in_code(last_part(str(name))),
            name_in_code(facts["sha256"]) if facts.get("sha256") else _NOT_RECORDED,
            size(facts["bytes"]) if finite(facts.get("bytes")) else "-",
            cell(output.get("dtype")),
            _number(output.get("parameters")),
        ]
        for name, facts in (output.get("files") or {}).items()
    ]
    headings = ["This model", "SHA-256", "Size", "Dtype", "Parameters"]
    return table(headings, rows) if rows else Markdown("")


def _relatedness(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Markdown:
    rows = []
    for entry in entries:
        model, cosine = entry.get("model", -1), entry.get("cosine")
        weak = [
            f"{name_in_code(name)} {_decimal(value, 2)}"
            for name, value in entry.get("weak_layers") or []
        ]
        rows.append(
            [
                text(names[model]) if 0 <= model < len(names) else "?",
                cell(entry.get("part")),
                _decimal(cosine, 3),
                _number(entry.get("tensors")),
                _verdict(entry),
                listed(weak[:8]) or NOTHING,
            ]
        )
    headings = ["Donor", "Part", "Cosine", "Tensors", "Verdict", "Layers under 0.1"]
    return table(headings, rows) if rows else Markdown("")


def _verdict(entry: Mapping[str, Any]) -> Markdown:
    if entry.get("identical"):
        return Markdown("identical")
    follows = f", as {name_in_code(entry['like'])}" if entry.get("like") else ""
    return Markdown(f"{cell(entry.get('verdict'))}{follows}")


def _lineage(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Markdown:
    """Whether each donor was made from the anchor's pre-training, one line each."""
    lines = []
    for entry in entries:
        model = entry.get("model", -1)
        name = text(names[model]) if 0 <= model < len(names) else Markdown("?")
        verdict, why = (text(entry.get(key) or "?") for key in ("verdict", "why"))
        lines.append(f"- {name}: {verdict} ({why})")
    return Markdown("\n".join(lines))


def _groups(groups: Sequence[LayerGroup], models: int) -> Markdown:
    each_model = models <= 4
    donors = [f"Donor {i}" for i in range(1, models)] if each_model else ["Each donor"]
    donors = ["Donor"] if models == 2 else donors
    headings = ["Group", "Layers", "Merged", "Anchor", *donors, "Kept", "Why kept"]
    rows: list[list[object]] = []
    for group in groups:
        ranges = [weight_range(w[model] for w in group.weights) for model in range(models)]
        if not each_model:
            spread = weight_range(value for w in group.weights for value in w[1:])
            ranges = [ranges[0], spread]
        rows.append(
            [
                name_in_code(group.name),
                _span(group.layers),
                str(group.merged),
                *(ranges or ["-"]),
                f"{group.counts.kept}{group.counts.also}",
                _reasons(group.kept + group.in_part),
            ]
        )
    return _shortened(headings, rows)


def _unused(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Markdown:
    found: dict[tuple[int, str], list[str]] = {}
    for entry in entries:
        place = (int(entry.get("model", -1)), str(entry.get("reason") or ""))
        found.setdefault(place, []).append(str(entry.get("key")))
    rows: list[list[object]] = [
        [
            text(names[model]) if 0 <= model < len(names) else "?",
            f"{len(keys):,}",
            text(reason[:300]),
            name_in_code(keys[0][:200]),
        ]
        for (model, reason), keys in found.items()
    ]
    return _shortened(["Donor", "Tensors", "Why", "For example"], rows) if rows else Markdown("")


def _shortened(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    shown = table(headings, rows[:MANY_ROWS])
    if len(rows) <= MANY_ROWS:
        return shown
    more = f"{len(rows) - MANY_ROWS:,} more rows are in `lwmm_manifest.json`."
    return Markdown(f"{shown}\n\n{more}")


def _reasons(kept: Counter[str]) -> Markdown:
    """The reasons of a group, the most frequent first, with their numbers if there are several."""
    common = kept.most_common(6)
    if not common:
        return NOTHING
    words = [text(reason[:300]) for reason, _ in common]
    if len(common) > 1:
        words = [Markdown(f"{w} ({n})") for w, (_, n) in zip(words, common, strict=True)]
    more = "; …" if len(kept) > len(common) else ""
    return Markdown("; ".join(words) + more)


def _span(layers: Sequence[int]) -> str:
    """The layers of a group as runs.

    >>> _span([0, 1, 1, 2, 24])
    '0 to 2, 24'
    """
    if not layers:
        return "-"
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "")


def _not_compared(manifest: Mapping[str, Any], names: Sequence[str]) -> str:
    """Which of the comparisons a reader would ask for is not in the table."""
    plan = manifest.get("plan") or {}
    absent = []
    if merged_scores(manifest) is None:
        absent.append("this model")
    if not set(public_names(plan.get("models") or [])) <= set(names):
        absent.append("some of the parents")
    if not any("isotropic" in name.lower() for name in names):
        absent.append("isotropic merging")
    return f" Not measured: {listed(absent)}." if absent else ""


def _notes(scores: Mapping[str, Any]) -> str:
    """What a reader of the scores has to know, such as what the columns are."""
    notes = [f"- {text(note)}" for note in scores.get("notes") or []]
    return "\n\n" + "\n".join(notes) if notes else ""


def _class_scores(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Markdown:
    parts = []
    for metric in class_metrics(entries):
        tables = [entry.get(metric.field) or {} for entry in entries]
        labels = dict.fromkeys(label for scored in tables for label in scored)
        if len(labels) > MOST_SHOWN:
            words = f"{metric.heading} of {len(labels):,} classes is in `lwmm_manifest.json`."
            parts.append(Markdown(words))
            continue
        rows = [[text(label), *(_percent(s.get(label)) for s in tables)] for label in labels]
        parts.append(table([f"{metric.heading} (%)", *names], rows))
    return Markdown("\n\n".join(parts))


def _any_finite(entries: Sequence[Mapping[str, Any]], field: str) -> bool:
    return any(finite(entry.get(field)) for entry in entries)


def _percent(value: Any) -> Markdown:
    return Markdown(f"{100 * value:.1f}") if finite(value) else NOTHING


def _decimal(value: Any, digits: int = 1) -> Markdown:
    return Markdown(f"{value:.{digits}f}") if finite(value) else NOTHING


def _number(value: Any) -> Markdown:
    return Markdown(f"{value:,}") if finite(value) else NOTHING
