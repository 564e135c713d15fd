"""Backups, and restores from them.

`services/restoring.py` defines what a restore ends, and why; `storage/sqlite_backup.py` how a backup file is made. A
data directory that is created from a backup has its database under another name until everything has ended and is
durable; then the database gets its own name. After a crash before that, there is no store: a broker refuses to create
one there, and a new restore starts from the beginning.
"""

import asyncio
import contextlib
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from agentwrit.broker.clock import Clock
from agentwrit.broker.config import Config
from agentwrit.broker.data_directory import DATABASE_FILE, MASTER_KEY_FILE, DataDirectory, read_master_key_text
from agentwrit.broker.keystore import KeyWrap, MasterKey
from agentwrit.broker.master_keys import row_sealer
from agentwrit.broker.services import restoring, state_check
from agentwrit.broker.services.endings import see_through
from agentwrit.broker.services.restoring import Restored
from agentwrit.broker.storage import sqlite_backup, sqlite_schema, sqlite_verification
from agentwrit.broker.storage.base import Snapshot, Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.broker.stores import cluster_name, cluster_of, driver_of_postgres, open_store
from agentwrit.domain.audit_export import Progress
from agentwrit.domain.errors import ConfigurationError, TamperedRecord

Unit = Callable[[Transaction], Restored]


def back_up(file: Path, config: Config, *, overwrite: bool) -> int:
    """Write a backup of the data directory, which a broker may be using. Returns the number of events in it.

    Raises:
        ConfigurationError: there is no store, its master key is missing or wrong, or `file` cannot be written.
        TamperedRecord: the store is not as its broker left it.
    """
    if config.database_url is not None:
        raise ConfigurationError(
            "the store is in PostgreSQL: back it up with pg_dump, or as you back up your databases"
        )
    sealer = row_sealer(_master_key(config))
    if file.resolve().parent == config.data_dir.resolve():
        raise ConfigurationError(f"{file} would be in the data directory itself: give a place that outlives it")
    return sqlite_backup.back_up(config.data_dir / DATABASE_FILE, file, sealer, overwrite=overwrite)


def restore(file: Path, config: Config, *, progress: Progress) -> Restored:
    """Create a data directory from a backup, in which all earlier grants have ended.

    Raises:
        ConfigurationError: there is a store already, the file is not a backup, or its master key is missing or wrong.
            Nothing was created.
        TamperedRecord: the backup is not as the broker left it. Nothing was created.
    """
    if config.database_url is not None:
        raise ConfigurationError(
            "a backup is restored into a data directory, and AGENTWRIT_DATABASE_URL is set: a database is restored with"
            " its own tools, and then told with `agentwrit store restored`"
        )
    master_key = _master_key(config)
    sealer = row_sealer(master_key)
    with _refusing(file, config.data_dir):
        sqlite_backup.check(file, sealer)
    directory = DataDirectory(config.data_dir)
    try:
        if directory.has_store:
            raise ConfigurationError(
                f"there is a store in {directory.path} already: move it away, or set AGENTWRIT_DATA_DIR to a directory"
                " that has none"
            )
        directory.clear_restoring()
        try:
            with _refusing(file, directory.path):
                restored = _make(directory.restoring, file, sealer, config, ending(master_key, config), progress)
        except BaseException:
            directory.clear_restoring()
            raise
        directory.finish_restoring()
        return restored
    finally:
        directory.close()


def end_restored(config: Config) -> Restored:
    """End all grants in a store that was restored by other means and that no broker uses yet.

    Raises:
        ConfigurationError: there is no store, a broker uses it, or its master key is missing or wrong.
        TamperedRecord: the store is not as the broker left it, or something in it is still alive.
    """
    if config.database_url is not None:
        with driver_of_postgres():
            from agentwrit.broker.storage import postgres_alone
        master_key = MasterKey.parse(config.master_key or "")
        sealer, unit = row_sealer(master_key), ending(master_key, config)
        restored = postgres_alone.run_alone(config.database_url, sealer, cluster_name(config), unit, is_restored=True)
    elif (config.data_dir / DATABASE_FILE).is_file():
        restored, sealer = asyncio.run(_end(config))
    else:
        raise ConfigurationError(f"there is no store in {config.data_dir}: put it back there first")
    finish(restored, config, sealer)
    return restored


async def _end(config: Config) -> tuple[Restored, Sealer]:
    async with open_store(config, new_clock=Clock) as opened:  # the store may have been unused for long
        restored = await opened.store.write(ending(opened.master_key, config))
        return restored, row_sealer(opened.master_key)


def finish(restored: Restored, config: Config, sealer: Sealer) -> None:
    """Record the end of each grant in the store of these settings, and check that all have ended.

    Raises:
        TamperedRecord: something is still alive.
    """
    asyncio.run(_see_through(config, restored))
    try:
        with _snapshot(config, sealer) as snapshot:
            restoring.check(snapshot, restored)
    except TamperedRecord as error:
        raise TamperedRecord(f"not everything has ended ({error}): start no broker on this store") from error


async def _see_through(config: Config, restored: Restored) -> None:
    async with open_store(config, new_clock=Clock) as opened:
        await see_through(opened.store, restored.ending)


def _snapshot(config: Config, sealer: Sealer) -> contextlib.AbstractContextManager[Snapshot]:
    if config.database_url is None:
        return sqlite_verification.snapshot(config.data_dir / DATABASE_FILE, sealer)
    from agentwrit.broker.storage import postgres_alone

    return postgres_alone.snapshot(config.database_url, sealer)


def _make(place: Path, file: Path, sealer: Sealer, config: Config, unit: Unit, progress: Progress) -> Restored:
    """Create a store at `place` from a backup, verify it, and end what is alive in it."""
    sqlite_backup.unpack(file, place)
    sqlite_schema.open_database(place, sealer, cluster_of(config)).close()  # migrates it
    sqlite_verification.verify(place, sealer, progress=progress)
    with sqlite_verification.snapshot(place, sealer) as snapshot:
        state_check.check(snapshot, Clock().now(), progress=progress)
    restored = asyncio.run(_write(place, sealer, unit))
    sqlite_backup.settle(place)
    with sqlite_verification.snapshot(place, sealer) as snapshot:
        restoring.check(snapshot, restored)
        state_check.check(snapshot, restored.at, progress=progress)
    return restored


@contextlib.contextmanager
def _refusing(file: Path, directory: Path) -> Iterator[None]:
    """Wraps the restoring of a backup: names the backup or the destination in errors."""
    try:
        yield
    except TamperedRecord as error:
        raise TamperedRecord(f"{file} is not as the broker left it ({error}): restore another backup") from error
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(f"{file} cannot be restored into {directory}: {reason}") from error


async def _write(place: Path, sealer: Sealer, unit: Unit) -> Restored:
    store = SqliteStore(place, Clock(), sealer)
    try:
        restored = await store.write(unit)
        await see_through(store, restored.ending)
        return restored
    finally:
        await store.close()


def ending(master_key: MasterKey, config: Config, *, detail: str = "") -> Unit:
    """The unit of work that ends all grants. `detail`: the text in the audit log, if not the default."""
    return partial(
        restoring.end_everything,
        wrap=KeyWrap(master_key),
        config=config,
        epoch=secrets.token_hex(16),
        detail=detail,
    )


def _master_key(config: Config) -> MasterKey:
    text = config.master_key or read_master_key_text(config.data_dir)
    if text is None:
        raise ConfigurationError(
            f"the master key is missing, and a backup has none in it: put {MASTER_KEY_FILE} into {config.data_dir}, or"
            " set AGENTWRIT_MASTER_KEY"
        )
    return MasterKey.parse(text)
