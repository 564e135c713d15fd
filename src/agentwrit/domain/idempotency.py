"""Safe retries: the same request made twice is done once, and answered twice (Idempotency-Key).

The rules:

- A key is 1 to 128 visible ASCII characters, and belongs to one caller at one route for 10 minutes.
- The same key with the same body gets the first answer again. No token is kept for that: it is signed anew from what
  was granted, and the same claims and key give the same token.
- The same key with another body is refused.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from agentwrit.domain import canonical
from agentwrit.domain.access import Receipt
from agentwrit.domain.errors import Conflict, InvalidRequest
from agentwrit.domain.grant import Grant

RETENTION_SECONDS: Final = 600

_KEY = re.compile(r"[!-~]{1,128}")


class FirstAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a request was answered with: the grant as it was made, or the receipt for reported accesses.

    `key` and `request` are SHA-256 digests, `expires_at` is in Unix seconds.
    """

    key: bytes
    request: bytes
    grant: Grant | None = None
    expires_at: int
    receipt: Receipt | None = None


class RequestIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which request this is (`key`), and what it asks for (`request`)."""

    key: bytes
    request: bytes

    def answered(self, answer: Grant | Receipt, now: float) -> FirstAnswer:
        """The answer to be kept."""
        expires_at = int(now) + RETENTION_SECONDS
        if isinstance(answer, Receipt):
            return FirstAnswer(key=self.key, request=self.request, receipt=answer, expires_at=expires_at)
        return FirstAnswer(key=self.key, request=self.request, grant=answer, expires_at=expires_at)

    def check_same(self, first: FirstAnswer) -> None:
        """Refuse to answer one request with what was said to another.

        Raises:
            Conflict: the key was used with another body.
        """
        if first.request != self.request:
            raise Conflict("this Idempotency-Key was used with another body", hint="use a fresh key for a new request")


def identify(key: str, *, route: str, caller: str, body: Mapping[str, object]) -> RequestIdentity:
    """The identity of a request that came with an Idempotency-Key. `caller`: who asks, the same for each retry.

    Raises:
        InvalidRequest: the key is not one.
    """
    if _KEY.fullmatch(key) is None:
        raise InvalidRequest("Idempotency-Key takes 1 to 128 visible ASCII characters")
    return RequestIdentity(key=_digest([route, caller, key]), request=_digest(body))


def _digest(value: object) -> bytes:
    return hashlib.sha256(canonical.encode(value)).digest()
