"""Grants: what a token is issued on, what renewal moves along, and what dies.

An agent's registration is a grant, and so is every delegation to it; a login of an app or of the operator is one too.

What ends with a grant:

- everything that was delegated from it, at whatever depth;
- with an agent's registration, also every grant that was delegated to that agent, and what was delegated from those.

A renewal ends nothing but the token before: what was delegated with that token lives on.

The rules of renewal:

- A grant has one current token. Renewal replaces it: new jti, new times, everything else as it was. The grant's end
  (`ends_at`) never moves, and no token is issued that would live for less than a second.
- A grant has permits for 64 renewals, and gets them back one by one over the life of a token. Each token that it leaves
  behind has to be remembered as dead until its time is over, by the broker and by everybody who verifies.
- Where the app's `max_ttl` was lowered, the successor may be over before its predecessor would have been. What was
  delegated from the grant, and would outlive it by that, ends.
- A token has one successor at most. Presented again within 30 seconds, because the first answer may have been lost, it
  is answered with that same successor, as long as the successor lives and was not renewed itself.
- Presented to renew in any other way, before its own exp, a superseded token is a stolen one: the grant ends
  (RFC 9700 §4.14.2, for refresh tokens). After its exp it is merely expired.
"""

from enum import StrEnum
from typing import Final

import msgspec

from agentwrit.domain import operator
from agentwrit.domain.delegation import Chain

RETRY_WINDOW_SECONDS: Final = 30
MAX_RENEWALS_AT_ONCE: Final = 64

APP_PREFIX: Final = "app:"  # of the `sub` of an app's own tokens


class GrantKind(StrEnum):
    """Whose grant it is."""

    AGENT = "agent"
    APP = "app"
    OPERATOR = "operator"


def kind_of_subject(subject: str) -> GrantKind:
    """Whose token has this `sub`. Scopes do not say: an agent's may look like an operator's."""
    if subject == operator.SUBJECT:
        return GrantKind.OPERATOR
    return GrantKind.APP if subject.startswith(APP_PREFIX) else GrantKind.AGENT


class GrantStatus(StrEnum):
    """Where a grant is in its life."""

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
    """What to do with a token that is presented to be renewed."""

    SUCCEED = "succeed"
    """Issue its successor."""
    REPEAT = "repeat"
    """Answer with the successor that it has already."""
    REUSE = "reuse"
    """Stolen: end the grant."""
    TOO_SOON = "too_soon"
    """Not yet: it was renewed too often."""
    REFUSE = "refuse"
    """The grant has ended, its token is over, or it has less than a second left."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """One grant and its current token. Times are Unix seconds.

    `subject` is who holds it; `operator` is the name of the operator whose login it is, empty for the first one and for
    who is none; `app_id` is empty for what an operator launched; `ttl` is that of each of its tokens;
    `public_key` is the key that an agent proved at registration; `credential` is the fingerprint of the secret that an
    app's grant was given on, so that the grant can die with that secret; `chain` is how it was delegated, empty for a
    registration; `kid` names the key that signed its current token, empty where that is not known; `names_actors` says
    whether its tokens carry `act`, `is_bound` whether they are bound to `public_key` (RFC 9449 §6.1), and `is_counted`,
    of a registration, whether it counts for its app's `max_live_agents`; `born` is where the audit log ended when it
    was made (a sequence number), 0 where that is not known; `renewals_until` is up to when its permits to be renewed
    are used.
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
        """Whether an agent holds it by its own key, and not because another one gave it."""
        return self.kind is GrantKind.AGENT and not self.chain

    @property
    def parent_sid(self) -> str:
        """The grant that it was delegated from, or empty."""
        return self.chain[-1].sid if self.chain else ""

    @property
    def tree(self) -> str:
        """The grant that its chain begins with, or empty where it was not delegated."""
        return self.chain[0].sid if self.chain else ""

    @property
    def is_ended(self) -> bool:
        return self.ended_at > 0

    def is_signed_by(self, kid: str) -> bool:
        """Whether the key signed its current token or a delegation in it, as far as is known."""
        return self.kid in (kid, "") or any(record.kid == kid for record in self.chain)

    def is_live(self, now: float) -> bool:
        """Whether the grant has a token that is not over."""
        return not self.is_ended and now < self.exp

    def status(self, now: float) -> GrantStatus:
        """Where the grant is in its life."""
        if self.is_ended:
            return GrantStatus.ENDED
        return GrantStatus.LIVE if self.is_live(now) else GrantStatus.EXPIRED


def decide_renewal(grant: Grant, presented_jti: str, now: float) -> Renewal:
    """What to do with a genuine, unexpired token of `grant` that is presented to be renewed."""
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
    """When the grant has a permit to be renewed (Unix seconds)."""
    return _used_until(grant, now) - grant.ttl


def permit_used(grant: Grant, now: float) -> Grant:
    """The grant with a permit less to be renewed."""
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
