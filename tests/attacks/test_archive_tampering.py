"""Archives and what they leave behind, edited by hand: nothing goes unseen by calling it archived."""

import hashlib
import json
import shutil
import sqlite3
import tracemalloc
from pathlib import Path

import pytest
import rfc8785

from agentwrit import archive_files
from agentwrit.broker.config import Config
from agentwrit.broker.offline import verification
from agentwrit.domain import audit, audit_export
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.note import VerifierKey
from tests.cli.support import one_line, run
from tests.e2e.test_archives import Archived


class Original:
    def __init__(self, directory: Path) -> None:
        archived = Archived(directory)
        archived.broker.stop()
        self.directory = archived.broker.data_dir
        self.key = archived.key
        self.file = archived.file


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(tmp_path_factory.mktemp("archived"))


@pytest.fixture
def copy(original: Original, tmp_path: Path) -> Path:
    shutil.copytree(original.directory, tmp_path / "data")
    return tmp_path / "data"


def edit(copy: Path, *statements: str) -> None:
    with sqlite3.connect(copy / "agentwrit.db") as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount > 0
    connection.close()


def verify(copy: Path, *keys: str) -> int:
    held = [VerifierKey.parse(key) for key in keys]
    count, _ = verification.verify_audit_log(copy, Config(), held, progress=audit_export.unwatched)
    return count


def found(copy: Path, original: Original, words: str) -> None:
    """With the master key, and by an auditor who holds the log's key alone."""
    with pytest.raises(TamperedRecord, match=words):
        verify(copy)
    (copy / "master.key").unlink()
    with pytest.raises(TamperedRecord, match=words):
        verify(copy, original.key)


def test_what_was_left_is_genuine(copy: Path, original: Original) -> None:
    count = verify(copy)
    (copy / "master.key").unlink()
    assert verify(copy, original.key) == count


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM events WHERE sequence <= 768", "evt-000513 to evt-000768 are missing, and no event says"),
        ("DELETE FROM events WHERE sequence <= 600", "evt-000001 is missing"),
        ("DELETE FROM events WHERE sequence = 513", "evt-000001 is missing"),
        ("DELETE FROM tiles WHERE level = 0 AND number = 1", "tile 1 of level 0"),
        ("UPDATE events SET prev_hash = hash WHERE sequence = 513", "evt-000513 was altered"),
        ("UPDATE events SET detail = 'x' WHERE sequence = 700", "evt-000700 was altered"),
    ],
)
def test_more_than_was_archived_cannot_be_taken_away(
    copy: Path, original: Original, statement: str, words: str
) -> None:
    edit(copy, statement)
    found(copy, original, words)


def test_a_tile_of_what_was_archived_that_was_edited_is_found(copy: Path, original: Original) -> None:
    edit(copy, "UPDATE tiles SET hashes = zeroblob(8192) WHERE level = 0 AND number = 0")
    found(copy, original, "altered")


def test_an_event_that_says_so_and_is_covered_by_no_checkpoint_is_not_believed(copy: Path, original: Original) -> None:
    """Whoever can write the file can add an event at the end; to have it signed takes the broker."""

    with sqlite3.connect(copy / "agentwrit.db") as connection:
        connection.row_factory = sqlite3.Row
        [told] = connection.execute("SELECT * FROM events WHERE event_type = 'audit_archived'")
        [last] = connection.execute("SELECT * FROM events ORDER BY sequence DESC LIMIT 1")
        data = told["data"].replace("evt-000512", "evt-000768")
        row = {**dict(told), "sequence": last["sequence"] + 1, "prev_hash": last["hash"], "data": data}
        members = {name: value for name, value in row.items() if name not in ("sequence", "hash")}
        form = rfc8785.dumps({**members, "id": audit.event_id(row["sequence"]), "data": json.loads(data)})
        row["hash"] = hashlib.sha256(form).hexdigest()
        connection.execute(f"INSERT INTO events VALUES ({', '.join('?' * len(row))})", list(row.values()))
        connection.execute("DELETE FROM events WHERE sequence <= 768")
    connection.close()
    found(copy, original, "no event says that they were archived")


@pytest.mark.parametrize(
    ("at", "old", "new", "words"),
    [
        (7, b"success", b"denied", ("evt-000007", "altered")),
        (0, b'"last":512', b'"last":256', ("rewritten",)),
        (0, b'"last":512,', b"", ("header",)),
        (0, b'"after":0', b'"after":256', ("header",)),
    ],
)
def test_an_archive_that_was_altered_does_not_verify(
    original: Original, tmp_path: Path, at: int, old: bytes, new: bytes, words: tuple[str, ...]
) -> None:
    lines = original.file.read_bytes().splitlines(keepends=True)
    assert old in lines[at]
    lines[at] = lines[at].replace(old, new)
    altered = tmp_path / "altered.jsonl"
    altered.write_bytes(b"".join(lines if words != ("rewritten",) else lines[:257]))
    one_line(run("audit", "verify", str(altered), "--key", original.key), 1, *words)


@pytest.mark.parametrize("left", [1, 2, 512])
def test_an_archive_that_was_cut_off_does_not_verify(original: Original, tmp_path: Path, left: int) -> None:
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(original.file.read_bytes().splitlines(keepends=True)[:left]))
    one_line(run("audit", "verify", str(cut), "--key", original.key), 1, "cut off")


def test_an_archive_is_not_lengthened(original: Original, tmp_path: Path) -> None:
    lines = original.file.read_bytes().splitlines(keepends=True)
    longer = tmp_path / "longer.jsonl"
    longer.write_bytes(b"".join([*lines, lines[-1]]))
    one_line(run("audit", "verify", str(longer), "--key", original.key), 1, "more than")


@pytest.mark.parametrize("content", [b"\0", b"[", b'{"format":"'])
def test_a_line_without_an_end_is_not_read_to_its_end(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "endless.jsonl"
    with path.open("wb") as file:
        file.write(content * 1000)
        file.truncate(1 << 33)
    tracemalloc.start()
    try:
        with pytest.raises(TamperedRecord, match=r"line 1 has more than \d+ bytes"):
            archive_files.check(path, [])
        assert tracemalloc.get_traced_memory()[1] < 8 * audit_export.MAX_LINE_BYTES
    finally:
        tracemalloc.stop()
