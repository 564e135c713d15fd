"""Reports of accesses, put together by hand."""

import time
from datetime import UTC, datetime
from typing import Any

import httpx2

from tests.support import BrokerProcess, TestApp, bearer

AUDIENCE = "orders"


class ResourceServer:
    """An app that may report on tokens for its audience, and has no agents."""

    def __init__(self, broker: BrokerProcess, *audiences: str) -> None:
        self.broker = broker
        self.app: TestApp = broker.app(reports_for=list(audiences or (AUDIENCE,)))
        self.token = self.app.token()

    def report(self, *accesses: dict[str, Any], key: str | None = None) -> httpx2.Response:
        headers = bearer(self.token) | ({} if key is None else {"idempotency-key": key})
        return self.broker.http.post("/v1/audit/accesses", json={"accesses": list(accesses)}, headers=headers)

    def taken(self, *accesses: dict[str, Any], key: str | None = None) -> dict[str, Any]:
        """What became of a report."""
        answer = self.report(*accesses, key=key)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def reason(self, access: dict[str, Any]) -> str:
        """Why an access is not taken."""
        receipt = self.taken(access)
        [refused] = receipt["refused"]
        assert (receipt["recorded"], refused["index"]) == (0, 0)
        return str(refused["reason"])


def access(broker: BrokerProcess, token: str, *scopes: str, **fields: Any) -> dict[str, Any]:
    """An access with this token, just now."""
    claims = broker.validate(token)["claims"]
    return {
        "sid": claims["sid"],
        "jti": claims["jti"],
        "scope": list(scopes or ("read:data:1",)),
        "resource": "GET /orders/1",
        "outcome": "success",
        "first": at(),
        "last": at(),
        **fields,
    }


def at(seconds: float = 0.0) -> str:
    """The time in so many seconds, or before now."""
    return datetime.fromtimestamp(time.time() + seconds, UTC).isoformat().replace("+00:00", "Z")
