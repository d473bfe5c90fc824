"""How each family of checkpoints spells its parameters: tables and their grammar.

A family is data. To support another one, write a table beside `mit.py` and name it in `TABLES`; no
other module changes.
"""

from __future__ import annotations

from lwmm_hub.families.grammar import Dialect, KeyRule, Repeat, Table
from lwmm_hub.families.mit import MIT, SEGFORMER_HEAD

TABLES: tuple[Table, ...] = (MIT, SEGFORMER_HEAD)

__all__ = ["TABLES", "Dialect", "KeyRule", "Repeat", "Table"]
