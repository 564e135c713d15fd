"""Delegation, revocation and the list of agents on the wire: shapes, headers and events, exactly."""

import re
from typing import Any
from urllib.parse import quote

import httpx2

from tests.support import BrokerProcess, bearer, problem

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def test_a_delegation_answers_with_token_and_chain(broker: BrokerProcess) -> None:
    app = broker.app()
    root, leaf = app.agent("read:data:*", task_id="the-work"), app.agent()
    answer = broker.delegate(root["access_token"], leaf["agent_id"], "read:data:7")
    assert answer.status_code == 200
    assert set(answer.json()) == {"access_token", "expires_in", "delegation_chain"}
    assert answer.json()["expires_in"] == 60
    [record] = answer.json()["delegation_chain"]
    known = broker.validate(root["access_token"])["claims"]
    said = broker.validate(answer.json()["access_token"])["claims"]
    assert (record["agent"], record["sid"], record["scope"]) == (root["agent_id"], known["sid"], ["read:data:*"])
    assert (record["delegate"], record["granted"]) == (leaf["agent_id"], ["read:data:7"])
    assert (said["sub"], said["task_id"], said["orch_id"]) == (leaf["agent_id"], "the-work", "orchestrator")
    assert (said["scope"], said["aud"], said["client_id"]) == (["read:data:7"], known["aud"], app.client_id)
    assert said["delegation_chain"] == [record]
    assert re.fullmatch("[0-9a-f]{64}", said["chain_hash"])
    assert said["sid"] not in (known["sid"], record["sid"])


def test_a_delegation_is_in_the_log_from_both_sides(broker: BrokerProcess) -> None:
    app = broker.app()
    root, leaf = app.agent("read:data:*"), app.agent()
    token = broker.delegate(root["access_token"], leaf["agent_id"], "read:data:7").json()["access_token"]
    said = broker.validate(token)["claims"]
    [created] = broker.events(event_type="delegation_created", agent_id=root["agent_id"])
    assert (created["deleg_depth"], created["deleg_chain_hash"]) == (1, said["chain_hash"])
    assert (created["data"]["delegate"], created["data"]["delegated_sid"]) == (leaf["agent_id"], said["sid"])
    issued = broker.events(event_type="token_issued", agent_id=leaf["agent_id"])[-1]
    assert (issued["sid"], issued["principal"], issued["deleg_depth"]) == (said["sid"], root["agent_id"], 1)


def test_a_revocation_answers_with_its_count(broker: BrokerProcess) -> None:
    agent = broker.app().agent()
    body = {"level": "agent", "target": agent["agent_id"], "reason": "a leak"}
    answer = broker.http.post("/v1/revoke", json=body, headers=broker.admin())
    assert answer.json() == {"revoked": True, "level": "agent", "target": agent["agent_id"], "count": 1}
    [event] = broker.events(event_type="token_revoked", agent_id=agent["agent_id"])
    assert (event["principal"], event["data"]["reason"], event["data"]["revocation_reason"]) == (
        "admin",
        "revoked",
        "a leak",
    )


def listed(broker: BrokerProcess, headers: dict[str, str], **params: Any) -> dict[str, Any]:
    answer = broker.http.get("/v1/agents", params=params, headers=headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_agents_are_listed_a_page_at_a_time_in_order(broker: BrokerProcess) -> None:
    app = broker.app()
    agents = [app.agent(task_id=f"task-{number}")["agent_id"] for number in range(5)]
    for headers in (broker.admin(), bearer(app.token())):
        seen: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = listed(broker, headers, app_id=app.app_id, limit=2, **after)
            assert set(page) == {"agents", "next"}
            seen += [grant["agent_id"] for grant in page["agents"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        assert seen == agents
    [grant] = listed(broker, broker.admin(), agent_id=agents[3])["agents"]
    assert set(grant) == {
        "agent_id",
        "sid",
        "app_id",
        "agent_name",
        "orch_id",
        "task_id",
        "scope",
        "created_at",
        "expires_at",
        "ends_at",
        "parent",
        "parent_agent",
        "depth",
        "bound",
    }
    assert (grant["task_id"], grant["scope"], grant["parent"], grant["depth"]) == ("task-3", ["read:data:1"], None, 0)
    assert all(TIME.fullmatch(grant[name]) for name in ("created_at", "expires_at", "ends_at"))


def test_a_bad_filter_is_refused_and_not_ignored(broker: BrokerProcess) -> None:
    admin = broker.admin()
    for params in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after": "unknown"}, {"status": "live"}):
        problem(broker.http.get("/v1/agents", params=params, headers=admin), 400, "invalid_request")


def test_an_agent_is_shown_with_its_tree_whichever_way_its_id_is_written(broker: BrokerProcess) -> None:
    app = broker.app()
    root, leaf = app.agent("read:data:*"), app.agent()
    token = broker.delegate(root["access_token"], leaf["agent_id"], "read:data:7").json()["access_token"]
    admin = broker.admin()
    answers: list[httpx2.Response] = [
        broker.http.get(f"/v1/agents/{written}", headers=admin)
        for written in (root["agent_id"], quote(root["agent_id"], safe=""), quote(root["agent_id"]))
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.text for answer in answers}) == 1
    shown = answers[0].json()
    assert (set(shown), shown["agent_id"]) == ({"agent_id", "grants"}, root["agent_id"])
    [grant] = shown["grants"]
    assert (grant["status"], grant["ended_at"], grant["end_reason"]) == ("live", None, None)
    [below] = grant["delegations"]
    assert (below["agent_id"], below["parent"], below["depth"]) == (leaf["agent_id"], grant["sid"], 1)
    broker.release(token)
    [grant] = broker.http.get(f"/v1/agents/{root['agent_id']}", headers=admin).json()["grants"]
    assert (grant["delegations"][0]["status"], grant["delegations"][0]["end_reason"]) == ("ended", "released")


def test_odd_requests_are_refused_and_never_a_defect(broker: BrokerProcess) -> None:
    agent = broker.app().agent()
    headers = bearer(agent["access_token"])
    for body in (
        b'{"delegate_to":"\\ud800","scope":["read:data:1"]}',
        b'{"delegate_to":"' + b"x" * 5000 + b'","scope":["read:data:1"]}',
        b'{"delegate_to":"a","scope":["read:data:1"],"ttl":1e400}',
        b'{"delegate_to":"a","scope":["read:data:1"],"ttl":true}',
        b'{"delegate_to":"a","scope":["read:data:1"],"ttl":99999999999999999999}',
        b'{"delegate_to":"a","scope":"read:data:1"}',
        b'{"delegate_to":null,"scope":["read:data:1"]}',
        b"[]",
        b"",
    ):
        answer = broker.http.post("/v1/delegate", content=body, headers=headers)
        assert answer.status_code in (400, 404), (body, answer.text)
    admin = broker.admin()
    for path in ("/v1/agents/", "/v1/agents/%00", "/v1/agents//", "/v1/agents/..%2f..", "/v1/agents/%ff%fe"):
        answer = broker.http.get(path, headers=admin)
        assert answer.status_code in (400, 404), (path, answer.text)
