"""Numbers and lists as a reader expects them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lwmm_hub.card.escaping import Markdown


def listed(items: Sequence[str]) -> Markdown:
    """Items that are Markdown already, as an enumeration.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    if len(items) < 2:
        return Markdown("".join(items))
    return Markdown(f"{', '.join(items[:-1])} and {items[-1]}")


def weight(value: float) -> str:
    """A layer weight with two to four digits.

    >>> weight(0.5), weight(1), weight(1 / 3), weight(0.99951)
    ('0.50', '1.00', '0.333', '0.9995')
    """
    shown = f"{value:.4f}".rstrip("0")
    digits = len(shown.partition(".")[2])
    return f"{value:.2f}" if digits <= 2 else f"{value:.3f}" if value < 0.999 else shown


def weight_range(values: Iterable[float]) -> str:
    """The smallest and the largest of some layer weights.

    >>> weight_range([0.5, 0.75]), weight_range([0.5, 0.61234])
    ('0.50 to 0.75', '0.500 to 0.612')
    >>> weight_range([0.5]), weight_range([])
    ('0.50', '-')
    """
    found = sorted(values)
    if not found:
        return "-"
    low, high = weight(found[0]), weight(found[-1])
    if low == high:
        return low
    return f"{low} to {high}" if len(low) == len(high) else f"{found[0]:.3f} to {found[-1]:.3f}"


def weights_in_words(layers: Sequence[Mapping[str, Any]]) -> str:
    """How the anchor's weight runs over layers whose weights no schedule gives.

    >>> weights_in_words([{"weights": [0.5, 0.5]}, {"weights": [0.75, 0.25]}])
    'lies between 0.50 and 0.75, on average 0.625'
    >>> weights_in_words([{"weights": [0.5, 0.5]}])
    'is 0.50 in every layer'
    """
    anchor = [float(layer["weights"][0]) for layer in layers]
    low, high = weight(min(anchor)), weight(max(anchor))
    if low == high:
        return f"is {low} in every layer"
    mean = weight(math.fsum(anchor) / len(anchor))
    return f"lies between {low} and {high}, on average {mean}"
