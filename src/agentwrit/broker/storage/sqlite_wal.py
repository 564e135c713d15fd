"""Keeping SQLite's write-ahead log small.

With each commit SQLite folds the log into the database as far as the oldest reader lets it, and begins anew at its
start when all is folded in and nobody reads in it. A reader who stays, in whatever process, keeps both from happening;
and a log that was large once stays as large as a file.

The rules:

- What the log has room for beyond `KEPT_BYTES` goes back to the disk as soon as it begins anew, and where it does not,
  it is asked to once a second.
- Nobody of ours reads for long: a query is broken off after `READ_SECONDS`, or `HURRIED_READ_SECONDS` once the log is
  half full, and commands that read everything do so in turns (`sqlite_verification`, `sqlite_backup`).
- Whoever else does is named to the operator, with what is known of them.
- A log of `MAX_BYTES` is not written any further: the store is unavailable until the reader is gone, and the disk is
  not filled.
"""

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Final

import structlog

KEPT_BYTES: Final = 64 * 2**20
MAX_BYTES: Final = 2 * 2**30
READ_SECONDS: Final = 120.0
HURRIED_READ_SECONDS: Final = 5.0  # as soon as the log is half full
INTERVAL_SECONDS: Final = 1.0
PATIENCE_MS: Final = 50  # with those who read: whoever comes meanwhile reads the database alone, and is not waited for
BLOCKED_SECONDS: Final = 5.0  # that a large log cannot be folded in before anybody is told

log = structlog.get_logger("agentwrit.storage")


class LogFull(sqlite3.OperationalError):
    """Nothing more is written before whoever reads in the log is gone."""


class WriteAheadLog:
    """The log of a database that `connection` writes.

    `fold_in` and `check_room` may take long: they are for the thread that writes.
    """

    def __init__(self, connection: sqlite3.Connection, database: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._connection = connection
        self._path = database.with_name(database.name + "-wal")
        self._index = database.with_name(database.name + "-shm")
        self._kept_bytes = min(KEPT_BYTES, max_bytes)
        self._max_bytes = max_bytes
        self._looked_at = float("-inf")
        self._blocked_since: float | None = None
        self._is_told = False
        self._reading: dict[sqlite3.Connection, float] = {}
        self.size = 0
        connection.execute(f"PRAGMA journal_size_limit = {self._kept_bytes}")

    @property
    def is_large(self) -> bool:
        """Whether folding it in may take long."""
        return self.size > self._kept_bytes

    @property
    def is_full(self) -> bool:
        return self.size >= self._max_bytes

    def look(self) -> bool:
        """Look after the log, if that is due. Returns whether it is to be folded in."""
        now = time.monotonic()
        if now < self._looked_at + INTERVAL_SECONDS:
            return False
        self._looked_at = now
        self._measure()
        self._break_off()
        return self.is_large

    def fold_in(self) -> None:
        """Fold the log in, if nobody is in the way. To be called between two transactions."""
        with contextlib.suppress(sqlite3.Error):  # whoever writes next meets it as well, and tells
            self._truncate()

    def check_room(self) -> None:
        """To be called before a transaction that writes.

        Raises:
            LogFull: there is none.
        """
        if self.is_full:
            self._break_off()
            self._truncate()
        if self.is_full:
            raise LogFull(f"the write-ahead log has {self.size} bytes, and somebody reads in it")

    def begins_to_read(self, connection: sqlite3.Connection) -> None:
        """A connection of ours reads from now on, in whatever thread."""
        self._reading[connection] = time.monotonic()

    def has_read(self, connection: sqlite3.Connection) -> None:
        self._reading.pop(connection, None)

    def tell(self) -> None:
        """Tell the operator who keeps the log from being folded in, once, and once that nobody does any more."""
        since = self._blocked_since
        if since is None and self._is_told:
            log.info("the write-ahead log is folded in again", bytes=self.size)
            self._is_told = False
        elif since is not None and not self._is_told and time.monotonic() > since + BLOCKED_SECONDS:
            log.warning(
                "the write-ahead log grows: another process reads the database, and has to end",
                bytes=self.size,
                at_most=self._max_bytes,
                processes=self._readers(),
            )
            self._is_told = True

    def _measure(self) -> None:
        try:
            self.size = self._path.stat().st_size
        except OSError:  # it is not there yet, and whatever else is wrong the next commit tells
            self.size = 0
        if not self.is_large:
            self._blocked_since = None

    def _truncate(self) -> None:
        """Fold the whole log in, unless somebody is in the way, and give its room back to the disk."""
        self._connection.execute(f"PRAGMA busy_timeout = {PATIENCE_MS}")
        try:
            [is_blocked, _, _] = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._connection.execute("PRAGMA busy_timeout = 0")
        if is_blocked and self._blocked_since is None:
            self._blocked_since = time.monotonic()
        self._measure()

    def _break_off(self) -> None:
        """Break off what of ours has read for too long."""
        now = time.monotonic()
        allowed = HURRIED_READ_SECONDS if self.size > self._max_bytes / 2 else READ_SECONDS
        for connection, since in list(self._reading.items()):
            if now > since + allowed:
                connection.interrupt()

    def _readers(self) -> list[int]:
        """The other processes that hold a lock on the log's index, as far as this system says (proc(5))."""
        try:
            status = self._index.stat()
            lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        held = (line.split() for line in lines)
        return sorted({int(words[4]) for words in held if len(words) > 5 and words[5] == file} - {os.getpid()})
