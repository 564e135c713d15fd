"""A SQLite store that lends its database: who writes when, and what becomes of a borrower that is gone."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentwrit.broker.storage.base import EventQuery, Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.broker.storage.sqlite_loan import Borrower, Loan, Recalled, Returned
from agentwrit.domain import audit
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import Unavailable
from agentwrit.domain.revocation import Revocation, RevocationKind
from tests.domain.records import NOW, make_app
from tests.storage.conftest import Time

SEALER = Sealer(b"s" * 32)
ISSUED = Draft(event_type=EventType.TOKEN_ISSUED)


def revoke(name: str) -> Callable[[Transaction], str]:
    def unit(transaction: Transaction) -> str:
        entry = Revocation(kind=RevocationKind.GRANT, id=name, effective_at=NOW, last_exp=NOW + 60)
        transaction.revoke(entry)
        transaction.record(ISSUED)
        return name

    return unit


class Lender:
    """A store, who borrows its database, and the names that the store announced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()
        self.borrower = Borrower(path, SEALER)
        self.announced: list[str] = []
        self.store.listen(lambda entries: self.announced.extend(entry.id for entry in entries))

    def open(self) -> None:
        self.store = SqliteStore(self.path, Time().clock(), SEALER)

    async def lend(self, name: str) -> str:
        return await self.store.lend(lambda loan: self.borrower.commit(loan, revoke(name)))

    async def check(self, events: int) -> None:
        """That the log is whole and has so many events, also for whoever opens the store next."""
        for _ in range(2):
            found = await self.store.read(lambda snapshot: snapshot.events(EventQuery(limit=1000)))
            assert audit.verify(found) == events
            await self.store.close()
            self.open()


Run = Callable[[Callable[[Lender], Any]], None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(claim: Callable[[Lender], Any]) -> None:
        async def main() -> None:
            async with asyncio.timeout(60):
                lender = Lender(tmp_path / "agentwrit.db")
                try:
                    await claim(lender)
                finally:
                    lender.borrower.close()
                    await lender.store.close()

        asyncio.run(main())

    return run


def test_what_a_borrower_commits_is_announced_and_gone_on_from(run: Run) -> None:
    async def claim(lender: Lender) -> None:
        for number in range(300):  # more than a tile of the tree over the log
            if number % 3:
                await lender.store.write(revoke(f"{number}"))
            else:
                assert await lender.lend(f"{number}") == f"{number}"
        assert lender.announced == [f"{number}" for number in range(300)]
        await lender.check(300)

    run(claim)


def test_units_and_loans_that_come_together_lose_nothing_and_wait_for_a_turn_each(run: Run) -> None:
    async def claim(lender: Lender) -> None:
        async def many(ask: Callable[[str], Any], kind: str) -> None:
            for number in range(20):
                await ask(f"{kind}-{number}")

        async def through_the_database(name: str) -> None:
            def unit(transaction: Transaction) -> None:
                transaction.put(make_app(app_id=name, client_id=name, name=name))
                transaction.record(ISSUED)

            await lender.store.write(unit)

        await asyncio.gather(
            many(lender.lend, "lent"),
            many(lambda name: lender.store.write(revoke(name)), "written"),
            many(through_the_database, "app"),
        )
        assert len(lender.announced) == len(set(lender.announced)) == 40
        # Neither of the two was done before the other had begun.
        kinds = [name.partition("-")[0] for name in lender.announced]
        assert kinds.index("written") < 20
        assert kinds.index("lent") < 20
        await lender.check(60)

    run(claim)


def test_a_borrower_runs_on_while_what_it_has_run_is_committed(run: Run) -> None:
    async def claim(lender: Lender) -> None:
        names: list[str] = []

        def unit(transaction: Transaction) -> str:
            # What was run before is seen, although it may not be in the database yet.
            for name in names:
                assert transaction.revocation(RevocationKind.GRANT, name) is not None
            names.append(f"{len(names)}")
            return revoke(names[-1])(transaction)

        async def until(last: str) -> None:
            def use(loan: Loan) -> tuple[str, Returned]:
                return lender.borrower.commit(loan, unit, is_last=lambda name: name == last)

            assert await lender.store.lend(use) == last
            assert lender.announced == names

        for last in ("2", "3", "40"):
            await until(last)
        await lender.check(41)

    run(claim)


def test_what_was_committed_before_a_borrower_failed_stays(run: Run) -> None:
    async def claim(lender: Lender) -> None:
        names = iter(("first", "second", ""))

        def unit(transaction: Transaction) -> str:
            name = next(names)
            if not name:
                raise ValueError("a defect")
            return revoke(name)(transaction)

        with pytest.raises(Unavailable):
            await lender.store.lend(lambda loan: lender.borrower.commit(loan, unit, is_last=lambda name: False))
        await lender.store.write(revoke("ours"))
        assert lender.announced == ["first", "second", "ours"]
        await lender.check(3)

    run(claim)


@pytest.mark.parametrize("has_committed", [True, False])
def test_what_a_borrower_has_committed_who_does_not_tell_is_found_out(run: Run, has_committed: bool) -> None:
    async def claim(lender: Lender) -> None:
        def use(loan: Loan) -> tuple[str, Returned]:
            if has_committed:
                lender.borrower.commit(loan, revoke("untold"))
            raise EOFError("it was killed")

        for _ in range(3):
            with pytest.raises(Unavailable) as caught:
                await lender.store.lend(use)
            assert isinstance(caught.value.__cause__, EOFError)
            await lender.store.write(revoke("ours"))
        assert lender.announced == ["untold", "ours"] * 3 if has_committed else ["ours"] * 3
        assert await lender.lend("told") == "told"
        await lender.check(7 if has_committed else 4)

    run(claim)


def test_a_store_that_cannot_find_out_writes_nothing_until_it_can(run: Run) -> None:
    async def claim(lender: Lender) -> None:
        def set_head(value: str) -> str:
            with sqlite3.connect(lender.path) as connection:
                [before] = connection.execute("SELECT value FROM meta WHERE name = 'audit_head'").fetchone()
                connection.execute("UPDATE meta SET value = ? WHERE name = 'audit_head'", (value,))
            connection.close()
            return str(before)

        genuine: list[str] = []

        def use(loan: Loan) -> tuple[str, Returned]:
            lender.borrower.commit(loan, revoke("untold"))
            genuine.append(set_head("somebody else's"))
            raise EOFError("it was killed")

        with pytest.raises(Unavailable):
            await lender.store.lend(use)
        with pytest.raises(Unavailable):
            await lender.store.write(revoke("too early"))
        with pytest.raises(Unavailable):
            await lender.lend("too early")
        assert not lender.store.is_writable()
        set_head(genuine[0])
        await lender.store.write(revoke("ours"))
        assert lender.announced == ["untold", "ours"]
        assert lender.store.is_writable()
        await lender.check(2)

    run(claim)


async def a_loan_that_is_over(lender: Lender) -> Loan:
    """What a borrower was told who has committed."""
    loans: list[Loan] = []

    def use(loan: Loan) -> tuple[str, Returned]:
        loans.append(loan)
        return lender.borrower.commit(loan, revoke("lent"))

    await lender.store.lend(use)
    return loans[0]


def test_nobody_commits_whom_a_store_lent_the_database_that_is_gone(run: Run) -> None:
    async def claim(lender: Lender) -> None:
        old = await a_loan_that_is_over(lender)
        await lender.store.close()
        lender.open()
        now = old._replace(head=lender.store._ground.head, feed_head=1)
        with pytest.raises(Recalled):
            lender.borrower.commit(now, revoke("of another time"))
        assert await lender.lend("of this one") == "of this one"
        await lender.check(2)

    run(claim)


def test_nobody_commits_on_a_log_that_has_gone_on(run: Run) -> None:
    async def claim(lender: Lender) -> None:
        old = await a_loan_that_is_over(lender)
        with pytest.raises(Recalled):
            lender.borrower.commit(old, revoke("once more"))
        await lender.check(1)

    run(claim)


def test_a_store_that_is_closed_lends_nothing(run: Run) -> None:
    async def claim(lender: Lender) -> None:
        await lender.store.close()
        with pytest.raises(Unavailable):
            await lender.lend("late")
        lender.open()

    run(claim)
