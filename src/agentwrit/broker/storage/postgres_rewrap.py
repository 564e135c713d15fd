"""Moving the store that brokers share to another master key (see `sql_rewrap`), while none of them runs."""

from collections.abc import Sequence
from typing import Final

import psycopg

from agentwrit.broker.storage import (
    postgres_lineage,
    postgres_migration,
    postgres_rows,
    postgres_schema,
    sql_log,
    sql_rewrap,
)
from agentwrit.broker.storage.postgres_link import Link, escaped
from agentwrit.broker.storage.postgres_migration import prepare
from agentwrit.broker.storage.postgres_rows import SELECT_ALL, PostgresTransaction, State
from agentwrit.broker.storage.postgres_writer import CHARGE_LOCK
from agentwrit.broker.storage.sql_rewrap import Keys
from agentwrit.domain.audit_export import Progress, unwatched
from agentwrit.domain.errors import ConfigurationError

_PLACES: Final = {"grants": "place"}

_OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND application_name = current_setting('application_name')"
)


def sealed_by(url: str) -> str | None:
    """The name of the key that the rows of a database are sealed with; None where there is no store.

    Raises:
        ConfigurationError: it cannot be reached, or is another program's.
    """
    link = postgres_schema.connect(url)
    try:
        return postgres_migration.sealed_by(link)
    except psycopg.Error as error:
        raise postgres_schema.unusable(error) from error
    finally:
        link.close()


def rewrap(url: str, cluster: str, keys: Keys, *, progress: Progress = unwatched) -> int:
    """Move a database that holds a store. Returns how many rows that were. A broker that starts meanwhile waits.

    Raises:
        TamperedRecord: a row, or the end of the audit log, is not the brokers'. Nothing was changed.
        ConfigurationError: a broker runs, or the database cannot be used. Nothing was changed, unless the connection
            was lost during the commit: whoever asks `sealed_by` knows.
    """
    link = postgres_schema.connect(url)
    try:
        with link.transaction():
            prepare(link, keys.old, cluster)
            link.take_time()
            _require_alone(link)
            return _rewrap(link, keys, progress)
    except psycopg.Error as error:
        raise postgres_schema.unusable(error) from error
    finally:
        link.close()


def _require_alone(link: Link) -> None:
    [[is_free]] = link.execute("SELECT pg_try_advisory_xact_lock(?)", (CHARGE_LOCK,)).fetchall()
    [[others]] = link.execute(_OTHERS).fetchall()
    if others or not is_free:
        raise ConfigurationError("a broker of this database is running: stop all of them, and try again")


def _rewrap(link: Link, keys: Keys, progress: Progress) -> int:
    def write(statement: str, changes: Sequence[Sequence[object]]) -> None:
        with link.connection.cursor() as cursor:
            cursor.executemany(
                statement.replace("?", "%s").encode("ascii"), [[escaped(value) for value in row] for row in changes]
            )

    row = link.execute(f"{SELECT_ALL} FOR UPDATE").fetchone()
    state = State.opened(row, keys.old)
    covered = postgres_rows.covered_of(row, keys.old)
    head = sql_log.load_head(link, keys.old, (state.sequence, state.hash))
    rows = sql_rewrap.move(link, write, keys, _PLACES, progress=progress)
    [[now]] = link.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()
    transaction = PostgresTransaction(
        link, keys.new, head, max(now, state.now), feed_head=state.feed_head, covered=covered
    )
    transaction.record(sql_rewrap.event(rows))
    moved = State(transaction.head.sequence, transaction.head.hash, state.feed_head, transaction.now)
    history = postgres_lineage.survey(link, keys.old).history
    columns = postgres_rows.columns(moved, transaction.covered, keys.new)
    link.execute(
        "UPDATE cluster SET state = ?, covered = ?, history = ? WHERE one = 1", (*columns, history.sealed(keys.new))
    )
    postgres_migration.seal(link, keys.new, before=keys.old)
    return rows
