"""Launch tokens: the right to register agents with at most a given scope, handed to whoever starts them.

The rules:

- It is 256 random bits, shown once as 64 hex characters and stored as SHA-256 only.
- It lives for seconds, and registers one agent unless its policy says otherwise.
- It allows no more than the app's ceiling did when it was made, and registration checks the ceiling again.
- It ends with a suspension of its app, and stays so when the app is resumed.
- A registration that is refused does not consume it.
"""

import hashlib
from typing import Final

import msgspec

SECRET_BYTES: Final = 32
DEFAULT_TTL_SECONDS: Final = 30
MAX_TTL_SECONDS: Final = 86_400


class LaunchToken(msgspec.Struct, frozen=True, kw_only=True):
    """A stored launch token and its policy. Times are Unix seconds; `max_ttl` is of the tokens it leads to.

    `max_uses` 0 means as often as wanted while it lives. `app_id` and `client_id` are empty for the operator's.
    `is_bound`: whether the tokens that it leads to are bound to their agent's key. `suspensions`: how often the app had
    been suspended when it was made.
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
    """What is stored of a random secret: enough to recognise it, useless to use it.

    The secrets have 256 random bits, so a fast hash is right: there is nothing to guess (unlike a password).
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def used(token: LaunchToken) -> LaunchToken:
    """The launch token after one more registration."""
    return msgspec.structs.replace(token, uses=token.uses + 1)
