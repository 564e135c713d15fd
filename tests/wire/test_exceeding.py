"""What is more than may be had: told by its name to whoever asked for it, with what to do; what is held, to nobody."""

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.support import BrokerProcess, TestApp, bearer, problem, registration
from tests.wire.test_creation import Creator

HELD, WANTED = "read:data:held-by-it", "delete:data:wanted"
AUDIENCE, OTHER = "https://held.example", "https://wanted.example"


def launch(app: TestApp, **fields: Any) -> httpx2.Response:
    body = {"agent_name": "a", "allowed_scope": [HELD], **fields}
    return app.broker.http.post("/v1/app/launch-tokens", json=body, headers=bearer(app.token()))


def create(app: TestApp, **fields: Any) -> httpx2.Response:
    creator = Creator(app)
    return creator.post(creator.body(**{"requested_scope": [HELD], **fields}))


def register(app: TestApp, *scopes: str) -> httpx2.Response:
    token, nonce = app.launch_token(HELD), app.broker.nonce()
    return app.broker.http.post("/v1/register", json=registration(token, nonce, *scopes))


def delegate(app: TestApp, *scopes: str) -> httpx2.Response:
    agent = app.agent(HELD)
    return app.broker.delegate(agent["access_token"], agent["agent_id"], *scopes)


def ask_oauth(app: TestApp, **fields: str) -> httpx2.Response:
    form = {"grant_type": "client_credentials", "resource": AUDIENCE, **fields}
    return app.broker.http.post("/oauth2/token", data=form, auth=(app.client_id, app.client_secret))


@pytest.fixture
def app(broker: BrokerProcess) -> TestApp:
    return broker.app(HELD, audiences=[AUDIENCE])


ASKED: dict[str, tuple[Callable[[TestApp], httpx2.Response], str, str]] = {
    "create": (lambda app: create(app, requested_scope=[HELD, WANTED]), "requested_scope", "the app's ceiling"),
    "create for": (lambda app: create(app, audience=[AUDIENCE, OTHER]), "audience", "the app's audiences"),
    "launch": (lambda app: launch(app, allowed_scope=[HELD, WANTED]), "allowed_scope", "the app's ceiling"),
    "launch for": (lambda app: launch(app, audience=[AUDIENCE, OTHER]), "audience", "the app's audiences"),
    "register": (lambda app: register(app, HELD, WANTED), "requested_scope", "the launch token"),
    "delegate": (lambda app: delegate(app, HELD, WANTED), "scope", "the delegator's scope"),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_exceeds_what_and_what_to_do(app: TestApp, name: str) -> None:
    ask, field, limit = ASKED[name]
    body = problem(ask(app), 403, "scope_violation")
    wanted = OTHER if name.endswith("for") else WANTED
    assert body["detail"] == f"{field} exceeds {limit}: nothing there covers {wanted}"
    assert body["hint"]
    assert HELD not in str(body)
    assert AUDIENCE not in str(body)


@pytest.mark.parametrize(
    ("fields", "error", "wanted"),
    [
        ({"scope": f"{HELD} {WANTED}"}, "invalid_scope", WANTED),
        ({"resource": OTHER}, "invalid_target", OTHER),
    ],
)
def test_oauth_clients_are_told_in_the_one_text_that_they_have(
    app: TestApp, fields: dict[str, str], error: str, wanted: str
) -> None:
    answer = ask_oauth(app, **fields)
    assert (answer.status_code, answer.json()["error"]) == (400, error)
    described = answer.json()["error_description"]
    assert f"nothing there covers {wanted}; " in described
    assert "operator" in described.partition("; ")[2]
    assert HELD not in described


def test_an_exchange_is_told_as_a_delegation_is(app: TestApp) -> None:
    agent = app.agent(HELD)
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": agent["access_token"],
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "actor_token": agent["access_token"],
        "actor_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "scope": f"{HELD} {WANTED}",
    }
    answer = app.broker.http.post("/oauth2/token", data=form, auth=(app.client_id, app.client_secret))
    assert answer.json()["error"] == "invalid_scope", answer.text
    assert f"nothing there covers {WANTED}; " in answer.json()["error_description"]


def test_a_ceiling_that_is_narrower_by_now(app: TestApp, broker: BrokerProcess) -> None:
    wide = broker.app(HELD, WANTED)
    agent, token = wide.agent(HELD, WANTED), wide.launch_token(HELD, WANTED)
    path, body = f"/v1/admin/apps/{wide.app_id}?keep_grants=true", {"scopes": [HELD]}
    assert broker.http.put(path, json=body, headers=broker.admin()).status_code == 200
    registered = broker.http.post("/v1/register", json=registration(token, broker.nonce(), HELD, WANTED))
    delegated = broker.delegate(agent["access_token"], agent["agent_id"], HELD, WANTED)
    for answer, field in ((registered, "requested_scope"), (delegated, "scope")):
        told = problem(answer, 403, "scope_violation")
        assert told["detail"] == f"{field} exceeds the app's ceiling: nothing there covers {WANTED}"
        assert "operator" in told["hint"]


def test_of_many_some_are_named_and_the_others_counted(app: TestApp) -> None:
    wanted = [f"delete:data:{number}" for number in range(20)]
    detail = problem(create(app, requested_scope=wanted), 403, "scope_violation")["detail"]
    assert detail.endswith(f"covers {', '.join(wanted[:8])} and 12 more")


def test_an_audience_is_told_in_plain_text(app: TestApp) -> None:
    detail = problem(create(app, audience=["https://müller.example/\U0001f600"]), 403, "scope_violation")["detail"]
    assert detail.endswith(r"nothing there covers https://m\xfcller.example/\U0001f600")


@pytest.mark.parametrize("what", ["audience", "scope", "binding", "proof", "oauth"])
def test_an_app_that_had_no_launch_token_is_told_of_none_and_neither_is_the_log(
    broker: BrokerProcess, what: str
) -> None:
    app = broker.app(HELD, audiences=[AUDIENCE], require_bound=what == "binding")
    match what:
        case "audience":
            answer = create(app, audience=[OTHER])
        case "scope":
            answer = create(app, requested_scope=[WANTED])
        case "binding":
            answer = create(app)
        case "proof":
            answer = create(app, proof=base64.b64encode(b"none").decode())
        case _:
            answer = ask_oauth(app, resource=OTHER)
    assert answer.is_client_error
    told = answer.text + json.dumps([*broker.events(app_id=app.app_id), broker.events(order="desc", limit=2)])
    assert "launch token" not in told.replace("app:launch-tokens", "")
    assert "launch_token" not in told


def test_a_route_that_a_token_is_not_for_says_whose_it_takes(app: TestApp, broker: BrokerProcess) -> None:
    agent = app.agent(HELD)
    for method, path, needed, whose in (
        ("GET", "/v1/admin/apps", "admin:launch-tokens:*", "operator"),
        ("POST", "/v1/app/launch-tokens", "app:launch-tokens:*", "app"),
    ):
        answer = broker.http.request(method, path, json={}, headers=bearer(agent["access_token"]))
        body = problem(answer, 403, "insufficient_scope")
        assert body["detail"].endswith(needed)
        assert f'scope="{needed}"' in answer.headers["www-authenticate"]
        assert whose in body["hint"]
    delegation = {"delegate_to": agent["agent_id"], "scope": [HELD]}
    answer = broker.http.post("/v1/delegate", json=delegation, headers=bearer(app.token()))
    assert "an agent's token" in problem(answer, 403, "insufficient_scope")["hint"]
