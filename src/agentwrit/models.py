"""What the SDK answers with: plain, frozen values. Times are Unix seconds, durations seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
    """One hop of a delegation: `agent`, holding `scope`, handed on some of it at `delegated_at`."""

    agent: str
    scope: list[str]
    delegated_at: int | str
    signature: str = ""


@dataclass(frozen=True)
class AgentClaims:
    """What a valid token says. For an app's or the operator's token `task_id` and `orch_id` are empty."""

    iss: str
    sub: str
    aud: list[str]
    exp: int
    nbf: int
    iat: int
    jti: str
    scope: list[str]
    task_id: str
    orch_id: str
    sid: str | None = None
    delegation_chain: list[DelegationRecord] | None = None
    chain_hash: str | None = None
    client_id: str = ""

    @classmethod
    def from_wire(cls, claims: Mapping[str, Any]) -> "AgentClaims":
        """Read the claims of a broker's answer. Members that we do not know are left alone."""
        aud, scope, chain = claims.get("aud") or [], claims.get("scope") or [], claims.get("delegation_chain")
        return cls(
            iss=claims.get("iss", ""),
            sub=claims.get("sub", ""),
            aud=[aud] if isinstance(aud, str) else list(aud),  # RFC 7519 §4.1.3 allows both
            exp=claims.get("exp", 0),
            nbf=claims.get("nbf", 0),
            iat=claims.get("iat", 0),
            jti=claims.get("jti", ""),
            scope=scope.split() if isinstance(scope, str) else list(scope),
            task_id=claims.get("task_id", ""),
            orch_id=claims.get("orch_id", ""),
            sid=claims.get("sid"),
            delegation_chain=None if chain is None else [_record(item) for item in chain],
            chain_hash=claims.get("chain_hash"),
            client_id=claims.get("client_id", ""),
        )


@dataclass(frozen=True)
class ValidateResult:
    """Whether a token holds. `claims` if it does, `error` if it does not."""

    valid: bool
    claims: AgentClaims | None = None
    error: str | None = None


def _record(item: Mapping[str, Any]) -> DelegationRecord:
    return DelegationRecord(
        agent=item.get("agent", ""),
        scope=list(item.get("scope") or []),
        delegated_at=item.get("delegated_at", 0),
        signature=item.get("signature", ""),
    )
