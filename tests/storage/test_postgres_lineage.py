"""Whoever has seen an event of a history never goes on with another: the rules, on a real server that is promoted."""

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import postgres_alone, postgres_lineage, postgres_settling
from agentwrit.broker.storage.base import Promotion, Transaction
from agentwrit.broker.storage.postgres import PostgresStore
from agentwrit.broker.storage.postgres_lineage import History, Lineage, Seen, Survey
from agentwrit.broker.storage.postgres_rows import State
from agentwrit.broker.storage.postgres_schema import open_database
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import ConfigurationError, TamperedRecord, Unavailable
from tests import postgres
from tests.postgres import PostgresServer

SEALER = Sealer(b"s" * 32)
ISSUED = Draft(event_type=EventType.TOKEN_ISSUED)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    own = PostgresServer()
    try:
        yield own
    finally:
        own.close()


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    with postgres.database(server.url) as made:
        yield made


class Member:
    """A broker's store, and what it went on with after promotions."""

    def __init__(self, url: str, memory_in: Path | None = None, *, goes_on: bool = True) -> None:
        self.promotions: list[bool] = []
        self.opening = open_database(url, SEALER, "tests", memory_in=memory_in)
        clock = Clock(self.opening.time)
        self.store = PostgresStore(self.opening, clock, SEALER, self._go_on if goes_on else None)

    def _go_on(self, transaction: Transaction, promotion: Promotion) -> None:
        assert promotion.before < promotion.since
        self.promotions.append(promotion.is_lossless)
        transaction.record(ISSUED)

    async def add(self) -> None:
        await self.store.write(lambda transaction: transaction.record(ISSUED))

    async def count(self) -> int:
        return await self.store.read(lambda snapshot: snapshot.event_head())

    async def everything(self) -> None:
        await self.store.catch_up()
        await self.count()
        await self.add()

    async def refuses(self, reason: str) -> None:
        """Each of its connections does, and says why."""
        for work in (self.store.catch_up(), self.count(), self.add(), self.store.is_in_charge()):
            with pytest.raises(Unavailable) as refusal:
                await work
            cause = refusal.value.__cause__
            assert isinstance(cause, TamperedRecord)
            assert reason in str(cause)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()


def lose(server: PostgresServer, work: Callable[[], Awaitable[Any]], runner: asyncio.Runner) -> None:
    """Do something that the server forgets: what it had before is put back."""
    server.stop()
    kept = server.directory / "kept"
    shutil.copytree(server.data, kept)
    server.start()

    async def done() -> None:
        await work()

    runner.run(done())
    server.stop("immediate")
    for file in kept.rglob("*"):
        if file.is_file():
            shutil.copyfile(file, server.data / file.relative_to(kept))
    shutil.rmtree(kept)
    server.start()


def restored(url: str) -> None:
    """Tell a store that it was put back."""
    postgres_alone.run_alone(url, SEALER, "tests", lambda transaction: transaction.record(ISSUED), is_restored=True)


def test_one_of_all_that_run_goes_on_after_a_promotion_and_the_others_with_it(server: PostgresServer, url: str) -> None:
    async def claim() -> None:
        async with Member(url) as first, Member(url) as second, Member(url, goes_on=False) as third:
            members = first, second, third
            for member in members:
                await member.everything()
            await asyncio.to_thread(server.replay)
            await asyncio.gather(first.everything(), second.everything())
            await third.everything()
            assert first.promotions + second.promotions == [False]
            assert await first.count() == 7

    asyncio.run(claim())


def test_a_broker_that_saw_what_a_failover_lost_never_goes_on_and_the_others_do(
    server: PostgresServer, url: str, tmp_path: Path
) -> None:
    with asyncio.Runner() as runner:
        knowing, other = Member(url, tmp_path / "knowing"), Member(url, tmp_path / "other")

        async def begin() -> None:
            for member in (knowing, other):
                await member.everything()
            await other.store.close()

        async def claim() -> None:
            await knowing.refuses("acknowledged are lost")
            async with Member(url, tmp_path / "other") as again:
                await again.store.settle()
                assert knowing.promotions + again.promotions == [False]
                for _ in range(3):  # numbers that the lost history had reached, and beyond
                    await again.everything()
                    await knowing.refuses("acknowledged are lost")
            await knowing.store.close()
            # All that it had acknowledged has ended, so it may begin anew.
            async with Member(url, tmp_path / "knowing") as anew:
                assert anew.opening.is_settled
                await anew.everything()

        runner.run(begin())
        lose(server, knowing.add, runner)
        server.replay()
        runner.run(claim())


async def has_ended(member: Member) -> None:
    """Wait until it has let all that was granted end."""
    while member.promotions != [False]:
        with pytest.raises(Unavailable):
            await member.store.catch_up()
        await asyncio.sleep(0.01)


def test_whoever_saw_what_is_lost_lets_all_end_even_if_others_vouched_for_it(
    server: PostgresServer, url: str, tmp_path: Path
) -> None:
    with asyncio.Runner() as runner:
        knowing, mistaken = Member(url, tmp_path / "knowing"), Member(url, tmp_path / "mistaken")

        async def begin() -> None:
            for member in (knowing, mistaken):
                await member.everything()

        async def sees_that_the_server_waits() -> None:
            while not (seen := mistaken.opening.lineage.seen) or not seen.is_synchronous:
                await mistaken.store.catch_up()  # a session learns of a reload when it comes to it

        async def claim() -> None:
            await mistaken.everything()
            assert mistaken.promotions == [True]
            await has_ended(knowing)
            await knowing.refuses("acknowledged are lost")
            await mistaken.everything()
            for member in (knowing, mistaken):
                await member.store.close()
            assert (knowing.promotions, mistaken.promotions) == ([False], [True])

        runner.run(begin())
        postgres.ask(server.url, "ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (one, other)'")
        postgres.ask(server.url, "SELECT pg_reload_conf()")
        try:
            runner.run(sees_that_the_server_waits())
        finally:
            postgres.ask(server.url, "ALTER SYSTEM RESET synchronous_standby_names")
            postgres.ask(server.url, "SELECT pg_reload_conf()")
        lose(server, knowing.add, runner)
        server.replay()
        runner.run(claim())


def test_whoever_remembers_what_is_lost_lets_all_end_when_it_starts_and_goes_on(
    server: PostgresServer, url: str, tmp_path: Path
) -> None:
    with asyncio.Runner() as runner:

        async def add() -> None:
            async with Member(url, tmp_path) as knowing:
                await knowing.everything()

        async def claim() -> None:
            async with Member(url, tmp_path) as knowing:
                assert not knowing.opening.is_settled
                await knowing.store.settle()
                assert knowing.promotions == [False]
                await knowing.everything()
            async with Member(url, tmp_path) as again:  # nothing of what was seen then can be alive
                assert again.opening.is_settled
                await again.everything()

        runner.run(add())
        lose(server, add, runner)
        server.replay()
        runner.run(claim())


def test_a_database_that_was_put_back_as_it_was_is_refused_by_whoever_remembers_more_until_it_was_told(
    server: PostgresServer, url: str, tmp_path: Path
) -> None:
    """Its timeline is the same, so nobody else can know."""
    with asyncio.Runner() as runner:
        knowing = Member(url, tmp_path)
        runner.run(knowing.everything())
        lose(server, knowing.add, runner)
        runner.run(knowing.refuses("the database was put back"))
        runner.run(knowing.store.close())
        with pytest.raises(ConfigurationError, match="store restored"):
            Member(url, tmp_path)
        restored(url)

        async def claim() -> None:
            async with Member(url, tmp_path) as restored:
                await restored.everything()

        runner.run(claim())


def test_whoever_remembers_nothing_waits_for_another_that_might_know_that_nothing_is_lost(
    server: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_settling, "VOUCHER_SECONDS", 3600)
    monkeypatch.setattr(postgres_settling, "ANSWER_SECONDS", 0.2)

    async def claim() -> None:
        async with Member(url) as before:
            await before.everything()
            await asyncio.to_thread(server.replay)
            async with Member(url) as fresh:
                for work in (fresh.store.catch_up(), fresh.count(), fresh.add()):
                    with pytest.raises(Unavailable):
                        await work
                monkeypatch.setattr(postgres_settling, "ANSWER_SECONDS", 30)
                settling = asyncio.create_task(fresh.store.settle())
                await before.everything()
                await settling
                await fresh.everything()
                assert (before.promotions, fresh.promotions) == ([False], [])

    asyncio.run(claim())


def test_if_none_comes_it_goes_on_and_takes_commits_for_lost(
    server: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_settling, "VOUCHER_SECONDS", 0)

    async def claim() -> None:
        async with Member(url) as before:
            await before.everything()
        await asyncio.to_thread(server.replay)
        async with Member(url) as fresh:
            await fresh.everything()
            assert fresh.promotions == [False]

    asyncio.run(claim())


class Hanging(Member):
    """One that hangs while it settles, until it is told to go on."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.is_hanging, self.is_to_go_on = threading.Event(), threading.Event()

    def _go_on(self, transaction: Transaction, promotion: Promotion) -> None:
        self.is_hanging.set()
        self.is_to_go_on.wait()
        super()._go_on(transaction, promotion)


def test_a_broker_that_hangs_while_it_settles_keeps_no_other_from_it(
    server: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_alone, "SETTLING_IDLE_MS", 500)

    async def claim() -> None:
        async with Member(url) as other, Hanging(url) as hanging:
            await other.everything()
            await hanging.everything()
            await asyncio.to_thread(server.replay)
            hung = asyncio.create_task(hanging.store.catch_up())
            await asyncio.to_thread(hanging.is_hanging.wait)
            while not other.promotions:
                with suppress(Unavailable):
                    await other.everything()
            hanging.is_to_go_on.set()
            await asyncio.wait([hung])
            assert isinstance(hung.exception(), Unavailable)
            await hanging.everything()
            assert await other.count() == await hanging.count()

    asyncio.run(claim())


def test_a_copy_is_refused_until_it_was_told_that_it_is_one(server: PostgresServer, url: str) -> None:
    """It is the same server, and the same tables to the byte."""

    async def begin() -> None:
        async with Member(url) as original:
            await original.everything()

    asyncio.run(begin())
    name = url.rpartition("/")[2]
    postgres.ask(server.url, f"CREATE DATABASE {name}_copy TEMPLATE {name}")
    with pytest.raises(ConfigurationError, match="is a copy"):
        Member(f"{url}_copy")

    async def claim() -> None:
        restored(f"{url}_copy")
        for each in (url, f"{url}_copy"):
            async with Member(each) as member:
                await member.everything()

    asyncio.run(claim())


@pytest.mark.parametrize("history", ["", "x", "1/1/1 1 0.0 00"])
def test_a_history_that_somebody_else_wrote_is_refused(url: str, history: str) -> None:
    async def claim() -> None:
        async with Member(url) as member:
            await member.everything()
            postgres.ask(url, "UPDATE agentwrit.cluster SET history = %s", history)
            await member.refuses("altered outside the broker")

    asyncio.run(claim())
    with pytest.raises(TamperedRecord):
        Member(url)


# -- who vouches ------------------------------------------------------------------------------------------------------

SEEN = State(7, "a" * 64, 3, 1000.0)


def survey(**changes: Any) -> Survey:
    """What a server says on whose timeline everything is as it was seen."""
    history = History("1/2/3", 1)
    found = Survey(False, "1/2/3", 1, False, 1001.0, SEEN, history, history.sealed(SEALER), SEEN.hash, 1)
    return found._replace(**changes)


@pytest.mark.parametrize(
    ("seen", "now", "vouches", "knows_of_loss"),
    [
        (None, 1001.0, False, False),
        (Seen(SEEN, is_synchronous=True), 1001.0, True, False),
        (Seen(SEEN, is_synchronous=True), 1300.0, True, False),
        (Seen(SEEN, is_synchronous=True), 1301.0, False, False),
        (Seen(SEEN, is_synchronous=False), 1001.0, False, True),
        (Seen(SEEN, is_synchronous=False), 1301.0, False, False),
    ],
)
def test_only_who_saw_the_server_wait_for_its_standbys_not_long_ago_vouches(
    seen: Seen | None, now: float, vouches: bool, knows_of_loss: bool
) -> None:
    lineage, found = Lineage(SEALER, seen), survey(now=now)
    assert (lineage.vouches(found), lineage.knows_of_loss(found)) == (vouches, knows_of_loss)


@pytest.mark.parametrize(
    ("seen_on", "settled_on", "ended_at", "lost"),
    [
        (1, 2, 0.0, True),
        (1, 2, 1000.0, True),
        (1, 2, 1000.5, False),
        (2, 2, 0.0, False),
        (2, 1, 0.0, True),
        (2, 1, 1000.5, False),
        (3, 1, 0.0, False),
        (0, 2, 0.0, False),
        (0, 1, 0.0, False),
    ],
)
def test_what_was_seen_is_lost_if_a_promotion_came_since_and_nothing_has_ended_for_it(
    seen_on: int, settled_on: int, ended_at: float, lost: bool
) -> None:
    lineage = Lineage(SEALER, Seen(SEEN, timeline=seen_on))
    found = survey(state=SEEN._replace(sequence=6), timeline=2, history=History("1/2/3", settled_on, ended_at))
    with pytest.raises(postgres_lineage.OtherHistory):
        lineage.admit(found, lineage.seen)
    assert lineage.lost == (lineage.seen if lost else None)


def test_a_primary_that_a_standby_took_over_from_is_told_from_a_database_that_was_put_back() -> None:
    lineage = Lineage(SEALER, Seen(SEEN, timeline=2))
    for state in (SEEN, SEEN._replace(sequence=6, hash="b" * 64)):
        with pytest.raises(postgres_lineage.OtherHistory, match=r"a standby took over from it\. Fence it"):
            lineage.admit(survey(state=state), lineage.seen)
    assert lineage.lost is None


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, None),
        ({"state": SEEN._replace(sequence=9, hash="b" * 64, feed_head=4)}, None),
        ({"state": SEEN._replace(sequence=99, hash="b" * 64), "found": None, "first": 8}, None),
        ({"is_standby": True}, postgres_lineage.NotThePrimary),
        ({"system": "1/2/4"}, postgres_lineage.OtherSystem),
        ({"timeline": 2}, postgres_lineage.Unsettled),
        ({"history": History("1/2/3", 2)}, postgres_lineage.OtherSystem),
        ({"state": SEEN._replace(sequence=6)}, postgres_lineage.OtherHistory),
        ({"state": SEEN._replace(sequence=9, feed_head=2)}, postgres_lineage.OtherHistory),
        ({"state": SEEN._replace(hash="b" * 64)}, postgres_lineage.OtherHistory),
        ({"state": SEEN._replace(sequence=9), "found": "b" * 64}, postgres_lineage.OtherHistory),
        ({"state": SEEN._replace(sequence=9), "found": None}, postgres_lineage.OtherHistory),
        ({"state": SEEN._replace(sequence=9), "found": None, "timeline": 2}, postgres_lineage.OtherHistory),
    ],
)
def test_a_connection_is_used_only_if_it_leads_to_what_was_seen(
    changes: dict[str, Any], refused: type[Exception] | None
) -> None:
    lineage = Lineage(SEALER, Seen(SEEN))
    found = survey(**changes)
    if refused is None:
        lineage.admit(found, lineage.seen)
        assert lineage.seen == Seen(found.state, timeline=1)
        assert lineage.text == found.text
    else:
        with pytest.raises(refused):
            lineage.admit(found, lineage.seen)
        assert (lineage.seen, lineage.text) == (Seen(SEEN), "")
