"""The write-ahead log: it does not grow without a bound, it shrinks again, and who keeps it from that is named."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import sqlite_backup, sqlite_copy, sqlite_schema, sqlite_verification, sqlite_wal
from agentwrit.broker.storage.base import Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.broker.storage.sqlite_wal import LogFull, WriteAheadLog
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import ConfigurationError, Unavailable

SEALER = Sealer(b"s" * 32)
LARGE = Draft(event_type=EventType.TOKEN_ISSUED, detail="x" * 30_000)
KEPT = 1 << 20
FULL = 4 << 20


def write(transaction: Transaction) -> None:
    for _ in range(10):
        transaction.record(LARGE)


def size(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a store is to be, which looks after its log at each commit, and keeps little of it."""
    monkeypatch.setattr(sqlite_wal, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(sqlite_wal, "KEPT_BYTES", KEPT)
    monkeypatch.setattr(sqlite_wal, "BLOCKED_SECONDS", 0.0)
    return tmp_path / "agentwrit.db"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody who looks in and stays."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        yield reader


def test_a_log_that_nobody_reads_in_stays_small(path: Path) -> None:
    async def claim() -> None:
        store = SqliteStore(path, Clock(), SEALER)
        for _ in range(60):
            await store.write(write)
            assert size(path) <= max(KEPT, sqlite_schema.CHECKPOINT_PAGES * 4096) + (1 << 20)
        await store.close()

    asyncio.run(claim())


def test_a_log_shrinks_when_its_reader_has_gone(path: Path) -> None:
    async def claim() -> None:
        store = SqliteStore(path, Clock(), SEALER)
        await store.write(write)
        with structlog.testing.capture_logs() as lines, reading(path):
            while size(path) <= 2 * KEPT:
                await store.write(write)
            for _ in range(3):
                await store.write(write)
        assert [line["event"] for line in lines if "grows" in line["event"]], lines
        with structlog.testing.capture_logs() as lines:
            await store.write(write)
            await store.write(write)
        assert size(path) <= KEPT
        assert store.log_bytes() <= KEPT
        assert [line["log_level"] for line in lines] == ["info"]
        await store.close()

    asyncio.run(claim())


def test_readers_who_come_and_go_so_that_there_is_always_one_do_not_let_a_log_grow(path: Path) -> None:
    async def claim() -> None:
        store = SqliteStore(path, Clock(), SEALER)
        await store.write(write)
        is_over = threading.Event()

        def come_and_go() -> None:
            with contextlib.ExitStack() as last:
                while not is_over.wait(0.002):
                    with contextlib.ExitStack() as new:
                        new.enter_context(reading(path))
                        last.close()
                        last = new.pop_all()
                last.close()

        readers = threading.Thread(target=come_and_go)
        readers.start()
        try:
            for _ in range(60):
                await store.write(write)
                assert size(path) <= 8 * KEPT
        finally:
            is_over.set()
            readers.join()
            await store.close()

    asyncio.run(claim())


def test_whoever_keeps_a_log_from_being_folded_in_is_named(path: Path) -> None:
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN');"
        "c.execute('SELECT count(*) FROM events').fetchone(); print('reads', flush=True); sys.stdin.read()"
    )

    async def claim() -> None:
        store = SqliteStore(path, Clock(), SEALER)
        await store.write(write)
        command = [sys.executable, "-c", script, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reads\n"
            with structlog.testing.capture_logs() as lines:
                for _ in range(20):
                    await store.write(write)
            reader.kill()
        [told] = [line for line in lines if "grows" in line["event"]]
        assert told["log_level"] == "warning"
        if Path("/proc/locks").exists():
            assert told["processes"] == [reader.pid]
        await store.close()

    asyncio.run(claim())


def test_a_full_log_is_not_written_any_further_until_its_reader_has_gone(path: Path) -> None:
    async def claim() -> None:
        store = SqliteStore(path, Clock(), SEALER, max_log_bytes=FULL)
        await store.write(write)
        with reading(path):
            while store.log_bytes() < FULL:
                await store.write(write)
            written = await store.read(lambda snapshot: snapshot.event_head())
            for _ in range(5):
                with pytest.raises(Unavailable) as refusal:
                    await store.write(write)
                assert isinstance(refusal.value.__cause__, LogFull)
                assert not store.is_writable()
            assert FULL <= size(path) <= FULL + (2 << 20)
            assert await store.read(lambda snapshot: snapshot.event_head()) == written
        await store.write(write)
        assert store.is_writable()
        assert size(path) <= KEPT
        assert await store.read(lambda snapshot: snapshot.event_head()) == written + 10
        await store.close()

    asyncio.run(claim())


@pytest.mark.parametrize("bound", ["READ_SECONDS", "HURRIED_READ_SECONDS"])
def test_a_query_of_ours_that_reads_for_too_long_is_broken_off(
    path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(sqlite_wal, bound, 0.0)
    begun = threading.Event()

    def for_ever(snapshot: object) -> None:
        connection: sqlite3.Connection = snapshot._connection  # type: ignore[attr-defined]
        connection.execute("SELECT count(*) FROM events").fetchone()
        begun.set()
        connection.execute(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT count(*) FROM n"
        ).fetchone()

    async def claim() -> None:
        store = SqliteStore(path, Clock(), SEALER, max_log_bytes=FULL)
        endless = asyncio.create_task(store.read(for_ever))
        await asyncio.to_thread(begun.wait)
        async with asyncio.timeout(20):
            while not endless.done():
                await asyncio.gather(*(store.write(write) for _ in range(2)))
        with pytest.raises(Unavailable):
            await endless
        assert await store.read(lambda snapshot: snapshot.event_head()) > 0
        await store.close()

    asyncio.run(claim())


class Interrupted(sqlite3.Connection):
    """Counts how often it was."""

    count = 0

    def interrupt(self) -> None:
        self.count += 1
        super().interrupt()


class Time:
    """The module of that name, with the clock in the test's hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_how_long_a_query_of_ours_may_read_depends_on_whether_the_log_is_half_full(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Time()
    monkeypatch.setattr(sqlite_wal, "time", clock)
    with (
        contextlib.closing(sqlite_schema.connect(path)) as writer,
        contextlib.closing(sqlite3.connect(path, factory=Interrupted)) as reader,
    ):
        writer.execute("CREATE TABLE t (x)")
        wal = WriteAheadLog(writer, path, max_bytes=FULL)
        began = clock.now
        wal.begins_to_read(reader)

        def interrupted(seconds: float, more: int) -> int:
            """How often it was, once it is looked after a log that is so many bytes more than half full."""
            os.truncate(path.with_name(path.name + "-wal"), FULL // 2 + more)
            clock.now = began + seconds
            wal.look()
            return reader.count

        assert interrupted(sqlite_wal.HURRIED_READ_SECONDS, 1) == 0
        assert interrupted(sqlite_wal.HURRIED_READ_SECONDS + 0.1, 0) == 0
        assert interrupted(sqlite_wal.HURRIED_READ_SECONDS + 0.2, 1) == 1
        assert interrupted(sqlite_wal.READ_SECONDS, 0) == 1
        assert interrupted(sqlite_wal.READ_SECONDS + 0.1, 0) == 2
        wal.has_read(reader)
        assert interrupted(sqlite_wal.READ_SECONDS + 0.2, 1) == 2


def test_what_a_log_has_room_for_goes_back_to_the_disk_when_it_begins_anew(path: Path) -> None:
    with contextlib.closing(sqlite_schema.connect(path)) as connection:
        WriteAheadLog(connection, path)
        assert connection.execute("PRAGMA journal_size_limit").fetchone() == (KEPT,)


class SlowDisk:
    """A disk that takes nothing of a backup before it is told to: `begun` says that something waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Semaphore(0)
        self.may_write = threading.Semaphore(0)
        self.is_slow = True
        self._write = os.pwrite
        monkeypatch.setattr(os, "pwrite", self._pwrite)

    def _pwrite(self, file: int, data: bytes, at: int) -> int:
        if self.is_slow:
            self.begun.release()
            assert self.may_write.acquire(timeout=30)
        return self._write(file, data, at)


def test_a_backup_to_a_slow_disk_keeps_the_log_small_and_is_one_state(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_copy, "MAX_LOG_BYTES", 2 * KEPT)
    monkeypatch.setattr(sqlite_copy, "PIECE_BYTES", 16 * 1024)
    disk = SlowDisk(monkeypatch)
    backup = path.with_name("backup.db")

    async def claim() -> None:
        store = SqliteStore(path, Clock(), SEALER)
        while path.stat().st_size < 2 * KEPT:
            await store.write(write)
        before = await store.read(lambda snapshot: snapshot.event_head())
        copying = asyncio.create_task(asyncio.to_thread(sqlite_backup.back_up, path, backup, SEALER, overwrite=False))
        await asyncio.to_thread(disk.begun.acquire)
        while size(path) <= 2 * KEPT:  # it reads in the log, which grows meanwhile
            await store.write(write)
        disk.may_write.release()
        await asyncio.to_thread(disk.begun.acquire)  # by now it has let go
        for _ in range(3):
            await store.write(write)
        assert size(path) <= KEPT
        assert not copying.done()
        assert not backup.exists()
        disk.is_slow = False
        disk.may_write.release()
        while not copying.done():
            await store.write(write)
            assert size(path) <= 4 * KEPT
        after = await store.read(lambda snapshot: snapshot.event_head())
        assert before < await copying <= after
        await store.close()

    asyncio.run(claim())
    assert sqlite_verification.verify(backup, SEALER)[0] > 0
    assert not [each.name for each in path.parent.iterdir() if "partial" in each.name]


def test_a_disk_that_is_slower_than_the_changes_gets_no_backup(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_copy, "MAX_LOG_BYTES", -1)  # each pass lets go

    async def claim() -> None:
        store = SqliteStore(path, Clock(), SEALER)
        await store.write(write)
        before = {each.name for each in path.parent.iterdir()}
        with pytest.raises(ConfigurationError, match="quicker disk"):
            await asyncio.to_thread(sqlite_backup.back_up, path, path.with_name("b"), SEALER, overwrite=False)
        assert {each.name for each in path.parent.iterdir()} == before
        await store.close()

    asyncio.run(claim())


KILLED = """
import os, signal, sys
from pathlib import Path
from agentwrit.broker.storage import sqlite_backup
from agentwrit.broker.storage.sealing import Sealer

write, left = os.pwrite, [int(sys.argv[3])]

def cut_short(file, data, at):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(file, data, at)

os.pwrite = cut_short
sqlite_backup.back_up(Path(sys.argv[1]), Path(sys.argv[2]), Sealer(b"s" * 32), overwrite=True)
"""


@pytest.mark.parametrize("writes", [1, 3])
def test_a_backup_that_is_killed_leaves_what_had_its_name(path: Path, writes: int) -> None:
    backup = path.with_name("backup.db")
    backup.write_bytes(b"the one before")

    async def fill() -> None:
        store = SqliteStore(path, Clock(), SEALER)
        while path.stat().st_size < 2 * KEPT:
            await store.write(write)
        await store.close()

    asyncio.run(fill())
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(backup), str(writes)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert backup.read_bytes() == b"the one before"
    assert sqlite_backup.back_up(path, backup, SEALER, overwrite=True) > 0
    assert sqlite_verification.verify(backup, SEALER)[0] > 0


def test_a_log_of_nothing_has_no_size(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "agentwrit.db")) as connection:
        log = WriteAheadLog(connection, tmp_path / "agentwrit.db")
        assert not log.look()
        log.fold_in()
        assert (log.size, log.is_large, log.is_full) == (0, False, False)
