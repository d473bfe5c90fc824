"""Facts -> model card: rendered from the manifest alone, linted offline, never the network."""

from lwmm_hub.card.escaping import escape_markdown, escape_table_cell, fence
from lwmm_hub.card.linting import Problem, check_card, lint_card, valid_repo_id
from lwmm_hub.card.metadata import front_matter
from lwmm_hub.card.redacting import assert_publishable, redact
from lwmm_hub.card.render import card_files, render_card
from lwmm_hub.display.ramp import ramp_svg

__all__ = [
    "Problem",
    "assert_publishable",
    "card_files",
    "check_card",
    "escape_markdown",
    "escape_table_cell",
    "fence",
    "front_matter",
    "lint_card",
    "ramp_svg",
    "redact",
    "render_card",
    "valid_repo_id",
]
