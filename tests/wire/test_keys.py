"""The signing keys: shown, rotated and revoked by the operator, and published for verifiers."""

from pathlib import Path

import jwt
import pytest

from tests.support import BrokerProcess, bearer, problem


@pytest.fixture
def own_broker(tmp_path: Path) -> BrokerProcess:
    return BrokerProcess(tmp_path / "data")


def keys(broker: BrokerProcess, purpose: str = "access_token") -> dict[str, str]:
    """The kids of a purpose by state, those that are gone left out."""
    answer = broker.http.get("/v1/admin/keys", headers=broker.admin())
    assert answer.status_code == 200, answer.text
    return {key["state"]: key["kid"] for key in answer.json()["keys"] if key["purpose"] == purpose}


def published(broker: BrokerProcess) -> set[str]:
    return {key["kid"] for key in broker.http.get("/.well-known/jwks.json").json()["keys"]}


def rotate(broker: BrokerProcess, **body: object) -> None:
    answer = broker.http.post("/v1/admin/keys/rotate", json={"force": True, **body}, headers=broker.admin())
    assert answer.status_code == 200, answer.text


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def test_the_next_key_is_published_before_it_signs(own_broker: BrokerProcess) -> None:
    with own_broker as broker:
        before = keys(broker)
        assert set(before) == {"active", "next"}
        assert published(broker) == set(before.values())
        app = broker.app()
        token = app.agent()["access_token"]
        assert kid(token) == before["active"]
        early = broker.http.post("/v1/admin/keys/rotate", headers=broker.admin())
        assert "wait" in problem(early, 409, "conflict")["detail"]
        assert keys(broker) == before
        rotate(broker)
        after = keys(broker)
        assert (after["active"], after["retired"]) == (before["next"], before["active"])
        assert published(broker) == {*before.values(), after["next"]}
        assert kid(app.agent()["access_token"]) == before["next"]
        assert broker.is_valid(token)
        assert kid(broker.renew(token).json()["access_token"]) == before["next"]
        [event] = broker.events(event_type="signing_key_rotated")
        assert event["data"]["previous_kid"] == before["active"]


def test_rotation_survives_a_kill_and_old_tokens_live_on(own_broker: BrokerProcess) -> None:
    with own_broker as broker:
        token = broker.app().agent()["access_token"]
        rotate(broker)
        known = keys(broker)
        broker.kill()
        broker.start()
        assert keys(broker) == known
        assert broker.is_valid(token)


def test_a_revoked_key_is_gone_at_once_with_all_that_it_signed(own_broker: BrokerProcess) -> None:
    with own_broker as broker:
        app = broker.app()
        dead = app.agent()["access_token"]
        rotate(broker)
        old, alive = kid(dead), app.agent()["access_token"]
        renewed = broker.renew(app.agent()["access_token"]).json()["access_token"]
        body = {"reason": "the disk was sold"}
        admin = broker.admin()
        answer = broker.http.post(f"/v1/admin/keys/{old}/revoke", json=body, headers=admin)
        assert answer.status_code == 200, answer.text
        assert answer.json()["count"] >= 1
        assert not broker.is_valid(dead)
        assert broker.is_valid(alive)
        assert broker.is_valid(renewed)
        assert old not in published(broker)
        [event] = broker.events(event_type="signing_key_revoked")
        assert event["data"]["revocation_reason"] == "the disk was sold"
        again = broker.http.post(f"/v1/admin/keys/{old}/revoke", headers=broker.admin())
        assert again.json()["count"] == 0
        broker.kill()
        broker.start()
        assert not broker.is_valid(dead)
        assert broker.is_valid(alive)


def test_the_active_key_can_be_revoked_and_the_next_one_takes_over(own_broker: BrokerProcess) -> None:
    with own_broker as broker:
        before = keys(broker)
        app = broker.app()
        dead = app.agent()["access_token"]
        admin = broker.admin()
        answer = broker.http.post(f"/v1/admin/keys/{before['active']}/revoke", headers=admin)
        assert answer.status_code == 200, answer.text
        assert not broker.is_valid(dead)
        assert broker.http.get("/v1/admin/keys", headers=admin).status_code == 401  # the operator's token was its too
        assert keys(broker)["active"] == before["next"]
        assert broker.is_valid(app.agent()["access_token"])


def test_a_chain_with_a_record_by_a_revoked_key_is_dead(own_broker: BrokerProcess) -> None:
    with own_broker as broker:
        app = broker.app()
        root, other = app.agent("read:data:*"), app.agent()
        body = {"delegate_to": other["agent_id"], "scope": ["read:data:7"]}
        delegated = broker.http.post("/v1/delegate", json=body, headers=bearer(root["access_token"])).json()
        old = kid(delegated["access_token"])
        rotate(broker)
        renewed = broker.renew(delegated["access_token"]).json()["access_token"]
        assert kid(renewed) != old
        assert broker.is_valid(renewed)
        broker.http.post(f"/v1/admin/keys/{old}/revoke", headers=broker.admin())
        assert not broker.is_valid(renewed)


def test_keys_are_the_operators(broker: BrokerProcess) -> None:
    for token in (broker.app().token(), broker.app().agent()["access_token"]):
        problem(broker.http.get("/v1/admin/keys", headers=bearer(token)), 403, "insufficient_scope")
        problem(broker.http.post("/v1/admin/keys/rotate", headers=bearer(token)), 403, "insufficient_scope")
        problem(broker.http.post("/v1/admin/keys/x/revoke", headers=bearer(token)), 403, "insufficient_scope")
    problem(broker.http.post("/v1/admin/keys/x/revoke", headers=broker.admin()), 404, "not_found")
    answer = broker.http.post("/v1/admin/keys/rotate", json={"purpose": "everything"}, headers=broker.admin())
    problem(answer, 400, "invalid_request")


def test_the_private_half_is_nowhere_in_what_is_shown(broker: BrokerProcess) -> None:
    [key, *_] = broker.http.get("/v1/admin/keys", headers=broker.admin()).json()["keys"]
    assert set(key) == {
        "kid",
        "purpose",
        "state",
        "public_key",
        "created_at",
        "active_since",
        "verifies_until",
        "revoked_at",
    }
