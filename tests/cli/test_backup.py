"""`agentwrit backup`, `restore` and `store restored` where they cannot do it: one line that says what to do."""

import shutil
from pathlib import Path

import pytest

from tests.cli.support import one_line, run, terminal
from tests.support import BrokerProcess


class Kept:
    """A data directory at rest, and a backup of it. The master key is in neither variable nor backup."""

    def __init__(self, directory: Path) -> None:
        self.data, self.file = directory / "data", directory / "backup.db"
        with BrokerProcess(self.data) as broker:
            broker.app().agent()
            done = run("backup", str(self.file), AGENTWRIT_DATA_DIR=str(self.data))
            assert (done.returncode, done.stderr) == (0, "")
            assert str(self.data / "master.key") in done.stdout
            broker.stop()
        self.key = (self.data / "master.key").read_text().strip()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("kept"))


def test_without_the_master_key_nothing_is_restored_and_nothing_is_made(kept: Kept, tmp_path: Path) -> None:
    new = tmp_path / "new"
    done = run("restore", str(kept.file), AGENTWRIT_DATA_DIR=str(new))
    one_line(done, 2, "master.key", "AGENTWRIT_MASTER_KEY")
    assert not new.exists()


def test_with_another_master_key_nothing_is_restored_and_nothing_is_made(kept: Kept, tmp_path: Path) -> None:
    new = tmp_path / "new"
    done = run("restore", str(kept.file), AGENTWRIT_DATA_DIR=str(new), AGENTWRIT_MASTER_KEY="a5" * 32)
    one_line(done, 2, "not the one", "AGENTWRIT_MASTER_KEY")
    assert not new.exists()


def test_the_key_file_is_as_good_as_the_variable(kept: Kept, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(kept.data / "master.key", new)
    assert run("restore", str(kept.file), AGENTWRIT_DATA_DIR=str(new)).returncode == 0
    assert run("store", "verify", str(new)).returncode == 0


def test_a_store_that_is_there_is_left_alone(kept: Kept) -> None:
    before = (kept.data / "agentwrit.db").read_bytes()
    one_line(run("restore", str(kept.file), AGENTWRIT_DATA_DIR=str(kept.data)), 2, "already", "AGENTWRIT_DATA_DIR")
    assert (kept.data / "agentwrit.db").read_bytes() == before


def test_what_is_no_backup_is_not_restored(kept: Kept, tmp_path: Path) -> None:
    new = {"AGENTWRIT_DATA_DIR": str(tmp_path / "new"), "AGENTWRIT_MASTER_KEY": kept.key}
    text = tmp_path / "text"
    text.write_text("no backup")
    one_line(run("restore", str(text), **new), 2, "is no backup", "agentwrit backup")
    text.write_text("")
    one_line(run("restore", str(text), **new), 2, "is no backup", "agentwrit backup")
    one_line(run("restore", str(kept.data / "agentwrit.db"), **new), 2, "no backup", "store restored")
    one_line(run("restore", str(tmp_path / "none"), **new), 2, "does not exist")
    one_line(run("restore", str(tmp_path), **new), 2, "is a directory")
    assert not (tmp_path / "new").exists()


def test_a_backup_goes_nowhere_where_it_would_be_lost_or_cannot_be_written(kept: Kept, tmp_path: Path) -> None:
    data = {"AGENTWRIT_DATA_DIR": str(kept.data)}
    before = (kept.data / "agentwrit.db").read_bytes()
    inside = kept.data / "agentwrit.db"
    one_line(run("backup", "--overwrite", str(inside), **data), 2, "data directory itself")
    assert inside.read_bytes() == before
    one_line(run("backup", str(tmp_path / "none" / "backup.db"), **data), 2, "cannot be written")


def test_there_has_to_be_a_store_to_back_up_and_its_master_key(kept: Kept, tmp_path: Path) -> None:
    to = str(tmp_path / "backup.db")
    one_line(run("backup", to, AGENTWRIT_DATA_DIR=str(tmp_path / "none")), 2, "master key is missing")
    nowhere = {"AGENTWRIT_DATA_DIR": str(tmp_path / "none"), "AGENTWRIT_MASTER_KEY": kept.key}
    one_line(run("backup", to, **nowhere), 2, "no store", "AGENTWRIT_DATA_DIR")
    other = {"AGENTWRIT_DATA_DIR": str(kept.data), "AGENTWRIT_MASTER_KEY": "a5" * 32}
    one_line(run("backup", to, **other), 2, "not the one", "AGENTWRIT_MASTER_KEY")
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_was_put_back_is_told_so(kept: Kept, tmp_path: Path) -> None:
    put_back = tmp_path / "data"
    shutil.copytree(kept.data, put_back)
    data = {"AGENTWRIT_DATA_DIR": str(put_back)}
    one_line(run("store", "restored", **data), 2, "--yes")
    with terminal(["store", "restored"], **data) as at:
        at.wait_for("[y/N]")
        at.type("n\n")
        assert at.finish() == 1
    done = run("store", "restored", "--yes", **data)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no token from before holds" in done.stdout
    assert run("store", "verify", str(put_back)).returncode == 0


def test_a_store_that_is_used_or_is_not_there_is_not_told_so(tmp_path: Path) -> None:
    nowhere = {"AGENTWRIT_DATA_DIR": str(tmp_path / "none")}
    one_line(run("store", "restored", "--yes", **nowhere), 2, "no store")
    assert not (tmp_path / "none").exists()
    with BrokerProcess(tmp_path / "data") as broker:
        done = run("store", "restored", "--yes", AGENTWRIT_DATA_DIR=str(broker.data_dir))
        one_line(done, 2, "in use")
        token = broker.app().agent()["access_token"]
        assert broker.is_valid(token)
