"""Looking at agents and ending what they hold, from the command line."""

import json
from typing import Any

import pytest

from agentwrit.cli.revocation import LEVELS
from agentwrit.domain.revocation import RevocationLevel
from tests.cli.support import one_line, run
from tests.support import ADMIN_SECRET, BrokerProcess, TestApp


@pytest.fixture
def operator(broker: BrokerProcess) -> dict[str, str]:
    return {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}


class Chain:
    """A root that delegated to a middle that delegated to a leaf; each is registered too."""

    def __init__(self, broker: BrokerProcess, *, task_id: str = "task-1") -> None:
        self.app: TestApp = broker.app()
        self.root = self.app.agent("read:data:*", task_id=task_id)
        self.middle = self.app.agent("read:data:1", task_id=task_id)
        self.leaf = self.app.agent("read:data:1", task_id=task_id)
        first = broker.delegate(self.root["access_token"], self.middle["agent_id"], "read:data:7").json()
        second = broker.delegate(first["access_token"], self.leaf["agent_id"], "read:data:7").json()
        self.to_middle: dict[str, Any] = first
        self.to_leaf: dict[str, Any] = second

    def claims(self, broker: BrokerProcess, holder: dict[str, Any]) -> dict[str, Any]:
        return dict(broker.validate(holder["access_token"])["claims"])


def test_live_agents_are_listed_with_what_they_hold(broker: BrokerProcess, operator: dict[str, str]) -> None:
    chain = Chain(broker)
    listed = json.loads(run("agents", "list", "--app", chain.app.name, "--json", **operator).stdout)
    assert listed["next"] is None
    assert [(grant["agent_id"], grant["scope"], grant["depth"]) for grant in listed["agents"]] == [
        (chain.root["agent_id"], ["read:data:*"], 0),
        (chain.middle["agent_id"], ["read:data:1"], 0),
        (chain.leaf["agent_id"], ["read:data:1"], 0),
        (chain.middle["agent_id"], ["read:data:7"], 1),
        (chain.leaf["agent_id"], ["read:data:7"], 2),
    ]
    table = run("agents", "list", "--app", chain.app.app_id, **operator).stdout
    assert table.splitlines()[0].split() == ["agent", "task", "scope", "expires", "in", "given", "by"]
    assert len(table.splitlines()) == 6
    assert "4m5" in table


@pytest.mark.parametrize(
    ("option", "count"), [("--agent", 2), ("--task", 5), ("--orch", 5), ("--limit", 2)], ids=lambda value: str(value)
)
def test_the_list_can_be_narrowed(broker: BrokerProcess, operator: dict[str, str], option: str, count: int) -> None:
    chain = Chain(broker)
    value = {"--agent": chain.leaf["agent_id"], "--task": "task-1", "--orch": "orchestrator", "--limit": "2"}[option]
    arguments = ("agents", "list", "--app", chain.app.app_id, option, value, "--json")
    listed = json.loads(run(*arguments, **operator).stdout)
    assert len(listed["agents"]) == count
    assert (listed["next"] is not None) == (option == "--limit")


def test_the_tree_of_an_agent_shows_what_hangs_on_it(broker: BrokerProcess, operator: dict[str, str]) -> None:
    chain = Chain(broker)
    shown = run("agents", "show", chain.root["agent_id"], **operator).stdout
    assert shown.splitlines()[0] == chain.root["agent_id"]
    assert shown.index("registered for task task-1 (live for 4m") < shown.index(chain.middle["agent_id"])
    assert shown.index(chain.middle["agent_id"]) < shown.index(chain.leaf["agent_id"])
    handed_on = run("delegations", "show", chain.root["agent_id"], **operator).stdout
    assert handed_on.splitlines()[0].endswith(": 2 live tokens below")
    broker.release(chain.to_leaf["access_token"])
    handed_on = run("delegations", "show", chain.root["agent_id"], **operator).stdout
    assert handed_on.splitlines()[0].endswith(": 1 live token below")
    assert "(ended: released)" in handed_on
    as_json = json.loads(run("delegations", "show", chain.root["agent_id"], "--json", **operator).stdout)
    [first] = as_json["delegations"]
    assert [below["end_reason"] for below in first["delegations"]] == ["released"]


@pytest.mark.parametrize(
    ("level", "count", "alive"),
    [
        ("token", 2, {"root", "middle", "leaf"}),
        ("agent", 3, {"root", "leaf"}),
        ("task", 5, set()),
        ("chain", 3, {"middle", "leaf"}),
        ("grant", 1, {"root", "middle", "leaf", "to_middle"}),
        ("app", 6, set()),
    ],
)
def test_each_level_kills_what_it_names_and_all_below(
    broker: BrokerProcess, operator: dict[str, str], level: str, count: int, alive: set[str]
) -> None:
    chain = Chain(broker, task_id=f"task-of-{level}")
    target = {
        "token": chain.claims(broker, chain.to_middle)["jti"],
        "agent": chain.middle["agent_id"],
        "task": "task-of-task",
        "chain": chain.root["agent_id"],
        "grant": chain.claims(broker, chain.to_leaf)["sid"],
        "app": chain.app.name,
    }[level]
    revoked = run("revoke", level, target, "--reason", "a leak", **operator)
    assert revoked.returncode == 0
    words = revoked.stdout.split()
    assert words[:2] == ["revoked", level]
    assert int(words[3]) >= count if level == "app" else int(words[3]) == count, revoked.stdout
    holders = ("root", "middle", "leaf", "to_middle", "to_leaf")
    assert {name for name in holders if broker.is_valid(getattr(chain, name)["access_token"])} == alive
    assert ": 0 live tokens killed" in run("revoke", level, target, **operator).stdout
    events = [event for event in broker.events(event_type="token_revoked") if event["data"].get("level") == level]
    assert events[-1]["data"]["count"] == 0
    assert "a leak" in {event["data"]["revocation_reason"] for event in events}


def test_what_is_not_there_is_one_line(operator: dict[str, str]) -> None:
    one_line(run("agents", "show", "spiffe://agentwrit.local/agent/o/t/none", **operator), 1, "no such agent")
    one_line(run("delegations", "show", "none", **operator), 1, "no such agent")
    one_line(run("agents", "show", "..", **operator), 2, "not a valid name")
    one_line(run("agents", "list", "--app", "", **operator), 2, "names no app")
    one_line(run("revoke", "everything", "x", **operator), 2, "token")
    one_line(run("revoke", "token", "", **operator), 2, "target")
    one_line(run("revoke", "token", "x", "--reason", "a\nb", **operator), 2, "reason")
    assert "0 live tokens" in run("revoke", "token", "none", **operator).stdout


def test_a_name_cannot_steer_the_terminal(broker: BrokerProcess, operator: dict[str, str]) -> None:
    app = broker.app()
    agent = app.agent("read:data:[red]", agent_name="[bold]name")
    for arguments in (("agents", "list", "--app", app.app_id), ("agents", "show", agent["agent_id"])):
        shown = run(*arguments, **operator).stdout
        assert "read:data:[red]" in shown
        assert "\x1b" not in shown


def test_keys_are_listed_rotated_and_revoked(tmp_path_factory: pytest.TempPathFactory) -> None:
    with BrokerProcess(tmp_path_factory.mktemp("keys") / "data") as broker:
        operator = {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}
        keys = json.loads(run("keys", "list", "--json", **operator).stdout)["keys"]
        of_tokens = {key["state"]: key["kid"] for key in keys if key["purpose"] == "access_token"}
        table = run("keys", "list", **operator).stdout
        assert all(key["kid"] in table for key in keys)
        one_line(run("keys", "rotate", **operator), 1, "wait")
        rotated = run("keys", "rotate", "--force", **operator).stdout
        assert rotated.splitlines()[0].split() == ["signs", "now", of_tokens["next"]]
        token = broker.app().agent()["access_token"]
        one_line(run("keys", "revoke", of_tokens["next"], **operator), 2, "--yes")
        revoked = run("keys", "revoke", of_tokens["next"], "--yes", "--reason", "stolen", **operator)
        assert revoked.stdout.startswith(f"revoked key {of_tokens['next']}: ")
        assert not broker.is_valid(token)
        one_line(run("keys", "revoke", "none", "--yes", **operator), 1, "no such key")


def test_the_levels_are_those_of_the_protocol() -> None:
    assert tuple(RevocationLevel) == LEVELS
