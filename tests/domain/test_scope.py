"""Scopes: their form, and the law that nothing covers more than it names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import scope
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.scope import Scope, scope_is_subset, uncovered

# A small alphabet, so that scopes meet.
words = st.sampled_from(["read", "write", "data"])
identifiers = st.sampled_from(["*", "1", "2", "a:b", "a*", "**", "*:1"])
scopes = st.builds("{}:{}:{}".format, words, words, identifiers)
scope_lists = st.lists(scopes, max_size=4)
anything = st.one_of(scopes, st.text(max_size=12), st.sampled_from(["", "*", "*:*:*", "read:*:*", "read:data:", "::"]))


@given(scopes)
def test_a_scope_covers_itself(text: str) -> None:
    assert scope.parse(text).covers(scope.parse(text))


@given(scopes, scopes, scopes)
def test_covering_is_transitive(a: str, b: str, c: str) -> None:
    x, y, z = map(scope.parse, (a, b, c))
    if x.covers(y) and y.covers(z):
        assert x.covers(z)


@given(scopes, scopes)
def test_two_scopes_that_cover_each_other_are_one(a: str, b: str) -> None:
    x, y = scope.parse(a), scope.parse(b)
    if x.covers(y) and y.covers(x):
        assert x == y


@given(scope_lists, scope_lists, scope_lists)
def test_being_a_subset_is_transitive(a: list[str], b: list[str], c: list[str]) -> None:
    if scope_is_subset(a, b) and scope_is_subset(b, c):
        assert scope_is_subset(a, c)


@given(st.lists(anything, max_size=4), st.lists(anything, max_size=4))
def test_uncovered_is_exactly_what_no_single_held_scope_covers(requested: list[str], held: list[str]) -> None:
    def is_covered(text: str) -> bool:
        for other in held:
            mine, theirs = other.split(":", 2), text.split(":", 2)
            if len(mine) == len(theirs) == 3 and mine[:2] == theirs[:2] and mine[2] in ("*", theirs[2]):
                return _is_wellformed(text) and _is_wellformed(other)
        return False

    assert uncovered(requested, held) == tuple(text for text in requested if not is_covered(text))
    assert scope_is_subset(requested, held) == all(map(is_covered, requested))


@given(scope_lists, scope_lists, scope_lists)
def test_holding_more_never_covers_less(requested: list[str], held: list[str], more: list[str]) -> None:
    assert set(uncovered(requested, held + more)) <= set(uncovered(requested, held))


def test_a_held_identifier_does_not_cover_the_wildcard() -> None:
    assert scope_is_subset(["read:data:42"], ["read:data:*"])
    assert not scope_is_subset(["read:data:*"], ["read:data:42"])


def test_an_identifier_is_compared_whole() -> None:
    assert not scope_is_subset(["read:data:customer-12"], ["read:data:customer-1"])
    assert not scope_is_subset(["read:data:customer-1"], ["read:data:customer-*"])


def test_the_empty_list_is_a_subset_of_anything_and_covers_nothing() -> None:
    assert scope_is_subset([], [])
    assert not scope_is_subset(["read:data:1"], [])


@pytest.mark.parametrize("text", ["", "read", "*", "read:data", "read:data:", "*:*:*", "read:data:a b"])
def test_what_is_no_scope_is_not_even_covered_by_itself(text: str) -> None:
    assert not scope_is_subset([text], [text])


def test_one_string_is_not_taken_for_a_list_of_scopes() -> None:
    with pytest.raises(TypeError):
        scope_is_subset("read:data:1", ["read:data:*"])
    with pytest.raises(TypeError):
        scope_is_subset(["read:data:1"], "read:data:*")


def test_an_identifier_keeps_its_further_colons() -> None:
    assert scope.parse("read:urn:isbn:1:2") == Scope("read", "urn", "isbn:1:2")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "::",
        "read:data",
        ":data:1",
        "read::1",
        "read:data:",
        "*:data:1",
        "read:*:1",
        "re*d:data:1",
        "read:da*a:1",
        "read:data:a b",
        'read:data:"',
        "read:data:\\",
        "read:data:1\n",
        "read:data:\0",
        "read:data:\x7f",
        "re\u0430d:data:1",  # a Cyrillic letter
        "read:data:\uff0a",  # a fullwidth asterisk
        "read:data:" + "1" * 247,
    ],
)
def test_a_malformed_scope_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        scope.parse(text)


@pytest.mark.parametrize("text", ["a:b:c", "!:~:*", "read:data:a*b", "read:data:%2e%2e", "read:data:" + "1" * 246])
def test_every_character_of_the_oauth_alphabet_is_taken(text: str) -> None:
    assert ":".join(scope.parse(text)) == text


def test_a_list_keeps_its_order_and_spelling() -> None:
    assert scope.parse_list(["b:b:2", "a:a:1", "b:b:2"], field="scopes") == ("b:b:2", "a:a:1", "b:b:2")


@pytest.mark.parametrize("scopes", [[], ["read:data:1"] * 65, ["read:data:1", "read"]])
def test_a_refused_list_is_named(scopes: list[str]) -> None:
    with pytest.raises(InvalidRequest, match=r"^requested_scope"):
        scope.parse_list(scopes, field="requested_scope")


def test_a_list_may_hold_sixty_four_scopes() -> None:
    assert len(scope.parse_list([f"read:data:{n}" for n in range(64)], field="scopes")) == 64


def _is_wellformed(text: str) -> bool:
    parts = text.split(":", 2)
    return (
        len(parts) == 3
        and all(parts)
        and all("!" <= c <= "~" and c not in '"\\' for c in text)
        and "*" not in parts[0] + parts[1]
        and len(text) <= 256
    )
