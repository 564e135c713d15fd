"""What is told of nonces without the database: never that one was not spent which was, while its time lasts."""

import os

from hypothesis import given
from hypothesis import strategies as st

from agentwrit.broker.storage.spent_nonces import SpentNonces

NOW = 1_700_000_000
SPENDING = st.lists(st.tuples(st.binary(min_size=1, max_size=32), st.integers(0, 40), st.integers(0, 90)), max_size=60)


@given(SPENDING)
def test_one_that_was_spent_is_held_until_its_end(spending: list[tuple[bytes, int, int]]) -> None:
    now = NOW
    spent = SpentNonces(now=now)
    until: dict[bytes, int] = {}
    for nonce, pause, lifetime in spending:
        now += pause
        spent.add(nonce, now + lifetime, now=now)
        until[nonce] = max(until.get(nonce, 0), now + lifetime)
        assert all(spent.may_hold(known) for known, end in until.items() if end > now)


def test_those_that_a_store_holds_are_held() -> None:
    nonces = [os.urandom(32) for _ in range(1000)]
    spent = SpentNonces(((nonce, NOW + 61) for nonce in nonces), now=NOW)
    assert all(map(spent.may_hold, nonces))


def test_hardly_any_other_is_held_and_none_for_ever() -> None:
    spent = SpentNonces(now=NOW)
    first = [os.urandom(32) for _ in range(20_000)]
    for nonce in first:
        spent.add(nonce, NOW + 61, now=NOW)
    assert sum(spent.may_hold(os.urandom(32)) for _ in range(20_000)) < 20
    for later in (NOW + 62, NOW + 124):
        spent.add(os.urandom(32), later + 61, now=later)
    assert sum(map(spent.may_hold, first)) < 20
