"""A database that was restored with its own tools: told so, it revives nothing."""

import subprocess
from pathlib import Path

from agentwrit.broker.storage.postgres_writer import CHARGE_LOCK
from agentwrit.domain import audit
from tests import postgres
from tests.cli.support import one_line, run
from tests.cluster.support import MASTER_KEY, member


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
