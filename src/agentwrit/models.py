"""The values that the SDK returns: plain and frozen. Times are Unix seconds, durations are in seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

import msgspec

from agentwrit.domain.timestamps import MAX_UNIX_SECONDS, rfc3339

Time: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_UNIX_SECONDS)]
"""Unix seconds."""


@dataclass(frozen=True)
class ProblemDetail:
    """A broker's description of an error (RFC 9457), as `ProblemResponseError.problem`.

    `error_code` is stable, and is what programs should compare. `request_id` finds the request in the audit log:

        try:
            agent.renew()
        except ProblemResponseError as error:
            log.error("%s (request %s)", error.problem.detail, error.problem.request_id)
    """

    type: str
    title: str
    detail: str
    instance: str
    status: int | None = None
    error_code: str | None = None
    request_id: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class HealthStatus:
    """A broker's health, as `app.health()` returns it.

    `status`: `ok` or `degraded`; `uptime`: seconds.

        health = app.health()
        print(health.status, health.version)
    """

    status: str
    version: str
    uptime: int
    db_connected: bool
    audit_events_count: int


@dataclass(frozen=True)
class RegisterResult:
    """A registered agent's identity and first token.

    `expires_in`: lifetime of the token, in seconds. The repr does not show the token.

        RegisterResult("spiffe://broker.example/agent/orders/order-4823/9f86d081884c7d65", token, 300)
    """

    agent_id: str
    access_token: str = field(repr=False)
    expires_in: int


@dataclass(frozen=True)
class DelegationRecord:
    """One hop of a delegation: `agent`, on its grant `sid` with the scope `scope`, granted `granted` to `delegate`.

    `delegated_at`: RFC 3339, in whole seconds; `prev`: hex SHA-256 of the previous record; `signature`: the broker's,
    by its key `kid`, over a record in which the time is in Unix seconds. `verify_delegation` checks a chain:

        for hop in verify_delegation(claims, jwks):
            print(hop.agent, "->", hop.delegate, hop.granted)
    """

    agent: str
    scope: list[str]
    delegated_at: str
    signature: str = ""
    sid: str = ""
    delegate: str = ""
    granted: list[str] = field(default_factory=list)
    prev: str = ""
    kid: str = ""


@dataclass(frozen=True)
class DelegatedToken:
    """A token that one agent delegated to another: its subject is the delegate. The repr does not show the token.

    `expires_in`: lifetime at issue, in seconds; `delegation_chain`: the hops, the first one first.

        delegated = agent.delegate(helper.agent_id, ["read:data:customer-7291"])
        helping = helper.accept(delegated)
    """

    access_token: str = field(repr=False)
    expires_in: int
    delegation_chain: list[DelegationRecord] = field(default_factory=list)


@dataclass(frozen=True)
class AgentClaims:
    """The claims of a valid token.

    `task_id` and `orch_id` are empty in tokens of apps and operators.

        claims = verifier.verify(token, scope="read:data:customer-7291")
        log.info("%s reads for task %s", claims.sub, claims.task_id)
    """

    iss: str
    sub: str
    aud: list[str]
    exp: Time
    nbf: Time
    iat: Time
    jti: str
    scope: list[str]
    task_id: str
    orch_id: str
    sid: str | None = None
    delegation_chain: list[DelegationRecord] | None = None
    chain_hash: str | None = None
    client_id: str = ""
    cnf: dict[str, str] | None = None
    """The key of a bound token: `jkt`, the thumbprint of the agent's key (RFC 9449 §6.1)."""

    @classmethod
    def from_wire(cls, claims: Mapping[str, Any]) -> "AgentClaims":
        """Read the claims from a broker's response. Unknown members are ignored, and some members may be missing.

        Raises:
            msgspec.ValidationError: a member has the wrong type.
        """
        given = {name: value for name, value in claims.items() if value is not None}
        aud, scope, chain = given.get("aud"), given.get("scope"), given.get("delegation_chain")
        if isinstance(aud, str):
            given["aud"] = [aud]  # RFC 7519 §4.1.3 allows both
        if isinstance(scope, str):
            given["scope"] = scope.split()  # as inside a token (RFC 9068 §2.2.3)
        if isinstance(chain, list):
            given["delegation_chain"] = [_with_defaults(item) for item in chain]
        return msgspec.convert(_MISSING | given, cls)


@dataclass(frozen=True)
class ValidateResult:
    """The result of `validate`.

    `claims`: what a valid token says; `error`: why a token is not valid.

        result = validate(broker_url, token)
        if not result.valid:
            return 401
    """

    valid: bool
    claims: AgentClaims | None = None
    error: str | None = None


def chain_from_wire(chain: object) -> list[DelegationRecord]:
    """Read the `delegation_chain` from a broker's response.

    Raises:
        msgspec.ValidationError: `chain` is not a delegation chain.
    """
    items = [_with_defaults(item) for item in chain] if isinstance(chain, list) else chain
    return msgspec.convert(items, list[DelegationRecord])


def _with_defaults(record: object) -> object:
    if not isinstance(record, dict):
        return record
    at = record.get("delegated_at")
    if isinstance(at, int) and 0 <= at <= MAX_UNIX_SECONDS:  # older brokers send Unix seconds
        record = {**record, "delegated_at": rfc3339(at)}
    return _MISSING_IN_RECORD | record


_MISSING: dict[str, Any] = {
    **dict.fromkeys(("iss", "sub", "jti", "task_id", "orch_id"), ""),
    **dict.fromkeys(("exp", "nbf", "iat"), 0),
    "aud": [],
    "scope": [],
}
_MISSING_IN_RECORD: dict[str, Any] = {"agent": "", "scope": [], "delegated_at": ""}
