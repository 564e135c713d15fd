"""Exports of the audit log: what an auditor is handed, and checks with the log's public key and nothing else.

The rules:

- An export is lines of RFC 8785 JSON. The first one is the header: the checkpoint of the log, and where the export
  begins (behind the event `after`, whose hash is `prev_hash` and up to where the tree's right edge was `edge`).
- Then comes every event up to the size of the checkpoint, as the broker shows it, in order and without a gap. Nothing
  follows.
- Each line has one spelling. An export in which any byte is another does not verify.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from agentwrit.domain import audit, canonical, checkpoint, merkle
from agentwrit.domain.audit import Head
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.note import VerifierKey

FORMAT: Final = "agentwrit-audit-export-v1"
PROGRESS_EVENTS: Final = 1024

Progress = Callable[[int, int], None]
"""Is told now and then how many events are done, and of how many."""


_ID: Final = b',"id":"evt-'
_read_record = msgspec.json.Decoder(dict[str, object]).decode


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: str
    checkpoint: str
    after: int
    prev_hash: str
    edge: list[str]


class Verified(NamedTuple):
    """What was shown to be genuine: the events behind `after`, up to the checkpoint's size."""

    after: int
    checkpoint: Checkpoint


def unwatched(done: int, total: int) -> None:
    """A Progress for nobody."""


def write(signed: str, entries: Iterable[bytes], *, start: Head = audit.Head()) -> Iterator[bytes]:  # noqa: B008
    """The lines of an export. `signed`: the checkpoint, `entries`: those from `start` to its size."""
    yield _header_line(signed, start)
    for entry in entries:
        # `hash` has its place before `id`, and in no string can a quotation mark stand alone: this is the member.
        at = entry.rindex(_ID) + 1
        yield b'%b"hash":"%b",%b\n' % (entry[:at], hashlib.sha256(entry).hexdigest().encode(), entry[at:])


def verify(lines: Iterable[bytes], keys: Iterable[VerifierKey], *, progress: Progress = unwatched) -> Verified:
    """Check an export, line by line; each with the new line at its end.

    Raises:
        TamperedRecord: it is not as the broker signed it. Names the first event that is wrong.
    """
    rest = iter(lines)
    header, start = _read_header(next(rest, b""))
    covered = checkpoint.read(header.checkpoint, keys)
    replay = audit.Replay(start)
    for line in rest:
        if replay.sequence == covered.size:
            raise TamperedRecord(f"there is more than the checkpoint covers, behind {audit.event_id(covered.size)}")
        _take(replay, line)
        if replay.sequence % PROGRESS_EVENTS == 0:
            progress(replay.sequence - start.sequence, covered.size - start.sequence)
    replay.check_covered(covered.size, covered.root)
    return Verified(start.sequence, covered)


def _line(members: dict[str, object]) -> bytes:
    return canonical.encode_plain(members) + b"\n"


def _header_line(signed: str, start: Head) -> bytes:
    edge = [base64.b64encode(hashes).decode("ascii") for hashes in start.tree.tiles]
    return _line(
        {"format": FORMAT, "checkpoint": signed, "after": start.sequence, "prev_hash": start.hash, "edge": edge}
    )


def _read_header(line: bytes) -> tuple[_Header, Head]:
    try:
        header = msgspec.json.decode(line, type=_Header)
        edge = merkle.Edge(header.after, tuple(base64.b64decode(hashes, validate=True) for hashes in header.edge))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise TamperedRecord("the first line is not the header of an export") from None
    widths = [len(hashes) for hashes in edge.tiles]
    expected = [(header.after >> (8 * level)) % merkle.TILE_WIDTH * merkle.HASH_BYTES for level in range(len(widths))]
    is_whole = widths == expected and header.after >> (8 * len(widths)) == 0 and widths
    start = Head(header.prev_hash, edge)
    if header.format != FORMAT or not is_whole or line != _header_line(header.checkpoint, start):
        raise TamperedRecord("the first line is not the header of an export")
    return header, start


def _take(replay: audit.Replay, line: bytes) -> None:
    """Go on by the event in a line."""
    expected = audit.event_id(replay.sequence + 1)
    try:
        record = _read_record(line)
        is_canonical = line == _line(record)
        claimed, prev_hash = record.pop("hash", None), record.get("prev_hash")
        sequence, form = audit.parse_event_id(str(record.get("id"))), canonical.encode_plain(record)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise TamperedRecord(f"{expected} was altered: it is no event") from None
    if not isinstance(claimed, str) or not isinstance(prev_hash, str):
        raise TamperedRecord(f"{expected} was altered: it is no event")
    replay.take(form, sequence, prev_hash, claimed)
    if not is_canonical:
        raise TamperedRecord(f"{expected} was altered: it is not written as it was")
