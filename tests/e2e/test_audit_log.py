"""The audit log through crashes: whole after each, and never behind what was answered."""

import random
import threading
from pathlib import Path

import httpx2

from agentwrit.broker.config import Config
from agentwrit.broker.offline import verification
from agentwrit.domain.audit_export import unwatched
from tests.support import PLAIN, SOAK, BrokerProcess, bearer

THREADS = 4
KILLS_OF_A_STORE = 50  # then begins a new one: what is verified after each kill stays small


def verify(directory: Path) -> int:
    """How many events there are, all of them genuine."""
    count, _ = verification.verify_audit_log(directory, Config(), [], progress=unwatched)
    return count


class Load:
    """Threads that make events as fast as they can, until the broker is gone."""

    def __init__(self, url: str, headers: dict[str, str], enough: int) -> None:
        self.answered = 0
        self._enough = enough
        self._is_enough = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(url, headers)) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _work(self, url: str, headers: dict[str, str]) -> None:
        policy = {"agent_name": "worker", "allowed_scope": ["read:data:1"]}
        with httpx2.Client(base_url=url, timeout=30, trust_env=False, verify=PLAIN) as http:
            try:
                while True:
                    assert http.post("/v1/app/launch-tokens", json=policy, headers=headers).status_code == 201
                    with self._lock:
                        self.answered += 1
                    if self.answered >= self._enough:
                        self._is_enough.set()
            except httpx2.TransportError:
                return  # the broker is gone

    def wait(self) -> None:
        """Until enough was answered."""
        assert self._is_enough.wait(60)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def kill_in_mid_batch(directory: Path, kills: int, generator: random.Random) -> None:
    """Kill a broker so many times while it commits, and look at its log after each."""
    before, checkpoint = 0, 0
    with BrokerProcess(directory) as broker:
        headers = bearer(broker.app().token())
        for _ in range(kills):
            load = Load(broker.url, headers, generator.randrange(1, 60))
            load.wait()
            broker.kill()
            load.join()
            size = verify(directory)
            assert size >= before + load.answered
            broker.start()
            signed = int(broker.http.get("/v1/audit/checkpoint").text.split("\n")[1])
            assert size <= signed
            proof = broker.http.get("/v1/audit/proof/consistency", params={"old": checkpoint, "new": signed})
            assert proof.status_code == 200, proof.text
            before, checkpoint = size, signed
    assert verify(directory) >= before


def test_the_log_is_genuine_after_every_kill_9_and_holds_all_that_was_answered(tmp_path: Path) -> None:
    """A thousand times with AGENTWRIT_SOAK=250."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    left, stores = 4 * SOAK, 0
    while left:
        kills = min(left, KILLS_OF_A_STORE)
        kill_in_mid_batch(tmp_path / f"data-{stores}", kills, generator)
        left, stores = left - kills, stores + 1
