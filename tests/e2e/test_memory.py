"""What strangers ask costs the broker no memory."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2

from tests.support import SOAK, BrokerProcess

CALLS = 4_800 * SOAK  # 240,000 in `make soak`
THREADS = 8
ALLOWED_BYTES = 5 * 1024 * 1024


def test_challenges_keep_no_state(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_LOG_LEVEL="warning") as broker:

        def ask(calls: int) -> None:
            with httpx2.Client(base_url=broker.url, trust_env=False) as http:
                for _ in range(calls):
                    assert http.get("/v1/challenge").status_code == 200

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(ask, [50] * THREADS))  # what a first use allocates once
            before = broker.resident
            list(threads.map(ask, [CALLS // THREADS] * THREADS))
        assert broker.resident - before < ALLOWED_BYTES


def test_bad_tokens_and_bad_logins_keep_no_state(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_LOG_LEVEL="warning") as broker:

        def try_one(number: int) -> None:
            token = f"{number:064x}." * 3
            assert broker.http.post("/v1/token/validate", json={"token": token}).json()["valid"] is False
            assert broker.http.get("/v1/admin/apps", headers={"authorization": f"Bearer {token}"}).status_code == 401
            login = {"client_id": f"client-{number:016x}", "client_secret": token}
            assert broker.http.post("/v1/app/auth", json=login).status_code == 401

        started_at = time.monotonic()
        for number in range(100):
            try_one(number)
        before = broker.resident
        for number in range(100, 100 + 1_000 * SOAK):
            try_one(number)
        assert broker.resident - before < ALLOWED_BYTES
        # Of each kind the first in a minute, and the count of the others.
        minutes = 1 + (time.monotonic() - started_at) // 60
        assert 2 <= len(broker.events(outcome="denied")) <= 2 * 2 * minutes
