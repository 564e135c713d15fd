"""Units of work in memory: what a batch of them writes is kept, each later one sees it, and it is written together.

A unit runs on rows that its batch has read, or reads. Only what agents do many times a second is done like this. A unit
that asks for anything else (`NotInMemory`) is run on the database itself, behind all that was kept until then.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import msgspec

from agentwrit.broker.storage import sql_units, tables
from agentwrit.broker.storage.base import GrantPage, GrantQuery, Record, Row, Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Session
from agentwrit.broker.storage.sql_rows import SELECT_REVOCATIONS, Key, SqlTransaction, open_revocation
from agentwrit.broker.storage.sql_units import Outcome, Waiting
from agentwrit.broker.storage.tables import Columns, Table, table_of
from agentwrit.domain import audit
from agentwrit.domain.grant import Grant
from agentwrit.domain.revocation import Revocation, RevocationKind

R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")

READ: Final = {table.name: table for table in tables.ALL if table.found_by_key}
"""The tables whose rows units in memory find by their key."""

_KEY_OF: Final[Mapping[Table, Callable[[Columns], object]]] = {
    table: itemgetter(*range(len(table.key) or 1)) for table in tables.ALL if table.in_memory
}
"""What tells a row from the others that a batch writes, of the tables that units write in memory."""


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
        self.rows: defaultdict[Table, dict[object, Columns]] = defaultdict(dict)
        self.records: dict[Row, msgspec.Struct] = {}
        self.grants: dict[str, Grant] = {}
        self.delegations: dict[str, Grant] = {}  # those grants that were delegated
        self.revocations: dict[tuple[RevocationKind, str], Revocation] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to send."""
        return bool(self.rows)

    @property
    def row_count(self) -> int:
        return sum(map(len, self.rows.values()))

    def put(self, table: Table, row: Columns) -> None:
        self.rows[table][_KEY_OF[table](row)] = row

    def put_all(self, table: Table, rows: Iterable[Columns]) -> None:
        key_of = _KEY_OF[table]
        self.rows[table].update((key_of(row), row) for row in rows)

    def has(self, table: Table, key: Key) -> bool:
        is_here = table in self.rows and key in self.rows[table]
        return is_here or (self.below is not None and self.below.has(table, key))

    def record(self, at: Row) -> msgspec.Struct | None:
        found = self.records.get(at)
        return found if found is not None or self.below is None else self.below.record(at)

    def grant(self, sid: str) -> Grant | None:
        found = self.grants.get(sid)
        return found if found is not None or self.below is None else self.below.grant(sid)

    def revocation(self, kind: RevocationKind, name: str) -> Revocation | None:
        found = self.revocations.get((kind, name))
        return found if found is not None or self.below is None else self.below.revocation(kind, name)

    def all_grants(self) -> Mapping[str, Grant]:
        return self.grants if self.below is None else {**self.below.all_grants(), **self.grants}

    def all_delegations(self) -> Mapping[str, Grant]:
        return self.delegations if self.below is None else {**self.below.all_delegations(), **self.delegations}

    def put_grant(self, grant: Grant) -> None:
        self.grants[grant.sid] = grant
        if grant.chain:
            self.delegations[grant.sid] = grant

    def take(self, later: "Changes") -> None:
        for table, rows in later.rows.items():
            self.rows[table].update(rows)
        self.records.update(later.records)
        self.grants.update(later.grants)
        self.delegations.update(later.delegations)
        self.revocations.update(later.revocations)


class Batch(ABC):
    """What is known of the database in a transaction, and what units have made of it.

    `head` and `now`: where the log ends with what units have written, and the time; `revocations`: what they revoked;
    `covered`: up to where a checkpoint covers the log. `feed_head`: where the feed ended before the first unit;
    `below`: what is to be seen although it may not be in the database yet.
    """

    def __init__(
        self,
        session: Session,
        sealer: Sealer,
        *,
        head: audit.Head,
        feed_head: int,
        covered: int,
        now: float,
        below: Changes | None = None,
    ) -> None:
        self.head = head
        self.covered = covered
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

    def apply(self, unit: Callable[[Transaction], T]) -> T:
        """Run a unit in memory that is the only one: what it raises is raised, and then the batch is of no more use."""
        transaction = self._in_memory()
        value = unit(transaction)
        self._take_from(transaction)
        return value

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
        self._take_from(transaction)
        return outcome

    def _take_from(self, transaction: SqlTransaction) -> None:
        self.head = transaction.head
        self.covered = transaction.covered
        self.revocations.extend(transaction.revoked)
        if isinstance(transaction, BatchTransaction):
            self.changes.take(transaction.changes)

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
        super().__init__(_NoDatabase(), sealer, batch.head, batch.now, covered=batch.covered)
        self.changes = Changes(batch.changes)
        self._batch = batch

    def feed_head(self) -> int:
        return self._batch.feed_head() + len(self.revoked)

    def grants(self, query: GrantQuery) -> Sequence[Grant]:
        if query.after is not None or (query.limit is not None and query.over_in is not None):
            raise NotInMemory
        is_about_delegations = query.is_delegated or query.falling_with is not None
        changed = self.changes.all_delegations() if is_about_delegations else self.changes.all_grants()
        if not changed:
            return self._stored_grants(query)
        limit = query.limit
        if limit is not None:  # any that was changed may be one that no longer matches
            query = msgspec.structs.replace(query, limit=limit + len(changed))
        stored = self._stored_grants(query)
        among = {grant.sid for grant in stored}
        made = [grant for sid, grant in changed.items() if sid not in among]
        found = [grant for grant in (*(changed.get(each.sid, each) for each in stored), *made) if query.matches(grant)]
        return found[:limit]

    def grant_page(self, query: GrantQuery, *, behind: int, limit: int) -> GrantPage:
        rows = self._batch.rows(Question(*self._select_page(query, behind, limit)))
        return self._page(query, rows, behind, limit, self.changes.all_grants())

    def live_delegations(self, sid: str, *, in_tree: bool, now: float, limit: int) -> int:
        changed = self.changes.all_delegations().values()
        theirs = [grant for grant in changed if sid == (grant.tree if in_tree else grant.parent_sid)]
        known = [grant.sid for grant in theirs]
        question = Question(*self._select_live_delegations(sid, in_tree, now, limit, without=known))
        [[others]] = self._batch.rows(question)
        return min(limit, int(others) + sum(grant.is_live(now) for grant in theirs))

    def _stored_grants(self, query: GrantQuery) -> Sequence[Grant]:
        return self._opened_grants(query, self._batch.rows(Question(*self._select_grants(query))))

    def revocation(self, kind: RevocationKind, name: str) -> Revocation | None:
        written = self.changes.revocation(kind, name)
        if written is not None:
            return written
        for row in self._batch.rows(Question(f"{SELECT_REVOCATIONS} WHERE kind = ? AND id = ?", (kind.value, name))):
            return open_revocation(self._sealer, *row)
        return None

    def revoke(self, revocation: Revocation, *, replaces: bool = False) -> None:
        super().revoke(revocation, replaces=replaces)
        self.changes.revocations[revocation.kind, revocation.id] = self.revoked[-1]

    def spend_nonce(self, nonce: bytes, expires_at: int) -> bool:
        if self.changes.has(tables.NONCES, nonce) or self._batch.rows(Row("nonces", nonce)):
            return False
        self._put_nonce(nonce, expires_at)
        return True

    def _put_nonce(self, nonce: bytes, expires_at: int) -> None:
        self.changes.put(tables.NONCES, (nonce, expires_at))

    def _one(self, table: str, record_type: type[R], column: str, value: Key, condition: str = "") -> R | None:
        if condition or table not in READ or (column,) != READ[table].key:
            raise NotInMemory
        at = Row(table, value)
        written: Any = self.changes.grant(str(value)) if table == "grants" else self.changes.record(at)
        return written or self._batch.record(at, lambda row: self._open(table, record_type, row, column, value))

    def put(self, record: Record) -> None:
        super().put(record)
        if isinstance(record, Grant):
            self.changes.put_grant(record)
        else:
            table = table_of(record)
            self.changes.records[Row(table.name, getattr(record, table.key[0]))] = record

    def _put_row(self, table: Table, row: Columns) -> None:
        if not table.in_memory:
            raise NotInMemory
        self.changes.put(table, row)

    def _put_rows(self, table: Table, rows: Sequence[Columns]) -> None:
        if rows:
            self.changes.put_all(table, rows)

    def _put_grants(self, grants: Sequence[Grant]) -> None:
        super()._put_grants(grants)
        for grant in grants:
            self.changes.put_grant(grant)

    def _revoke_all(self, revocations: Sequence[Revocation]) -> None:
        super()._revoke_all(revocations)
        self.changes.revocations |= {(entry.kind, entry.id): entry for entry in revocations}
