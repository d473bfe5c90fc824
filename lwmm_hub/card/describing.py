"""The sentences of a card: what was merged how, under which licence, for what, at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lwmm_hub.card.escaping import NOTHING, Markdown, is_web_address, link, table
from lwmm_hub.card.finding import finding_sentences, training_sentence
from lwmm_hub.card.metadata import finite
from lwmm_hub.card.naming import hub_id, last_part, linked_name, name_in_code, text
from lwmm_hub.card.redacting import redact
from lwmm_hub.card.wording import listed, weight, weights_in_words
from lwmm_hub.display.counts import counted, plan_counts
from lwmm_hub.display.grouping import used_layers
from lwmm_hub.display.text import size
from lwmm_hub.licenses import PERMISSIVE, ParentLicense
from lwmm_hub.options import changed_options
from lwmm_hub.schedule import TABLE

MANY_LABELS = 40

SCHEDULES = {
    "linear": "linear ramp, reconstructed from the paper's description",
    "cosine": "cosine ramp, a variant of the linear ramp, which is reconstructed from the "
    "paper's description",
    "step": "step, a variant of the linear ramp, which is reconstructed from the paper's "
    "description",
    "harmonic": "harmonic, the donors' falling as 1 / (layer + number of models)",
    "isotropic": "isotropic, the same in every layer",
    "table": "given as numbers",
}
"""Schedule -> what the card calls it."""

CLASS_SENTENCES = {
    "non-commercial": "Commercial use is not allowed.",
    "share-alike": "What is derived from this model has to carry the same licence.",
    "copyleft": "What is derived from this model has to carry the same licence.",
    "use-restricted": "Some uses are not allowed; the licence names them.",
    "other-with-text": "Read the licence texts before any use.",
    "none": "No licence allows passing this model on.",
}
"""Licence class -> what it means to whoever finds the card."""


_VERDICTS = {"weak": "only weakly related", "unrelated": "unrelated"}


def title(manifest: Mapping[str, Any]) -> str:
    """The name of the merge: its repository's, else its folder's."""
    output = manifest.get("output") or {}
    return last_part(str(output.get("repository") or output.get("name") or "")) or "merged"


def summary(manifest: Mapping[str, Any], names: Sequence[str]) -> dict[str, Markdown]:
    """Anchor, donors and rule in a paragraph, and what became of the heads."""
    plan = manifest.get("plan") or {}
    models = plan.get("models") or []
    linked = [
        linked_name(model, name) if hub_id(model) else name_in_code(name)
        for model, name in zip(models, names, strict=True)
    ]
    anchor = linked[0] if linked else Markdown("an unnamed anchor")
    donors = listed(linked[1:]) or "nothing"
    counts = plan_counts(plan)
    layers = plan.get("layers") or []
    sentences = [
        f"**{text(title(manifest))}** is {anchor} (the anchor) merged layer by layer with "
        f"{donors} ({'the donor' if len(linked) == 2 else 'the donors'}).",
        f"{counted(counts.merged, 'parameter')} in {counted(len(layers), 'layer')} "
        f"{'is' if counts.merged == 1 else 'are'} merged, {counted(counts.kept, 'tensor')} "
        f"{'is' if counts.kept == 1 else 'are'} the anchor's own{counts.also}; "
        f"{training_sentence(plan.get('weights_from') or {})}.",
        *_matched_by_values(plan.get("inferred") or []),
        rule_sentence(plan),
    ]
    return {
        "summary": Markdown(" ".join(sentences)),
        "head_sentence": _parts_left_out(models, names),
    }


def _matched_by_values(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """How much was matched by values and not by name, and how sure that is."""
    cosines = [pair["cosine"] for pair in pairs if finite(pair.get("cosine"))]
    if not cosines:
        return []
    return [
        f"{counted(len(pairs), 'parameter')} {'was' if len(pairs) == 1 else 'were'} matched by "
        f"values, not by name (lowest centred cosine {min(cosines):.2f})."
    ]


def _parts_left_out(models: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Markdown:
    """Which parts of which donors did not take part, and what stands in their place."""
    apart: dict[str, list[str]] = {}
    for model, name in zip(models[1:], names[1:], strict=True):
        for part in model.get("kept_parts") or []:
            apart.setdefault(str(part), []).append(text(name))
    groups: dict[tuple[str, ...], list[str]] = {}
    for part, donors in apart.items():
        shown = "the head" if part == "head" else name_in_code(part)
        groups.setdefault(tuple(donors), []).append(shown)
    sentences = []
    for where, parts in groups.items():
        of_all, one = len(where) == len(models) - 1, len(parts) == 1
        absent = "it counts" if one else "they count"
        left = "the anchor keeps its own" if of_all else f"{absent} as absent there"
        was = "was" if one else "were"
        sentences.append(f"{listed(parts)} of {listed(where)} {was} not merged: {left}.")
    return Markdown(" ".join(sentence[0].upper() + sentence[1:] for sentence in sentences))


def rule_sentence(plan: Mapping[str, Any]) -> Markdown:
    """The layer weights in one sentence, and the options that are not the defaults.

    >>> rule_sentence({"options": {"schedule": "isotropic"}, "layers": [{"weights": [0.5, 0.5]}]})
    'Layer weights: isotropic, the same in every layer (0.50 for each model).'
    """
    options, layers = plan.get("options") or {}, used_layers(plan)
    schedule = str(options.get("schedule") or "linear")
    found = finding_sentences(plan.get("weights_from") or {})
    sentence = found or f"Layer weights: {SCHEDULES.get(schedule) or text(schedule)}"
    sentence = sentence.removesuffix(".")
    if layers and schedule == TABLE:
        sentence += f". The anchor's weight {weights_in_words(layers)}"
    elif layers:
        first, last = layers[0]["weights"], layers[-1]["weights"]
        equal = len(set(first)) == 1
        start = f"{weight(first[0])} for {'each model' if equal else 'the anchor'}"
        if all(layer["weights"] == first for layer in layers):
            sentence += f" ({start})"
        else:
            sentence += " that all models have" if schedule == "isotropic" else ""
            sentence += f"; {start} at the first shared layer"
            sentence += f", {weight(last[0])} for the anchor at the last"
    changed = changed_options(options)
    told = [f"{name.replace('_', ' ')} {text(value)}" for name, value in changed.items()]
    return Markdown(f"{sentence}.{f' Options: {listed(told)}.' if told else ''}")


def label_space(manifest: Mapping[str, Any]) -> dict[str, Markdown]:
    """The labels in a sentence, or beside it where there are many."""
    labels = (manifest.get("output") or {}).get("labels") or []
    shown = Markdown(", ".join(text(label) for label in labels))
    sentence = "The label space is the anchor's."
    if labels:
        sentence = f"It has the anchor's label space of {counted(len(labels), 'class', 'classes')}"
        sentence += f": {shown}." if len(labels) <= MANY_LABELS else "."
    return {
        "labels_sentence": Markdown(sentence),
        "labels_list": shown if len(labels) > MANY_LABELS else Markdown(""),
        "labels_count": Markdown(len(labels)),
    }


def license_section(decision: Mapping[str, Any]) -> dict[str, Markdown]:
    """The licence in a box (a warning where its rule warns), and how it was derived."""
    if not decision:
        words = "No licence was derived for this merge. The licences of its parents apply."
        nothing = Markdown("")
        box = Markdown(f"> [!WARNING]\n> {words}")
        return {"license_box": box, "license_table": nothing, "license_rule": nothing}
    publish, kind = str(decision.get("publish")), str(decision.get("license_class"))
    sentences = [f"**{_license_name(decision)}.**", text(decision.get("reason") or "")]
    sentences += dict.fromkeys(
        sentence for each, sentence in CLASS_SENTENCES.items() if each in _classes(decision)
    )
    if any(row.get("has_text") for row in decision.get("rows") or []):
        sentences.append("The texts that came with the parents are in `LICENSE`.")
    if publish == "refused":
        sentences.append("lwmm-hub refuses to publish this merge.")
    words = " ".join(filter(None, sentences))
    plain = publish == "yes" and kind == PERMISSIVE
    mark = "IMPORTANT" if publish == "yes" else "WARNING"
    rows = [
        [
            text(row.get("label") or "?"),
            _license_name(row),
            text(row.get("license_class") or "?"),
            listed(_remarks(row)) or NOTHING,
        ]
        for row in decision.get("rows") or []
    ]
    rule = (
        f"Derived by rule {name_in_code(decision.get('rule') or '?')} of lwmm-hub's licence table, "
        f"version {text(decision.get('rule_version') or '?')}: a policy, not legal advice."
    )
    return {
        "license_box": Markdown(words if plain else f"> [!{mark}]\n> {words}"),
        "license_table": table(["Parent", "Licence", "Class", "Remarks"], rows),
        "license_rule": Markdown(rule),
    }


def _classes(decision: Mapping[str, Any]) -> set[str]:
    """The classes whose terms hold for the merge: its own, and its parents' where they add up."""
    found = {str(decision.get("license_class"))}
    if decision.get("publish") == "refused":
        return found
    for fields in (decision, *(decision.get("rows") or [])):
        license_id, name = fields.get("license"), fields.get("name")
        if license_id:
            found.update(ParentLicense("", str(license_id), name and str(name)).classes)
    return found


def limits(manifest: Mapping[str, Any], names: Sequence[str]) -> Markdown:
    """What the merge is for and where it may fail, from the facts at hand."""
    plan = manifest.get("plan") or {}
    output, decision = manifest.get("output") or {}, manifest.get("license") or {}
    task = output.get("pipeline_tag")
    for_what = f"{text(task).replace('-', ' ')}" if task else "the anchor's task"
    labels = "with the anchor's labels" if output.get("labels") else "as the anchor does it"
    lines = [
        f"For {for_what} {labels}, on images like those its parents were trained on; what the "
        "parents get wrong, and the biases of their data, this model may have too.",
        "Input size and normalisation are the anchor's; the donors may have been trained with "
        "others.",
    ]
    if not manifest.get("scores"):
        lines.append("It was not evaluated: measure it on your own images before you rely on it.")
    for entry in manifest.get("relatedness") or plan.get("relatedness") or []:
        if entry.get("verdict") not in (None, "related"):
            who = names[entry["model"]] if 0 <= entry.get("model", -1) < len(names) else "A donor"
            lines.append(
                f"{text(who)} and the anchor are {_VERDICTS.get(entry['verdict'], 'not related')} "
                f"in {name_in_code(entry.get('part') or 'the model')}: averaging such weights can "
                "harm the result."
            )
    if decision and "non-commercial" in _classes(decision):
        lines.append("Not for commercial use (see the licence above).")
    if plan.get("scope_decided") is False:
        lines.append("Whether the heads fit together was not checked when this was planned.")
    return Markdown("\n".join(f"- {line}" for line in lines))


def versions(manifest: Mapping[str, Any]) -> Markdown:
    """With which software the merge was made, and what `verify` compares."""
    found = manifest.get("versions") or {}
    made = listed([f"{name_in_code(name)} {text(value)}" for name, value in found.items()])
    sentence = "`verify` merges again from the pinned recipe and compares the SHA-256 of the files."
    local = [m for m in (manifest.get("plan") or {}).get("models") or [] if m.get("local")]
    if local:
        sentence += " Local parents are named by `--parent LABEL=PATH`."
    return Markdown(f"{sentence} Made with {made}." if made else sentence)


def cost(manifest: Mapping[str, Any]) -> Markdown:
    """Seconds, hardware and bytes of the run."""
    run, bytes_of = manifest.get("run") or {}, (manifest.get("plan") or {}).get("cost") or {}
    spent = f"{run['seconds']:.1f} s" if finite(run.get("seconds")) else "Time not recorded"
    if run.get("hardware"):
        spent += f" on {text(run['hardware'])}"
    moved = [
        f"{size(bytes_of[field])} {verb}"
        for field, verb in (
            ("read_bytes", "read"),
            ("download_bytes", "downloaded"),
            ("write_bytes", "written"),
        )
        if finite(bytes_of.get(field)) and bytes_of[field] > 0
    ]
    sentence = f"{spent}{f', {listed(moved)}' if moved else ''}."
    return Markdown(f"{sentence} Inference costs what the anchor costs.")


def _license_name(fields: Mapping[str, Any]) -> Markdown:
    """The licence's full name, linked to its text, with its id."""
    license_id, name, address = (fields.get(each) for each in ("license", "name", "link"))
    if not license_id:
        return Markdown("No licence")
    said = ParentLicense("", str(license_id), str(name) if name else None)
    shown = link(redact(said.title), address if is_web_address(str(address)) else None)
    ids = name_in_code(license_id)
    if name and name != said.title:
        ids = Markdown(f"{ids}, {name_in_code(name)}")
    named = isinstance(address, str) and address.upper().startswith(("LICEN", "COPYING"))
    there = fields.get("has_text", True)  # of a parent; for the merge itself LICENSE is written
    where = f"; see {name_in_code(address)}" if named and there else ""
    return Markdown(f"{shown} ({ids}{where})")


def _remarks(row: Mapping[str, Any]) -> list[str]:
    said = {
        "stated_by_user": "stated by the user, not declared by the parent",
        "from_table": "the Hub says less; known to lwmm-hub's table of repositories",
        "gated": "gated",
        "has_text": "text found",
    }
    return [words for key, words in said.items() if row.get(key)]
