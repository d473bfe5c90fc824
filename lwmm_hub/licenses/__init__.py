"""Which licence a merge must carry, and whether it may be published, as tables.

Engineering policy, not legal advice. A licence belongs to classes (`LICENSES`), two different
licences meet in a rule (`PAIRS`; a few that add terms in a conflict, `INCOMPATIBLE`), and the
strictest rule that any two parents meet in decides (`RULES`, strictest first), so the parents'
order does not matter. Only publishing is gated: a local merge never is, and a refusal concerns
public targets only.
"""

from __future__ import annotations

from lwmm_hub.licenses.deciding import (
    LicenseDecision,
    ParentLicense,
    check_publication,
    decide,
    known_license,
    license_class,
    suggest_license,
)
from lwmm_hub.licenses.tables import (
    ALONE,
    ASKING,
    LICENSES,
    NAMED_LICENSES,
    NONE,
    OTHER,
    PAIRS,
    PERMISSIVE,
    RULE_VERSION,
    RULES,
)
from lwmm_hub.licenses.texts import license_file, with_new_heading

__all__ = [
    "ALONE",
    "ASKING",
    "LICENSES",
    "NAMED_LICENSES",
    "NONE",
    "OTHER",
    "PAIRS",
    "PERMISSIVE",
    "RULES",
    "RULE_VERSION",
    "LicenseDecision",
    "ParentLicense",
    "check_publication",
    "decide",
    "known_license",
    "license_class",
    "license_file",
    "suggest_license",
    "with_new_heading",
]
