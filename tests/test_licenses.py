"""What licence a merge carries: the policy's rows, the order of the parents, what is refused."""

from __future__ import annotations

import json
from itertools import permutations, product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lwmm_hub.errors import LicenseRefusedError, UsageError
from lwmm_hub.licenses import (
    ALONE,
    ASKING,
    LICENSES,
    NAMED_LICENSES,
    PAIRS,
    RULE_VERSION,
    RULES,
    LicenseDecision,
    ParentLicense,
    check_publication,
    decide,
    known_license,
    license_class,
    license_file,
    suggest_license,
    with_new_heading,
)

SEGFORMER = known_license("nvidia/segformer-b0-finetuned-ade-512-512", "other")


def of(*licenses: str | None) -> list[ParentLicense]:
    return [ParentLicense(f"org/model-{i}", each) for i, each in enumerate(licenses)]


@pytest.mark.parametrize(
    ("licenses", "result", "publish", "rule"),
    [
        (("mit", "mit"), "mit", "yes", "same-license"),
        (("mit", "apache-2.0"), "apache-2.0", "yes", "permissive"),
        (("mit", "bsd-3-clause"), "mit", "yes", "permissive"),
        (("bsd-3-clause", "mit"), "bsd-3-clause", "yes", "permissive"),
        (("cc-by-nc-4.0", "cc-by-nc-4.0"), "cc-by-nc-4.0", "yes", "same-license"),
        (("gpl-3.0", "gpl-3.0"), "gpl-3.0", "yes", "same-license"),
        (("openrail", "openrail"), "openrail", "yes", "same-license"),
        (("mit", "cc-by-nc-4.0"), "cc-by-nc-4.0", "warn", "non-commercial-carries"),
        (("mit", "cc-by-nc-sa-4.0"), "cc-by-nc-sa-4.0", "warn", "non-commercial-carries"),
        (("cc-by-nc-4.0", "cc-by-nc-2.0"), "other", "accept", "several-restrictions"),
        (("cc-by-sa-4.0", "apache-2.0"), "cc-by-sa-4.0", "warn", "share-alike-carries"),
        (("gpl-3.0", "apache-2.0"), "gpl-3.0", "warn", "copyleft-carries"),
        (("cc-by-nc-4.0", "llama3"), "other", "accept", "several-restrictions"),
        (("gemma", "llama3"), "other", "accept", "several-restrictions"),
        (("cc-by-sa-4.0", "cc-by-nc-4.0"), None, "refused", "conflict"),
        (("cc-by-sa-4.0", "gpl-3.0"), None, "refused", "conflict"),
        (("cc-by-sa-4.0", "openrail"), None, "refused", "conflict"),
        (("cc-by-sa-4.0", "cc-by-sa-3.0"), None, "refused", "conflict"),
        (("cc-by-nc-sa-4.0", "cc-by-nc-4.0"), None, "refused", "conflict"),
        (("gpl-3.0", "cc-by-nc-4.0"), None, "refused", "conflict"),
        (("gpl-3.0", "openrail++"), None, "refused", "conflict"),
        (("gpl-3.0", "gpl-2.0"), None, "refused", "conflict"),
        (("cc-by-nd-4.0", "mit"), None, "refused", "no-derivatives"),
        (("cc-by-nd-4.0", "cc-by-nd-4.0"), None, "refused", "no-derivatives"),
        (("cc-by-nc-nd-4.0",), None, "refused", "no-derivatives"),
        (("llama3.1", "mit"), "llama3.1", "yes", "use-restriction-carries"),
        (("other", "mit"), "other", "state", "unknown-terms"),
        (("other",), "other", "state", "unknown-terms"),
        (("never-heard-of", "mit"), "other", "state", "unknown-terms"),
        (("cc", "mit"), "other", "state", "unknown-terms"),
        ((None, "mit"), None, "private", "none-declared"),
        ((None, None), None, "private", "none-declared"),
        (("unknown", "mit"), None, "private", "none-declared"),
        ((None, "cc-by-nd-4.0"), None, "refused", "no-derivatives"),
        (("mit", "cc-by-nc-4.0", "cc-by-sa-4.0"), None, "refused", "conflict"),
        (("mit", "apache-2.0", "cc-by-nc-4.0"), "cc-by-nc-4.0", "warn", "non-commercial-carries"),
    ],
)
def test_the_policy(
    licenses: tuple[str | None, ...], result: str | None, publish: str, rule: str
) -> None:
    decision = decide(of(*licenses))
    assert (decision.license, decision.publish, decision.rule) == (result, publish, rule)
    assert decision.rule_version == RULE_VERSION
    assert decision.reason


def test_two_segformers_keep_their_licence_and_its_text() -> None:
    decision = decide([SEGFORMER, known_license("nvidia/mit-b0", "other")])
    assert (decision.license, decision.name) == ("other", "nvidia-segformer")
    assert decision.link == "https://github.com/NVlabs/SegFormer/blob/master/LICENSE"
    assert (decision.publish, decision.license_class) == ("yes", "non-commercial")


def test_a_segformer_makes_a_permissive_merge_non_commercial() -> None:
    decision = decide([ParentLicense("a/x", "apache-2.0"), SEGFORMER])
    assert (decision.name, decision.publish) == ("nvidia-segformer", "warn")


@pytest.mark.parametrize(
    ("repository", "declared", "name"),
    [
        ("nvidia/segformer-b5-finetuned-ade-640-640", "other", "nvidia-segformer"),
        ("nvidia/mit-b0", None, "nvidia-segformer"),
        ("smp-hub/segformer-b0-512x512-ade-160k", "other", "nvidia-segformer"),
        ("nvidia/segformer-x", "apache-2.0", None),
        ("me/segformer-b0", "other", None),
        ("nvidia/parakeet", "other", None),
    ],
)
def test_known_repositories(repository: str, declared: str | None, name: str | None) -> None:
    assert known_license(repository, declared).name == name


def test_a_known_licence_keeps_what_else_is_declared() -> None:
    parent = known_license("nvidia/mit-b0", "other", gated=True, has_text=True)
    assert (parent.gated, parent.has_text, parent.from_table) == (True, True, True)


def test_another_licence_called_license_is_another_text() -> None:
    parents = [
        ParentLicense("a/x", "other", name="custom", link="LICENSE"),
        ParentLicense("b/y", "other", name="custom", link="LICENSE"),
    ]
    assert decide(parents).rule == "unknown-terms"


def test_one_licence_at_one_address_is_the_same() -> None:
    parents = [
        ParentLicense(label, "other", name="custom", link="https://a.b/LICENSE")
        for label in ("a/x", "b/y")
    ]
    decision = decide(parents)
    assert (decision.rule, decision.name, decision.link) == (
        "same-license", "custom", "https://a.b/LICENSE",
    )  # fmt: skip


def test_other_always_has_a_name_and_a_link() -> None:
    decision = decide([SEGFORMER, ParentLicense("b/y", "cc-by-nc-4.0")])
    assert decision.name == "cc-by-nc-4.0-and-nvidia-segformer"
    assert decision.link == "LICENSE"


def test_a_gated_parent_makes_the_merge_private_by_default() -> None:
    gated = ParentLicense("a/x", "mit", gated=True)
    assert decide([gated]).private_default
    assert not decide(of("mit")).private_default
    check_publication(decide([gated]), public=True, accept_license=False)


def test_notices_name_every_parent() -> None:
    decision = decide([ParentLicense("a/x", "mit"), ParentLicense("b/y", "cc-by-4.0")])
    assert len(decision.notices) == 2
    assert decision.notices[1] == "b/y: Creative Commons Attribution 4.0 (cc-by-4.0)"


# What the user states


def test_a_statement_fills_in_what_the_parents_do_not_say() -> None:
    decision = decide(of("other", "apache-2.0"), stated="MIT")
    assert (decision.license, decision.publish) == ("apache-2.0", "yes")
    assert [row.stated_by_user for row in decision.rows] == [True, False]
    assert "Stated by the user for org/model-0" in decision.reason
    assert decide(of(None), stated="apache-2.0").license == "apache-2.0"


def test_a_statement_does_not_override_what_a_parent_says() -> None:
    decision = decide([SEGFORMER, SEGFORMER], stated="apache-2.0")
    assert (decision.rule, decision.publish) == ("stated-conflict", "refused")
    assert decision.name == "nvidia-segformer"
    assert decide(of("cc-by-nd-4.0"), stated="mit").publish == "refused"
    mixed = decide([SEGFORMER, ParentLicense("a/x", "other")], stated="apache-2.0")
    assert (mixed.name, mixed.publish) == ("nvidia-segformer", "warn")


@pytest.mark.parametrize(
    ("licenses", "stated", "rule", "publish"),
    [
        (("mit", "mit"), "apache-2.0", "stated", "warn"),
        (("mit", "bsd-3-clause"), "apache-2.0", "stated", "warn"),
        (("cc0-1.0", "unlicense"), "mit", "stated", "warn"),
        (("mit", "apache-2.0"), "gpl-3.0", "stated", "warn"),
        (("mit", "bsd-3-clause"), "cc-by-nc-4.0", "stated", "warn"),
        (("mit", "apache-2.0"), "nvidia-segformer", "stated", "warn"),
        (("mit", "bsd-3-clause"), "bsd-3-clause", "permissive", "yes"),
        (("mit", "mit"), "mit", "same-license", "yes"),
        (("apache-2.0", "apache-2.0"), "cc0-1.0", "stated-conflict", "refused"),
        (("apache-2.0", "apache-2.0"), "mit", "stated-conflict", "refused"),
        (("mit", "apache-2.0"), "cc-by-4.0", "stated-conflict", "refused"),
        (("bsd-3-clause", "bsd-3-clause"), "mit", "stated-conflict", "refused"),
        (("mit", "bsd-3-clause"), "cc-by-nc-nd-4.0", "stated-conflict", "refused"),
        (("cc-by-nc-4.0", "mit"), "cc-by-nc-sa-4.0", "stated-conflict", "refused"),
    ],
)
def test_a_statement_over_what_all_parents_declare_has_to_keep_it(
    licenses: tuple[str, ...], stated: str, rule: str, publish: str
) -> None:
    for parents in permutations(of(*licenses)):
        decision = decide(parents, stated=stated)
        assert (decision.rule, decision.publish) == (rule, publish)
        assert not any(row.stated_by_user for row in decision.rows)
        if publish == "refused":
            assert decision.license in licenses, "the parents' own stands on a private card"
            with pytest.raises(LicenseRefusedError, match=f"Stated: {stated}[.]"):
                check_publication(decision, public=True, accept_license=True)
            continue
        assert stated in (decision.license, decision.name)
        assert decision.reason.endswith(f"{stated} is stated by the user.")
        assert ("All parents have the same" in decision.reason) == (rule == "same-license")


@given(
    st.lists(
        st.sampled_from([x for x in LICENSES if license_class(x) == "permissive"]), min_size=1
    ),
    st.sampled_from([x for x in LICENSES if license_class(x) != "other-with-text"]),
)
def test_what_is_stated_is_never_weaker_than_what_the_rules_give(
    licenses: list[str], stated: str
) -> None:
    if license_class(stated) == "none":
        return
    decision = decide(of(*licenses), stated)
    if decision.license != stated:
        assert (decision.rule, decision.publish) == ("stated-conflict", "refused")
        return
    asked = [ASKING.get(each, 1) for each in licenses]
    assert license_class(stated) not in ("permissive", "no-derivatives") or (
        ASKING.get(stated, 1) >= max(asked)
    )
    assert license_class(stated) != "no-derivatives"


def test_a_waiver_does_not_swallow_the_notice_of_another_parent() -> None:
    for stated, first in ((None, "cc0-1.0"), ("cc0-1.0", None)):
        decision = decide(of(first, "mit"), stated)
        assert (decision.license, decision.rule) == ("mit", "permissive")


def test_a_named_licence_can_be_stated() -> None:
    decision = decide(of(None, "mit"), stated="nvidia-segformer")
    assert (decision.license, decision.name, decision.publish) == (
        "other", "nvidia-segformer", "warn",
    )  # fmt: skip


@pytest.mark.parametrize("stated", ["apache", "other", "unknown", "cc", "", "a\nb"])
def test_a_statement_has_to_say_something(stated: str) -> None:
    with pytest.raises(UsageError) as refused:
        decide(of("mit"), stated=stated)
    assert "\n" not in str(refused.value)


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(UsageError, match=r"apache-2\.0"):
        decide(of("mit"), stated="apache")
    assert suggest_license("gpl-v3") == "gpl-3.0"


def test_no_parent_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        decide([])


# Publication


@pytest.mark.parametrize(
    ("licenses", "accept", "allowed"),
    [
        (("mit",), False, True),
        (("mit", "cc-by-nc-4.0"), False, True),
        (("cc-by-nc-4.0", "cc-by-nc-2.0"), False, False),
        (("cc-by-nc-4.0", "cc-by-nc-2.0"), True, True),
        (("other",), True, False),
        ((None,), True, False),
        (("cc-by-nd-4.0",), True, False),
        (("cc-by-sa-4.0", "gpl-3.0"), True, False),
    ],
)
def test_only_a_public_target_is_refused(
    licenses: tuple[str | None, ...], accept: bool, allowed: bool
) -> None:
    decision = decide(of(*licenses))
    check_publication(decision, public=False, accept_license=False)
    if allowed:
        check_publication(decision, public=True, accept_license=accept)
        return
    with pytest.raises(LicenseRefusedError) as refused:
        check_publication(decision, public=True, accept_license=accept)
    message = str(refused.value)
    assert refused.value.exit_code == 3
    assert "\n" not in message
    assert decision.rule in message
    assert "org/model-0" in message
    assert refused.value.text.endswith(", or keep the merge private with --private.")
    with pytest.raises(LicenseRefusedError) as refused:
        check_publication(decision, public=True, accept_license=accept, existing="org/there")
    assert "--private" not in str(refused.value), "a repository that is there stays public"
    assert "or push to a private repository (org/there is public)." in str(refused.value)
    assert ("--accept-license" in message) == (decision.publish == "accept")
    assert ("--license ID" in message) == (decision.publish in ("state", "private"))


def test_a_refusal_is_one_line_whatever_the_parents_are_called() -> None:
    with pytest.raises(LicenseRefusedError) as refused:
        check_publication(
            decide([ParentLicense("a\nb\x1b[31m", "other", name="x\ny\u202ez")]),
            public=True,
            accept_license=False,
        )
    assert str(refused.value).isprintable()
    assert ": x yz." in str(refused.value), "what is invisible leaves no gap"


# The tables


def test_every_two_classes_meet_in_a_rule() -> None:
    classes = {kind for kind, _ in LICENSES.values()} | {
        kind for kind, _, _ in NAMED_LICENSES.values()
    }
    for one, two in product(classes, repeat=2):
        assert ((one, two) in PAIRS) or ((two, one) in PAIRS), (one, two)
    rules = {rule.id for rule in RULES}
    assert set(PAIRS.values()) | set(ALONE.values()) <= rules
    assert {rule.publish for rule in RULES} == {
        "yes", "warn", "accept", "state", "private", "refused",
    }  # fmt: skip


def test_rules_that_refuse_say_what_to_do() -> None:
    for rule in RULES:
        assert bool(rule.remedy) == (rule.publish not in ("yes", "warn"))


PARENT = st.builds(
    ParentLicense,
    label=st.sampled_from(["a/x", "b/y", "c/z", "d/w"]),
    license=st.sampled_from([*LICENSES, None, "made-up"]),
    name=st.sampled_from([None, "custom", "nvidia-segformer"]),
    link=st.sampled_from([None, "LICENSE", "https://a.b/LICENSE"]),
    gated=st.booleans(),
)


def outcome(decision: LicenseDecision) -> tuple[object, ...]:
    """What must not depend on the parents' order: all but which permissive licence came first."""
    carried = (decision.license, decision.name, decision.link)
    own = decision.rule in ("permissive", "stated-conflict")
    if own and decision.license_class == "permissive" and decision.license != "apache-2.0":
        carried = ("the first parent's", None, None)
    return (
        carried, decision.license_class, decision.publish, decision.rule, decision.private_default,
        frozenset(decision.notices),
    )  # fmt: skip


@given(
    st.lists(PARENT, min_size=1, max_size=4),
    st.sampled_from([None, "mit", "cc-by-nc-4.0", "gpl-3.0", "cc-by-nd-4.0"]),
)
def test_the_order_of_the_parents_does_not_matter(
    parents: list[ParentLicense], stated: str | None
) -> None:
    outcomes = {outcome(decide(order, stated)) for order in permutations(parents)}
    assert len(outcomes) == 1


@given(st.lists(PARENT, min_size=1, max_size=4), PARENT)
@example(
    [ParentLicense("a/x", "cc-by-nc-sa-2.0"), ParentLicense("b/y", "apple-ascl")],
    ParentLicense("c/z", "cc-by-nc-sa-2.0", "custom"),  # a name that says nothing beside an id
)
def test_one_more_parent_never_makes_publishing_easier(
    parents: list[ParentLicense], another: ParentLicense
) -> None:
    def strictness(models: list[ParentLicense]) -> int:
        levels = ["yes", "warn", "accept", "state", "private", "refused"]
        return levels.index(decide(models).publish)

    before, after = strictness(parents), strictness([*parents, another])
    # (one `other` alone asks for its name; two that share one web address are one licence)
    if decide([*parents, another]).rule != "same-license":
        assert after >= before


@given(st.lists(PARENT, min_size=1, max_size=4))
def test_a_decision_survives_json(parents: list[ParentLicense]) -> None:
    decision = decide(parents)
    assert LicenseDecision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


@given(st.lists(PARENT, min_size=1, max_size=4))
def test_what_is_carried_is_valid_on_the_hub(parents: list[ParentLicense]) -> None:
    decision = decide(parents)
    assert decision.license is None or decision.license in LICENSES
    assert (decision.license == "other") == (decision.name is not None)
    assert decision.license != "other" or decision.link
    assert (license_file(decision) is None) == (decision.license != "other")


def test_the_licence_file_holds_every_notice_and_text() -> None:
    decision = decide([SEGFORMER, ParentLicense("b/y", "cc-by-nc-4.0")])
    text = license_file(decision, {"b/y": "the whole text"})
    assert text is not None
    assert all(notice in text for notice in decision.notices)
    assert "the whole text" in text


def test_texts_of_permissive_parents_are_kept_each_below_whose_it_is() -> None:
    decision = decide([ParentLicense("a/x", "mit"), ParentLicense("b/y", "apache-2.0")])
    texts = {
        "a/x (LICENSE)": "Copyright (c) 2024 Alice Author\n",
        "b/y (NOTICE)": "This is of Bob.",
        "c/z (LICENSE)": "Copyright (c) 2024 Alice Author",
    }
    text = license_file(decision, texts)
    assert text is not None
    line = "=" * 72
    heading, *parts = text.split(f"\n\n{line}\n")
    assert all(notice in heading for notice in decision.notices)
    assert parts == [
        f"a/x (LICENSE)\nc/z (LICENSE)\n{line}\nCopyright (c) 2024 Alice Author",
        f"b/y (NOTICE)\n{line}\nThis is of Bob.\n",
    ]
    stated = decide([ParentLicense("a/x", "mit"), ParentLicense("b/y", "mit")], "apache-2.0")
    again = with_new_heading(text, stated)
    assert again is not None
    assert again.split(f"\n\n{line}\n")[1:] == parts
    assert "apache-2.0 is stated by the user" in again
    assert with_new_heading("", stated) is None


def test_classes_of_the_licences_people_merge() -> None:
    assert license_class("apache-2.0") == "permissive"
    assert license_class("cc-by-nc-sa-4.0") == "non-commercial"
    assert license_class("cc-by-nc-nd-4.0") == "no-derivatives"
    assert license_class("llama2") == "use-restricted"
    assert license_class("agpl-3.0") == "copyleft"
    assert license_class("other") == "other-with-text"


@pytest.mark.parametrize(
    ("permissive", "copyleft", "publish"),
    [
        ("apache-2.0", "gpl-2.0", "refused"),
        ("apache-2.0", "gpl-3.0", "warn"),
        ("apache-2.0", "lgpl-3.0", "warn"),
        ("mit", "gpl-2.0", "warn"),
        ("afl-3.0", "gpl-3.0", "refused"),
        ("afl-3.0", "agpl-3.0", "refused"),
        ("afl-3.0", "mpl-2.0", "warn"),
    ],
)
def test_a_copyleft_licence_that_takes_no_further_terms_meets_no_licence_with_such(
    permissive: str, copyleft: str, publish: str
) -> None:
    parents = [ParentLicense("a/x", permissive), ParentLicense("b/y", copyleft)]
    for order in (parents, parents[::-1], [*parents, ParentLicense("c/z", "mit")]):
        decision = decide(order)
        assert decision.publish == publish
        assert (decision.license == copyleft) == (publish == "warn")


def test_a_named_licence_carries_its_restrictions_and_its_address() -> None:
    dino = ParentLicense("a/dino", "other", name="dinov3-license", link="LICENSE.md")
    decision = decide([dino, ParentLicense("b/y", "mit")])
    assert (decision.license, decision.name, decision.publish) == ("other", "dinov3-license", "yes")
    assert decision.link is not None
    assert decision.link.startswith("https://ai.meta.com/")
    assert decide([ParentLicense("a/x", None)], "dinov3-license").name == "dinov3-license"
