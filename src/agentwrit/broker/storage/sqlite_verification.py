"""Checking the audit log in a database file (see `sql_verification`), from outside the broker and without changing it.

The file's schema has to be the one that we make.

Whoever looks at the state as well has to find what is there. So for that the file's pages are whole, each index has
what its table has, and what stands beside a row's sealed body is what the body says.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from agentwrit.broker.data_directory import LOGS
from agentwrit.broker.storage import sql_columns, sql_verification, sqlite_objects, sqlite_schema
from agentwrit.broker.storage.base import Snapshot
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql_verification import End
from agentwrit.broker.storage.sqlite_rows import SqliteSnapshot, saved_head
from agentwrit.domain.audit_export import Progress, unwatched
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import ConfigurationError, TamperedRecord
from agentwrit.domain.note import VerifierKey
from agentwrit.domain.signing_key import StoredKey

LONGEST_VALUE_BYTES: Final = 1024 * 1024  # in a row: many times what the broker writes

NO_KEYS: Final = "there is no master key, so give the log's public key with --key: `agentwrit audit keys` shows it"


def verify(
    path: Path,
    sealer: Sealer | None,
    keys: Sequence[VerifierKey] = (),
    *,
    progress: Progress = unwatched,
) -> tuple[int, Checkpoint | None]:
    """Check the log in the database `path`. Returns how many events it has, and the checkpoint that covers the first.

    `sealer`: of the broker's rows, where the master key is at hand; `keys`: of checkpoints, else those in the database.

    Raises:
        TamperedRecord: the log is not as the broker left it. Names the first event that is wrong.
        ConfigurationError: there is no such database, or nothing to check it by.
    """
    if sealer is None and not keys:
        raise ConfigurationError(NO_KEYS)
    with _reading(path) as connection:

        def signing_keys() -> Sequence[StoredKey]:
            return () if sealer is None else SqliteSnapshot(connection, sealer).signing_keys()

        def renew() -> None:
            """Let SQLite fold its write-ahead log in: what was added since does not matter, what is there stays."""
            connection.rollback()
            connection.execute("BEGIN")

        end = None if sealer is None else partial(_end, connection, sealer)
        return sql_verification.verify(connection, sealer, end, signing_keys, keys, progress=progress, renew=renew)


@contextlib.contextmanager
def snapshot(path: Path, sealer: Sealer) -> Iterator[Snapshot]:
    """The state in the database `path`, in which everything that is there is also found.

    Raises:
        TamperedRecord: the file is damaged, or a row in it is not the broker's.
        ConfigurationError: there is no such database.
    """
    with _reading(path) as connection:
        check_pages(connection)
        yield SqliteSnapshot(connection, sealer)
        sql_columns.check(connection, sealer)  # last: whoever looked may have had more to say of such a row


def _end(connection: sqlite3.Connection, sealer: Sealer) -> End:
    return End(*saved_head(connection, sealer))


def sealed_by(path: Path) -> str | None:
    """The name of the key that the rows in the database `path` are sealed with, if there is one yet.

    Raises:
        TamperedRecord: the file is damaged.
        ConfigurationError: there is no such database.
    """
    with _reading(path) as connection:
        if not connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'").fetchone()[0]:
            return None
        return sqlite_schema.sealed_by(connection)


def check_pages(connection: sqlite3.Connection) -> None:
    """Check the file page by page, and each index against its table.

    Raises:
        TamperedRecord: it is damaged. Names the first that is wrong.
    """
    [[found]] = connection.execute("PRAGMA integrity_check(1)").fetchall()
    if found != "ok":
        raise TamperedRecord(f"the database is damaged: {found}")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(_open(path)) as connection:
            connection.execute("BEGIN")
            sqlite_objects.check(connection)
            yield connection
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # SQLite quotes in its errors what it found
        raise TamperedRecord(f"{path} is damaged: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    """A connection that only reads, and leaves no file behind where no broker is at work."""
    if not path.is_file():
        raise ConfigurationError(f"there is no database {path}")
    is_at_rest = not any(path.with_name(path.name + log).exists() for log in LOGS)
    mode = "mode=ro&immutable=1" if is_at_rest else "mode=ro"
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE_BYTES)
    try:
        sqlite_schema.distrust(connection)
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        raise ConfigurationError(f"{path} cannot be opened as a database: {error}") from error
    return connection
