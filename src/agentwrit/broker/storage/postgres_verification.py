"""Checking the store in a database, beside brokers that run and without changing it.

All is read in one transaction, so it is one committed state. The audit log is checked first (see `sql_verification`),
then what stands beside rows' sealed bodies; who looks at the state after that finds what is there.
"""

import contextlib
from collections.abc import Iterator

import psycopg

from agentwrit.broker.storage import (
    postgres_lineage,
    postgres_migration,
    postgres_rows,
    postgres_schema,
    sql_columns,
    sql_verification,
)
from agentwrit.broker.storage.base import Snapshot
from agentwrit.broker.storage.postgres_link import Link, reason
from agentwrit.broker.storage.postgres_rows import SELECT_ALL, PostgresSnapshot
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql_verification import End
from agentwrit.domain.audit_export import Progress, unwatched
from agentwrit.domain.errors import ConfigurationError, TamperedRecord


@contextlib.contextmanager
def verified(url: str, sealer: Sealer, *, progress: Progress = unwatched) -> Iterator[Snapshot]:
    """Check the audit log and the rows of a database, and give the state that was checked.

    Raises:
        TamperedRecord: something is not as brokers left it. Names it.
        ConfigurationError: it cannot be read, has no store, one of another version, or under another master key.
    """
    link = postgres_schema.connect(url)
    try:
        with link.connection.transaction(force_rollback=True):
            postgres_migration.check_current(link, sealer)
        with link.transaction():
            link.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            link.take_time()
            snapshot = PostgresSnapshot(link, sealer)
            _verify_log(link, sealer, snapshot, progress)
            sql_columns.check(link, sealer)
            yield snapshot
    except psycopg.Error as error:
        raise ConfigurationError(f"the database cannot be read ({reason(error)})") from error
    finally:
        link.close()


def _verify_log(link: Link, sealer: Sealer, snapshot: Snapshot, progress: Progress) -> None:
    state = postgres_lineage.survey(link, sealer).state  # wherever it is: a copy can be checked before it is used
    covered = postgres_rows.covered_of(link.execute(SELECT_ALL).fetchone(), sealer)
    end = End(state.sequence, state.hash, covered)
    sql_verification.verify(link, sealer, lambda: end, snapshot.signing_keys, progress=progress)
    if state.feed_head != snapshot.feed_head():
        raise TamperedRecord(f"the revocation with which the feed ends, number {state.feed_head}, was deleted")
