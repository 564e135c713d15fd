"""The main job: create, validate, use, renew, release."""

from agentwrit.client.shapes import completed
from tests.support import BrokerProcess, bearer, problem


def test_an_agents_token_says_who_it_is_and_what_it_may(broker: BrokerProcess) -> None:
    app = broker.app()
    agent = app.agent("read:data:customer-7", "write:data:order-9")
    claims = broker.validate(agent["access_token"])["claims"]
    assert claims["sub"] == agent["agent_id"]
    assert agent["agent_id"].startswith("spiffe://agentwrit.local/agent/orchestrator/task-1/")
    assert claims["scope"] == ["read:data:customer-7", "write:data:order-9"]
    assert claims["iss"] == "agentwrit"
    assert claims["aud"] == ["agentwrit"]
    assert claims["client_id"] == app.client_id
    assert (claims["task_id"], claims["orch_id"]) == ("task-1", "orchestrator")
    assert claims["exp"] - claims["iat"] == agent["expires_in"] == 300


def test_validate_answers_for_app_and_operator_tokens_too(broker: BrokerProcess) -> None:
    app = broker.app()
    expected = {"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "sid", "scope", "client_id", "task_id", "orch_id"}
    app_claims = broker.validate(app.token())["claims"]
    operator_claims = broker.validate(broker.admin()["authorization"].removeprefix("Bearer "))["claims"]
    assert app_claims["sub"] == f"app:{app.app_id}"
    assert app_claims["scope"] == ["app:launch-tokens:*", "app:agents:*", "app:audit:read"]
    assert operator_claims["sub"] == "admin"
    assert operator_claims["scope"] == ["admin:launch-tokens:*", "admin:revoke:*", "admin:audit:*"]
    for claims in (app_claims, operator_claims):
        assert expected <= set(claims)
        assert (claims["task_id"], claims["orch_id"]) == ("", "")


def test_a_released_token_is_dead(broker: BrokerProcess) -> None:
    token = broker.app().agent()["access_token"]
    assert broker.is_valid(token)
    assert broker.release(token).status_code == 204
    assert broker.validate(token) == {"valid": False, "error": "token is invalid or expired"}


def test_a_second_release_is_told_that_the_token_has_been_revoked(broker: BrokerProcess) -> None:
    token = broker.app().agent()["access_token"]
    broker.release(token)
    answer = broker.release(token)
    assert problem(answer, 403, "insufficient_scope")["detail"] == "token has been revoked"
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_renewal_replaces_the_token_and_keeps_everything_else(broker: BrokerProcess) -> None:
    agent = broker.app().agent()
    before = broker.validate(agent["access_token"])["claims"]
    renewed = broker.renew(agent["access_token"])
    assert renewed.status_code == 200
    after = broker.validate(renewed.json()["access_token"])["claims"]
    assert not broker.is_valid(agent["access_token"])
    assert after["jti"] != before["jti"]
    changing = ("jti", "exp", "nbf", "iat")
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }


def test_a_renewal_whose_answer_was_lost_is_answered_again(broker: BrokerProcess) -> None:
    token = broker.app().agent()["access_token"]
    first, second = broker.renew(token), broker.renew(token)
    assert first.json() == second.json()
    assert broker.is_valid(first.json()["access_token"])


def test_release_with_a_superseded_token_ends_the_grant(broker: BrokerProcess) -> None:
    token = broker.app().agent()["access_token"]
    successor = broker.renew(token).json()["access_token"]
    assert broker.release(token).status_code == 204
    assert not broker.is_valid(successor)


def test_app_and_operator_tokens_can_be_released(broker: BrokerProcess) -> None:
    token = broker.app().token()
    assert broker.release(token).status_code == 204
    assert not broker.is_valid(token)


def test_the_operator_can_launch_agents_of_its_own(broker: BrokerProcess) -> None:
    from tests.support import registration

    body = {"agent_name": "ops/cleaner", "allowed_scope": ["read:data:*"], "max_ttl": 60}
    answer = broker.http.post("/v1/admin/launch-tokens", json=body, headers=broker.admin())
    assert answer.status_code == 201
    assert answer.json()["policy"] == {"allowed_scope": ["read:data:*"], "max_ttl": 60}
    registered = broker.http.post("/v1/register", json=registration(answer.json()["launch_token"], broker.nonce()))
    assert registered.status_code == 200
    assert registered.json()["expires_in"] == 60
    assert broker.validate(registered.json()["access_token"])["claims"]["client_id"] == ""


def test_an_events_hash_can_be_recomputed_from_what_the_api_shows(broker: BrokerProcess) -> None:
    import hashlib

    import rfc8785

    broker.app().agent()
    previous = "0" * 64
    for event in broker.events():
        shown = dict(completed(event))  # what an event does not have is an empty text in the form that is hashed
        assert shown["prev_hash"] == previous
        previous = shown.pop("hash")
        assert hashlib.sha256(rfc8785.dumps(shown)).hexdigest() == previous


def test_an_app_sees_its_own_events_only(broker: BrokerProcess) -> None:
    mine, other = broker.app(), broker.app()
    mine.agent()
    other.agent()
    answer = broker.http.get("/v1/audit/events", headers=bearer(mine.token())).json()
    assert answer["total"] == len(answer["events"])
    assert {event["app_id"] for event in answer["events"]} == {mine.app_id}
    assert {"agent_registered", "token_issued"} <= {event["event_type"] for event in answer["events"]}
