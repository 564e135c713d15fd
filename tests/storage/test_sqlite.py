"""What only the SQLite store has: a file, restarts, one commit for many, and somebody who edits it by hand."""

import asyncio
import contextlib
import hmac
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentwrit.broker.services import state_check
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.ending import end_named
from agentwrit.broker.storage import migrations, sqlite, sqlite_batch
from agentwrit.broker.storage.base import EventQuery, GrantQuery, Snapshot, Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import AT_ONCE, WORTH_A_COMMIT, SqliteStore
from agentwrit.broker.storage.sqlite_rows import SqliteSnapshot, saved_head
from agentwrit.broker.storage.sqlite_schema import APPLICATION_ID, CHECKPOINT_PAGES, TREE_VERSION, connect
from agentwrit.domain import audit, merkle
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.ending import EndingLevel, Named
from agentwrit.domain.errors import ConfigurationError, TamperedRecord, Unavailable
from agentwrit.domain.grant import EndReason, GrantKind
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import Revocation, RevocationKind
from tests.domain.records import NOW, make_app, make_grant, make_launch_token
from tests.storage.conftest import Subject, Time

ISSUED = Draft(event_type=EventType.TOKEN_ISSUED)
ENTRY = Revocation(kind=RevocationKind.GRANT, id="sid-1", effective_at=NOW, last_exp=NOW + 300)
KEY = b"s" * 32
LONG = 3600.0  # seconds

WITHOUT_ENDINGS = """
    DROP TABLE endings; DROP INDEX grants_live_below; DROP INDEX grants_live_in_tree;
    DROP INDEX grants_live_delegates; ALTER TABLE grants DROP COLUMN tree;
"""
WITHOUT_USAGE = f"""
    {WITHOUT_ENDINGS} DROP TABLE app_usage; DROP INDEX grants_counted; ALTER TABLE grants DROP COLUMN counted;
"""


class File:
    """A database file, and the stores that are opened on it one after the other."""

    def __init__(self, path: Path, runner: asyncio.Runner) -> None:
        self.path = path
        self.time = Time()
        self._runner = runner
        self._open: SqliteStore | None = None

    def open(self, key: bytes = KEY) -> Subject:
        self.close()
        self._open = SqliteStore(self.path, self.time.clock(), Sealer(key))
        return Subject(self._open, self._runner, self.time)

    def close(self) -> None:
        if self._open is not None:
            self._runner.run(self._open.close())
            self._open = None

    def edit(self, sql: str, *values: object) -> None:
        """What somebody with a SQLite shell does."""
        with sqlite3.connect(self.path) as connection:
            assert connection.execute(sql, values).rowcount > 0
        connection.close()

    def commits(self) -> int:
        """How many commits the write-ahead log holds (https://www.sqlite.org/fileformat2.html#the_write_ahead_log).

        Its header has 32 bytes. A frame has a header of 24 bytes and a page; the second word is not zero in the last
        frame of each commit.
        """
        log = self.path.with_name(self.path.name + "-wal").read_bytes()
        page_size = int.from_bytes(log[8:12], "big")
        salt = log[16:24]
        frames = [log[at : at + 24] for at in range(32, len(log), 24 + page_size)]
        return sum(frame[8:16] == salt and frame[4:8] != bytes(4) for frame in frames)


@contextlib.asynccontextmanager
async def opened(file: File, **settings: Any) -> AsyncIterator[SqliteStore]:
    """A store on the loop that runs, to be written by several at once."""
    store = SqliteStore(file.path, file.time.clock(), Sealer(KEY), **settings)
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def locked_from_outside(file: File) -> AsyncIterator[sqlite3.Connection]:
    """Somebody else's connection, which holds the write lock."""
    with contextlib.closing(sqlite3.connect(file.path, isolation_level=None)) as outsider:
        outsider.execute("BEGIN IMMEDIATE")
        yield outsider


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    with asyncio.Runner() as runner:
        file = File(tmp_path / "agentwrit.db", runner)
        yield file
        file.close()


def put_one_of_each(transaction: Transaction) -> None:
    transaction.put(Operator(name="admin", password_hash="$argon2id$", created_at=NOW, updated_at=NOW))
    transaction.put(make_app())
    transaction.put(make_launch_token())
    transaction.put(make_grant())
    transaction.spend_nonce(b"n", NOW + 30)
    transaction.revoke(ENTRY)
    transaction.record(ISSUED)


def everything(snapshot: Snapshot) -> list[Any]:
    return [
        snapshot.operator("admin"),
        snapshot.app("app-1"),
        snapshot.launch_token(b"t" * 32),
        snapshot.grant("sid-1"),
        list(snapshot.revocations(NOW)),
        list(snapshot.events(EventQuery())),
    ]


# -- restarts ---------------------------------------------------------------------------------------------------------


def test_a_restart_keeps_everything(file: File) -> None:
    store = file.open()
    store.write(put_one_of_each)
    before = store.read(everything)
    store = file.open()
    assert store.read(everything) == before
    assert None not in before
    assert not store.write(lambda t: t.spend_nonce(b"n", NOW + 30))
    store.write(lambda t: t.record(ISSUED))
    assert audit.verify(store.read(lambda s: s.events(EventQuery()))) == 2


def test_a_clock_that_is_set_back_across_a_restart_gives_no_earlier_time(file: File) -> None:
    file.time.wall = NOW + 1000
    file.open().write(lambda t: t.record(ISSUED))
    file.close()
    file.time.wall = NOW
    assert file.open().write(lambda t: t.now) >= NOW + 1000


def test_time_goes_on_disk_even_when_nothing_else_is_written(file: File) -> None:
    store = file.open()
    store.write(lambda t: t.record(ISSUED))
    file.time.wall = NOW + 60
    store.write(lambda t: None)
    file.close()
    file.time.wall = NOW
    assert file.open().write(lambda t: t.now) >= NOW + 60


# -- group commit -----------------------------------------------------------------------------------------------------


def test_one_commit_serves_many_who_wait(file: File) -> None:
    store = file.open()
    before = file.commits()

    async def at_once() -> None:
        await asyncio.gather(*(store.store.write(lambda t: t.record(ISSUED)) for _ in range(100)))

    store.run(at_once())
    commits = file.commits() - before
    assert 1 <= commits < 50
    assert store.read(lambda s: s.event_count()) == 100


def test_writers_who_do_not_wait_together_have_a_commit_each(file: File) -> None:
    store = file.open()
    before = file.commits()
    for _ in range(5):
        store.write(lambda t: t.record(ISSUED))
    assert file.commits() - before == 5


@pytest.mark.parametrize("rows", [1, 2, 3, sqlite_batch.MOST_ROWS, sqlite_batch.MOST_ROWS + 1, 300])
def test_a_batch_writes_all_its_rows_in_their_order(file: File, rows: int) -> None:
    store = file.open()
    grants = [make_grant(sid=f"sid-{number}", jti=f"jti-{number}") for number in range(rows)]

    def unit(transaction: Transaction) -> None:
        for grant in grants:
            transaction.put(grant)
            transaction.record(ISSUED)

    store.write(unit)
    assert store.read(lambda s: list(s.grants(GrantQuery()))) == grants
    assert [event.sequence for event in store.read(lambda s: s.events(EventQuery(limit=1000)))] == [*range(1, rows + 1)]
    ended = [msgspec.structs.replace(grant, ended_at=5) for grant in grants]
    store.write(lambda transaction: [transaction.put(grant) for grant in ended])
    assert store.read(lambda s: list(s.grants(GrantQuery()))) == ended


def test_a_unit_that_cannot_read_is_told_that_the_store_is_out_of_order(file: File) -> None:
    store = file.open()
    store.write(lambda t: t.put(make_grant()))
    with contextlib.closing(sqlite3.connect(file.path)) as connection:
        connection.execute("ALTER TABLE grants RENAME TO elsewhere")
    with pytest.raises(Unavailable):
        store.write(lambda t: t.grant("sid-1"))
    assert not store.store.is_writable()
    with contextlib.closing(sqlite3.connect(file.path)) as connection:
        connection.execute("ALTER TABLE elsewhere RENAME TO grants")
    assert store.write(lambda t: t.grant("sid-1")) == make_grant()
    assert store.store.is_writable()


@pytest.mark.parametrize(("rows", "is_lone"), [(sqlite.LONE_ROWS - 2, True), (sqlite.LONE_ROWS + 1, False)])
def test_only_what_is_small_is_committed_where_everybody_else_waits(
    file: File, monkeypatch: pytest.MonkeyPatch, rows: int, is_lone: bool
) -> None:
    monkeypatch.setattr(sqlite, "LONE_SECONDS", float("inf"))
    store = file.open()
    store.write(lambda t: t.record(ISSUED))  # the first one's time is not known before it is over
    threads: list[int] = []
    assert isinstance(store.store, SqliteStore)
    store.store._connection.set_trace_callback(
        lambda sql: threads.append(threading.get_ident()) if sql == "COMMIT" else None
    )
    grants = [make_grant(sid=f"sid-{number}", jti=f"jti-{number}") for number in range(rows)]
    store.write(lambda t: [t.put(grant) for grant in grants])
    assert [thread == threading.get_ident() for thread in threads] == [is_lone]


def test_a_unit_that_changes_nothing_costs_no_commit(file: File) -> None:
    store = file.open()
    store.write(lambda t: t.record(ISSUED))
    before = file.commits()
    for _ in range(5):
        store.write(lambda t: t.grant("sid-1"))
    assert file.commits() == before


# -- somebody edits the file ------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[Snapshot], Any]] = {
    "operators": lambda s: s.operator("admin"),
    "apps": lambda s: s.app("app-1"),
    "launch_tokens": lambda s: s.launch_token(b"t" * 32),
    "grants": lambda s: s.grant("sid-1"),
    "revocations": lambda s: list(s.revocations(0)),
}
SEALED = [name for name in TABLES if name != "revocations"]


@pytest.mark.parametrize("table", SEALED)
@pytest.mark.parametrize(
    "change",
    [
        "body = replace(body, '1', '2')",
        "body = x''",
        "body = '{}'",
        "mac = x'00'",
        "mac = zeroblob(32)",
        "mac = 'text'",
    ],
)
def test_an_edited_row_is_refused(file: File, table: str, change: str) -> None:
    file.open().write(put_one_of_each)
    file.close()
    file.edit(f"UPDATE {table} SET {change}")
    store = file.open()
    for ask in (store.read, store.write):
        with pytest.raises(TamperedRecord, match=table):
            ask(TABLES[table])


@pytest.mark.parametrize(
    "change",
    [
        "effective_at = effective_at + 100",
        "last_exp = last_exp + 1",
        "id = 'sid-2'",
        "kind = 'jti'",
        "kind = 'unknown'",
        "mac = zeroblob(32)",
        "mac = 'text'",
        "effective_at = 'never'",
    ],
)
def test_an_edited_revocation_is_refused(file: File, change: str) -> None:
    file.open().write(put_one_of_each)
    file.close()
    file.edit(f"UPDATE revocations SET {change}")
    with pytest.raises(TamperedRecord):
        file.open().read(TABLES["revocations"])


def test_a_genuine_row_in_anothers_place_is_refused(file: File) -> None:
    store = file.open()
    store.write(lambda t: (t.put(make_grant(sid="a")), t.put(make_grant(sid="b", scope=("admin:all:*",)))))
    file.close()
    file.edit(
        "UPDATE grants SET (body, mac) = (SELECT o.body, o.mac FROM grants AS o WHERE o.sid = 'b') WHERE sid = 'a'"
    )
    with pytest.raises(TamperedRecord):
        file.open().read(lambda s: s.grant("a"))


def test_a_row_cannot_be_moved_to_another_table(file: File) -> None:
    file.open().write(put_one_of_each)
    file.close()
    file.edit("UPDATE grants SET (body, mac) = (SELECT body, mac FROM launch_tokens)")
    with pytest.raises(TamperedRecord):
        file.open().read(TABLES["grants"])


def test_an_ended_grant_does_not_live_again_by_its_columns(file: File) -> None:
    store = file.open()
    store.write(lambda t: t.put(make_grant(ended_at=NOW, end_reason="revoked")))
    file.close()
    file.edit("UPDATE grants SET ended_at = 0")
    store = file.open()
    assert store.read(lambda s: s.grant("sid-1")).is_ended
    try:
        found = store.read(lambda s: s.grants(GrantQuery(live_at=NOW)))
    except TamperedRecord:
        return
    assert all(grant.is_live(NOW) for grant in found)


@pytest.mark.parametrize(
    "change",
    ["detail = 'nothing'", "agent_id = ''", "data = '{}'", "version = 2", "timestamp = '2020-01-01T00:00:00.000000Z'"],
)
def test_an_edited_event_breaks_the_chain(file: File, change: str) -> None:
    draft = Draft(event_type=EventType.TOKEN_ISSUED, agent_id="agent", data={"ttl": 300})
    file.open().write(lambda t: [t.record(draft) for _ in range(3)])
    file.close()
    file.edit(f"UPDATE events SET {change} WHERE sequence = 2")
    with pytest.raises(TamperedRecord, match="evt-000002"):
        file.open()


@pytest.mark.parametrize("change", ["data = 'no json'", "data = '[1]'", "data = x'ff'", "version = 'text'"])
def test_an_event_that_is_none_any_more_is_refused(file: File, change: str) -> None:
    file.open().write(lambda t: t.record(ISSUED))
    file.close()
    file.edit(f"UPDATE events SET {change}")
    with pytest.raises(TamperedRecord, match="evt-000001"):
        file.open().read(lambda s: s.events(EventQuery()))


def test_a_dropped_event_breaks_the_chain(file: File) -> None:
    file.open().write(lambda t: [t.record(ISSUED) for _ in range(3)])
    file.close()
    file.edit("DELETE FROM events WHERE sequence = 2")
    with pytest.raises(TamperedRecord, match="evt-000002 is missing"):
        audit.verify(file.open().read(lambda s: s.events(EventQuery())))


# -- files that are not ours ------------------------------------------------------------------------------------------


def test_another_master_key_is_refused_and_nothing_is_lost(file: File) -> None:
    file.open().write(put_one_of_each)
    file.close()
    with pytest.raises(ConfigurationError, match="master key"):
        file.open(b"S" * 32)
    assert file.open().read(lambda s: s.grant("sid-1")) == make_grant()


def test_a_database_of_a_newer_version_is_refused(file: File) -> None:
    file.open()
    file.close()
    with sqlite3.connect(file.path) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(ConfigurationError, match="newer version"):
        file.open()


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE users (id); PRAGMA user_version = 3;",
        "CREATE TABLE users (id); PRAGMA user_version = 3; PRAGMA application_id = 1;",
        "CREATE TABLE users (id); PRAGMA application_id = 1;",
        "CREATE TABLE users (id);",
        "CREATE TABLE apps (id);",
    ],
)
def test_a_database_of_another_program_is_refused_and_left_alone(file: File, script: str) -> None:
    with sqlite3.connect(file.path) as connection:
        connection.executescript(script)
        before = list(connection.iterdump())
    connection.close()
    with pytest.raises(ConfigurationError, match="another program"):
        file.open()
    with sqlite3.connect(file.path) as connection:
        assert list(connection.iterdump()) == before
    connection.close()


@pytest.mark.parametrize("content", [b"hello, this is a text" * 100, bytes(range(256)) * 32])
def test_a_file_that_is_no_database_is_refused_and_left_alone(file: File, content: bytes) -> None:
    file.path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="database"):
        file.open()
    assert file.path.read_bytes() == content


def test_a_new_database_is_marked_as_ours(file: File) -> None:
    file.open()
    file.close()
    connection = sqlite3.connect(file.path)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


SETTINGS = {
    "journal_mode": "wal",
    "synchronous": 2,  # FULL: a commit is on disk before it is answered
    "fullfsync": 1,
    "checkpoint_fullfsync": 1,
    "wal_autocheckpoint": CHECKPOINT_PAGES,
    "foreign_keys": 1,
    "temp_store": 2,  # in memory: nothing of it is left on disk
    "trusted_schema": 0,
    "cell_size_check": 1,
}


def test_a_connection_has_the_settings_that_durability_and_distrust_rest_on(tmp_path: Path) -> None:
    with contextlib.closing(connect(tmp_path / "agentwrit.db")) as connection:
        found = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in SETTINGS}
    assert found == SETTINGS


def test_the_files_are_readable_by_their_owner_alone(file: File) -> None:
    store = file.open()
    store.write(put_one_of_each)
    store.read(everything)
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in file.path.parent.iterdir()}
    assert modes == {"agentwrit.db": 0o600, "agentwrit.db-wal": 0o600, "agentwrit.db-shm": 0o600}


# -- a store that cannot be written -----------------------------------------------------------------------------------

FULL_DISK = """
import asyncio, contextlib, pathlib, resource, signal, sqlite3, sys
from agentwrit.broker.clock import Clock
from agentwrit.broker.storage.base import EventQuery
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.broker.storage.sqlite_rows import saved_head
from agentwrit.domain import audit, merkle
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import Unavailable
from agentwrit.domain.revocation import Revocation, RevocationKind

path = pathlib.Path(sys.argv[1])
big = Draft(event_type=EventType.TOKEN_ISSUED, detail="x" * 4000)
entry = Revocation(kind=RevocationKind.GRANT, id="sid-1", effective_at=0, last_exp=2**40)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

def unit(transaction):
    transaction.record(big)
    transaction.revoke(entry)

async def main():
    store, announced = SqliteStore(path, Clock(), Sealer(b"s" * 32)), []
    store.listen(announced.extend)
    await store.write(lambda t: t.record(big))
    largest = max(file.stat().st_size for file in path.parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 1024, unlimited[1]))
    units = [unit] * 10 + [lambda t: t.put_checkpoint(1, "a note")]
    answers = await asyncio.gather(*map(store.write, units), return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers), answers
    assert not store.is_writable()
    assert announced == []
    assert await store.read(lambda s: (s.event_count(), list(s.revocations(0)))) == (1, [])
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    await store.write(unit)
    assert store.is_writable()
    assert announced == [entry]
    assert audit.verify(await store.read(lambda s: s.events(EventQuery()))) == 2
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert saved_head(connection, Sealer(b"s" * 32)).covered == 0
    store = SqliteStore(path, Clock(), Sealer(b"s" * 32))
    assert await store.read(lambda s: s.event_count()) == 2
    await store.close()
    print("done")

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
asyncio.run(main())
"""


def test_on_a_full_disk_nothing_is_kept_and_later_writes_work_again(tmp_path: Path) -> None:
    # In a process of its own: the limit on the size of files is the whole process's.
    directory = tmp_path / "data"
    directory.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(directory / "agentwrit.db")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_too_many_units_that_wait_are_turned_away(file: File) -> None:
    store = file.open()

    async def flood() -> list[Any]:
        writes = (store.store.write(lambda t: t.spend_nonce(b"n", NOW)) for _ in range(5000))
        return await asyncio.gather(*writes, return_exceptions=True)

    answers = store.run(flood())
    refused = [answer for answer in answers if isinstance(answer, Unavailable)]
    assert 0 < len(refused) < 5000
    assert answers.count(True) == 1
    assert answers.count(False) == 5000 - len(refused) - 1


def test_those_whose_units_were_run_count_among_those_who_wait(file: File) -> None:
    store = file.open()

    async def flood() -> list[Any]:
        units: list[Callable[[Transaction], Any]] = [*[spend] * 4000, *[lambda t: t.event_count()] * 1000]
        return await asyncio.gather(*map(store.store.write, units), return_exceptions=True)

    answers = store.run(flood())
    assert [type(answer) for answer in answers] == [bool] * 4000 + [int] * 96 + [Unavailable] * 904


def test_a_caller_who_stops_waiting_takes_no_other_down(file: File) -> None:
    store = file.open()

    async def give_up() -> list[Any]:
        writes = [asyncio.ensure_future(store.store.write(lambda t: t.record(ISSUED))) for _ in range(20)]
        for write in writes[::2]:
            write.cancel()
        return await asyncio.gather(*writes, return_exceptions=True)

    answers = store.run(give_up())
    assert answers[1::2] == [None] * 10
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    assert audit.verify(store.read(lambda s: s.events(EventQuery()))) >= 10


# -- a lock held from outside ---------------------------------------------------------------------------------------


def test_a_lock_held_from_outside_is_waited_for_and_holds_up_nobody_else(file: File) -> None:
    """Nobody should, but people open databases with other programs."""

    async def claim() -> None:
        async with opened(file) as store, locked_from_outside(file) as outsider:
            writing = asyncio.create_task(store.write(lambda transaction: transaction.record(ISSUED)))
            for _ in range(3):
                assert await store.read(lambda snapshot: snapshot.event_count()) == 0
            assert not writing.done()
            outsider.execute("ROLLBACK")
            await writing

    asyncio.run(claim())


def test_a_lock_that_is_not_given_back_is_unavailable_for_everyone_who_waits(file: File) -> None:
    async def claim() -> None:
        async with opened(file, lock_timeout_ms=20) as store, locked_from_outside(file) as outsider:
            writes = [store.write(lambda transaction: transaction.record(ISSUED)) for _ in range(3)]
            results = await asyncio.gather(*writes, return_exceptions=True)
            assert [type(result) for result in results] == [Unavailable] * 3
            assert not store.is_writable()
            outsider.execute("ROLLBACK")
            await store.write(lambda transaction: transaction.record(ISSUED))
            assert store.is_writable()
            assert await store.read(lambda snapshot: snapshot.event_count()) == 1

    asyncio.run(claim())


# -- while a commit is under way --------------------------------------------------------------------------------------


def spend(transaction: Transaction) -> bool:
    transaction.record(ISSUED)
    return transaction.spend_nonce(b"n", NOW + 30)


def end_and_revoke(transaction: Transaction) -> None:
    transaction.put(make_grant(ended_at=NOW, end_reason="revoked"))
    transaction.revoke(ENTRY)


def look(transaction: Transaction) -> list[Any]:
    found = [
        transaction.grant("sid-1"),
        transaction.grants(GrantQuery(live_at=NOW)),
        transaction.revocation(ENTRY.kind, ENTRY.id),
        transaction.feed_head(),
        spend(transaction),
    ]
    found.append(transaction.head.sequence)
    return found


def test_what_comes_during_a_commit_sees_what_is_being_committed(file: File) -> None:
    async def claim() -> None:
        seen: list[list[Any]] = []
        async with opened(file) as store, locked_from_outside(file) as outsider:
            under_way = [asyncio.create_task(store.write(unit)) for unit in (end_and_revoke, spend)]
            for _ in range(3):
                assert await store.read(lambda snapshot: snapshot.feed_head()) == 0
            later = asyncio.create_task(store.write(lambda transaction: seen.append(look(transaction))))
            assert await store.read(lambda snapshot: snapshot.event_head()) == 0
            assert seen == [[make_grant(ended_at=NOW, end_reason="revoked"), [], ENTRY, 1, False, 2]]
            outsider.execute("ROLLBACK")
            await asyncio.gather(*under_way)
            await later
            expected = [*seen[0][:-1], 3]
            assert await store.write(look) == expected
            assert audit.verify(await store.read(lambda snapshot: snapshot.events(EventQuery()))) == 3

    file.open().write(lambda transaction: transaction.put(make_grant()))
    file.close()
    asyncio.run(claim())


def test_what_comes_while_a_unit_on_the_database_is_committed_waits_for_it(file: File) -> None:
    async def claim() -> None:
        seen: list[Any] = []
        async with opened(file) as store:
            go_on = _held_up(store)
            under_way = [asyncio.create_task(store.write(lambda t: t.put(make_app()))) for _ in range(2)]
            for _ in range(3):
                assert await store.read(lambda snapshot: snapshot.app_count()) == 0
            later = asyncio.create_task(store.write(lambda transaction: seen.append(transaction.app("app-1"))))
            await store.read(lambda snapshot: snapshot.app_count())
            assert seen == []
            go_on.set()
            await asyncio.gather(*under_way, later)
            assert seen == [make_app()]

    asyncio.run(claim())


@pytest.mark.parametrize("at_most", [0, LONG], ids=["some-still-wait", "none-waits"])
def test_units_run_as_they_come_again_when_what_needed_the_database_is_committed(
    file: File, monkeypatch: pytest.MonkeyPatch, at_most: float
) -> None:
    async def claim() -> None:
        seen: list[bool] = []
        for limit in ("BATCH_SECONDS", "MAX_BATCH_SECONDS"):  # both apps are one batch, however slow the machine is
            monkeypatch.setattr(sqlite, limit, LONG)
        async with opened(file) as store:
            go_on = _held_up(store)
            under_way = [asyncio.create_task(store.write(lambda t: t.put(make_app()))) for _ in range(2)]
            for _ in range(3):
                await store.read(lambda snapshot: snapshot.app_count())
            waited = [asyncio.create_task(store.write(spend)) for _ in range(2)]
            await store.read(lambda snapshot: snapshot.app_count())
            monkeypatch.setattr(sqlite, "MAX_BATCH_SECONDS", at_most)
            monkeypatch.setattr(sqlite, "LONE_SECONDS", 0)  # all are committed on the thread, which is held up
            go_on_again = _held_up(store)
            go_on.set()
            await asyncio.gather(*under_way)
            for _ in range(3):
                assert await store.read(lambda snapshot: snapshot.event_head()) == 0
            later = asyncio.create_task(store.write(lambda transaction: seen.append(spend(transaction))))
            assert await store.read(lambda snapshot: snapshot.event_head()) == 0
            assert seen == [False]
            go_on_again.set()
            assert await asyncio.gather(*waited) == [True, False]
            await later

    asyncio.run(claim())


def test_a_nonce_that_was_spent_on_the_database_or_before_a_restart_is_spent_for_units_in_memory(file: File) -> None:
    store = file.open()
    assert store.write(lambda transaction: (transaction.event_count(), spend(transaction)))[1]
    assert not store.write(spend)
    file.close()
    assert not file.open().write(spend)


def test_what_is_committed_is_kept_by_no_batch_that_comes_after(file: File) -> None:
    async def claim() -> None:
        async with opened(file) as store:
            go_on = _held_up(store)
            first = asyncio.create_task(store.write(spend))
            for _ in range(3):
                await store.read(lambda snapshot: snapshot.feed_head())
            second = [asyncio.create_task(store.write(spend)) for _ in range(2)]
            await store.read(lambda snapshot: snapshot.feed_head())
            on_its_way = store._ground.changes
            assert on_its_way is not None
            go_on_again = _held_up(store)
            go_on.set()
            assert await first
            for _ in range(3):
                await store.read(lambda snapshot: snapshot.feed_head())
            assert store._ground.changes not in (None, on_its_way)
            assert store._ground.changes.below is None
            go_on_again.set()
            assert await asyncio.gather(*second) == [False, False]

    asyncio.run(claim())


def test_many_who_wait_are_committed_before_the_event_loop_comes_round_to_it(file: File) -> None:
    async def claim() -> None:
        async with opened(file) as store:

            def put(count: int) -> list[asyncio.Future[None]]:
                answers = [store._arrived.put(lambda t: t.record(ISSUED), ()) for _ in range(count)]
                store._take_up()
                return answers

            go_on = _held_up(store)
            first = put(2)
            go_on.set()
            store._commit_thread.submit(list).result()
            later = put(WORTH_A_COMMIT - 1)
            assert not any(answer.done() for answer in first)
            later += put(1)
            assert all(answer.done() for answer in first)
            assert not any(answer.done() for answer in later)
            await asyncio.gather(*later)
            assert await store.read(lambda snapshot: snapshot.event_head()) == 2 + WORTH_A_COMMIT

    asyncio.run(claim())


def test_those_that_are_too_many_for_one_turn_are_run_in_the_next(file: File) -> None:
    async def claim() -> None:
        async with opened(file) as store, asyncio.timeout(10):
            answers = [store._arrived.put(lambda t: t.record(ISSUED), ()) for _ in range(2 * AT_ONCE + 1)]
            store._take_up()
            assert len(store._arrived) == AT_ONCE + 1
            await asyncio.gather(*answers)
            assert await store.read(lambda snapshot: snapshot.event_head()) == 2 * AT_ONCE + 1

    asyncio.run(claim())


def test_what_has_come_when_the_store_is_closed_is_still_done(file: File) -> None:
    async def claim() -> None:
        async with opened(file) as store:
            answers = [store._arrived.put(lambda t: t.record(ISSUED), ()) for _ in range(3 * AT_ONCE)]
            await store.close()
            assert all(answer.done() for answer in answers)

    asyncio.run(claim())
    assert file.open().read(lambda snapshot: snapshot.event_head()) == 3 * AT_ONCE


def test_who_writes_again_as_soon_as_the_last_commit_is_told_is_not_left_waiting(file: File) -> None:
    async def claim() -> None:
        async with opened(file) as store, asyncio.timeout(10):

            async def writer() -> None:
                for _ in range(5):
                    await store.write(lambda t: t.record(ISSUED))

            await asyncio.gather(writer(), writer())
            assert await store.read(lambda snapshot: snapshot.event_head()) == 10

    asyncio.run(claim())


def _held_up(store: SqliteStore) -> threading.Event:
    """What lets a store go on with commits that are asked for from now on."""
    go_on = threading.Event()
    store._commit_thread.submit(go_on.wait, 10)
    return go_on


def test_what_stands_on_a_commit_that_fails_fails_with_it(file: File) -> None:
    async def claim() -> None:
        seen: list[bool] = []
        async with opened(file, lock_timeout_ms=200) as store, locked_from_outside(file) as outsider:
            under_way = [asyncio.create_task(store.write(unit)) for unit in (end_and_revoke, spend)]
            for _ in range(3):
                await store.read(lambda snapshot: snapshot.feed_head())
            later = asyncio.create_task(store.write(lambda transaction: seen.append(spend(transaction))))
            counted = asyncio.create_task(store.write(lambda transaction: transaction.event_count()))
            results: list[object] = await asyncio.gather(*under_way, return_exceptions=True)
            outsider.execute("ROLLBACK")
            results += await asyncio.gather(later, counted, return_exceptions=True)
            assert seen == [False]
            assert [type(result) for result in results] == [Unavailable] * 4
            assert await store.write(look) == [None, [], None, 0, True, 1]
            assert audit.verify(await store.read(lambda snapshot: snapshot.events(EventQuery()))) == 1
        await SqliteStore(file.path, file.time.clock(), Sealer(KEY)).close()

    asyncio.run(claim())


# -- schema -----------------------------------------------------------------------------------------------------------


def test_a_log_of_an_older_schema_is_tallied_when_it_is_opened(file: File) -> None:
    store = file.open()
    store.write(lambda t: [t.record(ISSUED) for _ in range(9000)])
    query = "SELECT event_type, last, events FROM tallies ORDER BY last"
    with sqlite3.connect(file.path) as connection:
        tallied = connection.execute(query).fetchall()
    file.close()
    with sqlite3.connect(file.path) as connection:
        connection.executescript(
            f"{WITHOUT_USAGE} DROP TRIGGER tally_events; DROP TABLE tallies; PRAGMA user_version = 6"
        )
    connection.close()
    file.open()
    with sqlite3.connect(file.path) as connection:
        assert connection.execute(query).fetchall() == tallied == [("token_issued", n, 4096) for n in (4096, 8192)]
    connection.close()


def test_a_tally_that_was_altered_is_found_by_comparing_the_store_with_its_log(file: File) -> None:
    store = file.open()
    store.write(lambda t: [t.record(ISSUED) for _ in range(5000)])
    store.read(lambda snapshot: state_check.check(snapshot, NOW))
    with sqlite3.connect(file.path) as connection:
        connection.execute("UPDATE tallies SET events = 4095")
    connection.close()
    with pytest.raises(TamperedRecord, match="4999 events of the type token_issued are counted, and there are 5000"):
        store.read(lambda snapshot: state_check.check(snapshot, NOW))


def test_grants_of_the_first_schema_are_found_by_what_later_ones_ask(file: File) -> None:
    """A file as it was written before there was delegation: its rows have fewer columns, their bodies fewer members."""
    first = migrations.load("sqlite")[0]
    with sqlite3.connect(file.path) as connection:
        connection.executescript(first.script)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {first.version}")
        sealer = Sealer(KEY)
        connection.execute("INSERT INTO meta VALUES ('sealed_by', ?)", (sealer.name,))
        for sid in ("one", "two"):
            grant = make_grant(sid=sid, jti=f"jti-{sid}", task_id=f"task-{sid}")
            members = {
                name: value for name, value in msgspec.to_builtins(grant).items() if name not in ("chain", "kid")
            }
            body = msgspec.json.encode(members)
            mac = hmac.digest(KEY, b"grants\n" + body, "sha256")
            row = (sid, "agent", grant.app_id, 0, grant.exp, body, mac)
            connection.execute("INSERT INTO grants VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        for name, last_exp in (("r1", NOW + 5), ("r2", NOW + 9)):
            entry = Revocation(kind=RevocationKind.GRANT, id=name, effective_at=NOW, last_exp=last_exp)
            _, mac = sealer.seal("revocations", entry)
            connection.execute("INSERT INTO revocations VALUES ('sid', ?, ?, ?, ?)", (name, NOW, last_exp, mac))
    connection.close()
    store = file.open()
    assert [grant.sid for grant in store.read(lambda s: s.grants(GrantQuery(live_at=NOW)))] == ["one", "two"]
    for query in (GrantQuery(jti="jti-two"), GrantQuery(task_id="task-two"), GrantQuery(sid="two", parent="")):
        assert [grant.sid for grant in store.read(lambda s: s.grants(query))] == ["two"]  # noqa: B023  # read at once
    assert store.read(lambda s: (len(s.grants(GrantQuery(subject=make_grant().subject))), s.feed_head())) == (2, 2)
    assert {entry.id for entry in store.read(lambda s: s.feed(1, 2))} == {"r1", "r2"}


def plan_of(file: File, ask: Callable[[SqliteSnapshot], object]) -> list[str]:
    """How SQLite goes about what a snapshot asks last."""
    connection = sqlite3.connect(file.path)
    asked: list[str] = []
    connection.set_trace_callback(asked.append)
    ask(SqliteSnapshot(connection, Sealer(KEY)))
    connection.set_trace_callback(None)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {asked[-1]}")]
    connection.close()
    return plan


@pytest.mark.parametrize("is_newest_first", [False, True])
@pytest.mark.parametrize(
    ("query", "search"),
    [
        (EventQuery(agent_id="x"), "INDEX events_by_agent"),
        (EventQuery(task_id="x"), "INDEX events_by_task"),
        (EventQuery(app_id="x"), "INDEX events_by_app"),
        (EventQuery(event_type="token_issued"), "INDEX events_by_type"),
        (EventQuery(outcome="denied"), "INDEX events_denied"),
        (EventQuery(agent_id="x", event_type="token_issued"), "INDEX events_by_agent"),
        (EventQuery(task_id="x", event_type="token_issued"), "INDEX events_by_task"),
        (EventQuery(after=7), "INTEGER PRIMARY KEY"),
        (EventQuery(since="2027-01-15T08:00:00.000000Z"), "INTEGER PRIMARY KEY"),
        (EventQuery(until="2027-01-15T08:00:00.000000Z"), "INTEGER PRIMARY KEY"),
    ],
    ids=str,
)
def test_no_lookup_of_events_goes_through_all_of_them(
    file: File, query: EventQuery, search: str, is_newest_first: bool
) -> None:
    file.open().write(lambda t: [t.record(ISSUED) for _ in range(100)])
    file.close()
    ordered = msgspec.structs.replace(query, is_newest_first=is_newest_first)
    plan = plan_of(file, lambda snapshot: snapshot.events(ordered))
    assert any(search in step for step in plan), plan
    assert not any("TEMP B-TREE" in step or step == "SCAN events" for step in plan), plan


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (GrantQuery(live_at=NOW, jti="x"), "grants_live_by_jti"),
        (GrantQuery(live_at=NOW, task_id="x"), "grants_live_by_task"),
        (GrantQuery(live_at=NOW, app_id="x", kind=GrantKind.AGENT), "grants_live_by_app"),
        (GrantQuery(live_at=NOW, app_id="x"), "grants_live_by_app"),
        (
            GrantQuery(over_in=(NOW, NOW + 1), is_counted=True, app_id="x"),
            "grants_counted (app_id=? AND exp>? AND exp<?)",
        ),
        (
            GrantQuery(over_in=(NOW, NOW + 1), is_counted=True, app_id="x", limit=9),
            "grants_counted (app_id=? AND exp>?",
        ),
        (GrantQuery(live_at=NOW, kind=GrantKind.AGENT, limit=100), "grants_live_by_kind"),
        (GrantQuery(live_at=NOW, kind=GrantKind.AGENT, after="x", limit=100), "grants_live_by_kind"),
        (GrantQuery(live_at=NOW, kind=GrantKind.AGENT, app_id="x", subject="y", parent=""), "grants_by_subject"),
        (GrantQuery(live_at=NOW, subject="x"), "grants_by_subject"),
        (GrantQuery(parent="x"), "grants_by_parent"),
        (GrantQuery(live_at=NOW, falling_with=(("x", "y"), ("a", "b")), limit=9), "grants_live_below"),
        (GrantQuery(live_at=NOW, falling_with=(("x", "y"), ("a", "b")), limit=9), "grants_live_delegates"),
        (GrantQuery(live_at=NOW, falling_with=(("x", "y"), ()), limit=9), "grants_live_below"),
        (GrantQuery(live_at=NOW, falling_with=((), ("x", "y")), limit=9), "grants_live_delegates"),
        (GrantQuery(tree="x"), "grants_live_in_tree"),
        (GrantQuery(sid="x"), "sqlite_autoindex_grants_1"),
    ],
    ids=str,
)
def test_no_lookup_of_grants_goes_through_all_of_them(file: File, query: GrantQuery, index: str) -> None:
    file.open().write(lambda t: [t.put(make_grant(sid=str(number))) for number in range(100)])
    file.close()
    plan = plan_of(file, lambda snapshot: snapshot.grants(query))
    assert any(f"INDEX {index}" in step for step in plan), plan
    assert not any(step.startswith("SCAN grants") for step in plan), plan


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (GrantQuery(live_at=NOW, task_id="x"), "grants_live_by_task"),
        (GrantQuery(live_at=NOW, app_id="x", kind=GrantKind.AGENT), "grants_live_by_app"),
        (GrantQuery(live_at=NOW, kind=GrantKind.OPERATOR), "grants_live_by_kind"),
        (GrantQuery(live_at=NOW, kind=GrantKind.AGENT, signed_by="x"), "grants_live_by_kind"),
        (GrantQuery(live_at=NOW, parent="x"), "grants_by_parent"),
        (GrantQuery(live_at=NOW, subject="x", is_delegated=True), "grants_live_delegates"),
        (GrantQuery(live_at=NOW), "INTEGER PRIMARY KEY"),
    ],
    ids=str,
)
def test_a_page_of_grants_is_found_without_sorting_them(file: File, query: GrantQuery, index: str) -> None:
    file.open().write(lambda t: [t.put(make_grant(sid=str(number))) for number in range(100)])
    file.close()
    plan = plan_of(file, lambda snapshot: snapshot.grant_page(query, behind=7, limit=9))
    assert any(index in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


def test_delegations_are_counted_by_an_index_alone(file: File) -> None:
    file.open().write(lambda t: [t.put(make_grant(sid=str(number))) for number in range(100)])
    file.close()
    for in_tree, index in ((False, "grants_live_below"), (True, "grants_live_in_tree")):
        plan = plan_of(file, lambda s: s.live_delegations("x", in_tree=in_tree, now=NOW, limit=9))  # noqa: B023
        assert any(f"COVERING INDEX {index}" in step for step in plan), plan


WITHOUT_TREE = f"""
    {WITHOUT_USAGE}
    DROP TABLE tiles; DROP TABLE checkpoint; DROP TABLE archives; DROP TRIGGER tally_events; DROP TABLE tallies;
    DELETE FROM meta WHERE name = 'audit_head'; PRAGMA user_version = {TREE_VERSION - 1}
"""


def test_a_log_from_before_there_was_a_tree_gets_its_tree(file: File) -> None:
    store = file.open()
    store.write(lambda t: [t.record(ISSUED) for _ in range(600)])
    head, tiles = store.write(lambda t: (t.head, [t.tile(0, 0), t.tile(0, 1), t.tile(1, 0)]))
    file.close()
    with sqlite3.connect(file.path) as connection:
        connection.executescript(WITHOUT_TREE)
    connection.close()
    store = file.open()
    assert store.write(lambda t: (t.head, [t.tile(0, 0), t.tile(0, 1), t.tile(1, 0)])) == (head, tiles)


def test_a_log_from_before_there_was_a_tree_gets_none_if_it_is_not_whole(file: File) -> None:
    file.open().write(lambda t: [t.record(ISSUED) for _ in range(30)])
    file.close()
    with sqlite3.connect(file.path) as connection:
        connection.executescript(f"{WITHOUT_TREE}; DELETE FROM events WHERE sequence = 7")
    connection.close()
    for _ in range(2):
        with pytest.raises(TamperedRecord, match="evt-000007 is missing"):
            file.open()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("DELETE FROM events WHERE sequence = 300", "the log ends with evt-000299, and not with evt-000300"),
        ("UPDATE events SET sequence = 301 WHERE sequence = 300", "the log ends with evt-000301"),
        ("UPDATE events SET detail = 'x' WHERE sequence = 270", "evt-000270 was altered"),
        ("DELETE FROM events WHERE sequence = 256", "evt-000256 is missing"),
        ("DELETE FROM tiles WHERE level = 1", "tile 0 of level 1 is not whole"),
        ("UPDATE tiles SET hashes = zeroblob(32) WHERE level = 1", "a row of tiles was altered"),
        ("DELETE FROM meta WHERE name = 'audit_head'", "audit_head was altered"),
        ("UPDATE meta SET value = '299' || substr(value, 4) WHERE name = 'audit_head'", "was altered"),
    ],
)
def test_a_store_does_not_go_on_from_an_end_that_it_did_not_write(file: File, change: str, named: str) -> None:
    file.open().write(lambda t: [t.record(ISSUED) for _ in range(300)])
    file.close()
    file.edit(change)
    with pytest.raises(TamperedRecord, match=named):
        file.open()


def test_a_checkpoint_that_was_put_back_is_held_to_the_newest_whatever_is_committed_after_it(file: File) -> None:
    def covered() -> int:
        with contextlib.closing(sqlite3.connect(file.path)) as connection:
            return saved_head(connection, Sealer(KEY)).covered

    subject = file.open()
    subject.write(lambda t: t.put_checkpoint(7, "the first 7"))
    file.edit("UPDATE checkpoint SET size = 3, note = 'the first 3'")
    subject.write(lambda t: t.put(make_app()))  # on the database
    assert covered() == 7
    subject = file.open()
    subject.write(lambda t: t.record(ISSUED))  # in memory
    assert covered() == 7
    subject.write(lambda t: t.put_checkpoint(8, "the first 8"))
    assert covered() == 8


def test_the_log_goes_on_where_it_ended(file: File) -> None:
    for opening in range(5):
        file.open().write(lambda t: [t.record(ISSUED) for _ in range(200)])
        head = file.open().write(lambda t: t.head)
        assert head.sequence == 200 * (opening + 1)
    entries = file.open().read(lambda s: s.entries(1, 1000))
    grown = merkle.Growth()
    for entry in entries:
        grown.append(merkle.leaf_hash(entry))
    assert grown.edge == head.tree


def test_whoever_looks_in_from_outside_and_leaves_takes_nothing_away(file: File) -> None:
    store = file.open()
    store.write(lambda t: t.record(ISSUED))
    assert store.read(lambda s: s.event_head()) == 1
    before = file.path.with_name(file.path.name + "-wal").stat().st_ino
    look_in = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM events'); c.close()"
    subprocess.run([sys.executable, "-c", look_in, str(file.path)], check=True, timeout=60)
    assert file.path.with_name(file.path.name + "-wal").stat().st_ino == before
    store.write(lambda t: t.record(ISSUED))
    assert store.read(lambda s: s.event_head()) == 2
    file.close()
    assert file.open().read(lambda s: s.event_head()) == 2


def test_what_is_forgotten_is_found_without_looking_at_what_is_kept(file: File) -> None:
    def steps(live: int) -> int:
        """How much SQLite does to forget what is over beside so many entries that are not, in its own steps."""
        subject = file.open()

        def fill(transaction: Transaction) -> None:
            for number in range(live):
                entry = Revocation(kind=RevocationKind.GRANT, id=f"{number}", effective_at=NOW, last_exp=NOW + 10**6)
                transaction.revoke(entry, replaces=True)

        subject.write(fill)
        counted: list[None] = []
        store: Any = subject.store
        store._connection.set_progress_handler(lambda: counted.append(None), 1)
        subject.write(lambda transaction: transaction.purge(100))
        store._connection.set_progress_handler(None, 0)
        return len(counted)

    beside_few = steps(40)  # in this order: both are the same file
    assert steps(4000) < beside_few + 40


@pytest.mark.parametrize("level", [EndingLevel.KEY, EndingLevel.ALL])
def test_what_is_to_end_is_found_without_looking_at_what_has_ended(file: File, level: EndingLevel) -> None:
    def steps(dead: int) -> int:
        """How much SQLite does to end three grants behind so many that have ended, in its own steps."""
        subject = file.open()

        def fill(transaction: Transaction) -> None:
            for number in range(dead):
                transaction.put(make_grant(sid=f"{dead}-{number}", jti=f"{dead}-{number}", ended_at=NOW))
            for name in (f"{dead}-alive-{number}" for number in range(3)):
                transaction.put(make_grant(sid=name, jti=name, kid="kid-1"))

        subject.write(fill)
        store: Any = subject.store
        counted: list[None] = []
        for connection in (store._committed, store._connection):
            connection.set_progress_handler(lambda: counted.append(None), 1)
        named = Named(level=level, target="kid-1")
        ending = subject.write(lambda transaction: end_named(transaction, Caller(), "admin", named, EndReason.REVOKED))
        for connection in (store._committed, store._connection):
            connection.set_progress_handler(None, 0)
        assert (ending.count, ending.is_over) == (3, True)
        return len(counted)

    beside_few = steps(40)  # in this order: both are the same file
    assert steps(4000) < beside_few + 400


def test_grants_of_other_keys_are_passed_by_a_page_at_a_time(file: File) -> None:
    subject = file.open()
    subject.write(lambda t: [t.put(make_grant(sid=str(number), kid="kid-1")) for number in range(100)])
    query = GrantQuery(live_at=NOW, kind=GrantKind.AGENT, signed_by="kid-2")
    page = subject.read(lambda snapshot: snapshot.grant_page(query, behind=0, limit=9))
    assert (page.grants, page.looked_at, page.is_last) == ([], 9, False)
