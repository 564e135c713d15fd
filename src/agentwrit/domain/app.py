"""Apps: the programs that launch agents, each with a ceiling that none of its agents exceeds.

The rules:

- A client secret is 256 random bits, shown once and stored as SHA-256 only. After a rotation the old one works until
  its overlap ends, and so do the app tokens that were issued on it.
- Its agents' tokens are for its `audiences` and for the broker's default audience, and for nobody else.
- It may report what was done with tokens for an audience in `reports_for` (`agentwrit.domain.access`).
- Where it `requires_binding`, its agents' tokens are bound to their keys (RFC 9449): no others are issued or renewed.
- Its limits are in `agentwrit.domain.limits`.
- While it is suspended nobody can do anything as it, and all that came through it before has ended. Resumed, it begins
  anew with the same secret: launch tokens from before a suspension are of no use after it either.
- An app that was deregistered stays so. Its name may be taken again; its ids may not.
"""

import hmac
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

from agentwrit.domain import target_uri
from agentwrit.domain.errors import InvalidRequest

DEFAULT_TOKEN_TTL_SECONDS: Final = 1800
MIN_TOKEN_TTL_SECONDS: Final = 60
MAX_TOKEN_TTL_SECONDS: Final = 86_400
MAX_OVERLAP_SECONDS: Final = 30 * 86_400

LAUNCH_TOKENS_SCOPE: Final = "app:launch-tokens:*"
AGENTS_SCOPE: Final = "app:agents:*"
AUDIT_SCOPE: Final = "app:audit:read"
REPORT_SCOPE: Final = "app:audit:report"
TOKEN_SCOPES: Final = (LAUNCH_TOKENS_SCOPE, AGENTS_SCOPE, AUDIT_SCOPE)

_NAME = re.compile(r"[a-z][a-z0-9-]{1,63}")


class AppStatus(StrEnum):
    """Whether an app may do anything."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    """Not until the operator resumes it."""
    INACTIVE = "inactive"
    """Never again: it was deregistered."""


class App(msgspec.Struct, frozen=True, kw_only=True):
    """A registered app. Times are Unix seconds, `token_ttl` seconds; secrets are SHA-256 fingerprints.

    `revision` counts its states from 1; it is 0 for an app that was last changed before there were such numbers.
    `max_ttl` (seconds, of its agents' tokens), `max_live_agents` and `creates_per_second` are None where there is no
    such limit. `suspensions`: how often it was suspended.
    """

    app_id: str
    name: str
    client_id: str
    secret_hash: bytes
    scopes: tuple[str, ...]
    token_ttl: int
    status: AppStatus
    created_at: int
    updated_at: int
    previous_secret_hash: bytes = b""
    previous_secret_until: int = 0
    deregistered_at: int = 0
    audiences: tuple[str, ...] = ()
    requires_binding: bool = False
    revision: int = 0
    reports_for: tuple[str, ...] = ()
    max_live_agents: int | None = None
    max_ttl: int | None = None
    creates_per_second: int | None = None
    suspensions: int = 0

    @property
    def is_active(self) -> bool:
        return self.status is AppStatus.ACTIVE

    @property
    def is_removed(self) -> bool:
        return self.status is AppStatus.INACTIVE

    @property
    def is_limited(self) -> bool:
        """Whether it has a limit for which what it does is counted."""
        return self.max_live_agents is not None or self.creates_per_second is not None

    def cut_ttl(self, ttl: int) -> int:
        """How long a token lives that is to live for `ttl` seconds."""
        return ttl if self.max_ttl is None else min(ttl, self.max_ttl)

    @property
    def token_scopes(self) -> tuple[str, ...]:
        """What its own tokens may do."""
        return (*TOKEN_SCOPES, REPORT_SCOPE) if self.reports_for else TOKEN_SCOPES

    def accepts(self, secret_hash: bytes, now: float) -> bool:
        """Whether this is the fingerprint of a secret that works now. Takes the same time whatever is compared."""
        current = hmac.compare_digest(self.secret_hash, secret_hash)
        previous = hmac.compare_digest(self.previous_secret_hash, secret_hash) and now < self.previous_secret_until
        return (current or previous) and self.is_active

    def uncovered_audience(self, audience: Iterable[str], default: Iterable[str]) -> tuple[str, ...]:
        """Those in `audience` whom its agents' tokens may not be for. `default`: whom any agent's token may be for."""
        allowed = {*self.audiences, *default}
        return tuple(name for name in audience if name not in allowed)

    def listed_audience(self, audience: Iterable[str], default: Iterable[str]) -> tuple[str, ...]:
        """`audience`, each as it is listed where it is: a URL without a path may end with a slash, or not."""
        allowed = {*self.audiences, *default}
        return tuple(
            next((spelled for spelled in target_uri.spellings(name) if spelled in allowed), name) for name in audience
        )


def check_name(name: str) -> str:
    """`name`, if an app can have it.

    Raises:
        InvalidRequest: it cannot.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(
            "name is not an app name",
            hint="2 to 64 characters: a lowercase letter, then lowercase letters, digits and hyphens",
        )
    return name
