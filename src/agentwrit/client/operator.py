"""The operator's side of the protocol, for the command line."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode

from agentwrit.client import shapes, steps
from agentwrit.client.driver import Connected, Driver
from agentwrit.client.exchange import HttpRequest, Steps
from agentwrit.client.policy import CALL_SECONDS, Login
from agentwrit.client.secrecy import Secret, discreet
from agentwrit.errors import AgentWritError

APPS: Final = "/v1/admin/apps"
AppLimits = Mapping[str, int | None]
"""Limits of an app, by name: `max_live_agents`, `max_ttl` (seconds), `creates_per_second`. None removes a limit."""
AGENTS: Final = "/v1/agents"
KEYS: Final = "/v1/admin/keys"
OPERATORS: Final = "/v1/admin/operators"


class OperatorClient(Connected):
    """Manages a broker's apps, watches its agents and revokes. Returns the broker's JSON objects.

    `name`: the operator's name, if it is not the first operator; `timeout`: seconds for a whole call; `cert`: a client
    certificate, as for `AgentWritApp`. Every method raises ProblemResponseError if the broker refuses, and
    TransportError if it was not reached.
    """

    @discreet
    def __init__(
        self,
        broker_url: str,
        admin_secret: str,
        *,
        name: str | None = None,
        timeout: float = CALL_SECONDS,
        cert: Any = None,
    ) -> None:
        secret = Secret(admin_secret)
        login = Login(lambda: steps.operator_login(secret, name))
        self._driver = Driver(broker_url, timeout=timeout, login=login, cert=cert)

    def register_app(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        token_ttl: int | None = None,
        audiences: Sequence[str] = (),
        require_bound: bool = False,
        reports_for: Sequence[str] = (),
        limits: AppLimits | None = None,
    ) -> dict[str, Any]:
        """Register an app. Returns its IDs, and its secret, which is shown only once."""
        body = {
            "name": name,
            "scopes": list(scopes),
            "audiences": list(audiences),
            "require_bound": require_bound,
            "reports_for": list(reports_for),
            **(limits or {}),
        }
        return self._call(
            "POST", APPS, body | ({} if token_ttl is None else {"token_ttl": token_ttl}), shape=shapes.NewApp
        )

    def list_apps(self) -> dict[str, Any]:
        """All apps, as `apps` and `total`."""
        return self._call("GET", APPS, shape=shapes.Apps)

    def get_app(self, app_id: str) -> dict[str, Any]:
        return self._call("GET", _at(APPS, app_id), shape=shapes.App)

    def update_app(
        self,
        app_id: str,
        *,
        scopes: Sequence[str] | None = None,
        token_ttl: int | None = None,
        audiences: Sequence[str] | None = None,
        require_bound: bool | None = None,
        reports_for: Sequence[str] | None = None,
        limits: AppLimits | None = None,
        keep_grants: bool = False,
    ) -> dict[str, Any]:
        """Change an app. Returns the app, and as `grants_ended` how many grants a narrower ceiling ended."""
        body = {
            "scopes": None if scopes is None else list(scopes),
            "token_ttl": token_ttl,
            "audiences": None if audiences is None else list(audiences),
            "require_bound": require_bound,
            "reports_for": None if reports_for is None else list(reports_for),
        }
        query = "?keep_grants=true" if keep_grants else ""
        given = {name: value for name, value in body.items() if value is not None}
        return self._call("PUT", _at(APPS, app_id) + query, {**given, **(limits or {})}, shape=shapes.App)

    def rotate_secret(self, app_id: str, *, overlap: int = 0) -> dict[str, Any]:
        """Give an app a new secret, shown only once. The old one works for another `overlap` seconds."""
        return self._call("POST", f"{_at(APPS, app_id)}/secret", {"overlap": overlap}, shape=shapes.NewAppSecret)

    def suspend_app(self, app_id: str) -> dict[str, Any]:
        """Suspend an app. Returns the app, and as `grants_ended` how many of its live grants this ended."""
        return self._call("POST", f"{_at(APPS, app_id)}/suspend", is_idempotent=True, shape=shapes.App)

    def resume_app(self, app_id: str) -> dict[str, Any]:
        """Let a suspended app log in again. Returns the app."""
        return self._call("POST", f"{_at(APPS, app_id)}/resume", is_idempotent=True, shape=shapes.App)

    def remove_app(self, app_id: str) -> dict[str, Any]:
        """Remove an app, and end all credentials that came through it."""
        return self._call("DELETE", _at(APPS, app_id), shape=shapes.Removed)

    def revoke(self, level: str, target: str, *, reason: str = "") -> dict[str, Any]:
        """End everything live under a name, and what depends on it. Returns as `count` how many live tokens died.

        `level` is the type of `target`: `token` (jti), `agent` or `chain` (agent_id), `task` (task_id), `grant` (sid)
        or `app` (app_id). An unknown name is not an error: `count` is 0.
        """
        body = {"level": level, "target": target, "reason": reason}
        # A retry does nothing more: completing the revocation matters more than the count, which a lost answer loses.
        return self._call("POST", "/v1/revoke", body, is_idempotent=True, shape=shapes.Killed)

    def list_agents(
        self,
        *,
        app_id: str | None = None,
        agent_id: str | None = None,
        task_id: str | None = None,
        orch_id: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> dict[str, Any]:
        """A page of the live grants that match, as `agents`; `next` is the next page's `after`, or null."""
        asked = {
            "app_id": app_id,
            "agent_id": agent_id,
            "task_id": task_id,
            "orch_id": orch_id,
            "after": after,
            "limit": limit,
        }
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        return self._call("GET", f"{AGENTS}?{query}", shape=shapes.Grants)

    def show_agent(self, agent_id: str) -> dict[str, Any]:
        """All grants that an agent held, as `grants`: each with the delegations from it, and how it ended."""
        return self._call("GET", _at(AGENTS, agent_id), shape=shapes.Agent)

    def list_keys(self) -> dict[str, Any]:
        """The signing keys, as `keys`, newest first."""
        return self._call("GET", KEYS, shape=shapes.Keys)

    def rotate_key(self, *, purpose: str, force: bool = False) -> dict[str, Any]:
        """Let the next key of a purpose sign. Returns the keys' new roles as `active`, `retired` and `next`."""
        return self._call("POST", f"{KEYS}/rotate", {"purpose": purpose, "force": force}, shape=shapes.Rotated)

    def revoke_key(self, kid: str, *, reason: str = "") -> dict[str, Any]:
        """Revoke a key and all that it signed. Returns as `count` how many live tokens died."""
        return self._call("POST", f"{_at(KEYS, kid)}/revoke", {"reason": reason}, shape=shapes.Killed)

    @discreet
    def add_operator(self, name: str, *, secret: str | None = None) -> dict[str, Any]:
        """Add an operator. Without a `secret` (plain, or as `$argon2id$…`) the broker makes one, shown only once."""
        return self._call("POST", OPERATORS, {"name": name, "secret": secret}, shape=shapes.NewOperator)

    def list_operators(self) -> dict[str, Any]:
        """All operators, as `operators`."""
        return self._call("GET", OPERATORS, shape=shapes.Operators)

    @discreet
    def rotate_operator(self, name: str, *, secret: str | None = None) -> dict[str, Any]:
        """Give an operator a new secret, as `add_operator` does. Grants made with the old one end."""
        return self._call("POST", f"{_at(OPERATORS, name)}/secret", {"secret": secret}, shape=shapes.NewOperator)

    def remove_operator(self, name: str) -> dict[str, Any]:
        """Remove an operator, and end the operator's grants."""
        return self._call("DELETE", _at(OPERATORS, name), shape=shapes.Removal)

    def __repr__(self) -> str:
        return f"OperatorClient({self.broker_url!r})"

    def _call(
        self, method: str, path: str, body: object = None, *, shape: type, is_idempotent: bool | None = None
    ) -> dict[str, Any]:
        if is_idempotent is None:
            is_idempotent = method in ("GET", "DELETE")
        return self._driver.run(_call(HttpRequest(method, path, json=body, is_idempotent=is_idempotent), shape))


def _call(request: HttpRequest, shape: type) -> Steps[dict[str, Any]]:
    return shapes.check(steps.read_object((yield from steps.logged_in(request))), shape)


def _at(collection: str, name: str) -> str:
    """The path of one member of a collection.

    Raises:
        AgentWritError: as a path segment, the name would lead elsewhere (RFC 3986 §5.2.4).
    """
    if name in ("", ".", ".."):
        raise AgentWritError(f"{name!r} is not a valid name")
    return f"{collection}/{quote(name, safe='')}"
