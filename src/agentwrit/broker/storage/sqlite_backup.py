"""Backups of the embedded store: one file, made while a broker writes.

The rules:

- A backup is what one commit left, and is made while the broker goes on writing (`sqlite_copy`).
- It is made in a file of its own beside its place, mode 0600, made durable, and read back: it has to be whole, and its
  log has to end where the broker ended it. Only then does it get its name, which no other file had, unless it may be
  replaced.
- It is marked as a backup, and no broker opens it: in it, what has ended since is alive.
- It is one file: nothing belongs to it but what it says.

A process of its own does this. Closing a second descriptor of the database inside of the broker's process would drop
the locks of the broker.
"""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentwrit.broker.storage import (
    migrations,
    sql_log,
    sqlite_copy,
    sqlite_objects,
    sqlite_rows,
    sqlite_schema,
    sqlite_verification,
)
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import ConfigurationError
from agentwrit.durable import NewFile, create, sync

LOCK_TIMEOUT_MS: Final = 5000
PIECE_BYTES: Final = 1 << 20


def back_up(database: Path, file: Path, sealer: Sealer, *, overwrite: bool) -> int:
    """Write a backup of `database`, which a broker may be using, to `file`. Returns how many events there are in it.

    `overwrite`: whether `file` may be one that is there, which is then replaced, whole or not at all.

    Raises:
        ConfigurationError: there is no such database, it is another version's or sealed under another master key; or
            `file` is there, or cannot be written.
        TamperedRecord: what was copied is damaged, or its log does not end as the broker left it.
    """
    if not overwrite and os.path.lexists(file):
        raise _is_there(file)
    with _reading(database) as (source, descriptor):
        _check_source(source, database, sealer)
        source.rollback()
        with _new(file, overwrite=overwrite) as new:
            _copy(source, descriptor, database, new.place)
            count = _check_copy(new.place, sealer)
            new.settle()
    return count


def check(file: Path, sealer: Sealer) -> None:
    """Refuse a file that is no backup, or is none of this master key.

    Raises:
        ConfigurationError: it is.
        TamperedRecord: its schema is not the one that we make.
    """
    no_backup = ConfigurationError(f"{file} is no backup of AgentWrit: `agentwrit backup` makes one")
    if file.exists() and not file.is_file():
        raise no_backup  # a pipe or a device is not opened to see what is in it
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    try:
        with contextlib.closing(sqlite3.connect(_at_rest(file), uri=True)) as connection:
            sqlite_schema.distrust(connection)
            [application_id] = connection.execute("PRAGMA application_id").fetchone()
            if application_id == sqlite_schema.APPLICATION_ID:
                raise ConfigurationError(
                    f"{file} is a broker's database and no backup: put its data directory back as it was, and tell it"
                    " with `agentwrit store restored`"
                )
            if application_id != sqlite_schema.BACKUP_ID:
                raise no_backup
            sqlite_objects.check(connection)
            name = sqlite_schema.sealed_by(connection)
    except sqlite3.Error:
        raise no_backup from None
    if name != sealer.name:
        raise ConfigurationError(
            f"the master key is not the one that {file} was made under: set AGENTWRIT_MASTER_KEY to that one, or put"
            " its master.key into the data directory"
        )


def unpack(file: Path, place: Path) -> None:
    """Copy a backup to a place where there is nothing, mode 0600, for a store to be made of it.

    Raises:
        OSError: it cannot be copied.
    """
    with file.open("rb") as source, os.fdopen(create(place), "wb") as target:
        shutil.copyfileobj(source, target, PIECE_BYTES)
    with contextlib.closing(sqlite3.connect(place, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA application_id = {sqlite_schema.APPLICATION_ID}")


def settle(path: Path) -> None:
    """Bring all that was committed to a database into its one file, durably, once nobody has it open.

    Raises:
        sqlite3.Error: it cannot be brought there.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        [mode] = connection.execute("PRAGMA journal_mode").fetchone()
        if mode != "delete":
            raise sqlite3.OperationalError("its write-ahead log cannot be folded in")
    sync(path)


@contextlib.contextmanager
def _reading(database: Path) -> Iterator[tuple[sqlite3.Connection, int]]:
    """A connection with one state of the database in view, and a descriptor of its file for as long."""
    if not database.is_file():
        raise ConfigurationError(f"there is no store in {database.parent}: set AGENTWRIT_DATA_DIR to the broker's")
    uri = f"{database.resolve().as_uri()}?mode=rw"
    try:
        with (
            database.open("rb", buffering=0) as file,
            contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection,
        ):
            connection.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_MS}")
            sqlite_schema.distrust(connection)
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            yield connection, file.fileno()
    except sqlite3.Error as error:
        raise ConfigurationError(f"the backup of {database} cannot be made: {error}") from error


def _check_source(source: sqlite3.Connection, database: Path, sealer: Sealer) -> None:
    [application_id] = source.execute("PRAGMA application_id").fetchone()
    if application_id != sqlite_schema.APPLICATION_ID:
        raise ConfigurationError(f"{database} is no broker's database: set AGENTWRIT_DATA_DIR to the broker's")
    [version] = source.execute("PRAGMA user_version").fetchone()
    latest = migrations.load("sqlite")[-1].version
    if version != latest:
        raise ConfigurationError(
            f"{database} is another version's (schema {version}, this one knows {latest}): back it up with the version"
            " of agentwrit that its broker has"
        )
    sqlite_objects.check(source)
    if sqlite_schema.sealed_by(source) != sealer.name:
        raise ConfigurationError(
            f"the master key is not the one of {database}: set AGENTWRIT_MASTER_KEY as its broker has it"
        )


@contextlib.contextmanager
def _new(file: Path, *, overwrite: bool) -> Iterator[NewFile]:
    try:
        with NewFile(file, replacing=overwrite) as new:
            yield new
    except FileExistsError:
        raise _is_there(file) from None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}") from error


def _copy(source: sqlite3.Connection, descriptor: int, database: Path, place: Path) -> None:
    try:
        sqlite_copy.copy(source, descriptor, database.with_name(database.name + sqlite_copy.WAL), place)
        with contextlib.closing(sqlite3.connect(place, isolation_level=None)) as target:
            target.execute("PRAGMA synchronous = OFF")  # it is nobody's until it is whole, and made durable then
            target.execute("PRAGMA journal_mode = DELETE")
            target.execute(f"PRAGMA application_id = {sqlite_schema.BACKUP_ID}")
    except sqlite_copy.TooSlow:
        raise ConfigurationError(
            f"{database} changes faster than {place.parent} can be written: back it up to a quicker disk"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"the backup of {database} cannot be made: {error.strerror}") from error
    finally:
        for beside in (sqlite_copy.WAL, "-shm", "-journal"):
            place.with_name(place.name + beside).unlink(missing_ok=True)


def _check_copy(partial: Path, sealer: Sealer) -> int:
    """Read back what was written. Returns how many events there are in it."""
    with contextlib.closing(sqlite3.connect(_at_rest(partial), uri=True)) as copy:
        sqlite_objects.check(copy)
        sqlite_verification.check_pages(copy)
        saved = sqlite_rows.saved_head(copy, sealer)
        return sql_log.load_head(copy, sealer, saved.last).sequence


def _is_there(file: Path) -> ConfigurationError:
    return ConfigurationError(f"{file} is there already: give another name, or --overwrite to replace it")


def _at_rest(file: Path) -> str:
    """What opens a file that nobody writes to, and leaves nothing beside it."""
    return f"{file.resolve().as_uri()}?mode=ro&immutable=1"
