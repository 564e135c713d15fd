"""Checking what stands beside the sealed bodies of rows.

These columns are copies, to find rows by. What a row says is what its body says, and nobody else can write that; but a
row whose copies were altered is not found by whoever has to end it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Session
from agentwrit.broker.storage.sql_rows import COLUMNS, GRANT_COLUMNS, SqlTransaction
from agentwrit.domain.app import App
from agentwrit.domain.audit import Head
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.ending import Ending
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.grant import Grant
from agentwrit.domain.idempotency import FirstAnswer
from agentwrit.domain.launch_token import LaunchToken
from agentwrit.domain.limits import AppUsage
from agentwrit.domain.operator import Operator
from agentwrit.domain.signing_key import StoredKey

PAGE: Final = 1000


class _Rows(SqlTransaction):
    """Keeps the row that it would have written."""

    row: Mapping[str, object]

    def _put_row(self, table: str, row: tuple[object, ...]) -> None:
        self.row = dict(zip(COLUMNS[table], row, strict=True))


class _Table(NamedTuple):
    """What stands beside its bodies, beginning with what tells rows apart; what they hold, and what writes one."""

    name: str
    columns: Sequence[str]
    record: type[msgspec.Struct]
    put: Callable[[_Rows, Any], None]


TABLES: Final = (
    _Table("operators", ("name",), Operator, _Rows.put_operator),
    _Table("apps", ("app_id", "client_id", "name", "status"), App, _Rows.put_app),
    _Table("app_usage", ("app_id",), AppUsage, _Rows.put_app_usage),
    _Table("launch_tokens", ("token_hash", "expires_at"), LaunchToken, _Rows.put_launch_token),
    _Table("grants", GRANT_COLUMNS, Grant, _Rows.put_grant),
    _Table("endings", ("id", "done_at"), Ending, _Rows.put_ending),
    _Table("first_answers", ("key", "expires_at"), FirstAnswer, _Rows.put_first_answer),
    _Table("signing_keys", ("kid", "created_at"), StoredKey, _Rows.put_signing_key),
    _Table("archives", ("last",), Archive, _Rows.put_archive),
)


def check(connection: Session, sealer: Sealer) -> None:
    """Check all rows of all tables whose rows have a sealed body.

    Raises:
        TamperedRecord: the broker did not write a row, or not what stands beside its body.
    """
    writer = _Rows(connection, sealer, Head(), 0.0, covered=0)
    for table in TABLES:
        for body, mac, *found in _rows(connection, table):
            table.put(writer, sealer.open(table.name, body, mac, table.record))
            if any(writer.row[name] != value for name, value in zip(table.columns, found, strict=True)):
                raise TamperedRecord(
                    f"a row of {table.name} stands in another's place: what it is found by is not what it says"
                )


def _rows(connection: Session, table: _Table) -> Iterator[Sequence[Any]]:
    """All rows, a page at a time: the sealed body, its MAC, and what stands beside them."""
    key = table.columns[0]
    select = f"SELECT body, mac, {', '.join(table.columns)} FROM {table.name}"
    page = connection.execute(f"{select} ORDER BY {key} LIMIT ?", (PAGE,)).fetchall()
    while page:
        yield from page
        page = connection.execute(f"{select} WHERE {key} > ? ORDER BY {key} LIMIT ?", (page[-1][2], PAGE)).fetchall()
