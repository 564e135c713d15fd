"""Making the store of a stopped broker accept the system's or the database's clock, which no broker does by itself."""

import time
from contextlib import closing
from functools import partial

from agentwrit.broker import master_keys, stores
from agentwrit.broker.config import Config
from agentwrit.broker.data_directory import DATABASE_FILE, DataDirectory
from agentwrit.broker.keystore import MasterKey
from agentwrit.broker.offline import backups
from agentwrit.broker.services import setting_time
from agentwrit.broker.services.setting_time import TimeSet
from agentwrit.broker.storage import sqlite_alone
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain.errors import ConfigurationError


def set_time(config: Config) -> TimeSet:
    """Set the store's time to the system's clock; if the store is in PostgreSQL, to the server's.

    Raises:
        ConfigurationError: there is no store, a broker uses it, or its master key is missing or wrong.
        TamperedRecord: the store is not as the broker left it, or something that should have ended is still alive.
    """
    if config.database_url is not None:
        master_key = MasterKey.parse(config.master_key or "")
        done = _shared(config, config.database_url, master_key)
    elif (config.data_dir / DATABASE_FILE).is_file():
        with closing(DataDirectory(config.data_dir)) as directory:
            master_key = master_keys.load_master_key(config, directory)
            done = _embedded(config, directory, master_key)
    else:
        raise ConfigurationError(f"there is no store in {config.data_dir}: set AGENTWRIT_DATA_DIR to the broker's")
    if done.restored is not None:
        backups.finish(done.restored, config, master_keys.row_sealer(master_key))
    return done


def _embedded(config: Config, directory: DataDirectory, master_key: MasterKey) -> TimeSet:
    sealer = master_keys.row_sealer(master_key)
    before = sqlite_alone.last_time(directory.database, sealer)
    unit = partial(_set, before, config, master_key)
    return sqlite_alone.run_alone(directory.database, sealer, unit, now=time.time())


def _shared(config: Config, url: str, master_key: MasterKey) -> TimeSet:
    with stores.driver_of_postgres():
        from agentwrit.broker.storage import postgres_alone
    sealer, cluster = master_keys.row_sealer(master_key), stores.cluster_name(config)
    unit = partial(_set, postgres_alone.last_time(url, sealer, cluster), config, master_key)
    return postgres_alone.run_alone(url, sealer, cluster, unit, is_time_set=True)


def _set(before: float, config: Config, master_key: MasterKey, transaction: Transaction) -> TimeSet:
    if transaction.now >= before:
        return setting_time.set_ahead(transaction, before)
    end = backups.ending(master_key, config, detail=setting_time.DETAIL)
    return setting_time.set_back(transaction, before, end)
