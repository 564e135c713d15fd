"""Moving a store to another master key: all rows or none, and none that was not the broker's."""

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage import postgres_rewrap, sqlite_rewrap
from agentwrit.broker.storage.base import EventQuery, GrantQuery, Snapshot, Store, Transaction
from agentwrit.broker.storage.postgres import PostgresStore
from agentwrit.broker.storage.postgres_schema import open_database
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql_rewrap import PAGE, TABLES, Keys
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.domain import merkle
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.errors import ConfigurationError, TamperedRecord
from agentwrit.domain.idempotency import FirstAnswer
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import RevocationKind
from agentwrit.domain.signing_key import StoredKey
from tests import postgres
from tests.domain.records import NOW, make_app, make_grant, make_launch_token
from tests.storage.conftest import Time
from tests.storage.test_conformance import make_key, revocation

OLD, NEW = Sealer(b"o" * 32), Sealer(b"n" * 32)
GRANTS = 2 * PAGE + 1


def rewrapped(key: StoredKey) -> StoredKey:
    return msgspec.structs.replace(key, wrapped=b"new " + key.wrapped)


class Place(NamedTuple):
    """Where a store is: how it is opened, moved, and changed by hand."""

    open: Callable[[Sealer, Clock], Store]
    move: Callable[[Keys], int]
    change: Callable[[str], Any]


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        path = tmp_path / "agentwrit.db"

        def change(statement: str) -> None:
            with contextlib.closing(sqlite3.connect(path)) as connection, connection:
                assert connection.execute(statement).rowcount > 0

        return Place(
            lambda sealer, clock: SqliteStore(path, clock, sealer),
            lambda keys: sqlite_rewrap.rewrap(path, keys, Clock()),
            change,
        )
    url = request.getfixturevalue("database_url")
    return Place(
        lambda sealer, clock: PostgresStore(open_database(url, sealer, "tests"), clock, sealer),
        lambda keys: postgres_rewrap.rewrap(url, "tests", keys),
        lambda statement: postgres.ask(url, re.sub("(UPDATE|DELETE FROM) ", r"\1 agentwrit.", statement)),
    )


def fill(transaction: Transaction) -> None:
    for name in ("admin", "ana"):
        transaction.put(Operator(name=name, password_hash="$argon2id$", created_at=NOW, updated_at=NOW))
    transaction.put(make_app())
    transaction.put(make_launch_token())
    transaction.put(make_key("kid-1", NOW))
    transaction.put(FirstAnswer(key=b"k" * 32, request=b"r" * 32, grant=make_grant(), expires_at=NOW + 600))
    for number in range(GRANTS):
        transaction.put(make_grant(sid=f"sid-{number}", jti=f"jti-{number}"))
    for number in range(3):
        transaction.revoke(revocation(f"sid-{number}", last_exp=NOW + 300))
    for number in range(merkle.TILE_WIDTH + 3):
        transaction.record(Draft(event_type=EventType.TOKEN_ISSUED, detail=f"event {number}"))
    transaction.put(Archive(first=1, last=256, root="r" * 64, file="f", sha256="s" * 64, archived_at=NOW, event=256))
    transaction.spend_nonce(b"n" * 32, NOW + 30)


def everything(snapshot: Snapshot) -> list[Any]:
    return [
        list(snapshot.operators()),
        list(snapshot.apps()),
        snapshot.launch_token(make_launch_token().token_hash),
        snapshot.first_answer(b"k" * 32),
        list(snapshot.grants(GrantQuery())),
        sorted(entry.id for entry in snapshot.revocations(NOW)),
        snapshot.revocation(RevocationKind.GRANT, "sid-1"),
        snapshot.feed_head(),
        snapshot.feed_epoch(),
        snapshot.tile(0, 0),
        list(snapshot.archives()),
    ]


@contextlib.contextmanager
def opened(place: Place, sealer: Sealer) -> Iterator[Callable[..., Any]]:
    """What runs a unit of work in the store."""
    with asyncio.Runner() as runner:
        store = runner.run(_open(place, sealer))
        try:
            yield lambda unit: runner.run(store.write(unit))
        finally:
            runner.run(store.close())


async def _open(place: Place, sealer: Sealer) -> Store:
    return place.open(sealer, Time().clock())


def test_all_rows_are_moved_and_say_what_they_said(place: Place) -> None:
    with opened(place, OLD) as write:
        write(fill)
        before, events = write(everything), write(lambda t: t.event_count())
        assert len(write(lambda t: t.grants(GrantQuery()))) == GRANTS
    moved = place.move(Keys(OLD, NEW, rewrapped))
    assert moved == GRANTS + 2 + 1 + 1 + 1 + 1 + 3 + 2 + 1  # tiles of two levels
    with opened(place, NEW) as write:
        assert write(everything) == before
        [key] = write(lambda t: t.signing_keys())
        assert key == rewrapped(make_key("kid-1", NOW))
        [event] = write(lambda t: t.events(EventQuery(after=events)))
        assert (event.event_type, event.data) == ("master_key_changed", {"rows": moved})
        write(lambda t: t.record(Draft(event_type=EventType.TOKEN_ISSUED)))
        assert not write(lambda t: t.spend_nonce(b"n" * 32, NOW + 30))
    with opened(place, NEW) as write:
        assert write(lambda t: t.event_count()) == events + 2


def test_the_old_key_opens_it_no_more_and_is_told_why(place: Place) -> None:
    with opened(place, OLD):
        pass
    place.move(Keys(OLD, NEW, rewrapped))
    for open_again in (lambda: opened(place, OLD).__enter__(), lambda: place.move(Keys(OLD, NEW, rewrapped))):
        with pytest.raises(ConfigurationError, match="before `agentwrit keys rewrap`"):
            open_again()
    with pytest.raises(ConfigurationError, match="not the one that this"):
        opened(place, Sealer(b"x" * 32)).__enter__()


def test_it_can_be_moved_back(place: Place) -> None:
    with opened(place, OLD) as write:
        write(fill)
        before = write(everything)
    place.move(Keys(OLD, NEW, rewrapped))
    place.move(Keys(NEW, OLD, rewrapped))
    with opened(place, OLD) as write:
        assert write(everything) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE operators SET mac = 'x' WHERE name = 'ana'", "ana of operators"),
        ("UPDATE apps SET mac = 'x'", "app-1 of apps"),
        ("UPDATE launch_tokens SET mac = 'x'", f"{(b't' * 32).hex()} of launch_tokens"),
        (f"UPDATE grants SET mac = 'x' WHERE sid = 'sid-{GRANTS - 1}'", f"sid-{GRANTS - 1} of grants"),
        ("UPDATE first_answers SET mac = 'x'", f"{(b'k' * 32).hex()} of first_answers"),
        ("UPDATE revocations SET last_exp = 1 WHERE id = 'sid-2'", "sid sid-2 of revocations"),
        ("UPDATE signing_keys SET mac = 'x'", "kid-1 of signing_keys"),
        ("UPDATE archives SET mac = 'x'", "256 of archives"),
        ("UPDATE tiles SET mac = 'x' WHERE level = 0", "0 0 of tiles"),
    ],
)
def test_a_row_that_was_altered_stops_the_move_and_is_named(place: Place, change: str, named: str) -> None:
    with opened(place, OLD) as write:
        write(fill)
    place.change(change)
    with pytest.raises(TamperedRecord, match=named):
        place.move(Keys(OLD, NEW, rewrapped))
    with pytest.raises(ConfigurationError, match="master key"):
        opened(place, NEW).__enter__()


def test_a_log_whose_tail_was_cut_off_stops_the_move(place: Place) -> None:
    with opened(place, OLD) as write:
        write(fill)
    place.change(f"DELETE FROM events WHERE sequence > {merkle.TILE_WIDTH}")
    with pytest.raises(TamperedRecord, match="the log ends"):
        place.move(Keys(OLD, NEW, rewrapped))


def test_a_signing_key_that_does_not_open_stops_the_move(place: Place) -> None:
    def refuse(key: StoredKey) -> StoredKey:
        raise TamperedRecord(f"the signing key {key.kid} does not open under the master key")

    with opened(place, OLD) as write:
        write(fill)
    with pytest.raises(TamperedRecord, match="kid-1"):
        place.move(Keys(OLD, NEW, refuse))
    with opened(place, OLD) as write:
        assert write(lambda t: t.event_count()) == merkle.TILE_WIDTH + 3


def test_every_table_with_a_mac_is_moved(tmp_path: Path) -> None:
    """A table that comes with a later schema, too."""
    SqliteStore(tmp_path / "agentwrit.db", Time().clock(), OLD)._connection.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "agentwrit.db")) as connection:
        found = connection.execute(
            "SELECT tables.name FROM sqlite_schema AS tables, pragma_table_info(tables.name) AS columns"
            " WHERE tables.type = 'table' AND columns.name = 'mac'"
        ).fetchall()
    assert {name for (name,) in found} == {table.name for table in TABLES}
