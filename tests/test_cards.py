"""The cards in `cards/` are what the examples give today."""

from __future__ import annotations

from render_cards import CARDS, rendered

from lwmm_hub.card import lint_card


def test_cards_of_the_examples_are_up_to_date() -> None:
    for name, text in rendered().items():
        path = CARDS / name
        assert path.read_text(encoding="utf-8") == text, f"{path.name} differs: run 'make cards'"


def test_cards_of_the_examples_pass_the_linter() -> None:
    found = list(CARDS.rglob("README.md"))
    assert found
    for path in found:
        assert lint_card(path.read_text(encoding="utf-8")) == []
