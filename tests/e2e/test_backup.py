"""`agentwrit backup` and `agentwrit restore`, with brokers that run, are killed, and go on from a backup."""

import asyncio
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from agentwrit.broker import stores
from agentwrit.broker.config import Config
from agentwrit.broker.offline import backups, verification
from agentwrit.domain.audit_export import unwatched
from agentwrit.domain.errors import ConfigurationError
from tests.cli.support import AGENTWRIT, CLEAN, one_line, run
from tests.e2e.test_durability import create_and_release
from tests.support import SOAK, BrokerProcess, bearer

KEY = "5a" * 32
BACKUPS = 2 if SOAK == 1 else SOAK  # while a broker writes


def place(data_dir: Path) -> dict[str, str]:
    return {"AGENTWRIT_DATA_DIR": str(data_dir), "AGENTWRIT_MASTER_KEY": KEY}


def back_up(broker: BrokerProcess, file: Path) -> Path:
    done = run("backup", str(file), **place(broker.data_dir))
    assert (done.returncode, done.stderr) == (0, ""), done
    assert KEY not in done.stdout
    assert KEY.encode() not in file.read_bytes()
    return file


def restore(file: Path, data_dir: Path) -> str:
    done = run("restore", str(file), **place(data_dir))
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def is_whole(data_dir: Path) -> bool:
    done = run("store", "verify", str(data_dir), **place(data_dir))
    return done.returncode == 0


def test_nothing_that_was_granted_before_lives_in_a_restored_store_and_everything_else_goes_on(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        app = broker.app()
        live, released = app.agent()["access_token"], app.agent()["access_token"]
        delegate = app.agent()
        delegated = broker.delegate(live, delegate["agent_id"]).json()["access_token"]
        app_token, operator, launch_token = app.token(), broker.admin(), app.launch_token()
        file = back_up(broker, tmp_path / "backup.db")
        broker.release(released)
        successor = broker.renew(live).json()["access_token"]
        late, late_operator = app.agent()["access_token"], broker.admin()
        assert broker.is_valid(late)
        broker.kill()
        shutil.rmtree(broker.data_dir)
        printed = restore(file, broker.data_dir)
        assert f"app {app.name} ({app.app_id}), active" in printed
        assert is_whole(broker.data_dir)
        broker.start()
        for token in (live, released, delegate["access_token"], delegated, app_token, successor, late):
            assert not broker.is_valid(token)
        assert broker.renew(successor).status_code == 401
        for headers in (operator, late_operator):
            assert broker.http.get("/v1/admin/apps", headers=headers).status_code == 401
        policy = {"agent_name": "x", "allowed_scope": ["read:data:1"]}
        assert broker.http.post("/v1/app/launch-tokens", json=policy, headers=bearer(app_token)).status_code == 401
        assert broker.http.post("/v1/register", json={"launch_token": launch_token}).status_code in (400, 401)
        assert broker.is_valid(app.agent()["access_token"])
        types = [event["event_type"] for event in broker.events()]
        assert types.count("store_restored") == 1
        assert is_whole(broker.data_dir)


def test_a_key_that_took_over_after_the_backup_is_dead_too(tmp_path: Path) -> None:
    """It was the next one in the backup, private half and all."""
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        app = broker.app()
        file = back_up(broker, tmp_path / "backup.db")
        tokens = []
        for _ in range(2):  # to the key that the backup has, and to one that it has not
            answer = broker.http.post("/v1/admin/keys/rotate", json={"force": True}, headers=broker.admin())
            assert answer.status_code == 200
            tokens.append(app.agent()["access_token"])
        assert all(map(broker.is_valid, tokens))
        broker.kill()
        shutil.rmtree(broker.data_dir)
        restore(file, broker.data_dir)
        broker.start()
        assert not any(map(broker.is_valid, tokens))


def test_a_backup_is_one_state_while_the_broker_writes(tmp_path: Path) -> None:
    """Every agent that was answered before it began is in it, and all that is in it agrees."""
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        app = broker.app()
        app_token = app.token()
        answered: list[str] = []
        enough, stopping = threading.Event(), threading.Event()

        def live() -> None:
            while not stopping.is_set():
                answered.append(create_and_release(broker, app, app_token)[0])
                if len(answered) > 20:
                    enough.set()

        threads = [threading.Thread(target=live) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for number in range(BACKUPS):
                assert enough.wait(60)
                before = list(answered)
                file = back_up(broker, tmp_path / f"backup-{number}.db")
                done = run("store", "verify", str(file), **place(broker.data_dir))
                assert done.returncode == 0, done.stderr
                with closing(sqlite3.connect(file)) as copy:
                    kept = {row[0] for row in copy.execute("SELECT agent_id FROM events")}
                assert set(before) <= kept
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
        broker.kill()
        broker.start()
        assert not broker.is_valid(create_and_release(broker, app, app_token)[1])
        assert is_whole(broker.data_dir)


def test_a_backup_is_private_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        kept = tmp_path / "kept"
        kept.mkdir()
        file = back_up(broker, kept / "backup.db")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert names(kept) == ["backup.db"]
        broker.stop()
        beside = names(broker.data_dir)
        back_up(broker, kept / "at-rest.db")
        assert names(broker.data_dir) == beside


def test_no_file_is_overwritten_unless_it_is_said(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        file = tmp_path / "backup.db"
        file.write_text("mine")
        one_line(run("backup", str(file), **place(broker.data_dir)), 2, "is there already", "--overwrite")
        assert file.read_text() == "mine"
        assert run("backup", "--overwrite", str(file), **place(broker.data_dir)).returncode == 0
        assert run("store", "verify", str(file), **place(broker.data_dir)).returncode == 0
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_two_at_once_make_one_backup_of_a_name(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        command = [AGENTWRIT, "backup", str(tmp_path / "backup.db")]
        environment = {**CLEAN, **place(broker.data_dir)}
        both = [
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(2)
        ]
        assert sorted(process.wait(60) for process in both) == [0, 2]
        assert not [name for name in names(tmp_path) if name.endswith(".partial")]
        assert run("store", "verify", str(tmp_path / "backup.db"), **place(broker.data_dir)).returncode == 0


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a store with live tokens in it."""
    directory = tmp_path_factory.mktemp("backed-up")
    with BrokerProcess(directory / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        app = broker.app()
        for _ in range(3):
            app.agent()
        return back_up(broker, directory / "backup.db")


SYSCALLS = [
    *(("fdatasync", number) for number in range(1, 15)),
    *(("unlink", number) for number in range(1, 14)),
    ("fsync", 1),
    ("rename", 1),
    ("fsync", 2),
]
READ = ("fdatasync", 5)


@pytest.mark.parametrize(("syscall", "number"), SYSCALLS)
def test_a_restore_that_is_killed_leaves_no_store_or_one_in_which_everything_has_ended(
    tmp_path: Path, backed_up: Path, syscall: str, number: int
) -> None:
    """Killed when it is about to make this system call for the n-th time."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.fail("this test needs strace: install it, for example with `apt-get install strace`")
    data_dir = tmp_path / "data"
    environment = {**CLEAN, **place(data_dir), "AGENTWRIT_ADMIN_SECRET": "an-operators-secret-for-tests"}
    killing = [strace, "-f", "-qq", "-o", "/dev/null", "-e", f"inject={syscall}:signal=KILL:when={number}"]
    command = [sys.executable, "-m", "agentwrit.broker", "restore", str(backed_up)]
    done = subprocess.run([*killing, *command], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0, done
    # What follows needs no process of its own, but for the one whose words are read.
    config = Config(data_dir=data_dir, master_key=KEY)
    if not (data_dir / "agentwrit.db").exists():
        if (data_dir / "agentwrit.db.restoring").exists():
            with pytest.raises(ConfigurationError, match="not restored to the end"):
                asyncio.run(open_and_close(config))
            if (syscall, number) == READ:
                refused = subprocess.run(
                    [AGENTWRIT, "serve"], env=environment, capture_output=True, text=True, timeout=60
                )
                one_line(refused, 2, "not restored to the end", "agentwrit restore")
        else:
            assert (syscall, number) != READ
        backups.restore(backed_up, config, progress=unwatched)
    with closing(sqlite3.connect(data_dir / "agentwrit.db")) as database:
        assert database.execute("SELECT count(*) FROM grants WHERE ended_at = 0").fetchone() == (0,)
        [restored] = database.execute("SELECT sequence FROM events WHERE event_type = 'store_restored'").fetchall()
        assert restored
    assert verification.verify_store(data_dir, config, progress=unwatched) > 0


async def open_and_close(config: Config) -> None:
    async with stores.open_store(config):
        pass


def test_a_disk_that_is_full_ends_a_backup_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        full = "import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
        ignoring = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
        script = f"{full}; {ignoring}; os.execv(sys.argv[1], sys.argv[1:])"
        (tmp_path / "kept").mkdir()
        command = [sys.executable, "-c", script, AGENTWRIT, "backup", str(tmp_path / "kept" / "backup.db")]
        environment = {**CLEAN, **place(broker.data_dir)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        one_line(done, 2, "cannot be made")
        assert names(tmp_path / "kept") == []
        with httpx2.Client(base_url=broker.url) as http:
            assert http.get("/readyz").status_code == 200
