"""A new master key for brokers that share a database: all stopped, all moved."""

import os
import secrets
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import postgres
from tests.cli.support import one_line, run
from tests.cluster.support import MASTER_KEY, member
from tests.cluster.test_as_one import at

NEW_KEY = secrets.token_hex(32)


class Stopped:
    """Brokers that were stopped, with a live token and one that was released."""

    def __init__(self, database_url: str, directory: Path) -> None:
        self.url, self.directory = database_url, directory
        with member(database_url, directory / "old") as broker:
            app = broker.app()
            self.live, self.released = (app.agent()["access_token"] for _ in range(2))
            broker.release(self.released)
            broker.stop()

    def rewrap(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"AGENTWRIT_DATABASE_URL": self.url, "AGENTWRIT_MASTER_KEY": MASTER_KEY, **environment}
        return run("keys", "rewrap", *arguments, **settings)

    def goes_on(self, master_key: str) -> None:
        """Start two brokers, and see that nothing was lost."""
        with (
            member(self.url, self.directory / "new-1", AGENTWRIT_MASTER_KEY=master_key) as one,
            member(self.url, self.directory / "new-2", AGENTWRIT_MASTER_KEY=master_key) as two,
        ):
            for broker in (one, two):
                assert broker.is_valid(self.live)
                assert not broker.is_valid(self.released)
            app = one.app()
            token = at(two, app).agent()["access_token"]
            assert one.release(token).status_code == 204
            assert not two.is_valid(token)
            admin = {"AGENTWRIT_BROKER_URL": two.url, "AGENTWRIT_ADMIN_SECRET": "an-operators-secret-for-tests"}
            assert run("audit", "verify", **admin).returncode == 0


@pytest.fixture
def stopped(database_url: str, tmp_path: Path) -> Stopped:
    return Stopped(database_url, tmp_path)


def test_tokens_live_and_stay_dead_under_the_new_key(stopped: Stopped) -> None:
    done = stopped.rewrap(AGENTWRIT_NEW_MASTER_KEY=NEW_KEY)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("moved ")
    assert NEW_KEY not in done.stdout
    stopped.goes_on(NEW_KEY)
    again = stopped.rewrap(AGENTWRIT_NEW_MASTER_KEY=NEW_KEY)
    assert again.stdout.startswith("the store is under the new master key already")
    old = {"AGENTWRIT_DATABASE_URL": stopped.url, "AGENTWRIT_MASTER_KEY": MASTER_KEY}
    one_line(run("store", "migrate", **old), 2, "before `agentwrit keys rewrap`")


def test_while_a_broker_runs_nothing_is_moved(stopped: Stopped) -> None:
    with member(stopped.url, stopped.directory / "running") as broker:
        one_line(stopped.rewrap(AGENTWRIT_NEW_MASTER_KEY=NEW_KEY), 2, "a broker of this database is running", "stop")
        assert broker.is_valid(stopped.live)
        assert broker.app().agent()
        broker.stop()
    stopped.goes_on(MASTER_KEY)


def test_a_broker_that_was_overlooked_says_no_and_writes_nothing(stopped: Stopped) -> None:
    """One that calls its connections something else is not seen. It has the old key, so it is of no use any more."""
    url = f"{stopped.url}?application_name=overlooked"
    with member(url, stopped.directory / "overlooked") as broker:
        app_token, admin = broker.app().token(), broker.admin()
        os.kill(broker.pid, signal.SIGSTOP)  # or it would keep house again meanwhile, which is seen
        try:
            postgres.ask(stopped.url, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
            done = stopped.rewrap(AGENTWRIT_NEW_MASTER_KEY=NEW_KEY)
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        assert (done.returncode, done.stderr) == (0, "")
        before = postgres.ask(stopped.url, "SELECT count(*) FROM agentwrit.events")
        for token in (stopped.live, app_token):
            assert broker.http.post("/v1/token/validate", json={"token": token}).status_code == 503
        assert broker.http.post("/v1/revoke", json={"level": "task", "target": "t"}, headers=admin).status_code == 503
        assert postgres.ask(stopped.url, "SELECT count(*) FROM agentwrit.events") == before
        broker.kill()
    stopped.goes_on(NEW_KEY)


def test_two_at_once_do_it_once_or_not_at_all(stopped: Stopped) -> None:
    keys = [secrets.token_hex(32) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda key: stopped.rewrap(AGENTWRIT_NEW_MASTER_KEY=key), keys))
    moved = [key for key, each in zip(keys, done, strict=True) if each.returncode == 0]
    assert len(moved) <= 1
    for each in done:
        if each.returncode != 0:
            one_line(each, 2)
    stopped.goes_on(moved[0] if moved else MASTER_KEY)


def test_what_is_wrong_is_said_in_a_line(stopped: Stopped, postgres_server: str) -> None:
    one_line(stopped.rewrap(), 2, "--to", "AGENTWRIT_NEW_MASTER_KEY")
    wrong = stopped.rewrap(AGENTWRIT_MASTER_KEY=secrets.token_hex(32), AGENTWRIT_NEW_MASTER_KEY=NEW_KEY)
    one_line(wrong, 2, "not the one that this database was made with")
    with postgres.database(postgres_server) as empty:
        refused = stopped.rewrap(AGENTWRIT_DATABASE_URL=empty, AGENTWRIT_NEW_MASTER_KEY=NEW_KEY)
        one_line(refused, 2, "no store of a broker")
        assert postgres.ask(empty, "SELECT count(*) FROM pg_namespace WHERE nspname = 'agentwrit'") == [(0,)]
    stopped.goes_on(MASTER_KEY)


def test_a_row_that_was_altered_stops_it(stopped: Stopped) -> None:
    postgres.ask(stopped.url, "UPDATE agentwrit.operators SET mac = 'x'")
    one_line(stopped.rewrap(AGENTWRIT_NEW_MASTER_KEY=NEW_KEY), 2, "the row admin of operators was altered")
