"""Attempts to use a stolen bound token, to use a proof for what it is not for, and to be rid of the binding."""

import base64
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.e2e.test_settings import free_port
from tests.proofs import Holder, encoded, present, proof, public_jwk, raw_public_key
from tests.services.test_faults import Setup, run
from tests.support import BrokerProcess, TestApp, bearer, problem, registration

RENEW = "/v1/token/renew"
OWN_ROUTES = [RENEW, "/v1/token/release", "/v1/delegate"]
SERVICE = "https://orders.example.com/orders/7"


@pytest.fixture
def app(broker: BrokerProcess) -> TestApp:
    return broker.app()


@pytest.fixture
def holder(app: TestApp) -> Holder:
    return Holder(app)


def body_for(path: str, holder: Holder) -> dict[str, Any] | None:
    return {"delegate_to": holder.agent_id, "scope": ["read:data:1"]} if path == "/v1/delegate" else None


def assert_unharmed(holder: Holder) -> None:
    assert holder.validate("GET", SERVICE)["valid"]
    assert holder.post(RENEW).status_code == 200


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


# -- a thief of a token -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", OWN_ROUTES)
def test_a_stolen_bound_token_as_a_plain_bearer_token(holder: Holder, broker: BrokerProcess, path: str) -> None:
    body = body_for(path, holder)
    problem(present(broker, path, holder.token, scheme="Bearer", json=body), 401, "unauthorized")
    made = holder.proof("POST", broker.url + path)
    problem(present(broker, path, holder.token, made, scheme="Bearer", json=body), 401, "unauthorized")
    assert_unharmed(holder)


def test_a_bound_token_as_a_bearer_token_at_every_other_route(holder: Holder, broker: BrokerProcess) -> None:
    answers = [
        broker.http.request(method, path, json=body, headers=bearer(holder.token))
        for method, path, body in (
            ("GET", "/v1/agents", None),
            ("POST", "/v1/agents", {}),
            ("GET", "/v1/audit/events", None),
            ("POST", "/v1/app/launch-tokens", {}),
            ("POST", "/v1/admin/launch-tokens", {}),
            ("GET", "/v1/admin/apps", None),
            ("POST", "/v1/revoke", {}),
            ("GET", "/v1/admin/keys", None),
        )
    ]
    assert {answer.status_code for answer in answers} == {401}
    introspected = broker.http.post("/oauth2/introspect", data={"token": "x"}, headers=bearer(holder.token))
    assert introspected.status_code == 401
    assert not broker.is_valid(holder.token)


@pytest.mark.parametrize("path", OWN_ROUTES)
def test_a_stolen_bound_token_with_a_proof_by_the_thiefs_key(holder: Holder, broker: BrokerProcess, path: str) -> None:
    thief = Ed25519PrivateKey.generate()
    made = proof(thief, "POST", broker.url + path, holder.token)
    problem(present(broker, path, holder.token, made, json=body_for(path, holder)), 401, "unauthorized")
    assert not holder.validate("GET", SERVICE, proof=proof(thief, "GET", SERVICE, holder.token))["valid"]
    assert_unharmed(holder)


def test_a_superseded_stolen_token_does_not_let_the_thief_end_the_grant(holder: Holder, broker: BrokerProcess) -> None:
    stolen = holder.token
    for _ in range(2):
        holder.token = holder.post(RENEW).json()["access_token"]
    for path in (RENEW, "/v1/token/release"):
        problem(present(broker, path, stolen, scheme="Bearer"), 401, "unauthorized")
        made = proof(Ed25519PrivateKey.generate(), "POST", broker.url + path, stolen)
        problem(present(broker, path, stolen, made), 401, "unauthorized")
    assert_unharmed(holder)


def test_theft_is_in_the_audit_log_under_the_holders_name(holder: Holder, broker: BrokerProcess) -> None:
    present(broker, "/v1/token/release", holder.token, scheme="Bearer")
    present(broker, RENEW, holder.token, scheme="Bearer")
    found = [event for event in broker.events(agent_id=holder.agent_id) if event["outcome"] == "denied"]
    assert {event["event_type"] for event in found} == {"token_auth_failed", "token_renewal_failed"}
    assert {event["detail"].partition(":")[0] for event in found} == {"a bound token was presented as a bearer token"}
    assert all(holder.agent_id in event["detail"] for event in found)


def test_downgrade_by_deleting_cnf(holder: Holder, broker: BrokerProcess) -> None:
    head, _, signature = holder.token.split(".")
    claims = claims_of(holder.token)
    for changed in ({k: v for k, v in claims.items() if k != "cnf"}, claims | {"cnf": None}, claims | {"cnf": {}}):
        forged = f"{head}.{encoded(json.dumps(changed, separators=(',', ':')).encode())}.{signature}"
        problem(broker.renew(forged), 401, "unauthorized")
        assert not broker.is_valid(forged)


def test_rebinding_by_exchanging_jkt(holder: Holder) -> None:
    thief = Holder(holder.app)
    head, _, signature = holder.token.split(".")
    claims = claims_of(holder.token) | {"cnf": claims_of(thief.token)["cnf"]}
    forged = f"{head}.{encoded(json.dumps(claims).encode())}.{signature}"
    problem(thief.post(RENEW, token=forged), 401, "unauthorized")


def test_an_unbound_token_dressed_up_as_a_bound_one(app: TestApp, broker: BrokerProcess) -> None:
    unbound = Holder(app, bound=False)
    for path in OWN_ROUTES:
        made = unbound.proof("POST", broker.url + path)
        problem(present(broker, path, unbound.token, made, json=body_for(path, unbound)), 401, "unauthorized")
    assert broker.is_valid(unbound.token)


# -- a proof for what it is not for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"htm": "GET"},
        {"htm": "post"},
        {"htm": None},
        {"htu": "http://elsewhere/v1/token/renew"},
        {"htu": "/v1/token/renew"},
        {"htu": None},
        {"ath": None},
        {"ath": encoded(bytes(32))},
        {"jti": None},
        {"jti": ""},
        {"jti": "\ud800"},
        {"iat": None},
        {"iat": "now"},
        {"iat": int("9" * 400)},
        {"iat": True},
    ],
    ids=lambda changes: "-".join(f"{name}={str(value)[:20]!a}" for name, value in changes.items()),
)
def test_a_proof_with_a_wrong_claim(holder: Holder, changes: dict[str, Any]) -> None:
    problem(holder.post(RENEW, **changes), 401, "unauthorized")


def test_a_proof_for_another_route(holder: Holder, broker: BrokerProcess) -> None:
    for path in OWN_ROUTES:
        for other in OWN_ROUTES:
            if other != path:
                made = holder.proof("POST", broker.url + path)
                problem(holder.post(other, proof=made, json=body_for(other, holder)), 401, "unauthorized")
    assert_unharmed(holder)


def test_a_proof_for_a_service_at_the_broker_and_the_other_way_round(holder: Holder, broker: BrokerProcess) -> None:
    problem(holder.post(RENEW, proof=holder.proof("POST", SERVICE)), 401, "unauthorized")
    assert not holder.validate("POST", SERVICE, proof=holder.proof("POST", broker.url + RENEW))["valid"]


def test_a_proof_for_another_of_the_holders_tokens(holder: Holder, broker: BrokerProcess) -> None:
    before = holder.token
    holder.token = holder.post(RENEW).json()["access_token"]
    problem(holder.post(RENEW, proof=holder.proof("POST", broker.url + RENEW, token=before)), 401, "unauthorized")


@pytest.mark.parametrize(
    ("method", "url", "changes"),
    [
        ("GET", SERVICE, {"htm": "POST"}),
        ("GET", SERVICE, {"htu": SERVICE + "/x"}),
        ("GET", SERVICE, {"htu": SERVICE.replace("https", "http")}),
        ("GET", SERVICE, {"ath": None}),
        ("GET", SERVICE, {"iat": int(time.time()) - 3600}),
        ("GET", SERVICE, {"iat": int(time.time()) + 3600}),
        ("", SERVICE, {}),
        ("GET", "", {}),
    ],
)
def test_validation_of_a_request_that_the_proof_is_not_for(
    holder: Holder, method: str, url: str, changes: dict[str, Any]
) -> None:
    assert holder.validate(method, url, **changes) == {"valid": False, "error": "token is invalid or expired"}


def test_validation_with_a_brokers_nonce_and_a_wrong_time(holder: Holder, broker: BrokerProcess) -> None:
    assert not holder.validate("GET", SERVICE, iat=1_000_000_000, nonce=broker.nonce())["valid"]


# -- replay -----------------------------------------------------------------------------------------------------------


def test_proof_replay_at_the_brokers_routes(holder: Holder, broker: BrokerProcess) -> None:
    made = holder.proof("POST", broker.url + RENEW)
    answer = holder.post(RENEW, proof=made)
    assert answer.status_code == 200
    replayed = holder.post(RENEW, proof=made)
    problem(replayed, 401, "unauthorized")
    assert replayed.headers["www-authenticate"] == 'DPoP error="invalid_dpop_proof", algs="EdDSA Ed25519 ES256"'
    holder.token = answer.json()["access_token"]
    made, body = holder.proof("POST", f"{broker.url}/v1/delegate"), body_for("/v1/delegate", holder)
    assert holder.post("/v1/delegate", proof=made, json=body).status_code == 200
    problem(holder.post("/v1/delegate", proof=made, json=body), 401, "unauthorized")


def test_one_jti_for_two_proofs_of_one_key(holder: Holder) -> None:
    assert holder.post(RENEW, jti="same").status_code == 200
    problem(holder.post(RENEW, jti="same"), 401, "unauthorized")
    assert Holder(holder.app).post(RENEW, jti="same").status_code == 200  # another key's is another one


def test_proof_replay_after_a_crash(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_PORT=str(free_port())) as broker:
        holder = Holder(broker.app())
        made, shown = holder.proof("POST", broker.url + RENEW), holder.proof("GET", SERVICE)
        assert holder.validate("GET", SERVICE, proof=shown)["valid"]
        assert holder.post(RENEW, proof=made).status_code == 200
        broker.kill()
        broker.start()
        problem(holder.post(RENEW, proof=made), 401, "unauthorized")
        renewed = holder.post(RENEW)
        assert renewed.status_code == 200  # a retry, as it would have been for the replay
        holder.token = renewed.json()["access_token"]
        assert holder.validate("GET", SERVICE)["valid"]


def test_proof_replay_at_validation_after_a_crash(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        holder = Holder(broker.app())
        shown = holder.proof("GET", SERVICE)
        assert holder.validate("GET", SERVICE, proof=shown)["valid"]
        broker.kill()
        broker.start()
        assert not holder.validate("GET", SERVICE, proof=shown)["valid"]
        assert holder.validate("GET", SERVICE)["valid"]


def test_a_proof_for_the_address_where_the_public_url_is_known(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_PUBLIC_URL="http://broker.example") as broker:
        app = broker.app()
        key, launch_token, nonce = Ed25519PrivateKey.generate(), app.launch_token(bound=True), broker.nonce()
        body = registration(launch_token, nonce) | {
            "public_key": base64.b64encode(raw_public_key(key)).decode(),
            "signature": base64.b64encode(key.sign(bytes.fromhex(nonce))).decode(),
        }
        token = broker.http.post("/v1/register", json=body).json()["access_token"]
        for url, status in ((broker.url, 401), ("http://broker.example", 200)):
            assert present(broker, RENEW, token, proof(key, "POST", url + RENEW, token)).status_code == status


def test_proof_replay_at_validation_from_many_at_once(holder: Holder) -> None:
    made = holder.proof("GET", SERVICE)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: holder.validate("GET", SERVICE, proof=made)["valid"], range(50)))
    assert sorted(answers) == [False] * 49 + [True]


def test_fifty_renewals_with_one_proof(holder: Holder, broker: BrokerProcess) -> None:
    made = holder.proof("POST", broker.url + RENEW)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: holder.post(RENEW, proof=made).status_code, range(50)))
    assert sorted(answers) == [200] + [401] * 49


# -- time -------------------------------------------------------------------------------------------------------------


class Timed:
    """A bound agent at a broker whose clock the test moves."""

    def __init__(self, made: Setup) -> None:
        self.made = made
        self.key = Ed25519PrivateKey.generate()
        self.token = ""

    async def begin(self) -> "Timed":
        launch_token = await self.made.launch_token(await self.made.app(), bound=True, max_ttl=900)
        nonce = (await self.made.http.get("/v1/challenge")).json()["nonce"]
        body = registration(launch_token, nonce) | {
            "public_key": base64.b64encode(raw_public_key(self.key)).decode(),
            "signature": base64.b64encode(self.key.sign(bytes.fromhex(nonce))).decode(),
        }
        self.token = (await self.made.http.post("/v1/register", json=body)).json()["access_token"]
        return self

    def proof(self, off: float, **changes: Any) -> str:
        iat = int(self.made.time.now + off)
        return proof(self.key, "POST", f"http://broker{RENEW}", self.token, iat=iat, **changes)

    async def renew(self, made: str) -> httpx2.Response:
        return await self.made.http.post(RENEW, headers={"authorization": f"DPoP {self.token}", "dpop": made})


@pytest.mark.parametrize(("off", "status"), [(-31, 401), (-30, 200), (0, 200), (30, 200), (31, 401)])
def test_a_proof_of_another_time(off: int, status: int) -> None:
    async def claim(made: Setup) -> None:
        timed = await Timed(made).begin()
        answer = await timed.renew(timed.proof(off))
        assert answer.status_code == status
        assert ("dpop-nonce" in answer.headers) == (status == 401)

    run(claim)


def test_a_proof_for_the_future_is_no_better_when_its_time_has_come() -> None:
    """Used with a nonce it is forgotten a minute later; its iat must not make it good once more after that."""

    async def claim(made: Setup) -> None:
        timed = await Timed(made).begin()
        nonce = (await timed.renew(timed.proof(200))).headers["dpop-nonce"]
        future = timed.proof(200, nonce=nonce)
        first = await timed.renew(future)
        assert first.status_code == 200
        made.time.now += 29
        assert (await timed.renew(future)).status_code == 401
        made.time.now += 171  # the time that it names, while its token is still unexpired
        await made.housekeeping.round()
        assert (await timed.renew(future)).status_code == 401
        timed.token = first.json()["access_token"]
        assert (await timed.renew(timed.proof(0))).status_code == 200  # the grant has not been ended for reuse

    run(claim)


@pytest.mark.parametrize("nonce", ["00" * 32, "x", "ff" * 31])
def test_a_forged_nonce_is_no_way_around_the_time(nonce: str) -> None:
    async def claim(made: Setup) -> None:
        timed = await Timed(made).begin()
        for off in (0, 3600):
            assert (await timed.renew(timed.proof(off, nonce=nonce))).status_code == 401

    run(claim)


def test_a_nonce_that_is_no_longer_fresh() -> None:
    async def claim(made: Setup) -> None:
        timed = await Timed(made).begin()
        nonce = (await timed.renew(timed.proof(500))).headers["dpop-nonce"]
        made.time.now += 31
        answer = await timed.renew(timed.proof(500, nonce=nonce))
        assert (answer.status_code, "dpop-nonce" in answer.headers) == (401, True)

    run(claim)


def test_a_bound_token_does_not_hold_where_the_use_of_its_proof_cannot_be_remembered() -> None:
    async def claim(made: Setup) -> None:
        timed = await Timed(made).begin()
        shown = proof(timed.key, "GET", SERVICE, timed.token, iat=int(made.time.now))
        body = {"token": timed.token, "proof": shown, "htm": "GET", "htu": SERVICE}
        made.failing = {"commit"}
        assert (await made.http.post("/v1/token/validate", json=body)).status_code == 503
        made.failing = set()
        assert (await made.http.post("/v1/token/validate", json=body)).json()["valid"]

    run(claim)


# -- forged proofs ----------------------------------------------------------------------------------------------------


def forged(holder: Holder, header: dict[str, Any], signature: Callable[[bytes], bytes]) -> str:
    claims = claims_of(holder.proof("POST", holder.broker.url + RENEW))
    text = ".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
    return f"{text}.{encoded(signature(text.encode()))}"


def test_forged_headers(holder: Holder, broker: BrokerProcess) -> None:
    key = holder.key
    assert isinstance(key, Ed25519PrivateKey)
    own = public_jwk(key)
    good = {"typ": "dpop+jwt", "alg": "EdDSA", "jwk": own}
    p256 = ec.generate_private_key(ec.SECP256R1())
    es256 = jwt.algorithms.ECAlgorithm.to_jwk(p256.public_key(), as_dict=True)
    sign = key.sign
    forgeries = {
        "alg none": forged(holder, good | {"alg": "none"}, lambda _: b""),
        "alg none, signed": forged(holder, good | {"alg": "none"}, sign),
        "HS256 with the public key": jwt.encode(
            {}, raw_public_key(key), algorithm="HS256", headers={"typ": "dpop+jwt", "jwk": own}
        ),
        "HS256": forged(holder, good | {"alg": "HS256"}, sign),
        "an ES256 key": jwt.encode({}, p256, algorithm="ES256", headers={"typ": "dpop+jwt", "jwk": es256}),
        "an ES256 key under EdDSA": forged(holder, good | {"jwk": es256}, sign),
        "a private key": forged(holder, good | {"jwk": own | {"d": encoded(key.private_bytes_raw())}}, sign),
        "no key": forged(holder, {"typ": "dpop+jwt", "alg": "EdDSA"}, sign),
        "jku": forged(holder, good | {"jku": "https://evil.example/keys"}, sign),
        "x5u": forged(holder, good | {"x5u": "https://evil.example/cert"}, sign),
        "crit": forged(holder, good | {"crit": ["exp"]}, sign),
        "kid": forged(holder, good | {"kid": "../../key"}, sign),
        "an access token's type": forged(holder, good | {"typ": "at+jwt"}, sign),
        "no signature": forged(holder, good, lambda _: b""),
        "a signature of zeros": forged(holder, good, lambda _: bytes(64)),
        "a key of small order": forged(holder, good | {"jwk": own | {"x": encoded(bytes(32))}}, lambda _: bytes(64)),
        "the access token itself": holder.token,
        "oversized": holder.proof("POST", broker.url + RENEW, pad="x" * 5000),
    }
    for name, made in forgeries.items():
        answer = holder.post(RENEW, proof=made)
        assert answer.status_code == 401, name
        assert answer.headers["www-authenticate"] == 'DPoP error="invalid_dpop_proof", algs="EdDSA Ed25519 ES256"', name
    assert holder.post(RENEW, proof=forged(holder, good, sign)).status_code == 200  # what was forged is near enough


def test_members_that_stand_twice(holder: Holder, broker: BrokerProcess) -> None:
    key = holder.key
    assert isinstance(key, Ed25519PrivateKey)
    header = json.dumps({"typ": "dpop+jwt", "alg": "EdDSA", "jwk": public_jwk(key)})
    payload = json.dumps(claims_of(holder.proof("POST", broker.url + RENEW)))
    for parts in (
        (header.replace('"alg"', '"alg": "none", "alg"'), payload),
        (header, payload.replace('"htm"', '"htm": "GET", "htm"')),
        (header.replace('"x"', '"x": "AA", "x"'), payload),
    ):
        text = ".".join(encoded(part.encode()) for part in parts)
        made = f"{text}.{encoded(key.sign(text.encode()))}"
        problem(holder.post(RENEW, proof=made), 401, "unauthorized")


def test_another_spelling_of_a_proof_that_was_used(holder: Holder, broker: BrokerProcess) -> None:
    made = holder.proof("POST", broker.url + RENEW)
    assert holder.post(RENEW, proof=made).status_code == 200
    for other in (made + "=", made + ".", made.replace(".", "=.", 1), made[:-1] + chr(ord(made[-1]) ^ 1)):
        problem(holder.post(RENEW, proof=other), 401, "unauthorized")


# -- delegation -------------------------------------------------------------------------------------------------------


def test_a_bound_delegation_used_by_the_delegator(app: TestApp, broker: BrokerProcess) -> None:
    delegator, delegate = Holder(app), Holder(app)
    delegated = delegator.post("/v1/delegate", json=body_for("/v1/delegate", delegate)).json()["access_token"]
    problem(delegator.post(RENEW, token=delegated), 401, "unauthorized")
    shown = proof(delegator.key, "GET", SERVICE, delegated)
    body = {"token": delegated, "proof": shown, "htm": "GET", "htu": SERVICE}
    assert not broker.http.post("/v1/token/validate", json=body).json()["valid"]
    assert delegate.post(RENEW, token=delegated).status_code == 200


def test_delegating_to_oneself_does_not_shed_the_binding(holder: Holder, broker: BrokerProcess) -> None:
    delegated = holder.post("/v1/delegate", json=body_for("/v1/delegate", holder)).json()["access_token"]
    assert not broker.is_valid(delegated)
    problem(broker.renew(delegated), 401, "unauthorized")
    assert holder.post(RENEW, token=delegated).status_code == 200


def test_delegating_through_an_unbound_agent_does_not_shed_the_binding(app: TestApp, broker: BrokerProcess) -> None:
    first, unbound, last = Holder(app), Holder(app, bound=False), Holder(app, bound=False)
    one = first.post("/v1/delegate", json=body_for("/v1/delegate", unbound)).json()["access_token"]
    problem(broker.delegate(one, last.agent_id), 401, "unauthorized")
    two = unbound.post("/v1/delegate", token=one, json=body_for("/v1/delegate", last)).json()
    assert two["token_type"] == "DPoP"
    assert not broker.is_valid(two["access_token"])


# -- an app that requires binding -------------------------------------------------------------------------------------


def test_an_app_that_requires_binding_gets_nothing_that_is_not_bound(broker: BrokerProcess) -> None:
    app = broker.app(require_bound=True)
    holder, token = Holder(app), app.token()
    policy = {"agent_name": "a", "allowed_scope": ["read:data:1"]}
    launch = broker.http.post("/v1/app/launch-tokens", json=policy, headers=bearer(token))
    assert "bound" in problem(launch, 403, "scope_violation")["hint"]
    direct = {
        "orch_id": "o",
        "task_id": "t",
        "requested_scope": ["read:data:1"],
        "public_key": base64.b64encode(raw_public_key(holder.key)).decode(),
        "proof": holder.proof("POST", f"{broker.url}/v1/agents", token=token),
    }
    created = broker.http.post("/v1/agents", json=direct, headers=bearer(token))
    assert "bound" in problem(created, 403, "scope_violation")["hint"]


def test_a_launch_token_from_before_binding_was_required(app: TestApp, broker: BrokerProcess) -> None:
    launch_token = app.launch_token()
    broker.http.put(f"/v1/admin/apps/{app.app_id}", json={"require_bound": True}, headers=broker.admin())
    body = registration(launch_token, broker.nonce())
    problem(broker.http.post("/v1/register", json=body), 403, "scope_violation")


def test_grants_kept_unbound_are_neither_renewed_nor_handed_on(app: TestApp, broker: BrokerProcess) -> None:
    kept, other = Holder(app, bound=False), Holder(app)
    path = f"/v1/admin/apps/{app.app_id}?keep_grants=true"
    changed = broker.http.put(path, json={"require_bound": True}, headers=broker.admin()).json()
    assert changed["grants_ended"] == 0
    assert broker.is_valid(kept.token)
    problem(broker.renew(kept.token), 401, "unauthorized")
    problem(broker.delegate(kept.token, other.agent_id), 403, "scope_violation")
    assert broker.is_valid(kept.token)


def test_none_of_this_made_the_broker_fail(broker: BrokerProcess) -> None:
    assert "internal error" not in broker.logged()
