"""A test that waits for what never comes fails, and those after it run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import CLEAN

ROOT = Path(__file__).parents[1]

WAITING = """
import asyncio
import threading

import pytest
import uvloop

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore

pytestmark = pytest.mark.timeout(2)

@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_unit_that_is_never_answered(tmp_path, loop_factory):
    async def claim():
        store = SqliteStore(tmp_path / "agentwrit.db", Clock(), Sealer(b"s" * 32))
        store._commits.start = lambda steps: steps.close()  # a defect: what is to be committed is never begun
        await store.write(lambda transaction: transaction.apps())
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(claim())

def test_a_thread_that_never_ends():
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    thread.join()

def test_what_comes_after():
    pass
"""

LEAVING = """
import threading

import pytest

@pytest.fixture
def left():
    yield
    threading.Event().wait()

@pytest.mark.timeout(2)
def test_a_failure_that_leaves_something_behind(left):
    raise AssertionError"""


def run(tmp_path: Path, tests: str, workers: str) -> str:
    (tmp_path / "test_waiting.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "pyproject.toml", f"--rootdir={ROOT}"]
    done = subprocess.run([*command, workers, str(tmp_path)], cwd=ROOT, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    return done.stdout


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
def test_what_waits_for_ever_fails_and_the_others_run(tmp_path: Path, workers: str) -> None:
    shown = run(tmp_path, WAITING, workers)
    assert "3 failed, 1 passed" in shown
    assert shown.count("Failed: Timeout (>2.0s)") >= 3


def test_what_a_failure_leaves_behind_is_not_waited_for_either(tmp_path: Path) -> None:
    shown = run(tmp_path, LEAVING, "-n1")
    assert "crashed while running 'test_waiting.py::test_a_failure_that_leaves_something_behind'" in shown
