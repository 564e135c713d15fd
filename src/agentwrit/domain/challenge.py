"""Self-authenticating challenges (nonces): issuing one keeps no state.

A nonce is the lowercase hex of version(1) ‖ Unix seconds(4) ‖ random(11) ‖ HMAC-SHA-256 of these, truncated to 16
bytes. It is fresh for 30 seconds. The store keeps the bytes of used nonces and rejects reuse.
"""

import hmac
import re
from typing import Final

from agentwrit.domain.errors import InvalidChallenge

LIFETIME_SECONDS: Final = 30
RANDOM_BYTES: Final = 11
LENGTH: Final = 64  # characters

_VERSION = b"\x01"
_TAG_BYTES = 16
_HEX = re.compile(rf"[0-9a-f]{{{LENGTH}}}")


def mint(key: bytes, now: float, random: bytes) -> str:
    """Create a nonce. `now`: Unix seconds; `random`: 11 bytes from a CSPRNG; `key`: the broker's nonce key."""
    body = _VERSION + int(now).to_bytes(4, "big") + random
    return (body + _tag(key, body)).hex()


def verify(key: bytes, nonce: str, now: float) -> bytes:
    """Return the 32 bytes of a nonce if the broker issued it and it is fresh.

    Raises:
        InvalidChallenge: the nonce is malformed, not from this broker, or not fresh.
    """
    if _HEX.fullmatch(nonce) is None:
        raise InvalidChallenge(f"the nonce is not {LENGTH} lowercase hex characters")
    raw = bytes.fromhex(nonce)
    body, tag = raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
    if not hmac.compare_digest(tag, _tag(key, body)):
        raise InvalidChallenge("the nonce is not ours")
    if body[:1] != _VERSION:
        raise InvalidChallenge("the nonce has an unknown version")
    age = now - int.from_bytes(body[1:5], "big")
    if not -1 < age < LIFETIME_SECONDS:
        raise InvalidChallenge("the nonce is not fresh")
    return raw


def expires_at(nonce: bytes) -> int:
    """The time (Unix seconds) from which a nonce is no longer fresh, and its use need not be remembered."""
    return int.from_bytes(nonce[1:5], "big") + LIFETIME_SECONDS


def _tag(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")[:_TAG_BYTES]
