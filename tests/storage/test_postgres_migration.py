"""The schema is brought up to date beside brokers that run: they are not in each other's way, and older ones stop."""

import asyncio
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import migrations, postgres_alone, postgres_migration, postgres_objects, postgres_schema
from agentwrit.broker.storage.base import EventQuery, Transaction
from agentwrit.broker.storage.postgres import PostgresStore
from agentwrit.broker.storage.postgres_link import Link
from agentwrit.broker.storage.postgres_rows import State, covered_of
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import ConfigurationError, Unavailable
from tests import postgres

SEALER = Sealer(b"s" * 32)
BEFORE_ENDINGS = 4
BEFORE_HISTORY = 5
BEFORE_COVERED = 20
NEWEST = migrations.load("postgres")[-1].version
# What sessions of the version before had, and no mark of which schema they know.
OLD_SETTINGS = "SET search_path = agentwrit; SET lock_timeout = 3000; SET statement_timeout = 4000"


def make(url: str, version: int) -> None:
    """The store that an older version made."""
    link = Link.connect(url)
    with link.transaction():
        link.execute("CREATE SCHEMA agentwrit")
        for step in migrations.load("postgres"):
            if step.version <= version:
                postgres_objects.apply(link, step)
        meta = {"version": str(version), "sealed_by": SEALER.name, "cluster": "tests", "feed_epoch": "0" * 32}
        for name, value in meta.items():
            link.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (name, value))
        link.execute("INSERT INTO cluster (one, state) VALUES (1, ?)", (State().sealed(SEALER),))
    link.close()


def version_in(url: str) -> str:
    [[version]] = postgres.ask(url, "SELECT value FROM agentwrit.meta WHERE name = 'version'")
    return str(version)


class Migrating(threading.Thread):
    """A broker that starts. `error`: why it did not."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            postgres_schema.open_database(self.url, SEALER, "tests")
        except ConfigurationError as error:
            self.error = error

    def wait_for_lock(self) -> None:
        """Wait until it waits for a lock of somebody else."""
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        while postgres.ask(self.url, waits) == [(0,)]:
            assert self.is_alive(), self.error
            time.sleep(0.005)


@pytest.fixture
def reader(database_url: str) -> Iterator[psycopg.Connection]:
    make(database_url, BEFORE_ENDINGS)
    with psycopg.connect(database_url) as connection:
        connection.execute(OLD_SETTINGS)
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        connection.commit()
        yield connection


@pytest.mark.parametrize("tables", [("cluster", "grants"), ("grants", "cluster")])
def test_a_reading_that_takes_tables_in_another_order_is_not_ended_by_it(
    database_url: str, reader: psycopg.Connection, tables: tuple[str, ...]
) -> None:
    reader.execute(f"SELECT count(*) FROM {tables[0]}")
    migrating = Migrating(database_url)
    migrating.start()
    migrating.wait_for_lock()
    for table in tables[1:]:
        reader.execute(f"SELECT count(*) FROM {table}")
    reader.commit()
    migrating.join()
    assert (migrating.error, version_in(database_url)) == (None, str(NEWEST))


def test_a_batch_under_way_is_waited_for_and_neither_is_ended(database_url: str, reader: psycopg.Connection) -> None:
    [state] = reader.execute("SELECT state FROM cluster WHERE one = 1 FOR UPDATE").fetchone() or [""]
    migrating = Migrating(database_url)
    migrating.start()
    migrating.wait_for_lock()
    reader.execute("SELECT count(*) FROM grants")
    reader.execute("UPDATE cluster SET state = %s", (state,))
    reader.commit()
    migrating.join()
    assert (migrating.error, version_in(database_url)) == (None, str(NEWEST))


def test_brokers_that_write_without_end_do_not_keep_it_out(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always one that waits for the row, and has a lock of its table."""
    monkeypatch.setattr(postgres_migration, "MIGRATION_MS", 20_000)
    make(database_url, BEFORE_ENDINGS)
    is_over = threading.Event()
    ended: list[str] = []

    def write() -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute(OLD_SETTINGS)
            connection.commit()
            while not is_over.is_set():
                try:
                    connection.execute("SELECT state FROM cluster WHERE one = 1 FOR UPDATE")
                    connection.execute("UPDATE cluster SET state = state")
                    connection.commit()
                except psycopg.Error as error:
                    connection.rollback()
                    if not isinstance(error, psycopg.errors.RaiseException):  # it is to write no more
                        ended.append(str(error))

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    migrating = Migrating(database_url)
    migrating.start()
    migrating.join()
    is_over.set()
    for writer in writers:
        writer.join()
    assert (migrating.error, version_in(database_url), ended) == (None, str(NEWEST), [])


def test_it_gives_up_and_says_what_to_do_if_it_is_kept_out_for_long(
    database_url: str, reader: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_migration, "MIGRATION_MS", 800)
    reader.execute("SELECT count(*) FROM grants")
    migrating = Migrating(database_url)
    migrating.start()
    migrating.join()
    assert "stop the brokers first" in str(migrating.error)
    assert version_in(database_url) == str(BEFORE_ENDINGS)


def test_a_broker_of_the_version_before_reads_on_and_writes_no_more(database_url: str) -> None:
    make(database_url, BEFORE_HISTORY)
    with psycopg.connect(database_url, autocommit=True) as old:
        old.execute(OLD_SETTINGS)
        old.execute("UPDATE cluster SET state = state")
        postgres_schema.open_database(database_url, SEALER, "tests")
        with pytest.raises(psycopg.errors.RaiseException, match="newer version of AgentWrit: replace this broker"):
            old.execute("UPDATE cluster SET state = state")
        assert old.execute("SELECT count(*) FROM cluster").fetchone() == (1,)


def test_a_broker_of_this_version_reads_on_and_writes_no_more_behind_a_newer_one(database_url: str) -> None:
    def record(transaction: Transaction) -> None:
        transaction.record(Draft(event_type=EventType.TOKEN_ISSUED))

    async def claim() -> None:
        opened = postgres_schema.open_database(database_url, SEALER, "tests")
        store = PostgresStore(opened, Clock(opened.time), SEALER)
        try:
            await store.write(record)
            postgres.ask(database_url, f"UPDATE agentwrit.meta SET value = '{NEWEST + 1}' WHERE name = 'version'")
            with pytest.raises(Unavailable):
                await store.write(record)
            assert not store.is_writable()
            await store.catch_up()
            assert await store.read(lambda snapshot: snapshot.event_count(EventQuery())) == 1
            postgres.ask(database_url, f"UPDATE agentwrit.meta SET value = '{NEWEST}' WHERE name = 'version'")
            await store.write(record)
            assert store.is_writable()
        finally:
            await store.close()

    asyncio.run(claim())


def test_a_database_goes_back_to_the_version_before_with_all_that_is_in_it(database_url: str) -> None:
    postgres_schema.open_database(database_url, SEALER, "tests")
    postgres.ask(database_url, "INSERT INTO agentwrit.nonces (nonce, expires_at) VALUES ('n', 1)")
    postgres_alone.go_back(database_url, SEALER, BEFORE_HISTORY)
    assert version_in(database_url) == str(BEFORE_HISTORY)
    with psycopg.connect(database_url, autocommit=True) as old:
        old.execute(OLD_SETTINGS)
        old.execute("UPDATE cluster SET state = state")
    link = Link.connect(database_url)
    with link.transaction():
        postgres_objects.check(link, SEALER, BEFORE_HISTORY)
    link.close()
    postgres_schema.open_database(database_url, SEALER, "tests")
    assert version_in(database_url) == str(NEWEST)
    assert postgres.ask(database_url, "SELECT count(*) FROM agentwrit.nonces") == [(1,)]


def test_a_store_of_the_version_before_is_held_to_the_checkpoint_that_it_has(database_url: str) -> None:
    postgres_schema.open_database(database_url, SEALER, "tests")
    postgres.ask(database_url, "INSERT INTO agentwrit.checkpoint (one, size, note) VALUES (1, 7, 'the first 7')")
    postgres_alone.go_back(database_url, SEALER, BEFORE_COVERED)
    postgres_schema.open_database(database_url, SEALER, "tests")
    [row] = postgres.ask(database_url, "SELECT state, covered FROM agentwrit.cluster")
    assert covered_of(row, SEALER) == 7


@pytest.mark.parametrize("version", [BEFORE_ENDINGS, 0, NEWEST, NEWEST + 1, -1])
def test_where_there_is_no_way_back_nothing_is_changed(database_url: str, version: int) -> None:
    postgres_schema.open_database(database_url, SEALER, "tests")
    with pytest.raises(ConfigurationError, match=f"from {NEWEST} there is one to {BEFORE_COVERED}, {BEFORE_HISTORY}"):
        postgres_alone.go_back(database_url, SEALER, version)
    assert version_in(database_url) == str(NEWEST)


def test_no_way_back_is_taken_from_under_a_broker(database_url: str) -> None:
    async def claim() -> None:
        opened = postgres_schema.open_database(database_url, SEALER, "tests")
        store = PostgresStore(opened, Clock(opened.time), SEALER)
        try:
            assert await store.is_in_charge()
            with pytest.raises(ConfigurationError, match="a broker uses the database"):
                postgres_alone.go_back(database_url, SEALER, BEFORE_HISTORY)
        finally:
            await store.close()

    asyncio.run(claim())
