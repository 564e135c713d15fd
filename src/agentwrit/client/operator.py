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
"""Limits of an app, by name: `max_live_agents`, `max_ttl` (seconds), `creates_per_second`. None takes one away."""
AGENTS: Final = "/v1/agents"
KEYS: Final = "/v1/admin/keys"
OPERATORS: Final = "/v1/admin/operators"


class OperatorClient(Connected):
    """Manages the apps of a broker, watches its agents and revokes. Answers are the broker's own JSON objects.

    `name`: the operator's, if it is not the first one; `timeout`: seconds for a whole call; `cert`: a certificate to
    show, as for `AgentWritApp`. Every method raises
    ProblemResponseError where the broker refuses, and TransportError where it was not reached.
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
        """Register an app: its ids, and its secret, which is shown this once."""
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
        """Change an app: the app, and as `grants_ended` how many grants a narrower ceiling ended."""
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
        """Give an app a new secret, shown this once; the old one works for `overlap` seconds more."""
        return self._call("POST", f"{_at(APPS, app_id)}/secret", {"overlap": overlap}, shape=shapes.NewAppSecret)

    def suspend_app(self, app_id: str) -> dict[str, Any]:
        """Let nobody do anything as an app: the app, and as `grants_ended` how many grants of its were alive."""
        return self._call("POST", f"{_at(APPS, app_id)}/suspend", is_idempotent=True, shape=shapes.App)

    def resume_app(self, app_id: str) -> dict[str, Any]:
        """Let an app that is suspended log in again: the app."""
        return self._call("POST", f"{_at(APPS, app_id)}/resume", is_idempotent=True, shape=shapes.App)

    def remove_app(self, app_id: str) -> dict[str, Any]:
        """End an app, and every credential that came through it."""
        return self._call("DELETE", _at(APPS, app_id), shape=shapes.Removed)

    def revoke(self, level: str, target: str, *, reason: str = "") -> dict[str, Any]:
        """End all that is alive under a name, and what falls with it; as `count` how many live tokens that killed.

        `level` says what `target` is: `token` (jti), `agent` or `chain` (agent_id), `task` (task_id), `grant` (sid) or
        `app` (app_id). A name that nobody has is no error: `count` is 0.
        """
        body = {"level": level, "target": target, "reason": reason}
        # Again it does nothing more: that it is done counts for more than a count that a lost answer took along.
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
        """A page of the live grants that match, as `agents`, and as `next` the `after` of the next page, or null."""
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
        """All that an agent held, as `grants`: each with what was delegated from it, and how it ended."""
        return self._call("GET", _at(AGENTS, agent_id), shape=shapes.Agent)

    def list_keys(self) -> dict[str, Any]:
        """The signing keys, as `keys`, the newest first."""
        return self._call("GET", KEYS, shape=shapes.Keys)

    def rotate_key(self, *, purpose: str, force: bool = False) -> dict[str, Any]:
        """Let the next key of a purpose sign: as `active`, `retired` and `next` which are which now."""
        return self._call("POST", f"{KEYS}/rotate", {"purpose": purpose, "force": force}, shape=shapes.Rotated)

    def revoke_key(self, kid: str, *, reason: str = "") -> dict[str, Any]:
        """Revoke a key with all that it signed; as `count` how many live tokens that killed."""
        return self._call("POST", f"{_at(KEYS, kid)}/revoke", {"reason": reason}, shape=shapes.Killed)

    @discreet
    def add_operator(self, name: str, *, secret: str | None = None) -> dict[str, Any]:
        """Add an operator. Without a `secret` (plain, or as `$argon2id$…`) one is made, and shown this once."""
        return self._call("POST", OPERATORS, {"name": name, "secret": secret}, shape=shapes.NewOperator)

    def list_operators(self) -> dict[str, Any]:
        """All operators, as `operators`."""
        return self._call("GET", OPERATORS, shape=shapes.Operators)

    @discreet
    def rotate_operator(self, name: str, *, secret: str | None = None) -> dict[str, Any]:
        """Give an operator a new secret, as `add_operator` does. What was granted on the old one ends."""
        return self._call("POST", f"{_at(OPERATORS, name)}/secret", {"secret": secret}, shape=shapes.NewOperator)

    def remove_operator(self, name: str) -> dict[str, Any]:
        """Remove an operator, and end what was granted to them."""
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
    """The path of one thing in a collection.

    Raises:
        AgentWritError: in a path the name would name another place (RFC 3986 §5.2.4).
    """
    if name in ("", ".", ".."):
        raise AgentWritError(f"{name!r} is no name of anything at the broker")
    return f"{collection}/{quote(name, safe='')}"
