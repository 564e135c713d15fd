"""Attempts to outlive a revocation, to hide from one, and to use one against others."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support import SOAK, BrokerProcess, bearer, problem

LEVELS = ("token", "agent", "task", "chain", "grant", "app")


def claims(broker: BrokerProcess, token: str) -> dict[str, Any]:
    return dict(broker.validate(token)["claims"])


@pytest.mark.parametrize("level", LEVELS)
def test_a_revocation_at_any_level_survives_a_kill_right_after_its_answer(tmp_path: Path, level: str) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        app = broker.app()
        agent, other = app.agent(), app.agent(task_id="another")
        below = broker.delegate(agent["access_token"], other["agent_id"]).json()["access_token"]
        known = claims(broker, agent["access_token"])
        target = {
            "token": known["jti"],
            "agent": agent["agent_id"],
            "task": "task-1",
            "chain": agent["agent_id"],
            "grant": known["sid"],
            "app": app.app_id,
        }[level]
        assert broker.revoke(level, target) >= 2
        broker.kill()
        broker.start()
        assert not broker.is_valid(agent["access_token"])
        assert not broker.is_valid(below)
        assert broker.renew(below).status_code == 401
        assert broker.is_valid(other["access_token"]) == (level != "app")
        assert broker.revoke(level, target) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_near_misses_kill_nothing(broker: BrokerProcess, level: str) -> None:
    app = broker.app()
    agent = app.agent(task_id=f"near-{level}")
    known = claims(broker, agent["access_token"])
    right = {
        "token": known["jti"],
        "agent": agent["agent_id"],
        "task": f"near-{level}",
        "chain": agent["agent_id"],
        "grant": known["sid"],
        "app": app.app_id,
    }
    for target in (right[level][:-1], right[level] + "0", right[level].upper() + "X", "%", "*", "' OR 1=1 --"):
        assert broker.revoke(level, target) == 0
    for other, target in right.items():
        if {other, level} != {"agent", "chain"} and other != level:
            assert broker.revoke(level, target) == 0
    answer = broker.http.post("/v1/revoke", json={"level": level, "target": ""}, headers=broker.admin())
    problem(answer, 400, "invalid_request")
    assert broker.is_valid(agent["access_token"])


def test_a_superseded_jti_kills_nothing_and_the_current_one_kills_the_grant(broker: BrokerProcess) -> None:
    app = broker.app()
    agent, other = app.agent(), app.agent()
    below = broker.delegate(agent["access_token"], other["agent_id"]).json()["access_token"]
    first = claims(broker, agent["access_token"])["jti"]
    successor = broker.renew(agent["access_token"]).json()["access_token"]
    assert broker.revoke("token", first) == 0
    assert broker.is_valid(successor)
    assert broker.is_valid(below)
    assert broker.revoke("token", claims(broker, successor)["jti"]) == 2
    assert not broker.is_valid(successor)
    assert not broker.is_valid(below)


def test_a_later_grant_of_a_revoked_name_lives(broker: BrokerProcess) -> None:
    app = broker.app()
    before = app.agent(task_id="again")
    assert broker.revoke("task", "again") == 1
    after = app.agent(task_id="again")
    assert not broker.is_valid(before["access_token"])
    assert broker.is_valid(after["access_token"])
    broker.revoke("app", app.app_id)
    assert not broker.is_valid(after["access_token"])
    assert broker.is_valid(app.agent()["access_token"])  # only removing the app bars those


def test_revocation_is_the_operators(broker: BrokerProcess) -> None:
    app = broker.app()
    agent = app.agent()
    body = {"level": "agent", "target": agent["agent_id"]}
    for token in (app.token(), agent["access_token"]):
        problem(broker.http.post("/v1/revoke", json=body, headers=bearer(token)), 403, "insufficient_scope")
    problem(broker.http.post("/v1/revoke", json=body), 401, "unauthorized")
    assert broker.is_valid(agent["access_token"])


@pytest.mark.parametrize(
    "body",
    [
        {"level": "everything", "target": "x"},
        {"level": "", "target": "x"},
        {"target": "x"},
        {"level": "agent"},
        {"level": "agent", "target": "a\nb"},
        {"level": "agent", "target": "\u202e"},
        {"level": "agent", "target": "x" * 1025},
        {"level": "agent", "target": "x", "reason": "y" * 513},
        {"level": "agent", "target": "x", "reason": "a\x1b[2Jb"},
        {"level": "agent", "target": ["x"]},
        {"level": 1, "target": "x"},
    ],
)
def test_what_names_nothing_is_refused(broker: BrokerProcess, body: dict[str, Any]) -> None:
    problem(broker.http.post("/v1/revoke", json=body, headers=broker.admin()), 400, "invalid_request")


def test_one_app_cannot_see_anothers_agents(broker: BrokerProcess) -> None:
    mine, theirs = broker.app(), broker.app()
    agent, other = mine.agent(), theirs.agent()
    token = bearer(mine.token())
    for filters in ({}, {"agent_id": other["agent_id"]}, {"task_id": "task-1"}, {"orch_id": "orchestrator"}):
        answer = broker.http.get("/v1/agents", params=filters, headers=token)
        assert {grant["agent_id"] for grant in answer.json()["agents"]} <= {agent["agent_id"]}
    asked = broker.http.get("/v1/agents", params={"app_id": theirs.app_id}, headers=token)
    problem(asked, 400, "invalid_request")
    unknown = other["agent_id"][:-16] + "0" * 16
    answers = [
        problem(broker.http.get(f"/v1/agents/{quote(name, safe='')}", headers=token), 404, "not_found")
        for name in (other["agent_id"], unknown, "x")
    ]
    assert len({(answer["detail"], answer["hint"]) for answer in answers}) == 1
    problem(broker.http.get("/v1/agents", headers=bearer(agent["access_token"])), 403, "insufficient_scope")
    problem(broker.http.get("/v1/agents", headers=bearer("nonsense")), 401, "unauthorized")


def test_delegations_made_while_the_delegator_is_revoked_are_dead_or_were_never_made(broker: BrokerProcess) -> None:
    app = broker.app()
    with ThreadPoolExecutor(9) as threads:
        for number in range(4 * SOAK // 2 if SOAK > 1 else 4):
            root, leaf = app.agent("read:data:*"), app.agent()
            attempts = [
                threads.submit(broker.delegate, root["access_token"], leaf["agent_id"], "read:data:7") for _ in range(8)
            ]
            revoke = threads.submit(broker.revoke, ("agent", "chain")[number % 2], root["agent_id"])
            count = revoke.result()
            answers = [attempt.result() for attempt in attempts]
            made = [answer.json()["access_token"] for answer in answers if answer.status_code == 200]
            assert {answer.status_code for answer in answers} <= {200, 403}
            assert not any(map(broker.is_valid, made))
            assert count == 1 + len(made)
            assert broker.is_valid(leaf["access_token"])
