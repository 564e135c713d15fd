"""Backups: what somebody could gain by one, or by a store that was made from it."""

import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.support import AGENTWRIT, CLEAN, one_line, run
from tests.support import ADMIN_SECRET, BrokerProcess

KEY = "5a" * 32


def place(data_dir: Path) -> dict[str, str]:
    return {"AGENTWRIT_DATA_DIR": str(data_dir), "AGENTWRIT_MASTER_KEY": KEY}


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a store with live tokens, and some that were released."""
    directory = tmp_path_factory.mktemp("backup")
    with BrokerProcess(directory / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        app = broker.app()
        app.agent()
        broker.release(app.agent()["access_token"])
        assert run("backup", str(directory / "backup.db"), **place(broker.data_dir)).returncode == 0
    return directory / "backup.db"


@pytest.mark.parametrize("command", [["serve"], ["init"], ["store", "migrate"], ["store", "restored", "--yes"]])
def test_a_backup_that_is_put_in_place_by_hand_is_not_opened(backup: Path, tmp_path: Path, command: list[str]) -> None:
    """What has ended since would be alive in it."""
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o700)
    shutil.copy(backup, data_dir / "agentwrit.db")
    environment = {**place(data_dir), "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}
    done = subprocess.run(
        [AGENTWRIT, *command], env={**CLEAN, **environment}, capture_output=True, text=True, timeout=60
    )
    one_line(done, 2, "is a backup", "agentwrit restore")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET detail = 'nothing to see' WHERE sequence = 5",
        "DELETE FROM events WHERE sequence = (SELECT max(sequence) FROM events)",
        "UPDATE apps SET body = replace(CAST(body AS TEXT), 'read:data:*', 'root:any:*')",
        "DELETE FROM revocations",
        "UPDATE meta SET value = '0 0 0' WHERE name = 'audit_head'",
    ],
)
def test_a_backup_that_was_altered_is_not_restored_and_nothing_is_made(
    backup: Path, tmp_path: Path, change: str
) -> None:
    altered = tmp_path / "altered.db"
    shutil.copy(backup, altered)
    with closing(sqlite3.connect(altered)) as connection, connection:
        assert connection.execute(change).rowcount > 0
    done = run("restore", str(altered), **place(tmp_path / "data"))
    one_line(done, 2, "not as the broker left it")
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["lock"]


def test_a_backup_that_was_cut_off_is_not_restored(backup: Path, tmp_path: Path) -> None:
    for number, size in enumerate((100, 4096, backup.stat().st_size // 2, backup.stat().st_size - 4096)):
        short = tmp_path / f"short-{number}.db"
        short.write_bytes(backup.read_bytes()[:size])
        done = run("restore", str(short), **place(tmp_path / "data"))
        one_line(done, 2)
        assert not (tmp_path / "data" / "agentwrit.db").exists()


def test_the_feeds_former_epoch_in_a_restored_store_is_found(backup: Path, tmp_path: Path) -> None:
    """Verifiers that know numbers from after the backup would take the ends that come now for ones that they have."""
    data_dir = tmp_path / "data"
    assert run("restore", str(backup), **place(data_dir)).returncode == 0
    with closing(sqlite3.connect(data_dir / "agentwrit.db")) as connection, connection:
        connection.execute("ATTACH ? AS backup", (str(backup),))
        connection.execute(
            "UPDATE main.meta SET value = (SELECT value FROM backup.meta WHERE name = 'feed_epoch')"
            " WHERE name = 'feed_epoch'"
        )
    one_line(run("store", "verify", str(data_dir), **place(data_dir)), 1, "epoch")


def test_grants_of_the_backup_that_are_put_back_into_a_restored_store_are_found(backup: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    assert run("restore", str(backup), **place(data_dir)).returncode == 0
    with closing(sqlite3.connect(data_dir / "agentwrit.db")) as connection, connection:
        connection.execute("ATTACH ? AS backup", (str(backup),))
        connection.execute(
            "UPDATE main.grants SET (body, mac, ended_at) ="
            " (SELECT body, mac, ended_at FROM backup.grants AS old WHERE old.sid = main.grants.sid)"
        )
    one_line(run("store", "verify", str(data_dir), **place(data_dir)), 1, "put back to life")


def test_who_remembers_a_checkpoint_of_the_log_that_was_lost_finds_that_it_was_cut(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        app = broker.app()
        assert run("backup", str(tmp_path / "backup.db"), **place(broker.data_dir)).returncode == 0
        for _ in range(20):
            app.agent()
        operator = {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}
        key = run("audit", "keys", **operator).stdout.strip()

        def witness(url: str) -> "subprocess.CompletedProcess[str]":
            return run("audit", "witness", str(tmp_path / "seen"), "--key", key, AGENTWRIT_BROKER_URL=url)

        broker.http.post("/v1/audit/checkpoint", headers=broker.admin())
        assert witness(broker.url).returncode == 0
        broker.kill()
        shutil.rmtree(broker.data_dir)
        assert run("restore", str(tmp_path / "backup.db"), **place(broker.data_dir)).returncode == 0
        broker.start()
        one_line(witness(broker.url), 1, "history was cut off")
        for _ in range(30):
            app.agent()
        broker.http.post("/v1/audit/checkpoint", headers=broker.admin())
        one_line(witness(broker.url), 1, "history was rewritten")
