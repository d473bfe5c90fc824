"""How much a plan merges and how much stays the anchor's: counted here, told everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "layer"), counted(1169, "parameter"), counted(2, "class", "classes")
    ('1 layer', '1,169 parameters', '2 classes')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


class Counts(NamedTuple):
    """What becomes of the anchor's file.

    Attributes:
        merged: parameters; a fused tensor is several.
        kept: tensors that are the anchor's, whole.
        in_part: fused tensors of which some part is merged and another is the anchor's.
    """

    merged: int
    kept: int
    in_part: int

    @property
    def also(self) -> str:
        """What follows the number of tensors that are kept, where some are in part.

        >>> Counts(161, 3, 1).also, Counts(161, 3, 0).also
        (', 1 more in part', '')
        """
        return f", {self.in_part} more in part" if self.in_part else ""

    def __str__(self) -> str:
        """In words.

        >>> print(Counts(161, 1, 0))
        161 parameters merged, 1 tensor kept from the anchor
        """
        kept = f"{self.kept} tensor{'s' * (self.kept != 1)}"
        return f"{self.merged} parameters merged, {kept} kept from the anchor{self.also}"


def count_tensors(merged: Iterable[str], kept: Iterable[str]) -> Counts:
    """Count the keys of a plan's two lists; one that stands in both is merged in part.

    >>> count_tensors(["attn.q", "attn.kv"], ["attn.kv", "head"])
    Counts(merged=2, kept=1, in_part=1)
    """
    merged, kept = list(merged), set(kept)
    in_part = len(kept.intersection(merged))
    return Counts(len(merged), len(kept) - in_part, in_part)


def plan_counts(plan: Mapping[str, Any]) -> Counts:
    """The counts of a plan as plain data."""
    return count_tensors(
        *([str(row.get("key")) for row in plan.get(name) or []] for name in ("merged", "kept"))
    )
