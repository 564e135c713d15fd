"""Attempts to register what should not be registered."""

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from nacl.signing import SigningKey

from tests.support import BrokerProcess, problem, registration

SMALL_ORDER_KEYS = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
]


def register(broker: BrokerProcess, body: dict[str, object]) -> httpx2.Response:
    return broker.http.post("/v1/register", json=body)


def test_launch_token_replay(broker: BrokerProcess) -> None:
    launch_token = broker.app().launch_token()
    assert register(broker, registration(launch_token, broker.nonce())).status_code == 200
    problem(register(broker, registration(launch_token, broker.nonce())), 401, "unauthorized")


def test_nonce_replay(broker: BrokerProcess) -> None:
    app, nonce = broker.app(), broker.nonce()
    assert register(broker, registration(app.launch_token(), nonce)).status_code == 200
    problem(register(broker, registration(app.launch_token(), nonce)), 401, "unauthorized")


def test_nonce_race(broker: BrokerProcess) -> None:
    app, nonce = broker.app(), broker.nonce()
    bodies = [registration(app.launch_token(), nonce) for _ in range(16)]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda body: register(broker, body).status_code, bodies))
    assert sorted(answers) == [200] + [401] * 15


def test_nonce_forgery(broker: BrokerProcess) -> None:
    app, nonce = broker.app(), broker.nonce()
    for position in range(0, 64, 7):
        digit = "0" if nonce[position] != "0" else "1"
        forged = nonce[:position] + digit + nonce[position + 1 :]
        problem(register(broker, registration(app.launch_token(), forged)), 401, "unauthorized")


@pytest.mark.parametrize("spell", [str.upper, lambda nonce: nonce + " ", lambda nonce: " " + nonce])
def test_another_spelling_of_a_nonce(broker: BrokerProcess, spell: object) -> None:
    assert callable(spell)
    nonce = broker.nonce()
    body = {**registration(broker.app().launch_token(), nonce), "nonce": spell(nonce)}
    problem(register(broker, body), 401, "unauthorized")


def test_a_signature_over_another_nonce(broker: BrokerProcess) -> None:
    body = {**registration(broker.app().launch_token(), broker.nonce()), "nonce": broker.nonce()}
    problem(register(broker, body), 401, "unauthorized")


def test_a_signature_over_the_nonces_text_instead_of_its_bytes(broker: BrokerProcess) -> None:
    key, nonce = SigningKey.generate(), broker.nonce()
    body = registration(broker.app().launch_token(), nonce, key=key)
    body["signature"] = base64.b64encode(key.sign(nonce.encode()).signature).decode()
    problem(register(broker, body), 401, "unauthorized")


def test_somebody_elses_public_key(broker: BrokerProcess) -> None:
    body = registration(broker.app().launch_token(), broker.nonce())
    body["public_key"] = base64.b64encode(bytes(SigningKey.generate().verify_key)).decode()
    problem(register(broker, body), 401, "unauthorized")


@pytest.mark.parametrize("key", SMALL_ORDER_KEYS)
def test_a_public_key_of_small_order(broker: BrokerProcess, key: str) -> None:
    """Under such a key one signature can be good for many messages: R = identity or the key itself, S = 0."""
    public_key = bytes.fromhex(key)
    for signature in (bytes([1]) + bytes(63), public_key + bytes(32)):
        body = registration(broker.app().launch_token(), broker.nonce())
        body["public_key"] = base64.b64encode(public_key).decode()
        body["signature"] = base64.b64encode(signature).decode()
        problem(register(broker, body), 401, "unauthorized")


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_public_key_of_another_length(broker: BrokerProcess, length: int) -> None:
    body = registration(broker.app().launch_token(), broker.nonce())
    body["public_key"] = base64.b64encode(bytes(length)).decode()
    problem(register(broker, body), 400, "invalid_request")


@pytest.mark.parametrize(
    "segment",
    ["..", ".", "a/b", "../admin", "a%2fb", "a b", "a\x00b", "a\nb", "é", "x" * 129, "spiffe://x", "a?b", "a#b", "а"],
)
def test_an_id_that_tries_to_leave_the_spiffe_path(broker: BrokerProcess, segment: str) -> None:
    for field in ("orch_id", "task_id"):
        body = registration(broker.app().launch_token(), broker.nonce())
        body[field] = segment
        answer = problem(register(broker, body), 400, "invalid_request")
        assert field in answer["detail"]
        assert "hint" in answer


@pytest.mark.parametrize(
    "scope",
    [
        "read:data:*",
        "read:*:1",
        "*:data:1",
        "*:*:*",
        "read:data",
        "read:data:",
        "read::1",
        ":data:1",
        "read:data:1 write:data:1",
        "read:data:1\n",
        "read:data:1\x00",
        "read:data:%31",
        "ｒead:data:1",
        "read:dаta:1",
        "READ:data:1",
        "read:data:10",
        "read:data:1:2",
        "read:data:" + "1" * 300,
        "",
    ],
)
def test_scope_tricks(broker: BrokerProcess, scope: str) -> None:
    body = registration(broker.app().launch_token("read:data:1"), broker.nonce(), "read:data:1")
    body["requested_scope"] = ["read:data:1", scope]
    assert register(broker, body).status_code in (400, 403)


def test_ten_thousand_scopes(broker: BrokerProcess) -> None:
    body = registration(broker.app().launch_token(), broker.nonce())
    body["requested_scope"] = ["read:data:1"] * 10_000
    problem(register(broker, body), 400, "invalid_request")


def test_what_an_attacker_writes_into_an_event_stays_data(broker: BrokerProcess) -> None:
    name = 'x","outcome":"success","event_type":"admin_auth","a":"'
    app = broker.app()
    app.agent(agent_name=name)
    [event] = [e for e in broker.events(event_type="launch_token_issued") if e.get("app_id") == app.app_id]
    assert event["data"]["agent_name"] == name
    assert event["outcome"] == "success"


def test_no_secret_reaches_the_log_or_the_audit_log(broker: BrokerProcess) -> None:
    app = broker.app()
    launch_token = app.launch_token()
    agent = register(broker, registration(launch_token, broker.nonce())).json()
    broker.http.post("/v1/admin/auth", json={"secret": "a-wrong-secret-of-somebody"})
    # People have been known to swap the two.
    broker.http.post("/v1/app/auth", json={"client_id": app.client_secret, "client_secret": app.client_id})
    written = broker.logged() + str(broker.events())
    for secret in (app.client_secret, launch_token, agent["access_token"], "a-wrong-secret-of-somebody"):
        assert secret not in written
        assert hashlib.sha256(secret.encode()).hexdigest() not in written
