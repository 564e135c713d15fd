"""Copying a store into a shared database, and migrating a database's schema back to an older version."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from agentwrit.broker.config import Config
from agentwrit.broker.data_directory import DataDirectory
from agentwrit.broker.keystore import MasterKey
from agentwrit.broker.master_keys import at_rest, row_sealer
from agentwrit.broker.storage import sqlite_schema
from agentwrit.broker.stores import cluster_name, cluster_of, driver_of_postgres
from agentwrit.domain.audit_export import Progress
from agentwrit.domain.errors import ConfigurationError


def copy_store(directory: Path, url: str, config: Config, *, progress: Progress) -> Mapping[str, int]:
    """Copy a data directory that no broker uses into an empty database. Returns the number of rows by table.

    Raises:
        TamperedRecord: the data directory is not as the broker left it.
        ConfigurationError: it contains no database, or the other database cannot be used. Nothing was written.
    """
    with driver_of_postgres():
        from agentwrit.broker.storage import postgres_copy
    database, sealer = at_rest(directory, config)
    if sealer is None or not database.is_file():
        raise ConfigurationError(f"{directory} is no data directory of a broker: it has no database, or no master.key")
    held = DataDirectory(directory)
    try:
        with contextlib.closing(sqlite_schema.open_database(database, sealer, cluster_of(config))) as source:
            return postgres_copy.copy(source, url, sealer, cluster_name(config), progress=progress)
    finally:
        held.close()


def go_back(version: int, config: Config) -> None:
    """Migrate the database's schema back to an older version, for brokers of that version.

    Raises:
        TamperedRecord: the schema is not the broker's.
        ConfigurationError: there is no migration back to it, a broker uses the database, or it cannot be used.
    """
    if config.database_url is None:
        raise ConfigurationError(
            "the way back is one of databases (AGENTWRIT_DATABASE_URL): put a backup of the data directory in its place"
        )
    with driver_of_postgres():
        from agentwrit.broker.storage import postgres_alone
    postgres_alone.go_back(config.database_url, row_sealer(MasterKey.parse(config.master_key or "")), version)
