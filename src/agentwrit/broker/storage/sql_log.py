"""The audit log in the SQL schemas: its events, the tiles of its tree, and where it ends.

With every commit that adds events it is stored where the log ends, under a MAC. A log whose tail was cut off, altered
or added to behind the broker's back is therefore refused when the store is opened; what is wrong further back, `verify`
finds.
"""

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec

from agentwrit.broker.storage import tables
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Session
from agentwrit.domain import audit, merkle
from agentwrit.domain.audit import Head
from agentwrit.domain.errors import TamperedRecord

EVENT_COLUMNS: Final = tables.EVENTS.columns
SELECT_EVENTS: Final = f"SELECT {', '.join(EVENT_COLUMNS)} FROM events"

_DATA_COLUMN = EVENT_COLUMNS.index("data")
_HASH_COLUMN = EVENT_COLUMNS.index("hash")
_PREV_HASH_COLUMN = EVENT_COLUMNS.index("prev_hash")
_COLUMN_TYPES = [int if name in ("sequence", "version", "deleg_depth") else str for name in EVENT_COLUMNS]
_FIRST = -(2**63)  # who inserts events does not have to begin with 1
_encode = msgspec.json.encode
_decode_data = msgspec.json.Decoder(audit.Data).decode

_pick_members = itemgetter(*(EVENT_COLUMNS.index("sequence" if name == "id" else name) for name in audit.MEMBERS))
_ID_MEMBER = audit.MEMBERS.index("id")
_DATA_MEMBER = audit.MEMBERS.index("data")


def event_row(event: audit.Event) -> tuple[object, ...]:
    """The row of an event, in the order of EVENT_COLUMNS."""
    columns = list(msgspec.structs.astuple(event))
    columns[_DATA_COLUMN] = _encode(event.data).decode()
    return tuple(columns)


def row_of_alike(alike: audit.Alike, about: audit.About, placed: audit.Placed) -> tuple[object, ...]:
    """As `event_row`, for one of many events."""
    draft = alike.draft
    return (
        placed.sequence,
        alike.timestamp,
        draft.event_type._value_,
        draft.outcome._value_,
        placed.detail,
        draft.resource,
        draft.principal,
        *about,
        draft.client_address,
        draft.request_id,
        draft.trace_id,
        placed.data,
        placed.prev_hash,
        placed.hash,
        audit.SCHEMA_VERSION,
    )


def event(row: tuple[Any, ...]) -> audit.Event:
    """The event of a row of EVENT_COLUMNS.

    Raises:
        TamperedRecord: it is none.
    """
    columns = dict(zip(EVENT_COLUMNS, row, strict=True))
    try:
        columns["data"] = _decode_data(columns["data"])
        return msgspec.convert(columns, audit.Event)
    except (msgspec.DecodeError, TypeError, UnicodeDecodeError) as error:
        raise TamperedRecord(f"{audit.event_id(row[0])} was altered: {error}") from error


def entry(row: tuple[Any, ...]) -> bytes:
    """The entry of the event in a row of EVENT_COLUMNS, straight from what is there.

    Raises:
        TamperedRecord: a column is not as the broker writes it.
    """
    name = audit.event_id(row[0])
    members = list(_pick_members(row))
    members[_ID_MEMBER] = name
    try:
        data = members[_DATA_MEMBER] = _decode_data(row[_DATA_COLUMN])
        is_ours = list(map(type, row)) == _COLUMN_TYPES and _encode(data).decode() == row[_DATA_COLUMN]
        form = audit.entry_of(members)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        raise TamperedRecord(f"{name} was altered: {error}") from error
    if not is_ours:
        raise TamperedRecord(f"{name} was altered")
    return form


def rows(connection: Session, first: int, last: int) -> Iterator[tuple[Any, ...]]:
    """The rows of the events from one place to another, both included, as far as they are there."""
    return iter(connection.execute(f"{SELECT_EVENTS} WHERE sequence BETWEEN ? AND ? ORDER BY sequence", (first, last)))


def entries(connection: Session, first: int, last: int) -> Iterator[bytes]:
    """The entries of the events from one place to another, both included, as far as they are there.

    In place of one that cannot be what the broker wrote stands what is there: whoever checks the log finds it.
    """
    for row in rows(connection, first, last):
        try:
            yield entry(row)
        except TamperedRecord:
            yield ascii(row).encode("ascii")[: audit.MAX_ENTRY_BYTES]


def replay(connection: Session, onto: audit.Replay, last: int) -> Iterator[Sequence[merkle.Tile]]:
    """Follow the log up to `last`, event by event. Yields the tiles that are to be kept because of each.

    Raises:
        TamperedRecord: an event is missing, out of place or altered.
    """
    for row in rows(connection, onto.sequence + 1 if onto.sequence else _FIRST, last):
        yield onto.take(entry(row), row[0], row[_PREV_HASH_COLUMN], row[_HASH_COLUMN])


def first_sequence(connection: Session) -> int:
    """The place of the oldest event that is there; 1 if there is none."""
    [sequence] = connection.execute("SELECT coalesce(min(sequence), 1) FROM events").fetchone()
    return int(sequence)


def hash_at(connection: Session, sequence: int) -> str | None:
    """The hash of the event at a place. Where it was archived, the oldest event that is there says what it was."""
    row = connection.execute(
        "SELECT hash FROM events WHERE sequence = ? UNION ALL SELECT prev_hash FROM events"
        " WHERE sequence = ? AND sequence = (SELECT min(sequence) FROM events)",
        (sequence, sequence + 1),
    ).fetchone()
    return str(row[0]) if row is not None else None


def beginning(connection: Session, sealer: Sealer) -> Head:
    """Where the log was before the oldest event that is there.

    Raises:
        TamperedRecord: there is less than was archived.
    """
    _check_beginning(connection)
    missing = first_sequence(connection) - 1
    before = hash_at(connection, missing)
    if missing <= 0 or before is None:
        return Head()
    return Head(before, merkle.edge_at(missing, lambda level, number: tile(connection, sealer, level, number)))


def _check_beginning(connection: Session) -> None:
    [archived] = connection.execute("SELECT coalesce(max(last), 0) FROM archives").fetchone()
    first = first_sequence(connection)
    if first > archived + 1:
        raise TamperedRecord(f"{audit.event_id(archived + 1)} to {audit.event_id(first - 1)} are missing")


def last_sequence(connection: Session) -> int:
    [sequence] = connection.execute("SELECT coalesce(max(sequence), 0) FROM events").fetchone()
    return int(sequence)


# -- the tree ---------------------------------------------------------------------------------------------------------


def put_tiles(connection: Session, sealer: Sealer, tiles: Iterable[merkle.Tile]) -> None:
    for tile in tiles:
        connection.execute(
            "INSERT INTO tiles (level, number, hashes, mac) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (level, number) DO UPDATE SET hashes = excluded.hashes, mac = excluded.mac",
            tile_row(sealer, tile),
        )


def tile_row(sealer: Sealer, tile: merkle.Tile) -> tuple[int, int, bytes, bytes]:
    """The row of a tile, in the order of its table's columns."""
    return tile.level, tile.number, tile.hashes, sealer.mac("tiles", tile_body(*tile))


def tile(connection: Session, sealer: Sealer, level: int, number: int) -> bytes:
    """The hashes of a tile, as far as there are any.

    Raises:
        TamperedRecord: somebody else wrote it.
    """
    kept = kept_tile(connection, sealer, level, number)
    if kept or level:
        return kept
    first = number * merkle.TILE_WIDTH + 1
    return b"".join(map(merkle.leaf_hash, entries(connection, first, first + merkle.TILE_WIDTH - 1)))


def kept_tile(connection: Session, sealer: Sealer | None, level: int, number: int) -> bytes:
    """The hashes of a tile as they are stored, if they are. Without a sealer it is not known who wrote them.

    Raises:
        TamperedRecord: somebody else wrote them.
    """
    row = connection.execute("SELECT hashes, mac FROM tiles WHERE level = ? AND number = ?", (level, number)).fetchone()
    if row is None:
        return b""
    hashes, mac = row
    if not isinstance(hashes, bytes):
        raise TamperedRecord(f"tile {number} of level {level} of the tree was altered")
    if sealer is not None:
        sealer.check("tiles", tile_body(level, number, hashes), mac)
    return hashes


def tile_body(level: int, number: int, hashes: bytes) -> bytes:
    return f"{level}/{number}\n".encode("ascii") + hashes


def put_checkpoint(connection: Session, size: int, note: str) -> None:
    connection.execute(
        "INSERT INTO checkpoint (one, size, note) VALUES (1, ?, ?)"
        " ON CONFLICT (one) DO UPDATE SET size = excluded.size, note = excluded.note",
        (size, note),
    )


def checkpoint(connection: Session) -> str | None:
    """The newest checkpoint, if there is one yet."""
    row = connection.execute("SELECT note FROM checkpoint").fetchone()
    return str(row[0]) if row is not None else None


def covered(connection: Session) -> int:
    """Up to where a checkpoint covers the log, as its row says, which has no MAC."""
    row = connection.execute("SELECT size FROM checkpoint").fetchone()
    return 0 if row is None else int(row[0])


# -- the head ---------------------------------------------------------------------------------------------------------


def load_head(connection: Session, sealer: Sealer, saved: tuple[int, str]) -> Head:
    """Where the log ends: at this place, with this hash.

    Reads the unfinished tiles and the events of the last one: no more, however long the log is.

    Raises:
        TamperedRecord: the log does not end as it did when the broker wrote it last.
    """
    sequence, last_hash = saved
    found = last_sequence(connection)
    if found != sequence:
        raise TamperedRecord(f"the log ends with {audit.event_id(found)}, and not with {audit.event_id(sequence)}")
    _check_beginning(connection)
    whole = sequence - sequence % merkle.TILE_WIDTH
    edge = merkle.edge_at(whole, lambda level, number: tile(connection, sealer, level, number))
    before = hash_at(connection, whole) if whole else audit.GENESIS_HASH
    if before is None:
        raise TamperedRecord(f"{audit.event_id(whole)} is missing")
    following = audit.Replay(Head(before, edge))
    for _ in replay(connection, following, sequence):
        pass
    if (following.sequence, following.hash) != (sequence, last_hash):
        raise TamperedRecord(f"{audit.event_id(sequence)} is not the event that the log ended with")
    return following.head
