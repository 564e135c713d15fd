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
