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
- `log` says where the broker's audit log ended when the page was read, and by a digest what its events are up to
  there; `since` says the same of earlier places. What dies is an event, so whoever knows one of these places, by a page
  from before, can tell whether this page goes on from the same history. A number alone does not tell: a database that
  lost its last commits gives their numbers again. A place that was archived has an empty digest; one that the log does
  not have yet is left out.
- `nonce` is in a page that was asked for with one: the page was made after the question, whatever any clock says
  (as RFC 8954 has it for OCSP).
- Readers ignore members that they do not know.
"""

import hashlib
from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from agentwrit.domain import base64url
from agentwrit.domain.errors import InvalidToken
from agentwrit.domain.jws import REVOCATION_PAGE, REVOCATION_SNAPSHOT, Signer, Verifier, sign
from agentwrit.domain.revocation import PUBLIC_KINDS, Revocation, RevocationKind

T = TypeVar("T", "Page", "Snapshot")

PAGE_SIZE: Final = 512
HEARTBEAT_SECONDS: Final = 1
MAX_PLACES: Final = 64  # in `since`
MAX_PAGE_BYTES: Final = 256 * 1024  # more than twice what the largest page has
MAX_SNAPSHOT_BYTES: Final = 256 * 1024 * 1024  # of some three million entries

PIECE_ENTRIES: Final = 4096
"""Entries of a snapshot that are encoded at once."""

_NO_ENTRIES: Final = b'"entries":[]'
_PLACE: Final = b"agentwrit-log-place-v1\n"


class FeedEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What died, from when on, and when that may be forgotten (Unix seconds). `digest`: base64url SHA-256 of its id."""

    kind: RevocationKind
    digest: str
    effective_at: int
    forget_at: int


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A place in the audit log: the number of an event, and a digest of the log up to it; "" where that is archived."""

    number: int
    digest: str


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the feed. `issued_at`: Unix seconds."""

    iss: str
    epoch: str
    first: int
    last: int
    head: int
    issued_at: int
    entries: tuple[FeedEntry, ...] = ()
    log: Place | UnsetType = UNSET
    since: tuple[Place, ...] | UnsetType = UNSET
    nonce: str | UnsetType = UNSET


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that is dead and cannot be forgotten yet, up to the entry `head`."""

    iss: str
    epoch: str
    head: int
    issued_at: int
    entries: tuple[FeedEntry, ...] = ()
    log: Place | UnsetType = UNSET


def place(number: int, event_hash: str | None) -> Place:
    """The place of the event of this number, whose hash is in the audit log; None where the log no longer says it.

    The feed is everybody's, and the log is not: its hashes stay in the house.
    """
    if event_hash is None:
        return Place(number, "")
    return Place(number, base64url.encode(hashlib.sha256(_PLACE + event_hash.encode("ascii")).digest()))


def digest(name: str) -> str:
    """How the feed names the thing of this id."""
    return base64url.encode(hashlib.sha256(name.encode("utf-8")).digest())


def entry(revocation: Revocation) -> FeedEntry:
    """A revocation as the feed shows it."""
    return FeedEntry(revocation.kind, digest(revocation.id), revocation.effective_at, revocation.last_exp)


def entries(revocations: Iterable[Revocation]) -> tuple[FeedEntry, ...]:
    """Revocations as the feed shows them, without those that are the brokers' own."""
    return tuple(entry(revocation) for revocation in revocations if revocation.kind in PUBLIC_KINDS)


def page_end(first: int) -> int:
    """The number that the page which begins with `first` ends with, once it is full."""
    return -(-first // PAGE_SIZE) * PAGE_SIZE


def sign_page(page: Page, signer: Signer) -> str:
    return sign(msgspec.json.encode(page), signer, typ=REVOCATION_PAGE)


def sign_snapshot(snapshot: Snapshot, signer: Signer) -> str:
    """Encodes a piece at a time: a call keeps all other threads waiting until it is done, and there may be millions."""
    entries, encode = snapshot.entries, msgspec.json.encode
    pieces = [encode(entries[at : at + PIECE_ENTRIES])[1:-1] for at in range(0, len(entries), PIECE_ENTRIES)]
    around = encode(msgspec.structs.replace(snapshot, entries=()))
    before, _, after = around.partition(_NO_ENTRIES)
    return sign(b'%b"entries":[%b]%b' % (before, b",".join(pieces), after), signer, typ=REVOCATION_SNAPSHOT)


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
