"""Scope templates: what fills a hole is data, and asks for nothing else than the author meant."""

from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain.scope import MAX_SCOPE_LENGTH, parse, scope_is_subset
from agentwrit.domain.scope_template import ScopeTemplate, UnfitValue

TEMPLATE = ScopeTemplate("read:data:customer-{customer}")


@given(st.text(min_size=1, max_size=40))
def test_a_filled_template_is_one_identifier_or_nothing(value: str) -> None:
    try:
        filled = TEMPLATE.fill({"customer": value})
    except UnfitValue:
        return
    assert parse(filled) == ("read", "data", f"customer-{value}")
    assert not set(value) & set(':* "\\')


@pytest.mark.parametrize(
    "value", ["", "*", "a*", "a:b", "1 write:data:1", "a\n", "ä", "\x00", "x" * 300, "{customer}:"]
)
def test_what_could_mean_something_else_fills_nothing(value: str) -> None:
    with pytest.raises(UnfitValue):
        TEMPLATE.fill({"customer": value})


@pytest.mark.parametrize("value", ["", "*", ":"])
def test_a_hole_that_is_the_whole_identifier_is_no_wildcard(value: str) -> None:
    with pytest.raises(UnfitValue):
        ScopeTemplate("read:data:{id}").fill({"id": value})


def test_numbers_and_several_holes_are_filled_and_a_missing_value_is_a_mistake() -> None:
    template = ScopeTemplate("read:data:{a}-{b}-{a}")
    assert template.holes == ("a", "b", "a")
    assert template.fill({"a": 1, "b": "x"}) == "read:data:1-x-1"
    with pytest.raises(KeyError):
        template.fill({"a": 1})


def test_a_value_is_never_filled_again() -> None:
    with pytest.raises(UnfitValue):
        ScopeTemplate("read:data:{a}{b}").fill({"a": "{b}", "b": "*"})
    assert ScopeTemplate("read:data:{a}{b}").fill({"a": "{b}", "b": "x"}) == "read:data:{b}x"


@pytest.mark.parametrize(
    "text",
    ["", "read:data", "{action}:data:1", "read:{kind}:1", "read:data:{", "read:data:{a b}", "*:data:{a}", "a:b:}"],
)
def test_what_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="template"):
        ScopeTemplate(text)


@given(st.from_regex(r"[a-z0-9*:.+-]{1,8}", fullmatch=True), st.booleans())
def test_what_covers_a_filled_template_has_it_within_reach(value: str, is_prefixed: bool) -> None:
    held = f"read:data:{'customer-' if is_prefixed else ''}{value}"
    try:
        covers = scope_is_subset([TEMPLATE.fill({"customer": value})], [held])
    except UnfitValue:
        covers = False
    assert not covers or TEMPLATE.is_within_reach([held])
    assert TEMPLATE.is_within_reach([held]) == (covers or held == "read:data:*")


def test_a_hole_before_the_identifier_is_refused_though_another_one_stands_in_it() -> None:
    for text in ("read:{a}:{b}", "{a}:data:{b}"):
        with pytest.raises(ValueError, match="may only stand in its identifier"):
            ScopeTemplate(text)


def test_what_is_held_is_within_reach_where_some_values_lead_there() -> None:
    template = ScopeTemplate("read:data:x-{a}-{b}")
    for held in ("read:data:x-1-2", "read:data:*", "read:data:x-1-2-3"):
        assert template.is_within_reach([held]), held
    for held in ("read:data:x-1", "read:data:y-1-2", "read:other:*", "write:data:*", "read:data:x-1-2\n"):
        assert not template.is_within_reach([held]), held
    assert not template.is_within_reach([])
    assert ScopeTemplate("read:data:{a}:{b}").is_within_reach(["read:data:*"])


def test_a_member_of_an_enumeration_stands_for_its_value() -> None:
    class Region(Enum):
        EU = "eu"
        ANYWHERE = "*"

    template = ScopeTemplate("read:data:{region}")
    assert template.fill({"region": Region.EU}) == "read:data:eu"
    with pytest.raises(UnfitValue):
        template.fill({"region": Region.ANYWHERE})


def test_what_covers_a_need_that_is_known_in_part() -> None:
    template = ScopeTemplate("read:data:x-{a}-{b}")
    held = ["read:data:x-1-2", "read:data:x-3-4", "read:data:y-1-2", "read:other:*"]
    assert template.reach({}, held) == ["read:data:x-1-2", "read:data:x-3-4"]
    assert template.reach({"b": 4}, held) == ["read:data:x-3-4"]
    assert template.reach({"b": ".*"[0]}, held) == []
    assert template.reach({"a": 9}, ["read:data:*"]) == ["read:data:*"] == [template.everything]
    for value in ("*", "1:2", "", "1 2"):
        with pytest.raises(UnfitValue):
            template.reach({"a": value}, held)


def test_a_scope_may_be_as_long_as_scopes_may_be_and_no_longer() -> None:
    template = ScopeTemplate("read:data:{a}")
    longest = "x" * (MAX_SCOPE_LENGTH - len("read:data:"))
    assert len(template.fill({"a": longest})) == MAX_SCOPE_LENGTH
    with pytest.raises(UnfitValue, match="too long"):
        template.fill({"a": longest + "x"})
