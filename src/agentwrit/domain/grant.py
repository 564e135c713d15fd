"""Grants: what tokens are issued on, what renewal continues, and what revocation ends.

An agent's registration is a grant, and so is each delegation to it. A login of an app or of an operator is one too.

What ends with a grant:

- everything that was delegated from it, at any depth;
- with an agent's registration, also every delegation to that agent, and everything that was delegated from those.

A renewal ends only the superseded token. Delegations made with that token stay alive.

The rules of renewal:

- A grant has one current token. Renewal replaces it: the jti and the times are new, all else stays. The grant's end
  (`ends_at`) never moves, and no token is issued with a lifetime of less than a second.
- A grant has permits for 64 renewals, which are refilled one by one over the lifetime of a token. The limit exists
  because the broker and all verifiers must remember each superseded token until it expires.
- If the app's `max_ttl` was lowered, the successor may expire before its predecessor would have. Delegations from the
  grant that would therefore outlive it end.
- A token has at most one successor. If it is presented for renewal again within 30 seconds, because the first response
  may have been lost, the response is the same successor, provided that the successor is alive and not itself renewed.
- A superseded token that is presented for renewal in any other case before its own exp is treated as stolen: the grant
  ends (RFC 9700 §4.14.2, for refresh tokens). After its exp it is merely expired.
"""

from enum import StrEnum
from typing import Final

import msgspec

from agentwrit.domain import operator
from agentwrit.domain.delegation import Chain

RETRY_WINDOW_SECONDS: Final = 30
MAX_RENEWALS_AT_ONCE: Final = 64

APP_PREFIX: Final = "app:"  # begins the `sub` of an app's own tokens


class GrantKind(StrEnum):
    """The kind of principal that holds a grant."""

    AGENT = "agent"
    APP = "app"
    OPERATOR = "operator"


def kind_of_subject(subject: str) -> GrantKind:
    """The kind of principal with this `sub`. Scopes do not tell: an agent's scope may look like an operator's."""
    if subject == operator.SUBJECT:
        return GrantKind.OPERATOR
    return GrantKind.APP if subject.startswith(APP_PREFIX) else GrantKind.AGENT


class GrantStatus(StrEnum):
    """The state of a grant."""

    LIVE = "live"
    EXPIRED = "expired"
    ENDED = "ended"


class EndReason(StrEnum):
    """Why a grant ended before its time."""

    RELEASED = "released"
    RENEWAL_REUSE = "renewal_reuse"
    APP_DEREGISTERED = "app_deregistered"
    APP_SUSPENDED = "app_suspended"
    CEILING_NARROWED = "ceiling_narrowed"
    SECRET_ROTATED = "secret_rotated"
    OPERATOR_REMOVED = "operator_removed"
    KEY_REVOKED = "key_revoked"
    REVOKED = "revoked"
    ANCESTOR_ENDED = "ancestor_ended"
    ANCESTOR_SHORTENED = "ancestor_shortened"
    DELEGATE_ENDED = "delegate_ended"
    STORE_RESTORED = "store_restored"
    STORE_PROMOTED = "store_promoted"


class Renewal(StrEnum):
    """What to do with a token that is presented for renewal."""

    SUCCEED = "succeed"
    """Issue its successor."""
    REPEAT = "repeat"
    """Return the successor that was already issued."""
    REUSE = "reuse"
    """The token was stolen: end the grant."""
    TOO_SOON = "too_soon"
    """Refuse for now: the grant has no permit left."""
    REFUSE = "refuse"
    """Refuse: the grant has ended, its token has expired, or it has less than a second left."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A grant and its current token. Times are Unix seconds.

    - `subject`: the holder, as in `sub`
    - `operator`: the name of the operator whose login it is; empty for the first operator and for other kinds
    - `app_id`: empty for agents that an operator launched
    - `ttl`: the lifetime of each of its tokens, in seconds
    - `public_key`: the key whose possession the agent proved at registration
    - `credential`: the fingerprint of the secret that an app logged in with, so that the login ends with that secret
    - `chain`: the chain of delegations; empty for a registration
    - `kid`: the key that signed the current token; empty if unknown
    - `names_actors`: whether its tokens carry `act`
    - `is_bound`: whether its tokens are bound to `public_key` (RFC 9449 §6.1)
    - `is_counted`: whether a registration counts towards its app's `max_live_agents`
    - `born`: the last sequence number of the audit log when the grant was made; 0 if unknown
    - `renewals_until`: the time up to which its renewal permits are used
    """

    sid: str
    kind: GrantKind
    subject: str
    app_id: str
    client_id: str
    scope: tuple[str, ...]
    audience: tuple[str, ...]
    ttl: int
    created_at: int
    ends_at: int
    jti: str
    iat: int
    exp: int
    task_id: str = ""
    orch_id: str = ""
    agent_name: str = ""
    public_key: bytes = b""
    credential: bytes = b""
    chain: Chain = ()
    kid: str = ""
    previous_jti: str = ""
    renewed_at: int = 0
    ended_at: int = 0
    end_reason: str = ""
    names_actors: bool = False
    is_bound: bool = False
    operator: str = ""
    is_counted: bool = False
    born: int = 0
    renewals_until: float = 0.0

    @property
    def is_registration(self) -> bool:
        """Whether it is an agent's own registration, not a delegation or a login."""
        return self.kind is GrantKind.AGENT and not self.chain

    @property
    def parent_sid(self) -> str:
        """The sid of the grant that it was delegated from; empty if it was not delegated."""
        return self.chain[-1].sid if self.chain else ""

    @property
    def tree(self) -> str:
        """The sid of the grant that its chain begins with; empty if it was not delegated."""
        return self.chain[0].sid if self.chain else ""

    @property
    def is_ended(self) -> bool:
        return self.ended_at > 0

    def is_signed_by(self, kid: str) -> bool:
        """Whether the key signed, or may have signed, the current token or a delegation in its chain."""
        return self.kid in (kid, "") or any(record.kid == kid for record in self.chain)

    def is_live(self, now: float) -> bool:
        """Whether the grant has not ended and its current token has not expired."""
        return not self.is_ended and now < self.exp

    def status(self, now: float) -> GrantStatus:
        """The state of the grant at `now`."""
        if self.is_ended:
            return GrantStatus.ENDED
        return GrantStatus.LIVE if self.is_live(now) else GrantStatus.EXPIRED


def decide_renewal(grant: Grant, presented_jti: str, now: float) -> Renewal:
    """What to do with a genuine, unexpired token of `grant` that is presented for renewal."""
    if grant.is_ended:
        return Renewal.REFUSE
    if presented_jti == grant.jti:
        if not grant.is_live(now) or grant.ends_at - int(now) < 1:
            return Renewal.REFUSE
        return Renewal.SUCCEED if renewable_at(grant, now) <= now else Renewal.TOO_SOON
    is_retry = presented_jti == grant.previous_jti and now - grant.renewed_at <= RETRY_WINDOW_SECONDS
    if is_retry and now < grant.exp:
        return Renewal.REPEAT
    return Renewal.REUSE


def renewable_at(grant: Grant, now: float) -> float:
    """When the grant next has a renewal permit (Unix seconds)."""
    return _used_until(grant, now) - grant.ttl


def permit_used(grant: Grant, now: float) -> Grant:
    """The grant with one renewal permit used."""
    return msgspec.structs.replace(grant, renewals_until=_used_until(grant, now))


def _used_until(grant: Grant, now: float) -> float:
    return max(grant.renewals_until, now) + grant.ttl / MAX_RENEWALS_AT_ONCE


def renewed(grant: Grant, jti: str, now: float) -> Grant:
    """The grant after its current token was replaced by `jti`."""
    at = int(now)
    return msgspec.structs.replace(
        grant,
        previous_jti=grant.jti,
        renewed_at=at,
        jti=jti,
        iat=at,
        exp=min(at + grant.ttl, grant.ends_at),
    )


def ended(grant: Grant, reason: EndReason, now: float) -> Grant:
    """The grant after its end."""
    return msgspec.structs.replace(grant, ended_at=max(1, int(now)), end_reason=reason.value)
