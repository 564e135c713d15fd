"""`agentwrit audit`: what operators, auditors and witnesses do."""

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import one_line, run, terminal
from tests.support import ADMIN_SECRET, BrokerProcess, bearer


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("audit") / "data") as broker:
        app = broker.app()
        for _ in range(60):
            broker.release(app.agent()["access_token"])
        yield broker


@pytest.fixture
def operator(own: BrokerProcess) -> dict[str, str]:
    return {"AGENTWRIT_BROKER_URL": own.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}


@pytest.fixture
def anyone(own: BrokerProcess) -> dict[str, str]:
    return {"AGENTWRIT_BROKER_URL": own.url}


@pytest.fixture
def key(anyone: dict[str, str]) -> str:
    return run("audit", "keys", **anyone).stdout.strip()


def test_events_are_listed_as_a_table_and_as_lines_of_json(own: BrokerProcess, operator: dict[str, str]) -> None:
    app = own.app()
    agent = app.agent(task_id="a-task-of-its-own")
    lines = run("audit", "events", "--task", "a-task-of-its-own", "--json", **operator).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert [event["event_type"] for event in found] == ["agent_registered", "token_issued"]
    assert {event["agent_id"] for event in found} == {agent["agent_id"]}
    table = run("audit", "events", "--task", "a-task-of-its-own", **operator).stdout.splitlines()
    assert table[0].split() == ["event", "time", "type", "outcome", "by", "agent", "detail"]
    assert [line.split()[0] for line in table[1:]] == [event["id"] for event in found]
    for arguments in (
        ("--app", app.name, "--type", "token_issued"),
        ("--agent", agent["agent_id"], "--limit", "1"),
        ("--after", found[0]["id"], "--outcome", "success", "--limit", "1"),
    ):
        assert len(run("audit", "events", "--json", *arguments, **operator).stdout.splitlines()) == 1
    one_line(run("audit", "events", "--type", "nonsense", **operator), 2, "event_type")


def test_what_one_incident_touched_is_found_by_each_of_its_names(own: BrokerProcess, operator: dict[str, str]) -> None:
    app = own.app()
    parent, child = app.agent(task_id="incident"), app.agent(task_id="incident")
    trace = {"traceparent": "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x-request-id": "incident-1"}
    body = {"delegate_to": child["agent_id"], "scope": ["read:data:1"]}
    answer = own.http.post("/v1/delegate", json=body, headers={**bearer(parent["access_token"]), **trace})
    assert answer.status_code == 200, answer.text
    [delegated, issued] = own.events(request_id="incident-1")
    for name, value in (
        ("principal", parent["agent_id"]),
        ("grant", issued["sid"]),
        ("parent-grant", delegated["sid"]),
        ("original-principal", parent["agent_id"]),
        ("chain", issued["deleg_chain_hash"]),
        ("token", issued["data"]["jti"]),
        ("request", "incident-1"),
        ("trace", "1af7651916cd43dd8448eb211c80319c"),
        ("address", "127.0.0.1"),
        ("route", "POST /v1/delegate"),
        ("orch", "orchestrator"),
    ):
        lines = run("audit", "events", f"--{name}", value, "--since", delegated["timestamp"], "--json", **operator)
        assert issued in [json.loads(line) for line in lines.stdout.splitlines()], (name, lines)


def test_events_are_followed_as_they_come(own: BrokerProcess, operator: dict[str, str]) -> None:
    with terminal(["audit", "events", "--type", "app_registered", "--follow"], **operator) as following:
        following.wait_for("app_registered")
        app = own.app()
        following.wait_for(app.app_id if app.app_id in following.shown else "app_registered")
        following.type("\x03")
        assert following.finish() == 130


def test_the_log_is_verified_in_three_ways_that_agree(
    own: BrokerProcess, operator: dict[str, str], key: str, tmp_path: Path
) -> None:
    export = str(tmp_path / "export.jsonl")
    assert run("audit", "export", "--output", export, "--key", key, **operator).returncode == 0
    offline = run("audit", "verify", export, "--key", key)
    assert offline.returncode == 0, offline
    assert offline.stderr == ""
    online = run("audit", "verify", "--key", key, **operator)
    database = run("audit", "verify", "--database", str(own.data_dir))
    counts = [int(re.findall(r"verified (\d+) events", done.stdout)[0]) for done in (offline, online, database)]
    assert 240 < counts[0] <= counts[1] <= counts[2]
    as_json = json.loads(run("audit", "verify", export, "--key", key, "--json").stdout)
    assert (as_json["verified"], as_json["events"]) == (True, counts[0])


def test_an_export_that_was_altered_is_named_with_exit_code_1(
    operator: dict[str, str], key: str, tmp_path: Path
) -> None:
    export = tmp_path / "export.jsonl"
    export.write_text(run("audit", "export", **operator).stdout)
    lines = export.read_text().splitlines(keepends=True)
    lines[7] = lines[7].replace("success", "denied")
    export.write_text("".join(lines))
    one_line(run("audit", "verify", str(export), "--key", key), 1, "evt-000007 was altered")
    shown = json.loads(run("audit", "verify", str(export), "--key", key, "--json").stdout)
    assert shown == {"verified": False, "error": "evt-000007 was altered"}
    export.write_text("".join(lines[:6]))
    one_line(run("audit", "verify", str(export), "--key", key), 1, "evt-000006 to", "cut off")


def test_nothing_is_verified_without_a_key_that_somebody_holds(tmp_path: Path, operator: dict[str, str]) -> None:
    export = tmp_path / "export.jsonl"
    assert run("audit", "export", "--output", str(export), **operator).returncode == 0
    one_line(run("audit", "verify", str(export)), 2, "--key")
    one_line(run("audit", "verify", str(export), "--key", "nonsense"), 2, "--key")
    other = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    one_line(run("audit", "verify", str(export), "--key", other), 1, "not signed by a key")
    one_line(run("audit", "verify", "--key", other, **operator), 1, "not signed by a key")
    online = run("audit", "verify", **operator)
    assert online.returncode == 0
    assert "give --key" in online.stderr


def test_an_event_is_proven_to_somebody_who_has_the_key_alone(
    operator: dict[str, str], key: str, tmp_path: Path
) -> None:
    proof = tmp_path / "event.tlog-proof"
    assert run("audit", "prove", "evt-000009", "--output", str(proof), "--key", key, **operator).returncode == 0
    checked = run("audit", "check", str(proof), "--key", key)
    assert checked.returncode == 0, checked
    assert json.loads(checked.stdout)["id"] == "evt-000009"
    assert run("audit", "check", "-", "--key", key, stdin=proof.read_text()).stdout == checked.stdout
    proof.write_text(proof.read_text().replace("index 8", "index 7"))
    one_line(run("audit", "check", str(proof), "--key", key), 1, "inclusion proof")
    one_line(run("audit", "prove", "evt-999999", **operator), 1, "no checkpoint covers")
    one_line(run("audit", "prove", "nonsense", **operator), 2, "event id")


def test_a_witness_goes_along_with_a_log_that_grows(own: BrokerProcess, anyone: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "witness.json"
    for _ in range(2):
        seen = run("audit", "witness", str(file), **anyone)
        assert (seen.returncode, seen.stderr) == (0, "")
        assert "consistent" in seen.stdout
        own.app()
        own.http.post("/v1/audit/checkpoint", headers=own.admin())
    assert set(json.loads(file.read_text())) == {"checkpoint", "keys"}
    file.write_text("nonsense")
    one_line(run("audit", "witness", str(file), **anyone), 2, "not what a witness wrote")


def test_a_witness_refuses_a_history_that_was_rewritten(tmp_path: Path) -> None:
    """The broker's whole data directory is put back, and lives on otherwise: with the genuine keys, every hash fits."""
    file, data = tmp_path / "witness.json", tmp_path / "data"
    with BrokerProcess(data) as broker:
        broker.app()
        broker.stop()
        shutil.copytree(data, tmp_path / "backup")
        broker.start()
        for _ in range(6):
            broker.app()
        broker.http.post("/v1/audit/checkpoint", headers=broker.admin())
        assert run("audit", "witness", str(file), AGENTWRIT_BROKER_URL=broker.url).returncode == 0
        remembered = file.read_text()
        broker.stop()
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "backup", data)
        broker.start()
        one_line(run("audit", "witness", str(file), AGENTWRIT_BROKER_URL=broker.url), 1, "history was cut off")
        for _ in range(9):
            broker.app()
        broker.http.post("/v1/audit/checkpoint", headers=broker.admin())
        one_line(run("audit", "witness", str(file), AGENTWRIT_BROKER_URL=broker.url), 1, "history was rewritten")
        assert file.read_text() == remembered
    with BrokerProcess(tmp_path / "another") as another:
        one_line(run("audit", "witness", str(file), AGENTWRIT_BROKER_URL=another.url), 1, "not signed by a key")


def test_the_newest_checkpoint_is_shown_as_it_is(own: BrokerProcess, anyone: dict[str, str]) -> None:
    shown = run("audit", "checkpoint", **anyone).stdout
    assert re.fullmatch(r"agentwrit\.local/audit\n\d+\n\S+=\n\n— agentwrit\.local/audit \S+\n", shown)


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker whose log somebody edits while it runs."""
    with BrokerProcess(tmp_path_factory.mktemp("edited") / "data") as broker:
        headers = bearer(broker.app().token())
        policy = {"agent_name": "worker", "allowed_scope": ["read:data:1"]}
        for _ in range(270):
            assert broker.http.post("/v1/app/launch-tokens", json=policy, headers=headers).status_code == 201
        yield broker


@pytest.mark.parametrize(("at", "column"), [(5, "detail"), (256, "detail"), (256, "prev_hash"), (9, "data")])
def test_a_running_brokers_log_that_was_edited_is_named(edited: BrokerProcess, at: int, column: str) -> None:
    operator = {"AGENTWRIT_BROKER_URL": edited.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}

    def edit(value: str) -> str:
        with sqlite3.connect(edited.data_dir / "agentwrit.db") as connection:
            [before] = connection.execute(f"SELECT {column} FROM events WHERE sequence = ?", (at,)).fetchone()
            connection.execute(f"UPDATE events SET {column} = ? WHERE sequence = ?", (value, at))
        connection.close()
        return str(before)

    before = edit("something else")
    done = run("audit", "export", "--output", os.devnull, **operator)
    edit(before)
    one_line(done, 1, f"evt-{at:06d}")


def test_a_log_is_verified_by_all_its_keys_once_they_were_rotated_or_revoked(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        operator = {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}
        [first] = run("audit", "keys", **operator).stdout.split()
        assert run("audit", "export", "--output", str(tmp_path / "log.jsonl"), **operator).returncode == 0
        rotated = run("keys", "rotate", "--purpose", "audit_checkpoint", "--force", "--json", **operator)
        [second] = set(run("audit", "keys", **operator).stdout.split()) - {first}
        one_line(run("audit", "verify", "--key", first, **operator), 1, "not signed by a key")
        assert run("audit", "verify", "--key", first, "--key", second, **operator).returncode == 0
        assert run("audit", "verify", str(tmp_path / "log.jsonl"), "--key", first).returncode == 0
        kid = json.loads(rotated.stdout)["active"]["kid"]
        assert run("keys", "revoke", kid, "--yes", **operator).returncode == 0
        known = set(run("audit", "keys", **operator).stdout.split())
        [third] = known - {first}
        assert third != second
        assert run("audit", "verify", "--key", third, **operator).returncode == 0
        broker.stop()
        assert run("audit", "verify", "--database", str(broker.data_dir)).returncode == 0
        assert run("store", "verify", str(broker.data_dir)).returncode == 0


def test_an_operators_revocation_is_not_the_end_of_their_own_login(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        headers = broker.admin()
        for target in (broker.app().agent(task_id="t")["agent_id"], "nobody"):
            answer = broker.http.post("/v1/revoke", json={"level": "agent", "target": target}, headers=headers)
            assert answer.status_code == 200, answer.text
        assert broker.http.get("/v1/agents", headers=headers).status_code == 200
        broker.stop()
        checked = run("store", "verify", str(broker.data_dir))
        assert checked.returncode == 0, checked.stderr
