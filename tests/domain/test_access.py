"""What is believed of what resource servers report."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import access, scope
from agentwrit.domain.access import SKEW_SECONDS, Access, NotTaken
from agentwrit.domain.audit import Outcome
from agentwrit.domain.grant import GrantKind
from tests.domain.records import NOW, make_grant

identifiers = st.sampled_from(["*", "1", "2", "a:b"])
scopes = st.builds("{}:data:{}".format, st.sampled_from(["read", "write"]), identifiers)
scope_lists = st.lists(scopes, min_size=1, max_size=4)


def make_access(**changes: Any) -> Access:
    return Access(
        **{
            "sid": "sid-1",
            "jti": "jti-1",
            "scope": ("read:data:1",),
            "resource": "GET /orders/1",
            "outcome": Outcome.SUCCESS,
            "count": 1,
            "first": NOW + 10,
            "last": NOW + 20,
            **changes,
        }
    )


def decide(one: Access, *, superseded: bool = False, **changes: Any) -> NotTaken | None:
    return access.decide(one, make_grant(**changes), ["agentwrit"], NOW + 30, is_superseded=superseded)


def test_what_was_done_with_a_token_of_the_grant_is_taken() -> None:
    assert decide(make_access()) is None
    assert decide(make_access(jti="jti-0"), previous_jti="jti-0") is None
    assert decide(make_access(jti="jti-0"), superseded=True) is None


@pytest.mark.parametrize("ended_at", [NOW + 15, NOW + 29])
def test_what_was_done_is_taken_when_the_grant_has_ended(ended_at: int) -> None:
    assert decide(make_access(), ended_at=ended_at) is None


def test_what_names_no_token_is_not_taken() -> None:
    assert access.decide(make_access(), None, ["agentwrit"], NOW, is_superseded=True) is NotTaken.TOKEN
    assert decide(make_access(jti="another")) is NotTaken.TOKEN
    for kind in (GrantKind.APP, GrantKind.OPERATOR):
        assert decide(make_access(), kind=kind) is NotTaken.TOKEN


@pytest.mark.parametrize("audiences", [[], ["orders"], ["agentwri"], ["AGENTWRIT"]])
def test_who_does_not_speak_for_the_audience_is_not_heard(audiences: list[str]) -> None:
    reason = access.decide(make_access(), make_grant(), audiences, NOW + 30, is_superseded=False)
    assert reason is NotTaken.TOKEN


def test_one_audience_of_several_is_enough() -> None:
    assert decide(make_access(), audience=("orders", "agentwrit")) is None


@given(scope_lists, scope_lists)
def test_what_was_done_was_covered_and_what_was_refused_may_be_anything(used: list[str], held: list[str]) -> None:
    is_covered = scope.scope_is_subset(used, held)
    assert (decide(make_access(scope=tuple(used)), scope=tuple(held)) is None) == is_covered
    assert decide(make_access(scope=tuple(used), outcome=Outcome.DENIED), scope=tuple(held)) is None


@pytest.mark.parametrize(
    ("first", "last", "is_taken"),
    [
        (NOW - SKEW_SECONDS, NOW, True),
        (NOW - SKEW_SECONDS - 1, NOW, False),
        (NOW, NOW + 30 + SKEW_SECONDS, True),
        (NOW, NOW + 31 + SKEW_SECONDS, False),
    ],
)
def test_it_was_in_the_life_of_the_grant_and_not_in_the_future(first: int, last: int, is_taken: bool) -> None:
    assert (decide(make_access(first=first, last=last)) is None) == is_taken


def test_it_was_not_after_the_end_of_the_token() -> None:
    late = make_access(last=NOW + 301 + SKEW_SECONDS)
    assert access.decide(late, make_grant(), ["agentwrit"], NOW + 1000, is_superseded=False) is NotTaken.TIME


@given(scope_lists, scope_lists)
def test_what_made_a_use_possible_was_held_and_covers_it(used: list[str], held: list[str]) -> None:
    found = access.granted_as(used, held)
    assert len(found) == len(used)
    for one, wide in zip(used, found, strict=True):
        if wide:
            assert wide in held
            assert scope.scope_is_subset([one], [wide])
            assert wide == one or one not in held
        else:
            assert not scope.scope_is_subset([one], held)
