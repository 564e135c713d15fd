"""What a session with the database has to be, whoever set up the server, and whatever lies between."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import postgres_link, postgres_writer
from agentwrit.broker.storage.postgres import UNKNOWN, PostgresStore
from agentwrit.broker.storage.postgres_alone import run_alone
from agentwrit.broker.storage.postgres_lineage import SURVEY
from agentwrit.broker.storage.postgres_link import UNSAFE, Link, parameters
from agentwrit.broker.storage.postgres_schema import open_database
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import ConfigurationError, Unavailable
from tests import postgres
from tests.domain.records import make_grant
from tests.postgres import PostgresServer
from tests.storage.pooler import TransactionPooler

SEALER = Sealer(b"s" * 32)
ISSUED = Draft(event_type=EventType.TOKEN_ISSUED)


@pytest.mark.parametrize(
    ("default", "used"),
    [("off", "on"), ("local", "on"), ("on", "on"), ("remote_write", "remote_write"), ("remote_apply", "remote_apply")],
)
def test_a_commit_waits_for_the_disk_whatever_the_default_is_or_becomes(
    database_url: str, default: str, used: str
) -> None:
    name = database_url.rpartition("/")[2]
    postgres.ask(database_url, f"ALTER DATABASE {name} SET synchronous_commit = {default}")
    with closing(Link.connect(database_url)) as link:
        # What a session has set for itself no reload changes.
        said = "SELECT setting, source FROM pg_settings WHERE name = 'synchronous_commit'"
        assert link.execute(said).fetchall() == [(used, "session")]


# Each as far as it goes, and what connects ours to others' programs.
DEFAULTS = {
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "datestyle": "SQL, DMY",
    "timezone": "Pacific/Kiritimati",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "row_security": "off",
    "plan_cache_mode": "force_generic_plan",
    "search_path": "public",
    "client_min_messages": "debug5",
    "statement_timeout": "1",
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
    "idle_session_timeout": "1000",
    "temp_file_limit": "0",
    "exit_on_error": "on",
    "quote_all_identifiers": "on",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_store_does_not_depend_on_the_defaults_of_its_database(database_url: str, name: str) -> None:
    database = database_url.rpartition("/")[2]
    # Before, because a default may keep this question from being answered, or change the answer.
    [[seconds]] = postgres.ask(database_url, "SELECT extract(epoch FROM clock_timestamp())::text")
    postgres.ask(database_url, f"ALTER DATABASE {database} SET {name} = '{DEFAULTS[name]}'")

    async def claim() -> None:
        opened = open_database(database_url, SEALER, "tests")
        assert 0 <= opened.time() - float(seconds) < 60
        store = PostgresStore(opened, Clock(opened.time), SEALER)
        grant = make_grant()
        try:
            for _ in range(2):
                await store.write(lambda transaction: transaction.record(ISSUED))
                await store.catch_up()
            await store.write(lambda transaction: transaction.put(grant))
            assert await store.read(lambda snapshot: snapshot.grant(grant.sid)) == grant
            assert await store.read(lambda snapshot: snapshot.event_head()) == 2
            await store.write(lambda transaction: transaction.purge(100))
        finally:
            await store.close()

    asyncio.run(claim())


@pytest.mark.parametrize("name", ["bytea_output", "datestyle", "quote_all_identifiers", "search_path"])
def test_a_schema_is_ours_whatever_the_defaults_become(database_url: str, name: str) -> None:
    """Functions keep some of what held for the session that made them."""
    database = database_url.rpartition("/")[2]
    changes = [f"SET {name} = '{DEFAULTS[name]}'", f"RESET {name}"]
    for made_with, found_with in (changes, reversed(changes)):
        postgres.ask(database_url, f"ALTER DATABASE {database} {made_with}")
        open_database(database_url, SEALER, "tests")
        postgres.ask(database_url, f"ALTER DATABASE {database} {found_with}")
        open_database(database_url, SEALER, "tests")
        postgres.ask(database_url, "DROP SCHEMA agentwrit CASCADE")


def test_a_schema_that_a_session_made_which_quotes_all_names_is_ours(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = postgres_link._settings

    def quoting(mark: str, server_version: int) -> bytes:
        return settings(mark, server_version).replace(b"quote_all_identifiers = off", b"quote_all_identifiers = on")

    with monkeypatch.context() as before:
        before.setattr(postgres_link, "_settings", quoting)
        open_database(database_url, SEALER, "tests")
    postgres.ask(database_url, "DELETE FROM agentwrit.meta WHERE name = 'schema'")
    open_database(database_url, SEALER, "tests")


@pytest.fixture(scope="module")
def waiting_server() -> Iterator[PostgresServer]:
    """A server that waits for a standby, which never comes. Roles wait as little as they are told to."""
    own = PostgresServer()
    try:
        postgres.ask(own.url, "ALTER ROLE agentwrit SET synchronous_commit = local")
        postgres.ask(own.url, "ALTER ROLE agentwrit SET client_min_messages = error")
        yield own
    finally:
        own.close()


def cancel_the_wait(url: str) -> None:
    waits = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database()"
    while not (found := postgres.ask(url, waits)):
        threading.Event().wait(0.01)
    postgres.ask(url, "SELECT pg_cancel_backend(%s)", *found[0])


def test_a_commit_whose_wait_for_the_standby_was_cancelled_is_not_acknowledged(waiting_server: PostgresServer) -> None:
    with postgres.database(waiting_server.url) as url:
        opening = open_database(url, SEALER, "tests")
        store = PostgresStore(opening, Clock(opening.time), SEALER)
        postgres.ask(url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        postgres.ask(url, "SELECT pg_reload_conf()")

        async def claim() -> None:
            writing = asyncio.create_task(store.write(lambda transaction: transaction.record(ISSUED)))
            await asyncio.to_thread(cancel_the_wait, url)
            with pytest.raises(Unavailable, match="may have been done, or not"):
                await writing
            assert UNKNOWN.endswith("may have been done, or not")
            assert await store.read(lambda snapshot: snapshot.event_count()) == 1
            restoring = asyncio.create_task(
                asyncio.to_thread(run_alone, url, SEALER, "tests", lambda transaction: transaction.record(ISSUED))
            )
            await asyncio.to_thread(cancel_the_wait, url)
            with pytest.raises(ConfigurationError, match="run it again"):
                await restoring
            await store.close()

        asyncio.run(claim())


@pytest.mark.parametrize(
    "parameter",
    [
        "target_session_attrs=any",
        "target_session_attrs=standby",
        "target_session_attrs=prefer-standby",
        "target_session_attrs=read-only",
        "load_balance_hosts=random",
        "replication=database",
    ],
)
def test_a_url_that_may_lead_to_a_standby_is_refused(parameter: str) -> None:
    with pytest.raises(ConfigurationError, match=parameter.partition("=")[0]):
        parameters(f"postgresql://u@one,two/d?{parameter}")


def test_neither_the_environment_nor_a_service_file_leads_to_a_standby(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "services").write_text("[odd]\ntarget_session_attrs=standby\nload_balance_hosts=random\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    monkeypatch.setenv("PGLOADBALANCEHOSTS", "random")
    for url in (database_url, f"{database_url}?service=odd", f"{database_url}?target_session_attrs=primary"):
        with closing(Link.connect(url)) as link:
            assert link.execute("SELECT pg_is_in_recovery()").fetchall() == [(False,)]


def test_a_pooler_that_changes_sessions_between_transactions_is_refused_at_the_start(database_url: str) -> None:
    with TransactionPooler(database_url) as pooler:
        for _ in range(2):  # the second time there are sessions that somebody else had
            with pytest.raises(ConfigurationError, match="pool_mode = session"):
                open_database(pooler.url, SEALER, "tests")
    assert postgres.ask(database_url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'agentwrit'") == [(0,)]


def test_a_pooler_that_begins_to_change_sessions_is_refused_by_each_connection(database_url: str) -> None:
    opening = open_database(database_url, SEALER, "tests")
    with TransactionPooler(database_url) as pooler:
        store = PostgresStore(opening._replace(url=pooler.url), Clock(opening.time), SEALER)

        async def claim() -> None:
            for _ in range(3):
                answers = await asyncio.gather(
                    store.catch_up(),
                    store.read(lambda snapshot: snapshot.event_count()),
                    store.write(lambda transaction: transaction.record(ISSUED)),
                    return_exceptions=True,
                )
                for answer in answers:
                    if isinstance(answer, Unavailable):
                        reasons.add(str(answer.__cause__))
            await store.close()

        reasons: set[str] = set()
        asyncio.run(claim())
        assert any("pool_mode = session" in reason for reason in reasons)


def test_what_is_asked_of_a_new_connection_can_be_asked_of_a_standby(database_url: str) -> None:
    """It must say that it is one, and not fail."""
    open_database(database_url, SEALER, "tests")
    with psycopg.connect(database_url) as connection:
        connection.execute("SET search_path = agentwrit")
        plan = connection.execute(f"EXPLAIN {SURVEY.format(0)}".encode("ascii")).fetchall()
    assert plan


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_server_that_begins_to_forget_is_warned_of_once(name: str) -> None:
    with closing(PostgresServer(("autovacuum=off",))) as server:

        async def claim() -> None:
            opened = open_database(server.url, SEALER, "tests")
            store = PostgresStore(opened, Clock(opened.time), SEALER)
            try:
                with capture_logs() as said:
                    assert await store.is_in_charge()
                    assert said == []
                    postgres.ask(server.url, f"ALTER SYSTEM SET {name} = off")
                    postgres.ask(server.url, "SELECT pg_reload_conf()")
                    while not said:
                        assert await store.is_in_charge()
                    assert await store.is_in_charge()
                    assert [line["event"] for line in said] == [UNSAFE]
            finally:
                await store.close()

        asyncio.run(claim())


def test_a_broker_that_keeps_house_and_hangs_is_followed_by_another(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def claim() -> None:
        opened = open_database(database_url, SEALER, "tests")
        hanging, other = (PostgresStore(opened, Clock(opened.time), SEALER) for _ in range(2))
        monkeypatch.setattr(postgres_writer, "IDLE_SESSION_MS", 500)
        try:
            assert await hanging.is_in_charge()
            while not await other.is_in_charge():
                await asyncio.sleep(0.05)
            await hanging.write(lambda transaction: transaction.record(ISSUED))  # it goes on as any other
        finally:
            await hanging.close()
            await other.close()

    asyncio.run(claim())


GRANTS = (
    "GRANT USAGE ON SCHEMA agentwrit TO zz_writer",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA agentwrit TO zz_writer",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA agentwrit TO zz_writer",
)


def test_a_role_that_may_change_rows_and_nothing_else_is_enough_for_a_broker(
    database_url: str, postgres_server: str
) -> None:
    async def claim(url: str) -> None:
        opened = open_database(url, SEALER, "tests")
        store = PostgresStore(opened, Clock(opened.time), SEALER)
        try:
            await store.write(lambda transaction: transaction.put(make_grant()))
            await store.write(lambda transaction: transaction.record(ISSUED))
            await store.catch_up()
            assert await store.is_in_charge()
            assert await store.read(lambda snapshot: snapshot.event_head()) == 1
            await store.write(lambda transaction: transaction.purge(100))
        finally:
            await store.close()

    postgres.ask(postgres_server, "CREATE ROLE zz_writer LOGIN")
    try:
        open_database(database_url, SEALER, "tests")  # as its owner: `agentwrit store migrate`
        for grant in GRANTS:
            postgres.ask(database_url, grant)
        asyncio.run(claim(postgres.as_user(database_url, "zz_writer")))
    finally:
        postgres.ask(database_url, "DROP OWNED BY zz_writer")
        postgres.ask(postgres_server, "DROP ROLE zz_writer")


def test_what_a_server_has_that_is_doubtful_is_said_to_whoever_serves(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    with capture_logs() as said:
        open_database(database_url, SEALER, "tests")
        assert said == []
        opened = open_database(database_url, SEALER, "tests", memory_in=tmp_path)
    assert opened.memory is not None
    opened.memory.close()
    assert said[0]["event"] == UNSAFE  # as tests have it
    assert ("clock and this machine's differ" in said[1]["event"], 3500 < said[1]["ahead"] < 3700) == (True, True)
