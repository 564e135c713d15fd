"""The data directory: private, one broker's at a time, and a clear word when it cannot be used."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agentwrit.broker.data_directory import DataDirectory
from agentwrit.domain.errors import ConfigurationError

HOLD = """
import sys, pathlib
from agentwrit.broker.data_directory import DataDirectory
directory = DataDirectory(pathlib.Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_directory_is_its_owners_alone(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "a" / "b")
    directory.create_master_key()
    assert mode(directory.path) == 0o700
    assert {mode(entry) for entry in directory.path.iterdir()} == {0o600}
    directory.close()


def test_an_open_directory_of_ours_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "data"
    DataDirectory(path).close()
    for name in ("master.key", "agentwrit.db", "agentwrit.db-wal"):
        (path / name).touch(0o600)
    path.chmod(0o755)
    DataDirectory(path).close()
    assert mode(path) == 0o700


def test_a_directory_that_holds_other_things_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigurationError, match="AGENTWRIT_DATA_DIR"):
        DataDirectory(tmp_path)
    assert mode(tmp_path) == 0o755


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match="AGENTWRIT_DATA_DIR"):
            DataDirectory(path)


def test_a_second_broker_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "data"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(ConfigurationError, match="in use by another broker"):
            DataDirectory(path)
        first.kill()
    DataDirectory(path).close()


def test_the_lock_holds_within_one_process_too(tmp_path: Path) -> None:
    first = DataDirectory(tmp_path / "data")
    with pytest.raises(ConfigurationError, match="in use"):
        DataDirectory(tmp_path / "data")
    first.close()
    DataDirectory(tmp_path / "data").close()


def test_the_master_key_is_made_once_and_read_back(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "data")
    assert directory.read_master_key_text() is None
    text = directory.create_master_key()
    assert len(bytes.fromhex(text)) == 32
    assert directory.read_master_key_text() == text
    with pytest.raises(FileExistsError):
        directory.create_master_key()
    assert directory.read_master_key_text() == text
    directory.close()


def test_a_key_that_somebody_was_killed_while_writing_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "data"
    DataDirectory(path).close()
    (path / ".master.key.0123456789abcdef.partial").write_text("5a" * 32)
    path.chmod(0o755)
    DataDirectory(path).close()
    assert [entry.name for entry in path.iterdir()] == ["lock"]


def test_a_master_key_that_cannot_be_read_is_named_and_not_shown(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "data")
    (directory.path / "master.key").write_bytes(b"abc\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"master\.key cannot be read") as refusal:
        directory.read_master_key_text()
    assert "abc" not in str(refusal.value).replace(str(tmp_path), "")
    directory.close()
