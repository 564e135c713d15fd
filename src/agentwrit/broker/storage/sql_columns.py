"""Checking what stands beside the sealed bodies of rows.

These columns are copies, to find rows by. What a row says is what its body says, and nobody else can write that; but a
row whose copies were altered is not found by whoever has to end it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from agentwrit.broker.storage import tables
from agentwrit.broker.storage.base import Record
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Session
from agentwrit.broker.storage.tables import Table
from agentwrit.domain.errors import TamperedRecord

PAGE: Final = 1000


def check(connection: Session, sealer: Sealer) -> None:
    """Check all rows of all tables whose rows have a sealed body.

    Raises:
        TamperedRecord: the broker did not write a row, or not what stands beside its body.
    """
    for table in tables.ALL:
        if table.record is not None:
            _check_table(connection, sealer, table, table.record)


def _check_table(connection: Session, sealer: Sealer, table: Table, record: type[Record]) -> None:
    for body, mac, *found in _rows(connection, table):
        if table.lookup(sealer.open(table.name, body, mac, record)) != tuple(found):
            raise TamperedRecord(
                f"a row of {table.name} stands in another's place: what it is found by is not what it says"
            )


def _rows(connection: Session, table: Table) -> Iterator[Sequence[Any]]:
    """All rows, a page at a time: the sealed body, its MAC, and what stands beside them."""
    [key] = table.key
    select = f"SELECT body, mac, {', '.join(table.lookup_columns)} FROM {table.name}"
    page = connection.execute(f"{select} ORDER BY {key} LIMIT ?", (PAGE,)).fetchall()
    while page:
        yield from page
        page = connection.execute(f"{select} WHERE {key} > ? ORDER BY {key} LIMIT ?", (page[-1][2], PAGE)).fetchall()
