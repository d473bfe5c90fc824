"""Prints the README's lists of what merges with what, from the tables that the tests run.

.venv/bin/python tests/support_tables.py
"""

from __future__ import annotations

import sys
from pathlib import Path


def systems() -> list[str]:
    """Pairs of the paper's systems, with the counts that `test_systems.py` pins."""
    from test_systems import PAIRS

    rows = [
        "| anchor | donor | tensors of the anchor that match | parameters merged |",
        "|---|---|---|---|",
    ]
    for pair in PAIRS:
        rows.append(f"| {pair.anchor} | {pair.donor} | {pair.matched} | {pair.merged} |")
    return rows


def hub_models() -> list[str]:
    """Pairs of the Hub's classes, with the counts that `test_hub_families.py` pins."""
    from test_hub_families import PAIRS

    rows = [
        "| one | other | backbone tensors that match, of small models | outside the backbone |",
        "|---|---|---|---|",
    ]
    for pair in PAIRS:
        heads = "-" if pair.heads is None else str(pair.heads)
        rows.append(f"| {pair.anchor} | {pair.donor} | {pair.backbone} | {heads} |")
    return rows


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.stdout.write("\n".join([*systems(), "", *hub_models()]) + "\n")
