"""The tables: licences with their classes, known repositories, and the rules they meet in."""

from __future__ import annotations

from typing import NamedTuple

RULE_VERSION = 3
"""Goes up whenever a table below changes what is decided."""

PERMISSIVE = "permissive"
COPYLEFT = "copyleft"
SHARE_ALIKE = "share-alike"
NON_COMMERCIAL = "non-commercial"
NO_DERIVATIVES = "no-derivatives"
USE_RESTRICTED = "use-restricted"
OTHER = "other-with-text"
NONE = "none"

RESTRICTING = (COPYLEFT, SHARE_ALIKE, NON_COMMERCIAL, USE_RESTRICTED)

LICENSES: dict[str, tuple[str, str]] = {
    "apache-2.0": (PERMISSIVE, "Apache License 2.0"),
    "mit": (PERMISSIVE, "MIT License"),
    "afl-3.0": (PERMISSIVE, "Academic Free License v3.0"),
    "artistic-2.0": (PERMISSIVE, "Artistic License 2.0"),
    "bsl-1.0": (PERMISSIVE, "Boost Software License 1.0"),
    "bsd": (PERMISSIVE, "BSD licence family"),
    "bsd-2-clause": (PERMISSIVE, "BSD 2-Clause License"),
    "bsd-3-clause": (PERMISSIVE, "BSD 3-Clause License"),
    "bsd-3-clause-clear": (PERMISSIVE, "BSD 3-Clause Clear License"),
    "cc0-1.0": (PERMISSIVE, "Creative Commons Zero 1.0"),
    "cc-by-2.0": (PERMISSIVE, "Creative Commons Attribution 2.0"),
    "cc-by-2.5": (PERMISSIVE, "Creative Commons Attribution 2.5"),
    "cc-by-3.0": (PERMISSIVE, "Creative Commons Attribution 3.0"),
    "cc-by-4.0": (PERMISSIVE, "Creative Commons Attribution 4.0"),
    "cdla-permissive-1.0": (PERMISSIVE, "Community Data License Agreement, Permissive 1.0"),
    "cdla-permissive-2.0": (PERMISSIVE, "Community Data License Agreement, Permissive 2.0"),
    "wtfpl": (PERMISSIVE, "WTFPL"),
    "ecl-2.0": (PERMISSIVE, "Educational Community License 2.0"),
    "etalab-2.0": (PERMISSIVE, "Etalab Open License 2.0"),
    "isc": (PERMISSIVE, "ISC License"),
    "ncsa": (PERMISSIVE, "University of Illinois/NCSA Open Source License"),
    "odc-by": (PERMISSIVE, "Open Data Commons Attribution License"),
    "openmdw-1.0": (PERMISSIVE, "OpenMDW License 1.0"),
    "openmdw-1.1": (PERMISSIVE, "OpenMDW License 1.1"),
    "pddl": (PERMISSIVE, "Open Data Commons Public Domain Dedication and License"),
    "postgresql": (PERMISSIVE, "PostgreSQL License"),
    "unlicense": (PERMISSIVE, "The Unlicense"),
    "zlib": (PERMISSIVE, "zlib License"),
    "agpl-3.0": (COPYLEFT, "GNU Affero General Public License v3.0"),
    "epl-1.0": (COPYLEFT, "Eclipse Public License 1.0"),
    "epl-2.0": (COPYLEFT, "Eclipse Public License 2.0"),
    "eupl-1.1": (COPYLEFT, "European Union Public License 1.1"),
    "eupl-1.2": (COPYLEFT, "European Union Public License 1.2"),
    "gfdl": (COPYLEFT, "GNU Free Documentation License family"),
    "gpl": (COPYLEFT, "GNU General Public License family"),
    "gpl-2.0": (COPYLEFT, "GNU General Public License v2.0"),
    "gpl-3.0": (COPYLEFT, "GNU General Public License v3.0"),
    "lgpl": (COPYLEFT, "GNU Lesser General Public License family"),
    "lgpl-2.1": (COPYLEFT, "GNU Lesser General Public License v2.1"),
    "lgpl-3.0": (COPYLEFT, "GNU Lesser General Public License v3.0"),
    "lgpl-lr": (COPYLEFT, "Lesser General Public License For Linguistic Resources"),
    "lppl-1.3c": (COPYLEFT, "LaTeX Project Public License v1.3c"),
    "mpl-2.0": (COPYLEFT, "Mozilla Public License 2.0"),
    "ms-pl": (COPYLEFT, "Microsoft Public License"),
    "ofl-1.1": (COPYLEFT, "SIL Open Font License 1.1"),
    "osl-3.0": (COPYLEFT, "Open Software License 3.0"),
    "cc-by-sa-3.0": (SHARE_ALIKE, "Creative Commons Attribution Share Alike 3.0"),
    "cc-by-sa-4.0": (SHARE_ALIKE, "Creative Commons Attribution Share Alike 4.0"),
    "cdla-sharing-1.0": (SHARE_ALIKE, "Community Data License Agreement, Sharing 1.0"),
    "odbl": (SHARE_ALIKE, "Open Database License family"),
    "cc-by-nc-2.0": (NON_COMMERCIAL, "Creative Commons Attribution Non Commercial 2.0"),
    "cc-by-nc-3.0": (NON_COMMERCIAL, "Creative Commons Attribution Non Commercial 3.0"),
    "cc-by-nc-4.0": (NON_COMMERCIAL, "Creative Commons Attribution Non Commercial 4.0"),
    "cc-by-nc-sa-2.0": (NON_COMMERCIAL, "Creative Commons Attribution Non Commercial SA 2.0"),
    "cc-by-nc-sa-3.0": (NON_COMMERCIAL, "Creative Commons Attribution Non Commercial SA 3.0"),
    "cc-by-nc-sa-4.0": (NON_COMMERCIAL, "Creative Commons Attribution Non Commercial SA 4.0"),
    "apple-amlr": (NON_COMMERCIAL, "Apple Machine Learning Research License"),
    "deepfloyd-if-license": (NON_COMMERCIAL, "DeepFloyd IF Research License Agreement"),
    "fair-noncommercial-research-license": (NON_COMMERCIAL, "FAIR Noncommercial Research License"),
    "h-research": (NON_COMMERCIAL, "H Research License"),
    "intel-research": (NON_COMMERCIAL, "Intel Research Use License"),
    "cc-by-nd-4.0": (NO_DERIVATIVES, "Creative Commons Attribution No Derivatives 4.0"),
    "cc-by-nc-nd-3.0": (NO_DERIVATIVES, "Creative Commons Attribution NC ND 3.0"),
    "cc-by-nc-nd-4.0": (NO_DERIVATIVES, "Creative Commons Attribution NC ND 4.0"),
    "apple-ascl": (USE_RESTRICTED, "Apple Sample Code License"),
    "bigcode-openrail-m": (USE_RESTRICTED, "BigCode Open RAIL-M v1"),
    "bigscience-bloom-rail-1.0": (USE_RESTRICTED, "BigScience BLOOM RAIL 1.0"),
    "bigscience-openrail-m": (USE_RESTRICTED, "BigScience OpenRAIL-M"),
    "c-uda": (USE_RESTRICTED, "Computational Use of Data Agreement"),
    "creativeml-openrail-m": (USE_RESTRICTED, "CreativeML OpenRAIL-M"),
    "gemma": (USE_RESTRICTED, "Gemma Terms of Use"),
    "grok2-community": (USE_RESTRICTED, "Grok 2 Community License Agreement"),
    "llama2": (USE_RESTRICTED, "Llama 2 Community License Agreement"),
    "llama3": (USE_RESTRICTED, "Llama 3 Community License Agreement"),
    "llama3.1": (USE_RESTRICTED, "Llama 3.1 Community License Agreement"),
    "llama3.2": (USE_RESTRICTED, "Llama 3.2 Community License Agreement"),
    "llama3.3": (USE_RESTRICTED, "Llama 3.3 Community License Agreement"),
    "llama4": (USE_RESTRICTED, "Llama 4 Community License Agreement"),
    "openrail": (USE_RESTRICTED, "OpenRAIL licence family"),
    "openrail++": (USE_RESTRICTED, "Open RAIL++-M License"),
    "cc": (OTHER, "a Creative Commons licence, which one is not said"),
    "other": (OTHER, "a licence the Hub has no id for"),
    "unknown": (NONE, "unknown"),
}
"""Every licence id the Hub accepts (its documentation, August 2026) -> (class, full name)."""

ALSO_SHARE_ALIKE = ("cc-by-nc-sa-*",)
"""Patterns of non-commercial licences that also demand the same licence for what is derived."""

ASKING: dict[str, int] = {"cc0-1.0": 0, "pddl": 0, "unlicense": 0, "wtfpl": 0, "apache-2.0": 2}
"""How much a permissive licence asks of whoever passes a copy on: 0 nothing, 1 (all that are not
here) its notice, 2 more than that. Of two that ask alike, neither is known to keep the other."""

NVIDIA_SEGFORMER = "https://github.com/NVlabs/SegFormer/blob/master/LICENSE"

NAMED_LICENSES: dict[str, tuple[str, str, str]] = {
    "nvidia-segformer": (
        NON_COMMERCIAL,
        "NVIDIA Source Code License for SegFormer",
        NVIDIA_SEGFORMER,
    ),
    "dinov3-license": (
        USE_RESTRICTED,
        "DINOv3 License",
        "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
    ),
}
"""License names used with the id `other` -> (class, full name, link)."""

KNOWN_REPOSITORIES: tuple[tuple[str, str], ...] = (
    ("nvidia/segformer-*", "nvidia-segformer"),
    ("nvidia/mit-*", "nvidia-segformer"),
    ("smp-hub/*segformer*", "nvidia-segformer"),
)
"""Repository pattern -> named licence, where the Hub's metadata says only `other`."""


class Rule(NamedTuple):
    """One row of the rule table: what comes out when two licences meet in it."""

    id: str
    result: str  # "none" | "other" | "restricting" | "same" | "permissive" | "stated"
    publish: str  # "yes" | "warn" | "accept" | "state" | "private" | "refused"
    reason: str
    remedy: str = ""  # what may be done instead of keeping the merge private


RULES: tuple[Rule, ...] = (
    Rule(
        "no-derivatives",
        "none",
        "refused",
        "A parent forbids derivatives, and a merge is one.",
        "Leave that parent out",
    ),
    Rule(
        "conflict",
        "none",
        "refused",
        "The parents' terms contradict each other: no licence satisfies both.",
        "Leave one of them out",
    ),
    Rule(
        "stated-conflict",
        "same",
        "refused",
        "The stated licence is not known to keep all that the parents' licences ask for.",
        "Drop --license",
    ),
    Rule(
        "none-declared",
        "none",
        "private",
        "A parent declares no licence, so nothing allows publishing what is derived from it.",
        "Name the parent's licence with --license ID",
    ),
    Rule(
        "unknown-terms",
        "other",
        "state",
        "A parent's licence is not in the table and is treated as non-commercial.",
        "Read its text and name the licence with --license ID",
    ),
    Rule(
        "several-restrictions",
        "other",
        "accept",
        "Several licences restrict the merge at once; all of them apply together.",
        "Read them and add --accept-license",
    ),
    Rule(
        "non-commercial-carries",
        "restricting",
        "warn",
        "A non-commercial parent makes the merge non-commercial.",
    ),
    Rule(
        "share-alike-carries",
        "restricting",
        "warn",
        "A share-alike parent demands its own licence for the merge.",
    ),
    Rule(
        "copyleft-carries",
        "restricting",
        "warn",
        "A copyleft parent demands its own licence for the merge.",
    ),
    Rule(
        "use-restriction-carries",
        "restricting",
        "yes",
        "A parent's use restrictions are carried over to the merge.",
    ),
    Rule(
        "stated",
        "stated",
        "warn",
        "The parents' own licences are those below; this one keeps what they ask for.",
    ),
    Rule("same-license", "same", "yes", "All parents have the same licence."),
    Rule(
        "permissive",
        "permissive",
        "yes",
        "All parents are permissive; the notices that come with them are kept.",
    ),
)
"""Strictest first: the first rule that any two parents meet in decides.

Nothing meets in the two `stated` ones: they are about the licence that a user states where all
parents declare theirs."""

RULE_BY_ID = {rule.id: rule for rule in RULES}
STRICTNESS = {rule.id: place for place, rule in enumerate(RULES)}

PAIRS: dict[tuple[str, str], str] = {
    (PERMISSIVE, PERMISSIVE): "permissive",
    (PERMISSIVE, NON_COMMERCIAL): "non-commercial-carries",
    (PERMISSIVE, SHARE_ALIKE): "share-alike-carries",
    (PERMISSIVE, COPYLEFT): "copyleft-carries",
    (PERMISSIVE, USE_RESTRICTED): "use-restriction-carries",
    (NON_COMMERCIAL, NON_COMMERCIAL): "several-restrictions",
    (NON_COMMERCIAL, USE_RESTRICTED): "several-restrictions",
    (USE_RESTRICTED, USE_RESTRICTED): "several-restrictions",
    **{(SHARE_ALIKE, other): "conflict" for other in RESTRICTING},
    (COPYLEFT, NON_COMMERCIAL): "conflict",
    (COPYLEFT, USE_RESTRICTED): "conflict",
    (COPYLEFT, COPYLEFT): "conflict",
    **{(OTHER, each): "unknown-terms" for each in (PERMISSIVE, *RESTRICTING, OTHER)},
    **{(NONE, each): "none-declared" for each in (PERMISSIVE, *RESTRICTING, OTHER, NONE)},
    **{
        (NO_DERIVATIVES, each): "no-derivatives"
        for each in (PERMISSIVE, *RESTRICTING, OTHER, NONE, NO_DERIVATIVES)
    },
}
"""Two classes of two *different* licences -> rule. Read in both directions."""

INCOMPATIBLE: tuple[tuple[str, str], ...] = (
    ("apache-2.0", "gpl-2.0"),
    ("ecl-2.0", "gpl-2.0"),
    ("afl-3.0", "gpl*"),
    ("afl-3.0", "agpl-3.0"),
)
"""Patterns of a permissive licence and a copyleft one that does not let its terms be added, as the
Free Software Foundation reads them."""

ALONE: dict[str, str] = {NO_DERIVATIVES: "no-derivatives", NONE: "none-declared"}
"""What one licence shared by all parents meets in; every other class is `same-license`."""
