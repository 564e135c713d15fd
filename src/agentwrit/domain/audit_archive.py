"""Archives of the audit log: its oldest events in a file, sealed, so that the store need not keep them.

The rules:

- An archive is an export (`agentwrit.domain.audit_export`) that ends before the log does: its header has the proof that
  the log of its checkpoint continues it.
- It begins where the one before it ended, and ends with a full tile. So the tree over what is archived is made of tiles
  that never change, and the tiles stay in the store: what is archived can be proven as before.
- An event says what was archived, and where. Only when a checkpoint covers that event, the events of the archive go.
- So whoever finds events missing at the beginning of a log finds an event in it that says where they are, or knows that
  somebody else took them away.
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
    """What is known of an archive.

    `first` and `last`: the places of its events. `root`: of the tree over the log up to `last`, in hex. `file`: its
    name, `sha256`: of what is in it, in hex. `archived_at`: Unix seconds. `event`: the place of the event that says so.
    """

    first: int
    last: int
    root: str
    file: str
    sha256: str
    archived_at: int
    event: int


def file_name(first: int, last: int) -> str:
    """What the archive of these events is called: in the order of their names archives follow one another."""
    return f"audit-{first:012d}-{last:012d}.jsonl"


def last_to_archive(last: int, archived: int) -> int:
    """The last event of the next archive, if events up to `last` are old enough; `archived` if there is none."""
    whole = last - last % merkle.TILE_WIDTH
    return max(archived, min(whole, archived + MAX_EVENTS))


def beginning(entry: bytes, after: int, read: TileReader) -> Head:
    """Where the log was before the event of this entry, the first behind `after`.

    Raises:
        TamperedRecord: this is no entry, or a tile is missing.
    """
    try:
        prev_hash = msgspec.json.decode(entry, type=_Follower).prev_hash
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise TamperedRecord(f"{audit.event_id(after + 1)} was altered: it is no event") from None
    return Head(prev_hash, merkle.edge_at(after, read))


def data(archive: Archive) -> Data:
    """What the event says of an archive."""
    return {
        "first": audit.event_id(archive.first),
        "last": audit.event_id(archive.last),
        "root": archive.root,
        "file": archive.file,
        "sha256": archive.sha256,
    }


class _Follower(msgspec.Struct, frozen=True):
    prev_hash: str
