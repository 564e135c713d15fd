"""Reports of what was done with tokens, on the wire."""

import pytest

from tests.reports import AUDIENCE, ResourceServer, access, at
from tests.support import BrokerProcess, TestApp, bearer, problem


@pytest.fixture
def server(broker: BrokerProcess) -> ResourceServer:
    return ResourceServer(broker)


@pytest.fixture
def app(broker: BrokerProcess) -> TestApp:
    return broker.app(audiences=[AUDIENCE])


def agent_token(app: TestApp, *scopes: str) -> str:
    return str(app.agent(*scopes, audience=[AUDIENCE])["access_token"])


def test_what_was_done_is_an_event_that_says_who_did_what_and_on_whose_word(
    broker: BrokerProcess, server: ResourceServer, app: TestApp
) -> None:
    agent = app.agent("read:data:*", audience=[AUDIENCE])
    delegate = app.agent("read:data:9", audience=[AUDIENCE])
    given = broker.delegate(agent["access_token"], delegate["agent_id"], "read:data:1").json()["access_token"]
    first, last = at(-2), at(-1)
    receipt = server.taken(access(broker, given, "read:data:1", count=3, first=first, last=last), key="report-1")
    assert receipt == {"recorded": 1, "refused": []}
    claims = broker.validate(given)["claims"]
    [event] = broker.events(event_type="resource_accessed", sid=claims["sid"])
    assert event["principal"] == f"app:{server.app.app_id}"
    assert (event["app_id"], event["agent_id"]) == (app.app_id, delegate["agent_id"])
    assert (event["resource"], event["outcome"]) == ("GET /orders/1", "success")
    assert (event["deleg_depth"], event["deleg_chain_hash"]) == (1, claims["chain_hash"])
    data = event["data"]
    assert (data["jti"], data["count"]) == (claims["jti"], 3)
    assert (data["scope_used"], data["scope_granted"]) == (["read:data:1"], ["read:data:1"])
    assert data["parent_sids"] == [broker.validate(agent["access_token"])["claims"]["sid"]]
    assert data["original_principal"] == agent["agent_id"]
    assert (data["first"][:19], data["last"][:19]) == (first[:19], last[:19])


def test_the_scope_that_made_a_use_possible_is_the_narrowest_that_was_held(
    broker: BrokerProcess, server: ResourceServer, app: TestApp
) -> None:
    token = agent_token(app, "read:data:*", "read:data:7", "write:data:1")
    assert server.taken(access(broker, token, "read:data:7", "read:data:8"))["recorded"] == 1
    [event] = broker.events(event_type="resource_accessed", sid=broker.validate(token)["claims"]["sid"])
    assert event["data"]["scope_granted"] == ["read:data:7", "read:data:*"]


def test_a_report_made_again_is_recorded_once_and_answered_the_same(
    broker: BrokerProcess, server: ResourceServer, app: TestApp
) -> None:
    token = agent_token(app)
    good = access(broker, token)
    bad = {**good, "scope": ["write:data:1"]}
    answers = [server.taken(good, bad, key="once") for _ in range(3)]
    assert answers == [{"recorded": 1, "refused": [{"index": 1, "reason": "scope_not_covered"}]}] * 3
    assert len(broker.events(event_type="resource_accessed", sid=good["sid"])) == 1
    problem(server.report(good, key="once"), 409, "conflict")
    assert ResourceServer(broker).taken(good, key="once")["recorded"] == 1  # another's key is another key


def test_what_was_done_is_taken_after_the_token_was_renewed_or_released(
    broker: BrokerProcess, server: ResourceServer, app: TestApp
) -> None:
    tokens = [agent_token(app)]
    done = [access(broker, tokens[0])]
    for _ in range(3):
        tokens.append(broker.renew(tokens[-1]).json()["access_token"])
        done.append(access(broker, tokens[-1]))
    broker.release(tokens[-1])
    assert server.taken(*done)["recorded"] == 4
    events = broker.events(event_type="resource_accessed", sid=done[0]["sid"])
    assert [event["data"]["jti"] for event in events] == [one["jti"] for one in done]


def test_what_was_refused_may_be_beyond_the_token(broker: BrokerProcess, server: ResourceServer, app: TestApp) -> None:
    token = agent_token(app)
    tried = access(broker, token, "read:data:1", "write:data:1", outcome="denied")
    assert server.taken(tried)["recorded"] == 1
    [event] = broker.events(event_type="resource_accessed", sid=tried["sid"], outcome="denied")
    assert event["data"]["scope_granted"] == ["read:data:1", ""]


@pytest.mark.parametrize(
    "fields",
    [
        {"sid": ""},
        {"jti": "j" * 65},
        {"resource": ""},
        {"resource": "r" * 257},
        {"scope": []},
        {"scope": ["read:data"]},
        {"scope": ["read:data:1"] * 65},
        {"outcome": "perhaps"},
        {"count": 0},
        {"count": 2**31},
        {"count": "many"},
        {"first": "yesterday"},
        {"last": "2026-01-31T23:59:59"},
        {"first": "2026-02-01T00:00:00Z", "last": "2026-01-31T00:00:00Z"},
    ],
)
def test_what_is_no_access_is_named(
    broker: BrokerProcess, server: ResourceServer, app: TestApp, fields: dict[str, object]
) -> None:
    body = problem(server.report({**access(broker, agent_token(app)), **fields}), 400, "invalid_request")
    assert any(name in body["detail"] for name in fields), body


def test_a_report_has_1_to_64_accesses(broker: BrokerProcess, server: ResourceServer, app: TestApp) -> None:
    one = access(broker, agent_token(app))
    assert server.taken(*[one] * 64)["recorded"] == 64
    problem(server.report(*[one] * 65), 400, "invalid_request")
    problem(server.report(), 400, "invalid_request")


def test_a_resource_server_is_registered_changed_and_shown(broker: BrokerProcess) -> None:
    body = {"name": "an-order-service", "reports_for": ["orders"]}
    registered = broker.http.post("/v1/admin/apps", json=body, headers=broker.admin()).json()
    assert registered["scopes"] == []  # it needs no ceiling: it has no agents
    path = f"/v1/admin/apps/{registered['app_id']}"
    assert broker.http.get(path, headers=broker.admin()).json()["reports_for"] == ["orders"]
    login = {"client_id": registered["client_id"], "client_secret": registered["client_secret"]}
    answer = broker.http.post("/v1/app/auth", json=login).json()
    assert answer["scopes"][-1] == "app:audit:report"
    launch = {"agent_name": "an-agent", "allowed_scope": ["read:data:1"]}
    refused = broker.http.post("/v1/app/launch-tokens", json=launch, headers=bearer(answer["access_token"]))
    problem(refused, 403, "scope_violation")
    changed = broker.http.put(path, json={"reports_for": []}, headers=broker.admin()).json()
    assert changed["reports_for"] == []
    assert "app:audit:report" not in broker.http.post("/v1/app/auth", json=login).json()["scopes"]
    assert [event["data"].get("reports_for") for event in broker.events(app_id=registered["app_id"])][:2] == [
        ["orders"],
        None,
    ]


def test_a_token_that_may_report_and_nothing_else_can_be_had(broker: BrokerProcess, server: ResourceServer) -> None:
    form = {"grant_type": "client_credentials", "scope": "app:audit:report"}
    auth = (server.app.client_id, server.app.client_secret)
    answer = broker.http.post("/oauth2/token", data=form, auth=auth).json()
    assert answer["scope"] == "app:audit:report"
    other = broker.app()
    refused = broker.http.post("/oauth2/token", data=form, auth=(other.client_id, other.client_secret))
    assert refused.status_code == 400, refused.text
