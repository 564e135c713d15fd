"""Operators: their names, and that one is always left."""

import pytest

from agentwrit.domain import operator
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.operator import Operator


def make_operator(name: str, *, removed_at: int = 0) -> Operator:
    return Operator(name=name, password_hash="", created_at=1, updated_at=1, removed_at=removed_at)


@pytest.mark.parametrize("name", ["a", "ana", "ana.m@example.com", "on-call_2", "x" * 64])
def test_a_name_that_an_operator_can_have(name: str) -> None:
    assert operator.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "Ana", "1st", "-ana", "ana m", "ana\n", "ana:x", "ana/x", "анна", "x" * 65, "a\0"]
)
def test_a_name_that_no_operator_can_have(name: str) -> None:
    with pytest.raises(InvalidRequest):
        operator.check_name(name)


def test_events_name_the_first_operator_as_they_always_did() -> None:
    assert [operator.principal(name) for name in ("", "admin", "ana")] == ["admin", "admin", "admin:ana"]


def test_the_last_one_is_whoever_has_no_other_beside_them() -> None:
    ana, bo, gone = make_operator("ana"), make_operator("bo"), make_operator("admin", removed_at=2)
    assert operator.is_last("ana", [ana, gone])
    assert not operator.is_last("ana", [ana, bo, gone])
    assert not operator.is_last("nobody", [ana])
