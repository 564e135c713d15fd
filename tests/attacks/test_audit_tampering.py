"""The database file, edited by hand: whatever is done to the audit log in it is found, and named."""

import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentwrit.broker.config import Config
from agentwrit.broker.offline import verification
from agentwrit.domain import audit, audit_export, checkpoint, merkle
from agentwrit.domain.audit import Draft, EventType, Head
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.jws import Ed25519Signer
from agentwrit.domain.note import VerifierKey
from tests.cli.support import AGENTWRIT, CLEAN
from tests.support import BrokerProcess, problem

THIEF = Ed25519Signer(b"t" * 32)


class Original:
    """The data directory of a broker that lived and was stopped, and the key that its auditor noted down."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with BrokerProcess(directory) as broker:
            app = broker.app()
            for _ in range(110):
                broker.release(app.agent()["access_token"])
            assert broker.http.post("/v1/audit/checkpoint", headers=broker.admin()).status_code == 200
            self.earlier = broker.http.get("/v1/audit/checkpoint").text
            app.agent()
            keys = broker.http.get("/v1/audit/keys").json()["keys"]
            [self.key] = [key["verifier_key"] for key in keys if key["state"] == "active"]
        with sqlite3.connect(directory / "agentwrit.db") as connection:
            [self.size] = connection.execute("SELECT max(sequence) FROM events").fetchone()
            self.columns = [row[1] for row in connection.execute("PRAGMA table_info(events)")]
        connection.close()
        assert self.size > 2 * merkle.TILE_WIDTH


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(tmp_path_factory.mktemp("tampering") / "data")


class Copy:
    """A copy to tamper with."""

    def __init__(self, original: Original, path: Path) -> None:
        self.original = original
        self.path = path
        self.database = path / "agentwrit.db"
        shutil.copytree(original.directory, path)

    def edit(self, change: Callable[[sqlite3.Connection], Any]) -> None:
        with sqlite3.connect(self.database) as connection:
            change(connection)
        connection.close()

    def sql(self, *statements: str) -> None:
        def change(connection: sqlite3.Connection) -> None:
            for statement in statements:
                assert connection.execute(statement).rowcount > 0, statement

        self.edit(change)

    def verify(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agentwrit.broker", "verify-audit", str(self.path), *arguments]
        return subprocess.run(command, env=CLEAN, capture_output=True, text=True, timeout=60)

    def is_found(self, *words: str) -> None:
        """With the master key, and by an auditor who has a copy of the file and the log's public key."""
        found = self.verify()
        assert found.returncode == 1, found
        assert found.stderr.startswith("agentwrit: ")
        assert found.stderr.count("\n") == 1, found.stderr
        for word in words:
            assert word in found.stderr
        self.is_found_by_key()

    def is_found_by_key(self) -> None:
        (self.path / "master.key").rename(self.path / "elsewhere")
        with pytest.raises(TamperedRecord):
            verification.verify_audit_log(
                self.database, Config(), [VerifierKey.parse(self.original.key)], progress=audit_export.unwatched
            )
        (self.path / "elsewhere").rename(self.path / "master.key")


@pytest.fixture
def copy(original: Original, tmp_path: Path) -> Copy:
    return Copy(original, tmp_path / "copy")


def test_the_log_as_it_was_left_is_genuine(original: Original, copy: Copy) -> None:
    done = copy.verify()
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"verified {original.size} events")
    (copy.path / "master.key").unlink()
    assert copy.verify("--key", original.key).returncode == 0
    other = subprocess.run(
        [AGENTWRIT, "audit", "verify", "--database", str(copy.database), "--key", original.key],
        env=CLEAN,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert other.stdout == done.stdout


def test_verifying_changes_nothing_in_the_file(copy: Copy) -> None:
    before = {path.name: path.read_bytes() for path in copy.path.iterdir()}
    assert copy.verify().returncode == 0
    copy.database.chmod(0o400)
    copy.path.chmod(0o500)
    assert copy.verify().returncode == 0
    copy.path.chmod(0o700)
    assert {path.name: path.read_bytes() for path in copy.path.iterdir()} == before


def flipped(value: object) -> object:
    if isinstance(value, int):
        return value ^ 1
    assert isinstance(value, str)
    return chr(ord(value[0]) ^ 1) + value[1:] if value else "x"


def test_a_flipped_byte_in_any_column_of_any_event_is_found(original: Original, copy: Copy, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    for number, column in enumerate(original.columns):
        at = generator.choice([1, original.size, generator.randrange(2, original.size)])
        one = Copy(original, tmp_path / f"copy-{number}")

        def flip(connection: sqlite3.Connection, column: str = column, at: int = at) -> None:
            [value] = connection.execute(f"SELECT {column} FROM events WHERE sequence = ?", (at,)).fetchone()
            new = flipped(value) if column != "sequence" else original.size + 7
            connection.execute(f"UPDATE events SET {column} = ? WHERE sequence = ?", (new, at))

        one.edit(flip)
        with pytest.raises(TamperedRecord, match=audit.event_id(at)):
            verification.verify_audit_log(one.path, Config(), (), progress=audit_export.unwatched)
        one.is_found_by_key()


@pytest.mark.parametrize("at", [1, 100, 256, 257, 300])
def test_a_deleted_event_is_found(copy: Copy, at: int) -> None:
    copy.sql(f"DELETE FROM events WHERE sequence = {at}")
    copy.is_found(f"{audit.event_id(at)} is missing")


def test_events_that_changed_places_are_found(copy: Copy) -> None:
    copy.sql(
        "UPDATE events SET sequence = -1 WHERE sequence = 40",
        "UPDATE events SET sequence = 40 WHERE sequence = 41",
        "UPDATE events SET sequence = 41 WHERE sequence = -1",
    )
    copy.is_found("evt-000040")


@pytest.mark.parametrize("place", [0, -5])
def test_an_inserted_event_is_found(copy: Copy, place: int) -> None:
    columns = ", ".join(name for name in copy.original.columns if name != "sequence")
    copy.sql(f"INSERT INTO events (sequence, {columns}) SELECT {place}, {columns} FROM events WHERE sequence = 9")
    copy.is_found("evt-000001 is missing")


@pytest.mark.parametrize("left", [0, 1, 256, 300])
def test_a_tail_that_was_cut_off_is_found(copy: Copy, left: int) -> None:
    copy.sql(f"DELETE FROM events WHERE sequence > {left}")
    copy.is_found(audit.event_id(left), "cut off")


def test_a_tail_behind_the_checkpoint_that_was_cut_off_is_found_by_the_master_key(copy: Copy) -> None:
    """And by nobody else who does not remember a later checkpoint: that is what witnesses are for."""
    size = checkpoint.unverified(copy.original.earlier).size
    assert size < copy.original.size
    copy.edit(lambda db: db.execute("UPDATE checkpoint SET size = ?, note = ?", (size, copy.original.earlier)))
    copy.sql(f"DELETE FROM events WHERE sequence > {size}")
    found = copy.verify()
    assert (found.returncode, "its tail was replaced" in found.stderr) == (1, True)


class Forger:
    """Someone who can write the file, and makes every hash fit again."""

    def __init__(self, connection: sqlite3.Connection, columns: list[str]) -> None:
        self._connection = connection
        self._columns = columns

    def events(self) -> Iterator[Draft]:
        for row in self._connection.execute("SELECT * FROM events ORDER BY sequence"):
            members = dict(zip(self._columns, row, strict=True))
            members["data"] = msgspec.json.decode(members["data"])
            names = {field.name for field in msgspec.structs.fields(Draft)}
            yield msgspec.convert({name: value for name, value in members.items() if name in names}, Draft)

    def rewrite(self, drafts: list[Draft], *, with_tiles: bool) -> Head:
        self._connection.execute("DELETE FROM events")
        if with_tiles:
            self._connection.execute("DELETE FROM tiles")
        head = Head()
        for draft in drafts:
            event, head, tiles = audit.append(draft, head, now=1_800_000_000 + head.sequence)
            members = [getattr(event, name) for name in self._columns]
            members[self._columns.index("data")] = msgspec.json.encode(event.data).decode()
            marks = ", ".join("?" * len(members))
            self._connection.execute(f"INSERT INTO events VALUES ({marks})", members)
            if with_tiles:
                self._connection.executemany(
                    "INSERT OR REPLACE INTO tiles VALUES (?, ?, ?, x'00')", [tuple(tile) for tile in tiles]
                )
        return head

    def sign(self, head: Head, origin: str) -> None:
        """With a key of the forger's own: the broker's is wrapped under the master key."""
        made = Checkpoint(origin, head.sequence, head.tree.root())
        signed = checkpoint.sign(made, THIEF.public_key, THIEF)
        self._connection.execute("UPDATE checkpoint SET size = ?, note = ?", (head.sequence, signed))


@pytest.mark.parametrize("with_tiles", [False, True])
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("length", [5, 260, None])
def test_a_valid_history_in_place_of_the_true_one_is_found(
    copy: Copy, length: int | None, is_signed: bool, with_tiles: bool
) -> None:
    def rewrite(connection: sqlite3.Connection) -> None:
        forger = Forger(connection, copy.original.columns)
        drafts = [draft for draft in forger.events() if draft.event_type is not EventType.TOKEN_RELEASED]
        head = forger.rewrite(drafts[:length], with_tiles=with_tiles)
        if is_signed:
            forger.sign(head, "agentwrit.local/audit")

    copy.edit(rewrite)
    copy.is_found()


def test_one_event_rewritten_with_all_hashes_behind_it_is_named(copy: Copy) -> None:
    def rewrite(connection: sqlite3.Connection) -> None:
        forger = Forger(connection, copy.original.columns)
        drafts = list(forger.events())
        forger.rewrite(drafts, with_tiles=False)

    copy.edit(rewrite)  # the same events, at other times
    copy.is_found("evt-000001 is not the event that was recorded")


def test_another_key_in_the_place_of_the_logs_own_is_found(copy: Copy) -> None:
    def swap(connection: sqlite3.Connection) -> None:
        head = Head()
        forger = Forger(connection, copy.original.columns)
        head = forger.rewrite(list(forger.events()), with_tiles=True)
        forger.sign(head, "agentwrit.local/audit")
        body = b'{"kid":"thief","purpose":"audit_checkpoint"}'
        connection.execute("INSERT INTO signing_keys VALUES ('thief', 0, ?, x'00')", (body,))

    copy.edit(swap)
    copy.is_found()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE checkpoint SET note = replace(note, 'agentwrit', 'agentwrit2')",
        "UPDATE checkpoint SET note = ''",
        "UPDATE checkpoint SET note = x'00ff'",
        "UPDATE tiles SET hashes = zeroblob(8192) WHERE level = 0 AND number = 1",
        "UPDATE tiles SET hashes = substr(hashes, 1, 32) WHERE level = 0 AND number = 0",
        "UPDATE tiles SET hashes = 'text' WHERE level = 1",
        "UPDATE tiles SET hashes = zeroblob(length(hashes)) WHERE level = 1",
        "DELETE FROM tiles WHERE level = 0 AND number = 1",
        "DELETE FROM tiles",
    ],
)
def test_a_tree_or_a_checkpoint_that_was_edited_is_found(copy: Copy, statement: str) -> None:
    copy.sql(statement)
    found = copy.verify()
    assert found.returncode == 1, found
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE meta SET value = '3 ' || substr(value, instr(value, ' ') + 1) WHERE name = 'audit_head'",
        "UPDATE meta SET value = 'nonsense' WHERE name = 'audit_head'",
        "DELETE FROM meta WHERE name = 'audit_head'",
    ],
)
def test_an_end_of_the_log_that_was_edited_is_found(copy: Copy, statement: str) -> None:
    copy.sql(statement)
    assert copy.verify().returncode == 1


def test_a_checkpoint_that_was_deleted_or_put_back_is_found_by_the_master_key(copy: Copy) -> None:
    earlier = copy.original.earlier
    size = checkpoint.unverified(earlier).size
    copy.edit(lambda db: db.execute("UPDATE checkpoint SET size = ?, note = ?", (size, earlier)))
    found = copy.verify()
    assert (found.returncode, "was deleted, or replaced by an older" in found.stderr) == (1, True), found
    copy.sql("DELETE FROM checkpoint")
    found = copy.verify()
    assert (found.returncode, "was deleted, or replaced by an older" in found.stderr) == (1, True), found


@pytest.mark.parametrize("statement", ["DELETE FROM events WHERE sequence > 260", "UPDATE events SET detail = 'x'"])
def test_a_broker_does_not_go_on_from_a_tail_that_it_did_not_write(copy: Copy, statement: str) -> None:
    """It would sign what it finds."""
    copy.sql(statement)
    done = subprocess.run(
        [sys.executable, "-m", "agentwrit.broker", "serve"],
        env={**CLEAN, "AGENTWRIT_DATA_DIR": str(copy.path), "AGENTWRIT_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "evt-" in done.stderr.splitlines()[-1]


def test_a_file_that_is_damaged_is_no_genuine_log(copy: Copy) -> None:
    content = bytearray(copy.database.read_bytes())
    content[4096 * 40 : 4096 * 60] = bytes(4096 * 20)
    copy.database.write_bytes(content)
    found = copy.verify()
    assert found.returncode == 1, found
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("level", "path"),
    [(0, "proof/consistency?old=130&new=300"), (1, "proof/inclusion?event=evt-000300"), (0, "tile/0/000")],
)
def test_a_tile_that_was_edited_proves_nothing_and_the_log_says_why(copy: Copy, level: int, path: str) -> None:
    with BrokerProcess(copy.path) as broker:
        copy.sql(f"UPDATE tiles SET hashes = zeroblob(length(hashes)) WHERE level = {level} AND number = 0")
        refused = problem(broker.http.get(f"/v1/audit/{path}"), 503, "unavailable")
        assert "altered" in refused["detail"]
        assert "the store was altered outside the broker" in broker.logged()
        assert broker.http.get("/v1/health").status_code == 200
