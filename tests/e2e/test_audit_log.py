"""The audit log through crashes: whole after each, and never behind what was answered."""

import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx2

from tests.cli.support import CLEAN
from tests.support import SOAK, BrokerProcess, bearer

THREADS = 4


def verify(directory: Path, *arguments: str) -> int:
    """How many events there are, all of them genuine."""
    command = [sys.executable, "-m", "agentwrit.broker", "verify-audit", str(directory), *arguments]
    done = subprocess.run(command, env=CLEAN, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    return int(re.findall(r"verified (\d+) events", done.stdout)[0])


def test_the_log_is_genuine_after_every_kill_9_and_holds_all_that_was_answered(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    before, checkpoint = 0, 0
    with BrokerProcess(tmp_path / "data") as broker:
        for _ in range(4 * SOAK):
            headers = bearer(broker.app().token())
            answered: list[int] = []
            enough = threading.Event()
            limit = generator.randrange(1, 150)

            def work(
                url: str = broker.url,
                headers: dict[str, str] = headers,
                answered: list[int] = answered,
                enough: threading.Event = enough,
                limit: int = limit,
            ) -> None:
                policy = {"agent_name": "worker", "allowed_scope": ["read:data:1"]}
                with httpx2.Client(base_url=url, timeout=30, trust_env=False) as http:
                    try:
                        while True:
                            answer = http.post("/v1/app/launch-tokens", json=policy, headers=headers)
                            answered.append(answer.status_code)
                            if len(answered) >= limit:
                                enough.set()
                    except httpx2.TransportError:
                        return  # the broker is gone

            threads = [threading.Thread(target=work) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            assert enough.wait(60)
            broker.kill()
            for thread in threads:
                thread.join()
            size = verify(broker.data_dir)
            assert size >= before + len(answered)
            broker.start()
            note = broker.http.get("/v1/audit/checkpoint").text
            signed = int(note.split("\n")[1])
            assert size <= signed
            proof = broker.http.get("/v1/audit/proof/consistency", params={"old": checkpoint, "new": signed})
            assert proof.status_code == 200, proof.text
            before, checkpoint = size, signed
    assert verify(tmp_path / "data") >= before
