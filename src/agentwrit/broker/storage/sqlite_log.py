"""The audit log in the SQLite schema: its events, the tiles of its tree, and where it ends.

With every commit that adds events the log's head is stored, under a MAC. A log whose tail was cut off, altered or added
to behind the broker's back is therefore refused when the store is opened; what is wrong further back, `verify` finds.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain import audit, merkle
from agentwrit.domain.audit import Head
from agentwrit.domain.errors import TamperedRecord

EVENT_COLUMNS: Final = tuple(field.name for field in msgspec.structs.fields(audit.Event))
SELECT_EVENTS: Final = f"SELECT {', '.join(EVENT_COLUMNS)} FROM events"

_DATA_COLUMN = EVENT_COLUMNS.index("data")
_INSERT_EVENT = f"INSERT INTO events ({', '.join(EVENT_COLUMNS)}) VALUES ({', '.join('?' * len(EVENT_COLUMNS))})"

HEAD: Final = "audit_head"  # its row in `meta`


def put_event(connection: sqlite3.Connection, event: audit.Event) -> None:
    columns = list(msgspec.structs.astuple(event))
    columns[_DATA_COLUMN] = msgspec.json.encode(event.data).decode()
    connection.execute(_INSERT_EVENT, columns)


def event(row: tuple[Any, ...]) -> audit.Event:
    """The event of a row of EVENT_COLUMNS.

    Raises:
        TamperedRecord: it is none.
    """
    columns = dict(zip(EVENT_COLUMNS, row, strict=True))
    try:
        columns["data"] = msgspec.json.decode(columns["data"], type=audit.Data)
        return msgspec.convert(columns, audit.Event)
    except (msgspec.DecodeError, TypeError, UnicodeDecodeError) as error:
        raise TamperedRecord(f"{audit.event_id(row[0])} was altered: {error}") from error


def events(connection: sqlite3.Connection, first: int, last: int) -> Iterator[audit.Event]:
    """The events from one place to another, both included, as far as they are there."""
    rows = connection.execute(
        f"{SELECT_EVENTS} WHERE sequence BETWEEN ? AND ? ORDER BY sequence",
        (first, last),
    )
    return map(event, rows)


def last_sequence(connection: sqlite3.Connection) -> int:
    [sequence] = connection.execute("SELECT coalesce(max(sequence), 0) FROM events").fetchone()
    return int(sequence)


# -- the tree ---------------------------------------------------------------------------------------------------------


def put_tiles(connection: sqlite3.Connection, sealer: Sealer, tiles: Iterable[merkle.Tile]) -> None:
    connection.executemany(
        "INSERT INTO tiles (level, number, hashes, mac) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (level, number) DO UPDATE SET hashes = excluded.hashes, mac = excluded.mac",
        [(tile.level, tile.number, tile.hashes, sealer.mac("tiles", _tile_body(*tile))) for tile in tiles],
    )


def tile(connection: sqlite3.Connection, sealer: Sealer, level: int, number: int) -> bytes:
    """The hashes of a tile, as far as there are any.

    Raises:
        TamperedRecord: somebody else wrote it.
    """
    kept = kept_tile(connection, sealer, level, number)
    if kept or level:
        return kept
    first = number * merkle.TILE_WIDTH + 1
    unfinished = events(connection, first, first + merkle.TILE_WIDTH - 1)
    return b"".join(merkle.leaf_hash(audit.entry(found)) for found in unfinished)


def kept_tile(connection: sqlite3.Connection, sealer: Sealer | None, level: int, number: int) -> bytes:
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
        sealer.check("tiles", _tile_body(level, number, hashes), mac)
    return hashes


def _tile_body(level: int, number: int, hashes: bytes) -> bytes:
    return f"{level}/{number}\n".encode("ascii") + hashes


def put_checkpoint(connection: sqlite3.Connection, size: int, note: str) -> None:
    connection.execute("INSERT OR REPLACE INTO checkpoint (one, size, note) VALUES (1, ?, ?)", (size, note))


def checkpoint(connection: sqlite3.Connection) -> str:
    """The newest checkpoint, or nothing where there is none yet."""
    row = connection.execute("SELECT note FROM checkpoint").fetchone()
    return str(row[0]) if row is not None else ""


# -- the head ---------------------------------------------------------------------------------------------------------


def save_head(connection: sqlite3.Connection, sealer: Sealer, head: Head) -> None:
    """Make where the log ends part of the transaction."""
    body = _head_body(head.sequence, head.hash)
    value = f"{body} {sealer.mac(HEAD, body.encode('ascii')).hex()}"
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (HEAD, value))


def load_head(connection: sqlite3.Connection, sealer: Sealer) -> Head:
    """Where the log ends. Reads the unfinished tiles and the events of the last one: no more, however long the log is.

    Raises:
        TamperedRecord: the log does not end as it did when the broker wrote it last.
    """
    sequence, last_hash = saved_head(connection, sealer)
    found = last_sequence(connection)
    if found != sequence:
        raise TamperedRecord(f"the log ends with {audit.event_id(found)}, and not with {audit.event_id(sequence)}")
    whole = sequence - sequence % merkle.TILE_WIDTH
    edge = merkle.edge_at(whole, lambda level, number: tile(connection, sealer, level, number))
    before = [found.hash for found in events(connection, whole, whole)]
    if whole and not before:
        raise TamperedRecord(f"{audit.event_id(whole)} is missing")
    head = Head(before[0] if before else audit.GENESIS_HASH, edge)
    for found_event in events(connection, whole + 1, sequence):
        head, _ = audit.follow(head, found_event)
    if (head.sequence, head.hash) != (sequence, last_hash):
        raise TamperedRecord(f"{audit.event_id(sequence)} is not the event that the log ended with")
    return head


def saved_head(connection: sqlite3.Connection, sealer: Sealer) -> tuple[int, str]:
    """The place and the hash of the last event, as they were committed with it.

    Raises:
        TamperedRecord: somebody else wrote them.
    """
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (HEAD,)).fetchone()
    body, _, mac = str(row[0] if row is not None else "").rpartition(" ")
    sequence, _, last_hash = body.partition(" ")
    try:
        sealer.check(HEAD, body.encode("utf-8"), bytes.fromhex(mac))
        return int(sequence), last_hash
    except ValueError:
        raise TamperedRecord("where the log ends was altered outside the broker") from None


def grow_tree(connection: sqlite3.Connection, sealer: Sealer) -> None:
    """Build the tree over a log that has none yet. Checks the log on the way.

    Raises:
        TamperedRecord: the log was altered.
    """
    head = Head()
    for found in events(connection, 1, last_sequence(connection)):
        head, tiles = audit.follow(head, found)
        put_tiles(connection, sealer, tiles)
    save_head(connection, sealer, head)


def _head_body(sequence: int, last_hash: str) -> str:
    return f"{sequence} {last_hash}"
