"""The writing half of the PostgreSQL store: batches of units, on one thread with one connection.

A batch is one transaction. It begins with a lock on the row of the cluster's state, so brokers write one after the
other and each sees all that was committed before; it ends with that row moved on. Between the two, statements are sent
without waiting for their answers (a pipeline), so only what a unit reads is a round trip. Where a statement fails, the
batch is run again without a pipeline, and then it is known whose it was.
"""

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import psycopg

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import sql_log, sql_units
from agentwrit.broker.storage.postgres_link import Link
from agentwrit.broker.storage.postgres_rows import SELECT_STATE, PostgresSnapshot, PostgresTransaction, State
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql_units import Outcome, Waiting
from agentwrit.domain import audit, merkle
from agentwrit.domain.audit import Head
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.revocation import Revocation

BATCH_SECONDS: Final = 0.05  # how long a batch may keep the other brokers waiting, fsync aside
MAX_UNSAVED_SECONDS: Final = 5  # how far time may be ahead of what is stored when nothing else is written
INTERVENTION: Final = "57"  # the class of errors that come from whoever runs the server
CHARGE_LOCK: Final = 0x41675772_0002  # held by the broker that keeps house for all

# What PostgreSQL refuses because of what it was asked, and not of how it is.
UNITS_OWN_FAULT: Final = (
    psycopg.IntegrityError,
    psycopg.ProgrammingError,
    psycopg.DataError,
    psycopg.NotSupportedError,
)


class Lost(Exception):
    """The connection was lost before the server was told to commit, or there is none to be had: nothing was done."""


class OutcomeUnknown(Exception):
    """The connection was lost while the server committed: it may have, or not."""


class Batch(NamedTuple):
    """A batch that is durable: of the units the first ones. `revocations`: others' before it, and its own."""

    outcomes: Sequence[Outcome]
    revocations: Sequence[Revocation]
    state: State


class Writer:
    """Owns the connection that writes. All but `break_off` are for one thread."""

    def __init__(self, url: str, clock: Clock, sealer: Sealer, known: State) -> None:
        self._url = url
        self._clock = clock
        self._sealer = sealer
        self._link: Link | None = None
        self._known = known  # what this broker saw last
        self._head: Head | None = None  # of the log, as of `_known`
        self._lock = threading.Lock()
        self._is_broken_off = False

    def run(self, units: Sequence[Waiting], announced: int) -> Batch:
        """Run units, as many as there is time for, and commit. `announced`: the feed's number that is known already.

        Raises:
            OutcomeUnknown: see there.
            Lost, psycopg.Error: nothing was done.
            TamperedRecord: nor then, for what is in the database is not what brokers left there.
        """
        with self._lock:
            self._is_broken_off = False
        is_from_before = self._link is not None
        try:
            return self._run(self._connected(), units, announced)
        except Lost:
            if not is_from_before or self._is_broken_off:
                raise
        # The server may have been restarted since that connection was used.
        return self._run(self._connected(), units, announced)

    def take_charge(self) -> bool:
        """Whether this broker keeps house, from now on perhaps.

        Raises:
            Lost, psycopg.Error: it cannot be known.
        """
        with self._lock:
            self._is_broken_off = False
        link = self._connected()
        try:
            if link.is_in_charge:
                link.execute("SELECT 1").fetchone()  # the lock is gone with the connection, if that is
            else:
                [[link.is_in_charge]] = link.execute("SELECT pg_try_advisory_lock(?)", (CHARGE_LOCK,)).fetchall()
        except psycopg.Error:
            self.close()
            raise
        return link.is_in_charge

    def break_off(self) -> None:
        """Make what is under way fail. From any thread."""
        with self._lock:
            self._is_broken_off = True
            if self._link is not None:
                self._link.break_off()

    def close(self) -> None:
        with self._lock:
            if self._link is not None:
                self._link.close()
            self._link = None

    def _connected(self) -> Link:
        if self._link is not None and not self._link.is_lost:
            return self._link
        self.close()
        try:
            link = Link.connect(self._url)
        except psycopg.Error as error:
            raise Lost from error
        with self._lock:
            if self._is_broken_off:
                link.close()
                raise Lost
            self._link = link
        return link

    def _run(self, link: Link, units: Sequence[Waiting], announced: int) -> Batch:
        try:
            try:
                return self._attempt(link, units, announced, is_piped=True)
            except (*UNITS_OWN_FAULT, psycopg.errors.PipelineAborted):
                if link.is_lost:
                    raise
                link.execute("ROLLBACK")
                return self._attempt(link, units, announced, is_piped=False)
        except BaseException as error:
            # In whatever state the connection is, it is not one to go on with.
            is_lost = link.is_lost
            self.close()
            if is_lost and isinstance(error, psycopg.Error):
                raise Lost from error
            raise

    def _attempt(self, link: Link, units: Sequence[Waiting], announced: int, *, is_piped: bool) -> Batch:
        with link.pipeline() if is_piped else contextlib.nullcontext():
            link.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            before = State.opened(link.execute(f"{SELECT_STATE} FOR UPDATE").fetchone(), self._sealer)
            before.check_follows(self._known)
            changes = link.changes
            now = max(self._clock.now(), before.now)
            revocations: list[Revocation] = []
            if before.feed_head > announced:
                snapshot = PostgresSnapshot(link, self._sealer)
                revocations.extend(snapshot.feed(announced + 1, before.feed_head))
            outcomes: list[Outcome] = []
            head, feed_head = self._head_of(link, before), before.feed_head
            stop_at = time.monotonic() + BATCH_SECONDS

            def begin() -> PostgresTransaction:
                return PostgresTransaction(link, self._sealer, head, now, feed_head)

            is_fault = _takes_the_batch if is_piped else _is_stores_fault
            for waiting in units:
                outcome, transaction = sql_units.run(waiting, link, begin, is_stores_fault=is_fault)
                outcomes.append(outcome)
                head, feed_head = transaction.head, transaction.feed_head()
                revocations.extend(transaction.revoked)
                if time.monotonic() >= stop_at:
                    break
            state = before
            if link.changes != changes or now >= before.now + MAX_UNSAVED_SECONDS:
                state = State(head.sequence, head.hash, feed_head, now)
                link.execute("UPDATE cluster SET state = ? WHERE one = 1", (state.sealed(self._sealer),))
        if state is before:
            link.execute("ROLLBACK")
        else:
            _commit(link)
        self._known, self._head = state, head
        self._clock.advance_to(state.now)
        return Batch(outcomes, revocations, state)

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
        answer = link.execute("COMMIT").statusmessage
    except psycopg.Error as error:
        if error.sqlstate is None or link.is_lost or error.sqlstate.startswith(INTERVENTION):
            raise OutcomeUnknown from error
        raise  # the server says that it did not
    if answer != "COMMIT":
        raise psycopg.OperationalError("the transaction was rolled back")


def _takes_the_batch(error: Exception) -> bool:
    """In a pipeline it is not known whose fault it is."""
    return isinstance(error, psycopg.Error)


def _is_stores_fault(error: Exception) -> bool:
    return isinstance(error, psycopg.Error) and not isinstance(error, UNITS_OWN_FAULT)
