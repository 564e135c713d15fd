"""Rows of the SQL schemas, and the records that they hold."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from agentwrit.broker.storage import sql_log, tables
from agentwrit.broker.storage.base import (
    DATA_FIELDS,
    EXPIRED_AT_ONCE,
    EventQuery,
    Expired,
    GrantPage,
    GrantQuery,
    Record,
)
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Session
from agentwrit.broker.storage.tables import Columns, Table, table_of
from agentwrit.domain import audit, merkle
from agentwrit.domain.app import App
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.ending import End, Ending, about
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.grant import Grant
from agentwrit.domain.idempotency import FirstAnswer
from agentwrit.domain.launch_token import LaunchToken
from agentwrit.domain.limits import AppUsage
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import Revocation, RevocationKind
from agentwrit.domain.signing_key import StoredKey

R = TypeVar("R", bound=msgspec.Struct)

Key = str | bytes

SELECT_REVOCATIONS: Final = "SELECT kind, id, effective_at, last_exp, mac FROM revocations"

ALL: Final = 2**63 - 1  # as a limit
TALLIED: Final = 4096  # events: how many of each type are in so many is known


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
        return self._count("apps")

    def app_usage(self, app_id: str) -> AppUsage | None:
        return self._one("app_usage", AppUsage, "app_id", app_id)

    def launch_token(self, token_hash: bytes) -> LaunchToken | None:
        return self._one("launch_tokens", LaunchToken, "token_hash", token_hash)

    def launch_token_count(self) -> int:
        return self._count("launch_tokens")

    def grant(self, sid: str) -> Grant | None:
        return self._one("grants", Grant, "sid", sid)

    def grants(self, query: GrantQuery) -> Sequence[Grant]:
        return self._stored_grants(query)

    def _one_of(self, column: str, names: Sequence[str]) -> tuple[str, Sequence[object]]:
        """What finds a column that is one of these, and the values for it."""
        return f"{column} IN ({', '.join('?' * len(names))})", names

    def _stored_grants(self, query: GrantQuery) -> Sequence[Grant]:
        """Those that match as they are in the database."""
        sql, values = self._select_grants(query)
        return self._opened_grants(query, self._connection.execute(sql, values))

    def _select_grants(self, query: GrantQuery) -> tuple[str, tuple[object, ...]]:
        """What finds them: a statement, and its values."""
        where = self._grants_where(query)
        place = self.GRANT_PLACE
        where.add(f"{place} > (SELECT {place} FROM grants WHERE sid = ?)", query.after)
        limit = ALL if query.limit is None else query.limit
        order = f" ORDER BY {place}"
        if query.limit is not None and query.over_in is not None:
            order = " ORDER BY exp"
        elif query.falling_with is not None:
            order = ""  # of many parents no index has the order, and nobody asks for it
        return f"SELECT body, mac FROM grants WHERE {where.sql}{order} LIMIT ?", (*where.values, limit)

    def _select_page(self, query: GrantQuery, behind: int, limit: int) -> tuple[str, tuple[object, ...]]:
        # No index has the keys. Looking for the grants of one would pass any number of others in one statement.
        where = self._grants_where(msgspec.structs.replace(query, signed_by=None))
        place = self.GRANT_PLACE
        where.add(f"{place} > ?", behind)
        sql = f"SELECT {place}, body, mac FROM grants WHERE {where.sql} ORDER BY {place} LIMIT ?"
        return sql, (*where.values, limit)

    def _grants_where(self, query: GrantQuery) -> "_Where":
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
        if query.falling_with is not None:
            # An index is a way to what has one of several names, if all that it takes stands beside those.
            beside = "parent_sid <> ''" if query.live_at is None else "parent_sid <> '' AND ended_at = 0"
            sids, agents = query.falling_with
            # Without names it is no way, and then SQLite takes none of the two.
            ways = [self._one_of(*way) for way in (("parent_sid", sids), ("subject", agents)) if way[1]]
            either = " OR ".join(f"{way} AND {beside}" for way, _ in ways) or "FALSE"
            where.add_all(f"({either})", [value for _, values in ways for value in values])
        where.add("tree = ? AND tree <> ''", query.tree)
        if query.is_delegated:
            where.add_plain("parent_sid <> ''")
        return where

    def _opened_grants(self, query: GrantQuery, rows: Iterable[Any]) -> list[Grant]:
        # The columns find the rows; what a row says is what its sealed body says.
        found: Iterable[Grant] = (self._sealer.open_new("grants", body, mac, Grant) for body, mac in rows)
        return [grant for grant in found if query.matches(grant)]

    def grant_page(self, query: GrantQuery, *, behind: int, limit: int) -> GrantPage:
        rows = self._connection.execute(*self._select_page(query, behind, limit)).fetchall()
        return self._page(query, rows, behind, limit, {})

    def _page(
        self, query: GrantQuery, rows: Sequence[Any], behind: int, limit: int, changed: Mapping[str, Grant]
    ) -> GrantPage:
        """A page of `rows`, of which `changed` says how some are by now."""
        stored: list[Grant] = [self._sealer.open_new("grants", body, mac, Grant) for _, body, mac in rows]
        found = [changed.get(grant.sid, grant) for grant in stored] if changed else stored
        is_last = len(rows) < limit
        if is_last and changed:
            among = {grant.sid for grant in stored}
            found += [grant for sid, grant in changed.items() if sid not in among]
        place = rows[-1][0] if rows else behind
        return GrantPage([grant for grant in found if query.matches(grant)], place, len(rows), is_last)

    def live_delegations(self, sid: str, *, in_tree: bool, now: float, limit: int) -> int:
        [count] = self._connection.execute(*self._select_live_delegations(sid, in_tree, now, limit)).fetchone()
        return int(count)

    def _select_live_delegations(
        self, sid: str, in_tree: bool, now: float, limit: int, *, without: Sequence[str] = ()
    ) -> tuple[str, tuple[object, ...]]:
        """What counts live delegations, `without` those of these sids."""
        where = _Where()
        column = "tree" if in_tree else "parent_sid"
        where.add(f"{column} = ? AND {column} <> '' AND ended_at = 0", sid)
        where.add("exp > ?", now)
        if without:
            condition, values = self._one_of("sid", without)
            where.add_all(f"NOT ({condition})", values)
        live = f"SELECT 1 FROM grants WHERE {where.sql} LIMIT ?"
        return f"SELECT count(*) FROM ({live}) AS live", (*where.values, limit)

    def ending(self, ending_id: str) -> Ending | None:
        return self._one("endings", Ending, "id", ending_id)

    def endings(self) -> Sequence[Ending]:
        return self._all("endings", Ending, "done_at = 0 ORDER BY id")

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

    def first_answer_count(self) -> int:
        return self._count("first_answers")

    def signing_keys(self) -> Sequence[StoredKey]:
        return self._all("signing_keys", StoredKey, "TRUE ORDER BY created_at DESC, kid")

    def revocations(self, now: float) -> Iterator[Revocation]:
        rows = self._connection.execute(f"{SELECT_REVOCATIONS} WHERE last_exp > ?", (now,))
        for row in rows:
            yield open_revocation(self._sealer, *row)

    def forgotten_end(self, now: float) -> str | None:
        # By the columns beside the sealed rows, or it would take seconds: they are compared by `store verify`.
        known = "SELECT 1 FROM revocations WHERE kind = ? AND id = grants.sid AND last_exp > ?"
        row = self._connection.execute(
            f"SELECT sid FROM grants WHERE exp > ? AND ended_at <> 0 AND NOT EXISTS ({known}) LIMIT 1",
            (now, RevocationKind.GRANT.value, now),
        ).fetchone()
        return None if row is None else str(row[0])

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

    def cluster(self) -> str:
        row = self._connection.execute("SELECT value FROM meta WHERE name = 'cluster'").fetchone()
        return "" if row is None else str(row[0])

    def settings(self) -> str:
        row = self._connection.execute("SELECT value FROM meta WHERE name = 'settings'").fetchone()
        return "" if row is None else str(row[0])

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

    def event_hash(self, sequence: int) -> str | None:
        return sql_log.hash_at(self._connection, sequence)

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

    def _count(self, table: str) -> int:
        [count] = self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)

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
    """The `Transaction` of the write transaction that `connection` is in. Knows the log's head and what it revoked.

    `covered`: up to where a checkpoint covers the log.
    """

    def __init__(self, connection: Session, sealer: Sealer, head: audit.Head, now: float, *, covered: int) -> None:
        super().__init__(connection, sealer)
        self.head = head
        self.covered = covered
        self.now = now
        self.revoked: list[Revocation] = []

    def put(self, record: Record) -> None:
        table = table_of(record)
        self._put_row(table, (*table.lookup(record), *self._sealer.seal(table.name, record)))

    def spend_nonce(self, nonce: bytes, expires_at: int) -> bool:
        spent = self._connection.execute(
            "INSERT INTO nonces (nonce, expires_at) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1",
            (nonce, expires_at),
        )
        return bool(spent.fetchall())

    def revoke(self, revocation: Revocation, *, replaces: bool = False) -> None:
        known = None if replaces else self.revocation(revocation.kind, revocation.id)
        if known is not None:
            revocation = known.joined(revocation)
        _, mac = self._sealer.seal("revocations", revocation)
        entry = (revocation.kind._value_, revocation.id, revocation.effective_at, revocation.last_exp)
        self._put_row(tables.REVOCATIONS, (*entry, mac, self._next_number()))
        self.revoked.append(revocation)

    def _next_number(self) -> int:
        """The number of a new entry of the feed."""
        return self.feed_head() + 1

    def end(self, ends: Iterable[End]) -> None:
        ends, now = tuple(ends), self.now
        self._put_grants([end.ended(now) for end in ends])
        self._revoke_all([end.revocation(now) for end in ends])
        run = audit.Run(self.head)
        alike: dict[int, audit.Alike] = {}  # by the identity of what they have in common, which `ends` keeps
        rows: list[Columns] = []
        for end in ends:
            grant = end.grant
            common = alike.get(id(end.event))
            if common is None:
                common = alike[id(end.event)] = audit.Alike(end.event, now=now)
            who = about(grant)
            rows.append(sql_log.row_of_alike(common, who, run.append(common, who, grant.jti)))
        self._put_rows(tables.EVENTS, rows)
        self._put_tiles(run.tiles)
        self.head = run.head

    def _put_grants(self, grants: Sequence[Grant]) -> None:
        sealed = self._sealer.seal_all("grants", grants)
        self._put_rows(
            tables.GRANTS, [(*tables.GRANTS.lookup(grant), *row) for grant, row in zip(grants, sealed, strict=True)]
        )

    def _revoke_all(self, revocations: Sequence[Revocation]) -> None:
        """As `revoke`, where each replaces what there may be."""
        sealed = self._sealer.seal_all("revocations", revocations)
        first = self._next_number()
        self._put_rows(
            tables.REVOCATIONS,
            [
                (each.kind._value_, each.id, each.effective_at, each.last_exp, mac, number)
                for number, (each, (_, mac)) in enumerate(zip(revocations, sealed, strict=True), first)
            ],
        )
        self.revoked += revocations

    def record(self, draft: audit.Draft) -> None:
        appended = audit.append(draft, self.head, now=self.now)
        self._put_row(tables.EVENTS, sql_log.event_row(appended.event))
        if appended.tiles:
            self._put_tiles(appended.tiles)
        self.head = appended.head

    def put_checkpoint(self, size: int, note: str) -> None:
        sql_log.put_checkpoint(self._connection, size, note)
        self.covered = size

    def drop_launch_tokens(self) -> int:
        return self._drop("launch_tokens")

    def drop_first_answers(self) -> int:
        return self._drop("first_answers")

    def begin_feed_epoch(self, epoch: str) -> None:
        self._connection.execute("UPDATE meta SET value = ? WHERE name = 'feed_epoch'", (epoch,))

    def put_settings(self, text: str) -> None:
        self._put_meta("settings", text)

    def name_cluster(self, name: str) -> None:
        self._put_meta("cluster", name)

    def _put_meta(self, name: str, value: str) -> None:
        self._connection.execute(
            "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    def prune(self) -> int:
        pruned = self.pruned()
        last = pruned + merkle.TILE_WIDTH
        if pruned % merkle.TILE_WIDTH or not self.archives(after=last - 1):
            return 0
        self._connection.execute("DELETE FROM tallies WHERE last <= ?", (last,))
        gone = self._connection.execute("DELETE FROM events WHERE sequence <= ? RETURNING 1", (last,))
        return len(gone.fetchall())

    def purge(self, limit: int) -> int:
        count = 0
        for table in tables.ALL:
            if table.expiry and count < limit:
                count += self._delete_expired(table, limit - count)
        return count

    def _delete_expired(self, table: Table, limit: int) -> int:
        key = ", ".join(table.key)
        conditions = [*([table.condition] if table.condition else []), f"{table.expiry} <= ?"]
        deleted = self._connection.execute(
            f"DELETE FROM {table.name} WHERE ({key}) IN"
            f" (SELECT {key} FROM {table.name} WHERE {' AND '.join(conditions)} LIMIT ?) RETURNING 1",
            (int(self.now) - table.kept_seconds, limit),
        )
        return len(deleted.fetchall())

    def _drop(self, table: str) -> int:
        return len(self._connection.execute(f"DELETE FROM {table} RETURNING 1").fetchall())

    def _put_row(self, table: Table, row: Columns) -> None:
        self._connection.execute(_upsert(table), row)

    def _put_rows(self, table: Table, rows: Sequence[Columns]) -> None:
        for row in rows:
            self._put_row(table, row)

    def _put_tiles(self, tiles: Sequence[merkle.Tile]) -> None:
        for tile in tiles:
            self._put_row(tables.TILES, sql_log.tile_row(self._sealer, tile))


@cache
def _upsert(table: Table) -> str:
    """The statement that inserts a row, or replaces the row that has the same key."""
    values = ", ".join("?" * len(table.columns))
    return f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({values}) {table.on_conflict}"


class _Where:
    """A conjunction of conditions; those without a value fall away."""

    def __init__(self, *conditions: str) -> None:
        self._conditions = list(conditions)
        self.values: list[object] = []

    def add(self, condition: str, value: object | None) -> None:
        if value is not None:
            self._conditions.append(condition)
            self.values.append(value)

    def add_all(self, condition: str, values: Sequence[object]) -> None:
        """Add one that compares with several values."""
        self._conditions.append(condition)
        self.values.extend(values)

    def add_plain(self, condition: str) -> None:
        """Add one that compares with no value."""
        self._conditions.append(condition)

    @property
    def has_conditions(self) -> bool:
        return bool(self._conditions)

    @property
    def sql(self) -> str:
        return " AND ".join(self._conditions) or "TRUE"
