"""Launch tokens: short-lived secrets that let their holder register agents with at most a given scope.

The rules:

- A launch token is 256 random bits, shown once as 64 hex characters and stored only as SHA-256.
- It lives for seconds, and registers one agent unless its policy says otherwise.
- It allows no more than the app's ceiling at its creation, and registration checks the ceiling again.
- It ends when its app is suspended, and stays invalid when the app is resumed.
- A refused registration does not consume it.
"""

import hashlib
from typing import Final

import msgspec

SECRET_BYTES: Final = 32
DEFAULT_TTL_SECONDS: Final = 30
MAX_TTL_SECONDS: Final = 86_400


class LaunchToken(msgspec.Struct, frozen=True, kw_only=True):
    """A stored launch token and its policy. Times are Unix seconds.

    `max_ttl`: the longest lifetime of the agents' tokens, in seconds; `max_uses`: 0 for any number of registrations
    while the launch token lives; `app_id` and `client_id`: empty if an operator created it; `is_bound`: whether the
    agents' tokens are bound to their keys; `suspensions`: how often the app had been suspended when the launch token
    was created.
    """

    token_hash: bytes
    app_id: str
    client_id: str
    agent_name: str
    allowed_scope: tuple[str, ...]
    audience: tuple[str, ...]
    max_ttl: int
    max_uses: int
    uses: int
    created_at: int
    expires_at: int
    is_bound: bool = False
    suspensions: int = 0

    def is_usable(self, now: float) -> bool:
        return now < self.expires_at and (self.max_uses == 0 or self.uses < self.max_uses)


def fingerprint(secret: str) -> bytes:
    """The stored form of a random secret, which recognises the secret but does not reveal it.

    The secrets have 256 random bits and, unlike passwords, cannot be guessed, so a fast hash suffices.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def used(token: LaunchToken) -> LaunchToken:
    """The launch token after one more registration."""
    return msgspec.structs.replace(token, uses=token.uses + 1)
