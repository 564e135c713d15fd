"""`agentwrit store migrate`: what a migration job runs."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.support import MASTER_KEY, member
from tests.support import BrokerProcess

KEY = "5a" * 32


def migrate(directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "agentwrit"), "store", "migrate"]
    environment = {"PATH": os.environ["PATH"], "AGENTWRIT_DATA_DIR": str(directory), **settings}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_store_is_made_once_and_a_broker_serves_on_it(tmp_path: Path) -> None:
    for _ in range(2):
        done = migrate(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY)
        assert (done.returncode, done.stdout, done.stderr) == (0, "the store is up to date\n", "")
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        assert broker.is_valid(broker.app().agent()["access_token"])


def test_a_database_is_made_ready_for_the_brokers_that_share_it(database_url: str, tmp_path: Path) -> None:
    shared = {"AGENTWRIT_DATABASE_URL": database_url, "AGENTWRIT_MASTER_KEY": MASTER_KEY}
    for _ in range(2):
        assert migrate(tmp_path, **shared).stdout == "the store is up to date\n"
    with member(database_url, tmp_path / "broker") as broker:
        assert broker.is_valid(broker.app().agent()["access_token"])
    done = migrate(tmp_path, **shared | {"AGENTWRIT_MASTER_KEY": KEY})
    assert (done.returncode, done.stdout) == (2, "")


def test_what_is_wrong_with_it_fails_the_job_in_one_line(tmp_path: Path) -> None:
    migrate(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY)
    done = migrate(tmp_path / "data", AGENTWRIT_MASTER_KEY="a5" * 32)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("agentwrit: ")
    assert "master key" in done.stderr
    assert done.stderr.count("\n") == 1
