"""What tests of /oauth2 share: requests as OAuth clients make them, and errors as RFC 6749 §5.2 has them."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import httpx2

from tests.support import BrokerProcess, TestApp

TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"

Fields = Mapping[str, str | Sequence[str]]


def post(
    broker: BrokerProcess,
    path: str,
    fields: Fields,
    *,
    app: TestApp | None = None,
    headers: Mapping[str, str] | None = None,
) -> httpx2.Response:
    """A form, by client_secret_basic if an app is given."""
    content = urlencode(fields, doseq=True)
    auth = httpx2.USE_CLIENT_DEFAULT if app is None else httpx2.BasicAuth(app.client_id, app.client_secret)
    all_headers = {"content-type": "application/x-www-form-urlencoded", **(headers or {})}
    return broker.http.post(f"/oauth2/{path}", content=content, headers=all_headers, auth=auth)


def client_credentials(app: TestApp, **fields: str) -> httpx2.Response:
    return post(app.broker, "token", {"grant_type": "client_credentials", **fields}, app=app)


def exchange(app: TestApp, subject: str, actor: str, scope: str, **fields: str | Sequence[str]) -> httpx2.Response:
    """One agent's token exchanged for another agent's, on its behalf."""
    asked: dict[str, str | Sequence[str]] = {
        "grant_type": TOKEN_EXCHANGE,
        "subject_token": subject,
        "subject_token_type": ACCESS_TOKEN,
        "actor_token": actor,
        "actor_token_type": ACCESS_TOKEN,
        "scope": scope,
        **fields,
    }
    return post(app.broker, "token", {name: value for name, value in asked.items() if value}, app=app)


def introspect(app: TestApp, token: str) -> dict[str, Any]:
    answer = post(app.broker, "introspect", {"token": token}, app=app)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def revoke(app: TestApp, token: str, **fields: str) -> httpx2.Response:
    return post(app.broker, "revoke", {"token": token, **fields}, app=app)


def oauth_error(answer: httpx2.Response, status: int, error: str) -> str:
    """The description of a refusal, checked for its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    body = answer.json()
    assert set(body) == {"error", "error_description"}
    assert body["error"] == error, body
    description = str(body["error_description"])
    assert all(" " <= char <= "~" and char not in '"\\' for char in description)
    return description
