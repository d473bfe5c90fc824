"""What licence a merge of some parents must carry, and whether it may be published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from itertools import combinations, permutations, product
from typing import Any

from lwmm_hub.display.text import one_line
from lwmm_hub.errors import LicenseRefusedError, UsageError
from lwmm_hub.licenses.tables import (
    ALONE,
    ALSO_SHARE_ALIKE,
    ASKING,
    INCOMPATIBLE,
    KNOWN_REPOSITORIES,
    LICENSES,
    NAMED_LICENSES,
    NON_COMMERCIAL,
    NONE,
    OTHER,
    PAIRS,
    PERMISSIVE,
    RULE_BY_ID,
    RULE_VERSION,
    SHARE_ALIKE,
    STRICTNESS,
    Rule,
)


@dataclass(frozen=True)
class ParentLicense:
    """What one parent declares: `label` is its public name, `license` the Hub's id or None."""

    label: str
    license: str | None
    name: str | None = None
    link: str | None = None
    gated: bool = False
    has_text: bool = False
    stated_by_user: bool = False
    from_table: bool = False

    @property
    def license_class(self) -> str:
        """Its class in the table.

        >>> ParentLicense("a/x", "cc-by-nc-4.0").license_class
        'non-commercial'
        """
        return license_class(self.license, self.name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Its class, and that of what it also demands.

        >>> ParentLicense("a/x", "cc-by-nc-sa-4.0").classes
        ('non-commercial', 'share-alike')
        """
        kind = self.license_class
        named = (self.name if self.license == "other" else self.license) or ""
        also = any(fnmatchcase(named, pattern) for pattern in ALSO_SHARE_ALIKE)
        return (kind, SHARE_ALIKE) if also and kind == NON_COMMERCIAL else (kind,)

    @property
    def title(self) -> str:
        """How to call the licence in a sentence.

        >>> ParentLicense("a/x", "other", name="nvidia-segformer").title
        'NVIDIA Source Code License for SegFormer'
        """
        if self.license is None:
            return "no licence"
        if self.license == "other" and self.name:
            return NAMED_LICENSES[self.name][1] if self.name in NAMED_LICENSES else self.name
        return LICENSES[self.license][1] if self.license in LICENSES else self.license


@dataclass(frozen=True)
class ParentRow:
    """One parent's line in the derivation table of a card."""

    label: str
    license: str | None
    name: str | None
    link: str | None
    title: str
    license_class: str
    gated: bool
    has_text: bool
    stated_by_user: bool
    from_table: bool = False


@dataclass(frozen=True)
class LicenseDecision:
    """The licence a merge carries, and what publishing it asks for."""

    license: str | None
    name: str | None
    link: str | None
    license_class: str
    publish: str
    rule: str
    rule_version: int
    reason: str
    notices: tuple[str, ...]
    private_default: bool
    rows: tuple[ParentRow, ...]
    stated: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The decision as plain JSON values, as the manifest keeps it."""
        plain = asdict(self)
        plain["notices"] = list(self.notices)
        plain["rows"] = list(plain["rows"])
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> LicenseDecision:
        """The decision that `to_dict` wrote; fields it does not know are left out."""
        known = {field.name for field in fields(cls)}
        row_fields = {field.name for field in fields(ParentRow)}
        values = {key: value for key, value in plain.items() if key in known}
        values["notices"] = tuple(values["notices"])
        values["rows"] = tuple(
            ParentRow(**{key: value for key, value in row.items() if key in row_fields})
            for row in values["rows"]
        )
        return cls(**values)


def license_class(license_id: str | None, name: str | None = None) -> str:
    """The class of a Hub licence id, or of the named licence where the id is `other`.

    >>> license_class("llama3.1"), license_class("gpl-3.0"), license_class(None)
    ('use-restricted', 'copyleft', 'none')
    >>> license_class("other", "nvidia-segformer"), license_class("other", "mine")
    ('non-commercial', 'other-with-text')
    """
    if license_id is None:
        return NONE
    if license_id == "other" and name in NAMED_LICENSES:
        return NAMED_LICENSES[name][0]
    return LICENSES.get(license_id, (OTHER, ""))[0]


def known_license(repo_id: str, declared: str | None, **declaration: Any) -> ParentLicense:
    """What a repository's licence is, completed from the table of known repositories.

    `declared` is the Hub's `license`, `declaration` the other fields of `ParentLicense`.

    >>> known_license("nvidia/mit-b0", "other").name
    'nvidia-segformer'
    >>> known_license("a/x", "Apache-2.0").license
    'apache-2.0'
    """
    license_id = declared.strip().lower() if isinstance(declared, str) else None
    parent = ParentLicense(**{"label": repo_id, **declaration, "license": license_id or None})
    if parent.license_class not in (OTHER, NONE):
        return parent
    for pattern, name in KNOWN_REPOSITORIES:
        if fnmatchcase(repo_id.lower(), pattern):
            link = NAMED_LICENSES[name][2]
            return replace(parent, license="other", name=name, link=link, from_table=True)
    return parent


def suggest_license(text: str) -> str | None:
    """The Hub licence id closest to `text`, or None.

    >>> suggest_license("apache"), suggest_license("CC BY SA 4"), suggest_license("zzz")
    ('apache-2.0', 'cc-by-sa-4.0', None)
    """
    wanted = text.strip().lower().replace(" ", "-")
    starting = sorted(each for each in LICENSES if each.startswith(f"{wanted}-"))
    if wanted and len(starting) == 1:
        return starting[0]
    from difflib import get_close_matches

    close = get_close_matches(wanted, list(LICENSES), n=1, cutoff=0.6)
    return close[0] if close else None


def decide(parents: Sequence[ParentLicense], stated: str | None = None) -> LicenseDecision:
    """The licence a merge of `parents` (the anchor first) carries, and the rule that says so.

    `stated` is the user's `--license`: the licence of every parent whose own is unknown. Where all
    parents declare theirs, it is the licence of the result if it keeps all that theirs ask for, and
    refused in public otherwise.

    >>> decide([ParentLicense("a/x", "mit"), ParentLicense("b/y", "apache-2.0")]).license
    'apache-2.0'
    >>> mixed = decide([ParentLicense("a/x", "mit"), known_license("nvidia/mit-b0", "other")])
    >>> mixed.license, mixed.name, mixed.publish, mixed.rule
    ('other', 'nvidia-segformer', 'warn', 'non-commercial-carries')

    Raises:
        UsageError: There is no parent, or the Hub has no licence `stated`.
    """
    if not parents:
        raise UsageError("No parent is given. A licence is derived from at least one model.")
    stated = _valid_statement(stated)
    read = tuple(_state(_normalised(parent), stated) for parent in parents)
    rule = _strictest_rule(read)
    carried = _result(rule, read)
    if stated is not None and carried is not None and not any(p.stated_by_user for p in read):
        rule, carried = _as_stated(stated, rule, read, carried)
    return LicenseDecision(
        license=carried.license if carried else None,
        name=carried.name if carried else None,
        link=carried.link if carried else None,
        license_class=carried.license_class if carried else NONE,
        publish=rule.publish,
        rule=rule.id,
        rule_version=RULE_VERSION,
        reason=_reason(rule, read, carried, stated),
        notices=_notices(read),
        private_default=any(parent.gated for parent in read) or rule.publish == "private",
        rows=tuple(
            ParentRow(
                label=parent.label,
                license=parent.license,
                name=parent.name,
                link=parent.link,
                title=parent.title,
                license_class=parent.license_class,
                gated=parent.gated,
                has_text=parent.has_text,
                stated_by_user=parent.stated_by_user,
                from_table=parent.from_table,
            )
            for parent in read
        ),
        stated=stated,
    )


def check_publication(
    decision: LicenseDecision,
    *,
    public: bool,
    accept_license: bool,
    existing: str | None = None,
) -> None:
    """Do nothing when the merge may go where it is asked to go; a private target always may.

    `existing` is the target where that is a repository already, which `--private` does not change.

    Raises:
        LicenseRefusedError: The target is public and the decision's rule does not allow that.
    """
    allowed = decision.publish in ("yes", "warn") or (
        decision.publish == "accept" and accept_license
    )
    if not public or allowed:
        return
    rule = RULE_BY_ID[decision.rule]
    stated = f" Stated: {decision.stated}." if rule.id == "stated-conflict" else ""
    concerned = [row for row in decision.rows if row.license_class != PERMISSIVE]
    parents = ", ".join(
        f"{one_line(row.label)}: {one_line(row.name or row.license or 'none declared')}"
        for row in concerned or decision.rows
    )
    privately = (
        f"push to a private repository ({existing} is public)"
        if existing is not None
        else "keep the merge private with --private"
    )
    raise LicenseRefusedError(
        f"Not published in public (licence rule {rule.id!r}, version {decision.rule_version}): "
        f"{rule.reason}{stated} Parents: {parents}. {rule.remedy}, or {privately}."
    )


def _valid_statement(stated: str | None) -> str | None:
    if stated is None:
        return None
    license_id = stated.strip().lower()
    if license_id in NAMED_LICENSES or license_class(license_id) not in (OTHER, NONE):
        return license_id
    near = suggest_license(license_id)
    hint = f"Did you mean {near!r}?" if near and near != license_id else "Name a Hub licence id."
    raise UsageError(f"{one_line(stated)!r} does not say what a licence allows. {hint}")


def _state(parent: ParentLicense, stated: str | None) -> ParentLicense:
    known = parent.license_class not in (OTHER, NONE) and not parent.stated_by_user
    if stated is None or known:
        return parent
    return _stated_license(parent, stated)


def _stated_license(parent: ParentLicense, stated: str | None) -> ParentLicense:
    if stated in NAMED_LICENSES:
        link = NAMED_LICENSES[stated][2]
        return replace(parent, license="other", name=stated, link=link, stated_by_user=True)
    return replace(parent, license=stated, name=None, link=None, stated_by_user=True)


def _as_stated(
    stated: str, rule: Rule, parents: Sequence[ParentLicense], carried: ParentLicense
) -> tuple[Rule, ParentLicense]:
    """What the merge carries where the user states a licence and all parents declare theirs.

    The stated one joins the parents' as one more: it holds if what they give together is no other.
    """
    if stated in (carried.license, carried.name):
        return rule, carried
    wanted = _stated_license(ParentLicense("", None), stated)
    if carried.license_class != PERMISSIVE:
        return RULE_BY_ID["stated-conflict"], carried
    if wanted.license_class != PERMISSIVE:
        keeps = _strictest_rule([*parents, wanted]).result == "restricting"
    elif _asking(wanted) == _asking(carried):
        if any(_identity(parent) == _identity(wanted) for parent in parents):
            return rule, wanted  # which of those that ask alike it is, the first parent says else
        keeps = False
    else:
        keeps = _asking(wanted) > _asking(carried)
    return (RULE_BY_ID["stated"], wanted) if keeps else (RULE_BY_ID["stated-conflict"], carried)


def _asking(parent: ParentLicense) -> int:
    return ASKING.get(parent.license or "", 1)


def _normalised(parent: ParentLicense) -> ParentLicense:
    license_id = parent.license.strip().lower() if parent.license else None
    if license_id == "other" and parent.name in NAMED_LICENSES:
        return replace(parent, license=license_id, link=NAMED_LICENSES[parent.name][2])
    return replace(parent, license=license_id or None)


def _identity(parent: ParentLicense) -> tuple[str, ...]:
    """What makes two parents' licences the same one.

    An `other` is the same only with the same name and the same web address: two files called
    LICENSE in two repositories are two texts.
    """
    if parent.license_class == NONE:
        return (NONE,)
    if parent.license_class != OTHER:
        return (parent.license or "", (parent.name or "") if parent.license == "other" else "")
    if parent.name and (parent.link or "").startswith(("https://", "http://")):
        return (parent.license or "", parent.name, parent.link or "")
    return (OTHER, parent.label)


def _strictest_rule(parents: Sequence[ParentLicense]) -> Rule:
    distinct = list({_identity(parent): parent for parent in parents}.values())
    if len(distinct) == 1:
        kind = distinct[0].license_class
        unread = kind == OTHER and (len(parents) == 1 or _identity(distinct[0])[0] == OTHER)
        return RULE_BY_ID["unknown-terms" if unread else ALONE.get(kind, "same-license")]
    met = {
        PAIRS.get((one, two)) or PAIRS[two, one]
        for first, second in combinations(distinct, 2)
        for one, two in product(first.classes, second.classes)
    }
    if any(_incompatible(one, two) for one, two in permutations(distinct, 2)):
        met.add("conflict")
    return RULE_BY_ID[min(met, key=STRICTNESS.__getitem__)]


def _incompatible(one: ParentLicense, other: ParentLicense) -> bool:
    return any(
        one.license == permissive and fnmatchcase(other.license or "", copyleft)
        for permissive, copyleft in INCOMPATIBLE
    )


def _result(rule: Rule, parents: Sequence[ParentLicense]) -> ParentLicense | None:
    """The licence that `rule` gives to the merge, as a parent's would be written."""
    anchor = parents[0]
    if rule.result == "none":
        return None
    if rule.result == "same":
        return _with_text(anchor)
    if rule.result == "restricting":
        return _with_text(next(p for p in parents if p.license_class != PERMISSIVE))
    if rule.result == "permissive":
        return _with_text(max(parents, key=_asking))  # the first of those that ask most
    names = sorted({_slug(p) for p in parents if p.license_class != PERMISSIVE})
    return ParentLicense("", "other", name="-and-".join(names)[:96], link="LICENSE", has_text=True)


def _with_text(parent: ParentLicense) -> ParentLicense:
    """`other` always has a name and a link, as the Hub asks for; other ids need neither."""
    if parent.license in LICENSES and parent.license != "other":
        return replace(parent, name=None, link=None)
    return replace(parent, license="other", name=_slug(parent), link=parent.link or "LICENSE")


def _slug(parent: ParentLicense) -> str:
    """A licence name in the letters the Hub takes for `license_name`."""
    text = parent.name or (parent.license if parent.license != "other" else None) or "unnamed"
    kept = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in text.lower())
    return "-".join(filter(None, kept.split("-")))[:96] or "unnamed"


def _reason(
    rule: Rule,
    parents: Sequence[ParentLicense],
    carried: ParentLicense | None,
    stated: str | None,
) -> str:
    parts = [rule.reason]
    if len(parents) == 1 and rule.id == "same-license":
        parts = ["The only parent's licence."]
    if rule.publish == "private":
        parts.append("Private use only.")
    of_user = [one_line(parent.label) for parent in parents if parent.stated_by_user]
    if of_user:
        parts.append(f"Stated by the user for {', '.join(of_user)}, not declared there.")
    elif stated is not None and carried is not None and stated in (carried.license, carried.name):
        parts.append(f"{stated} is stated by the user.")
    return " ".join(parts)


def _notices(parents: Sequence[ParentLicense]) -> tuple[str, ...]:
    """One line for each parent: whose, which licence, where it is written."""
    lines = []
    for parent in parents:
        where = f", {one_line(parent.link)}" if parent.link else ""
        who = " (stated by the user)" if parent.stated_by_user else ""
        known = f" ({parent.license})" if parent.license else ""
        lines.append(f"{one_line(parent.label)}: {one_line(parent.title)}{known}{where}{who}")
    return tuple(dict.fromkeys(lines))
