"""A recipe as YAML that people read."""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lwmm_hub.recipe.values import VERSION, Recipe

if TYPE_CHECKING:
    import yaml


def write_recipe(recipe: Recipe, made_by: str) -> str:
    """The recipe as YAML."""
    import yaml

    models = []
    for model in recipe.models:
        row: dict[str, Any] = {}
        row |= {"reference": model.reference} if model.reference else {}
        row |= {"local": model.local} if model.local else {}
        row |= {"weights": model.weights} if model.weights != "student" else {}
        row |= {"stage": model.stage} if model.stage else {}
        row |= {"sha256": dict(model.sha256)} if model.sha256 else {}
        row |= {"kept_parts": list(model.kept_parts)} if model.kept_parts else {}
        models.append(row)
    data = {
        "version": VERSION,
        "models": models,
        "scope_decided": recipe.scope_decided,
        "options": asdict(recipe.options),
    } | ({"pairs_sha256": recipe.pairs_sha256} if recipe.pairs_sha256 else {})
    if recipe.table is not None:
        data["weights_from"] = dict(recipe.table.origin)
        data["layer_weights"] = {name: _Row(row) for name, row in recipe.table.rows.items()}
    body = yaml.dump(
        data,
        Dumper=_dumper(),
        sort_keys=False,
        allow_unicode=True,
        width=1000,
    )
    return (
        f"# Written by {made_by}. The first model is the anchor. Run it again with\n"
        f"#   lwmm-hub merge --recipe lwmm_recipe.yaml -o DIR\n{body}"
    )


class _Row(tuple[float, ...]):
    """Weights of one layer, which are written in one line."""


@functools.cache
def _dumper() -> Any:
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        """Writes plain values, and rows of weights in one line each."""

    def represent(dumper: Any, row: _Row) -> yaml.Node:
        node: yaml.Node = dumper.represent_sequence(
            "tag:yaml.org,2002:seq", list(row), flow_style=True
        )
        return node

    Dumper.add_representer(_Row, represent)
    return Dumper
