"""The broker's signing keys, as they are stored: wrapped, and bound to their name, purpose and state."""

from enum import StrEnum

import msgspec


class KeyPurpose(StrEnum):
    """What a key signs. A key signs one kind of thing."""

    ACCESS_TOKEN = "access_token"


class KeyState(StrEnum):
    """Where a key is in its life."""

    NEXT = "next"
    """Published, so that verifiers know it before it signs."""
    ACTIVE = "active"
    """Signs."""
    RETIRED = "retired"
    """Verifies until the last token that it signed is over."""
    GONE = "gone"
    """Neither signs nor verifies."""


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key pair. `wrapped` is the private half under the master key; times are Unix seconds."""

    kid: str
    purpose: KeyPurpose
    state: KeyState
    public_key: bytes
    wrapped: bytes
    created_at: int
