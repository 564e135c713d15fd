"""Archives of the audit log: files with its oldest events, so that the store need not keep them.

The rules:

- An archive is an export (`agentwrit.domain.audit_export`) that ends before the log does. Its header has a proof that
  the log of its checkpoint continues it.
- An archive begins where the previous one ended, and ends with a full tile. The tree over archived events therefore
  consists of tiles that never change. The tiles stay in the store, so archived events can still be proven.
- An event records what was archived, and in which file. The archived events are removed from the store only after a
  checkpoint covers that event.
- If events are missing at the beginning of a log, either an event in the log says where they are, or they were removed
  illegitimately.
"""

from typing import Final

import msgspec

from agentwrit.domain import audit, merkle
from agentwrit.domain.audit import Data, Head
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.merkle import TileReader

MAX_EVENTS: Final = 1024 * merkle.TILE_WIDTH  # in one file: some 200 MB
MAX_FILE_NAME: Final = 255


class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """The record of an archive.

    `first` and `last`: sequence numbers of its first and last event; `root`: the root of the tree over the log up to
    `last`, in hex; `file`: the name of the file; `sha256`: the hash of the file's content, in hex; `archived_at`: Unix
    seconds; `event`: the sequence number of the event that records the archive.
    """

    first: int
    last: int
    root: str
    file: str
    sha256: str
    archived_at: int
    event: int


def file_name(first: int, last: int) -> str:
    """The file name of the archive of these events. Names sort in the order of the archives."""
    return f"audit-{first:012d}-{last:012d}.jsonl"


def last_to_archive(last: int, archived: int) -> int:
    """The last event of the next archive if events up to `last` are old enough; `archived` if there is none to make."""
    whole = last - last % merkle.TILE_WIDTH
    return max(archived, min(whole, archived + MAX_EVENTS))


def beginning(entry: bytes, after: int, read: TileReader) -> Head:
    """The head that the log had after the event `after`. `entry`: the entry of the next event.

    Raises:
        TamperedRecord: `entry` is not an entry, or a tile is missing.
    """
    try:
        prev_hash = msgspec.json.decode(entry, type=_Follower).prev_hash
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise TamperedRecord(f"{audit.event_id(after + 1)} was altered: it is no event") from None
    return Head(prev_hash, merkle.edge_at(after, read))


def data(archive: Archive) -> Data:
    """The `data` of the event that records an archive."""
    return {
        "first": audit.event_id(archive.first),
        "last": audit.event_id(archive.last),
        "root": archive.root,
        "file": archive.file,
        "sha256": archive.sha256,
    }


class _Follower(msgspec.Struct, frozen=True):
    prev_hash: str
