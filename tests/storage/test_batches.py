"""Units that are written together come to what they would come to one after the other.

Each store runs units at once, which puts some of them into one batch; the store in memory runs them one by one, in the
order that their events have in the log.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentwrit.broker.storage.base import Denied, EventQuery, GrantQuery, Row, Snapshot, Transaction
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import NotFound, ScopeViolation
from agentwrit.domain.grant import EndReason, Grant, ended
from agentwrit.domain.idempotency import FirstAnswer
from agentwrit.domain.launch_token import used
from agentwrit.domain.revocation import Revocation, RevocationKind
from tests.domain.records import NOW, make_app, make_grant, make_hop, make_launch_token
from tests.storage.conftest import Subject

NAMES = ("a", "b", "c\0\ufdd0")
UNITS_AT_ONCE = 12
TURNS = 30  # of the event loop, after which the last unit comes

Operation = Callable[[Transaction, str], object]
Work = tuple[list[tuple[str, str]], str]


def _put_grant(transaction: Transaction, name: str) -> object:
    grant = make_grant(sid=name, subject=f"agent {name}", jti=f"jti {transaction.head.sequence}")
    transaction.put(grant)
    return grant


def _delegate(transaction: Transaction, name: str) -> object:
    below = make_grant(sid=f"below {name}", subject=f"agent {name}", chain=(make_hop(name),), task_id=name)
    transaction.put(below)
    return below


def _end_grant(transaction: Transaction, name: str) -> object:
    grant = transaction.grant(name)
    if grant is not None:
        transaction.put(ended(grant, EndReason.RELEASED, transaction.now))
    return grant


def _use_launch_token(transaction: Transaction, name: str) -> object:
    token_hash = name.encode().ljust(32)
    token = transaction.launch_token(token_hash) or make_launch_token(token_hash=token_hash, max_uses=9)
    transaction.put(used(token))
    return token.uses


def _answer(transaction: Transaction, name: str) -> object:
    key = name.encode().ljust(32)
    known = transaction.first_answer(key)
    answer = FirstAnswer(key=key, request=key, grant=make_grant(sid=name), expires_at=NOW + transaction.head.sequence)
    transaction.put(answer)
    return known


def _revoke(transaction: Transaction, name: str) -> object:
    known = transaction.revocation(RevocationKind.GRANT, name)
    last_exp = NOW + 300 + transaction.head.sequence
    transaction.revoke(Revocation(kind=RevocationKind.GRANT, id=name, effective_at=NOW, last_exp=last_exp))
    return known


OPERATIONS: dict[str, Operation] = {
    "put a grant": _put_grant,
    "put a grant below": _delegate,
    "end a grant": _end_grant,
    "read a grant": lambda t, name: t.grant(name),
    "live grants of a subject": lambda t, name: t.grants(GrantQuery(live_at=t.now, subject=f"agent {name}")),
    "live grants below": lambda t, name: _sids(t.grants(GrantQuery(live_at=t.now, falling_with=((name, "b"), ())))),
    "what was delegated to an agent": lambda t, name: _sids(
        t.grants(GrantQuery(falling_with=((), (f"agent {name}",))))
    ),
    "all grants, as a page": lambda t, name: _sids(t.grant_page(GrantQuery(live_at=t.now), behind=0, limit=99).grants),
    "live delegations": lambda t, name: t.live_delegations(name, in_tree=True, now=t.now, limit=3),
    "the first grant of a task": lambda t, name: t.grants(GrantQuery(task_id=name, limit=1)),
    "spend a nonce": lambda t, name: t.spend_nonce(name.encode(), NOW + 60),
    "use a launch token": _use_launch_token,
    "answer for the first time": _answer,
    "revoke": _revoke,
    "put an app": lambda t, name: t.put(make_app(app_id=name, client_id=name, name=name)),
    "read an app": lambda t, name: t.app(name),
    "read an app by its client": lambda t, name: t.app_by_client_id(name),
    "count events": lambda t, name: t.event_count(),
    "the head of the feed": lambda t, name: t.feed_head(),
}

FOR_THE_DATABASE = {"put an app", "read an app by its client", "count events"}


def _sids(grants: Sequence[Grant]) -> list[str]:
    return sorted(grant.sid for grant in grants)


def units(names: Collection[str]) -> st.SearchStrategy[Work]:
    operations = st.tuples(st.sampled_from(sorted(names)), st.sampled_from(NAMES))
    ends = st.sampled_from(["done", "done", "done", "failed", "denied"])
    return st.tuples(st.lists(operations, min_size=1, max_size=4), ends)


def batches(names: Collection[str]) -> st.SearchStrategy[list[Work]]:
    return st.lists(units(names), min_size=1, max_size=UNITS_AT_ONCE)


def unit(number: int, work: Sequence[tuple[str, str]], end: str) -> Callable[[Transaction], list[object]]:
    """A unit of work whose event says which it was, if anything is left of it."""
    event = Draft(event_type=EventType.TOKEN_ISSUED, data={"unit": number})

    def run(transaction: Transaction) -> list[object]:
        found = [OPERATIONS[name](transaction, at) for name, at in work]
        if end == "failed":
            raise NotFound("it failed")
        if end == "denied":
            raise Denied(ScopeViolation("it was denied"), event)
        transaction.record(event)
        return found

    return run


def state(snapshot: Snapshot, start: int) -> list[object]:
    """What is there, and which events there are behind `start`."""
    return [
        snapshot.events(EventQuery(after=start, limit=1000)),
        snapshot.grants(GrantQuery()),
        snapshot.apps(),
        snapshot.feed(0, 10_000),
        *(snapshot.launch_token(name.encode().ljust(32)) for name in NAMES),
        *(snapshot.first_answer(name.encode().ljust(32)) for name in NAMES),
    ]


@pytest.fixture
def reference(subject: Subject) -> Subject:
    return Subject(MemoryStore(subject.time.clock()), subject._runner, subject.time)


@pytest.mark.parametrize("subject", ["sqlite", "postgres"], indirect=True)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=batches(OPERATIONS.keys() - FOR_THE_DATABASE) | batches(OPERATIONS),
    turns=st.just([0] * UNITS_AT_ONCE)
    | st.lists(st.integers(0, TURNS), min_size=UNITS_AT_ONCE, max_size=UNITS_AT_ONCE),
)
def test_units_at_once_come_to_what_they_would_one_after_the_other(
    subject: Subject, reference: Subject, batch: list[Work], turns: list[int]
) -> None:
    """Also those that come while others are being committed."""
    # What examples leave behind is the next ones' to find, in both stores.
    start = reference.read(lambda s: s.event_head())
    results = subject.run(at_once(subject, batch, turns=turns))
    events = subject.read(lambda s: s.events(EventQuery(after=start, limit=1000)))
    order = [event.data["unit"] for event in events]
    assert sorted(order) == [number for number, (_, end) in enumerate(batch) if end != "failed"]
    for number in order:
        [expected] = reference.run(at_once(reference, [batch[number]], first=number))
        assert same(results[number], expected)
    assert all(isinstance(results[number], NotFound) for number in set(range(len(batch))) - set(order))
    assert subject.read(lambda s: state(s, start)) == reference.read(lambda s: state(s, start))


async def at_once(
    subject: Subject, batch: Sequence[Work], *, first: int = 0, turns: Sequence[int] = (0,)
) -> list[object]:
    """What units come to, each of which comes after so many turns of the event loop."""

    async def write(number: int, work: Work, turns: int) -> object:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await subject.store.write(unit(number, *work))

    writes = map(write, range(first, first + len(batch)), batch, turns)
    return await asyncio.gather(*writes, return_exceptions=True)


def same(result: object, expected: object) -> bool:
    return type(result) is type(expected) if isinstance(expected, Exception) else result == expected


def test_what_a_unit_is_known_to_read_changes_nothing_but_the_way_there(subject: Subject) -> None:
    grant = make_grant()
    subject.write(lambda t: t.put(grant))
    reads = [Row("grants", "sid-1"), Row("grants", "none"), Row("nonces", b"n"), Row("apps", "a")]

    def look(transaction: Transaction) -> object:
        spent = transaction.spend_nonce(b"n", NOW + 60)
        return spent, transaction.grant("sid-1"), transaction.grant("none"), transaction.launch_token(b"t")

    found = [subject.run(subject.store.write(look, reads=each)) for each in (reads, reads, ())]
    assert found == [(spent, grant, None, None) for spent in (True, False, False)]


def test_a_unit_that_never_has_what_it_reads_is_run_all_the_same(subject: Subject) -> None:
    def spend_many(transaction: Transaction) -> list[bool]:
        return [transaction.spend_nonce(os.urandom(8), NOW + 60) for _ in range(30)]

    assert subject.write(spend_many) == [True] * 30


def test_units_that_are_taken_back_halfway_leave_the_others_whole(subject: Subject) -> None:
    def spend(transaction: Transaction) -> bool:
        return transaction.spend_nonce(b"n", NOW + 60)

    def spend_and_fail(transaction: Transaction) -> None:
        spend(transaction)
        transaction.put(make_grant())
        raise NotFound("it failed")

    async def at_once() -> list[object]:
        writes: list[Awaitable[object]] = [subject.store.write(spend_and_fail), subject.store.write(spend)]
        return await asyncio.gather(*writes, subject.store.write(spend), return_exceptions=True)

    failed, *spent = subject.run(at_once())
    assert isinstance(failed, NotFound)
    assert sorted(map(bool, spent)) == [False, True]
    assert subject.read(lambda s: s.grant("sid-1")) is None


def test_a_nonce_is_spent_once_also_where_a_unit_between_needs_the_database(subject: Subject) -> None:
    def spend(transaction: Transaction) -> bool:
        return transaction.spend_nonce(b"n", NOW + 60)

    def look_and_count(transaction: Transaction) -> int:
        transaction.grant("none")
        return transaction.event_count()

    async def at_once() -> list[object]:
        units: list[Callable[[Transaction], object]] = [spend, look_and_count, spend]
        return await asyncio.gather(*map(subject.store.write, units))

    first, _, second = subject.run(at_once())
    assert sorted([first, second]) == [False, True]
