"""Holders of bound tokens, and thieves of them: proofs made by hand and with PyJWT, with no code of the SDK."""

import base64
import hashlib
import secrets
import time
from typing import Any

import httpx2
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support import BrokerProcess, TestApp, bearer


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw_public_key(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def public_jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    return {"kty": "OKP", "crv": "Ed25519", "x": encoded(raw_public_key(key))}


def proof(key: Ed25519PrivateKey, method: str, url: str, token: str, **changes: Any) -> str:
    """A proof by `key`. `changes` replace its claims, or leave one out where they are None."""
    claims = {
        "htm": method,
        "htu": url,
        "iat": int(time.time()),
        "jti": secrets.token_hex(8),
        "ath": encoded(hashlib.sha256(token.encode()).digest()),
    } | changes
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, key, algorithm="EdDSA", headers={"typ": "dpop+jwt", "jwk": public_jwk(key)})


class Creation:
    """A request of an app for an agent in one trip. `token`: the app's; `fields` replace those of the body."""

    def __init__(self, app: TestApp, token: str | None = None, **fields: Any) -> None:
        self._broker = app.broker
        self._key = Ed25519PrivateKey.generate()
        self._token = token or app.token()
        self._body = {
            "orch_id": "orchestrator",
            "task_id": "task-1",
            "requested_scope": ["read:data:1"],
            "public_key": base64.b64encode(raw_public_key(self._key)).decode(),
            **fields,
        }

    def post(self, *, key: str | None = None) -> httpx2.Response:
        """Ask, with a new proof. `key`: of idempotency."""
        made = proof(self._key, "POST", f"{self._broker.url}/v1/agents", self._token)
        headers = bearer(self._token) | ({} if key is None else {"idempotency-key": key})
        return self._broker.http.post("/v1/agents", json={"proof": made, **self._body}, headers=headers)


class Holder:
    """A bound agent, as its own code would act."""

    def __init__(self, app: TestApp, *scopes: str, bound: bool = True, **fields: Any) -> None:
        self.app = app
        self.broker: BrokerProcess = app.broker
        self.key = Ed25519PrivateKey.generate()
        token = app.token()
        body = {
            "orch_id": "orchestrator",
            "task_id": "task-1",
            "requested_scope": list(scopes or ("read:data:1",)),
            "public_key": base64.b64encode(raw_public_key(self.key)).decode(),
            "proof": proof(self.key, "POST", f"{self.broker.url}/v1/agents", token),
            "bound": bound,
            **fields,
        }
        self.answer = self.broker.http.post("/v1/agents", json=body, headers=bearer(token))
        assert self.answer.status_code == 201, self.answer.text
        self.agent_id: str = self.answer.json()["agent_id"]
        self.token: str = self.answer.json()["access_token"]

    def proof(self, method: str, url: str, **changes: Any) -> str:
        return proof(self.key, method, url, changes.pop("token", self.token), **changes)

    def post(self, path: str, *, json: Any = None, token: str | None = None, **changes: Any) -> httpx2.Response:
        """A request to the broker with a proof, in which `changes` are made; `proof` replaces it."""
        token = token or self.token
        made = changes.pop("proof", None) or self.proof("POST", self.broker.url + path, token=token, **changes)
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
