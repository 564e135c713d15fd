"""The broker's signing keys as stored: encrypted, and bound to their name, purpose and state.

The rules:

- Each purpose has one active key, which signs, and one next key, which is published so that verifiers know it before it
  signs.
- Rotation makes the next key active and the active key retired. Unless forced, it waits until the next key has been
  published for as long as verifiers may cache the published keys.
- A retired key has no private half. It verifies until the last token that it can have signed has expired. Then it is
  gone, and no longer published.
- A revoked key is gone at once, and everything that it signed is dead: see `agentwrit.domain.revocation`.
"""

from enum import StrEnum
from typing import Final

import msgspec

PUBLISHED_SECONDS: Final = 300
"""How long verifiers may cache the published keys: the max-age of the JWK Set."""


class KeyPurpose(StrEnum):
    """What a key signs. Each key has exactly one purpose."""

    ACCESS_TOKEN = "access_token"
    """Access tokens, and the delegations in them."""
    REVOCATION_FEED = "revocation_feed"
    AUDIT_CHECKPOINT = "audit_checkpoint"
    """Checkpoints of the audit log. Auditors keep copies of these keys, so they are only rotated manually."""


class KeyState(StrEnum):
    """The state of a key."""

    NEXT = "next"
    ACTIVE = "active"
    RETIRED = "retired"
    GONE = "gone"


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key pair. Times are Unix seconds; 0 means not applicable.

    `wrapped`: the private half, encrypted under the master key, empty once the key no longer signs; `verifies_until`:
    when a retired key is gone.
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
        """Whether it has been published for so long that no verifier may still have a cached key set without it."""
        return now >= self.created_at + PUBLISHED_SECONDS


def retired(key: StoredKey, *, verifies_until: int) -> StoredKey:
    """The key in the state RETIRED, without its private half."""
    return msgspec.structs.replace(key, state=KeyState.RETIRED, wrapped=b"", verifies_until=verifies_until)


def gone(key: StoredKey, *, revoked_at: int = 0) -> StoredKey:
    """The key in the state GONE. `revoked_at`: Unix seconds, if it was revoked."""
    return msgspec.structs.replace(key, state=KeyState.GONE, wrapped=b"", revoked_at=revoked_at)
