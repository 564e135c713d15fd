"""One unit of work on a database that no broker uses: all of it in one transaction, however long it takes."""

from collections.abc import Callable
from typing import TypeVar

import psycopg

from agentwrit.broker.storage import postgres_schema, sql_log
from agentwrit.broker.storage.base import Transaction
from agentwrit.broker.storage.postgres_link import Link, reason
from agentwrit.broker.storage.postgres_rows import SELECT_STATE, PostgresTransaction, State
from agentwrit.broker.storage.postgres_writer import CHARGE_LOCK
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import ConfigurationError

T = TypeVar("T")


def run_alone(url: str, sealer: Sealer, cluster: str, unit: Callable[[Transaction], T]) -> T:
    """Run a unit of work, and return what it returns once it is durable.

    Raises:
        ConfigurationError: the database cannot be used, has no store yet, or a broker keeps house in it.
        TamperedRecord: the audit log does not end as the brokers left it.
    """
    link = postgres_schema.connect(url)
    try:
        with link.connection.transaction():
            postgres_schema.prepare(link, sealer, cluster)
            link.execute("SET LOCAL statement_timeout = 0")
            link.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            _check_alone(link)
            state = State.opened(link.execute(f"{SELECT_STATE} FOR UPDATE").fetchone(), sealer)
            if not state.sequence:
                raise ConfigurationError("there is no store in the database: restore it there first")
            head = sql_log.load_head(link, sealer, (state.sequence, state.hash))
            [[now]] = link.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()
            transaction = PostgresTransaction(link, sealer, head, max(now, state.now), state.feed_head)
            value = unit(transaction)
            left = State(
                transaction.head.sequence, transaction.head.hash, transaction.feed_head(), transaction.now
            ).sealed(sealer)
            link.execute("UPDATE cluster SET state = ? WHERE one = 1", (left,))
        return value
    except psycopg.Error as error:
        raise ConfigurationError(
            f"the database did not do it ({reason(error)}): run it again, which is safe even if it was done"
        ) from error
    finally:
        link.close()


def _check_alone(link: Link) -> None:
    [[is_alone]] = link.execute("SELECT pg_try_advisory_xact_lock(?)", (CHARGE_LOCK,)).fetchall()
    if not is_alone:
        raise ConfigurationError("a broker uses the database: stop all of them, and run it again")
