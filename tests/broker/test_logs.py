"""What the broker writes to its log."""

import json
import subprocess
import sys
from typing import Any

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


GATHER = """
import asyncio, os, sys, threading, types
import structlog
from agentwrit.broker import logs

writes = []
sys.stderr = types.SimpleNamespace(write=writes.append, flush=lambda: None, isatty=lambda: False)
logs.configure(level="info", log_format="console")
log = structlog.get_logger()

async def work():
    log.info("one")
    log.info("two")
    before_the_turn_is_over = list(writes)
    await asyncio.sleep(0)
    log.info("three")
    log.warning("four")
    after_a_warning = list(writes)
    thread = threading.Thread(target=log.info, args=("five",))
    thread.start()
    thread.join()
    log.info("six")
    return before_the_turn_is_over, after_a_warning

def names(lines):
    return [[line.split()[-1] for line in text.splitlines()] for text in lines]

turns = asyncio.run(logs.gathered(work()))
print(*map(names, turns), names(writes), sep="\\n")
log.info("seven")
print(names(writes)[-1])
"""


def test_lines_of_a_turn_are_written_together_and_a_warning_waits_for_none() -> None:
    written = subprocess.run([sys.executable, "-c", GATHER], capture_output=True, text=True, check=True).stdout
    expected: list[Any] = [
        [],
        [["one", "two"], ["three", "four"]],
        [["one", "two"], ["three", "four"], ["five"], ["six"]],
        ["seven"],
    ]
    assert written.splitlines() == list(map(str, expected))
