"""What is PostgreSQL's own: several brokers over one database, and what somebody else wrote there."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from agentwrit.broker.clock import Clock, DatabaseTime
from agentwrit.broker.storage.base import EventQuery, Transaction
from agentwrit.broker.storage.postgres import PostgresStore
from agentwrit.broker.storage.postgres_barrier import MAX_AT_ONCE
from agentwrit.broker.storage.postgres_rows import covered_of
from agentwrit.broker.storage.postgres_schema import Opening, open_database
from agentwrit.broker.storage.postgres_writer import MAX_NEWS
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain import audit
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import TamperedRecord, Unavailable
from agentwrit.domain.revocation import Revocation, RevocationKind
from tests import postgres
from tests.domain.records import make_app, make_grant

SEALER = Sealer(b"s" * 32)
ISSUED = Draft(event_type=EventType.TOKEN_ISSUED)


def opening(database_url: str) -> Opening:
    return open_database(database_url, SEALER, "tests")


class CountingTime(DatabaseTime):
    """Counts the answers of the database: each tells the time."""

    count = 0

    def observe(self, now: float, asked_at: float, heard_at: float) -> None:
        self.count += 1
        super().observe(now, asked_at, heard_at)


class Pair:
    """Two brokers' stores over one database, and what each of them announced."""

    def __init__(self, database_url: str, runner: asyncio.Runner) -> None:
        self.url = database_url
        self.runner = runner
        self.stores = [self._open(), self._open()]
        self.announced: list[list[str]] = [[], []]
        for store, names in zip(self.stores, self.announced, strict=True):
            store.listen(partial(remember, names))

    def _open(self) -> PostgresStore:
        opened = opening(self.url)
        return PostgresStore(opened, Clock(opened.time), SEALER)


@pytest.fixture
def pair(database_url: str) -> Iterator[Pair]:
    with asyncio.Runner() as runner:
        made = Pair(database_url, runner)
        yield made
        for store in made.stores:
            runner.run(store.close())


def remember(names: list[str], entries: Sequence[Revocation]) -> None:
    names.extend(entry.id for entry in entries)


def revoke(name: str, transaction: Transaction) -> None:
    now = int(transaction.now)
    transaction.revoke(Revocation(kind=RevocationKind.GRANT, id=name, effective_at=now, last_exp=now + 60))
    transaction.record(ISSUED)


def test_what_another_broker_revoked_is_announced_by_the_time_that_we_have_caught_up(pair: Pair) -> None:
    async def claim() -> None:
        first, second = pair.stores
        for number in range(20):
            await first.write(partial(revoke, f"sid-{number}"))
            assert pair.announced[0][-1] == f"sid-{number}"
            await second.catch_up()
            assert pair.announced[1][-1] == f"sid-{number}"

    pair.runner.run(claim())


def test_what_another_broker_revoked_is_announced_by_a_write_of_ours_too(pair: Pair) -> None:
    async def claim() -> None:
        first, second = pair.stores
        await first.write(lambda t: revoke("theirs", t))
        await second.write(lambda t: revoke("ours", t))
        assert pair.announced[1] == ["theirs", "ours"]

    pair.runner.run(claim())


@pytest.mark.parametrize("how", ["catch_up", "write"])
def test_however_much_others_revoked_it_is_announced_bit_by_bit(pair: Pair, how: str) -> None:
    many = MAX_NEWS + MAX_AT_ONCE + 3
    bits: list[int] = []

    def revoke_many(transaction: Transaction) -> None:
        now = int(transaction.now)
        for number in range(many):
            entry = Revocation(kind=RevocationKind.GRANT, id=f"{number}", effective_at=now, last_exp=now + 60)
            transaction.revoke(entry, replaces=True)

    async def claim() -> None:
        first, second = pair.stores
        await first.write(revoke_many)
        second.listen(lambda entries: bits.append(len(entries)))
        if how == "catch_up":
            await second.catch_up()
        else:
            await second.write(partial(revoke, "ours"))
        theirs = [str(number) for number in range(many)]
        assert pair.announced[1] == (theirs if how == "catch_up" else [*theirs, "ours"])
        assert max(bits) <= MAX_AT_ONCE

    pair.runner.run(claim())


def test_a_thousand_who_catch_up_at_once_ask_the_database_once(pair: Pair) -> None:
    async def claim() -> None:
        opened = opening(pair.url)
        answers = CountingTime(opened.time(), 0, 0)
        names: list[str] = []
        late = PostgresStore(opened._replace(time=answers), Clock(opened.time), SEALER)
        late.listen(partial(remember, names))
        await pair.stores[0].write(partial(revoke, "theirs"))
        await asyncio.gather(*(late.catch_up() for _ in range(1000)))
        await late.close()
        assert (names, answers.count) == (["theirs"], 1)

    pair.runner.run(claim())


def test_units_of_two_brokers_that_run_at_once_form_one_log_and_lose_nothing(pair: Pair) -> None:
    def add(transaction: Transaction) -> None:
        known = transaction.grant("sid-1")
        transaction.put(make_grant() if known is None else known)
        transaction.record(ISSUED)

    async def claim() -> None:
        await asyncio.gather(*(store.write(add) for _ in range(150) for store in pair.stores))
        for store in pair.stores:
            events = await store.read(lambda s: s.events(EventQuery(limit=1000)))
            assert audit.verify(events) == 300

    pair.runner.run(claim())


def test_a_state_that_was_put_back_is_refused_by_whoever_saw_a_later_one(pair: Pair) -> None:
    async def claim() -> None:
        first, second = pair.stores
        [(before,)] = postgres.ask(pair.url, "SELECT state FROM agentwrit.cluster")
        await first.write(lambda t: revoke("theirs", t))
        await second.catch_up()
        postgres.ask(pair.url, "UPDATE agentwrit.cluster SET state = %s", before)
        for refused in (second.catch_up(), second.write(lambda t: revoke("ours", t))):
            with pytest.raises(Unavailable) as refusal:
                await refused
            assert isinstance(refusal.value.__cause__, TamperedRecord)

    pair.runner.run(claim())


def test_a_checkpoint_that_was_put_back_is_held_to_the_newest_whatever_is_committed_after_it(pair: Pair) -> None:
    def covered() -> int:
        [row] = postgres.ask(pair.url, "SELECT state, covered FROM agentwrit.cluster")
        return covered_of(row, SEALER)

    async def claim() -> None:
        first, second = pair.stores
        await first.write(lambda t: t.put_checkpoint(7, "the first 7"))
        postgres.ask(pair.url, "UPDATE agentwrit.checkpoint SET size = 3, note = 'the first 3'")
        await second.write(lambda t: t.put(make_app()))  # on the database
        assert covered() == 7
        await second.write(lambda t: t.record(ISSUED))  # in memory
        assert covered() == 7
        await second.write(lambda t: t.put_checkpoint(8, "the first 8"))
        assert covered() == 8

    pair.runner.run(claim())


@pytest.mark.parametrize("covered", [None, "", "3", "7 00", "nonsense"])
def test_what_somebody_else_says_that_a_checkpoint_covers_is_refused(pair: Pair, covered: str | None) -> None:
    async def claim() -> None:
        [(before,)] = postgres.ask(pair.url, "SELECT covered FROM agentwrit.cluster")
        await pair.stores[1].write(lambda t: t.record(ISSUED))
        for altered in (covered, before):
            postgres.ask(pair.url, "UPDATE agentwrit.cluster SET covered = %s", altered)
            with pytest.raises(Unavailable):
                await pair.stores[0].write(lambda t: t.record(ISSUED))

    pair.runner.run(claim())


@pytest.mark.parametrize("state", ["", "0 0 0 0 00", "nonsense"])
def test_a_state_that_somebody_else_wrote_is_refused(pair: Pair, state: str) -> None:
    async def claim() -> None:
        postgres.ask(pair.url, "UPDATE agentwrit.cluster SET state = %s", state)
        with pytest.raises(Unavailable):
            await pair.stores[0].catch_up()
        with pytest.raises(Unavailable):
            await pair.stores[0].write(lambda t: t.record(ISSUED))

    pair.runner.run(claim())


def test_one_broker_of_two_is_in_charge_until_it_is_closed(pair: Pair) -> None:
    async def claim() -> None:
        first, second = pair.stores
        assert await first.is_in_charge()
        assert not await second.is_in_charge()
        assert await first.is_in_charge()
        await first.close()
        async with asyncio.timeout(10):  # the server hears of it a moment later
            while not await second.is_in_charge():
                await asyncio.sleep(0.01)

    pair.runner.run(claim())


def test_a_unit_that_the_database_refuses_takes_no_other_down(pair: Pair) -> None:
    """In a pipeline it is not known whose fault it was, so the batch is run once more without one."""

    def twice(transaction: Transaction) -> None:
        transaction.put_checkpoint(2**70, "a size that no column holds")

    async def claim() -> None:
        store = pair.stores[0]
        units = [store.write(lambda t: t.record(ISSUED)), store.write(twice), store.write(lambda t: t.record(ISSUED))]
        answers = await asyncio.gather(*units, return_exceptions=True)
        assert [answer is None for answer in answers] == [True, False, True]
        assert await store.read(lambda s: s.event_count()) == 2
        assert store.is_writable()

    pair.runner.run(claim())


def test_two_brokers_that_start_at_once_make_the_schema_once(database_url: str) -> None:
    async def claim() -> list[Opening]:
        return await asyncio.gather(*(asyncio.to_thread(opening, database_url) for _ in range(4)))

    openings = asyncio.run(claim())
    assert len({opened.state for opened in openings}) == 1
    [(epoch,)] = postgres.ask(database_url, "SELECT value FROM agentwrit.meta WHERE name = 'feed_epoch'")
    assert len(epoch) == 32


def test_a_database_whose_clock_jumps_ahead_for_seconds_makes_no_time_that_nobody_can_take_back(
    database_url: str,
) -> None:
    async def claim() -> None:
        opened = opening(database_url)
        clock = Clock.of_broker(opened.time)
        store = PostgresStore(opened, clock, SEALER)
        try:
            await store.write(partial(revoke, "before"))
            before = clock.now()
            asked_at = time.monotonic()
            opened.time.observe(before + 2 * 86_400, asked_at, asked_at + 0.01)  # as its clock says for as long
            assert clock.most_ahead() == 0
            await store.write(partial(revoke, "meanwhile"))
            assert clock.most_ahead() > 86_400
            asked_at = time.monotonic()
            opened.time.observe(before + 1, asked_at, asked_at + 0.01)
            await store.write(partial(revoke, "since"))
            assert clock.now() < before + 60
        finally:
            await store.close()
        assert opening(database_url).state.now < before + 60

    asyncio.run(claim())
