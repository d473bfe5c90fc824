"""LICENSE beside the weights: what the merge is derived from, and the texts that came with it."""

from __future__ import annotations

from collections.abc import Mapping

from lwmm_hub.licenses.deciding import LicenseDecision

_LINE = "=" * 72  # above and below the names of those whose text follows
_TEXTS = f"\n\n{_LINE}\n"


def license_file(decision: LicenseDecision, texts: Mapping[str, str] | None = None) -> str | None:
    """The text of a LICENSE file, or None where a Hub id says it all and no parent has a text.

    `texts` holds the licence texts and notices of the parents, each by whose it is and its name.
    A text that several have is there once.
    """
    owners: dict[str, list[str]] = {}
    for owner, text in (texts or {}).items():
        owners.setdefault(text.strip(), []).append(owner)
    if decision.license != "other" and not owners:
        return None
    parts = ["\n".join([*names, _LINE, text]) for text, names in owners.items()]
    return _TEXTS.join([_heading(decision), *parts]) + "\n"


def with_new_heading(text: str, decision: LicenseDecision) -> str | None:
    """A LICENSE file for another decision: only its heading is made again."""
    _, line, texts = text.partition(_TEXTS)
    return f"{_heading(decision)}{line}{texts}".rstrip() + "\n" if line else license_file(decision)


def _heading(decision: LicenseDecision) -> str:
    return "\n\n".join(
        (
            "This model is a merge. " + decision.reason,
            "It is derived from the models below; their terms apply to it together.",
            "\n".join(f"- {notice}" for notice in decision.notices),
        )
    )
