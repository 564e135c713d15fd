"""Exports of the audit log, which an auditor can verify with nothing but the log's public key.

The rules:

- An export consists of lines of RFC 8785 JSON. The first line is the header: the checkpoint of the log, and where the
  export begins (behind the event `after`, which has the hash `prev_hash` and at which the tree's right edge is `edge`).
- All events up to the size of the checkpoint follow, as the broker shows them, in order and without gaps. Nothing
  comes after them.
- An export that ends earlier is an archive (`agentwrit.domain.audit_archive`). Its header names the last event (`last`)
  and has a proof that the log of the checkpoint continues the archive (`proof`).
- Each line has exactly one valid encoding. If any byte of an export is changed, verification fails.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from agentwrit.domain import audit, canonical, checkpoint, merkle
from agentwrit.domain.audit import Head
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.note import VerifierKey

FORMAT: Final = "agentwrit-audit-export-v1"
ARCHIVE_FORMAT: Final = "agentwrit-audit-archive-v1"
PROGRESS_EVENTS: Final = 1024
MAX_LINE_BYTES: Final = 256 * 1024
"""An event has up to `audit.MAX_ENTRY_BYTES` and its hash; a header has a note of 64 KiB, the edge and a proof."""

Progress = Callable[[int, int], None]
"""A callback that receives how many events are done, and how many there are in total."""


_ID: Final = b',"id":"evt-'
_read_record = msgspec.json.Decoder(dict[str, object]).decode


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: str
    checkpoint: str
    after: int
    prev_hash: str
    edge: list[str]
    last: int | None = None
    proof: list[str] | None = None


class Ending(NamedTuple):
    """The end of an archive: its last event, and the proof that the log of its checkpoint continues it."""

    last: int
    proof: Sequence[bytes]


class Verified(NamedTuple):
    """The events that were verified: those behind `start`, up to `end`, in the log of `checkpoint`."""

    start: Head
    end: Head
    checkpoint: Checkpoint

    @property
    def size(self) -> int:
        """The number of verified events."""
        return self.end.sequence - self.start.sequence


def unwatched(done: int, total: int) -> None:
    """A Progress that does nothing."""


def write(
    signed: str,
    entries: Iterable[bytes],
    *,
    start: Head = audit.Head(),  # noqa: B008  # an immutable value
    ending: Ending | None = None,
) -> Iterator[bytes]:
    """The lines of an export, or of an archive if `ending` is given.

    `signed`: the checkpoint; `entries`: the entries from `start` to the checkpoint's size, or to the ending.
    """
    yield header(signed, start, ending)
    yield from map(line, entries)


def line(entry: bytes) -> bytes:
    """The line of an event."""
    # `hash` sorts directly before `id`. Quotation marks are escaped inside strings, so this finds the member itself.
    at = entry.rindex(_ID) + 1
    return b'%b"hash":"%b",%b\n' % (entry[:at], hashlib.sha256(entry).hexdigest().encode(), entry[at:])


def entry(text: bytes) -> bytes:
    """The entry of the event in a line.

    Raises:
        TamperedRecord: the line does not contain an event.
    """
    try:
        record = _read_record(text)
        record.pop("hash", None)
        return canonical.encode_plain(record)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise TamperedRecord("a line holds no event") from None


def verify(lines: Iterable[bytes], keys: Iterable[VerifierKey], *, progress: Progress = unwatched) -> Verified:
    """Verify an export or an archive. `lines`: each with its line feed.

    Raises:
        TamperedRecord: the export is not as the broker signed it. The error names the first event that is wrong.
    """
    rest = iter(lines)
    signed, start, ending = _read_header(next(rest, b""))
    covered = checkpoint.read(signed, keys)
    last = covered.size if ending is None else ending.last
    replay = audit.Replay(start)
    for text in rest:
        if replay.sequence == last:
            raise TamperedRecord(f"there is more than the checkpoint covers, behind {audit.event_id(last)}")
        _take(replay, text)
        if replay.sequence % PROGRESS_EVENTS == 0:
            progress(replay.sequence - start.sequence, last - start.sequence)
    if ending is None:
        replay.check_covered(covered.size, covered.root)
    else:
        replay.check_continued(ending.last, covered.size, covered.root, ending.proof)
    return Verified(start, replay.head, covered)


def check_joined(before: Verified, then: Verified) -> None:
    """Check that the export or archive `then` begins where `before` ends.

    Raises:
        TamperedRecord: it begins elsewhere.
    """
    if then.start == before.end:
        return
    ends, begins = audit.event_id(before.end.sequence), audit.event_id(then.start.sequence + 1)
    if then.start.sequence == before.end.sequence:
        raise TamperedRecord(f"{begins} does not follow {ends}: they are of two histories")
    raise TamperedRecord(f"{begins} does not follow {ends}: a file is missing, or they are not in their order")


def _line(members: dict[str, object]) -> bytes:
    return canonical.encode_plain(members) + b"\n"


def header(signed: str, start: Head, ending: Ending | None = None) -> bytes:
    """The first line of an export or archive."""
    members: dict[str, object] = {
        "format": FORMAT if ending is None else ARCHIVE_FORMAT,
        "checkpoint": signed,
        "after": start.sequence,
        "prev_hash": start.hash,
        "edge": _encoded(start.tree.tiles),
    }
    if ending is not None:
        members |= {"last": ending.last, "proof": _encoded(ending.proof)}
    return _line(members)


def _encoded(values: Iterable[bytes]) -> list[str]:
    return [base64.b64encode(value).decode("ascii") for value in values]


def _decoded(texts: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(base64.b64decode(text, validate=True) for text in texts)


def _read_header(text: bytes) -> tuple[str, Head, Ending | None]:
    """The checkpoint, where the file begins, and the ending if it is an archive."""
    try:
        found = msgspec.json.decode(text, type=_Header)
        edge = merkle.Edge(found.after, _decoded(found.edge))
        ending = None if found.last is None else Ending(found.last, _decoded(found.proof or ()))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise TamperedRecord("the first line is not the header of an export") from None
    widths = [len(hashes) for hashes in edge.tiles]
    expected = [(found.after >> (8 * level)) % merkle.TILE_WIDTH * merkle.HASH_BYTES for level in range(len(widths))]
    is_whole = widths == expected and found.after >> (8 * len(widths)) == 0 and widths
    start = Head(found.prev_hash, edge)
    if not is_whole or text != header(found.checkpoint, start, ending):
        raise TamperedRecord("the first line is not the header of an export")
    return found.checkpoint, start, ending


def _take(replay: audit.Replay, text: bytes) -> None:
    """Check the event in a line as the next one of the log."""
    expected = audit.event_id(replay.sequence + 1)
    try:
        record = _read_record(text)
        is_canonical = text == _line(record)
        claimed, prev_hash = record.pop("hash", None), record.get("prev_hash")
        sequence, form = audit.parse_event_id(str(record.get("id"))), canonical.encode_plain(record)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise TamperedRecord(f"{expected} was altered: it is no event") from None
    if not isinstance(claimed, str) or not isinstance(prev_hash, str):
        raise TamperedRecord(f"{expected} was altered: it is no event")
    replay.take(form, sequence, prev_hash, claimed)
    if not is_canonical:
        raise TamperedRecord(f"{expected} was altered: it is not written as it was")
