"""The database file, with genuine rows in it that are old, or missing: the audit log tells what there ought to be."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentwrit.domain import base64url
from tests.cli.support import AGENTWRIT, CLEAN
from tests.support import BrokerProcess

OPERATORS = "/v1/admin/operators"


class Life:
    """A broker's data directory before and after things ended in it."""

    def __init__(self, directory: Path) -> None:
        self.before, self.after = directory / "before", directory / "after"
        with BrokerProcess(directory / "data") as broker:
            self.app, self.other = broker.app(), broker.app()
            self.released, self.renewed, self.live = (self.app.agent() for _ in range(3))
            for name in ("ana", "bo", "cy"):
                assert broker.http.post(OPERATORS, json={"name": name}, headers=broker.admin()).status_code == 201
            self.limited, self.suspended = broker.app(max_live_agents=3), broker.app()
            self.limited.agent()
            self.old_key = broker.http.get("/.well-known/jwks.json").json()["keys"][-1]["kid"]
            broker.http.post("/v1/admin/keys/rotate", json={"force": True}, headers=broker.admin())
            broker.stop()
            shutil.copytree(broker.data_dir, self.before)
            broker.start()
            assert broker.release(self.released["access_token"]).status_code == 204
            assert broker.renew(self.renewed["access_token"]).status_code == 200
            self.late = self.app.agent()
            self.limited.agent()
            path = f"/v1/admin/apps/{self.suspended.app_id}/suspend"
            assert broker.http.post(path, headers=broker.admin()).status_code == 200
            headers = broker.admin()
            assert broker.http.post(f"{OPERATORS}/ana/secret", headers=headers).status_code == 200
            assert broker.http.delete(f"{OPERATORS}/bo", headers=headers).status_code == 200
            update = {"scopes": ["read:data:1"]}
            url = f"/v1/admin/apps/{self.app.app_id}?keep_grants=true"
            assert broker.http.put(url, json=update, headers=headers).status_code == 200
            assert broker.http.delete(f"/v1/admin/apps/{self.other.app_id}", headers=headers).status_code == 200
            broker.stop()
        with BrokerProcess(directory / "data", AGENTWRIT_ADMIN_SECRET="the-operators-next-secret") as broker:
            broker.stop()
            shutil.copytree(broker.data_dir, self.after)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    return Life(tmp_path_factory.mktemp("life"))


def verify(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [AGENTWRIT, "store", "verify", str(directory)]
    return subprocess.run(command, env=CLEAN, capture_output=True, text=True, timeout=60)


def tampered(life: Life, path: Path, change: Callable[[sqlite3.Connection], Any]) -> subprocess.CompletedProcess[str]:
    shutil.copytree(life.after, path)
    with sqlite3.connect(path / "agentwrit.db") as connection:
        connection.execute("ATTACH ? AS before", (str(life.before / "agentwrit.db"),))
        assert change(connection).rowcount > 0
    connection.close()
    return verify(path)


def is_found(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr, done.stderr


def test_a_store_as_it_was_left_is_as_its_log_says(life: Life) -> None:
    for directory in (life.before, life.after):
        done = verify(directory)
        assert (done.returncode, done.stderr) == (0, "")
        assert "everything else is as they say" in done.stdout


def test_a_released_grant_that_was_put_back_is_found(life: Life, tmp_path: Path) -> None:
    agent = life.released["agent_id"]

    def put_back(db: sqlite3.Connection) -> sqlite3.Cursor:
        return db.execute(
            "UPDATE grants SET (body, mac, ended_at) ="
            " (SELECT body, mac, ended_at FROM before.grants AS old WHERE old.sid = grants.sid) WHERE subject = ?",
            (agent,),
        )

    is_found(tampered(life, tmp_path / "copy", put_back), "put back to life")


@pytest.mark.parametrize(
    ("table", "where", "said"),
    [
        ("grants", "ended_at = 0 AND kind = 'agent'", "was deleted"),
        ("revocations", "kind = 'sid'", "the end of the grant"),
        ("revocations", "kind = 'jti'", "the end of the token"),
        ("apps", "1", "was deleted"),
        ("signing_keys", "CAST(body AS TEXT) LIKE '%access_token%'", "was deleted"),
    ],
)
def test_rows_that_were_deleted_are_missed(life: Life, tmp_path: Path, table: str, where: str, said: str) -> None:
    done = tampered(life, tmp_path / "copy", lambda db: db.execute(f"DELETE FROM {table} WHERE {where}"))
    is_found(done, said)


def test_a_released_grant_whose_rows_are_all_gone_is_missed(life: Life, tmp_path: Path) -> None:
    """Its token would be taken again: nothing would be left that says that it is dead."""

    def delete(db: sqlite3.Connection) -> sqlite3.Cursor:
        db.execute("DELETE FROM revocations")
        return db.execute("DELETE FROM grants WHERE ended_at <> 0")

    is_found(tampered(life, tmp_path / "copy", delete), "the end of the")


@pytest.mark.parametrize("which", ["app", "other", "suspended"])
def test_an_app_as_it_once_was_is_found(life: Life, tmp_path: Path, which: str) -> None:
    app_id = getattr(life, which).app_id

    def put_back(db: sqlite3.Connection) -> sqlite3.Cursor:
        return db.execute(
            "UPDATE apps SET (body, mac, status) ="
            " (SELECT body, mac, status FROM before.apps AS old WHERE old.app_id = apps.app_id) WHERE app_id = ?",
            (app_id,),
        )

    is_found(tampered(life, tmp_path / "copy", put_back), app_id, "put back as it was before")


def test_a_count_of_live_agents_as_it_once_was_is_found(life: Life, tmp_path: Path) -> None:
    """The app could have one more than it may."""

    def put_back(db: sqlite3.Connection) -> sqlite3.Cursor:
        return db.execute("UPDATE app_usage SET (body, mac) = (SELECT body, mac FROM before.app_usage)")

    is_found(tampered(life, tmp_path / "copy", put_back), life.limited.app_id, "are counted, and there are")


def test_the_operator_with_a_former_secret_is_found(life: Life, tmp_path: Path) -> None:
    """Who learned the one that was replaced would be the operator again."""

    is_found(tampered(life, tmp_path / "copy", operator_put_back("admin")), "admin", "put back as it was before")


@pytest.mark.parametrize("name", ["ana", "bo"])
def test_a_named_operator_as_they_once_were_is_found(life: Life, tmp_path: Path, name: str) -> None:
    """With a secret that was replaced, or not removed yet."""
    is_found(tampered(life, tmp_path / "copy", operator_put_back(name)), name, "put back as it was before")


@pytest.mark.parametrize("name", ["ana", "bo", "cy"])
def test_a_named_operator_who_was_deleted_is_missed(life: Life, tmp_path: Path, name: str) -> None:
    delete = f"DELETE FROM operators WHERE name = '{name}'"
    is_found(tampered(life, tmp_path / "copy", lambda db: db.execute(delete)), name, "was deleted")


def test_an_operator_with_anothers_password_is_found(life: Life, tmp_path: Path) -> None:
    swap = "UPDATE operators SET (body, mac) = (SELECT body, mac FROM operators WHERE name = 'cy') WHERE name = 'ana'"
    is_found(tampered(life, tmp_path / "copy", lambda db: db.execute(swap)), "another's place")


def test_an_operators_row_that_was_altered_is_found(life: Life, tmp_path: Path) -> None:
    alter = "UPDATE operators SET body = CAST(replace(CAST(body AS TEXT), '\"name\"', '\"Name\"') AS BLOB)"
    is_found(tampered(life, tmp_path / "copy", lambda db: db.execute(alter)), "altered")


def operator_put_back(name: str) -> Callable[[sqlite3.Connection], sqlite3.Cursor]:
    return lambda db: db.execute(
        "UPDATE operators SET (body, mac) ="
        " (SELECT body, mac FROM before.operators AS old WHERE old.name = operators.name) WHERE name = ?",
        (name,),
    )


def test_an_operator_that_was_deleted_is_missed(life: Life, tmp_path: Path) -> None:
    """The next start would take whatever secret it is given."""
    is_found(tampered(life, tmp_path / "copy", lambda db: db.execute("DELETE FROM operators")), "was deleted")


def test_a_renewed_grant_as_it_was_before_is_found(life: Life, tmp_path: Path) -> None:
    def put_back(db: sqlite3.Connection) -> sqlite3.Cursor:
        return db.execute(
            "UPDATE grants SET (body, mac, exp, jti) ="
            " (SELECT body, mac, exp, jti FROM before.grants AS old WHERE old.sid = grants.sid) WHERE subject = ?",
            (life.renewed["agent_id"],),
        )

    is_found(tampered(life, tmp_path / "copy", put_back), "before it was renewed")


def start(directory: Path) -> subprocess.CompletedProcess[str]:
    """Start a broker that is not to start."""
    environment = {**CLEAN, "AGENTWRIT_DATA_DIR": str(directory), "AGENTWRIT_PORT": "0"}
    environment["AGENTWRIT_ADMIN_SECRET"] = "the-operators-next-secret"
    return subprocess.run([AGENTWRIT, "serve"], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM revocations WHERE kind = 'sid' AND id = :sid",
        "UPDATE revocations SET last_exp = 1 WHERE kind = 'sid' AND id = :sid",
        "DELETE FROM revocations WHERE :sid <> ''",
    ],
)
def test_no_broker_starts_where_the_end_of_a_grant_was_deleted(life: Life, tmp_path: Path, change: str) -> None:
    encoded = life.released["access_token"].split(".")[1]
    sid = json.loads(base64url.decode(encoded))["sid"]
    tampered(life, tmp_path / "data", lambda database: database.execute(change, {"sid": sid}))
    done = start(tmp_path / "data")
    assert done.returncode != 0
    assert "was deleted outside the broker" in done.stderr, done


def test_no_broker_starts_where_an_index_hides_rows(life: Life, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(life.after, data)
    with contextlib.closing(sqlite3.connect(data / "agentwrit.db")) as database:
        # An index of the same text, with nothing in it.
        database.execute("PRAGMA writable_schema = ON")
        database.execute("CREATE TABLE another (last_exp INTEGER)")
        database.execute("CREATE INDEX its_index ON another (last_exp)")
        [[page]] = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'its_index'")
        database.execute("UPDATE sqlite_schema SET rootpage = ? WHERE name = 'revocations_expiry'", (page,))
        database.execute("DELETE FROM sqlite_schema WHERE name IN ('another', 'its_index')")
        database.commit()
    done = start(data)
    assert done.returncode != 0
    assert "missing from index revocations_expiry" in done.stderr, done
