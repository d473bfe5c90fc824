"""The manifest of a merge -> its model card: pure, and from the manifest alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwmm_hub.card.describing import (
    cost,
    label_space,
    license_section,
    limits,
    summary,
    title,
    versions,
)
from lwmm_hub.card.escaping import Markdown, fence
from lwmm_hub.card.finding import start_of
from lwmm_hub.card.metadata import dump, front_matter
from lwmm_hub.card.naming import public_names, text
from lwmm_hub.card.redacting import assert_publishable, redact
from lwmm_hub.card.tabulating import evaluation, layer_section, provenance
from lwmm_hub.card.usage import reproduce_code, use_code, use_note
from lwmm_hub.display.grouping import used_layers
from lwmm_hub.display.ramp import ramp_svg

FIGURE = "layer_weights.svg"

CITATION = """\
@article{alcovercouso2024layerwise,
  title   = {Layer-wise Model Merging for Unsupervised Domain Adaptation in Segmentation Tasks},
  author  = {Alcover-Couso, Roberto and SanMiguel, Juan C. and
             Escudero-Viñolo, Marcos and Martínez, Jose M.},
  journal = {arXiv preprint arXiv:2409.15813},
  year    = {2024}
}"""


def render_card(manifest: Mapping[str, Any]) -> str:
    """The README.md of a merge, from what its manifest (lwmm_manifest.json) says.

    Raises:
        CardError: The card would show a token or a local path.
    """
    template = Path(__file__).with_name("template.md").read_text("utf-8")
    card = fill(template, _facts(manifest))
    assert_publishable(card)
    return card


def card_files(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The card and the figure it shows: name -> text, to be written beside the weights.

    Raises:
        CardError: One of them would show a token or a local path.
    """
    files = {"README.md": render_card(manifest)}
    plan = manifest.get("plan") or {}
    if plan.get("layers"):
        heads = [part["name"] for part in plan.get("parts") or [] if not part.get("backbone")]
        names = public_names(plan.get("models") or [])
        files[FIGURE] = ramp_svg(used_layers(plan), names, heads=heads, before=start_of(plan))
        assert_publishable(files[FIGURE])
    return files


_SECTION = re.compile(r"^\{% if (\w+) %\}\n(.*?)^\{% endif %\}\n", re.DOTALL | re.MULTILINE)
_VALUE = re.compile(r"\{\{ (\w+) \}\}")


def fill(template: str, facts: Mapping[str, Markdown | str]) -> str:
    r"""The template with its values; what is not `Markdown` is escaped.

    It has `{{ name }}` and, on lines of their own, `{% if name %}` and `{% endif %}` around what is
    left out where the value is empty. These two are all it needs of Jinja, which takes longer to
    import and to compile a template than a small merge takes to write.

    >>> fill("# {{ a }}\n{% if b %}\nb: {{ b }}\n{% endif %}\n", {"a": "x|y", "b": ""})
    '# x\\|y\n'

    Raises:
        KeyError: the template names a value that is not there.
    """

    def shown(found: re.Match[str]) -> str:
        value = facts[found[1]]
        return value if isinstance(value, Markdown) else text(value)

    chosen = _SECTION.sub(lambda found: found[2] if facts[found[1]] else "", template)
    return _VALUE.sub(shown, chosen)


def _facts(manifest: Mapping[str, Any]) -> dict[str, Markdown | str]:
    """The values of the template; what is not `Markdown` is escaped there."""
    names = public_names((manifest.get("plan") or {}).get("models") or [])
    recipe = redact(str(manifest.get("recipe") or ""))
    return {
        "front_matter": Markdown(dump(front_matter(manifest))),
        "title": title(manifest),
        **summary(manifest, names),
        **label_space(manifest),
        **license_section(manifest.get("license") or {}),
        "use_code": use_code(manifest),
        "use_note": use_note(manifest),
        **provenance(manifest, names),
        **layer_section(manifest, names),
        "recipe": fence(recipe, "yaml") if recipe else Markdown(""),
        **evaluation(manifest),
        "limits": limits(manifest, names),
        "reproduce": reproduce_code(manifest),
        "versions": versions(manifest),
        "cost": cost(manifest),
        "citation": fence(CITATION, "bibtex"),
    }
