"""Opening the store that the settings name: a data directory, or a database that brokers share."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import NamedTuple

from agentwrit.broker.clock import Clock
from agentwrit.broker.config import Config
from agentwrit.broker.data_directory import DATABASE_FILE, DataDirectory
from agentwrit.broker.keystore import KeyWrap, MasterKey
from agentwrit.broker.master_keys import load_master_key, row_sealer
from agentwrit.broker.services import promotion
from agentwrit.broker.storage.base import Cluster, Store
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.domain.errors import ConfigurationError, TamperedRecord, Unavailable

NewClock = Callable[[Callable[[], float]], Clock]
"""Makes a clock from a source of time."""


class OpenStore(NamedTuple):
    """A store, its clock, and the key that protects it."""

    store: Store
    clock: Clock
    master_key: MasterKey


@contextlib.asynccontextmanager
async def open_store(
    config: Config, *, is_ours: bool = True, is_to_serve: bool = False, new_clock: NewClock = Clock.of_broker
) -> AsyncIterator[OpenStore]:
    """The store that the settings name: a database that brokers share, or a data directory, locked for this process.

    `is_ours`: whether the store must have the names in these settings, as for a broker; `is_to_serve`: whether a broker
    opens it, which remembers what it sees of a database, and continues with it after a promotion; `new_clock`: makes a
    clock from the source of time.

    Raises:
        ConfigurationError: the directory, the database or the master key cannot be used.
    """
    opening = (
        _open_embedded(config, new_clock, is_ours=is_ours)
        if config.database_url is None
        else _open_shared(config, new_clock, is_to_serve=is_to_serve)
    )
    async with opening as opened:
        try:
            yield opened
        finally:
            await opened.store.close()


@contextlib.asynccontextmanager
async def _open_embedded(config: Config, new_clock: NewClock, *, is_ours: bool) -> AsyncIterator[OpenStore]:
    directory = DataDirectory(config.data_dir)
    try:
        if directory.restoring.exists() and not directory.has_store:
            raise ConfigurationError(
                f"a backup was not restored to the end in {directory.path}: run `agentwrit restore` again, or remove"
                f" {directory.restoring.name} to begin with an empty store"
            )
        if directory.has_store and not directory.database.exists():
            raise ConfigurationError(
                f"{directory.database} is missing, and what was written to it last is beside its place: put it back, or"
                f" move {DATABASE_FILE}-wal and {DATABASE_FILE}-journal away to begin with an empty store"
            )
        master_key, clock = load_master_key(config, directory), new_clock(time.time)
        try:
            cluster = cluster_of(config) if is_ours else None
            store = SqliteStore(directory.database, clock, row_sealer(master_key), cluster)
        except OSError as error:
            raise ConfigurationError(f"the data directory {directory.path} is not usable: {error}") from error
        except TamperedRecord as error:
            raise ConfigurationError(
                f"{directory.database} was altered outside the broker ({error}):"
                " keep the file as evidence, and put a backup in its place"
            ) from error
        yield OpenStore(store, clock, master_key)
    finally:
        directory.close()


@contextlib.asynccontextmanager
async def _open_shared(config: Config, new_clock: NewClock, *, is_to_serve: bool) -> AsyncIterator[OpenStore]:
    with driver_of_postgres():
        from agentwrit.broker.storage.postgres import PostgresStore
        from agentwrit.broker.storage.postgres_schema import open_database
    master_key = MasterKey.parse(config.master_key or "")
    sealer = row_sealer(master_key)
    memory_in = config.data_dir if is_to_serve else None
    try:
        opening = open_database(config.database_url or "", sealer, cluster_name(config), memory_in=memory_in)
    except TamperedRecord as error:
        raise ConfigurationError(
            f"the database was altered outside the broker ({error}):"
            " keep the database as evidence, and put a backup in its place"
        ) from error
    clock = new_clock(opening.time)
    go_on = partial(promotion.go_on, wrap=KeyWrap(master_key), config=config) if is_to_serve else None
    store = PostgresStore(opening, clock, sealer, go_on)
    if not opening.is_settled:
        try:
            await store.settle()
        except Unavailable as error:
            await store.close()
            raise ConfigurationError(error.detail) from error
    yield OpenStore(store, clock, master_key)


def cluster_of(config: Config) -> Cluster:
    """The cluster to which a broker with these settings belongs."""
    return Cluster(config.issuer, config.trust_domain)


def cluster_name(config: Config) -> str:
    return str(cluster_of(config))


@contextlib.contextmanager
def driver_of_postgres() -> Iterator[None]:
    """Wraps imports that need the PostgreSQL driver, which is an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise ConfigurationError(
            "AGENTWRIT_DATABASE_URL needs the driver of PostgreSQL: pip install 'agentwrit[postgres]'"
        ) from error
