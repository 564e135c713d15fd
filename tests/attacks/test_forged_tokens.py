"""Tokens that the broker did not issue, or not like this. Each is refused everywhere, and nobody is told why."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable

import httpx2
import pytest
from nacl.signing import SigningKey

from tests.support import BrokerProcess, bearer, problem

ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def with_header(token: str, header: dict[str, object], key: Callable[[bytes], bytes] | None = None) -> str:
    """The token's payload under another header, signed by `key` or with its old signature."""
    _, payload, signature = token.split(".")
    signing_input = f"{b64(json.dumps(header, separators=(',', ':')).encode())}.{payload}"
    return f"{signing_input}.{b64(key(signing_input.encode())) if key else signature}"


def malleable(token: str) -> str:
    """The same signature with S + L in place of S (RFC 8032 §5.1.7 forbids it)."""
    head, payload, signature = token.split(".")
    raw = unb64(signature)
    s = int.from_bytes(raw[32:], "little") + ED25519_ORDER
    return f"{head}.{payload}.{b64(raw[:32] + s.to_bytes(32, 'little'))}"


def forgeries(token: str, jwk: dict[str, str]) -> dict[str, str]:
    own = SigningKey.generate()
    public_key = unb64(jwk["x"])
    header = json.loads(unb64(token.split(".")[0]))
    head, payload, signature = token.split(".")
    claims = json.loads(unb64(payload))

    def sign(data: bytes) -> bytes:
        return own.sign(data).signature

    def hs256(data: bytes) -> bytes:
        return hmac.digest(public_key, data, hashlib.sha256)

    own_jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes(own.verify_key))}
    raised = b64(json.dumps({**claims, "scope": "admin:revoke:*", "sub": "admin"}).encode())
    repeated = '{"alg":"EdDSA","typ":"at+jwt","kid":"' + header["kid"] + '","kid":"' + header["kid"] + '"}'
    return {
        "alg none": with_header(token, {**header, "alg": "none"}),
        "alg none, no signature": with_header(token, {**header, "alg": "none"}).rpartition(".")[0] + ".",
        "HS256 with the public key": with_header(token, {**header, "alg": "HS256"}, hs256),
        "alg in lower case": with_header(token, {**header, "alg": "eddsa"}),
        "embedded jwk": with_header(token, {**header, "jwk": own_jwk}, sign),
        "jku": with_header(token, {**header, "jku": "https://attacker.example/keys"}, sign),
        "x5u": with_header(token, {**header, "x5u": "https://attacker.example/cert"}, sign),
        "kid traversal": with_header(token, {**header, "kid": "../../../dev/null"}, sign),
        "kid injection": with_header(token, {**header, "kid": "' OR 1=1 --"}, sign),
        "unknown kid": with_header(token, {**header, "kid": "unknown"}, sign),
        "our kid, their key": with_header(token, header, sign),
        "crit": with_header(token, {**header, "crit": ["exp"]}),
        "another typ": with_header(token, {**header, "typ": "JWT"}),
        "no typ": with_header(token, {"alg": header["alg"], "kid": header["kid"]}),
        "members in another order": with_header(token, dict(reversed(header.items()))),
        "a member twice": f"{b64(repeated.encode())}.{payload}.{signature}",
        "raised claims": f"{head}.{raised}.{signature}",
        "padding": f"{head}.{payload}.{signature}==",
        "trailing dot": token + ".",
        "trailing newline": token + "\n",
        "leading space": " " + token,
        "four parts": token + ".x",
        "two parts": f"{head}.{payload}",
        "truncated signature": f"{head}.{payload}.{b64(unb64(signature)[:63])}",
        "longer signature": f"{head}.{payload}.{b64(unb64(signature) + bytes(1))}",
        "malleable signature": malleable(token),
        "non-canonical last character": token[:-1] + chr(ord(token[-1]) + 1),
        "standard alphabet": f"{head}.{payload}.+{signature[1:]}",
        "larger than a token may be": token + "A" * 8192,
        "signature of zeros": f"{head}.{payload}.{b64(bytes(64))}",
        "identity point signature": f"{head}.{payload}.{b64(bytes([1]) + bytes(63))}",
    }


@pytest.fixture(scope="module")
def token(broker: BrokerProcess) -> str:
    return str(broker.app().agent()["access_token"])


@pytest.fixture(scope="module")
def forged(broker: BrokerProcess, token: str) -> dict[str, str]:
    kid = json.loads(base64.urlsafe_b64decode(token.partition(".")[0] + "=="))["kid"]
    [jwk] = [key for key in broker.http.get("/.well-known/jwks.json").json()["keys"] if key["kid"] == kid]
    return forgeries(token, jwk)


def test_no_forgery_is_valid(broker: BrokerProcess, token: str, forged: dict[str, str]) -> None:
    assert broker.is_valid(token)
    answers = {name: broker.validate(forgery) for name, forgery in forged.items()}
    refusal = {"valid": False, "error": "token is invalid or expired"}
    assert answers == dict.fromkeys(forged, refusal)
    assert broker.is_valid(token)


def test_no_forgery_is_a_bearer(broker: BrokerProcess, forged: dict[str, str]) -> None:
    details = set()
    for name, forgery in forged.items():
        if "\n" in forgery or forgery.startswith(" "):
            continue  # white space is not part of a header's value
        for path in ("/v1/token/release", "/v1/token/renew", "/v1/app/launch-tokens"):
            answer = broker.http.post(path, headers=bearer(forgery), json={})
            assert answer.status_code == 401, (name, path)
        details.add(problem(broker.http.get("/v1/admin/apps", headers=bearer(forgery)), 401, "unauthorized")["detail"])
    assert len(details) == 1


ENDPOINTS = [
    ("POST", "/v1/admin/apps", "operator"),
    ("GET", "/v1/admin/apps", "operator"),
    ("GET", "/v1/admin/apps/app-x", "operator"),
    ("PUT", "/v1/admin/apps/app-x", "operator"),
    ("DELETE", "/v1/admin/apps/app-x", "operator"),
    ("POST", "/v1/admin/apps/app-x/secret", "operator"),
    ("POST", "/v1/admin/launch-tokens", "operator"),
    ("POST", "/v1/app/launch-tokens", "app"),
    ("GET", "/v1/audit/events", "operator, app"),
]


@pytest.mark.parametrize(("method", "path", "allowed"), ENDPOINTS)
def test_tokens_work_at_their_own_endpoints_only(broker: BrokerProcess, method: str, path: str, allowed: str) -> None:
    # The agent's scopes look like the operator's and the app's: the kind of principal decides, not the spelling.
    lookalike = ("admin:launch-tokens:*", "admin:revoke:*", "admin:audit:*", "app:launch-tokens:*", "app:audit:read")
    app = broker.app(*lookalike)
    tokens = {
        "operator": broker.admin()["authorization"].removeprefix("Bearer "),
        "app": app.token(),
        "agent": app.agent(*lookalike)["access_token"],
    }
    for kind, token in tokens.items():
        answer = broker.http.request(method, path, headers=bearer(token))
        if kind in allowed:
            assert answer.status_code not in (401, 403), (kind, answer.text)
        else:
            problem(answer, 403, "insufficient_scope")


def test_only_an_agents_token_is_renewed(broker: BrokerProcess) -> None:
    for token in (broker.admin()["authorization"].removeprefix("Bearer "), broker.app().token()):
        assert problem(broker.renew(token), 401, "unauthorized")["detail"] == "token renewal failed"
        assert broker.is_valid(token)


def test_header_injection_through_the_request_id_does_not_split_the_answer(broker: BrokerProcess) -> None:
    with pytest.raises(httpx2.LocalProtocolError):
        broker.http.get("/v1/health", headers={"x-request-id": "a\r\nset-cookie: x=1"})
