"""What a broker has seen outlives it, whatever moment it ends at."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentwrit.broker.storage.postgres_lineage import Seen
from agentwrit.broker.storage.postgres_memory import PLACE_BYTES, Memory, recall
from agentwrit.broker.storage.postgres_rows import State

SYSTEM = "7380000000000000000/16384/16386"


def seen(sequence: int) -> Seen:
    return Seen(State(sequence, f"{sequence:064x}", sequence // 2, 1_900_000_000.25 + sequence), sequence % 2 == 0)


def kept(directory: Path, *sequences: int, system: str = SYSTEM) -> None:
    memory = Memory.open(directory, system)
    for sequence in sequences:
        memory.keep(seen(sequence))
    memory.close()


def known(directory: Path, system: str = SYSTEM) -> list[Seen]:
    return sorted(recall(directory, system))


def test_the_last_that_was_seen_is_known_to_whoever_comes_after(tmp_path: Path) -> None:
    assert known(tmp_path) == []
    kept(tmp_path, 1, 2, 3)
    assert known(tmp_path) == [seen(3)]
    kept(tmp_path, 4)
    assert known(tmp_path) == [seen(4)]


def test_each_database_has_its_own(tmp_path: Path) -> None:
    kept(tmp_path, 1)
    kept(tmp_path, 2, system="another")
    assert (known(tmp_path), known(tmp_path, "another")) == ([seen(1)], [seen(2)])


def test_processes_that_run_at_once_have_a_file_each_and_know_of_one_another(tmp_path: Path) -> None:
    first, second = Memory.open(tmp_path, SYSTEM), Memory.open(tmp_path, SYSTEM)
    first.keep(seen(5))
    second.keep(seen(6))
    first.close()
    second.close()
    assert known(tmp_path) == [seen(5), seen(6)]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("torn_at", [0, 3, 7, 8, 60])
def test_what_was_cut_short_leaves_what_was_before(tmp_path: Path, torn_at: int) -> None:
    kept(tmp_path, 1, 2)
    [file] = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[torn_at : torn_at + 4] = b"\xff\xff\xff\xff"  # the second is in the first place
    file.write_bytes(content)
    assert known(tmp_path) == [seen(1)]
    kept(tmp_path, 3)
    assert known(tmp_path) == [seen(3)]


@pytest.mark.parametrize("content", [b"", b"\0" * 2 * PLACE_BYTES, b"nonsense" * 128, bytes(range(99, 199))])
def test_a_file_that_is_none_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    kept(tmp_path, 1)
    [file] = tmp_path.iterdir()
    file.write_bytes(content)
    assert known(tmp_path) == []


def test_a_process_that_is_killed_has_kept_what_it_saw(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from agentwrit.broker.storage.postgres_memory import Memory
from agentwrit.broker.storage.postgres_lineage import Seen
memory = Memory.open(Path(sys.argv[1]), sys.argv[2])
for number in range(1000):
    memory.keep(Seen()._replace(state=Seen().state._replace(sequence=number)))
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program, tmp_path, SYSTEM], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [each.state.sequence for each in known(tmp_path)] == [999]


def test_a_file_that_is_cut_short_by_others_or_a_disk_that_is_full_ends_no_process(tmp_path: Path) -> None:
    program = """
import os, resource, sys
from pathlib import Path
from agentwrit.broker.storage.postgres_memory import Memory
from agentwrit.broker.storage.postgres_lineage import Seen
memory = Memory.open(Path(sys.argv[1]), sys.argv[2])
[file] = Path(sys.argv[1]).iterdir()
os.truncate(file, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
memory.keep(Seen())
memory.sync()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
memory.keep(Seen()._replace(state=Seen().state._replace(sequence=7)))
memory.close()
memory.keep(Seen())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path, SYSTEM], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.count("may be forgotten when it ends")) == (0, 2), done
    assert [each.state.sequence for each in known(tmp_path)] == [7]


def test_it_is_nobody_elses_to_read(tmp_path: Path) -> None:
    kept(tmp_path / "new", 1)
    [file] = (tmp_path / "new").iterdir()
    assert ((tmp_path / "new").stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
