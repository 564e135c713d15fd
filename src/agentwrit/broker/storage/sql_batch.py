"""Units of work in memory: what a batch of them writes is kept, each later one sees it, and it is written together.

A unit runs on rows that its batch has read, or reads. Only what agents do many times a second is done like this. A unit
that asks for anything else (`NotInMemory`) is run on the database itself, behind all that was kept until then.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import msgspec

from agentwrit.broker.storage import sql_log, sql_units
from agentwrit.broker.storage.base import GrantQuery, Row
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Session
from agentwrit.broker.storage.sql_rows import SELECT_REVOCATIONS, Key, SqlTransaction, open_revocation
from agentwrit.broker.storage.sql_units import Outcome, Waiting
from agentwrit.domain import audit, merkle
from agentwrit.domain.grant import Grant
from agentwrit.domain.revocation import Revocation, RevocationKind

R = TypeVar("R", bound=msgspec.Struct)

Columns = Mapping[str, object]

# The tables whose rows are found by one key here, and what is read of them.
READ: Final = {
    "apps": ("app_id", "body, mac"),
    "app_usage": ("app_id", "body, mac"),
    "launch_tokens": ("token_hash", "body, mac"),
    "grants": ("sid", "body, mac"),
    "first_answers": ("key", "body, mac"),
    "nonces": ("nonce", "expires_at"),
}

# The tables whose rows are written here, by what tells one from another.
WRITTEN: Final = {
    "app_usage": ("app_id",),
    "launch_tokens": ("token_hash",),
    "grants": ("sid",),
    "first_answers": ("key",),
    "nonces": ("nonce",),
    "revocations": ("kind", "id"),
    "tiles": ("level", "number"),
    "events": ("sequence",),
    "meta": ("name",),
}


_KEY_OF: Final[Mapping[str, Callable[[Columns], object]]] = {
    table: itemgetter(*names) for table, names in WRITTEN.items()
}


def replaced_by(table: str) -> tuple[str, ...]:
    """The key by which a row of a table replaces another one: none for events, which never do."""
    return () if table == "events" else WRITTEN[table]


class Question(NamedTuple):
    """Rows that it takes a statement of their own to find."""

    sql: str
    values: tuple[object, ...]


class Unread(Exception):
    """A unit needs rows that its batch has not read yet."""

    def __init__(self, wanted: Row | Question) -> None:
        super().__init__()
        self.wanted = wanted


class NotInMemory(Exception):
    """A unit needs the database itself."""


class Changes:
    """What was written, and not yet sent: rows by table and key, and the records that are in them.

    `below`: what was written before, and may not be in the database yet either. Who looks here sees it as well.
    """

    def __init__(self, below: "Changes | None" = None) -> None:
        self.below = below
        self.rows: defaultdict[str, dict[object, Columns]] = defaultdict(dict)
        self.records: dict[Row, msgspec.Struct] = {}
        self.grants: dict[str, Grant] = {}
        self.revocations: dict[tuple[RevocationKind, str], Revocation] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to send."""
        return bool(self.rows)

    def put(self, table: str, columns: Columns) -> None:
        self.rows[table][_KEY_OF[table](columns)] = columns

    def has(self, table: str, key: Key) -> bool:
        is_here = table in self.rows and key in self.rows[table]
        return is_here or (self.below is not None and self.below.has(table, key))

    def record(self, at: Row) -> msgspec.Struct | None:
        found = self.records.get(at)
        return found if found is not None or self.below is None else self.below.record(at)

    def revocation(self, kind: RevocationKind, name: str) -> Revocation | None:
        found = self.revocations.get((kind, name))
        return found if found is not None or self.below is None else self.below.revocation(kind, name)

    def all_grants(self) -> Mapping[str, Grant]:
        return self.grants if self.below is None else {**self.below.all_grants(), **self.grants}

    def take(self, later: "Changes") -> None:
        for table, rows in later.rows.items():
            self.rows[table].update(rows)
        self.records.update(later.records)
        self.grants.update(later.grants)
        self.revocations.update(later.revocations)


class Batch(ABC):
    """What is known of the database in a transaction, and what units have made of it.

    `head` and `now`: where the log ends with what units have written, and the time; `revocations`: what they revoked.
    `feed_head`: where the feed ended before the first unit; `below`: what is to be seen although it may not be in the
    database yet.
    """

    def __init__(
        self,
        session: Session,
        sealer: Sealer,
        *,
        head: audit.Head,
        feed_head: int,
        now: float,
        below: Changes | None = None,
    ) -> None:
        self.head = head
        self.now = now
        self.revocations: list[Revocation] = []
        self.changes = Changes(below)
        self._first_feed_head = feed_head
        self._session = session
        self._sealer = sealer
        self._opened: dict[Row, msgspec.Struct] = {}

    def run(self, waiting: Waiting) -> Outcome:
        """Run a unit in memory.

        Raises:
            Unread: it cannot be, until it has these rows. Nothing was done.
            NotInMemory: and never will be.
        """
        return self._keep(sql_units.run(waiting, self._in_memory, is_passed_on=self._is_passed_on))

    def run_on_database(self, waiting: Waiting, *, is_stores_fault: Callable[[Exception], bool]) -> Outcome:
        """Run a unit on the database, behind all that units have written."""
        self.write()
        done = sql_units.run_in_savepoint(waiting, self._session, self._on_database, is_stores_fault=is_stores_fault)
        self.forget()
        return self._keep(done)

    def write(self) -> None:
        """Write what units have written."""
        self.writing()()

    def writing(self) -> Callable[[], object]:
        """What writes what units have written: all that is left to do is to wait for the database."""
        if not self.changes:
            return lambda: None
        changes, self.changes = self.changes, Changes()
        self.forget()
        return self._writing(changes)

    @abstractmethod
    def rows(self, wanted: Row | Question) -> Sequence[tuple[Any, ...]]:
        """Rows as they are in the database.

        Raises:
            Unread: they were not read yet.
        """

    def record(self, at: Row, open_row: Callable[[tuple[Any, ...]], R]) -> R | None:
        """The record of a row as it is in the database.

        Raises:
            Unread: it was not read yet.
        """
        record: Any = self._opened.get(at)
        if record is None:
            for row in self.rows(at):
                record = self._opened[at] = open_row(row)
        return record  # type: ignore[no-any-return]  # a table has records of one type

    def feed_head(self) -> int:
        """Where the feed ends with what units have written."""
        return self._first_feed_head + len(self.revocations)

    def forget(self) -> None:
        """Something was written: what was read before says nothing any more."""
        self._opened = {}

    @abstractmethod
    def _in_memory(self) -> "BatchTransaction":
        """A transaction for a unit that is run in memory."""

    @abstractmethod
    def _on_database(self) -> SqlTransaction:
        """A transaction for a unit that is run on the database."""

    @abstractmethod
    def _writing(self, changes: Changes) -> Callable[[], object]: ...

    def _keep(self, done: tuple[Outcome, SqlTransaction]) -> Outcome:
        outcome, transaction = done
        self.head = transaction.head
        self.revocations.extend(transaction.revoked)
        if isinstance(transaction, BatchTransaction):
            self.changes.take(transaction.changes)
        return outcome

    def _is_passed_on(self, error: Exception) -> bool:
        """Whether an error in memory is not its unit's own."""
        return isinstance(error, (Unread, NotInMemory))


class _NoDatabase:
    """The session of a unit that is run in memory."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> NoReturn:
        raise NotInMemory


class BatchTransaction(SqlTransaction):
    """The `Transaction` of a unit that is run in memory. What it does not know how to do there ends in NotInMemory."""

    def __init__(self, batch: Batch, sealer: Sealer) -> None:
        super().__init__(_NoDatabase(), sealer, batch.head, batch.now)
        self.changes = Changes(batch.changes)
        self._batch = batch

    def feed_head(self) -> int:
        return self._batch.feed_head() + len(self.revoked)

    def grants(self, query: GrantQuery) -> Sequence[Grant]:
        if query.limit is not None or query.after is not None:
            raise NotInMemory
        stored = self._stored_grants(query)
        changed = self.changes.all_grants()
        if not changed:
            return stored
        among = {grant.sid for grant in stored}
        made = [grant for sid, grant in changed.items() if sid not in among]
        return [grant for grant in (*(changed.get(each.sid, each) for each in stored), *made) if query.matches(grant)]

    def _stored_grants(self, query: GrantQuery) -> Sequence[Grant]:
        return self._opened_grants(query, self._batch.rows(Question(*self._select_grants(query))))

    def revocation(self, kind: RevocationKind, name: str) -> Revocation | None:
        written = self.changes.revocation(kind, name)
        if written is not None:
            return written
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
        if self.changes.has("nonces", nonce) or self._batch.rows(Row("nonces", nonce)):
            return False
        self._put_nonce(nonce, expires_at)
        return True

    def _put_nonce(self, nonce: bytes, expires_at: int) -> None:
        self.changes.put("nonces", {"nonce": nonce, "expires_at": expires_at})

    def _one(self, table: str, record_type: type[R], column: str, value: Key, condition: str = "") -> R | None:
        if condition or table not in READ or column != READ[table][0]:
            raise NotInMemory
        at = Row(table, value)
        written: Any = self.changes.record(at)
        return written or self._batch.record(at, lambda row: self._open(table, record_type, row, column, value))

    def _put(self, table: str, record: msgspec.Struct, key: str, /, **columns: object) -> None:
        super()._put(table, record, key, **columns)
        value: Any = columns[key]
        self.changes.records[Row(table, value)] = record

    def _put_row(self, table: str, key: tuple[str, ...], columns: dict[str, object]) -> None:
        if table not in WRITTEN:
            raise NotInMemory
        self.changes.put(table, columns)

    def _put_event(self, event: audit.Event) -> None:
        self.changes.put("events", sql_log.event_columns(event))

    def _put_tiles(self, tiles: Sequence[merkle.Tile]) -> None:
        for tile in tiles:
            row = sql_log.tile_row(self._sealer, tile)
            self.changes.put("tiles", dict(zip(sql_log.TILE_COLUMNS, row, strict=True)))
