"""A store in memory, for tests: the port's guarantees but for durability, and faults where a test wants them."""

import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from agentwrit.broker.clock import Clock
from agentwrit.broker.measures import Measures
from agentwrit.broker.storage.base import (
    DATA_FIELDS,
    EQUAL_FIELDS,
    Denied,
    EventQuery,
    Expired,
    GrantPage,
    GrantQuery,
    Record,
    RevocationListener,
    Row,
    Snapshot,
    Transaction,
)
from agentwrit.broker.storage.tables import table_of
from agentwrit.domain import audit, merkle
from agentwrit.domain.app import App
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.ending import End, Ending
from agentwrit.domain.errors import Unavailable
from agentwrit.domain.grant import Grant
from agentwrit.domain.idempotency import FirstAnswer
from agentwrit.domain.launch_token import LaunchToken
from agentwrit.domain.limits import AppUsage
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import RETENTION_SECONDS, Revocation, RevocationKind
from agentwrit.domain.signing_key import StoredKey

T = TypeVar("T")


class MemoryStore:
    """The `Store` over dictionaries.

    `fault` is called with "begin", "commit", "read" and "catch_up", and may raise what it likes.
    Raised at "commit" it undoes the unit, as a disk that is full does.
    """

    def __init__(self, clock: Clock, *, fault: Callable[[str], None] = lambda point: None) -> None:
        self._clock = clock
        self._fault = fault
        self._tables = _Tables()
        self._listeners: list[RevocationListener] = []
        self._measures = Measures()
        self._measures.is_in_charge = True
        self._is_writable = True
        self._is_closed = False

    async def write(self, unit: Callable[[Transaction], T], *, reads: Sequence[Row] = ()) -> T:
        self._check_open()
        with self._watched():
            self._fault("begin")
        transaction = _MemoryTransaction(self._tables, self._clock.now())
        try:
            value = unit(transaction)
        except Denied as denied:
            transaction.undo()
            for event in denied.events:
                transaction.record(event)
            self._commit(transaction)
            raise denied.error from None
        except BaseException:
            transaction.undo()
            raise
        self._commit(transaction)
        return value

    async def read(self, query: Callable[[Snapshot], T]) -> T:
        self._check_open()
        self._fault("read")
        return query(_MemorySnapshot(self._tables))

    def listen(self, listener: RevocationListener) -> None:
        self._listeners.append(listener)

    async def catch_up(self) -> None:
        """Nothing to wait for: all commits are ours. `fault` may still refuse."""
        self._check_open()
        self._fault("catch_up")

    @property
    def measures(self) -> Measures:
        self._measures.log_head = self._tables.log["head"].sequence
        return self._measures

    async def is_in_charge(self) -> bool:
        return True

    def log_bytes(self) -> int:
        return 0

    def is_writable(self) -> bool:
        return self._is_writable and not self._is_closed

    async def close(self) -> None:
        self._is_closed = True

    def _commit(self, transaction: "_MemoryTransaction") -> None:
        try:
            with self._watched():
                self._fault("commit")
        except BaseException:
            transaction.undo()
            raise
        if transaction.revoked:
            for listener in self._listeners:
                listener(transaction.revoked)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._is_writable = False
            raise
        self._is_writable = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable("the broker is stopping", cause="stopping")


class _Tables:
    def __init__(self) -> None:
        self.operators: dict[str, Operator] = {}
        self.apps: dict[str, App] = {}
        self.app_usage: dict[str, AppUsage] = {}
        self.launch_tokens: dict[bytes, LaunchToken] = {}
        self.grants: dict[str, Grant] = {}
        self.endings: dict[str, Ending] = {}
        self.first_answers: dict[bytes, FirstAnswer] = {}
        self.signing_keys: dict[str, StoredKey] = {}
        self.nonces: dict[bytes, int] = {}
        self.revocations: dict[tuple[RevocationKind, str], Revocation] = {}
        self.feed: dict[tuple[RevocationKind, str], int] = {}
        self.epoch = {"feed": secrets.token_hex(16)}
        self.names: dict[str, str] = {}
        self.events: dict[int, audit.Event] = {}
        self.tiles: dict[tuple[int, int], bytes] = {}
        self.log = {"head": audit.Head()}
        self.checkpoints: dict[str, str] = {}
        self.archives: dict[int, Archive] = {}


class _MemorySnapshot:
    def __init__(self, tables: _Tables) -> None:
        self._tables = tables

    def operator(self, name: str) -> Operator | None:
        return self._tables.operators.get(name)

    def operators(self) -> Sequence[Operator]:
        return [operator for _, operator in sorted(self._tables.operators.items())]

    def app(self, app_id: str) -> App | None:
        return self._tables.apps.get(app_id)

    def app_by_client_id(self, client_id: str) -> App | None:
        return next((app for app in self._tables.apps.values() if app.client_id == client_id), None)

    def active_app_by_name(self, name: str) -> App | None:
        return next((app for app in self._tables.apps.values() if app.name == name and not app.is_removed), None)

    def apps(self, *, limit: int | None = None, offset: int = 0) -> Sequence[App]:
        return list(self._tables.apps.values())[offset:][:limit]

    def app_count(self) -> int:
        return len(self._tables.apps)

    def app_usage(self, app_id: str) -> AppUsage | None:
        return self._tables.app_usage.get(app_id)

    def launch_token(self, token_hash: bytes) -> LaunchToken | None:
        return self._tables.launch_tokens.get(token_hash)

    def launch_token_count(self) -> int:
        return len(self._tables.launch_tokens)

    def grant(self, sid: str) -> Grant | None:
        return self._tables.grants.get(sid)

    def grants(self, query: GrantQuery) -> Sequence[Grant]:
        made = list(self._tables.grants.values())
        if query.after is not None:
            places = [place for place, grant in enumerate(made) if grant.sid == query.after]
            made = made[places[0] + 1 :] if places else []
        return [grant for grant in made if query.matches(grant)][: query.limit]

    def grant_page(self, query: GrantQuery, *, behind: int, limit: int) -> GrantPage:
        rows = [
            (place, grant)
            for place, grant in enumerate(self._tables.grants.values(), start=1)
            if place > behind and query.matches(grant)
        ][:limit]
        place = rows[-1][0] if rows else behind
        return GrantPage([grant for _, grant in rows], place, len(rows), len(rows) < limit)

    def live_delegations(self, sid: str, *, in_tree: bool, now: float, limit: int) -> int:
        live = (grant for grant in self._tables.grants.values() if grant.chain and grant.is_live(now))
        return min(limit, sum(sid == (grant.tree if in_tree else grant.parent_sid) for grant in live))

    def ending(self, ending_id: str) -> Ending | None:
        return self._tables.endings.get(ending_id)

    def endings(self) -> Sequence[Ending]:
        return [ending for _, ending in sorted(self._tables.endings.items()) if not ending.is_over]

    def expired(self, app_id: str, after: int, until: int) -> Expired:
        return Expired(len(self.grants(GrantQuery(over_in=(after, until), is_counted=True, app_id=app_id))), until)

    def last_exp(self) -> int:
        return max((grant.exp for grant in self._tables.grants.values()), default=0)

    def first_answer(self, key: bytes) -> FirstAnswer | None:
        return self._tables.first_answers.get(key)

    def first_answer_count(self) -> int:
        return len(self._tables.first_answers)

    def signing_keys(self) -> Sequence[StoredKey]:
        return sorted(self._tables.signing_keys.values(), key=lambda key: (-key.created_at, key.kid))

    def revocations(self, now: float) -> Iterator[Revocation]:
        return iter([entry for entry in self._tables.revocations.values() if entry.last_exp > now])

    def forgotten_end(self, now: float) -> str | None:
        known = {entry.id for entry in self.revocations(now) if entry.kind is RevocationKind.GRANT}
        ended = (grant.sid for grant in self._tables.grants.values() if grant.is_ended and grant.exp > now)
        return next((sid for sid in ended if sid not in known), None)

    def revocation(self, kind: RevocationKind, name: str) -> Revocation | None:
        return self._tables.revocations.get((kind, name))

    def feed(self, first: int, last: int) -> Sequence[Revocation]:
        places = sorted((place, key) for key, place in self._tables.feed.items() if first <= place <= last)
        return [self._tables.revocations[key] for _, key in places]

    def feed_head(self) -> int:
        return max(self._tables.feed.values(), default=0)

    def cluster(self) -> str:
        return self._tables.names.get("cluster", "")

    def settings(self) -> str:
        return self._tables.names.get("settings", "")

    def feed_epoch(self) -> str:
        return self._tables.epoch["feed"]

    def events(self, query: EventQuery) -> Sequence[audit.Event]:
        found = list(self._matching(query))
        if query.is_newest_first:
            found.reverse()
        if query.after:
            behind = query.after.__gt__ if query.is_newest_first else query.after.__lt__
            found = [event for event in found if behind(event.sequence)]
        return found[query.offset :][: query.limit]

    def event_count(self, query: EventQuery | None = None, *, behind: int = 0) -> int:
        return sum(event.sequence > behind for event in self._matching(query or EventQuery()))

    def event_head(self) -> int:
        return self._tables.log["head"].sequence

    def event_hash(self, sequence: int) -> str | None:
        events = self._tables.events
        if sequence in events:
            return events[sequence].hash
        return events[sequence + 1].prev_hash if sequence + 1 in events else None

    def pruned(self) -> int:
        return min(self._tables.events, default=1) - 1

    def archives(self, *, after: int = 0) -> Sequence[Archive]:
        return [archive for archive in self._tables.archives.values() if archive.last > after]

    def entries(self, first: int, last: int) -> Sequence[bytes]:
        wanted = range(first, last + 1)
        return [audit.entry(self._tables.events[number]) for number in wanted if number in self._tables.events]

    def tile(self, level: int, number: int) -> bytes:
        edge = self._tables.log["head"].tree
        is_unfinished = level == 0 and number == edge.size // merkle.TILE_WIDTH
        return edge.tiles[0] if is_unfinished else self._tables.tiles.get((level, number), b"")

    def checkpoint(self) -> str | None:
        return self._tables.checkpoints.get("newest")

    def _matching(self, query: EventQuery) -> Iterator[audit.Event]:
        return (
            event
            for event in self._tables.events.values()
            if all(getattr(query, name) in (None, getattr(event, name)) for name in EQUAL_FIELDS)
            and all(getattr(query, name) in (None, event.data.get(name)) for name in DATA_FIELDS)
            and (query.since is None or event.timestamp >= query.since)
            and (query.until is None or event.timestamp <= query.until)
        )


class _MemoryTransaction(_MemorySnapshot):
    def __init__(self, tables: _Tables, now: float) -> None:
        super().__init__(tables)
        self.now = now
        self.revoked: list[Revocation] = []
        self._undo_log: list[Callable[[], object]] = []

    def undo(self) -> None:
        while self._undo_log:
            self._undo_log.pop()()
        self.revoked.clear()

    def put(self, record: Record) -> None:
        table = table_of(record)
        self._put(getattr(self._tables, table.name), table.lookup(record)[0], record)

    def spend_nonce(self, nonce: bytes, expires_at: int) -> bool:
        if nonce in self._tables.nonces:
            return False
        self._put(self._tables.nonces, nonce, expires_at)
        return True

    def revoke(self, revocation: Revocation, *, replaces: bool = False) -> None:
        key = (revocation.kind, revocation.id)
        known = None if replaces else self._tables.revocations.get(key)
        joined = revocation if known is None else known.joined(revocation)
        self._put(self._tables.revocations, key, joined)
        self._put(self._tables.feed, key, self.feed_head() + 1)
        self.revoked.append(joined)

    def end(self, ends: Iterable[End]) -> None:
        for end in ends:
            self.put(end.ended(self.now))
            self.revoke(end.revocation(self.now), replaces=True)
            self.record(end.draft())

    def record(self, draft: audit.Draft) -> None:
        appended = audit.append(draft, self.head, now=self.now)
        self._put(self._tables.events, appended.event.sequence, appended.event)
        for tile in appended.tiles:
            self._put(self._tables.tiles, (tile.level, tile.number), tile.hashes)
        self._put(self._tables.log, "head", appended.head)

    @property
    def head(self) -> audit.Head:
        return self._tables.log["head"]

    def put_checkpoint(self, size: int, note: str) -> None:
        self._put(self._tables.checkpoints, "newest", note)

    def drop_launch_tokens(self) -> int:
        return self._drop(self._tables.launch_tokens)

    def drop_first_answers(self) -> int:
        return self._drop(self._tables.first_answers)

    def begin_feed_epoch(self, epoch: str) -> None:
        self._put(self._tables.epoch, "feed", epoch)

    def put_settings(self, text: str) -> None:
        self._put(self._tables.names, "settings", text)

    def name_cluster(self, name: str) -> None:
        self._put(self._tables.names, "cluster", name)

    def prune(self) -> int:
        first = self.pruned() + 1
        last = first + merkle.TILE_WIDTH - 1
        if last > max(self._tables.archives, default=0):
            return 0
        for sequence in range(first, last + 1):
            event = self._tables.events.pop(sequence)
            self._undo_log.append(partial(self._tables.events.__setitem__, sequence, event))
        return merkle.TILE_WIDTH

    def purge(self, limit: int) -> int:
        over, tables = int(self.now), self._tables
        kept_until = over - RETENTION_SECONDS
        forgettable: list[tuple[dict[Any, Any], Any]] = []
        forgettable += [(tables.nonces, key) for key, expires_at in tables.nonces.items() if expires_at <= over]
        forgettable += [
            (tables.launch_tokens, key) for key, row in tables.launch_tokens.items() if row.expires_at <= over
        ]
        forgettable += [
            (tables.first_answers, key) for key, row in tables.first_answers.items() if row.expires_at <= over
        ]
        forgettable += [(tables.grants, key) for key, row in tables.grants.items() if row.exp <= kept_until]
        forgettable += [
            (tables.revocations, key)
            for key, row in tables.revocations.items()
            if row.last_exp <= kept_until and tables.feed[key] != self.feed_head()
        ]
        forgettable += [(tables.endings, key) for key, row in tables.endings.items() if 0 < row.done_at <= kept_until]
        for table, key in forgettable[:limit]:
            self._undo_log.append(partial(table.__setitem__, key, table.pop(key)))
            if table is tables.revocations:
                self._undo_log.append(partial(tables.feed.__setitem__, key, tables.feed.pop(key)))
        return len(forgettable[:limit])

    def _drop(self, table: dict[Any, Any]) -> int:
        dropped = dict(table)
        table.clear()
        self._undo_log.append(partial(table.update, dropped))
        return len(dropped)

    def _put(self, table: dict[Any, Any], key: Any, row: Any) -> None:
        if key in table:
            self._undo_log.append(partial(table.__setitem__, key, table[key]))
        else:
            self._undo_log.append(partial(table.pop, key))
        table[key] = row
