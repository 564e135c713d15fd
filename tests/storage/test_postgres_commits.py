"""Commits between brokers and their server: whose answer is lost, whose time is ahead, and who knows of them when."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

import pytest

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage.base import Transaction
from agentwrit.broker.storage.postgres import PostgresStore
from agentwrit.domain.errors import Unavailable
from tests.storage.conftest import Time
from tests.storage.relay import Relay
from tests.storage.test_postgres import ISSUED, SEALER, opening, remember, revoke

COMMIT: Final = b"COMMIT\0"  # a whole statement, as it is sent


@contextlib.asynccontextmanager
async def opened(url: str, *, through: str | None = None, clock: Clock | None = None) -> AsyncIterator[PostgresStore]:
    """A store. `through`: the URL that its connections are made to from now on."""
    found = opening(url)
    store = PostgresStore(found._replace(url=through or url), clock or Clock(found.time), SEALER)
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("is_known_connection", [False, True])
def test_a_unit_whose_commit_was_done_and_not_answered_is_not_done_again(
    database_url: str, *, is_known_connection: bool
) -> None:
    async def claim() -> None:
        async with Relay(database_url) as relay, opened(database_url, through=relay.url) as store:
            if is_known_connection:
                await store.write(lambda transaction: transaction.record(ISSUED))
            before = await store.read(lambda snapshot: (snapshot.event_head(), snapshot.feed_head()))
            relay.cut_behind(COMMIT)
            with pytest.raises(Unavailable) as refusal:
                await store.write(partial(revoke, "sid-of-the-unit"))
            assert (refusal.value.cause, relay.cuts) == ("outcome_unknown", 1)
            assert "may have been done" in refusal.value.detail
            assert not store.is_writable()
            after = await store.read(lambda snapshot: (snapshot.event_head(), snapshot.feed_head()))
            assert after == (before[0] + 1, before[1] + 1)
            await store.write(lambda transaction: transaction.record(ISSUED))
            assert store.is_writable()
            assert await store.read(lambda snapshot: snapshot.event_head()) == after[0] + 1

    asyncio.run(claim())


def test_who_waited_behind_a_commit_that_was_not_answered_is_refused_and_nothing_of_theirs_is_done(
    database_url: str,
) -> None:
    async def claim() -> None:
        async with Relay(database_url) as relay, opened(database_url, through=relay.url) as store:
            relay.cut_behind(COMMIT)
            first = asyncio.ensure_future(store.write(partial(revoke, "first")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # its batch has begun
            behind = asyncio.ensure_future(store.write(partial(revoke, "behind")))
            outcomes = await asyncio.gather(first, behind, return_exceptions=True)
            assert [outcome.cause for outcome in outcomes if isinstance(outcome, Unavailable)] == [
                "outcome_unknown"
            ] * 2
            feed = await store.read(lambda snapshot: [entry.id for entry in snapshot.feed(1, snapshot.feed_head())])
            assert feed in (
                ["first"],
                ["first", "behind"],
            )  # as one batch or as two: what was refused is not done later
            await store.write(partial(revoke, "later"))
            assert await store.read(lambda snapshot: snapshot.feed_head()) == len(feed) + 1

    asyncio.run(claim())


def test_no_unit_has_an_earlier_time_than_what_another_broker_has_committed(database_url: str) -> None:
    def time(transaction: Transaction) -> float:
        transaction.record(ISSUED)
        return transaction.now

    async def claim() -> None:
        ahead, behind = Time(), Time()
        ahead.wall += 3600
        clock = behind.clock()
        async with (
            opened(database_url, clock=clock) as late,
            opened(database_url, clock=ahead.clock()) as early,
        ):
            first = await early.write(time)
            assert first >= behind.wall + 3600
            assert await late.write(time) >= first
            ahead.wall += 60
            ahead.monotonic += 60
            second = await early.write(time)
            assert second > first
            # Whoever only asks what is dead goes by that time, too.
            assert clock.now() < second
            await late.catch_up()
            assert clock.now() >= second

    asyncio.run(claim())


def test_who_comes_while_the_database_is_asked_waits_for_what_it_is_asked_next(database_url: str) -> None:
    async def claim() -> None:
        names: list[str] = []
        async with (
            opened(database_url) as other,
            Relay(database_url) as relay,
            opened(database_url, through=relay.url) as store,
        ):
            store.listen(partial(remember, names))
            await store.catch_up()  # it is connected
            relay.hold()
            early = asyncio.ensure_future(store.catch_up())
            await relay.has_held.wait()  # the database has answered: nothing is revoked
            await other.write(partial(revoke, "theirs"))
            late = asyncio.ensure_future(store.catch_up())
            await asyncio.sleep(0)  # it waits
            known: list[list[str]] = []
            for waiting in (early, late):
                waiting.add_done_callback(lambda _: known.append(list(names)))
            relay.let_go()
            await asyncio.gather(early, late)
            assert known == [[], ["theirs"]]

    asyncio.run(claim())
