"""Safe retries (Idempotency-Key): a request that is sent twice is carried out once, and both get the same response.

The rules:

- A key is 1 to 128 visible ASCII characters. It belongs to one caller and one route, for 10 minutes.
- The same key with the same body returns the first response again. No token is stored for this: the token is signed
  again from the grant, and the same claims and signing key give the same token.
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
    """The stored response to a request: the grant as it was made, or the receipt for reported accesses.

    `key` and `request` are SHA-256 digests; `expires_at`: Unix seconds.
    """

    key: bytes
    request: bytes
    grant: Grant | None = None
    expires_at: int
    receipt: Receipt | None = None


class RequestIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of a request. `key`: digest of the route, caller and key; `request`: digest of the body."""

    key: bytes
    request: bytes

    def answered(self, answer: Grant | Receipt, now: float) -> FirstAnswer:
        """The response to be stored."""
        expires_at = int(now) + RETENTION_SECONDS
        if isinstance(answer, Receipt):
            return FirstAnswer(key=self.key, request=self.request, receipt=answer, expires_at=expires_at)
        return FirstAnswer(key=self.key, request=self.request, grant=answer, expires_at=expires_at)

    def check_same(self, first: FirstAnswer) -> None:
        """Check that the stored response was to the same request.

        Raises:
            Conflict: the key was used with another body.
        """
        if first.request != self.request:
            raise Conflict("this Idempotency-Key was used with another body", hint="use a fresh key for a new request")


def identify(key: str, *, route: str, caller: str, body: Mapping[str, object]) -> RequestIdentity:
    """The identity of a request with an Idempotency-Key. `caller`: must be the same for each retry.

    Raises:
        InvalidRequest: the key is malformed.
    """
    if _KEY.fullmatch(key) is None:
        raise InvalidRequest("Idempotency-Key takes 1 to 128 visible ASCII characters")
    return RequestIdentity(key=_digest([route, caller, key]), request=_digest(body))


def _digest(value: object) -> bytes:
    return hashlib.sha256(canonical.encode(value)).digest()
