"""Rows of the SQL schemas, and the records that they hold."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from agentwrit.broker.storage import sql_log
from agentwrit.broker.storage.base import DATA_FIELDS, EXPIRED_AT_ONCE, EventQuery, Expired, GrantQuery
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Session
from agentwrit.domain import audit, merkle
from agentwrit.domain.app import App
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.grant import Grant
from agentwrit.domain.idempotency import FirstAnswer
from agentwrit.domain.launch_token import LaunchToken
from agentwrit.domain.limits import AppUsage
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import RETENTION_SECONDS, Revocation, RevocationKind
from agentwrit.domain.signing_key import StoredKey

R = TypeVar("R", bound=msgspec.Struct)

Key = str | bytes

_BELOW = (
    "WITH RECURSIVE below (sid) AS ("
    "SELECT sid FROM grants WHERE parent_sid = ? AND parent_sid <> ''"
    " UNION SELECT grants.sid FROM grants JOIN below ON parent_sid = below.sid AND parent_sid <> ''"
    ") SELECT sid FROM below"
)

SELECT_REVOCATIONS: Final = "SELECT kind, id, effective_at, last_exp, mac FROM revocations"

# What stands beside a grant's sealed body, for finding it.
GRANT_COLUMNS: Final = (
    "sid",
    "kind",
    "app_id",
    "ended_at",
    "exp",
    "subject",
    "task_id",
    "orch_id",
    "jti",
    "parent_sid",
    "kid",
    "counted",
)

ALL: Final = 2**63 - 1  # as a limit
TALLIED: Final = 4096  # events: how many of each type are in so many is known

_IS_NOT_HEAD = "seq < (SELECT max(seq) FROM revocations)"


class SqlSnapshot:
    """The `Snapshot` of whatever transaction `connection` is in."""

    GRANT_PLACE: ClassVar[str]
    """The column that tells in which order grants were made."""
    UNINDEXED: ClassVar[str]
    """What stands before a column whose index is no way to the rows that are wanted."""
    MEMBER: ClassVar[str]
    """What gives the member of that name of an event's data."""

    def __init__(self, connection: Session, sealer: Sealer) -> None:
        self._connection = connection
        self._sealer = sealer

    def operator(self, name: str) -> Operator | None:
        return self._one("operators", Operator, "name", name)

    def operators(self) -> Sequence[Operator]:
        rows = self._connection.execute("SELECT name, body, mac FROM operators ORDER BY name")
        return [self._open("operators", Operator, row, "name", name) for name, *row in rows]

    def app(self, app_id: str) -> App | None:
        return self._one("apps", App, "app_id", app_id)

    def app_by_client_id(self, client_id: str) -> App | None:
        return self._one("apps", App, "client_id", client_id)

    def active_app_by_name(self, name: str) -> App | None:
        return self._one("apps", App, "name", name, "status <> 'inactive'")

    def apps(self, *, limit: int | None = None, offset: int = 0) -> Sequence[App]:
        return self._all(
            "apps", App, "TRUE ORDER BY position LIMIT ? OFFSET ?", ALL if limit is None else limit, offset
        )

    def app_count(self) -> int:
        [count] = self._connection.execute("SELECT count(*) FROM apps").fetchone()
        return int(count)

    def app_usage(self, app_id: str) -> AppUsage | None:
        return self._one("app_usage", AppUsage, "app_id", app_id)

    def launch_token(self, token_hash: bytes) -> LaunchToken | None:
        return self._one("launch_tokens", LaunchToken, "token_hash", token_hash)

    def grant(self, sid: str) -> Grant | None:
        return self._one("grants", Grant, "sid", sid)

    def grants(self, query: GrantQuery) -> Sequence[Grant]:
        return self._stored_grants(query)

    def _stored_grants(self, query: GrantQuery) -> Sequence[Grant]:
        """Those that match as they are in the database."""
        sql, values = self._select_grants(query)
        return self._opened_grants(query, self._connection.execute(sql, values))

    def _select_grants(self, query: GrantQuery) -> tuple[str, tuple[object, ...]]:
        """What finds them: a statement, and its values."""
        where = _Where()
        if query.live_at is not None:
            # Hardly any is over, so the index on exp is no way to the rest.
            where.add(f"ended_at = 0 AND {self.UNINDEXED}exp > ?", query.live_at)
        if query.over_in is not None:
            where.add("ended_at = 0 AND exp > ?", query.over_in[0])
            where.add("exp <= ?", query.over_in[1])
        if query.is_counted:
            where.add_plain("counted = 1")
        where.add("app_id = ?", query.app_id)
        where.add("kind = ?", query.kind)
        where.add("subject = ?", query.subject)
        where.add("task_id = ? AND task_id <> ''", query.task_id)
        where.add("orch_id = ?", query.orch_id)
        where.add("jti = ?", query.jti)
        where.add("sid = ?", query.sid)
        where.add("(kid IN (?, '') OR parent_sid <> '')", query.signed_by)
        where.add("parent_sid = ? AND parent_sid <> ''" if query.parent else "parent_sid = ?", query.parent)
        where.add(f"sid IN ({_BELOW})", query.below)
        place = self.GRANT_PLACE
        where.add(f"{place} > (SELECT {place} FROM grants WHERE sid = ?)", query.after)
        limit = ALL if query.limit is None else query.limit
        order = place if query.over_in is None or query.limit is None else "exp"
        return f"SELECT body, mac FROM grants WHERE {where.sql} ORDER BY {order} LIMIT ?", (*where.values, limit)

    def _opened_grants(self, query: GrantQuery, rows: Iterable[Any]) -> list[Grant]:
        # The columns find the rows; what a row says is what its sealed body says.
        found = (self._sealer.open("grants", body, mac, Grant) for body, mac in rows)
        return [grant for grant in found if query.matches(grant)]

    def expired(self, app_id: str, after: int, until: int) -> Expired:
        query = GrantQuery(over_in=(after, until), is_counted=True, app_id=app_id)
        first = self._stored_grants(msgspec.structs.replace(query, limit=EXPIRED_AT_ONCE))
        if len(first) == EXPIRED_AT_ONCE:
            until = max(first[0].exp, first[-1].exp - 1)  # of the last second there may be more
            query = msgspec.structs.replace(query, over_in=(after, until))
        return Expired(len(self.grants(query)), until)

    def last_exp(self) -> int:
        [exp] = self._connection.execute("SELECT coalesce(max(exp), 0) FROM grants").fetchone()
        return int(exp)

    def first_answer(self, key: bytes) -> FirstAnswer | None:
        return self._one("first_answers", FirstAnswer, "key", key)

    def signing_keys(self) -> Sequence[StoredKey]:
        return self._all("signing_keys", StoredKey, "TRUE ORDER BY created_at DESC, kid")

    def revocations(self, now: float) -> Iterator[Revocation]:
        rows = self._connection.execute(f"{SELECT_REVOCATIONS} WHERE last_exp > ?", (now,))
        for row in rows:
            yield open_revocation(self._sealer, *row)

    def revocation(self, kind: RevocationKind, name: str) -> Revocation | None:
        row = self._connection.execute(f"{SELECT_REVOCATIONS} WHERE kind = ? AND id = ?", (kind.value, name)).fetchone()
        return None if row is None else open_revocation(self._sealer, *row)

    def feed(self, first: int, last: int) -> Sequence[Revocation]:
        rows = self._connection.execute(
            f"{SELECT_REVOCATIONS} WHERE seq BETWEEN ? AND ? ORDER BY seq",
            (first, last),
        )
        return [open_revocation(self._sealer, *row) for row in rows]

    def feed_head(self) -> int:
        [head] = self._connection.execute("SELECT coalesce(max(seq), 0) FROM revocations").fetchone()
        return int(head)

    def feed_epoch(self) -> str:
        [epoch] = self._connection.execute("SELECT value FROM meta WHERE name = 'feed_epoch'").fetchone()
        return str(epoch)

    def events(self, query: EventQuery) -> Sequence[audit.Event]:
        where = self._events_where(query)
        where.add("sequence < ?" if query.is_newest_first else "sequence > ?", query.after or None)
        order = "DESC" if query.is_newest_first else "ASC"
        rows = self._connection.execute(
            f"{sql_log.SELECT_EVENTS} WHERE {where.sql} ORDER BY sequence {order} LIMIT ? OFFSET ?",
            (*where.values, query.limit, query.offset),
        )
        return [sql_log.event(row) for row in rows]

    def event_count(self, query: EventQuery | None = None, *, behind: int = 0) -> int:
        filters = (query or EventQuery()).filters()
        first, last = self._event_range()
        behind = max(behind, first - 1)
        if filters == EventQuery().filters():
            return max(0, last - behind)  # numbered without a gap
        if filters == EventQuery(event_type=filters.event_type).filters():
            begin, end = -(-behind // TALLIED) * TALLIED, last // TALLIED * TALLIED
            if begin < end:
                [tallied] = self._connection.execute(
                    "SELECT coalesce(sum(events), 0) FROM tallies WHERE event_type = ? AND last > ? AND last <= ?",
                    (filters.event_type, begin, end),
                ).fetchone()
                return self._counted(filters, behind, begin) + int(tallied) + self._counted(filters, end, last)
        return self._counted(filters, behind, last)

    def _counted(self, filters: EventQuery, behind: int, last: int) -> int:
        """How many of the events behind one place, and up to another, match."""
        where = self._events_where(filters)
        where.add("sequence > ?", behind)
        where.add("sequence <= ?", last)
        [count] = self._connection.execute(f"SELECT count(*) FROM events WHERE {where.sql}", where.values).fetchone()
        return int(count)

    def entries(self, first: int, last: int) -> Sequence[bytes]:
        return list(sql_log.entries(self._connection, first, last))

    def tile(self, level: int, number: int) -> bytes:
        return sql_log.tile(self._connection, self._sealer, level, number)

    def checkpoint(self) -> str | None:
        return sql_log.checkpoint(self._connection)

    def event_head(self) -> int:
        return self._event_range()[1]

    def pruned(self) -> int:
        return self._event_range()[0] - 1

    def archives(self, *, after: int = 0) -> Sequence[Archive]:
        return self._all("archives", Archive, "last > ? ORDER BY last", after)

    def _events_where(self, query: EventQuery) -> "_Where":
        where = _Where()
        # An index of those that have a name at all can only be used by who asks for no others. Where a filter is
        # there that fewer events pass, the index of the others is no way to them.
        is_for_denials = query.outcome == audit.Outcome.DENIED
        for column, value, condition in (
            ("agent_id", query.agent_id, "agent_id <> ''"),
            ("task_id", query.task_id, "task_id <> ''"),
            ("outcome", query.outcome if is_for_denials else None, "outcome = 'denied'"),
            ("event_type", query.event_type, "TRUE"),
            ("app_id", query.app_id, "app_id <> ''"),
            ("outcome", None if is_for_denials else query.outcome, "TRUE"),
            ("principal", query.principal, "TRUE"),
            ("sid", query.sid, "TRUE"),
            ("client_address", query.client_address, "TRUE"),
            ("request_id", query.request_id, "TRUE"),
            ("trace_id", query.trace_id, "TRUE"),
            ("orch_id", query.orch_id, "TRUE"),
            ("resource", query.resource, "TRUE"),
            ("deleg_chain_hash", query.deleg_chain_hash, "TRUE"),
        ):
            where.add(
                f"{self.UNINDEXED}{column} = ?" if where.has_conditions else f"{column} = ? AND {condition}", value
            )
        for name in DATA_FIELDS:
            where.add(f"{self.MEMBER.format(name)} = ?", getattr(query, name))
        # Times rise with the numbers, so a time is a place in the log, which is found faster than a time.
        if query.since is not None:
            where.add("sequence >= ?", self._place(query.since, bisect_left))
        if query.until is not None:
            where.add("sequence < ?", self._place(query.until, bisect_right))
        return where

    def _place(self, timestamp: str, bisect: Callable[..., int]) -> int:
        """The number of the first event that is not before, or with `bisect_right` after, this time."""
        first, last = self._event_range()
        numbers = range(first, last + 1)
        return first + bisect(numbers, timestamp, key=self._timestamp)

    def _timestamp(self, sequence: int) -> str:
        [timestamp] = self._connection.execute(
            "SELECT timestamp FROM events WHERE sequence >= ? ORDER BY sequence LIMIT 1", (sequence,)
        ).fetchone()
        return str(timestamp)

    def _event_range(self) -> tuple[int, int]:
        """The numbers of the oldest and the newest event; 1 and 0 when there is none."""
        [first] = self._connection.execute("SELECT coalesce(min(sequence), 1) FROM events").fetchone()
        [last] = self._connection.execute("SELECT coalesce(max(sequence), 0) FROM events").fetchone()
        return int(first), int(last)

    def _one(self, table: str, record_type: type[R], column: str, value: Key, condition: str = "TRUE") -> R | None:
        row = self._connection.execute(
            f"SELECT body, mac FROM {table} WHERE {column} = ? AND {condition}", (value,)
        ).fetchone()
        return None if row is None else self._open(table, record_type, row, column, value)

    def _open(self, table: str, record_type: type[R], row: Sequence[Any], column: str, value: Key) -> R:
        body, mac = row
        record = self._sealer.open(table, body, mac, record_type)
        # A genuine row in another's place is no better than a forged one.
        if getattr(record, column) != value:
            raise TamperedRecord(f"a row of {table} stands in another's place")
        return record

    def _all(self, table: str, record_type: type[R], where: str, *values: object) -> list[R]:
        rows = self._connection.execute(f"SELECT body, mac FROM {table} WHERE {where}", values)
        return [self._sealer.open(table, body, mac, record_type) for body, mac in rows]


def open_revocation(sealer: Sealer, kind: str, name: str, effective_at: int, last_exp: int, mac: bytes) -> Revocation:
    """The entry of a row of `SELECT_REVOCATIONS`.

    Raises:
        TamperedRecord: the broker did not write it.
    """
    columns = {"kind": kind, "id": name, "effective_at": effective_at, "last_exp": last_exp}
    sealer.check("revocations", msgspec.json.encode(columns), mac)
    return msgspec.convert(columns, Revocation)


class SqlTransaction(SqlSnapshot):
    """The `Transaction` of the write transaction that `connection` is in. Knows the log's head and what it revoked."""

    def __init__(self, connection: Session, sealer: Sealer, head: audit.Head, now: float) -> None:
        super().__init__(connection, sealer)
        self.head = head
        self.now = now
        self.revoked: list[Revocation] = []

    def put_operator(self, operator: Operator) -> None:
        self._put("operators", operator, "name", name=operator.name)

    def put_app(self, app: App) -> None:
        self._put(
            "apps", app, "app_id", app_id=app.app_id, client_id=app.client_id, name=app.name, status=app.status.value
        )

    def put_app_usage(self, usage: AppUsage) -> None:
        self._put("app_usage", usage, "app_id", app_id=usage.app_id)

    def put_launch_token(self, token: LaunchToken) -> None:
        self._put("launch_tokens", token, "token_hash", token_hash=token.token_hash, expires_at=token.expires_at)

    def put_grant(self, grant: Grant) -> None:
        self._put(
            "grants",
            grant,
            "sid",
            sid=grant.sid,
            kind=grant.kind.value,
            app_id=grant.app_id,
            ended_at=grant.ended_at,
            exp=grant.exp,
            subject=grant.subject,
            task_id=grant.task_id,
            orch_id=grant.orch_id,
            jti=grant.jti,
            parent_sid=grant.parent_sid,
            kid=grant.kid,
            counted=int(grant.is_counted),
        )

    def put_first_answer(self, answer: FirstAnswer) -> None:
        self._put("first_answers", answer, "key", key=answer.key, expires_at=answer.expires_at)

    def put_signing_key(self, key: StoredKey) -> None:
        self._put("signing_keys", key, "kid", kid=key.kid, created_at=key.created_at)

    def spend_nonce(self, nonce: bytes, expires_at: int) -> bool:
        spent = self._connection.execute(
            "INSERT INTO nonces (nonce, expires_at) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1",
            (nonce, expires_at),
        )
        return bool(spent.fetchall())

    def revoke(self, revocation: Revocation) -> None:
        known = self.revocation(revocation.kind, revocation.id)
        if known is not None:
            revocation = known.joined(revocation)
        _, mac = self._sealer.seal("revocations", revocation)
        columns: dict[str, object] = {
            "kind": revocation.kind.value,
            "id": revocation.id,
            "effective_at": revocation.effective_at,
            "last_exp": revocation.last_exp,
            "mac": mac,
            "seq": self._next_number(),
        }
        self._put_row("revocations", ("kind", "id"), columns)
        self.revoked.append(revocation)

    def _next_number(self) -> int:
        """The number of a new entry of the feed."""
        return self.feed_head() + 1

    def record(self, draft: audit.Draft) -> None:
        appended = audit.append(draft, self.head, now=self.now)
        self._put_event(appended.event)
        if appended.tiles:
            self._put_tiles(appended.tiles)
        self.head = appended.head

    def put_checkpoint(self, size: int, note: str) -> None:
        sql_log.put_checkpoint(self._connection, size, note)

    def drop_launch_tokens(self) -> int:
        return self._drop("launch_tokens")

    def drop_first_answers(self) -> int:
        return self._drop("first_answers")

    def begin_feed_epoch(self, epoch: str) -> None:
        self._connection.execute("UPDATE meta SET value = ? WHERE name = 'feed_epoch'", (epoch,))

    def put_archive(self, archive: Archive) -> None:
        self._put("archives", archive, "last", last=archive.last)

    def prune(self) -> int:
        pruned = self.pruned()
        last = pruned + merkle.TILE_WIDTH
        if pruned % merkle.TILE_WIDTH or not self.archives(after=last - 1):
            return 0
        self._connection.execute("DELETE FROM tallies WHERE last <= ?", (last,))
        gone = self._connection.execute("DELETE FROM events WHERE sequence <= ? RETURNING 1", (last,))
        return len(gone.fetchall())

    def purge(self, limit: int) -> int:
        over = int(self.now)
        count = 0
        for table, key, column, before in (
            ("nonces", "nonce", "expires_at", over),
            ("launch_tokens", "token_hash", "expires_at", over),
            ("first_answers", "key", "expires_at", over),
            ("grants", "sid", "exp", over - RETENTION_SECONDS),
            ("revocations", "(kind, id)", f"{_IS_NOT_HEAD} AND last_exp", over - RETENTION_SECONDS),
        ):
            columns = key.strip("()")
            forgotten = self._connection.execute(
                f"DELETE FROM {table} WHERE {key} IN (SELECT {columns} FROM {table} WHERE {column} <= ? LIMIT ?)"
                " RETURNING 1",
                (before, limit - count),
            )
            count += len(forgotten.fetchall())
        return count

    def _drop(self, table: str) -> int:
        return len(self._connection.execute(f"DELETE FROM {table} RETURNING 1").fetchall())

    def _put(self, table: str, record: msgspec.Struct, key: str, /, **columns: object) -> None:
        columns["body"], columns["mac"] = self._sealer.seal(table, record)
        self._put_row(table, (key,), columns)

    def _put_row(self, table: str, key: tuple[str, ...], columns: dict[str, object]) -> None:
        self._connection.execute(upsert(table, key, tuple(columns)), tuple(columns.values()))

    def _put_event(self, event: audit.Event) -> None:
        sql_log.put_event(self._connection, event)

    def _put_tiles(self, tiles: Sequence[merkle.Tile]) -> None:
        sql_log.put_tiles(self._connection, self._sealer, tiles)


@cache
def upsert(table: str, key: tuple[str, ...], columns: tuple[str, ...]) -> str:
    """What inserts a row, and if it has a key replaces a row that has the same."""
    values = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values}) {on_conflict(key, columns)}"


def on_conflict(key: Sequence[str], columns: Sequence[str]) -> str:
    """What makes an INSERT replace a row that has the same key; nothing where there is none that is replaced."""
    if not key:
        return ""
    changes = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in key)
    return f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"


class _Where:
    """A conjunction of conditions; those without a value fall away."""

    def __init__(self, *conditions: str) -> None:
        self._conditions = list(conditions)
        self.values: list[object] = []

    def add(self, condition: str, value: object | None) -> None:
        if value is not None:
            self._conditions.append(condition)
            self.values.append(value)

    def add_plain(self, condition: str) -> None:
        """Add one that compares with no value."""
        self._conditions.append(condition)

    @property
    def has_conditions(self) -> bool:
        return bool(self._conditions)

    @property
    def sql(self) -> str:
        return " AND ".join(self._conditions) or "TRUE"
