"""Units of work outside of batches: each in a transaction and on a connection of its own, however long it takes.

One is for a database that no broker uses. The other settles a store whose server was promoted: the first process that
may do so does it, and no other.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import psycopg

from agentwrit.broker.storage import postgres_lineage, postgres_migration, postgres_rows, postgres_schema, sql_log
from agentwrit.broker.storage.base import GoOn, Promotion, Snapshot, Transaction
from agentwrit.broker.storage.postgres_lineage import History, Lineage, Survey
from agentwrit.broker.storage.postgres_link import Link, reason
from agentwrit.broker.storage.postgres_migration import in_transaction, prepare
from agentwrit.broker.storage.postgres_rows import SELECT_ALL, PostgresSnapshot, PostgresTransaction, State
from agentwrit.broker.storage.postgres_writer import CHARGE_LOCK
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import ConfigurationError

T = TypeVar("T")

# How long a broker that settles may do nothing about it. One that hangs must not keep the others from it.
SETTLING_IDLE_MS: Final = 30_000

# The tables that number their rows by themselves. A copy that was made row by row would begin with 1 again.
_NUMBERED: Final = {"apps": "position", "grants": "place"}


def last_time(url: str, sealer: Sealer, cluster: str) -> float:
    """The highest time that was ever committed to a database (Unix seconds).

    Raises:
        ConfigurationError, TamperedRecord: as `postgres_schema.open_database`.
    """
    return postgres_schema.open_database(url, sealer, cluster).state.now


def run_alone(
    url: str,
    sealer: Sealer,
    cluster: str | None,
    unit: Callable[[Transaction], T],
    *,
    is_restored: bool = False,
    is_time_set: bool = False,
) -> T:
    """Run a unit of work, and return what it returns once it is durable.

    `is_restored`: it ends all that was granted in a store that was put back. From then on the store is the one of this
    database, and whoever knows another history of it may go on with this one. `is_time_set`: whether the server's time
    is the store's from then on, whatever that was before.

    Raises:
        ConfigurationError: the database cannot be used, has no store yet, a broker keeps house in it, or it has to be
            told first that it was put back.
        TamperedRecord: the audit log does not end as the brokers left it.
    """
    link = postgres_schema.connect(url)

    def run() -> T:
        prepare(link, sealer, cluster)
        link.take_time()
        _check_alone(link)
        [[now]] = link.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()
        transaction = _begin(link, sealer, now, is_time_set=is_time_set)
        if not transaction.head.sequence:
            raise ConfigurationError("there is no store in the database: restore it there first")
        survey = postgres_lineage.survey(link, sealer)
        if not is_restored:
            _check_is_settled(survey)
        value = unit(transaction)
        ended_at = transaction.now if is_restored else min(survey.history.ended_at, transaction.now)
        _end(link, sealer, transaction, History(survey.system, survey.timeline, ended_at))
        if is_restored:
            _number_on(link)
        return value

    try:
        return in_transaction(link, run)
    except psycopg.Error as error:
        raise ConfigurationError(
            f"the database did not do it ({reason(error)}): run it again, which is safe even if it was done"
        ) from error
    finally:
        link.close()


def go_back(url: str, sealer: Sealer, version: int) -> None:
    """Make the schema that of an older version again, for brokers of that version. All that is in it goes on.

    Raises:
        ConfigurationError: there is no way back to it, a broker uses the database, or it cannot be used.
        TamperedRecord: the schema is not the one that we make.
    """
    link = postgres_schema.connect(url)

    def undo() -> None:
        link.take_time()
        _check_alone(link)
        postgres_migration.go_back(link, sealer, version)

    try:
        in_transaction(link, undo)
    except psycopg.Error as error:
        raise postgres_schema.unusable(error) from error
    finally:
        link.close()


def settle(link: Link, sealer: Sealer, lineage: Lineage, go_on: GoOn, *, now: float, may_end: bool) -> Promotion | None:
    """Settle the store on the timeline that its server is on. Returns what that was, or None if another has done it.

    What this process knows to be lost ends all that was granted, even if another has settled the store.

    `now`: by the broker's clock, which does not believe all that a server's says.
    `may_end`: whether all that was granted may end, although another process might know that nothing is lost.

    Raises:
        Unsettled: it may not, and this process does not know it.
        OtherSystem, OtherHistory, NotThePrimary: see `postgres_lineage.check`.
        psycopg.Error: it was not done, or it is not known. Then it is safe to try it again.
    """
    with link.transaction():
        link.take_time(idle_ms=SETTLING_IDLE_MS)
        transaction = _begin(link, sealer, now)
        lost = lineage.lost
        before = lineage.seen if lost is None else None
        survey = postgres_lineage.survey(link, sealer, before)
        postgres_lineage.check(survey, before)
        timeline = survey.history.timeline
        if lost is not None and postgres_lineage.is_lost(survey, lost):
            is_lossless, timeline = False, min(timeline, lost.timeline)
        elif survey.timeline == timeline:
            return None
        else:
            is_lossless = lost is None and lineage.vouches(survey)
            if not (is_lossless or may_end or lineage.knows_of_loss(survey)):
                raise postgres_lineage.Unsettled
        promotion = Promotion(timeline, survey.timeline, is_lossless)
        go_on(transaction, promotion)
        ended_at = survey.history.ended_at if is_lossless else transaction.now
        _end(link, sealer, transaction, History(survey.system, survey.timeline, ended_at))
    return promotion


def _begin(link: Link, sealer: Sealer, now: float, *, is_time_set: bool = False) -> PostgresTransaction:
    row = link.execute(f"{SELECT_ALL} FOR UPDATE").fetchone()
    state = State.opened(row, sealer)
    return PostgresTransaction(
        link,
        sealer,
        sql_log.load_head(link, sealer, (state.sequence, state.hash)),
        now if is_time_set else max(now, state.now),
        feed_head=state.feed_head,
        covered=postgres_rows.covered_of(row, sealer),
    )


def _end(link: Link, sealer: Sealer, transaction: PostgresTransaction, history: History) -> None:
    head = transaction.head
    left = State(head.sequence, head.hash, transaction.feed_head(), transaction.now)
    columns = postgres_rows.columns(left, transaction.covered, sealer)
    link.execute(
        "UPDATE cluster SET state = ?, covered = ?, history = ? WHERE one = 1", (*columns, history.sealed(sealer))
    )


@contextlib.contextmanager
def snapshot(url: str, sealer: Sealer) -> Iterator[Snapshot]:
    """The state in a database, by a connection of its own.

    Raises:
        ConfigurationError: it cannot be read.
    """
    link = postgres_schema.connect(url)
    try:
        with link.transaction():
            link.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield PostgresSnapshot(link, sealer)
    except psycopg.Error as error:
        raise ConfigurationError(f"the database cannot be read ({reason(error)})") from error
    finally:
        link.close()


def _number_on(link: Link) -> None:
    for table, column in _NUMBERED.items():
        link.execute(f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), max({column})) FROM {table}")


def _check_is_settled(survey: Survey) -> None:
    try:
        postgres_lineage.check(survey, None)
    except postgres_lineage.OtherSystem as error:
        raise ConfigurationError(str(error)) from error
    if survey.timeline != survey.history.timeline:
        raise ConfigurationError("the database server was promoted: start a broker first, which goes on with the store")


def _check_alone(link: Link) -> None:
    [[is_alone]] = link.execute("SELECT pg_try_advisory_xact_lock(?)", (CHARGE_LOCK,)).fetchall()
    if not is_alone:
        raise ConfigurationError("a broker uses the database: stop all of them, and run it again")
