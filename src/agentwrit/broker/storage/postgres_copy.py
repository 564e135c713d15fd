"""Moving up: a stopped SQLite store, row by row, into an empty PostgreSQL database.

Rows go over as they are, with their MACs, so the database is sealed under the same master key. All is one transaction:
where anything is wrong nothing is written.
"""

import sqlite3
from typing import Final

import psycopg
from psycopg import sql

from agentwrit.broker.storage import postgres_rows, postgres_schema, sql_log, sqlite_rows, sqlite_schema, tables
from agentwrit.broker.storage.postgres_link import Link, escaped
from agentwrit.broker.storage.postgres_migration import prepare
from agentwrit.broker.storage.postgres_rows import SELECT_STATE, State
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.tables import Table
from agentwrit.domain import audit
from agentwrit.domain.audit_export import PROGRESS_EVENTS, Progress, unwatched
from agentwrit.domain.errors import ConfigurationError, TamperedRecord

COPIED: Final = tuple(table for table in tables.ALL if table is not tables.META)
"""All tables but the one whose rows each engine writes for itself: see `_move_state`."""


def copy(
    source: sqlite3.Connection, url: str, sealer: Sealer, cluster: str, *, progress: Progress = unwatched
) -> dict[str, int]:
    """Copy the database behind `source`, whose directory the caller has locked. Returns how many rows of each table.

    Raises:
        ConfigurationError: the database cannot be used, or is not empty.
        TamperedRecord: what was copied is not what a broker left.
    """
    link = postgres_schema.connect(url)
    try:
        with link.transaction():
            prepare(link, sealer, cluster)
            link.take_time()
            if State.opened(link.execute(f"{SELECT_STATE} FOR UPDATE").fetchone(), sealer) != State():
                raise ConfigurationError("the database is in use already: copy into one that no broker was started on")
            counts = {table.name: _copy_table(source, link, table) for table in COPIED}
            _move_state(source, link, sealer)
            _verify(link, sealer, progress)
            return counts
    except psycopg.Error as error:
        raise postgres_schema.unusable(error) from error
    finally:
        link.close()


def _copy_table(source: sqlite3.Connection, link: Link, table: Table) -> int:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, table.columns))
    )
    count = 0
    with link.connection.cursor() as cursor, cursor.copy(statement) as copying:
        for row in source.execute(f"SELECT {', '.join(table.columns)} FROM {table.name} ORDER BY {table.order}"):
            copying.write_row([escaped(value) for value in row])
            count += 1
    [[found]] = link.execute(f"SELECT count(*) FROM {table.name}").fetchall()
    if found != count:
        raise TamperedRecord(f"{found} of {count} rows of {table.name} arrived")
    return count


def _move_state(source: sqlite3.Connection, link: Link, sealer: Sealer) -> None:
    """What is not in the tables: where the log ends, the time, and the name of the feed's history."""
    saved = sqlite_rows.saved_head(source, sealer)
    [feed_head] = source.execute("SELECT coalesce(max(seq), 0) FROM revocations").fetchone()
    state = State(*saved.last, feed_head, sqlite_schema.load_high_water_mark(source))
    columns = postgres_rows.columns(state, saved.covered, sealer)
    link.execute("UPDATE cluster SET state = ?, covered = ? WHERE one = 1", columns)
    [epoch] = source.execute("SELECT value FROM meta WHERE name = 'feed_epoch'").fetchone()
    link.execute("UPDATE meta SET value = ? WHERE name = 'feed_epoch'", (epoch,))


def _verify(link: Link, sealer: Sealer, progress: Progress) -> None:
    """Check the audit log from the first event that was not archived to its last, as it has arrived."""
    state = State.opened(link.execute(SELECT_STATE).fetchone(), sealer)
    following = audit.Replay(sql_log.beginning(link, sealer))
    while following.sequence < state.sequence:
        before = following.sequence
        for _ in sql_log.replay(link, following, before + PROGRESS_EVENTS):
            pass
        if following.sequence == before:
            raise TamperedRecord(f"{audit.event_id(before + 1)} is missing")
        progress(following.sequence, state.sequence)
    if (following.sequence, following.hash) != (state.sequence, state.hash):
        raise TamperedRecord(f"the log does not end with {audit.event_id(state.sequence)}")
    sql_log.load_head(link, sealer, (state.sequence, state.hash))
