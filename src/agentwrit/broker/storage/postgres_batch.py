"""Units of work in memory: what a batch reads is read together, and what it writes is written together.

A unit runs on the rows that its batch knows. Where it asks for one that is not known it stops (`Unread`), what all such
units lack is asked for at once, and they are run again; which of those that wait together goes first was open anyway.
What a unit writes is kept here and every later unit sees it; in the end one statement for each table writes it all. So
a batch takes a few round trips, however many units it has.

Only what agents do many times a second is done like this. A unit that asks for anything else (`NotInMemory`) is run
on the database itself, behind all that was kept until then.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import msgspec

from agentwrit.broker.storage import sql_log, sql_units
from agentwrit.broker.storage.base import GrantQuery, Row
from agentwrit.broker.storage.postgres_link import ESCAPE, Link, escaped
from agentwrit.broker.storage.postgres_rows import PostgresTransaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Rows
from agentwrit.broker.storage.sql_rows import SELECT_REVOCATIONS, Key, on_conflict, open_revocation
from agentwrit.broker.storage.sql_units import Outcome, Waiting
from agentwrit.domain import audit, merkle
from agentwrit.domain.grant import Grant
from agentwrit.domain.revocation import Revocation, RevocationKind

R = TypeVar("R", bound=msgspec.Struct)

Columns = Mapping[str, object]

# The tables whose rows are found by one key here, and what is read of them.
_READ: Final = {
    "apps": ("app_id", "body, mac"),
    "launch_tokens": ("token_hash", "body, mac"),
    "grants": ("sid", "body, mac"),
    "first_answers": ("key", "body, mac"),
    "nonces": ("nonce", "expires_at"),
}

# The tables whose rows are written here, by what tells one from another. A row is put at most once by a statement.
_WRITTEN: Final = {
    "launch_tokens": ("token_hash",),
    "grants": ("sid",),
    "first_answers": ("key",),
    "nonces": ("nonce",),
    "revocations": ("kind", "id"),
    "tiles": ("level", "number"),
    "events": ("sequence",),
}

_ESCAPE: Final = ESCAPE.encode()
_UNUSUAL: Final = re.compile(rb"\\u0000|" + _ESCAPE)  # what PostgreSQL's texts do not have
_KINDS: Final = {str: "text", int: "bigint", bytes: "text"}


class Question(NamedTuple):
    """Rows that it takes a statement of their own to find."""

    sql: str
    values: tuple[object, ...]


class Unread(Exception):
    """A unit needs rows that nobody has read yet."""

    def __init__(self, wanted: Row | Question) -> None:
        super().__init__()
        self.wanted = wanted


class NotInMemory(Exception):
    """A unit needs the database itself."""


class _Changes:
    """What was written, and not yet sent: rows by table and key, and the records that are in them."""

    def __init__(self) -> None:
        self.rows: defaultdict[str, dict[tuple[object, ...], Columns]] = defaultdict(dict)
        self.records: dict[Row, msgspec.Struct] = {}
        self.grants: dict[str, Grant] = {}
        self.revocations: dict[tuple[RevocationKind, str], Revocation] = {}

    def put(self, table: str, columns: Columns) -> None:
        self.rows[table][tuple(columns[name] for name in _WRITTEN[table])] = columns

    def has(self, table: str, key: Key) -> bool:
        return table in self.rows and (key,) in self.rows[table]

    def take(self, later: "_Changes") -> None:
        for table, rows in later.rows.items():
            self.rows[table].update(rows)
        self.records.update(later.records)
        self.grants.update(later.grants)
        self.revocations.update(later.revocations)


class Batch:
    """What is known of the database behind the lock on its state, and what units have made of it.

    `head`, `feed_head` and `now`: where the log and the feed end with what units have written, and the batch's time.
    `revocations`: what units have revoked.
    """

    def __init__(self, link: Link, sealer: Sealer, head: audit.Head, feed_head: int, now: float) -> None:
        self.head = head
        self.feed_head = feed_head
        self.now = now
        self.revocations: list[Revocation] = []
        self.changes = _Changes()
        self._link = link
        self._sealer = sealer
        self._read: dict[Row | Question, Sequence[tuple[Any, ...]]] = {}
        self._opened: dict[Row, msgspec.Struct] = {}

    def run(self, waiting: Waiting) -> Outcome:
        """Run a unit on what is known.

        Raises:
            Unread: that is not enough. Nothing was done.
            NotInMemory: and never will be.
        """
        return self._keep(sql_units.run(waiting, self._begin, is_passed_on=_is_ours))

    def run_on_database(self, waiting: Waiting, *, is_stores_fault: Callable[[Exception], bool]) -> Outcome:
        """Run a unit on the database, behind all that units have written."""
        self.write()
        changes = self._link.changes

        def begin() -> PostgresTransaction:
            return PostgresTransaction(self._link, self._sealer, self.head, self.now, self.feed_head)

        outcome = self._keep(sql_units.run_in_savepoint(waiting, self._link, begin, is_stores_fault=is_stores_fault))
        if self._link.changes != changes:
            self._read, self._opened = {}, {}
        return outcome

    def learn(self, read: Mapping[Row | Question, Sequence[tuple[Any, ...]]]) -> None:
        """Know these rows from now on."""
        self._read.update(read)

    def write(self) -> None:
        """Send what units have written. Within a pipeline that does not wait."""
        for table, rows in self.changes.rows.items():
            columns = list(rows.values())
            self._link.execute(_put_all(table, columns[0]), (_form(columns),))
        # What was read is over with it.
        if self.changes.rows:
            self.changes = _Changes()
            self._read, self._opened = {}, {}

    def rows(self, wanted: Row | Question) -> Sequence[tuple[Any, ...]]:
        """Rows as they were read.

        Raises:
            Unread: they were not.
        """
        rows = self._read.get(wanted)
        if rows is None:
            raise Unread(wanted)
        return rows

    def record(self, at: Row, open_row: Callable[[tuple[Any, ...]], R]) -> R | None:
        """The record of a row as it was read, or as a unit has left it.

        Raises:
            Unread: it was not read.
        """
        record: Any = self.changes.records.get(at) or self._opened.get(at)
        if record is None:
            for row in self.rows(at):
                record = self._opened[at] = open_row(row)
        return record  # type: ignore[no-any-return]  # a table has records of one type

    def _begin(self) -> "BatchTransaction":
        return BatchTransaction(self, self._sealer)

    def _keep(self, done: tuple[Outcome, PostgresTransaction]) -> Outcome:
        outcome, transaction = done
        self.head, self.feed_head = transaction.head, transaction.feed_head()
        self.revocations.extend(transaction.revoked)
        if isinstance(transaction, BatchTransaction):
            self.changes.take(transaction.changes)
        return outcome


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


class _NoDatabase:
    """The session of a unit that is run in memory."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> NoReturn:
        raise NotInMemory


class BatchTransaction(PostgresTransaction):
    """The `Transaction` of a unit that is run in memory. What it does not know how to do there ends in NotInMemory."""

    def __init__(self, batch: Batch, sealer: Sealer) -> None:
        super().__init__(_NoDatabase(), sealer, batch.head, batch.now, batch.feed_head)
        self.changes = _Changes()
        self._batch = batch

    def grants(self, query: GrantQuery) -> Sequence[Grant]:
        if query.limit is not None or query.after is not None:
            raise NotInMemory
        stored = self._opened_grants(query, self._batch.rows(Question(*self._select_grants(query))))
        changed = self._batch.changes.grants | self.changes.grants
        if not changed:
            return stored
        among = {grant.sid for grant in stored}
        made = [grant for sid, grant in changed.items() if sid not in among]
        return [grant for grant in (*(changed.get(each.sid, each) for each in stored), *made) if query.matches(grant)]

    def revocation(self, kind: RevocationKind, name: str) -> Revocation | None:
        for changes in (self.changes, self._batch.changes):
            if (kind, name) in changes.revocations:
                return changes.revocations[kind, name]
        for row in self._batch.rows(Question(f"{SELECT_REVOCATIONS} WHERE kind = ? AND id = ?", (kind.value, name))):
            return open_revocation(self._sealer, *row)
        return None

    def put_grant(self, grant: Grant) -> None:
        super().put_grant(grant)
        self.changes.grants[grant.sid] = grant

    def revoke(self, revocation: Revocation) -> None:
        super().revoke(revocation)
        self.changes.revocations[revocation.kind, revocation.id] = self.revoked[-1]

    def spend_nonce(self, nonce: bytes, expires_at: int) -> bool:
        is_spent = self.changes.has("nonces", nonce) or self._batch.changes.has("nonces", nonce)
        if is_spent or self._batch.rows(Row("nonces", nonce)):
            return False
        self.changes.put("nonces", {"nonce": nonce, "expires_at": expires_at})
        return True

    def _one(self, table: str, record_type: type[R], column: str, value: Key, condition: str = "") -> R | None:
        if condition or table not in _READ or column != _READ[table][0]:
            raise NotInMemory
        at = Row(table, value)
        own: Any = self.changes.records.get(at)
        return own or self._batch.record(at, lambda row: self._open(table, record_type, row, column, value))

    def _put(self, table: str, record: msgspec.Struct, key: str, /, **columns: object) -> None:
        super()._put(table, record, key, **columns)
        value: Any = columns[key]
        self.changes.records[Row(table, value)] = record

    def _put_row(self, table: str, key: tuple[str, ...], columns: dict[str, object]) -> None:
        if table not in _WRITTEN:
            raise NotInMemory
        self.changes.put(table, columns)

    def _put_event(self, event: audit.Event) -> None:
        self.changes.put("events", dict(zip(sql_log.EVENT_COLUMNS, sql_log.event_row(event), strict=True)))

    def _put_tiles(self, tiles: Sequence[merkle.Tile]) -> None:
        for tile in tiles:
            row = sql_log.tile_row(self._sealer, tile)
            self.changes.put("tiles", dict(zip(sql_log.TILE_COLUMNS, row, strict=True)))


def _is_ours(error: Exception) -> bool:
    return isinstance(error, (Unread, NotInMemory))


@cache
def _lookup(table: str) -> str:
    key, columns = _READ[table]
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
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM json_to_recordset(?::json) AS new ({types})"
        f" {on_conflict(_WRITTEN[table], names)}"
    )
