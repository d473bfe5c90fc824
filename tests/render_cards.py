"""Render the cards of the examples into `cards/`: `make cards`. The tests compare them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import lwmm_hub as lw
from lwmm_hub.card import card_files
from lwmm_hub.manifest import read_manifest

ROOT = Path(__file__).parents[1]
STREET = ROOT / "examples" / "street"
CARDS = ROOT / "cards"


def rendered() -> dict[str, str]:
    """Path under `cards/` -> text, without what differs from machine to machine."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "street"
        lw.merge(STREET / "anchor", STREET / "donor", output=output)
        manifest = read_manifest(output)
    manifest["run"] = {}
    manifest["versions"] = {}
    return {f"street/{name}": text for name, text in card_files(manifest).items()}


def main() -> int:
    """Write the cards."""
    for name, text in rendered().items():
        path = CARDS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
