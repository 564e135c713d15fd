"""Holders of bound tokens, and thieves of them: proofs made by hand and by libraries, with no code of the SDK."""

import base64
import hashlib
import json
import secrets
import time
from typing import Any

import httpx2
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jws
from joserfc.jwk import OKPKey

from tests.support import BrokerProcess, TestApp, bearer


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


Key = Ed25519PrivateKey | EllipticCurvePrivateKey


def p256_key() -> EllipticCurvePrivateKey:
    return generate_private_key(SECP256R1())


def p256_signature(key: EllipticCurvePrivateKey, message: bytes) -> bytes:
    """As JWS and WebCrypto have it: r and s (RFC 7518 §3.4)."""
    r, s = decode_dss_signature(key.sign(message, ECDSA(SHA256())))
    return r.to_bytes(32) + s.to_bytes(32)


def raw_public_key(key: Key) -> bytes:
    """As WebCrypto exports it raw."""
    if isinstance(key, Ed25519PrivateKey):
        return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    point = serialization.PublicFormat.UncompressedPoint
    return key.public_key().public_bytes(serialization.Encoding.X962, point)


def public_jwk(key: Key) -> dict[str, str]:
    raw = raw_public_key(key)
    if isinstance(key, Ed25519PrivateKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": encoded(raw)}
    return {"kty": "EC", "crv": "P-256", "x": encoded(raw[1:33]), "y": encoded(raw[33:])}


def proof(key: Key, method: str, url: str, token: str, *, alg: str = "", **changes: Any) -> str:
    """A proof by `key`. `changes` replace its claims, or leave one out where they are None. `alg`: by another name."""
    claims = {
        "htm": method,
        "htu": url,
        "iat": int(time.time()),
        "jti": secrets.token_hex(8),
        "ath": encoded(hashlib.sha256(token.encode()).digest()),
    } | changes
    kept = {name: value for name, value in claims.items() if value is not None}
    alg = alg or ("EdDSA" if isinstance(key, Ed25519PrivateKey) else "ES256")
    header = {"typ": "dpop+jwt", "jwk": public_jwk(key)}
    if alg == "Ed25519":  # a name that PyJWT does not know
        assert isinstance(key, Ed25519PrivateKey)
        okp = OKPKey.import_key({**public_jwk(key), "d": encoded(key.private_bytes_raw())})
        return jws.serialize_compact({**header, "alg": alg}, json.dumps(kept).encode(), okp, algorithms=[alg])
    return jwt.encode(kept, key, algorithm=alg, headers=header)


class Creation:
    """A request of an app for an agent in one trip. `token`: the app's; `fields` replace those of the body.

    `url`: what the app knows the broker by, if that is not its address.
    """

    def __init__(self, app: TestApp, token: str | None = None, *, url: str | None = None, **fields: Any) -> None:
        self._broker = app.broker
        self._url = url or app.broker.url
        self._key = Ed25519PrivateKey.generate()
        self._token = token or app.token()
        self._body = {
            "orch_id": "orchestrator",
            "task_id": "task-1",
            "requested_scope": ["read:data:1"],
            "public_key": base64.b64encode(raw_public_key(self._key)).decode(),
            **fields,
        }

    def post(self, *, key: str | None = None, **fields: str) -> httpx2.Response:
        """Ask, with a new proof. `key`: of idempotency; `fields`: of the head."""
        made = proof(self._key, "POST", f"{self._url}/v1/agents", self._token)
        headers = bearer(self._token) | fields | ({} if key is None else {"idempotency-key": key})
        return self._broker.http.post("/v1/agents", json={"proof": made, **self._body}, headers=headers)


class Holder:
    """A bound agent, as its own code would act. `url`: what it knows the broker by, if that is not its address.

    `key`: its key, if that is not a new one of Ed25519; `alg`: what its proofs call the algorithm.
    """

    def __init__(
        self,
        app: TestApp,
        *scopes: str,
        bound: bool = True,
        url: str | None = None,
        key: Key | None = None,
        alg: str = "",
        **fields: Any,
    ) -> None:
        self.app = app
        self.broker: BrokerProcess = app.broker
        self.url = url or app.broker.url
        self.key = key or Ed25519PrivateKey.generate()
        self.alg = alg
        token = app.token()
        body = {
            "orch_id": "orchestrator",
            "task_id": "task-1",
            "requested_scope": list(scopes or ("read:data:1",)),
            "public_key": base64.b64encode(raw_public_key(self.key)).decode(),
            "proof": proof(self.key, "POST", f"{self.url}/v1/agents", token, alg=alg),
            "bound": bound,
            **fields,
        }
        self.answer = self.broker.http.post("/v1/agents", json=body, headers=bearer(token))
        assert self.answer.status_code == 201, self.answer.text
        self.agent_id: str = self.answer.json()["agent_id"]
        self.token: str = self.answer.json()["access_token"]

    def proof(self, method: str, url: str, **changes: Any) -> str:
        return proof(self.key, method, url, changes.pop("token", self.token), **{"alg": self.alg, **changes})

    def post(self, path: str, *, json: Any = None, token: str | None = None, **changes: Any) -> httpx2.Response:
        """A request to the broker with a proof, in which `changes` are made; `proof` replaces it."""
        token = token or self.token
        made = changes.pop("proof", None) or self.proof("POST", self.url + path, token=token, **changes)
        return present(self.broker, path, token, made, json=json)

    def validate(self, method: str, url: str, **changes: Any) -> dict[str, Any]:
        """What a service learns that was shown the token in this request."""
        made = changes.pop("proof", None) or self.proof(method, url, **changes)
        body = {"token": self.token, "proof": made, "htm": method, "htu": url}
        answer = self.broker.http.post("/v1/token/validate", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


def present(
    broker: BrokerProcess, path: str, token: str, *proofs: str, json: Any = None, scheme: str = "DPoP"
) -> httpx2.Response:
    """A request with a token, and with these DPoP header fields."""
    headers = [("authorization", f"{scheme} {token}"), *(("dpop", made) for made in proofs)]
    return broker.http.post(path, json=json, headers=headers)
