"""The operator's side of the protocol, for the command line."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from agentwrit.client import steps
from agentwrit.client.driver import Connected, Driver
from agentwrit.client.exchange import HttpRequest, Secret, Steps
from agentwrit.client.policy import Login


class OperatorClient(Connected):
    """Manages the apps of a broker. Answers are the broker's own JSON objects. `timeout`: seconds for a whole call.

    Every method raises ProblemResponseError where the broker refuses, and TransportError where it was not reached.
    """

    def __init__(self, broker_url: str, admin_secret: str, *, timeout: float = 10.0) -> None:
        self._driver = Driver(
            broker_url, timeout=timeout, login=Login(lambda: steps.operator_login(Secret(admin_secret)))
        )

    def register_app(self, name: str, scopes: Sequence[str], *, token_ttl: int | None = None) -> dict[str, Any]:
        """Register an app: its ids, and its secret, which is shown this once."""
        body = {"name": name, "scopes": list(scopes)} | ({} if token_ttl is None else {"token_ttl": token_ttl})
        return self._call("POST", "", body)

    def list_apps(self) -> dict[str, Any]:
        """All apps, as `apps` and `total`."""
        return self._call("GET", "")

    def get_app(self, app_id: str) -> dict[str, Any]:
        return self._call("GET", _at(app_id))

    def update_app(
        self,
        app_id: str,
        *,
        scopes: Sequence[str] | None = None,
        token_ttl: int | None = None,
        keep_grants: bool = False,
    ) -> dict[str, Any]:
        """Change an app: the app, and as `grants_ended` how many grants a narrower ceiling ended."""
        body = {"scopes": None if scopes is None else list(scopes), "token_ttl": token_ttl}
        query = "?keep_grants=true" if keep_grants else ""
        return self._call(
            "PUT", _at(app_id) + query, {name: value for name, value in body.items() if value is not None}
        )

    def rotate_secret(self, app_id: str, *, overlap: int = 0) -> dict[str, Any]:
        """Give an app a new secret, shown this once; the old one works for `overlap` seconds more."""
        return self._call("POST", f"{_at(app_id)}/secret", {"overlap": overlap})

    def remove_app(self, app_id: str) -> dict[str, Any]:
        """End an app, and every credential that came through it."""
        return self._call("DELETE", _at(app_id))

    def __repr__(self) -> str:
        return f"OperatorClient({self.broker_url!r})"

    def _call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        return self._driver.run(_call(method, path, body))


def _call(method: str, path: str, body: object) -> Steps[dict[str, Any]]:
    request = HttpRequest(method, f"/v1/admin/apps{path}", json=body, is_idempotent=method in ("GET", "DELETE"))
    return steps.read_object((yield from steps.logged_in(request)))


def _at(app_id: str) -> str:
    return "/" + quote(app_id, safe="")
