"""A database file with genuine rows, and a schema that somebody else has had a hand in."""

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwrit.broker import stores
from agentwrit.broker.clock import Clock
from agentwrit.broker.config import Config
from agentwrit.broker.storage import (
    migrations,
    sqlite_backup,
    sqlite_objects,
    sqlite_schema,
    sqlite_verification,
    tables,
)
from agentwrit.broker.storage.base import Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import ConfigurationError, TamperedRecord, Unavailable
from tests.cli.support import AGENTWRIT, CLEAN, one_line, run
from tests.domain.records import make_app, make_grant, make_launch_token
from tests.support import ADMIN_SECRET, BrokerProcess, registration

SEALER = Sealer(b"s" * 32)
KEY = "5a" * 32

REVIVES = "CREATE TRIGGER zz AFTER UPDATE ON grants BEGIN UPDATE grants SET body = OLD.body, mac = OLD.mac; END"
UNDOES = """
CREATE TRIGGER zz_grants AFTER UPDATE ON grants BEGIN UPDATE grants SET ended_at = OLD.ended_at, exp = OLD.exp,
    body = OLD.body, mac = OLD.mac, jti = OLD.jti, kid = OLD.kid WHERE sid = OLD.sid; END;
CREATE TRIGGER zz_keys AFTER UPDATE ON signing_keys BEGIN
    UPDATE signing_keys SET body = OLD.body, mac = OLD.mac WHERE kid = OLD.kid; END;
CREATE TRIGGER zz_new_keys AFTER INSERT ON signing_keys BEGIN DELETE FROM signing_keys WHERE kid = NEW.kid; END;
CREATE TRIGGER zz_tokens AFTER UPDATE ON launch_tokens BEGIN
    UPDATE launch_tokens SET body = OLD.body, mac = OLD.mac WHERE token_hash = OLD.token_hash; END;
CREATE TRIGGER zz_ends AFTER INSERT ON revocations BEGIN DELETE FROM revocations WHERE id = NEW.id; END;
"""

EDITS = {
    "a trigger": REVIVES,
    "a trigger that has our name on another table": (
        "DROP TRIGGER tally_events; CREATE TRIGGER tally_events AFTER INSERT ON revocations BEGIN"
        " DELETE FROM revocations; END"
    ),
    "our trigger with another body": (
        "DROP TRIGGER tally_events; CREATE TRIGGER tally_events AFTER INSERT ON events WHEN NEW.sequence % 4096 = 0"
        " BEGIN DELETE FROM revocations; END"
    ),
    "our trigger gone": "DROP TRIGGER tally_events",
    "a view in a table's place": (
        "ALTER TABLE revocations RENAME TO elsewhere; CREATE VIEW revocations AS SELECT * FROM elsewhere WHERE FALSE;"
        "CREATE TRIGGER zz INSTEAD OF INSERT ON revocations BEGIN SELECT 1; END"
    ),
    "a view more": "CREATE VIEW diary AS SELECT * FROM events",
    "a table more": "CREATE TABLE diary (entry)",
    "a table that counts": "CREATE TABLE diary (entry INTEGER PRIMARY KEY AUTOINCREMENT)",
    "a table that takes another's rows along": (
        "CREATE TABLE diary (sid TEXT REFERENCES grants (sid) ON DELETE CASCADE ON UPDATE CASCADE)"
    ),
    "a virtual table": "CREATE VIRTUAL TABLE search USING fts5 (detail)",
    "a table gone": "DROP TABLE first_answers",
    "a column more": "ALTER TABLE grants ADD COLUMN note TEXT NOT NULL DEFAULT 'x'",
    "a column that is generated": "ALTER TABLE grants ADD COLUMN note TEXT GENERATED ALWAYS AS (sid || jti) VIRTUAL",
    "a column gone": "DROP INDEX grants_counted; ALTER TABLE grants DROP COLUMN counted",
    "a column that compares otherwise": (
        "DROP TABLE launch_tokens; CREATE TABLE launch_tokens (token_hash BLOB NOT NULL UNIQUE COLLATE NOCASE,"
        " expires_at INTEGER NOT NULL, body BLOB NOT NULL, mac BLOB NOT NULL);"
        "CREATE INDEX launch_tokens_expiry ON launch_tokens (expires_at)"
    ),
    "a check": (
        "DROP TABLE nonces; CREATE TABLE nonces (nonce BLOB PRIMARY KEY, expires_at INTEGER NOT NULL"
        " CHECK (expires_at < 0)) WITHOUT ROWID; CREATE INDEX nonces_expiry ON nonces (expires_at)"
    ),
    "a constraint that lets in what was there": (
        "DROP TABLE nonces; CREATE TABLE nonces (nonce BLOB PRIMARY KEY ON CONFLICT REPLACE,"
        " expires_at INTEGER NOT NULL) WITHOUT ROWID; CREATE INDEX nonces_expiry ON nonces (expires_at)"
    ),
    "an index more": "CREATE INDEX grants_by_orch ON grants (orch_id)",
    "an index on what a function says": "CREATE INDEX grants_by_orch ON grants (lower(orch_id))",
    "an index gone": "DROP INDEX grants_live_by_app",
    "an index of other rows": (
        "DROP INDEX grants_live_by_app; CREATE INDEX grants_live_by_app ON grants (app_id, kind) WHERE ended_at = 1"
    ),
    "the schema's own text": (
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'ended_at = 0', 'ended_at = 1')"
        " WHERE name = 'grants_live_by_app'; PRAGMA writable_schema = OFF"
    ),
    "an object under another object's text": (
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET type = 'trigger', tbl_name = 'revocations',"
        " rootpage = 0, sql = 'CREATE TRIGGER grants_live_by_app AFTER INSERT ON revocations BEGIN DELETE FROM"
        " revocations; END'"
        " WHERE name = 'grants_live_by_app'; PRAGMA writable_schema = OFF"
    ),
    "another's pages": (
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema"
        " WHERE name = 'nonces_expiry') WHERE name = 'grants_live_by_jti'; PRAGMA writable_schema = OFF"
    ),
    "an older version": "PRAGMA user_version = 7",
    "no version": "PRAGMA user_version = 0",
    "a version before the first": "PRAGMA user_version = -1",
    "a name that ends the line": 'CREATE TABLE "diary\n\x1b[2J" (entry)',
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as a store left it."""
    path = tmp_path_factory.mktemp("whole") / "agentwrit.db"

    async def live() -> None:
        store = SqliteStore(path, Clock(), SEALER)
        await store.write(lambda t: t.put(make_app()))
        await store.write(lambda t: t.put(make_grant()))
        await store.write(lambda t: t.put(make_launch_token()))
        await store.write(lambda t: t.record(ISSUED))
        await store.close()

    asyncio.run(live())
    return path


ISSUED = Draft(event_type=EventType.TOKEN_ISSUED)


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path))


def edit(path: Path, *scripts: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for script in scripts:
            connection.executescript(script)


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_a_schema_that_is_not_ours_is_refused_wherever_a_file_is_opened(path: Path, change: str) -> None:
    edit(path, change)
    before = path.read_bytes()
    with pytest.raises(TamperedRecord, match=r"in its schema|of its schema") as refusal:
        sqlite_schema.open_database(path, SEALER)
    assert str(refusal.value).isprintable()
    with pytest.raises(TamperedRecord):
        SqliteStore(path, Clock(), SEALER)
    for look in (sqlite_verification.verify, lambda *at: sqlite_verification.snapshot(*at).__enter__()):
        with pytest.raises(TamperedRecord):
            look(path, SEALER)
    with pytest.raises(TamperedRecord):
        sqlite_verification.sealed_by(path)
    assert sorted(at.name for at in path.parent.iterdir()) == ["agentwrit.db"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_a_backup_with_a_schema_that_is_not_ours_is_neither_made_nor_taken(path: Path, change: str) -> None:
    made = path.with_name("made.db")
    sqlite_backup.back_up(path, made, SEALER, overwrite=False)
    sqlite_backup.check(made, SEALER)
    edit(made, change)
    with pytest.raises(TamperedRecord):
        sqlite_backup.check(made, SEALER)
    edit(path, change)
    with pytest.raises((TamperedRecord, ConfigurationError)):
        sqlite_backup.back_up(path, made, SEALER, overwrite=True)
    assert sorted(at.name for at in path.parent.iterdir() if at.suffix != ".db") == []


def test_what_analyze_leaves_is_sqlites_own(path: Path) -> None:
    edit(path, "ANALYZE")
    sqlite_schema.open_database(path, SEALER).close()
    edit(
        path,
        "PRAGMA writable_schema = ON;"
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE sqlite_stat1(tbl,idx,stat,more)' WHERE name = 'sqlite_stat1'",
    )
    with pytest.raises(TamperedRecord, match="sqlite_stat1"):
        sqlite_schema.open_database(path, SEALER)


def test_a_file_that_sqlite_wrote_anew_is_as_ours_as_before(path: Path) -> None:
    edit(path, "VACUUM; REINDEX")
    sqlite_schema.open_database(path, SEALER).close()


@pytest.mark.parametrize("version", range(1, migrations.load("sqlite")[-1].version))
def test_a_store_of_an_older_version_is_brought_up_to_date_unless_its_schema_is_another(
    tmp_path: Path, version: int
) -> None:
    for change in ("SELECT 1", REVIVES):
        path = tmp_path / f"{len(change)}.db"
        scripts = [step.script for step in migrations.load("sqlite") if step.version <= version]
        edit(
            path,
            *scripts,
            f"PRAGMA application_id = {sqlite_schema.APPLICATION_ID}; PRAGMA user_version = {version};",
            f"INSERT INTO meta VALUES ('sealed_by', '{SEALER.name}')",
            change,
        )
        if change == REVIVES:
            with pytest.raises(TamperedRecord, match="trigger zz"):
                sqlite_schema.open_database(path, SEALER)
        else:
            with contextlib.closing(sqlite_schema.open_database(path, SEALER)) as connection:
                sqlite_objects.check(connection)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[asyncio.Runner, SqliteStore]]:
    with asyncio.Runner() as runner:
        store = SqliteStore(path, Clock(), SEALER)
        yield runner, store
        runner.run(store.close())


@pytest.mark.parametrize("unit", ["in memory", "on the database"])
def test_a_trigger_that_comes_while_a_store_is_open_undoes_nothing(path: Path, unit: str) -> None:
    def write(transaction: Transaction) -> None:
        if unit == "on the database":
            transaction.app_count()
        transaction.put(make_grant(sid="late"))

    with opened(path) as (runner, store):
        runner.run(store.write(lambda t: t.record(ISSUED)))
        edit(path, REVIVES)
        for _ in range(2):
            with pytest.raises(Unavailable) as refusal:
                runner.run(store.write(write))
            assert isinstance(refusal.value.__cause__, TamperedRecord)
            assert not store.is_writable()
        assert runner.run(store.read(lambda s: s.grant("late"))) is None
        edit(path, "DROP TRIGGER zz")
        runner.run(store.write(write))
        assert runner.run(store.read(lambda s: s.grant("late"))) is not None
        assert store.is_writable()


def test_a_trigger_that_comes_while_a_unit_waits_for_the_lock_undoes_nothing(path: Path) -> None:
    async def claim(store: SqliteStore) -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as outsider:
            outsider.execute("BEGIN IMMEDIATE")
            writing = asyncio.create_task(store.write(lambda t: t.put(make_grant(sid="late"))))
            await store.read(lambda s: s.app_count())
            outsider.execute(REVIVES)
            outsider.execute("COMMIT")
            with pytest.raises(Unavailable):
                await writing

    with opened(path) as (runner, store):
        runner.run(claim(store))


def test_a_column_that_hides_a_live_grant_from_whoever_ends_it_is_found(path: Path) -> None:
    for change in (
        "UPDATE grants SET ended_at = 1",
        "UPDATE grants SET exp = 1",
        "UPDATE grants SET app_id = 'app-2'",
        "UPDATE grants SET kid = 'other'",
        "UPDATE grants SET jti = ''",
        "UPDATE apps SET status = 'inactive'",
        "UPDATE launch_tokens SET expires_at = 1",
        "UPDATE launch_tokens SET token_hash = x'00'",
    ):
        altered = path.with_name("altered.db")
        shutil.copy(path, altered)
        edit(altered, change)
        with (
            pytest.raises(TamperedRecord, match="stands in another's place"),
            sqlite_verification.snapshot(altered, SEALER),
        ):
            pass


def test_an_index_that_lacks_a_row_is_found(path: Path) -> None:
    edit(
        path,
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = sql || ' AND FALSE' WHERE name ="
        " 'grants_live_by_jti'",
    )
    edit(path, "REINDEX grants_live_by_jti")
    edit(
        path,
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, ' AND FALSE', '') WHERE name ="
        " 'grants_live_by_jti'",
    )
    sqlite_verification.verify(path, SEALER)
    with pytest.raises(TamperedRecord, match="damaged"), sqlite_verification.snapshot(path, SEALER):
        pass


# -- as processes -----------------------------------------------------------------------------------------------------


def place(data_dir: Path) -> dict[str, str]:
    return {"AGENTWRIT_DATA_DIR": str(data_dir), "AGENTWRIT_MASTER_KEY": KEY, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a live agent and a backup beside it, of whose triggers both undo what is written."""
    directory = tmp_path_factory.mktemp("lived")
    with BrokerProcess(directory / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        broker.app().agent()
        assert run("backup", str(directory / "backup.db"), **place(broker.data_dir)).returncode == 0
    edit(directory / "backup.db", UNDOES)
    edit(directory / "data" / "agentwrit.db", UNDOES)
    return directory


def test_a_backup_whose_triggers_undo_what_is_written_revives_nobody(lived: Path, tmp_path: Path) -> None:
    done = run("restore", str(lived / "backup.db"), **place(tmp_path / "data"))
    one_line(done, 2, "not as the broker left it", "trigger zz_", "restore another backup")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "command",
    [["serve"], ["backup", "DIR/other.db"], ["keys", "rewrap"], ["store", "verify", "DIR/data"]],
    ids=" ".join,
)
def test_no_command_goes_on_with_a_store_whose_triggers_undo_what_is_written(lived: Path, command: list[str]) -> None:
    environment = {**CLEAN, **place(lived / "data"), "AGENTWRIT_NEW_MASTER_KEY": "a5" * 32}
    arguments = [argument.replace("DIR", str(lived)) for argument in command]
    done = subprocess.run([AGENTWRIT, *arguments], env=environment, capture_output=True, text=True, timeout=60)
    one_line(done, 1 if "verify" in command else 2, "trigger zz_", "is not AgentWrit's")


def test_a_trigger_that_comes_while_a_broker_runs_makes_no_launch_token_good_for_two(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MASTER_KEY=KEY) as broker:
        app = broker.app()
        token, launch_token = app.agent()["access_token"], app.launch_token()
        edit(broker.data_dir / "agentwrit.db", UNDOES)
        assert broker.release(token).status_code == 503
        body = registration(launch_token, broker.nonce())
        assert broker.http.post("/v1/register", json=body).status_code == 503
        health = broker.http.get("/v1/health")
        assert (health.status_code, health.json()["status"]) == (503, "degraded")
        assert "trigger zz_" in broker.logged()


@pytest.mark.parametrize("left", ["agentwrit.db-wal", "agentwrit.db-journal"])
def test_a_log_that_a_lost_database_left_behind_is_not_thrown_away_for_a_new_one(tmp_path: Path, left: str) -> None:
    async def start() -> None:
        async with stores.open_store(Config(data_dir=tmp_path, master_key=KEY)):
            pass

    (tmp_path / left).write_bytes(b"what was written last")
    with pytest.raises(ConfigurationError, match="is missing"):
        asyncio.run(start())
    assert (tmp_path / left).read_bytes() == b"what was written last"


def test_every_table_whose_rows_have_a_sealed_body_is_checked(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = {
            name: {column for _, column, *_ in connection.execute(f"PRAGMA table_info({name})")}
            for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        }
    sealed = {name for name, columns in found.items() if "body" in columns}
    assert {table.name for table in tables.ALL if table.record is not None} == sealed
