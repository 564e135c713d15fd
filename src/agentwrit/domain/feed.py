"""The revocation feed: the signed list of revocations, for verifiers that do not ask the broker for each token.

The rules:

- Each entry of the feed has a number. Numbers grow with commits. An entry names what was revoked by its kind (jti, sid,
  kid) and the SHA-256 of its id, so whoever holds a token can tell whether it is meant, and nobody else learns an id.
  The entry says from when on the revocation applies, and when the entry may be forgotten, because every token that it
  can affect has expired by then.
- A page covers the numbers `first` to `last` without gaps, except that entries that may be forgotten are left out.
  `head` is the newest number when the page was issued. A page without entries is a heartbeat: `first` is `last` + 1.
- A snapshot has all entries up to `head` that may not be forgotten yet. New verifiers begin with it.
- `iss` is the issuer of the tokens that the feed is about.
- `epoch` names the history that the numbers belong to. After a page of another epoch, a verifier must discard what it
  knows and fetch a snapshot.
- Pages and snapshots are signed (JWS), each kind with its own type, so anybody may relay them. A verifier is fresh as
  of a page's `issued_at` if it has all entries up to the page's `head`. An old page makes no verifier fresh.
- A full page ends at a multiple of 512. It never changes again, except that entries that may be forgotten can be left
  out.
- `log` states where the broker's audit log ended when the page was read, with a digest of the log up to there. `since`
  states the same for earlier places. Every revocation is an event, so a verifier that knows one of these places from an
  earlier page can tell whether this page continues the same history. A number alone does not suffice: a database that
  lost its last commits gives out their numbers again. A place that was archived has an empty digest. A place that the
  log does not have yet is left out.
- `nonce` is in a page that was requested with one. It proves that the page was made after the request, independently of
  clocks (as RFC 8954 does for OCSP).
- Readers ignore unknown members.
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
MAX_PAGE_BYTES: Final = 256 * 1024  # more than twice the size of the largest page
MAX_SNAPSHOT_BYTES: Final = 256 * 1024 * 1024  # some three million entries

PIECE_ENTRIES: Final = 4096
"""Entries of a snapshot that are encoded per call."""

_NO_ENTRIES: Final = b'"entries":[]'
_PLACE: Final = b"agentwrit-log-place-v1\n"


class FeedEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A revocation in the feed. Times are Unix seconds; `digest`: base64url SHA-256 of the revoked id."""

    kind: RevocationKind
    digest: str
    effective_at: int
    forget_at: int


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A place in the audit log: the number of an event, and a digest of the log up to it, "" if it was archived."""

    number: int
    digest: str


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the feed. `issued_at`: Unix seconds."""

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
    """All revocations up to the entry `head` that may not be forgotten yet."""

    iss: str
    epoch: str
    head: int
    issued_at: int
    entries: tuple[FeedEntry, ...] = ()
    log: Place | UnsetType = UNSET


def place(number: int, event_hash: str | None) -> Place:
    """The place of the event with this number. `event_hash`: its hash; None if the event was archived.

    The feed is public and the audit log is not, so the digest does not reveal the hash.
    """
    if event_hash is None:
        return Place(number, "")
    return Place(number, base64url.encode(hashlib.sha256(_PLACE + event_hash.encode("ascii")).digest()))


def digest(name: str) -> str:
    """The digest by which the feed names this id."""
    return base64url.encode(hashlib.sha256(name.encode("utf-8")).digest())


def entry(revocation: Revocation) -> FeedEntry:
    """A revocation as an entry of the feed."""
    return FeedEntry(revocation.kind, digest(revocation.id), revocation.effective_at, revocation.last_exp)


def entries(revocations: Iterable[Revocation]) -> tuple[FeedEntry, ...]:
    """The public revocations as entries of the feed. Those of other kinds are for brokers only, and are left out."""
    return tuple(entry(revocation) for revocation in revocations if revocation.kind in PUBLIC_KINDS)


def page_end(first: int) -> int:
    """The last number of the page that begins with `first`, once it is full."""
    return -(-first // PAGE_SIZE) * PAGE_SIZE


def sign_page(page: Page, signer: Signer) -> str:
    return sign(msgspec.json.encode(page), signer, typ=REVOCATION_PAGE)


def sign_snapshot(snapshot: Snapshot, signer: Signer) -> str:
    """Encodes entries in pieces: there may be millions, and each call holds the interpreter lock until it returns."""
    entries, encode = snapshot.entries, msgspec.json.encode
    pieces = [encode(entries[at : at + PIECE_ENTRIES])[1:-1] for at in range(0, len(entries), PIECE_ENTRIES)]
    around = encode(msgspec.structs.replace(snapshot, entries=()))
    before, _, after = around.partition(_NO_ENTRIES)
    return sign(b'%b"entries":[%b]%b' % (before, b",".join(pieces), after), signer, typ=REVOCATION_SNAPSHOT)


def read_page(token: str, verifier: Verifier) -> Page:
    """Verify and read a page. `verifier`: with the feed's keys, for the type REVOCATION_PAGE.

    Raises:
        InvalidToken: the page is not genuine or is malformed.
    """
    page = _read(token, verifier, Page)
    if not 0 <= page.first - 1 <= page.last <= page.head:
        raise InvalidToken("the numbers of the page make no sense")
    return page


def read_snapshot(token: str, verifier: Verifier) -> Snapshot:
    """Verify and read a snapshot. `verifier`: with the feed's keys, for the type REVOCATION_SNAPSHOT.

    Raises:
        InvalidToken: the snapshot is not genuine or is malformed.
    """
    return _read(token, verifier, Snapshot)


def _read(token: str, verifier: Verifier, of: type[T]) -> T:
    _, payload = verifier.verify(token)
    try:
        return msgspec.json.decode(payload, type=of)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidToken("this is no part of a revocation feed") from None
