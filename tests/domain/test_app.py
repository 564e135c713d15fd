"""Apps: which secret works when, and which names can be had."""

import pytest

from agentwrit.domain import app
from agentwrit.domain.app import AppStatus
from agentwrit.domain.errors import InvalidRequest
from tests.domain.records import NOW, make_app

NEW, OLD = b"n" * 32, b"o" * 32
ROTATED = make_app(secret_hash=NEW, previous_secret_hash=OLD, previous_secret_until=NOW + 60)


def test_the_current_secret_works() -> None:
    assert make_app(secret_hash=NEW).accepts(NEW, NOW)
    assert not make_app(secret_hash=NEW).accepts(OLD, NOW)


def test_a_replaced_secret_works_until_its_overlap_ends() -> None:
    assert ROTATED.accepts(OLD, NOW + 59.9)
    assert not ROTATED.accepts(OLD, NOW + 60)
    assert ROTATED.accepts(NEW, NOW + 60)


@pytest.mark.parametrize("guess", [b"", NEW[:-1], NEW + b"n", bytes(32)])
def test_anything_else_does_not(guess: bytes) -> None:
    assert not ROTATED.accepts(guess, NOW)
    assert not make_app(secret_hash=NEW).accepts(guess, NOW)


def test_no_secret_of_an_inactive_app_works() -> None:
    gone = make_app(
        secret_hash=NEW, previous_secret_hash=OLD, previous_secret_until=NOW + 60, status=AppStatus.INACTIVE
    )
    assert not gone.accepts(NEW, NOW)
    assert not gone.accepts(OLD, NOW)


@pytest.mark.parametrize("name", ["ab", "a1", "a-", "order-worker", "a" * 64])
def test_a_name_is_taken(name: str) -> None:
    assert app.check_name(name) == name


@pytest.mark.parametrize("name", ["", "a", "A1", "1a", "-a", "a_b", "a b", "aé", "ab\n", "a" * 65, "a/b"])
def test_what_is_no_name_is_refused_with_what_a_name_is(name: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        app.check_name(name)
    assert refusal.value.hint is not None
