"""The order worker prints what it is known to print, and fails in one line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import BrokerProcess

ROOT = Path(__file__).parents[2]
AGENTWRIT = str(Path(sys.executable).parent / "agentwrit")
WORKER = [sys.executable, str(ROOT / "examples/order_worker.py"), "--customer", "cust-7291", "--order", "ord-4823"]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("AGENTWRIT_")}

EXPECTED = r"""Processing order ord-4823 for customer cust-7291
=======================================================

Agent created: (?P<agent>spiffe://agentwrit\.local/agent/order-worker/process-ord-4823/[0-9a-f]{16})
  Scope:   \['read:data:customer-cust-7291', 'write:data:order-ord-4823'\]
  Expires: 300s
  Token:   eyJhbGciOiJFZERTQSIsInR5cCI6I[A-Za-z0-9]\.\.\.

Token is valid\. Claims:
  Issuer:  agentwrit
  Subject: (?P=agent)
  Scope:   \['read:data:customer-cust-7291', 'write:data:order-ord-4823'\]
  Task:    process-ord-4823
  Orch:    order-worker
  JTI:     [0-9a-f]{32}

\[READ\] Customer profile for cust-7291: John Doe, Premium tier
\[WRITE\] Order ord-4823 confirmed for customer cust-7291
\[BLOCKED\] Cannot access customer cust-9999 — scope isolation working
\[BLOCKED\] Cannot write order ord-0000 — scope isolation working

Agent released\. Token is now dead at the broker\.
Confirmed: token rejected — "token is invalid or expired"
"""


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env={**CLEAN, **environment}, capture_output=True, text=True, timeout=60)


def test_it_prints_what_it_is_known_to_print() -> None:
    done = run([AGENTWRIT, "dev", "--", *WORKER])
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(EXPECTED, done.stdout), done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("missing", ["AGENTWRIT_BROKER_URL", "AGENTWRIT_CLIENT_ID", "AGENTWRIT_CLIENT_SECRET"])
def test_it_says_which_variable_is_missing(missing: str) -> None:
    given = dict.fromkeys(("AGENTWRIT_BROKER_URL", "AGENTWRIT_CLIENT_ID", "AGENTWRIT_CLIENT_SECRET"), "http://x")
    del given[missing]
    done = run(WORKER, **given)
    assert done.returncode == 2
    assert re.fullmatch(rf"order_worker: set {missing}: .*\n", done.stderr)


def test_it_fails_in_one_line(broker: BrokerProcess) -> None:
    narrow = broker.app("read:data:*")
    settings = {
        "AGENTWRIT_BROKER_URL": broker.url,
        "AGENTWRIT_CLIENT_ID": narrow.client_id,
        "AGENTWRIT_CLIENT_SECRET": narrow.client_secret,
    }
    for change, words in (
        ({}, "ceiling"),
        ({"AGENTWRIT_CLIENT_SECRET": "wrong"}, "AGENTWRIT_CLIENT_SECRET"),
        ({"AGENTWRIT_BROKER_URL": "http://127.0.0.1:9"}, "cannot be reached"),
        ({"AGENTWRIT_BROKER_URL": "nowhere"}, "not the URL"),
    ):
        done = run(WORKER, **{**settings, **change})
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
