"""A database that was restored with its own tools: told so, it revives nothing."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from agentwrit.broker.storage.postgres_writer import CHARGE_LOCK
from agentwrit.domain import audit
from tests import postgres
from tests.cli.support import CLEAN, one_line, run
from tests.cluster.support import MASTER_KEY, member
from tests.postgres import FAST, PostgresServer


def shared(database_url: str) -> dict[str, str]:
    return {"AGENTWRIT_DATABASE_URL": database_url, "AGENTWRIT_MASTER_KEY": MASTER_KEY}


def tool(name: str, *arguments: str) -> None:
    done = subprocess.run([postgres.binaries() / name, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_nothing_that_was_granted_before_lives_in_a_restored_database(
    postgres_server: str, database_url: str, tmp_path: Path
) -> None:
    dump = str(tmp_path / "agentwrit.dump")
    with member(database_url, tmp_path / "old") as old:
        app = old.app()
        live, released = app.agent()["access_token"], app.agent()["access_token"]
        tool("pg_dump", "--format=custom", f"--file={dump}", database_url)
        old.release(released)
        old.http.post("/v1/admin/keys/rotate", json={"force": True}, headers=old.admin())
        late = app.agent()["access_token"]
        old.kill()
    with postgres.database(postgres_server) as restored_url:
        tool("pg_restore", f"--dbname={restored_url}", dump)
        done = run("store", "restored", "--yes", **shared(restored_url))
        assert (done.returncode, done.stderr) == (0, "")
        assert f"app {app.name} ({app.app_id}), active" in done.stdout
        with member(restored_url, tmp_path / "new") as new:
            app.broker = new
            assert not any(map(new.is_valid, (live, released, late)))
            assert new.is_valid(app.agent()["access_token"])
            [told] = new.events(event_type="store_restored")
            before = audit.event_id(audit.parse_event_id(told["id"]) - 1)
            assert (told["data"]["backup_last"], told["data"]["backup_hash"]) == (before, told["prev_hash"])
            environment = {"AGENTWRIT_BROKER_URL": new.url, "AGENTWRIT_ADMIN_SECRET": "an-operators-secret-for-tests"}
            assert run("audit", "verify", **environment).returncode == 0


@pytest.fixture(scope="module")
def publisher() -> Iterator[PostgresServer]:
    """A server that others can subscribe to."""
    own = PostgresServer((*FAST, "wal_level=logical"))
    try:
        yield own
    finally:
        own.close()


def dumped(url: str, copy: str) -> None:
    """All of it, as rows."""
    dump, psql = (str(postgres.binaries() / name) for name in ("pg_dump", "psql"))
    with subprocess.Popen([dump, url], stdout=subprocess.PIPE) as source:
        tool_reading(source.stdout, psql, "--quiet", "--set=ON_ERROR_STOP=1", copy)
    assert source.returncode == 0


def subscribed(url: str, copy: str) -> None:
    """The schema by a dump, and the rows by logical replication, until they are all there."""
    dump, psql = (str(postgres.binaries() / name) for name in ("pg_dump", "psql"))
    with subprocess.Popen([dump, "--schema-only", url], stdout=subprocess.PIPE) as source:
        tool_reading(source.stdout, psql, "--quiet", "--set=ON_ERROR_STOP=1", copy)
    assert source.returncode == 0
    slot = f"slot_{url.rpartition('_')[2]}"  # of its own making: the server would wait for itself
    postgres.ask(url, "CREATE PUBLICATION everything FOR ALL TABLES")
    postgres.ask(url, "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    options = f"(create_slot = false, slot_name = '{slot}')"
    postgres.ask(copy, f"CREATE SUBSCRIPTION everything CONNECTION '{url}' PUBLICATION everything WITH {options}")
    while postgres.ask(copy, "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'") != [(0,)]:
        threading.Event().wait(0.05)
    for sql in ("DISABLE", "SET (slot_name = NONE)"):
        postgres.ask(copy, f"ALTER SUBSCRIPTION everything {sql}")
    postgres.ask(copy, "DROP SUBSCRIPTION everything")
    while postgres.ask(url, "SELECT active FROM pg_replication_slots WHERE slot_name = %s", slot) != [(False,)]:
        threading.Event().wait(0.05)
    postgres.ask(url, "SELECT pg_drop_replication_slot(%s)", slot)


def tool_reading(source: IO[bytes] | None, *command: str) -> None:
    done = subprocess.run(command, stdin=source, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def serve(url: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A broker that does not start."""
    environment = {**CLEAN, **shared(url), "AGENTWRIT_DATA_DIR": str(directory), "AGENTWRIT_PORT": "0"}
    command = [sys.executable, "-m", "agentwrit.broker", "serve"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("copied", [dumped, subscribed])
def test_a_copy_by_other_means_is_refused_until_it_was_told_and_revives_nobody(
    publisher: PostgresServer, tmp_path: Path, copied: Callable[[str, str], None]
) -> None:
    with postgres.database(publisher.url) as url, postgres.database(publisher.url) as copy:
        with member(url, tmp_path / "original") as original:
            app = original.app()
            live, released = app.agent()["access_token"], app.agent()["access_token"]
            copied(url, copy)
            original.release(released)
            one_line(serve(copy, tmp_path / "refused"), 2, "a copy of the one that the store was in")
            done = run("store", "restored", "--yes", **shared(copy))
            assert (done.returncode, done.stderr) == (0, "")
            assert original.is_valid(live)
        with member(copy, tmp_path / "copy") as broker:
            app.broker = broker
            assert not any(map(broker.is_valid, (live, released)))
            assert broker.is_valid(app.agent()["access_token"])  # rows are numbered behind those that were copied


def test_all_of_many_live_grants_end(database_url: str, tmp_path: Path) -> None:
    with member(database_url, tmp_path / "old") as broker:
        app = broker.app()
        tokens = [app.agent()["access_token"] for _ in range(50)]
        broker.stop()
    assert "ended 101 grants" in run("store", "restored", "--yes", **shared(database_url)).stdout
    with member(database_url, tmp_path / "new") as broker:
        assert not any(map(broker.is_valid, tokens))


def test_a_database_without_a_store_is_refused_and_left_empty(database_url: str) -> None:
    one_line(run("store", "restored", "--yes", **shared(database_url)), 2, "no store")
    assert postgres.ask(database_url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'agentwrit'") == [(0,)]


def test_a_database_that_a_broker_uses_is_refused_and_everything_lives(database_url: str, tmp_path: Path) -> None:
    with member(database_url, tmp_path / "broker") as broker:
        token = broker.app().agent()["access_token"]
        half = CHARGE_LOCK % 2**32
        held = f"SELECT count(*) FROM pg_locks JOIN pg_database AS db ON db.oid = database WHERE objid = {half}"
        held += " AND datname = current_database()"
        while postgres.ask(database_url, held) == [(0,)]:  # until it keeps house
            assert broker.is_valid(token)
        one_line(run("store", "restored", "--yes", **shared(database_url)), 2, "stop all")
        assert broker.is_valid(token)


def test_another_master_key_or_cluster_is_refused(database_url: str, tmp_path: Path) -> None:
    with member(database_url, tmp_path / "broker") as broker:
        token = broker.app().agent()["access_token"]
        broker.stop()
        other_key = {**shared(database_url), "AGENTWRIT_MASTER_KEY": "5a" * 32}
        one_line(run("store", "restored", "--yes", **other_key), 2, "master key")
        one_line(run("store", "restored", "--yes", **shared(database_url), AGENTWRIT_ISSUER="x"), 2, "another cluster")
        broker.start()
        assert broker.is_valid(token)


def test_a_backup_is_neither_made_of_a_database_nor_restored_into_one(database_url: str, tmp_path: Path) -> None:
    one_line(run("backup", str(tmp_path / "backup.db"), **shared(database_url)), 2, "pg_dump")
    (tmp_path / "backup.db").write_text("")
    one_line(run("restore", str(tmp_path / "backup.db"), **shared(database_url)), 2, "store restored")
