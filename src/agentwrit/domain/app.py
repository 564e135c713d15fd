"""Apps: OAuth clients that create agents. Each has a ceiling that none of its agents may exceed.

The rules:

- A client secret is 256 random bits, shown once and stored only as SHA-256. After a rotation, the old secret and the
  app tokens issued on it remain valid until the overlap ends.
- Tokens of an app's agents may be for the app's `audiences` and for the broker's default audience, and no others.
- An app may report how tokens for an audience in `reports_for` were used (`agentwrit.domain.access`).
- If an app has `requires_binding`, its agents' tokens are bound to their keys (RFC 9449). No others are issued or
  renewed.
- The rules for limits are in `agentwrit.domain.limits`.
- A suspended app can do nothing, and all grants that came through it have ended. A resumed app starts afresh with the
  same secret: launch tokens from before the suspension stay invalid.
- Deregistration is final. The app's name may be reused, its ids may not.
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
    """The state of an app."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    """The app can do nothing until an operator resumes it."""
    INACTIVE = "inactive"
    """The app was deregistered, which is final."""


class App(msgspec.Struct, frozen=True, kw_only=True):
    """A registered app. Times are Unix seconds, `token_ttl` is in seconds, secrets are SHA-256 fingerprints.

    `revision` counts the app's states from 1; it is 0 if the app was last changed before revisions existed.
    `max_ttl` (seconds, of its agents' tokens), `max_live_agents` and `creates_per_second` are None if the app has no
    such limit. `suspensions`: how often the app was suspended.
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
        """Whether the app has a limit that requires its usage to be counted."""
        return self.max_live_agents is not None or self.creates_per_second is not None

    def cut_ttl(self, ttl: int) -> int:
        """The lifetime of an agent's token for which `ttl` seconds were requested."""
        return ttl if self.max_ttl is None else min(ttl, self.max_ttl)

    @property
    def token_scopes(self) -> tuple[str, ...]:
        """The scopes of the app's own tokens."""
        return (*TOKEN_SCOPES, REPORT_SCOPE) if self.reports_for else TOKEN_SCOPES

    def accepts(self, secret_hash: bytes, now: float) -> bool:
        """Whether this is the fingerprint of a secret that is valid now. Compares in constant time."""
        current = hmac.compare_digest(self.secret_hash, secret_hash)
        previous = hmac.compare_digest(self.previous_secret_hash, secret_hash) and now < self.previous_secret_until
        return (current or previous) and self.is_active

    def uncovered_audience(self, audience: Iterable[str], default: Iterable[str]) -> tuple[str, ...]:
        """The members of `audience` that its agents' tokens may not have. `default`: allowed for all agents."""
        allowed = {*self.audiences, *default}
        return tuple(name for name in audience if name not in allowed)

    def listed_audience(self, audience: Iterable[str], default: Iterable[str]) -> tuple[str, ...]:
        """`audience`, spelled as it is listed: a URL without a path may end with a slash or not."""
        allowed = {*self.audiences, *default}
        return tuple(
            next((spelled for spelled in target_uri.spellings(name) if spelled in allowed), name) for name in audience
        )


def check_name(name: str) -> str:
    """Return `name` if it is a valid app name.

    Raises:
        InvalidRequest: `name` is not valid.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(
            "name is not an app name",
            hint="2 to 64 characters: a lowercase letter, then lowercase letters, digits and hyphens",
        )
    return name
