"""Texts that steer a terminal, end a line or forge a record, wherever an app or an agent can write one."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from agentwrit.broker import stores
from agentwrit.broker.config import Config
from agentwrit.domain.audit import Draft, EventType
from tests.cli.support import run
from tests.reports import AUDIENCE, ResourceServer, access
from tests.support import ADMIN_SECRET, BrokerProcess, bearer, problem

NASTY = (
    'GET /\u00a0\u0085\u2028\u2029\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\U000e0041\x7f"} CEF:0|x suser=admin\r\n{"id":'
)


def environment(broker: BrokerProcess) -> dict[str, str]:
    return {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}


def test_an_agent_words_no_record_by_naming_a_delegate(broker: BrokerProcess) -> None:
    agent = broker.app().agent()
    problem(broker.delegate(agent["access_token"], NASTY * 50), 404, "not_found")
    [event] = broker.events(event_type="delegation_denied", agent_id=agent["agent_id"])
    delegate = event["data"]["delegate"]
    assert delegate.isprintable()
    assert delegate.startswith(r"GET /\xa0\x85\u2028\u2029\x1b[2J")
    assert len(delegate) <= 2048


def test_an_agent_words_no_record_by_what_it_asks_of_a_resource_server(broker: BrokerProcess) -> None:
    """It is not refused: whoever made the server report it would leave no trace, of nothing in the whole report."""
    server, app = ResourceServer(broker), broker.app(audiences=[AUDIENCE])
    token = app.agent(audience=[AUDIENCE])["access_token"]
    done = access(broker, token, resource=NASTY)
    assert server.taken(done, access(broker, token))["recorded"] == 2
    resources = [event["resource"] for event in broker.events(event_type="resource_accessed", sid=done["sid"])]
    assert resources[0].isprintable()
    assert resources[0].startswith(r"GET /\xa0\x85")
    assert resources[1] == "GET /orders/1"
    assert [r["resource"] for r in broker.events(event_type="resource_accessed", resource=resources[0])] == [
        resources[0]
    ]


@pytest.mark.parametrize("name", ["\u00a0", "a\u0085b", "a\u2028", "\x1b[2J", "a\u202eb", "\x7f", "\ud83d"])
def test_nothing_is_called_by_what_is_not_printable(broker: BrokerProcess, name: str) -> None:
    app, post = broker.app(), broker.http.post
    operator, token = broker.admin(), bearer(app.token())

    def refused(path: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        problem(post(path, content=json.dumps(body).encode(), headers=headers), 400, "invalid_request")

    launch = {"agent_name": "x", "allowed_scope": ["read:data:1"]}
    refused("/v1/app/launch-tokens", {**launch, "agent_name": name}, token)
    refused("/v1/app/launch-tokens", {**launch, "audience": [name]}, token)
    refused("/v1/app/launch-tokens", {**launch, "allowed_scope": [f"read:data:{name}"]}, token)
    direct = {"orch_id": "o", "task_id": "t", "requested_scope": ["read:data:1"], "public_key": "A" * 43 + "="}
    refused("/v1/agents", {**direct, "proof": "x", "agent_name": name}, token)
    refused("/v1/agents", {**direct, "proof": "x", "audience": [name]}, token)
    refused("/v1/agents", {**direct, "proof": "x", "orch_id": name}, token)
    refused("/v1/agents", {**direct, "proof": "x", "task_id": name}, token)
    for field in ("name", "audiences", "reports_for", "scopes"):
        body = {"name": "some-app", "scopes": ["read:data:1"]}
        refused("/v1/admin/apps", {**body, field: name if field == "name" else [name]}, operator)
    refused("/v1/admin/operators", {"name": name}, operator)
    refused("/v1/revoke", {"level": "task", "target": name}, operator)
    refused("/v1/revoke", {"level": "task", "target": "none", "reason": name}, operator)
    kid = broker.http.get("/v1/admin/keys", headers=operator).json()["keys"][0]["kid"]
    refused(f"/v1/admin/keys/{kid}/revoke", {"reason": name}, operator)
    archive = {"first": "evt-000001", "last": "evt-000256", "root": "0" * 64, "sha256": "0" * 64, "file": name}
    refused("/v1/audit/archives", archive, operator)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> BrokerProcess:
    """A broker over a store from before there were such rules."""
    directory = tmp_path_factory.mktemp("older") / "data"
    broker = BrokerProcess(directory)
    broker.stop()

    async def record() -> None:
        draft = Draft(
            event_type=EventType.RESOURCE_ACCESSED,
            detail=NASTY,
            resource=NASTY,
            principal=NASTY,
            agent_id=NASTY,
            data={NASTY: NASTY, "scope_used": [NASTY]},
        )
        async with stores.open_store(Config(data_dir=directory)) as opened:
            await opened.store.write(lambda transaction: transaction.record(draft))

    asyncio.run(record())
    broker.start()
    return broker


def test_lines_of_json_are_lines_of_json_to_every_reader(older: BrokerProcess) -> None:
    with older:
        done = run("audit", "events", "--json", **environment(older))
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert done.stdout.split("\n") == [*lines, ""]
        assert all(line.isprintable() for line in lines)
        shown = [json.loads(line) for line in lines]
        assert shown[: len(shown) - 1] == older.events()[: len(shown) - 1]  # but for this login
        assert NASTY in [event.get("resource") for event in shown]
        table = run("audit", "events", **environment(older)).stdout
        assert all(line.isprintable() for line in table.split("\n"))
        for form in ("ocsf", "cef"):
            delivered = older.data_dir.with_name(form)
            to = ["--to", f"file:{delivered}", "--cursor", f"{delivered}.cursor", "--format", form, "--once"]
            assert run("audit", "deliver", *to, **environment(older)).returncode == 0
            written = delivered.read_bytes().decode()
            assert all(line.isprintable() for line in written.split("\n"))
            assert len(written.splitlines()) == written.count("\n")
        exported = older.data_dir.with_name("export")
        assert run("audit", "export", "--output", str(exported), **environment(older)).returncode == 0
        key = run("audit", "keys", **environment(older)).stdout.strip()
        assert run("audit", "verify", str(exported), "--key", key).returncode == 0  # letter by letter as it was signed


def test_a_log_line_holds_no_line_of_a_callers() -> None:
    fail = (
        "import structlog; from agentwrit.broker import logs; logs.configure(level='info', log_format='console')\n"
        "log = structlog.get_logger()\n"
        "try: raise RuntimeError('a\\n2026-01-01 [info     ] request \\x1b[2J\\u2028forged')\n"
        "except RuntimeError: log.exception('internal error', reason='b\\nc\\x1b')"
    )
    written = subprocess.run([sys.executable, "-c", fail], capture_output=True, text=True, check=True).stderr
    first, *others = written.rstrip("\n").split("\n")
    assert "internal error" in first
    assert all(line.startswith("    ") for line in others)
    assert all(line.isprintable() for line in written.rstrip("\n").split("\n"))
