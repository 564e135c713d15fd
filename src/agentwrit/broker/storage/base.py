"""What the broker asks of a store, and what a store guarantees.

Every change is a *unit of work*: a plain function over a `Transaction`, given to `Store.write`.

Atomicity
    A unit happens whole or not at all. What it raises is what `write` raises, and nothing of it is left, with one
    exception: a unit that raises `Denied` leaves the events that `Denied` carries, and nothing else.
Durability
    `write` returns, or raises `Denied`'s error, after the commit is on disk. kill -9 at any moment loses nothing that
    was answered.
Isolation
    Units are serialised: each sees all that was committed before it, and they run in the order of their commits.
    `read` sees one committed state, at least as new as the last `write` that was answered when it began.
Announcement
    The revocations of a commit are announced to the store's listener after they are durable and before any `write` of
    that commit returns. Where brokers share a store, those of the others' commits are announced by the time that
    `catch_up` returns. So whoever was answered can rely on it that every later check knows.
Failure
    A store that cannot be reached or written raises `Unavailable`, and nothing was done. State that was altered behind
    the broker's back raises `TamperedRecord` when it is read.

A unit may run more than once if its commit fails before it is durable, so it must have no effect but on its
transaction; and it may run on any thread, so it must not wait for anything.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec

from agentwrit.broker.measures import Measures
from agentwrit.domain.app import App
from agentwrit.domain.audit import Draft, Event, Head
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.ending import End, Ending
from agentwrit.domain.errors import AgentWritError, Refusal
from agentwrit.domain.grant import Grant, GrantKind
from agentwrit.domain.idempotency import FirstAnswer
from agentwrit.domain.launch_token import LaunchToken
from agentwrit.domain.limits import AppUsage
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import Revocation, RevocationKind
from agentwrit.domain.signing_key import StoredKey

T = TypeVar("T")


Record = Operator | App | AppUsage | LaunchToken | Grant | Ending | FirstAnswer | StoredKey | Archive
"""What a transaction puts into the store, by its key."""


class Denied(AgentWritError):
    """Raised by a unit of work: undo all of it, keep `events`, and tell the caller `error`."""

    def __init__(self, error: Refusal, *events: Draft) -> None:
        super().__init__(error.detail)
        self.error = error
        self.events = events


EQUAL_FIELDS: Final = (
    "agent_id",
    "task_id",
    "event_type",
    "outcome",
    "app_id",
    "principal",
    "sid",
    "client_address",
    "request_id",
    "trace_id",
    "orch_id",
    "resource",
    "deleg_chain_hash",
)
"""What `EventQuery` compares with an event's field of the same name."""

DATA_FIELDS: Final = ("jti", "parent_sid", "original_principal")
"""What `EventQuery` compares with what an event's `data` has under the same name."""


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which events to list, the oldest or the newest first. None means any.

    `since` and `until` are inclusive (RFC 3339, micros). `after`: only events behind this sequence number in that order
    (keyset paging), 0 for all; `app_id` limits to what concerns one app.
    """

    agent_id: str | None = None
    task_id: str | None = None
    event_type: str | None = None
    outcome: str | None = None
    app_id: str | None = None
    principal: str | None = None
    sid: str | None = None
    client_address: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    orch_id: str | None = None
    resource: str | None = None
    deleg_chain_hash: str | None = None
    jti: str | None = None
    parent_sid: str | None = None
    original_principal: str | None = None
    since: str | None = None
    until: str | None = None
    is_newest_first: bool = False
    after: int = 0
    limit: int = 100
    offset: int = 0

    def filters(self) -> "EventQuery":
        """The query of all that match, in whatever order and on whatever page."""
        return msgspec.structs.replace(self, is_newest_first=False, after=0, limit=0, offset=0)


class GrantQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which grants to find, in the order in which they were made. None means any.

    `live_at`: only grants that had not ended, with a token that was not over, at that time (Unix seconds).
    `over_in`: only grants that had not ended, whose token was over after the first of two times, and by the second.
    Then a `limit` is of those that were over first.
    `is_counted`: only what counts for a limit of live agents, if that is what is asked for.
    `signed_by`: only what the key of this kid may have signed.
    `parent`: only what was delegated from the grant of this sid; "": only what was not delegated. `falling_with`: only
    what was delegated from a grant of one of the first names, or to an agent of one of the others, in any order.
    `is_delegated`: only what was delegated. `tree`: only what is in a chain that begins with the grant of this sid.
    `after`: only grants made after the one of this sid (keyset paging).
    """

    live_at: float | None = None
    over_in: tuple[int, int] | None = None
    is_counted: bool = False
    app_id: str | None = None
    kind: GrantKind | None = None
    subject: str | None = None
    task_id: str | None = None
    orch_id: str | None = None
    jti: str | None = None
    sid: str | None = None
    signed_by: str | None = None
    parent: str | None = None
    falling_with: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    is_delegated: bool = False
    tree: str | None = None
    after: str | None = None
    limit: int | None = None

    def matches(self, grant: Grant) -> bool:
        """Whether the grant is one of these, as far as it says so itself: its place in the order does not."""
        return (
            (self.live_at is None or grant.is_live(self.live_at))
            and (self.over_in is None or (not grant.is_ended and self.over_in[0] < grant.exp <= self.over_in[1]))
            and (not self.is_counted or grant.is_counted)
            and self.app_id in (None, grant.app_id)
            and self.kind in (None, grant.kind)
            and self.subject in (None, grant.subject)
            and self.task_id in (None, grant.task_id)
            and self.orch_id in (None, grant.orch_id)
            and self.jti in (None, grant.jti)
            and self.sid in (None, grant.sid)
            and (self.signed_by is None or grant.is_signed_by(self.signed_by))
            and self.parent in (None, grant.parent_sid)
            and (self.falling_with is None or self._falls(grant))
            and (self.tree is None or (grant.tree != "" and grant.tree == self.tree))
            and (not self.is_delegated or grant.parent_sid != "")
        )

    def _falls(self, grant: Grant) -> bool:
        sids, agents = self.falling_with or ((), ())
        return grant.parent_sid != "" and (grant.parent_sid in sids or grant.subject in agents)


class GrantPage(NamedTuple):
    """Grants that were found behind a place in the order in which they were made, up to the place `place`.

    `looked_at`: how many rows were read for it; `is_last`: whether there are no more behind.
    """

    grants: Sequence[Grant]
    place: int
    looked_at: int
    is_last: bool


class Expired(NamedTuple):
    """How many agents expired, up to a time (Unix seconds)."""

    agents: int
    until: int


EXPIRED_AT_ONCE: Final = 256
"""How many agents that expired `Snapshot.expired` looks at, or those of one second where they are more."""


class Cluster(NamedTuple):
    """What the brokers of one store have in common, besides the master key."""

    issuer: str
    trust_domain: str

    def __str__(self) -> str:
        return f"{self.issuer} in {self.trust_domain}"


class Row(NamedTuple):
    """A row that a unit of work is known to read: of apps, app_usage, launch_tokens, grants, first_answers, nonces or
    endings.
    """

    table: str
    key: str | bytes


class Snapshot(Protocol):
    """One committed state, to read."""

    def operator(self, name: str) -> Operator | None: ...

    def operators(self) -> Sequence[Operator]:
        """All operators in the order of their names, those who were removed included."""
        ...

    def app(self, app_id: str) -> App | None: ...

    def app_by_client_id(self, client_id: str) -> App | None: ...

    def active_app_by_name(self, name: str) -> App | None: ...

    def apps(self, *, limit: int | None = None, offset: int = 0) -> Sequence[App]:
        """Apps in the order of their registration, inactive ones included; `limit` None for all."""
        ...

    def app_count(self) -> int: ...

    def app_usage(self, app_id: str) -> AppUsage | None:
        """How much of its limits an app uses, if it has had one that needs to be counted."""
        ...

    def launch_token(self, token_hash: bytes) -> LaunchToken | None: ...

    def launch_token_count(self) -> int: ...

    def grant(self, sid: str) -> Grant | None: ...

    def grants(self, query: GrantQuery) -> Sequence[Grant]: ...

    def grant_page(self, query: GrantQuery, *, behind: int, limit: int) -> GrantPage:
        """The grants that match behind a place (0 for all), of `limit` rows. The query's own paging counts for nothing.

        The last page may have more: what is so new that it has no place yet.
        """
        ...

    def live_delegations(self, sid: str, *, in_tree: bool, now: float, limit: int) -> int:
        """How many delegations were made from the grant of this sid and are alive at this time (Unix seconds).

        `in_tree`: in all chains that begin with it. Counts no further than `limit`.
        """
        ...

    def ending(self, ending_id: str) -> Ending | None: ...

    def endings(self) -> Sequence[Ending]:
        """Those that are not over."""
        ...

    def expired(self, app_id: str, after: int, until: int) -> Expired:
        """How many that count for the app's limit of live agents, and had not ended, were over after a time.

        That is counted up to `until`, or where they are many to an earlier time, which is after `after`.
        """
        ...

    def last_exp(self) -> int:
        """When the last token of any grant is over (Unix seconds)."""
        ...

    def first_answer(self, key: bytes) -> FirstAnswer | None:
        """What the request of this key was answered with, which may be too long ago to count."""
        ...

    def first_answer_count(self) -> int: ...

    def signing_keys(self) -> Sequence[StoredKey]:
        """All keys, the newest first."""
        ...

    def revocations(self, now: float) -> Iterator[Revocation]:
        """The entries that an unexpired token can still meet."""
        ...

    def forgotten_end(self, now: float) -> str | None:
        """The sid of a grant in time that has ended and has no entry that says so, if there is one: it was deleted."""
        ...

    def revocation(self, kind: RevocationKind, name: str) -> Revocation | None:
        """The entry of this name, if it is still kept."""
        ...

    def feed(self, first: int, last: int) -> Sequence[Revocation]:
        """The entries that have the numbers `first` to `last` in the feed, in their order, forgotten ones left out."""
        ...

    def feed_head(self) -> int:
        """The number of the newest entry; 0 when there has been none. It never goes back."""
        ...

    def cluster(self) -> str:
        """The name of the brokers of this store: whoever has another name is refused it. "" if it has none yet."""
        ...

    def settings(self) -> str:
        """What the broker that was started last was started with, as it said; empty if none has."""
        ...

    def feed_epoch(self) -> str:
        """What history the feed's numbers belong to."""
        ...

    def events(self, query: EventQuery) -> Sequence[Event]: ...

    def event_count(self, query: EventQuery | None = None, *, behind: int = 0) -> int:
        """How many events match, whatever the query's paging says, of those behind this sequence number."""
        ...

    def event_head(self) -> int:
        """The sequence number of the newest event; 0 when there is none."""
        ...

    def event_hash(self, sequence: int) -> str | None:
        """The hash of the event of this number, 0 for before the first; None where the log does not say it any more."""
        ...

    def pruned(self) -> int:
        """The sequence number of the last event that was archived and is no longer here; 0 when all are."""
        ...

    def archives(self, *, after: int = 0) -> Sequence[Archive]:
        """The archives that hold events behind this sequence number, the oldest first."""
        ...

    def entries(self, first: int, last: int) -> Sequence[bytes]:
        """The entries of the events from one place to another, both included, as far as they are there."""
        ...

    def tile(self, level: int, number: int) -> bytes:
        """The hashes of a tile of the tree over the log (`agentwrit.domain.merkle`), as far as there are any."""
        ...

    def checkpoint(self) -> str | None:
        """The newest checkpoint, if there is one yet."""
        ...


class Transaction(Snapshot, Protocol):
    """A state in the making."""

    @property
    def now(self) -> float:
        """The time of this transaction (Unix seconds). It never runs backwards, not even across restarts."""
        ...

    def put(self, record: Record) -> None:
        """Insert a record, or replace the record that has the same key."""
        ...

    def spend_nonce(self, nonce: bytes, expires_at: int) -> bool:
        """Remember that `nonce` was used, until it expires. False when it had been used before."""
        ...

    def revoke(self, revocation: Revocation, *, replaces: bool = False) -> None:
        """Announced when committed, and put at the feed's head.

        A second entry for one thing adds to the first (see `RevocationIndex`), and takes its place in the feed anew.
        `replaces`: where there may be a first one, this one says all that both would: it is not looked for.
        """
        ...

    def end(self, ends: Iterable[End]) -> None:
        """End grants that are alive: each with an entry that revokes it, and an event."""
        ...

    def record(self, draft: Draft) -> None:
        """Append an event to the audit log. It is committed with everything else in this unit, or not at all."""
        ...

    @property
    def head(self) -> Head:
        """Where the audit log ends, with what was recorded in this unit."""
        ...

    def put_checkpoint(self, size: int, note: str) -> None:
        """Keep the checkpoint of the log's first `size` events, in place of the one before."""
        ...

    def drop_launch_tokens(self) -> int:
        """Forget all launch tokens, whatever their time. Returns how many that is."""
        ...

    def drop_first_answers(self) -> int:
        """Forget what all requests were answered with. Returns how many that is."""
        ...

    def begin_feed_epoch(self, epoch: str) -> None:
        """Let the feed belong to another history. Its numbers go on; whoever follows it begins with a snapshot."""
        ...

    def put_settings(self, text: str) -> None:
        """Keep what a broker was started with, in place of what the one before it said."""
        ...

    def name_cluster(self, name: str) -> None:
        """Let the store be that of the brokers of this name."""
        ...

    def prune(self) -> int:
        """Remove the oldest tile's worth of events, if they were archived. Returns how many that is."""
        ...

    def purge(self, limit: int) -> int:
        """Forget up to `limit` rows that time has made meaningless. Returns how many: fewer than `limit` is the end.

        These are nonces, launch tokens and first answers that expired, grants and revocations an hour after the last
        token that they can touch, and endings an hour after they were over. The newest revocation stays: the feed's
        numbers go on after its.
        """
        ...


RevocationListener = Callable[[Sequence[Revocation]], None]


class Promotion(NamedTuple):
    """A database server ended a recovery and goes on by itself: its timeline before, and its timeline since.

    `is_lossless`: whether it is known that nothing that was acknowledged before is missing since.
    """

    before: int
    since: int
    is_lossless: bool


GoOn = Callable[[Transaction, Promotion], object]
"""The unit of work that a store begins with after a promotion."""


class Store(Protocol):
    """A store, open. Safe to use from many tasks of one event loop."""

    @property
    def measures(self) -> Measures:
        """What it measures of itself."""
        ...

    async def write(self, unit: Callable[[Transaction], T], *, reads: Sequence[Row] = ()) -> T:
        """Run one unit of work and wait until it is durable.

        `reads`: what the unit will read, as far as that is known: a store that is far away reads it for many units at
        once. What is missing here, or is not needed after all, costs time and nothing else.

        Raises:
            Refusal: what the unit raised, or the error of the `Denied` that it raised.
            Unavailable: the store cannot be written, or too many units wait already. Nothing was done.
        """
        ...

    async def read(self, query: Callable[[Snapshot], T]) -> T:
        """Ask one committed state.

        Raises:
            Unavailable: the store cannot be read.
        """
        ...

    def listen(self, listener: RevocationListener) -> None:
        """Announce the revocations of every later commit to `listener`; it must not fail and must not wait.

        One may be announced twice.
        """
        ...

    async def catch_up(self) -> None:
        """Wait until every revocation that was committed before this call, by whichever broker, has been announced.

        Raises:
            Unavailable: it cannot be known whether there are any.
        """
        ...

    async def is_in_charge(self) -> bool:
        """Whether it is this broker that does, until it asks again, what one broker of a store has to do for all.

        Raises:
            Unavailable: it cannot be known.
        """
        ...

    def log_bytes(self) -> int:
        """How much the store has written to a log beside its database, and not yet folded in, as far as that is its own
        to do.
        """
        ...

    def is_writable(self) -> bool:
        """Whether the last attempt to commit worked."""
        ...

    async def close(self) -> None:
        """Finish what waits and close. Later calls raise `Unavailable`."""
        ...
