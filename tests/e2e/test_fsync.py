"""kill -9 is a crash and not a power cut: this counts what reaches the disk, and when."""

import re
import shutil
from pathlib import Path

import pytest

from tests.support import BrokerProcess

ROUNDS = 5
REQUEST = re.compile(r'(?:recvfrom|read|recvmsg)\(.*"POST /v1/(token/(?:renew|release)|register)')
ANSWER = re.compile(r'(?:sendto|write|sendmsg)\(.*"HTTP/1\.1 20[04]')
ON_DISK = re.compile(r"f(?:data)?sync(?:\(\d+| resumed>)\)\s*= 0")


def test_every_answered_change_was_synced_between_its_request_and_its_answer(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.fail("this test needs strace: install it, for example with `apt-get install strace`")
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,read,recvfrom,recvmsg,write,sendto,sendmsg"
    wrapper = [strace, "-f", "-qq", "-s", "48", "-e", calls, "-o", str(trace)]
    with BrokerProcess(tmp_path / "data", wrapper=wrapper) as broker:
        app = broker.app()
        for _ in range(ROUNDS):
            token = app.agent()["access_token"]
            token = broker.renew(token).json()["access_token"]
            assert broker.release(token).status_code == 204
    # strace ends after the broker, so the trace is whole by now.
    syncs: int | None = None
    seen: list[str] = []
    for line in trace.read_text().splitlines():
        request = REQUEST.search(line)
        if request is not None:
            seen.append(request[1])
            syncs = 0
        elif syncs is not None and ON_DISK.search(line):
            syncs += 1
        elif syncs is not None and ANSWER.search(line):
            assert syncs >= 1, f"{seen[-1]} was answered before it was on disk"
            syncs = None
    assert seen == ["register", "token/renew", "token/release"] * ROUNDS
