"""What the broker writes to its log."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentwrit.broker import logs
from agentwrit.broker.services import checkpoints
from tests.support import BrokerProcess

FAIL = """
import structlog
from agentwrit.broker import logs

def handle(token):
    raise RuntimeError("a defect")

logs.configure(level="info", log_format="json")
try:
    handle("a-token-that-nobody-sees")
except RuntimeError:
    structlog.get_logger().exception("internal error")
"""


def test_the_trace_of_an_error_shows_where_it_was_and_no_value_of_a_variable() -> None:
    written = subprocess.run([sys.executable, "-c", FAIL], capture_output=True, text=True, check=True).stderr
    line: dict[str, Any] = json.loads(written)
    assert [frame["name"] for frame in line["exception"][0]["frames"]] == ["<module>", "handle"]
    assert "a-token-that-nobody-sees" not in written


FLUSHED = """
import structlog
from agentwrit.broker import logs

logs.configure(level="info", log_format="console")
for number in range(1000):
    structlog.get_logger().info(str(number))
"""


def test_the_last_lines_are_written_before_the_end() -> None:
    written = subprocess.run([sys.executable, "-c", FLUSHED], capture_output=True, text=True, check=True).stderr
    assert [line.split()[-1] for line in written.splitlines()] == [str(number) for number in range(1000)]


LIBRARY = """
import logging
from agentwrit.broker import logs

logs.configure(level="info", log_format="json")
logging.getLogger("asyncio").error("a task %s", "failed")
logging.getLogger("asyncio").error("a task %d", "failed")
"""


def test_logs_of_libraries_go_the_same_way_and_one_that_cannot_be_shown_stops_nobody() -> None:
    written = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True, check=True).stderr
    first, second = written.splitlines()
    assert json.loads(first)["event"] == "a task failed"
    assert "asyncio" in second


STUCK = """
import os, sys, threading
import structlog
from agentwrit.broker import logs

logs.configure(level="info", log_format="console")
log = structlog.get_logger()
line = "x" * 1000
for number in range(logs.MAX_WAITING_BYTES // 500):
    log.info(line)
print(logs.lost(), flush=True)
sys.stdin.readline()
"""


def test_lines_that_a_pipe_does_not_take_wait_up_to_a_bound_and_the_others_are_counted() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        lost = int(process.stdout.readline())
        assert 0 < lost < logs.MAX_WAITING_BYTES // 500
        told = ""
        shown = 0
        while "are lost" not in told:  # it is read again: so the log says what it lacks
            told = process.stderr.readline()
            shown += "x" * 1000 in told
        assert f"count={lost}" in told
        assert shown == logs.MAX_WAITING_BYTES // 500 - lost
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait() == 0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Callable[[Path], BrokerProcess]]:
    """Starts a broker whose log goes to the given file, and kills it at the end."""
    started: list[BrokerProcess] = []

    def start(log: Path) -> BrokerProcess:
        data_dir = tmp_path / "data"
        data_dir.with_suffix(".log").symlink_to(log)
        started.append(BrokerProcess(data_dir, AGENTWRIT_LOG_LEVEL="debug"))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.kill()
        each.http.close()


def test_a_pipe_that_nobody_reads_keeps_a_broker_neither_from_answering_nor_from_its_end(
    tmp_path: Path, broker: Callable[[Path], BrokerProcess]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        started = broker(pipe)
        for _ in range(20):
            assert started.http.get("/livez").status_code == 200
            assert started.http.get("/readyz").status_code == 200
        health = _until(started, lambda health: health["failing"] == ["log"])
        assert health["status"] == "degraded"
        assert started.stop() == 0
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_log_that_cannot_be_written_stops_no_work_in_the_background(broker: Callable[[Path], BrokerProcess]) -> None:
    started = broker(Path("/dev/full"))
    health = _until(started, lambda health: health["failing"] == ["log"])
    assert health["status"] == "degraded"
    for _ in range(3):
        started.http.post("/v1/app/auth", json={"client_id": "a", "client_secret": "b"})
    started.app("read:data:*")
    count = started.http.get("/v1/health").json()["audit_events_count"]
    deadline = time.monotonic() + 3 * checkpoints.INTERVAL_SECONDS
    while _covered(started) < count:
        assert time.monotonic() < deadline
    assert started.stop() == 0


def _until(broker: BrokerProcess, is_reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while True:
        health: dict[str, Any] = broker.http.get("/v1/health").json()
        if is_reached(health):
            return health
        assert time.monotonic() < deadline, health


def _covered(broker: BrokerProcess) -> int:
    """How many events the newest checkpoint covers."""
    answer = broker.http.get("/v1/audit/checkpoint")
    return int(answer.text.splitlines()[1])


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_broker_that_was_started_without_standard_streams_serves(tmp_path: Path, closed: str) -> None:
    """And none of its files has the number of one, where the log would be written into it."""
    with BrokerProcess(tmp_path / "data", wrapper=["sh", "-c", f'exec "$@" {closed}', "sh"]) as started:
        assert started.http.get("/readyz").status_code == 200
        assert started.app().login().status_code == 200
        if sys.platform == "linux":
            assert Path(f"/proc/{started.pid}/fd/2").readlink() == Path(os.devnull)
        assert started.stop() == 0
