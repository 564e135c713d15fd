"""The revocation feed: what has died, for verifiers that do not ask the broker.

The rules:

- Every entry of the feed has a number; numbers grow by commit. An entry names what died by its kind (jti, sid, kid) and
  the SHA-256 of its id: whoever holds a token can tell whether it is meant, nobody else learns a name. It says from
  when on it is dead, and when it may be forgotten, because then no token that it can touch is unexpired.
- A page covers the numbers `first` to `last` without a gap; entries that may be forgotten are left out of it. `head` is
  the number of the newest entry when the page was issued. A page without entries is a heartbeat: `first` is `last` + 1.
- A snapshot has all entries up to `head` that may not be forgotten yet: where a newcomer begins.
- `iss` is the issuer of the tokens that the feed is about.
- `epoch` names the history that the numbers belong to. A page of another epoch makes all that is known worthless: begin
  again with a snapshot.
- Pages and snapshots are signed (JWS), each with a type of its own, so anybody may pass them on. Fresh is who has all
  up to the `head` of a page, as of its `issued_at`: an old page, passed on late, makes nobody look fresh.
- A full page ends at a multiple of 512. It never changes again, but that entries which may be forgotten can be missing.
"""

import hashlib
from typing import Final, TypeVar

import msgspec

from agentwrit.domain import base64url
from agentwrit.domain.errors import InvalidToken
from agentwrit.domain.jws import REVOCATION_PAGE, REVOCATION_SNAPSHOT, Signer, Verifier, sign
from agentwrit.domain.revocation import Revocation, RevocationKind

T = TypeVar("T", "Page", "Snapshot")

PAGE_SIZE: Final = 512
HEARTBEAT_SECONDS: Final = 1


class FeedEntry(msgspec.Struct, frozen=True, array_like=True):
    """What died, from when on, and when that may be forgotten (Unix seconds). `digest`: base64url SHA-256 of its id."""

    kind: RevocationKind
    digest: str
    effective_at: int
    forget_at: int


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the feed. `issued_at`: Unix seconds."""

    iss: str
    epoch: str
    first: int
    last: int
    head: int
    issued_at: int
    entries: tuple[FeedEntry, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that is dead and cannot be forgotten yet, up to the entry `head`."""

    iss: str
    epoch: str
    head: int
    issued_at: int
    entries: tuple[FeedEntry, ...] = ()


def digest(name: str) -> str:
    """How the feed names the thing of this id."""
    return base64url.encode(hashlib.sha256(name.encode("utf-8")).digest())


def entry(revocation: Revocation) -> FeedEntry:
    """A revocation as the feed shows it."""
    return FeedEntry(revocation.kind, digest(revocation.id), revocation.effective_at, revocation.last_exp)


def page_end(first: int) -> int:
    """The number that the page which begins with `first` ends with, once it is full."""
    return -(-first // PAGE_SIZE) * PAGE_SIZE


def sign_page(page: Page, signer: Signer) -> str:
    return sign(msgspec.json.encode(page), signer, typ=REVOCATION_PAGE)


def sign_snapshot(snapshot: Snapshot, signer: Signer) -> str:
    return sign(msgspec.json.encode(snapshot), signer, typ=REVOCATION_SNAPSHOT)


def read_page(token: str, verifier: Verifier) -> Page:
    """A page, if it is genuine. `verifier`: of the feed's keys, for the type REVOCATION_PAGE.

    Raises:
        InvalidToken: it is not.
    """
    page = _read(token, verifier, Page)
    if not 0 <= page.first - 1 <= page.last <= page.head:
        raise InvalidToken("the numbers of the page make no sense")
    return page


def read_snapshot(token: str, verifier: Verifier) -> Snapshot:
    """A snapshot, if it is genuine. `verifier`: of the feed's keys, for the type REVOCATION_SNAPSHOT.

    Raises:
        InvalidToken: it is not.
    """
    return _read(token, verifier, Snapshot)


def _read(token: str, verifier: Verifier, of: type[T]) -> T:
    _, payload = verifier.verify(token)
    try:
        return msgspec.json.decode(payload, type=of)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidToken("this is no part of a revocation feed") from None
