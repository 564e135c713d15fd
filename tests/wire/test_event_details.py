"""The log to clients that show `detail` and nothing else, and that take an id that is there for one that is."""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from agentwrit.domain.audit import EventType
from tests.support import ADMIN_SECRET, BrokerProcess, bearer

IDS = ("agent_id", "app_id", "task_id", "orch_id", "sid", "principal", "deleg_chain_hash", "trace_id", "request_id")


@pytest.fixture(params=["sqlite", "postgresql"])
def own_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    settings = {}
    if request.param == "postgresql":
        url = request.getfixturevalue("database_url")
        settings = {"AGENTWRIT_DATABASE_URL": url, "AGENTWRIT_MASTER_KEY": secrets.token_hex(32)}
    with BrokerProcess(tmp_path_factory.mktemp("own") / "data", **settings) as process:
        yield process


def live(broker: BrokerProcess) -> list[str]:
    """Have as much happen as leaves an event of most kinds. Returns the ids of what was made on the way."""
    http, admin = broker.http, broker.admin()
    assert http.post("/v1/admin/auth", json={"secret": f"not-{ADMIN_SECRET}"}).status_code == 401
    app = broker.app("read:data:*", audiences=["https://orders"])
    app.login("wrong")
    agent, other = app.agent("read:data:*"), app.agent("read:data:*")
    delegated = broker.delegate(agent["access_token"], other["agent_id"], "read:data:1").json()
    claims = broker.validate(delegated["access_token"])["claims"]
    broker.delegate(agent["access_token"], "spiffe://nobody, by admin", "read:data:1")
    broker.delegate(agent["access_token"], other["agent_id"], "write:data:1")
    assert broker.renew(other["access_token"]).status_code == 200
    body = {"agent_name": "a", "allowed_scope": ["write:data:1"]}
    http.post("/v1/app/launch-tokens", json=body, headers=bearer(app.token()))
    http.get("/v1/admin/apps", headers=bearer(agent["access_token"]))
    broker.renew("nonsense")
    path = f"/v1/admin/apps/{app.app_id}"
    changes: list[dict[str, object]] = [{"token_ttl": 600}, {"scopes": ["read:data:1"]}, {"audiences": []}]
    for change in [*changes, {"max_live_agents": 5}, {"require_bound": True}]:
        assert http.put(path, json=change, headers=admin).status_code == 200, change
    assert http.post(f"{path}/secret", json={}, headers=admin).status_code == 200
    third = broker.app("read:data:*").agent("read:data:1", task_id="third")
    assert broker.revoke("task", "third") == 1
    broker.release(third["access_token"])
    assert http.post(f"{path}/suspend", headers=admin).status_code == 200
    assert http.post(f"{path}/resume", headers=admin).status_code == 200
    assert http.delete(path, headers=admin).status_code == 200
    assert http.post("/v1/admin/operators", json={"name": "ana"}, headers=admin).status_code == 201
    assert http.post("/v1/admin/operators/ana/secret", json={}, headers=admin).status_code == 200
    assert http.delete("/v1/admin/operators/ana", headers=admin).status_code == 200
    return [app.app_id, agent["agent_id"], other["agent_id"], third["agent_id"], claims["sid"], claims["jti"], "ana"]


def test_each_event_says_in_a_line_what_happened_and_to_whom(own_broker: BrokerProcess) -> None:
    made = live(own_broker)
    events = own_broker.events()
    kinds = {event["event_type"] for event in events}
    assert len(kinds) > len(EventType) / 2, kinds
    for event in events:
        detail = event["detail"]
        assert detail.isprintable()
        assert detail.partition(":")[0].strip(), event
        for name in ("agent_id", "app_id", "sid"):
            assert event.get(name, "") in detail, event
        if "agent_id" not in event:
            assert event.get("task_id", "") in detail, event
    for one in made:
        assert any(one in event["detail"] for event in events), one
    lines = [event["detail"] for event in events if event["event_type"].startswith("signing_key")]
    assert len(lines) == len(set(lines)) >= 6


def test_an_id_that_an_event_does_not_have_is_left_out(own_broker: BrokerProcess) -> None:
    live(own_broker)
    events = own_broker.events()
    assert not [event for event in events if "" in event.values()]
    for name in IDS:
        if name != "trace_id":
            assert any(name in event for event in events), name
    [registered, *_] = own_broker.events(event_type="app_registered")
    assert not {"agent_id", "task_id", "orch_id", "deleg_chain_hash", "trace_id"} & registered.keys()


def test_when_a_hop_was_made_is_told_as_times_are_and_signed_as_a_number(broker: BrokerProcess) -> None:
    app = broker.app()
    agent = app.agent()
    given = broker.delegate(agent["access_token"], agent["agent_id"]).json()
    claims = broker.validate(given["access_token"])["claims"]
    assert claims["delegation_chain"] == given["delegation_chain"]
    [hop] = given["delegation_chain"]
    assert abs(datetime.fromisoformat(hop["delegated_at"]) - datetime.now(UTC)) < timedelta(minutes=1)
