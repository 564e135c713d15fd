"""Files and streams without an end, given to commands that read what others made."""

import contextlib
import resource
import sqlite3
import subprocess
from pathlib import Path

import pytest

from agentwrit.broker.storage.sqlite_verification import LONGEST_VALUE_BYTES
from agentwrit.domain.errors import AgentWritError, TamperedRecord
from agentwrit.reading import MAX_SMALL_FILE_BYTES, first_line, lines, small_text
from tests.cli.support import AGENTWRIT, CLEAN, one_line
from tests.support import ADMIN_SECRET, BrokerProcess

GIB = 1024**3


def limited(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that has a gibibyte of memory, with a file as its standard input."""
    with Path(stdin or "/dev/null").open("rb") as given:
        return subprocess.run(
            [AGENTWRIT, *arguments],
            stdin=given,
            env={**CLEAN, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB)),
        )


@pytest.fixture
def endless(tmp_path: Path) -> str:
    """A file of 8 GiB that has no line."""
    path = tmp_path / "endless"
    with path.open("wb") as file:
        file.truncate(8 * GIB)
    return str(path)


@pytest.fixture(scope="module")
def operator(broker: BrokerProcess) -> dict[str, str]:
    return {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}


def key(broker: BrokerProcess) -> str:
    keys = broker.http.get("/v1/audit/keys").json()["keys"]
    return str(next(key["verifier_key"] for key in keys if key["state"] == "active"))


def test_an_export_without_a_line_is_none(broker: BrokerProcess, endless: str) -> None:
    one_line(limited("audit", "verify", endless, "--key", key(broker)), 1, "line 1 has more than 262144 bytes")


def test_an_export_with_an_endless_event_is_none(broker: BrokerProcess, endless: str, operator: dict[str, str]) -> None:
    export = Path(endless).with_name("export")
    assert limited("audit", "export", "--output", str(export), **operator).returncode == 0
    with export.open("r+b") as file:
        header = file.readline()
        file.truncate(8 * GIB)
    assert header.startswith(b'{"')
    with export.open("r+b") as file:
        file.truncate(len(header))
        file.truncate(8 * GIB)
    one_line(limited("audit", "verify", str(export), "--key", key(broker)), 1, "line 2 has more than 262144 bytes")


def test_no_event_is_proven_by_an_archive_that_is_none(endless: str, operator: dict[str, str]) -> None:
    done = limited("audit", "prove", "evt-000001", "--archive", endless, **operator)
    one_line(done, 1, "line 1 has more than 262144 bytes")


def test_files_that_are_too_large_to_be_what_they_should_are_not_read(endless: str, operator: dict[str, str]) -> None:
    one_line(limited("audit", "witness", endless, **operator), 2, "has more than 1048576 bytes")
    to = ("--to", f"file:{endless}.out", "--cursor", endless, "--once")
    one_line(limited("audit", "deliver", *to, **operator), 2, "has more than 1048576 bytes")
    one_line(limited("serve", "--config", endless), 2, "has more than 1048576 bytes")


@pytest.mark.parametrize("stdin", ["/dev/zero", "endless"])
def test_streams_without_a_line_are_no_token_and_no_secret(endless: str, operator: dict[str, str], stdin: str) -> None:
    given = endless if stdin == "endless" else stdin
    one_line(limited("token", "validate", stdin=given, **operator), 2, "that is no token")
    one_line(limited("token", "inspect", stdin=given, **operator), 2, "that is no token")
    one_line(limited("operator", "add", "ana", "--secret-stdin", stdin=given, **operator), 2, "has no secret")


def test_lines_are_read_to_their_ends_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\n" + b"x" * 9 + b"\n\nlast")
    with path.open("rb") as file:
        assert list(lines(file, 10)) == [b"one\n", b"x" * 9 + b"\n", b"\n", b"last"]
    with path.open("rb") as file, pytest.raises(TamperedRecord, match="line 2 has more than 9 bytes"):
        list(lines(file, 9))
    with path.open("r") as text:
        assert first_line(text, 4) == "one\n"
        assert first_line(text, 4) is None


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("é" * (MAX_SMALL_FILE_BYTES // 2))
    assert len(small_text(path)) == MAX_SMALL_FILE_BYTES // 2
    path.write_bytes(b"x" * (MAX_SMALL_FILE_BYTES + 1))
    with pytest.raises(AgentWritError, match="more than 1048576 bytes"):
        small_text(path)


def test_a_proof_without_an_end_proves_nothing(broker: BrokerProcess, endless: str) -> None:
    one_line(limited("audit", "check", endless, "--key", key(broker)), 1, "no proof")


def test_a_database_with_an_endless_value_is_damaged(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        broker.admin()
        verifier_key = key(broker)
    with contextlib.closing(sqlite3.connect(tmp_path / "data/agentwrit.db", isolation_level=None)) as connection:
        connection.execute(f"UPDATE events SET data = zeroblob({LONGEST_VALUE_BYTES + 1}) WHERE sequence = 2")
    done = limited("audit", "verify", "--database", str(tmp_path / "data"), "--key", verifier_key)
    one_line(done, 1, "is damaged")
