"""A broker that hangs keeps nobody else from the database."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import httpx2
import psycopg
import pytest

from tests import postgres
from tests.cluster.support import member
from tests.cluster.test_as_one import at
from tests.support import BrokerProcess

pytestmark = pytest.mark.alone

AGAIN_SECONDS: Final = 10  # after which others write again


@pytest.fixture
def brokers(database_url: str, tmp_path: Path) -> Iterator[Sequence[BrokerProcess]]:
    """Two brokers of one database."""
    with ExitStack() as stack:
        yield [stack.enter_context(member(database_url, tmp_path / f"broker-{number}")) for number in range(2)]


def test_a_broker_that_hangs_in_a_batch_keeps_the_others_from_writing_for_seconds_only(
    database_url: str, brokers: Sequence[BrokerProcess]
) -> None:
    hanging, other = brokers
    app = other.app()
    is_over = threading.Event()

    def load() -> None:
        with httpx2.Client(base_url=hanging.url, timeout=60, trust_env=False) as http, suppress(httpx2.TransportError):
            while not is_over.is_set():
                http.post("/v1/app/auth", json={"client_id": app.client_id, "client_secret": app.client_secret})

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        while True:
            os.kill(hanging.pid, signal.SIGSTOP)
            if is_locked(database_url):
                break
            os.kill(hanging.pid, signal.SIGCONT)
        since = time.monotonic()
        while at(other, app).login().status_code != 200:
            assert time.monotonic() < since + AGAIN_SECONDS, "they do not write again"
        assert time.monotonic() < since + AGAIN_SECONDS
    finally:
        is_over.set()
        os.kill(hanging.pid, signal.SIGCONT)
        for thread in threads:
            thread.join()
    assert at(hanging, app).login().status_code == 200


def is_locked(database_url: str) -> bool:
    """Whether a batch is under way that does not go on."""
    held = 0
    for _ in range(3):  # one that only ends late has ended by then
        try:
            postgres.ask(database_url, "SELECT 1 FROM agentwrit.cluster FOR UPDATE NOWAIT")
        except psycopg.errors.LockNotAvailable:
            held += 1
        threading.Event().wait(0.05)
    return held == 3
