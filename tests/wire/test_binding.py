"""Bound tokens on the wire: how they are asked for, what they look like, and how they are presented (RFC 9449)."""

import base64
import hashlib
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.proofs import Creation, Holder, encoded, p256_key, p256_signature, present, public_jwk, raw_public_key
from tests.support import BrokerProcess, TestApp, bearer, problem, registration

SERVICE = "https://orders.example.com/orders/7"


@pytest.fixture
def app(broker: BrokerProcess) -> TestApp:
    return broker.app()


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


def thumbprint(members: dict[str, str]) -> str:
    """RFC 7638 §3, by hand."""
    text = json.dumps(members, sort_keys=True, separators=(",", ":"))
    return encoded(hashlib.sha256(text.encode()).digest())


def jkt(holder: Holder) -> dict[str, str]:
    return {"jkt": thumbprint(public_jwk(holder.key))}


def test_a_bound_token_names_its_key_and_says_that_it_is_bound(app: TestApp) -> None:
    holder = Holder(app)
    assert set(holder.answer.json()) == {"agent_id", "access_token", "expires_in", "token_type"}
    assert holder.answer.json()["token_type"] == "DPoP"
    assert claims_of(holder.token)["cnf"] == jkt(holder)
    unbound = Holder(app, bound=False)
    assert "token_type" not in unbound.answer.json()
    assert "cnf" not in claims_of(unbound.token)


@pytest.mark.parametrize(
    ("key", "alg"), [(Ed25519PrivateKey.generate(), "Ed25519"), (p256_key(), "ES256")], ids=["Ed25519", "ES256"]
)
def test_the_life_of_an_agent_whose_library_knows_other_algorithms(app: TestApp, key: Any, alg: str) -> None:
    holder, other = Holder(app, key=key, alg=alg), Holder(app)
    assert jkt(holder) == claims_of(holder.token)["cnf"]
    assert holder.validate("GET", SERVICE)["valid"]
    body = {"delegate_to": other.agent_id, "scope": ["read:data:1"]}
    assert holder.post("/v1/delegate", json=body).status_code == 200
    delegated = other.post("/v1/delegate", json={**body, "delegate_to": holder.agent_id}).json()["access_token"]
    assert claims_of(delegated)["cnf"] == jkt(holder)
    assert holder.post("/v1/token/renew", token=delegated).status_code == 200
    holder.token = holder.post("/v1/token/renew").json()["access_token"]
    assert jwt.get_unverified_header(holder.token)["alg"] == "EdDSA"  # what the broker signs has one name
    assert holder.post("/v1/token/release").status_code == 204


def test_a_launch_token_leads_to_an_agent_with_a_key_of_p256(app: TestApp, broker: BrokerProcess) -> None:
    key, nonce = p256_key(), broker.nonce()
    body = registration(app.launch_token(), nonce) | {
        "public_key": base64.b64encode(raw_public_key(key)).decode(),
        "signature": base64.b64encode(p256_signature(key, bytes.fromhex(nonce))).decode(),
    }
    forged = {**body, "signature": base64.b64encode(p256_signature(p256_key(), bytes.fromhex(nonce))).decode()}
    problem(broker.http.post("/v1/register", json=forged), 401, "unauthorized")
    assert broker.http.post("/v1/register", json=body).status_code == 200


@pytest.mark.parametrize(
    "key", [bytes(31), bytes(33), b"\x02" + bytes(64), b"\x03" + bytes(32), bytes(65), bytes(64), b""], ids=len
)
def test_what_is_no_public_key(app: TestApp, key: bytes) -> None:
    problem(Creation(app, public_key=base64.b64encode(key).decode()).post(), 400, "invalid_request")


def test_a_point_that_is_on_no_curve_is_nobodys_key(app: TestApp) -> None:
    point = base64.b64encode(b"\x04" + bytes(64)).decode()
    problem(Creation(app, public_key=point).post(), 401, "unauthorized")


def test_a_launch_token_binds_the_agents_that_it_leads_to(app: TestApp, broker: BrokerProcess) -> None:
    policy = {"agent_name": "a", "allowed_scope": ["read:data:1"], "bound": True}
    launched = broker.http.post("/v1/app/launch-tokens", json=policy, headers=bearer(app.token())).json()
    assert launched["policy"]["bound"] is True
    body = registration(launched["launch_token"], broker.nonce())
    registered = broker.http.post("/v1/register", json=body).json()
    assert registered["token_type"] == "DPoP"
    members = {"kty": "OKP", "crv": "Ed25519", "x": encoded(base64.b64decode(body["public_key"]))}
    assert claims_of(registered["access_token"])["cnf"] == {"jkt": thumbprint(members)}
    unbound = broker.http.post("/v1/app/launch-tokens", json=policy | {"bound": False}, headers=bearer(app.token()))
    assert "bound" not in unbound.json()["policy"]


def test_renewal_keeps_the_binding_and_takes_a_proof(app: TestApp) -> None:
    holder = Holder(app)
    answer = holder.post("/v1/token/renew")
    assert answer.status_code == 200, answer.text
    assert answer.json()["token_type"] == "DPoP"
    renewed = answer.json()["access_token"]
    assert claims_of(renewed)["cnf"] == jkt(holder)
    assert holder.post("/v1/token/renew").json()["access_token"] == renewed  # as if the answer had been lost
    assert holder.post("/v1/token/renew", token=renewed).status_code == 200


def test_a_bound_token_is_released_with_a_proof(app: TestApp) -> None:
    holder = Holder(app)
    assert holder.post("/v1/token/release").status_code == 204
    problem(holder.post("/v1/token/release"), 403, "insufficient_scope")


def test_a_delegation_from_a_bound_grant_is_bound_to_the_delegates_key(app: TestApp, broker: BrokerProcess) -> None:
    delegator, delegate = Holder(app), Holder(app, bound=False)
    body = {"delegate_to": delegate.agent_id, "scope": ["read:data:1"]}
    delegated = delegator.post("/v1/delegate", json=body).json()
    assert delegated["token_type"] == "DPoP"
    assert claims_of(delegated["access_token"])["cnf"] == jkt(delegate)
    assert delegate.post("/v1/token/renew", token=delegated["access_token"]).status_code == 200
    # The other way round the delegate, which is bound, stays so.
    answer = broker.delegate(delegate.token, delegator.agent_id)
    assert claims_of(answer.json()["access_token"])["cnf"] == jkt(delegator)


def test_a_lost_answer_to_a_delegation_is_given_again_for_a_new_proof(app: TestApp, broker: BrokerProcess) -> None:
    delegator, delegate = Holder(app), Holder(app)
    body = {"delegate_to": delegate.agent_id, "scope": ["read:data:1"]}

    def ask() -> Any:
        headers = {
            "authorization": f"DPoP {delegator.token}",
            "dpop": delegator.proof("POST", f"{broker.url}/v1/delegate"),
            "idempotency-key": "k",
        }
        return broker.http.post("/v1/delegate", json=body, headers=headers).json()

    assert ask()["access_token"] == ask()["access_token"]


def test_an_idempotency_key_stands_for_a_bound_agent_or_an_unbound_one(app: TestApp, broker: BrokerProcess) -> None:
    token, holder = app.token(), Holder(app)

    def ask(bound: bool) -> Any:
        body = {
            "orch_id": "o",
            "task_id": "t",
            "requested_scope": ["read:data:1"],
            "public_key": base64.b64encode(raw_public_key(holder.key)).decode(),
            "proof": holder.proof("POST", f"{broker.url}/v1/agents", token=token),
            "bound": bound,
        }
        return broker.http.post("/v1/agents", json=body, headers={**bearer(token), "idempotency-key": "k"})

    assert ask(True).status_code == 201
    assert ask(True).json()["token_type"] == "DPoP"
    problem(ask(False), 409, "conflict")


def test_validation_takes_the_proof_that_the_service_was_shown(app: TestApp, broker: BrokerProcess) -> None:
    holder = Holder(app)
    said = holder.validate("GET", SERVICE)
    assert said["valid"]
    assert said["claims"]["cnf"] == jkt(holder)
    assert holder.validate("GET", SERVICE + "?page=2", htu=SERVICE)["valid"]
    assert not broker.is_valid(holder.token)
    unbound = Holder(app, bound=False)
    assert broker.is_valid(unbound.token)
    assert unbound.validate("GET", SERVICE)["valid"]  # a proof that is not needed is not looked at


def test_introspection_says_what_a_token_is_bound_to(app: TestApp, broker: BrokerProcess) -> None:
    holder = Holder(app)
    credentials = (app.client_id, app.client_secret)
    said = broker.http.post("/oauth2/introspect", data={"token": holder.token}, auth=credentials).json()
    assert (said["active"], said["token_type"], said["cnf"]) == (True, "DPoP", jkt(holder))


def test_an_exchange_of_a_bound_token_gives_one_that_is_bound(app: TestApp, broker: BrokerProcess) -> None:
    delegator, delegate = Holder(app), Holder(app)
    access_token = "urn:ietf:params:oauth:token-type:access_token"
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": delegator.token,
        "subject_token_type": access_token,
        "actor_token": delegate.token,
        "actor_token_type": access_token,
        "scope": "read:data:1",
    }
    answer = broker.http.post("/oauth2/token", data=form, auth=(app.client_id, app.client_secret)).json()
    assert answer["token_type"] == "DPoP"
    assert claims_of(answer["access_token"])["cnf"] == jkt(delegate)


def test_a_clock_that_is_wrong_is_made_up_for_by_a_nonce(app: TestApp) -> None:
    holder = Holder(app)
    iat = 1_000_000_000
    answer = holder.post("/v1/token/renew", iat=iat)
    problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'DPoP error="use_dpop_nonce", algs="EdDSA Ed25519 ES256"'
    assert holder.post("/v1/token/renew", iat=iat, nonce=answer.headers["dpop-nonce"]).status_code == 200


def test_who_presents_a_token_wrongly_is_told_how(app: TestApp, broker: BrokerProcess) -> None:
    holder, unbound = Holder(app), Holder(app, bound=False)
    renew = "/v1/token/renew"
    told = {
        present(broker, renew, holder.token, scheme="Bearer").headers["www-authenticate"],
        present(broker, renew, "nonsense", "nonsense").headers["www-authenticate"],
        present(broker, renew, unbound.token, unbound.proof("POST", broker.url + renew)).headers["www-authenticate"],
        Holder(app).post(renew, token=holder.token).headers["www-authenticate"],
    }
    assert told == {'DPoP error="invalid_token", algs="EdDSA Ed25519 ES256"'}
    twice = [holder.proof("POST", broker.url + renew) for _ in range(2)]
    for proofs in ([], ["nonsense"], twice):
        answer = present(broker, renew, holder.token, *proofs)
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == 'DPoP error="invalid_dpop_proof", algs="EdDSA Ed25519 ES256"'
    assert broker.renew("nonsense").headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert broker.renew(unbound.token).status_code == 200


def test_agents_are_listed_as_bound_or_not(app: TestApp, broker: BrokerProcess) -> None:
    bound, unbound = Holder(app), Holder(app, bound=False)
    listed = broker.http.get("/v1/agents", params={"app_id": app.app_id}, headers=broker.admin()).json()["agents"]
    assert {grant["agent_id"]: grant["bound"] for grant in listed} == {bound.agent_id: True, unbound.agent_id: False}
    [event] = broker.events(agent_id=bound.agent_id, event_type="agent_registered")
    assert event["data"]["token_type"] == "DPoP"


def test_an_app_is_made_to_require_binding_and_let_off_again(app: TestApp, broker: BrokerProcess) -> None:
    path, admin = f"/v1/admin/apps/{app.app_id}", broker.admin()
    unbound, bound = Holder(app, bound=False), Holder(app)
    changed = broker.http.put(path, json={"require_bound": True}, headers=admin).json()
    assert (changed["require_bound"], changed["grants_ended"]) == (True, 1)
    assert not broker.is_valid(unbound.token)
    assert bound.validate("GET", SERVICE)["valid"]
    assert broker.http.put(path, json={"token_ttl": 60}, headers=admin).json()["require_bound"] is True
    assert broker.http.put(path, json={"require_bound": False}, headers=admin).json()["require_bound"] is False
    Holder(app, bound=False)
    details = [
        event["detail"] for event in broker.events(event_type="app_updated") if event.get("app_id") == app.app_id
    ]
    assert details[0].startswith("an app's agents must have bound tokens from now on: ")
    assert details[-1].startswith("an app's agents need not have bound tokens from now on: ")
