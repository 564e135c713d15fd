"""What resource servers report is recorded once, also by a broker that is killed in the middle of it."""

import random
import threading
from pathlib import Path

import httpx2

from agentwrit import Verifier
from tests.client.verifiers import eventually, free_port
from tests.reports import AUDIENCE, ResourceServer, access
from tests.support import SOAK, BrokerProcess

BATCH = 20


def test_a_report_that_kill_9_cut_off_is_recorded_once_when_it_is_made_again(tmp_path: Path) -> None:
    """Killed at a random moment, and again; the seed is printed when it fails."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    with BrokerProcess(tmp_path / "data") as broker:
        server = ResourceServer(broker)
        token = broker.app(audiences=[AUDIENCE]).agent(audience=[AUDIENCE])["access_token"]
        done = [access(broker, token, resource=f"GET /{number}") for number in range(BATCH)]
        for round_ in range(5 * SOAK):
            key = f"report-{round_}"

            def make(key: str = key) -> None:
                try:
                    server.report(*done, key=key)
                except (httpx2.TransportError, RuntimeError):
                    return  # the broker is gone, or the client is closed

            making = threading.Thread(target=make)
            making.start()
            making.join(generator.uniform(0, 0.02))
            broker.kill()
            making.join()
            broker.start()
            assert [server.taken(*done, key=key)["recorded"] for _ in range(2)] == [BATCH, BATCH]
            recorded = broker.http.get(
                "/v1/audit/events", params={"event_type": "resource_accessed", "limit": 1}, headers=broker.admin()
            ).json()["total"]
            assert recorded == (round_ + 1) * BATCH


def test_a_verifier_tells_all_of_it_to_a_broker_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_PORT=str(free_port())) as broker:
        server = ResourceServer(broker)
        token = broker.app(audiences=[AUDIENCE]).agent("read:data:*", audience=[AUDIENCE])["access_token"]
        login = {"client_id": server.app.client_id, "client_secret": server.app.client_secret}
        with Verifier(broker.url, audience=AUDIENCE, **login) as verifier:  # type: ignore[arg-type]
            claims = verifier.verify(token)
            for number in range(300):
                verifier.report(claims, scope=f"read:data:{number}", resource="GET /data")
                if number == 150:
                    broker.kill()
            broker.start()
            eventually(lambda: len(broker.events(event_type="resource_accessed")) == 300)
            assert verifier.unreported == 0
