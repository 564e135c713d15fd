"""The writing half of the PostgreSQL store: the transactions of batches, on one thread with one connection.

A batch is one transaction. It begins with a lock on the row of the cluster's state, so brokers write one after the
other and each sees all that was committed before; it ends with that row moved on. Between the two its units are run in
memory (`postgres_batch`), by the event loop: on a thread they would have to win the interpreter back from it again and
again. What is done here waits for the server, so it is for a thread.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import psycopg
import structlog

from agentwrit.broker.clock import Clock
from agentwrit.broker.measures import Measures
from agentwrit.broker.storage import postgres_rows, sql_log
from agentwrit.broker.storage.base import Row
from agentwrit.broker.storage.postgres_batch import PostgresBatch, Reading
from agentwrit.broker.storage.postgres_lineage import AT_A_GLANCE, Lineage, Stale
from agentwrit.broker.storage.postgres_link import IS_UNSAFE, SCHEMA_VERSION, UNSAFE, Link, LooseCommit, RolledBack
from agentwrit.broker.storage.postgres_rows import PostgresSnapshot, State
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql_batch import Question
from agentwrit.broker.storage.sql_units import Outcome, Waiting
from agentwrit.domain import audit, merkle
from agentwrit.domain.audit import Head
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.revocation import Revocation

MAX_NEWS: Final = 4096  # that a batch announces besides its own
BATCH_SECONDS: Final = 0.05  # how long a batch may keep the other brokers waiting, fsync aside
MAX_UNSAVED_SECONDS: Final = 5  # how far time may be ahead of what is stored when nothing else is written
# A broker asks every few seconds whether it keeps house. One that does not hangs, and another is to keep house then.
IDLE_SESSION_MS: Final = 30_000
INTERVENTION: Final = "57"  # the class of errors that come from whoever runs the server
CHARGE_LOCK: Final = 0x41675772_0002  # held by the broker that keeps house for all

# Who migrates locks the row first, so no version is newer than the one that is seen here.
MOVE: Final = (
    "UPDATE cluster SET state = ?, covered = ? WHERE one = 1 AND (SELECT value FROM meta WHERE name = 'version') = ?"
)
_LOCK: Final = f"SELECT covered, {AT_A_GLANCE.format('?', '?')} FROM cluster WHERE one = 1 FOR UPDATE"

# What PostgreSQL refuses because of what it was asked, and not of how it is.
UNITS_OWN_FAULT: Final = (
    psycopg.IntegrityError,
    psycopg.ProgrammingError,
    psycopg.DataError,
    psycopg.NotSupportedError,
)

log = structlog.get_logger("agentwrit.storage")


class Lost(Exception):
    """The connection was lost before the server was told to commit, or there is none to be had: nothing was done."""


class Behind(Exception):
    """More was revoked than is announced at once: it is to be known first (see `Barrier`)."""


class OutcomeUnknown(Exception):
    """The connection was lost while the server committed: it may have, or not. Or it has, and its standby has not."""


class Outdated(psycopg.OperationalError):
    """The schema is newer than this broker: what it would write lacks what it does not know of."""


class Begun(NamedTuple):
    """A batch under way. `state`: what the commit before left; `revocations`: others', that are to be announced.

    `changes`: what its connection had changed before it; `is_synchronous`: whether its commit waits for standbys.
    """

    link: Link
    batch: PostgresBatch
    state: State
    revocations: Sequence[Revocation]
    changes: int
    is_synchronous: bool


class Written(NamedTuple):
    """A batch that is durable. `left`: units that it had no time for; `revocations`: others' before it, and its own."""

    outcomes: Sequence[Outcome]
    left: Sequence[Waiting]
    revocations: Sequence[Revocation]
    state: State


class Writer:
    """Owns the connection that writes. All but `break_off` are for one thread."""

    def __init__(self, url: str, clock: Clock, sealer: Sealer, lineage: Lineage, measures: Measures) -> None:
        self._url = url
        self._clock = clock
        self._sealer = sealer
        self._lineage = lineage
        self._measures = measures
        self._link: Link | None = None
        self._is_unsafe: bool | None = None  # as the server was when it was looked at last
        self._head: Head | None = None  # of the log, as it was seen here last
        self._lock = threading.Lock()
        self._is_broken_off = False

    def begin(self, announced: int, wanted: Iterable[Row | Question]) -> Begun:
        """Begin a batch, with what its units are known to need. `announced`: the feed's number that is known already.

        Raises:
            Lost, psycopg.Error: nothing was done, as with all that follows.
            Unsettled: nor then, for the store has to be settled first.
            TamperedRecord: nor then, for what is in the database is not what brokers left there.
            Behind: nor then.
        """
        with self._ended_by_errors():
            return self._begin(self._connected(), announced, wanted)

    def read(self, begun: Begun, wanted: Iterable[Row | Question]) -> None:
        """Let the batch know what its units lack."""
        with self._ended_by_errors():
            with begun.link.pipeline():
                reading = Reading(begun.link, wanted)
            begun.batch.learn(reading.rows())

    def run_on_database(self, begun: Begun, unit: Waiting) -> Outcome:
        """Run a unit that cannot be run in memory."""
        with self._ended_by_errors(), begun.link.pipeline():
            return begun.batch.run_on_database(unit, is_stores_fault=_takes_the_batch)

    def run_one_by_one(self, units: Sequence[Waiting], announced: int) -> Written:
        """Run units on the database, as many as there is time for, and commit.

        A statement that fails where many are sent at once takes the batch with it. Here it is known whose it was.

        Raises:
            OutcomeUnknown, Lost, psycopg.Error, TamperedRecord: as `begin` and `commit`.
        """
        begun = self.begin(announced, ())
        outcomes: list[Outcome] = []
        stop_at = time.monotonic() + BATCH_SECONDS
        with self._ended_by_errors():
            for unit in units:
                outcomes.append(begun.batch.run_on_database(unit, is_stores_fault=_is_stores_fault))
                if time.monotonic() >= stop_at:
                    break
        return self.commit(begun, begun.batch.writing(), outcomes, units[len(outcomes) :])

    def commit(
        self, begun: Begun, write: Callable[[], object], outcomes: Sequence[Outcome], left: Sequence[Waiting]
    ) -> Written:
        """Write what units have written, and make it durable.

        Raises:
            OutcomeUnknown: see there.
            Lost, psycopg.Error: nothing was done.
        """
        link, batch, state = begun.link, begun.batch, begun.state
        with self._ended_by_errors():
            moved = None
            with link.pipeline():
                write()
                if link.changes != begun.changes or batch.now >= state.now + MAX_UNSAVED_SECONDS:
                    state = State(batch.head.sequence, batch.head.hash, batch.feed_head(), batch.now)
                    columns = postgres_rows.columns(state, batch.covered, self._sealer)
                    moved = link.execute(MOVE, (*columns, str(SCHEMA_VERSION)))
            if moved is None:
                link.execute("ROLLBACK")
            elif moved.count != 1:
                raise Outdated("a newer version of AgentWrit brought the schema up to date: replace this broker")
            else:
                started = time.monotonic()
                _commit(link)
                self._measures.commit.add(time.monotonic() - started)
        self._head = batch.head
        self._lineage.saw(state, is_synchronous=begun.is_synchronous)
        self._clock.advance_to(state.now)
        return Written(outcomes, left, [*begun.revocations, *batch.revocations], state)

    def take_charge(self) -> bool:
        """Whether this broker keeps house, from now on perhaps.

        Raises:
            Lost, Unsettled, TamperedRecord, psycopg.Error: it cannot be known.
        """
        link = self._connected()
        try:
            # The lock is gone with the connection, if that is.
            [[is_unsafe]] = link.execute(f"SELECT {IS_UNSAFE}").fetchall()
            if not link.is_in_charge:
                [[link.is_in_charge]] = link.execute("SELECT pg_try_advisory_lock(?)", (CHARGE_LOCK,)).fetchall()
        except psycopg.Error:
            self.close()
            raise
        if is_unsafe and self._is_unsafe is False:  # at the start it was said already
            log.warning(UNSAFE)
        self._is_unsafe = is_unsafe
        return link.is_in_charge

    def allow(self) -> None:
        """Take back what `break_off` said."""
        with self._lock:
            self._is_broken_off = False

    @property
    def is_connected(self) -> bool:
        """Whether it has a connection, as far as it has heard."""
        return self._link is not None

    @property
    def is_broken_off(self) -> bool:
        return self._is_broken_off

    def break_off(self) -> None:
        """Make what is under way fail. From any thread."""
        with self._lock:
            self._is_broken_off = True
            if self._link is not None:
                self._link.break_off()

    def close(self) -> None:
        """Give the connection up. What was begun on it was never done."""
        with self._lock:
            if self._link is not None:
                self._link.close()
            self._link = None

    def _connected(self) -> Link:
        if self._link is not None and not self._link.is_lost:
            return self._link
        self.close()
        try:
            link = self._lineage.connect(self._url)
            link.execute(f"SET idle_session_timeout = {IDLE_SESSION_MS}")
        except psycopg.Error as error:
            raise Lost from error
        with self._lock:
            if self._is_broken_off:
                link.close()
                raise Lost
            self._link = link
        return link

    @contextlib.contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """In whatever state a connection is after an error, it is not one to go on with."""
        try:
            yield
        except BaseException as error:
            is_lost = isinstance(error, Stale) or (self._link is not None and self._link.is_lost)
            self.close()
            if is_lost and isinstance(error, psycopg.Error):
                raise Lost from error
            raise

    def _begin(self, link: Link, announced: int, wanted: Iterable[Row | Question]) -> Begun:
        started = time.monotonic()
        with link.pipeline():
            link.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            locked = link.execute(_LOCK, (self._lineage.text, link.mark))
            reading = Reading(link, wanted)
        self._measures.lock_wait.add(time.monotonic() - started)
        # What was seen by now was committed before the lock was ours.
        covered, *row = locked.fetchone() or (None,)
        glance = self._lineage.glance(row or None, self._lineage.seen)
        state = glance.state
        revocations: Sequence[Revocation] = ()
        if state.feed_head > announced + MAX_NEWS:
            raise Behind
        if state.feed_head > announced:
            revocations = PostgresSnapshot(link, self._sealer).feed(announced + 1, state.feed_head)
        now = max(self._clock.now(), state.now)
        batch = PostgresBatch(
            link,
            self._sealer,
            head=self._head_of(link, state),
            feed_head=state.feed_head,
            covered=postgres_rows.covered_of((row[0], covered), self._sealer),
            now=now,
        )
        batch.learn(reading.rows())
        return Begun(link, batch, state, revocations, link.changes, glance.is_synchronous)

    def _head_of(self, link: Link, state: State) -> Head:
        """Where the log ends. What other brokers have added since this one looked is read and followed."""
        head = self._head
        if head is None or not 0 <= state.sequence - head.sequence <= merkle.TILE_WIDTH:
            return sql_log.load_head(link, self._sealer, (state.sequence, state.hash))
        if state.sequence > head.sequence:
            following = audit.Replay(head)
            for _ in sql_log.replay(link, following, state.sequence):
                pass
            head = following.head
        if (head.sequence, head.hash) != (state.sequence, state.hash):
            raise TamperedRecord(f"{audit.event_id(state.sequence)} is not the event that the log ended with")
        return head


def _commit(link: Link) -> None:
    try:
        link.commit()
    except RolledBack:
        raise
    except LooseCommit as error:
        raise OutcomeUnknown from error
    except psycopg.Error as error:
        if error.sqlstate is None or link.is_lost or error.sqlstate.startswith(INTERVENTION):
            raise OutcomeUnknown from error
        raise  # the server says that it did not


def _takes_the_batch(error: Exception) -> bool:
    """In a pipeline it is not known whose fault it is."""
    return isinstance(error, psycopg.Error)


def _is_stores_fault(error: Exception) -> bool:
    return isinstance(error, psycopg.Error) and not isinstance(error, UNITS_OWN_FAULT)
