"""The broker's signing keys, as they are stored: wrapped, and bound to their name, purpose and state.

The rules:

- Of each purpose one key is active: it signs. One is next: it is published, so that verifiers know it before it signs.
- Rotation makes the next key active and the active one retired. It waits until the next key has been published for as
  long as verifiers may keep what was published, unless it is forced.
- A retired key has lost its private half. It verifies until the last token that it can have signed is over; then it is
  gone, and is published no more.
- A key that was revoked is gone at once, and all that it signed is dead: see `agentwrit.domain.revocation`.
"""

from enum import StrEnum
from typing import Final

import msgspec

PUBLISHED_SECONDS: Final = 300
"""How long verifiers may keep the published keys: the max-age of the JWK Set."""


class KeyPurpose(StrEnum):
    """What a key signs. A key signs one kind of thing."""

    ACCESS_TOKEN = "access_token"
    """Access tokens, and the delegations in them."""
    REVOCATION_FEED = "revocation_feed"
    AUDIT_CHECKPOINT = "audit_checkpoint"
    """Checkpoints of the audit log. Auditors hold these keys by hand, so they are rotated by hand alone."""


class KeyState(StrEnum):
    """Where a key is in its life."""

    NEXT = "next"
    ACTIVE = "active"
    RETIRED = "retired"
    GONE = "gone"


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key pair. `wrapped` is the private half under the master key, empty once it signs no more.

    Times are Unix seconds, 0 where they do not apply. `verifies_until`: when a retired key is gone.
    """

    kid: str
    purpose: KeyPurpose
    state: KeyState
    public_key: bytes
    wrapped: bytes
    created_at: int
    active_since: int = 0
    verifies_until: int = 0
    revoked_at: int = 0

    @property
    def is_published(self) -> bool:
        return self.state is not KeyState.GONE

    def is_known_to_verifiers(self, now: float) -> bool:
        """Whether it has been published for so long that no verifier holds keys without it."""
        return now >= self.created_at + PUBLISHED_SECONDS


def retired(key: StoredKey, *, verifies_until: int) -> StoredKey:
    """The key after it has signed for the last time."""
    return msgspec.structs.replace(key, state=KeyState.RETIRED, wrapped=b"", verifies_until=verifies_until)


def gone(key: StoredKey, *, revoked_at: int = 0) -> StoredKey:
    """The key after its end; `revoked_at` (Unix seconds) if it did not end by itself."""
    return msgspec.structs.replace(key, state=KeyState.GONE, wrapped=b"", revoked_at=revoked_at)
