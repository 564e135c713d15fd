"""Units of work in memory, far from the database: what a batch reads is read together, and what it writes as well.

Where a unit asks for rows that are not known it stops (`Unread`), what all such units lack is asked for at once, and
they are run again; which of those that wait together goes first was open anyway. In the end one statement for each
table writes all that units have written. So a batch takes a few round trips, however many units it has.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Final

from agentwrit.broker.storage.base import Row
from agentwrit.broker.storage.postgres_link import Link
from agentwrit.broker.storage.postgres_rows import PostgresSnapshot, PostgresTransaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Rows
from agentwrit.broker.storage.sql_batch import (
    READ,
    Batch,
    BatchTransaction,
    Changes,
    Question,
    Unread,
)
from agentwrit.broker.storage.sql_rows import Key
from agentwrit.broker.storage.tables import Table
from agentwrit.domain import audit

_KINDS: Final = {str: "text", int: "bigint", bytes: "bytea"}


class PostgresBatchTransaction(BatchTransaction, PostgresSnapshot):
    pass


class PostgresBatch(Batch):
    """Behind the lock on the cluster's state."""

    def __init__(
        self, link: Link, sealer: Sealer, *, head: audit.Head, feed_head: int, covered: int, now: float
    ) -> None:
        super().__init__(link, sealer, head=head, feed_head=feed_head, covered=covered, now=now)
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
        return PostgresTransaction(
            self._session, self._sealer, self.head, self.now, feed_head=self.feed_head(), covered=self.covered
        )

    def _writing(self, changes: Changes) -> Callable[[], object]:
        return partial(self._write, changes)

    def _write(self, changes: Changes) -> None:
        """Within a pipeline no statement waits for the one before."""
        for table, rows in changes.rows.items():
            columns = list(zip(*rows.values(), strict=True))
            kinds = tuple(type(values[0]) for values in columns)
            self._session.execute(_put_all(table, kinds), [_array(values) for values in columns])


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
    found = READ[table]
    [key] = found.key
    return f"SELECT {key}, {', '.join(found.found_by_key)} FROM {table} WHERE {key} = ANY(?)"


def _array(values: Sequence[Any]) -> str:
    """The values of a column as one value: the text of an array (PostgreSQL manual, section 8.15)."""
    match values[0]:
        case bytes():
            items = [f'"\\\\x{value.hex()}"' for value in values]
        case str():
            items = ['"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]
        case _:
            items = [str(value) for value in values]
    return "{" + ",".join(items) + "}"


@cache
def _put_all(table: Table, kinds: tuple[type, ...]) -> str:
    """What puts rows, an array for each of their columns: inserts them, or replaces those that have the same key."""
    arrays = ", ".join(f"?::{_KINDS[kind]}[]" for kind in kinds)
    columns = ", ".join(table.columns)
    return f"INSERT INTO {table.name} ({columns}) SELECT * FROM unnest({arrays}) {table.on_conflict}"
