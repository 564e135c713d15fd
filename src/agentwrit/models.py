"""What the SDK answers with: plain, frozen values. Times are Unix seconds, durations seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

import msgspec

from agentwrit.domain.timestamps import MAX_UNIX_SECONDS, rfc3339

Time: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_UNIX_SECONDS)]
"""Unix seconds."""


@dataclass(frozen=True)
class ProblemDetail:
    """An error as a broker describes it (RFC 9457). `error_code` is what programs compare."""

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
    """How a broker is. `status` is `ok` or `degraded`; `uptime` is in seconds."""

    status: str
    version: str
    uptime: int
    db_connected: bool
    audit_events_count: int


@dataclass(frozen=True)
class RegisterResult:
    """A registered agent's identity and first token, which its repr does not show."""

    agent_id: str
    access_token: str = field(repr=False)
    expires_in: int


@dataclass(frozen=True)
class DelegationRecord:
    """One hop of a delegation: `agent`, holding `scope` on its grant `sid`, gave `granted` to `delegate`.

    `delegated_at`: RFC 3339, in whole seconds; `prev`: hex SHA-256 of the record before; `signature`: the broker's, by
    its key `kid`, over a record that has the time as Unix seconds.
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
    """What an agent gives to another one. The token, which the repr does not show, speaks for the delegate.

    `expires_in`: seconds that it had when it was issued; `delegation_chain`: how it came about, the first hop first.
    """

    access_token: str = field(repr=False)
    expires_in: int
    delegation_chain: list[DelegationRecord] = field(default_factory=list)


@dataclass(frozen=True)
class AgentClaims:
    """What a valid token says. For an app's or the operator's token `task_id` and `orch_id` are empty."""

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
    """What a bound token is bound to: `jkt`, the thumbprint of its agent's key (RFC 9449 §6.1)."""

    @classmethod
    def from_wire(cls, claims: Mapping[str, Any]) -> "AgentClaims":
        """Read the claims of a broker's answer. Members that we do not know are left alone, and some may be missing.

        Raises:
            msgspec.ValidationError: a member is of the wrong type.
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
    """Whether a token holds. `claims` if it does, `error` if it does not."""

    valid: bool
    claims: AgentClaims | None = None
    error: str | None = None


def chain_from_wire(chain: object) -> list[DelegationRecord]:
    """Read the `delegation_chain` of a broker's answer.

    Raises:
        msgspec.ValidationError: it is none.
    """
    items = [_with_defaults(item) for item in chain] if isinstance(chain, list) else chain
    return msgspec.convert(items, list[DelegationRecord])


def _with_defaults(record: object) -> object:
    if not isinstance(record, dict):
        return record
    at = record.get("delegated_at")
    if isinstance(at, int) and 0 <= at <= MAX_UNIX_SECONDS:  # as brokers say it that are older
        record = {**record, "delegated_at": rfc3339(at)}
    return _MISSING_IN_RECORD | record


_MISSING: dict[str, Any] = {
    **dict.fromkeys(("iss", "sub", "jti", "task_id", "orch_id"), ""),
    **dict.fromkeys(("exp", "nbf", "iat"), 0),
    "aud": [],
    "scope": [],
}
_MISSING_IN_RECORD: dict[str, Any] = {"agent": "", "scope": [], "delegated_at": ""}
