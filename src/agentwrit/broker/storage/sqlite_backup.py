"""Backups of the embedded store: one file, made while a broker writes.

The rules:

- A backup is what one commit left: all pages are copied in one read transaction, while the broker goes on writing.
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
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentwrit.broker.storage import migrations, sql_log, sqlite_rows, sqlite_schema
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import ConfigurationError, TamperedRecord
from agentwrit.durable import sync

LOCK_TIMEOUT_MS: Final = 5000
STEP_PAGES: Final = 4096  # of the copy: between two of them Ctrl-C is heard
UNFINISHED: Final = ".partial"  # how the file's name ends until it gets its own


def back_up(database: Path, file: Path, sealer: Sealer, *, overwrite: bool) -> int:
    """Write a backup of `database`, which a broker may be using, to `file`. Returns how many events there are in it.

    `overwrite`: whether `file` may be one that is there, which is then replaced, whole or not at all.

    Raises:
        ConfigurationError: there is no such database, it is another version's or sealed under another master key; or
            `file` is there, or cannot be written.
        TamperedRecord: what was copied is damaged, or its log does not end as the broker left it.
    """
    if not overwrite and file.exists():
        raise _is_there(file)
    with _reading(database, f"{database.resolve().as_uri()}?mode=rw") as source:
        _check_source(source, database, sealer)
        with _unfinished(file) as partial:
            _copy(source, partial)
            count = _check_copy(partial, sealer)
            _name(partial, file, overwrite=overwrite)
    return count


def check(file: Path, sealer: Sealer) -> None:
    """Refuse a file that is no backup, or is none of this master key.

    Raises:
        ConfigurationError: it is.
    """
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    no_backup = ConfigurationError(f"{file} is no backup of AgentWrit: `agentwrit backup` makes one")
    try:
        with contextlib.closing(sqlite3.connect(_at_rest(file), uri=True)) as connection:
            [application_id] = connection.execute("PRAGMA application_id").fetchone()
            if application_id == sqlite_schema.APPLICATION_ID:
                raise ConfigurationError(
                    f"{file} is a broker's database and no backup: put its data directory back as it was, and tell it"
                    " with `agentwrit store restored`"
                )
            if application_id != sqlite_schema.BACKUP_ID:
                raise no_backup
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
    descriptor = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with file.open("rb") as source, os.fdopen(descriptor, "wb") as target:
        shutil.copyfileobj(source, target, 1024 * 1024)
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
def _reading(database: Path, uri: str) -> Iterator[sqlite3.Connection]:
    """A connection with one state of the database in view."""
    if not database.is_file():
        raise ConfigurationError(f"there is no store in {database.parent}: set AGENTWRIT_DATA_DIR to the broker's")
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_MS}")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            yield connection
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
    if sqlite_schema.sealed_by(source) != sealer.name:
        raise ConfigurationError(
            f"the master key is not the one of {database}: set AGENTWRIT_MASTER_KEY as its broker has it"
        )


@contextlib.contextmanager
def _unfinished(file: Path) -> Iterator[Path]:
    """A new file beside another one, mode 0600, that is taken away in the end if it is still there."""
    try:
        descriptor, name = tempfile.mkstemp(UNFINISHED, f".{file.name}.", file.parent)
        os.close(descriptor)
    except OSError as error:
        raise _unwritable(file, error) from error
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _copy(source: sqlite3.Connection, partial: Path) -> None:
    with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as target:
        # It is nobody's until it is whole, and then it is made durable at once.
        target.execute("PRAGMA journal_mode = OFF")
        target.execute("PRAGMA synchronous = OFF")
        source.backup(target, pages=STEP_PAGES, progress=lambda status, left, total: None)
    with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as target:
        target.execute("PRAGMA journal_mode = DELETE")
        target.execute(f"PRAGMA application_id = {sqlite_schema.BACKUP_ID}")
    sync(partial)


def _check_copy(partial: Path, sealer: Sealer) -> int:
    """Read back what was written. Returns how many events there are in it."""
    with contextlib.closing(sqlite3.connect(_at_rest(partial), uri=True)) as copy:
        [[found]] = copy.execute("PRAGMA integrity_check(1)").fetchall()
        if found != "ok":
            raise TamperedRecord(f"the database is damaged, and so is what was copied of it: {found}")
        saved = sqlite_rows.saved_head(copy, sealer)
        return sql_log.load_head(copy, sealer, saved.last).sequence


def _name(partial: Path, file: Path, *, overwrite: bool) -> None:
    try:
        if overwrite:
            partial.replace(file)
        else:
            file.hardlink_to(partial)  # unlike a rename it takes no other file's place
            partial.unlink()
        sync(file.parent)
    except FileExistsError:
        raise _is_there(file) from None
    except OSError as error:
        raise _unwritable(file, error) from error


def _is_there(file: Path) -> ConfigurationError:
    return ConfigurationError(f"{file} is there already: give another name, or --overwrite to replace it")


def _unwritable(file: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{file} cannot be written: {error.strerror}")


def _at_rest(file: Path) -> str:
    """What opens a file that nobody writes to, and leaves nothing beside it."""
    return f"{file.resolve().as_uri()}?mode=ro&immutable=1"
