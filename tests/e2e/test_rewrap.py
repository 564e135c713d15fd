"""`agentwrit keys rewrap`: a stopped broker goes on under a new master key, whatever stops the change."""

import random
import secrets
import shutil
import sqlite3
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.support import AGENTWRIT, CLEAN, one_line, run
from tests.support import PLAIN, SOAK, BrokerProcess

BROKER = "agentwrit.broker"
KILLS = 2 if SOAK == 1 else 4 * SOAK


class Stopped:
    """A broker that was stopped, with a live token and one that was released."""

    def __init__(self, directory: Path) -> None:
        with BrokerProcess(directory / "data") as broker:
            app = broker.app()
            self.live, self.released = (app.agent()["access_token"] for _ in range(2))
            broker.release(self.released)
            self.origin = broker.http.get("/v1/audit/keys").json()["keys"]
            broker.stop()
        self.data = directory / "data"
        self.key = self.data / "master.key"
        self.settings = {"AGENTWRIT_DATA_DIR": str(self.data)}

    def rewrap(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run("keys", "rewrap", *arguments, **{**self.settings, **environment})

    def goes_on(self, **settings: str) -> str:
        """Start the broker, and see that nothing was lost. Returns its log."""
        with BrokerProcess(self.data, wrapper=(), verify=PLAIN, arguments=(), module=BROKER, **settings) as broker:
            assert broker.is_valid(self.live)
            assert not broker.is_valid(self.released)
            assert broker.app().agent()
            broker.stop()
        verified = run("store", "verify", str(self.data), **settings)
        assert (verified.returncode, verified.stderr) == (0, "")
        return broker.log.read_text()


@pytest.fixture
def stopped(tmp_path: Path) -> Stopped:
    return Stopped(tmp_path)


def test_tokens_live_and_stay_dead_under_the_new_key(stopped: Stopped) -> None:
    old = stopped.key.read_text()
    done = stopped.rewrap()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("moved ")
    [former] = stopped.data.glob("master.key.*")
    assert former.name in done.stdout
    assert former.read_text() == old != stopped.key.read_text()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (former, stopped.key)} == {0o600}
    assert not {old.strip(), stopped.key.read_text().strip()} & set(done.stdout.split())
    stopped.goes_on()
    with BrokerProcess(stopped.data) as broker:
        [event] = broker.events(event_type="master_key_changed")
        assert (event["principal"], event["data"]["rows"] > 8) == ("broker", True)
        assert broker.http.get("/v1/audit/keys").json()["keys"] == stopped.origin
        assert run("audit", "verify", "--database", str(stopped.data)).returncode == 0


def test_nothing_that_was_wrapped_under_the_old_key_is_left_in_the_file(stopped: Stopped) -> None:
    """Whoever has the old key, and then the new file, must not find the signing keys in what was overwritten."""
    with sqlite3.connect(stopped.data / "agentwrit.db") as connection:
        bodies = [body for (body,) in connection.execute("SELECT body FROM signing_keys")]
    connection.close()
    wrapped = [body.partition(b'"wrapped":"')[2].partition(b'"')[0] for body in bodies]
    assert all(wrapped)
    assert stopped.rewrap().returncode == 0
    left = b"".join(path.read_bytes() for path in stopped.data.glob("agentwrit.db*"))
    assert not [text for text in wrapped if text in left]


def test_the_store_of_a_running_broker_is_left_alone(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        one_line(run("keys", "rewrap", AGENTWRIT_DATA_DIR=str(broker.data_dir)), 2, "in use", "stop it")
        token = broker.app().agent()["access_token"]
        assert broker.is_valid(token)
        assert not list(broker.data_dir.glob("master.key.*"))


def test_a_key_in_a_variable_is_changed_for_one_in_a_file(stopped: Stopped, tmp_path: Path) -> None:
    old = {"AGENTWRIT_MASTER_KEY": stopped.key.read_text().strip()}
    stopped.key.unlink()
    file = tmp_path / "new.key"
    one_line(stopped.rewrap(**old), 2, "--to", "AGENTWRIT_NEW_MASTER_KEY")
    for said in ("moved ", "the store is under the new master key already"):
        done = stopped.rewrap("--to", str(file), **old)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(said)
        assert str(file) in done.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    stopped.goes_on(AGENTWRIT_MASTER_KEY=file.read_text().strip())
    one_line(run("store", "migrate", **stopped.settings, **old), 2, "before `agentwrit keys rewrap`", "the new one")


def test_a_key_in_a_variable_is_changed_for_one_in_another(stopped: Stopped) -> None:
    old, new = stopped.key.read_text().strip(), secrets.token_hex(32)
    stopped.key.unlink()
    done = stopped.rewrap(AGENTWRIT_MASTER_KEY=old, AGENTWRIT_NEW_MASTER_KEY=new)
    assert (done.returncode, done.stderr) == (0, "")
    assert new not in done.stdout
    assert not list(stopped.data.glob("master.key*"))
    stopped.goes_on(AGENTWRIT_MASTER_KEY=new)


def test_what_is_wrong_is_said_in_a_line_and_changes_nothing(stopped: Stopped, tmp_path: Path) -> None:
    before = stopped.key.read_text()
    bad = tmp_path / "bad.key"
    bad.write_text("not a key\n")
    one_line(stopped.rewrap("--to", str(bad)), 2, "bad.key is not 32 bytes")
    one_line(stopped.rewrap(AGENTWRIT_NEW_MASTER_KEY="short"), 2, "AGENTWRIT_NEW_MASTER_KEY is not 32 bytes")
    one_line(stopped.rewrap("--to", str(bad), AGENTWRIT_NEW_MASTER_KEY="short"), 2, "not both")
    one_line(stopped.rewrap("--to", str(tmp_path / "no" / "key")), 2, str(tmp_path / "no"))
    one_line(run("keys", "rewrap", AGENTWRIT_DATA_DIR=str(tmp_path / "none")), 2, "no data directory of a broker")
    assert not (tmp_path / "none").exists()
    wrong = stopped.rewrap("--to", str(tmp_path / "new.key"), AGENTWRIT_MASTER_KEY=secrets.token_hex(32))
    one_line(wrong, 2, "not the one that this data directory was made with")
    same = stopped.rewrap(AGENTWRIT_NEW_MASTER_KEY=before.strip())
    assert same.stdout.startswith("the store is under the new master key already")
    assert stopped.key.read_text() == before
    assert not list(stopped.data.glob("master.key.*"))
    stopped.goes_on()


def test_a_row_that_was_altered_stops_it_and_the_old_key_stays(stopped: Stopped) -> None:
    before = stopped.key.read_text()
    with sqlite3.connect(stopped.data / "agentwrit.db") as connection:
        connection.execute("UPDATE grants SET body = CAST(replace(CAST(body AS TEXT), 'read', 'best') AS BLOB)")
    connection.close()
    one_line(stopped.rewrap(), 2, "of grants was altered outside the broker")
    assert stopped.key.read_text() == before
    assert {path.name for path in stopped.data.iterdir()} <= {"agentwrit.db", "lock", "master.key"}


def test_a_disk_that_is_full_leaves_the_old_key(stopped: Stopped) -> None:
    before = stopped.key.read_text()
    limited = ["prlimit", "--fsize=8192:", AGENTWRIT, "keys", "rewrap"]
    done = subprocess.run(limited, env={**CLEAN, **stopped.settings}, capture_output=True, text=True, timeout=60)
    one_line(done, 2)
    assert stopped.key.read_text() == before
    stopped.goes_on()


# -- kill -9 ----------------------------------------------------------------------------------------------------------


def test_killed_behind_the_commit_it_is_done_and_the_next_start_says_so(stopped: Stopped, tmp_path: Path) -> None:
    old = stopped.key.read_text()
    assert stopped.rewrap().returncode == 0
    new = stopped.key.read_text()
    _as_killed(stopped, old, new)
    verified = run("store", "verify", str(stopped.data))
    assert (verified.returncode, verified.stderr) == (0, "")
    shutil.copytree(stopped.data, tmp_path / "copy")
    assert stopped.goes_on().count("a change of the master key was cut short when it was done") == 1
    assert stopped.key.read_text() == new
    [former] = stopped.data.glob("master.key.*")
    assert former.read_text() == old
    again = run("keys", "rewrap", AGENTWRIT_DATA_DIR=str(tmp_path / "copy"))
    assert again.stdout.startswith("the store is under the new master key already")
    assert (tmp_path / "copy" / "master.key").read_text() == new


@pytest.mark.parametrize("left", ["ab" * 32, "ab" * 9, ""])
def test_killed_before_the_commit_it_is_not_done_and_the_next_start_says_so(stopped: Stopped, left: str) -> None:
    old = stopped.key.read_text()
    _as_killed(stopped, old, left)
    assert stopped.goes_on().count("a change of the master key was cut short before it was done") == 1
    assert {path.name for path in stopped.data.glob("master.key*")} == {"master.key"}
    assert stopped.key.read_text() == old


def test_a_new_key_that_may_be_needed_is_not_thrown_away(stopped: Stopped, tmp_path: Path) -> None:
    """As long as the store cannot be asked which key it is under."""
    assert stopped.rewrap().returncode == 0
    new = stopped.key.read_text()
    _as_killed(stopped, secrets.token_hex(32), new)
    database = stopped.data / "agentwrit.db"
    database.rename(tmp_path / "away.db")
    one_line(run("store", "migrate", **stopped.settings), 2, "agentwrit.db is missing")
    database.write_bytes(b"not a database " * 100)
    assert run("store", "migrate", **stopped.settings).returncode == 2
    assert (stopped.data / "master.key.new").read_text() == new
    database.unlink()
    (tmp_path / "away.db").rename(database)
    stopped.goes_on()
    assert stopped.key.read_text() == new


def test_what_a_start_says_of_it_is_not_in_what_a_command_prints(stopped: Stopped) -> None:
    """`agentwrit init --replace --print-env` is for a shell to read."""
    _as_killed(stopped, stopped.key.read_text(), "")
    done = run("init", "--replace", "--print-env", **stopped.settings)
    assert done.stdout.startswith("export AGENTWRIT_ADMIN_SECRET=")
    assert "cut short" in done.stderr


def test_killed_at_any_moment_the_store_opens(stopped: Stopped, tmp_path: Path) -> None:
    """At random moments; the seed is printed when it fails."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    whole = _seconds(["keys", "rewrap"], _copy(stopped, tmp_path / "timed"))
    for number in range(KILLS):
        environment = _copy(stopped, tmp_path / f"copy-{number}")
        process = subprocess.Popen([AGENTWRIT, "keys", "rewrap"], env=environment, stdout=subprocess.DEVNULL)
        with process:
            try:
                process.wait(generator.uniform(0.3, 1.0) * whole)
            except subprocess.TimeoutExpired:
                process.kill()
        opened = run("store", "migrate", AGENTWRIT_DATA_DIR=environment["AGENTWRIT_DATA_DIR"])
        assert opened.returncode == 0, opened.stderr
        verified = run("store", "verify", environment["AGENTWRIT_DATA_DIR"])
        assert verified.returncode == 0, verified.stderr
        assert run("keys", "rewrap", AGENTWRIT_DATA_DIR=environment["AGENTWRIT_DATA_DIR"]).returncode == 0


def _as_killed(stopped: Stopped, old: str, new: str) -> None:
    """The data directory as a kill -9 leaves it between the first file and the last rename."""
    for former in stopped.data.glob("master.key.*"):
        former.unlink()
    stopped.key.write_text(old)
    (stopped.data / "master.key.new").write_text(new)


def _copy(stopped: Stopped, to: Path) -> dict[str, str]:
    shutil.copytree(stopped.data, to)
    return {**CLEAN, "AGENTWRIT_DATA_DIR": str(to)}


def _seconds(arguments: Sequence[str], environment: dict[str, str]) -> float:
    started = time.monotonic()
    subprocess.run([AGENTWRIT, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL, timeout=60)
    return time.monotonic() - started
