"""The embedded store: SQLite in WAL mode, one process, one writer, one commit for all who wait.

Units of work run on the event loop, on one connection, one after the other, each in a savepoint of its own; the COMMIT
with its fsync runs on a thread. While it runs the next units gather, so under load one fsync serves many. (Running the
units on the thread too would be the obvious way, but each of their statements gives up the GIL, and a busy event loop
takes milliseconds to hand it back.)

Readers have connections of their own on other threads: WAL lets them see the last commit while a writer writes.
"""

import asyncio
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import migrations
from agentwrit.broker.storage.base import Denied, RevocationListener, Snapshot, Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite_rows import AuditHead, SqliteSnapshot, SqliteTransaction
from agentwrit.domain.errors import ConfigurationError, Unavailable
from agentwrit.domain.revocation import Revocation

T = TypeVar("T")

APPLICATION_ID: Final = 0x41675772  # "AgWr": tells `file` and us whose database this is
MAX_WAITING_UNITS: Final = 4096
MAX_BATCH_SECONDS: Final = 0.004  # how long a batch may keep the event loop from everybody else
MAX_UNSAVED_SECONDS: Final = 5  # how far time may be ahead of what is on disk when nothing else is written
READERS: Final = 2


class _Waiting(NamedTuple):
    unit: Callable[[Transaction], Any]
    answer: asyncio.Future[Any]


class _Outcome(NamedTuple):
    answer: asyncio.Future[Any]
    value: Any
    error: BaseException | None


class SqliteStore:
    """The `Store` of one broker process in the file `path`, whose directory the caller has locked."""

    def __init__(self, path: Path, clock: Clock, sealer: Sealer) -> None:
        self._path = path
        self._clock = clock
        self._sealer = sealer
        self._waiting: deque[_Waiting] = deque()
        self._committer: asyncio.Task[None] | None = None
        self._listeners: list[RevocationListener] = []
        self._is_writable = True
        self._is_closed = False
        self._commit_thread = ThreadPoolExecutor(1, "sqlite-commit")
        self._read_threads = ThreadPoolExecutor(READERS, "sqlite-read")
        self._reader = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._connection = _connect(self._path)
        try:
            _migrate(self._connection, self._path)
            _check_seal(self._connection, sealer)
        except BaseException:
            self._connection.close()
            raise
        self._head = AuditHead.load(self._connection)
        self._saved_now = _load_high_water_mark(self._connection)
        clock.advance_to(self._saved_now)

    async def write(self, unit: Callable[[Transaction], T]) -> T:
        if self._is_closed:
            raise Unavailable("the broker is stopping")
        if len(self._waiting) >= MAX_WAITING_UNITS:
            raise Unavailable("the broker is busy")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(unit, answer))
        if self._committer is None:
            self._committer = asyncio.create_task(self._commit_all())
        return await answer

    async def read(self, query: Callable[[Snapshot], T]) -> T:
        if self._is_closed:
            raise Unavailable("the broker is stopping")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._read_threads, self._read, query)
        except sqlite3.Error as error:
            raise Unavailable("the store cannot be read") from error

    def listen(self, listener: RevocationListener) -> None:
        self._listeners.append(listener)

    def is_writable(self) -> bool:
        return self._is_writable and not self._is_closed

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._committer is not None:
            await self._committer
        self._commit_thread.shutdown()
        self._read_threads.shutdown()
        for reader in self._readers:
            reader.close()
        self._connection.close()

    # -- writing: the event loop owns the connection, but during a COMMIT the commit thread does ----------------------

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                outcomes: list[_Outcome] = []
                revocations: list[Revocation] = []
                head = self._head
                try:
                    changed = self._run_batch(outcomes, revocations)
                    end = self._connection.commit if changed else self._connection.rollback
                    await loop.run_in_executor(self._commit_thread, end)
                except BaseException as error:
                    # Whatever it is: everyone who waits is answered, and nothing of the batch is kept.
                    self._is_writable = False
                    self._head = head
                    _fail(outcomes, error)
                    await loop.run_in_executor(self._commit_thread, self._connection.rollback)
                    if not isinstance(error, sqlite3.Error):
                        raise
                else:
                    self._is_writable = True
                    self._announce(revocations)
                    _deliver(outcomes)
        finally:
            self._committer = None

    def _run_batch(self, outcomes: list[_Outcome], revocations: list[Revocation]) -> bool:
        """Run waiting units in one transaction, for as long as the event loop can be spared.

        Returns whether there is anything to commit.
        """
        changes = self._connection.total_changes
        stop_at = time.monotonic() + MAX_BATCH_SECONDS
        self._connection.execute("BEGIN IMMEDIATE")
        now = self._clock.now()
        while self._waiting:
            unit, answer = self._waiting.popleft()
            if not answer.cancelled():
                # Entered before it is run, so that it is answered even if the store fails under it.
                outcomes.append(_Outcome(answer, None, None))
                outcomes[-1] = self._run_unit(unit, answer, now, revocations)
            if time.monotonic() >= stop_at:
                break
        if self._connection.total_changes == changes and now < self._saved_now + MAX_UNSAVED_SECONDS:
            return False
        _save_high_water_mark(self._connection, now)
        self._saved_now = now
        return True

    def _run_unit(
        self,
        unit: Callable[[Transaction], Any],
        answer: asyncio.Future[Any],
        now: float,
        revocations: list[Revocation],
    ) -> _Outcome:
        self._connection.execute("SAVEPOINT unit")
        transaction = SqliteTransaction(self._connection, self._sealer, self._head, now)
        value: Any = None
        failure: BaseException | None = None
        try:
            value = unit(transaction)
        except sqlite3.Error:
            raise  # the store's failure, not the unit's: it takes the batch with it
        except Denied as denied:
            failure = denied.error
            transaction = self._undo(now)
            for event in denied.events:
                transaction.record(event)
        except Exception as error:  # whatever a unit raises is its caller's to see, and no other's
            failure = error
            transaction = self._undo(now)
        self._connection.execute("RELEASE unit")
        self._head = transaction.head
        revocations.extend(transaction.revoked)
        return _Outcome(answer, value, failure)

    def _undo(self, now: float) -> SqliteTransaction:
        self._connection.execute("ROLLBACK TO unit")
        return SqliteTransaction(self._connection, self._sealer, self._head, now)

    def _announce(self, revocations: list[Revocation]) -> None:
        if revocations:
            for listener in self._listeners:
                listener(revocations)

    # -- reading: each thread owns a connection -----------------------------------------------------------------------

    def _read(self, query: Callable[[Snapshot], T]) -> T:
        connection = getattr(self._reader, "connection", None)
        if connection is None:
            connection = _connect(self._path)
            connection.execute("PRAGMA query_only = ON")
            self._reader.connection = connection
            self._readers.append(connection)
        connection.execute("BEGIN")
        try:
            return query(SqliteSnapshot(connection, self._sealer))
        finally:
            connection.rollback()


def _deliver(outcomes: list[_Outcome]) -> None:
    for answer, value, error in outcomes:
        if answer.cancelled():
            continue
        if error is None:
            answer.set_result(value)
        else:
            answer.set_exception(error)


def _fail(outcomes: list[_Outcome], error: BaseException) -> None:
    for answer, _, _ in outcomes:
        if not answer.cancelled():
            refusal = Unavailable("the store cannot be written")
            refusal.__cause__ = error
            answer.set_exception(refusal)


def _connect(path: Path) -> sqlite3.Connection:
    # Created by us first: SQLite gives its WAL and shared-memory files the mode of the database file.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone does not reach the disk there
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA temp_store = MEMORY")
    except sqlite3.Error as error:
        connection.close()
        raise ConfigurationError(
            f"{path} cannot be opened as a database ({error}): restore it from a backup or use another data directory"
        ) from error
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema up to date, each step in one transaction."""
    [version] = connection.execute("PRAGMA user_version").fetchone()
    [application_id] = connection.execute("PRAGMA application_id").fetchone()
    if version and application_id != APPLICATION_ID:
        raise ConfigurationError(f"{path} is a database of another program: use another data directory")
    steps = migrations.load("sqlite")
    if version > steps[-1].version:
        raise ConfigurationError(
            f"{path} was written by a newer version of AgentWrit (schema {version}, this one knows"
            f" {steps[-1].version}): upgrade agentwrit, or use another data directory"
        )
    for step in steps:
        if step.version > version:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{step.script}\n"
                f"PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {step.version};\nCOMMIT;"
            )


def _check_seal(connection: sqlite3.Connection, sealer: Sealer) -> None:
    """Refuse to open a database that was sealed under another master key; a new one is sealed under this."""
    row = connection.execute("SELECT value FROM meta WHERE name = 'sealed_by'").fetchone()
    if row is None:
        connection.execute("INSERT INTO meta (name, value) VALUES ('sealed_by', ?)", (sealer.name,))
    elif row[0] != sealer.name:
        raise ConfigurationError(
            "the master key is not the one that this data directory was made with:"
            " check AGENTWRIT_MASTER_KEY, or put its master.key back"
        )


def _load_high_water_mark(connection: sqlite3.Connection) -> float:
    row = connection.execute("SELECT value FROM meta WHERE name = 'now'").fetchone()
    return float(row[0]) if row is not None else 0.0


def _save_high_water_mark(connection: sqlite3.Connection, now: float) -> None:
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('now', ?)", (repr(now),))
