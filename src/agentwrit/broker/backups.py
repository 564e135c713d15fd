"""Backups and the way back, put together: the other place that names adapters, for what needs no broker.

What a restore ends, and why, is in `services/restoring.py`; how a backup's file comes about in
`storage/sqlite_backup.py`. A data directory that is made from a backup has its database under another name until all is
ended and durable; then it gets its own. Killed before, there is no store: a broker refuses to begin one there, and
restoring again begins anew.
"""

import asyncio
import secrets
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

from agentwrit.broker.bootstrap import cluster_name, driver_of_postgres, open_store, row_sealer
from agentwrit.broker.clock import Clock
from agentwrit.broker.config import Config
from agentwrit.broker.data_directory import DATABASE_FILE, MASTER_KEY_FILE, DataDirectory, read_master_key_text
from agentwrit.broker.keystore import KeyWrap, MasterKey
from agentwrit.broker.services import restoring, state_check
from agentwrit.broker.services.restoring import Restored
from agentwrit.broker.storage import sqlite_backup, sqlite_schema, sqlite_verification
from agentwrit.broker.storage.base import Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.domain.audit_export import Progress
from agentwrit.domain.errors import ConfigurationError, TamperedRecord

Unit = Callable[[Transaction], Restored]


def back_up(file: Path, config: Config, *, overwrite: bool) -> int:
    """Write a backup of the data directory, which a broker may be using. Returns how many events there are in it.

    Raises:
        ConfigurationError: there is none, its master key is missing or another, or `file` cannot be written.
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
    """Make a data directory from a backup, in which all that was granted before has ended.

    Raises:
        ConfigurationError: there is a store already, the file is no backup, or its master key is missing or another.
            Nothing was made.
        TamperedRecord: the backup is not as the broker left it. Nothing was made either.
    """
    if config.database_url is not None:
        raise ConfigurationError(
            "a backup is restored into a data directory, and AGENTWRIT_DATABASE_URL is set: a database is restored with"
            " its own tools, and then told with `agentwrit store restored`"
        )
    master_key = _master_key(config)
    sealer = row_sealer(master_key)
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
            restored = _make(directory.restoring, file, sealer, _unit(master_key, config), progress)
        except BaseException:
            directory.clear_restoring()
            raise
        directory.finish_restoring()
        return restored
    finally:
        directory.close()


def end_restored(config: Config) -> Restored:
    """End all that was granted in a store that was put back by other means, and that no broker uses yet.

    Raises:
        ConfigurationError: there is no store, a broker uses it, or its master key is missing or another.
        TamperedRecord: the audit log does not end as the broker left it.
    """
    if config.database_url is not None:
        with driver_of_postgres():
            from agentwrit.broker.storage.postgres_alone import run_alone
        master_key = MasterKey.parse(config.master_key or "")
        unit = _unit(master_key, config)
        return run_alone(config.database_url, row_sealer(master_key), cluster_name(config), unit)
    if not (config.data_dir / DATABASE_FILE).is_file():
        raise ConfigurationError(f"there is no store in {config.data_dir}: put it back there first")
    return asyncio.run(_end(config))


async def _end(config: Config) -> Restored:
    async with open_store(config) as opened:
        return await opened.store.write(_unit(opened.master_key, config))


def _make(place: Path, file: Path, sealer: Sealer, unit: Unit, progress: Progress) -> Restored:
    """Make a store at `place` out of a backup, check it, and end what is alive in it."""
    try:
        sqlite_backup.unpack(file, place)
        sqlite_schema.open_database(place, sealer).close()  # brings it up to date
        sqlite_verification.verify(place, sealer, progress=progress)
        with sqlite_verification.snapshot(place, sealer) as snapshot:
            state_check.check(snapshot, Clock().now(), progress=progress)
        restored = asyncio.run(_write(place, sealer, unit))
        sqlite_backup.settle(place)
        return restored
    except TamperedRecord as error:
        raise TamperedRecord(f"{file} is not as the broker left it ({error}): restore another backup") from error
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be restored into {place.parent}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise ConfigurationError(f"{file} cannot be restored into {place.parent}: {error}") from error


async def _write(place: Path, sealer: Sealer, unit: Unit) -> Restored:
    store = SqliteStore(place, Clock(), sealer)
    try:
        return await store.write(unit)
    finally:
        await store.close()


def _unit(master_key: MasterKey, config: Config) -> Unit:
    return partial(restoring.end_everything, wrap=KeyWrap(master_key), config=config, epoch=secrets.token_hex(16))


def _master_key(config: Config) -> MasterKey:
    text = config.master_key or read_master_key_text(config.data_dir)
    if text is None:
        raise ConfigurationError(
            f"the master key is missing, and a backup has none in it: put {MASTER_KEY_FILE} into {config.data_dir}, or"
            " set AGENTWRIT_MASTER_KEY"
        )
    return MasterKey.parse(text)
