"""Moving a store to another master key: each row that carries a MAC gets one under the new key.

The rules:

- It is one transaction, on a store that no broker uses: afterwards all is under the new key, or all under the old.
- No row gets a new MAC before the old one was checked. One that the broker did not write stops the move, and is named.
- Rows are read and written a page at a time, in the order in which they lie: memory does not grow with their number.
- Only MACs change, and how signing keys are wrapped: what a row says stays as it is, to the byte.
- The move is an event of the audit log, committed with it.

The log's own events carry no MAC: the head does, and the tiles do.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from agentwrit.broker.storage import sql_log, tables
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Session
from agentwrit.broker.storage.tables import Table
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.audit_export import Progress, unwatched
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.signing_key import StoredKey

PAGE: Final = 1000

Write = Callable[[str, Sequence[Sequence[object]]], object]
"""Runs a statement once for each of these values."""


class Keys(NamedTuple):
    """What a store is moved from and to. `rewrapped`: a signing key as it is wrapped under the new master key."""

    old: Sealer
    new: Sealer
    rewrapped: Callable[[StoredKey], StoredKey]


TABLES: Final = tuple(table for table in tables.ALL if table.authenticated)


def move(
    session: Session, write: Write, keys: Keys, places: Mapping[str, str], *, progress: Progress = unwatched
) -> int:
    """Move all rows, in the transaction that `session` is in. Returns how many.

    `places`: of tables whose rows do not lie in the order of their key, the column that they do lie in.

    Raises:
        TamperedRecord: the broker did not write a row. Names it.
    """
    totals = [session.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0] for table in TABLES]
    done = 0
    for table in TABLES:
        place = (places[table.name],) if table.name in places else table.key
        for page in _pages(session, table, place):
            _move(write, table, place, page, keys)
            done += len(page)
            progress(done, sum(totals))
    return done


def event(rows: int) -> Draft:
    """What the audit log says of it."""
    return Draft(
        event_type=EventType.MASTER_KEY_CHANGED,
        principal="broker",
        detail="the store was moved to a new master key",
        data={"rows": rows},
    )


def _pages(session: Session, table: Table, place: tuple[str, ...]) -> Iterable[Sequence[tuple[Any, ...]]]:
    order = ", ".join(place)
    columns = ", ".join((*place, *table.key, *table.authenticated, "mac"))
    page = session.execute(f"SELECT {columns} FROM {table.name} ORDER BY {order} LIMIT ?", (PAGE,)).fetchall()
    behind = f"({order}) > ({', '.join('?' * len(place))})"
    while page:
        yield page
        page = session.execute(
            f"SELECT {columns} FROM {table.name} WHERE {behind} ORDER BY {order} LIMIT ?",
            (*page[-1][: len(place)], PAGE),
        ).fetchall()


def _move(write: Write, table: Table, place: tuple[str, ...], page: Sequence[tuple[Any, ...]], keys: Keys) -> None:
    changes: list[tuple[object, ...]] = []
    for row in page:
        at, key = row[: len(place)], row[len(place) : len(place) + len(table.key)]
        *sealed, mac = row[len(place) + len(table.key) :]
        body = _body(table, sealed)
        try:
            keys.old.check(table.name, body, mac)
        except TamperedRecord:
            name = " ".join(map(_shown, key))
            raise TamperedRecord(f"the row {name} of {table.name} was altered outside the broker") from None
        if table is tables.SIGNING_KEYS:
            record = keys.old.open(table.name, sealed[0], mac, StoredKey)
            changes.append((*keys.new.seal(table.name, keys.rewrapped(record)), *at))
        else:
            changes.append((keys.new.mac(table.name, body), *at))
    changed = "body = ?, mac = ?" if table is tables.SIGNING_KEYS else "mac = ?"
    write(f"UPDATE {table.name} SET {changed} WHERE {' AND '.join(f'{column} = ?' for column in place)}", changes)


def _body(table: Table, sealed: Sequence[Any]) -> Any:
    """What the MAC of a row is over. In a file that was edited by hand a column may hold anything."""
    if table.authenticated == ("body",):
        return sealed[0]
    try:
        if table is tables.TILES:
            return sql_log.tile_body(*sealed)
        return msgspec.json.encode(dict(zip(table.authenticated, sealed, strict=True)))
    except (TypeError, ValueError):
        return None


def _shown(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if text.isprintable() else ascii(text)
