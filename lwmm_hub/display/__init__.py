"""Plans and layer weights for people: terminal tables, notebook HTML, the ramp as SVG.

Everything here works on the plain data of `MergePlan.to_dict()`, so that nothing in it knows how a
plan is made.
"""

from __future__ import annotations

from lwmm_hub.display.counts import Counts, count_tensors, counted, plan_counts
from lwmm_hub.display.plans import (
    headline,
    merge_rows,
    plan_html,
    plan_rows,
    plan_text,
    result_html,
    stage_name,
    tab_row,
)
from lwmm_hub.display.text import one_line, size

__all__ = [
    "Counts",
    "count_tensors",
    "counted",
    "headline",
    "merge_rows",
    "one_line",
    "plan_counts",
    "plan_html",
    "plan_rows",
    "plan_text",
    "result_html",
    "size",
    "stage_name",
    "tab_row",
]
