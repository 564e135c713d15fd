"""Units of work in memory, far from the database: what a batch reads is read together, and what it writes as well.

Where a unit asks for rows that are not known it stops (`Unread`), what all such units lack is asked for at once, and
they are run again; which of those that wait together goes first was open anyway. In the end one statement for each
table writes all that units have written. So a batch takes a few round trips, however many units it has.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import msgspec

from agentwrit.broker.storage.base import Row
from agentwrit.broker.storage.postgres_link import ESCAPE, Link, escaped
from agentwrit.broker.storage.postgres_rows import PostgresSnapshot, PostgresTransaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Rows
from agentwrit.broker.storage.sql_batch import (
    READ,
    Batch,
    BatchTransaction,
    Changes,
    Columns,
    Question,
    Unread,
    replaced_by,
)
from agentwrit.broker.storage.sql_rows import Key, on_conflict
from agentwrit.domain import audit

_ESCAPE: Final = ESCAPE.encode()
_UNUSUAL: Final = re.compile(rb"\\u0000|" + _ESCAPE)  # what PostgreSQL's texts do not have
_KINDS: Final = {str: "text", int: "bigint", bytes: "text"}


class PostgresBatchTransaction(BatchTransaction, PostgresSnapshot):
    pass


class PostgresBatch(Batch):
    """Behind the lock on the cluster's state."""

    def __init__(self, link: Link, sealer: Sealer, head: audit.Head, feed_head: int, now: float) -> None:
        super().__init__(link, sealer, head=head, feed_head=feed_head, now=now)
        self._read: dict[Row | Question, Sequence[tuple[Any, ...]]] = {}

    def learn(self, read: Mapping[Row | Question, Sequence[tuple[Any, ...]]]) -> None:
        """Know these rows from now on."""
        self._read.update(read)

    def rows(self, wanted: Row | Question) -> Sequence[tuple[Any, ...]]:
        rows = self._read.get(wanted)
        if rows is None:
            raise Unread(wanted)
        return rows

    def forget(self) -> None:
        super().forget()
        self._read = {}

    def _in_memory(self) -> BatchTransaction:
        return PostgresBatchTransaction(self, self._sealer)

    def _on_database(self) -> PostgresTransaction:
        return PostgresTransaction(self._session, self._sealer, self.head, self.now, self.feed_head())

    def _writing(self, changes: Changes) -> Callable[[], object]:
        statements = []
        for table, rows in changes.rows.items():
            columns = list(rows.values())
            statements.append((_put_all(table, columns[0]), (_form(columns),)))
        # Within a pipeline none of them waits.
        return lambda: [self._session.execute(sql, values) for sql, values in statements]


class Reading:
    """What units lack, on its way: asked for all at once."""

    def __init__(self, link: Link, wanted: Iterable[Row | Question]) -> None:
        """Ask. Within a pipeline that does not wait."""
        keys: defaultdict[str, list[Key]] = defaultdict(list)
        self._questions: list[tuple[Question, Rows]] = []
        for each in dict.fromkeys(wanted):
            if isinstance(each, Row):
                keys[each.table].append(each.key)
            else:
                self._questions.append((each, link.execute(each.sql, each.values)))
        self._lookups = [(table, all_, link.execute(_lookup(table), (all_,))) for table, all_ in keys.items()]

    def rows(self) -> Mapping[Row | Question, Sequence[tuple[Any, ...]]]:
        """The rows, by what asked for them."""
        read: dict[Row | Question, Sequence[tuple[Any, ...]]] = {
            question: rows.fetchall() for question, rows in self._questions
        }
        for table, keys, rows in self._lookups:
            read |= {Row(table, key): () for key in keys}
            read |= {Row(table, key): (tuple(row),) for key, *row in rows}
        return read


@cache
def _lookup(table: str) -> str:
    key, columns = READ[table]
    return f"SELECT {key}, {columns} FROM {table} WHERE {key} = ANY(?)"


def _form(rows: Sequence[Columns]) -> str:
    """Rows as one value: a list of objects, with bytes in base64."""
    form = msgspec.json.encode(rows)
    if _UNUSUAL.search(form):  # seldom enough to look at each value only now
        form = msgspec.json.encode([{name: escaped(value) for name, value in row.items()} for row in rows])
    return form.replace(_ESCAPE, rb"\ufdd0").decode()  # or it would be escaped once more, with the whole


def _put_all(table: str, first: Columns) -> str:
    """What puts rows like this one: inserts them, or replaces those that have the same key."""
    return _put_all_of(table, tuple((name, type(value)) for name, value in first.items()))


@cache
def _put_all_of(table: str, columns: tuple[tuple[str, type], ...]) -> str:
    names = [name for name, _ in columns]
    values = ", ".join(f"decode({name}, 'base64')" if kind is bytes else name for name, kind in columns)
    types = ", ".join(f"{name} {_KINDS[kind]}" for name, kind in columns)
    return (
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {values}"
        f" FROM json_to_recordset(?::json) AS new ({types}) {on_conflict(replaced_by(table), names)}"
    )
