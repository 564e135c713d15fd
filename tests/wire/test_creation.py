"""Creating an agent in one round trip: the same ceremony, the same checks, one transaction."""

import base64
import hashlib
import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support import BrokerProcess, TestApp, bearer, problem


class Creator:
    """An app's own code for creating agents, by hand and with PyJWT."""

    def __init__(self, app: TestApp) -> None:
        self.app = app
        self.broker = app.broker
        self.token = app.token()
        self.key = Ed25519PrivateKey.generate()

    @property
    def public_key(self) -> bytes:
        encoding = serialization.Encoding.Raw
        return self.key.public_key().public_bytes(encoding, serialization.PublicFormat.Raw)

    def proof(self, **changes: Any) -> str:
        x = base64.urlsafe_b64encode(self.public_key).rstrip(b"=").decode()
        ath = base64.urlsafe_b64encode(hashlib.sha256(self.token.encode()).digest()).rstrip(b"=").decode()
        claims = {
            "htm": "POST",
            "htu": f"{self.broker.url}/v1/agents",
            "iat": int(time.time()),
            "jti": secrets.token_hex(8),
            "ath": ath,
        }
        header = {"typ": "dpop+jwt", "jwk": {"kty": "OKP", "crv": "Ed25519", "x": x}}
        return jwt.encode(claims | changes, self.key, algorithm="EdDSA", headers=header)

    def body(self, **changes: Any) -> dict[str, Any]:
        return {
            "orch_id": "orchestrator",
            "task_id": "task-1",
            "requested_scope": ["read:data:1"],
            "public_key": base64.b64encode(self.public_key).decode(),
            "proof": self.proof(),
        } | changes

    def post(self, body: dict[str, Any] | None = None, *, token: str | None = None, **headers: str) -> httpx2.Response:
        given = {**bearer(token or self.token), **{name.replace("_", "-"): text for name, text in headers.items()}}
        return self.broker.http.post("/v1/agents", json=body or self.body(), headers=given)


@pytest.fixture
def creator(broker: BrokerProcess) -> Creator:
    return Creator(broker.app())


def test_one_round_trip_makes_an_agent_like_any_other(creator: Creator, broker: BrokerProcess) -> None:
    answer = creator.post(creator.body(max_ttl=120, agent_name="worker"))
    assert answer.status_code == 201
    assert set(answer.json()) == {"agent_id", "access_token", "expires_in"}
    assert answer.json()["expires_in"] == 120
    token = answer.json()["access_token"]
    said = broker.validate(token)["claims"]
    assert (said["sub"], said["scope"], said["client_id"]) == (
        answer.json()["agent_id"],
        ["read:data:1"],
        creator.app.client_id,
    )
    assert answer.json()["agent_id"].startswith("spiffe://agentwrit.local/agent/orchestrator/task-1/")
    events = broker.events(agent_id=said["sub"])
    assert [event["event_type"] for event in events] == ["agent_registered", "token_issued"]
    assert events[0]["data"]["agent_name"] == "worker"
    assert broker.renew(token).status_code == 200
    other = creator.post().json()
    assert broker.delegate(other["access_token"], said["sub"], "read:data:1").status_code == 200


def test_only_apps_create_agents(creator: Creator, broker: BrokerProcess) -> None:
    agent = creator.post().json()["access_token"]
    operator = broker.admin()["authorization"].removeprefix("Bearer ")
    for token in (agent, operator):
        problem(creator.post(token=token), 403, "insufficient_scope")
    problem(creator.post(token="nonsense"), 401, "unauthorized")


def test_what_the_app_may_not_give_is_refused_and_the_proof_is_not_used_up(
    creator: Creator, broker: BrokerProcess
) -> None:
    proof = creator.proof()
    answer = creator.post(creator.body(requested_scope=["delete:data:1"], proof=proof))
    assert "ceiling" in problem(answer, 403, "scope_violation")["detail"]
    [event] = broker.events(event_type="scope_ceiling_exceeded", app_id=creator.app.app_id)
    assert event["data"]["scope_exceeding"] == ["delete:data:1"]
    other = Creator(broker.app())  # whose denial is a first one too
    problem(other.post(other.body(requested_scope=["delete:data:1"])), 403, "scope_violation")
    assert len(broker.events(event_type="scope_ceiling_exceeded", app_id=other.app.app_id)) == 1
    assert creator.post(creator.body(proof=proof)).status_code == 201
    problem(creator.post(creator.body(audience=["https://elsewhere"])), 403, "scope_violation")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"orch_id": "../x"}, "invalid_request"),
        ({"task_id": "a/b"}, "invalid_request"),
        ({"requested_scope": []}, "invalid_request"),
        ({"requested_scope": ["read:*:1"]}, "invalid_request"),
        ({"public_key": "AAAA"}, "invalid_request"),
        ({"public_key": "\u00e9"}, "invalid_request"),
        ({"proof": ""}, "invalid_request"),
        ({"agent_name": "a\nb"}, "invalid_request"),
        ({"audience": [""]}, "invalid_request"),
        ({"max_ttl": 0}, "invalid_ttl"),
        ({"max_ttl": -1}, "invalid_ttl"),
    ],
)
def test_a_bad_field_is_named(creator: Creator, changes: dict[str, Any], code: str) -> None:
    problem(creator.post(creator.body(**changes)), 400, code)


def refused(creator: Creator, **changes: Any) -> None:
    answer = problem(creator.post(creator.body(**changes)), 401, "unauthorized")
    assert answer["detail"] == "the registration was not accepted"


def test_a_proof_for_another_method_url_token_or_key_is_refused(creator: Creator, broker: BrokerProcess) -> None:
    other = Creator(creator.app)
    for proof in (
        creator.proof(htm="GET"),
        creator.proof(htu=f"{broker.url}/v1/register"),
        creator.proof(htu="http://elsewhere/v1/agents"),
        creator.proof(ath="x"),
        other.proof(),  # another key, another login
        "nonsense",
    ):
        refused(creator, proof=proof)
    refused(creator, public_key=base64.b64encode(other.public_key).decode())


def test_proof_replay_is_refused_also_after_a_crash(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_PUBLIC_URL="http://broker.example") as broker:
        creator = Creator(broker.app())
        proof = creator.proof(htu="http://broker.example/v1/agents")
        assert creator.post(creator.body(proof=proof)).status_code == 201
        refused(creator, proof=proof)
        broker.kill()
        broker.start()
        refused(creator, proof=proof, task_id="another")
        refused(creator)  # for the address instead of the public URL


def test_fifty_requests_with_one_proof_make_one_agent(creator: Creator) -> None:
    body = creator.body()
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: creator.post(body), range(50)))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 49


@pytest.mark.parametrize("off", [-40, 40])
def test_a_clock_that_is_wrong_is_told_and_made_up_for_by_a_nonce(creator: Creator, off: int) -> None:
    iat = int(time.time()) + off
    answer = creator.post(creator.body(proof=creator.proof(iat=iat)))
    problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'DPoP error="use_dpop_nonce", algs="EdDSA Ed25519 ES256"'
    nonce = answer.headers["dpop-nonce"]
    assert creator.post(creator.body(proof=creator.proof(iat=iat, nonce=nonce))).status_code == 201
    forged = creator.post(creator.body(proof=creator.proof(iat=iat, nonce="00" * 32)))
    assert forged.status_code == 401


def test_an_idempotency_key_gets_the_first_agent_again(creator: Creator, broker: BrokerProcess) -> None:
    first = creator.post(idempotency_key="k").json()
    again = creator.post(idempotency_key="k").json()  # with a proof of its own
    assert (again["agent_id"], again["access_token"]) == (first["agent_id"], first["access_token"])
    assert len(broker.events(event_type="agent_registered", agent_id=first["agent_id"])) == 1
    problem(creator.post(creator.body(task_id="another"), idempotency_key="k"), 409, "conflict")
    other = Creator(creator.app)  # another key of the same app, under the same name: not the same body
    problem(other.post(idempotency_key="k"), 409, "conflict")
    stranger = Creator(broker.app())
    assert stranger.post(idempotency_key="k").json()["agent_id"] != first["agent_id"]


def test_a_removed_app_creates_nothing(creator: Creator, broker: BrokerProcess) -> None:
    broker.http.delete(f"/v1/admin/apps/{creator.app.app_id}", headers=broker.admin())
    problem(creator.post(), 403, "insufficient_scope")


def test_nothing_of_a_refusal_tells_why_but_for_a_name_that_is_not_the_brokers(
    creator: Creator, broker: BrokerProcess
) -> None:
    proofs = [creator.proof(htm="GET"), creator.proof(ath="x"), "nonsense", creator.proof(htu=7)]
    answers = [creator.post(creator.body(proof=proof)).json() for proof in proofs]
    assert len({json.dumps({**answer, "request_id": ""}) for answer in answers}) == 1
    named = creator.post(creator.body(proof=creator.proof(htu="http://x/v1/agents"))).json()
    assert {**named, "request_id": "", "hint": ""} == {**answers[0], "request_id": "", "hint": ""}
    known = " or ".join(repr(f"{url}/v1/agents") for url in (broker.url, broker.url.replace("127.0.0.1", "localhost")))
    assert named["hint"].startswith(f"the proof is for 'http://x/v1/agents', and this is {known}: ")
    assert "AGENTWRIT_PUBLIC_URL" in named["hint"]
    reasons = {event["detail"] for event in broker.events(event_type="registration_policy_violation")}
    assert reasons
