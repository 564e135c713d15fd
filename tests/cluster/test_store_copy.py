"""Moving up: a store that outgrew one machine's file goes on in PostgreSQL, and nobody's token dies of it."""

import sqlite3
from pathlib import Path

import pytest

from tests import postgres
from tests.cli.support import one_line, run
from tests.cluster.support import member
from tests.cluster.test_as_one import at
from tests.support import BrokerProcess


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[BrokerProcess, str, str]:
    """A broker that was stopped, with a live token and one that was released."""
    with BrokerProcess(tmp_path / "data") as broker:
        app = broker.app()
        live, released = (app.agent()["access_token"] for _ in range(2))
        for _ in range(60):
            broker.release(app.agent()["access_token"])
        broker.release(released)
        broker.stop()
    return broker, live, released


def is_empty(database_url: str) -> bool:
    return postgres.ask(database_url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'agentwrit'") == [(0,)]


def test_live_tokens_go_on_working_and_dead_ones_stay_dead(
    stopped: tuple[BrokerProcess, str, str], database_url: str, tmp_path: Path
) -> None:
    old, live, released = stopped
    done = run("store", "copy", "--from", str(old.data_dir), "--to", database_url)
    assert done.returncode == 0, done.stderr
    copied, verified, then = done.stdout.splitlines()
    assert "62 grants" not in copied
    assert " grants" in copied
    assert verified.startswith("verified all ")
    assert "AGENTWRIT_MASTER_KEY" in then
    key = (old.data_dir / "master.key").read_text().strip()
    assert key not in done.stdout + done.stderr
    with member(database_url, tmp_path / "new", AGENTWRIT_MASTER_KEY=key) as new:
        assert new.is_valid(live)
        assert not new.is_valid(released)
        successor = new.renew(live)
        assert successor.status_code == 200
        new.release(successor.json()["access_token"])
        ids = [event["id"] for event in new.events()]
        assert len(ids) == len(set(ids)) > 180
        assert at(new, new.app()).agent()
        environment = {"AGENTWRIT_BROKER_URL": new.url, "AGENTWRIT_ADMIN_SECRET": "an-operators-secret-for-tests"}
        assert run("audit", "verify", **environment).returncode == 0


def test_a_database_that_is_in_use_is_not_copied_into(
    stopped: tuple[BrokerProcess, str, str], database_url: str
) -> None:
    directory = str(stopped[0].data_dir)
    assert run("store", "copy", "--from", directory, "--to", database_url).returncode == 0
    one_line(run("store", "copy", "--from", directory, "--to", database_url), 2, "in use")


def test_the_store_of_a_running_broker_is_not_copied(database_url: str, tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        one_line(run("store", "copy", "--from", str(broker.data_dir), "--to", database_url), 2, "stop it")
    assert is_empty(database_url)


def test_a_directory_without_a_store_is_not_copied(database_url: str, tmp_path: Path) -> None:
    one_line(run("store", "copy", "--from", str(tmp_path), "--to", database_url), 2, "no data directory")
    assert is_empty(database_url)


def test_an_event_that_was_altered_is_found_and_nothing_is_written(
    stopped: tuple[BrokerProcess, str, str], database_url: str
) -> None:
    with sqlite3.connect(stopped[0].data_dir / "agentwrit.db") as file:
        file.execute("UPDATE events SET detail = 'nothing to see' WHERE sequence = 20")
    done = run("store", "copy", "--from", str(stopped[0].data_dir), "--to", database_url)
    one_line(done, 2, "evt-000020")
    assert is_empty(database_url)
