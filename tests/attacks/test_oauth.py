"""Attempts to get by /oauth2 what the other routes refuse, or to learn something there."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest

from tests.oauth import client_credentials, exchange, introspect, oauth_error, post, revoke
from tests.proofs import Creation, Holder
from tests.support import SOAK, BrokerProcess, TestApp, bearer, problem, registration

ROUTES = ["token", "introspect", "revoke"]


@pytest.fixture
def app(broker: BrokerProcess) -> TestApp:
    return broker.app()


def token(agent: dict[str, str]) -> str:
    return agent["access_token"]


def claims_of(text: str) -> dict[str, Any]:
    return dict(jwt.decode(text, options={"verify_signature": False}))


# -- client credentials for a resource --------------------------------------------------------------------------------

ORDERS = "https://orders.example"


def test_more_than_the_ceiling_for_a_resource(broker: BrokerProcess) -> None:
    app = broker.app("read:data:1", audiences=[ORDERS])
    for scope in ("read:data:*", "write:data:1", "admin:revoke:*", "app:agents:*", "read:data:1 read:data:2"):
        oauth_error(client_credentials(app, resource=ORDERS, scope=scope), 400, "invalid_scope")
    assert not broker.events(app_id=app.app_id, event_type="agent_registered")


def test_another_apps_resource(broker: BrokerProcess) -> None:
    broker.app(audiences=[ORDERS])
    stranger = broker.app(audiences=["https://payroll.example"])
    for named in (ORDERS, f"{ORDERS}/", ORDERS.upper(), f"{ORDERS}/mcp", f"{ORDERS}@payroll.example"):
        oauth_error(client_credentials(stranger, resource=named), 400, "invalid_target")
    mixed = {"resource": ["https://payroll.example", ORDERS], "grant_type": "client_credentials"}
    oauth_error(post(broker, "token", mixed, app=stranger), 400, "invalid_target")


def test_a_token_for_a_resource_at_the_apps_and_the_operators_routes(broker: BrokerProcess) -> None:
    app = broker.app("read:data:*", audiences=[ORDERS])
    headers = bearer(token(client_credentials(app, resource=ORDERS).json()))
    for method, path in (
        ("POST", "/v1/agents"),
        ("POST", "/v1/app/launch-tokens"),
        ("GET", "/v1/audit/events"),
        ("GET", "/v1/admin/apps"),
        ("POST", "/v1/revoke"),
    ):
        assert broker.http.request(method, path, json={}, headers=headers).status_code == 403, path
    problem(broker.http.post("/v1/agents", headers=headers, json={}), 403, "insufficient_scope")


def test_a_token_for_a_resource_that_is_renewed_to_live_longer(broker: BrokerProcess) -> None:
    issued = token(client_credentials(broker.app(audiences=[ORDERS]), resource=ORDERS).json())
    renewed = broker.renew(issued)
    assert renewed.status_code == 200
    assert claims_of(token(renewed.json()))["exp"] == claims_of(issued)["exp"]


def test_what_is_bound_handed_to_an_agent_without_a_key(broker: BrokerProcess) -> None:
    app = broker.app(audiences=[ORDERS])
    holder = Holder(app)
    keyless = claims_of(token(client_credentials(app, resource=ORDERS).json()))["sub"]
    refused = holder.post("/v1/delegate", json={"delegate_to": keyless, "scope": ["read:data:1"]})
    assert "key" in problem(refused, 403, "scope_violation")["detail"]
    unbound = app.agent()
    assert broker.delegate(token(unbound), keyless).status_code == 200


def test_an_app_that_requires_binding_gets_no_token_for_a_resource_by_its_secret(broker: BrokerProcess) -> None:
    app = broker.app(audiences=[ORDERS], require_bound=True)
    oauth_error(client_credentials(app, resource=ORDERS), 400, "unauthorized_client")
    assert client_credentials(app).status_code == 200  # the app's own, for the broker


def test_an_apps_limits_evaded_by_client_credentials(broker: BrokerProcess) -> None:
    app = broker.app("read:data:*", audiences=[ORDERS], max_live_agents=2, max_ttl=60)
    assert {client_credentials(app, resource=ORDERS).json()["expires_in"] for _ in range(2)} == {60}
    full = client_credentials(app, resource=ORDERS)
    oauth_error(full, 429, "temporarily_unavailable")
    assert int(full.headers["retry-after"]) >= 1
    problem(Creation(app).post(), 429, "rate_limited")
    with ThreadPoolExecutor(8) as threads:
        again = list(threads.map(lambda _: client_credentials(app, resource=ORDERS).status_code, range(16)))
    assert set(again) == {429}


# -- clients ----------------------------------------------------------------------------------------------------------


def with_secret(app: TestApp, route: str, client_id: str, secret: str) -> httpx2.Response:
    fields = {"grant_type": "client_credentials", "token": "x", "client_id": client_id, "client_secret": secret}
    return post(app.broker, route, fields)


@pytest.mark.parametrize("route", ROUTES)
def test_client_authentication_by_both_methods_at_once(app: TestApp, route: str) -> None:
    form = {"grant_type": "client_credentials", "token": "x", "client_id": app.client_id}
    both = {**form, "client_secret": app.client_secret}
    assert "two ways" in oauth_error(post(app.broker, route, both, app=app), 400, "invalid_request")
    oauth_error(post(app.broker, route, {**form, "client_secret": "wrong"}, app=app), 400, "invalid_request")


def test_introspection_with_a_bearer_and_a_secret_at_once(app: TestApp) -> None:
    both = {"token": "x", "client_id": app.client_id, "client_secret": app.client_secret}
    answer = post(app.broker, "introspect", both, headers=bearer(app.token()))
    assert "two ways" in oauth_error(answer, 400, "invalid_request")


@pytest.mark.parametrize("route", ROUTES)
def test_two_authorization_headers(app: TestApp, route: str) -> None:
    basic = base64.b64encode(f"{app.client_id}:{app.client_secret}".encode())
    headers = [
        (b"authorization", b"Basic " + basic),
        (b"authorization", b"Basic bm9ib2R5Om5vdGhpbmc="),
        (b"content-type", b"application/x-www-form-urlencoded"),
    ]
    body = b"grant_type=client_credentials&token=x"
    oauth_error(app.broker.http.post(f"/oauth2/{route}", content=body, headers=headers), 400, "invalid_request")


@pytest.mark.parametrize("route", ROUTES)
def test_another_apps_id_beside_ones_own_credentials(broker: BrokerProcess, app: TestApp, route: str) -> None:
    form = {"grant_type": "client_credentials", "token": "x", "client_id": broker.app().client_id}
    oauth_error(post(broker, route, form, app=app), 400, "invalid_request")


@pytest.mark.parametrize("route", ROUTES)
def test_an_unknown_client_and_a_wrong_secret_are_one_answer(app: TestApp, route: str) -> None:
    wrong = with_secret(app, route, app.client_id, "0" * 64)
    unknown = with_secret(app, route, "client-0000000000000000", "0" * 64)
    oauth_error(wrong, 401, "invalid_client")
    assert wrong.content == unknown.content
    assert [name for name in wrong.headers if name != "x-request-id"] == [
        name for name in unknown.headers if name != "x-request-id"
    ]
    assert wrong.headers["www-authenticate"] == unknown.headers["www-authenticate"]


@pytest.mark.parametrize("route", ROUTES)
def test_a_removed_app_is_no_client(broker: BrokerProcess, app: TestApp, route: str) -> None:
    broker.http.delete(f"/v1/admin/apps/{app.app_id}", headers=broker.admin())
    oauth_error(with_secret(app, route, app.client_id, app.client_secret), 401, "invalid_client")


def test_guesses_are_limited_over_all_routes_together_and_right_secrets_never(app: TestApp) -> None:
    guesses = [with_secret(app, route, app.client_id, "0" * 64) for route in ROUTES]
    assert [guess.status_code for guess in guesses] == [401] * 3
    problem(app.login("0" * 64), 429, "rate_limited")
    limited = with_secret(app, "token", app.client_id, "0" * 64)
    oauth_error(limited, 429, "temporarily_unavailable")
    assert int(limited.headers["retry-after"]) >= 1
    assert client_credentials(app).status_code == 200
    assert introspect(app, "x") == {"active": False}
    assert app.login().status_code == 200


def test_a_flood_of_guesses_writes_one_event(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        app = broker.app()
        for number in range(50):
            with_secret(app, "introspect", f"client-{number}", "0" * 64)
        assert len(broker.events(event_type="app_auth_failed")) == 1


def test_no_secret_and_no_token_is_logged(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        app = broker.app()
        agent = app.agent()
        introspect(app, token(agent))
        exchange(app, token(agent), token(agent), "read:data:1")
        with_secret(app, "token", app.client_secret, "guessed-secret")
        revoke(broker.app(), token(agent))
        revoke(app, token(agent))
        events = str(broker.events())
        log = broker.logged()
        for secret in (app.client_secret, token(agent), "guessed-secret"):
            assert secret not in events
            assert secret not in log


# -- others' tokens ---------------------------------------------------------------------------------------------------


def test_another_apps_tokens_are_not_revoked_and_the_attempt_is_recorded(broker: BrokerProcess, app: TestApp) -> None:
    other = broker.app()
    theirs = [token(other.agent()), other.token(), broker.admin()["authorization"].removeprefix("Bearer ")]
    for each in theirs:
        answer = revoke(app, each)
        assert (answer.status_code, answer.content) == (200, revoke(app, "nonsense").content)
        assert broker.is_valid(each)
    events = [each for each in broker.events(event_type="token_revocation_denied") if each.get("app_id") == app.app_id]
    assert [(event["outcome"], event["principal"]) for event in events] == [("denied", f"app:{app.app_id}")] * 3


def test_tokens_that_the_operator_launched_belong_to_no_app(broker: BrokerProcess, app: TestApp) -> None:
    policy = {"agent_name": "a", "allowed_scope": ["read:data:1"]}
    launched = broker.http.post("/v1/admin/launch-tokens", json=policy, headers=broker.admin()).json()
    agent = broker.http.post("/v1/register", json=registration(launched["launch_token"], broker.nonce())).json()
    revoke(app, token(agent))
    assert broker.is_valid(token(agent))
    own = token(app.agent())
    oauth_error(exchange(app, token(agent), own, "read:data:1"), 400, "invalid_request")
    oauth_error(exchange(app, own, token(agent), "read:data:1"), 400, "invalid_request")


def test_an_exchange_takes_no_token_of_another_app(broker: BrokerProcess, app: TestApp) -> None:
    own, theirs = token(app.agent()), token(broker.app().agent())
    refusals = [
        exchange(app, theirs, own, "read:data:1"),
        exchange(app, "nonsense", own, "read:data:1"),
    ]
    assert len({oauth_error(refusal, 400, "invalid_request") for refusal in refusals}) == 1
    refusals = [
        exchange(app, own, theirs, "read:data:1"),
        exchange(app, own, "nonsense", "read:data:1"),
    ]
    assert len({oauth_error(refusal, 400, "invalid_request") for refusal in refusals}) == 1
    events = [event for event in broker.events(event_type="delegation_denied") if event.get("app_id") == app.app_id]
    assert len(events) == 4
    assert {event["outcome"] for event in events} == {"denied"}


def test_an_exchange_takes_no_apps_and_no_operators_token(broker: BrokerProcess, app: TestApp) -> None:
    own, operators = token(app.agent()), broker.admin()["authorization"].removeprefix("Bearer ")
    for other in (app.token(), operators):
        oauth_error(exchange(app, other, own, "read:data:1"), 400, "invalid_request")
        oauth_error(exchange(app, own, other, "read:data:1"), 400, "invalid_request")
        oauth_error(exchange(app, other, own, "app:audit:read"), 400, "invalid_request")


# -- exchanges that would give more -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["read:data:2", "read:data:*", "write:data:1", "read:data:1 write:data:1"])
def test_an_exchange_does_not_widen_the_scope(app: TestApp, wanted: str) -> None:
    subject, actor = app.agent("read:data:1"), app.agent("write:data:1")
    oauth_error(exchange(app, token(subject), token(actor), wanted), 400, "invalid_scope")
    [event] = app.broker.events(event_type="delegation_attenuation_violation", agent_id=subject["agent_id"])
    assert event["outcome"] == "denied"


@pytest.mark.parametrize("wanted", ["*", "*:*:*", "read:data", "read:data:1\n", "read:data:1  read:data:1", " "])
def test_an_exchange_takes_no_scope_that_is_none(app: TestApp, wanted: str) -> None:
    agent = token(app.agent())
    oauth_error(exchange(app, agent, agent, wanted), 400, "invalid_scope")


def test_an_exchange_does_not_exceed_the_ceiling_that_the_app_has_by_now(app: TestApp) -> None:
    agent = token(app.agent("read:data:1"))
    path = f"/v1/admin/apps/{app.app_id}?keep_grants=true"
    app.broker.http.put(path, json={"scopes": ["read:data:2"]}, headers=app.broker.admin())
    oauth_error(exchange(app, agent, agent, "read:data:1"), 400, "invalid_scope")


def test_an_exchange_does_not_widen_the_audience(broker: BrokerProcess) -> None:
    app = broker.app(audiences=["https://orders.example", "https://billing.example"])
    subject = app.agent(audience=["https://orders.example"])
    actor = app.agent("write:data:1", audience=["https://billing.example"])
    for target in ("https://billing.example", "https://orders.example/", "https://ORDERS.example"):
        refused = exchange(app, token(subject), token(actor), "read:data:1", resource=target)
        oauth_error(refused, 400, "invalid_target")
    refused = exchange(
        app,
        token(subject),
        token(actor),
        "read:data:1",
        resource="https://orders.example",
        audience="agentwrit",
    )
    oauth_error(refused, 400, "invalid_target")


def test_an_exchange_does_not_outlive_the_subject_token(app: TestApp) -> None:
    subject, actor = app.agent(max_ttl=60), app.agent()
    body = exchange(app, token(subject), token(actor), "read:data:1", ttl="86400").json()
    assert body["expires_in"] <= 60


def test_a_chain_does_not_grow_too_long(app: TestApp) -> None:
    agent = app.agent()
    held = token(agent)
    for _ in range(5):
        held = exchange(app, held, token(agent), "read:data:1").json()["access_token"]
    assert "hops" in oauth_error(exchange(app, held, token(agent), "read:data:1"), 400, "invalid_request")


# -- exchanges by the dead --------------------------------------------------------------------------------------------


def test_an_exchange_takes_no_token_that_is_dead(app: TestApp) -> None:
    live = app.agent()
    released, superseded = app.agent(), app.agent()
    app.broker.release(token(released))
    app.broker.renew(token(superseded))
    for dead in (released, superseded):
        oauth_error(exchange(app, token(dead), token(live), "read:data:1"), 400, "invalid_request")
        oauth_error(exchange(app, token(live), token(dead), "read:data:1"), 400, "invalid_request")


def test_an_exchange_takes_no_token_that_is_over(app: TestApp) -> None:
    live, over = app.agent(), app.agent(max_ttl=1)
    while app.broker.is_valid(token(over)):
        pass
    oauth_error(exchange(app, token(over), token(live), "read:data:1"), 400, "invalid_request")
    oauth_error(exchange(app, token(live), token(over), "read:data:1"), 400, "invalid_request")


def test_what_was_exchanged_dies_with_the_subject_and_with_the_actor(app: TestApp) -> None:
    subject, actor = app.agent(), app.agent()
    first = exchange(app, token(subject), token(actor), "read:data:1").json()["access_token"]
    app.broker.release(token(subject))
    assert introspect(app, first) == {"active": False}
    subject = app.agent()
    second = exchange(app, token(subject), token(actor), "read:data:1").json()["access_token"]
    app.broker.release(token(actor))
    assert introspect(app, second) == {"active": False}


def test_an_exchange_that_races_a_revocation_leaves_nothing_alive(app: TestApp) -> None:
    for _ in range(5 * SOAK):
        subject, actor = app.agent(), app.agent()
        with ThreadPoolExecutor(9) as threads:
            exchanges = [threads.submit(exchange, app, token(subject), token(actor), "read:data:1") for _ in range(8)]
            assert threads.submit(revoke, app, token(subject)).result().status_code == 200
            answers = [done.result() for done in exchanges]
        for answer in answers:
            if answer.status_code == 200:
                assert introspect(app, answer.json()["access_token"]) == {"active": False}
            else:
                oauth_error(answer, 400, "invalid_request")
