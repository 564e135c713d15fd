"""What was answered survives: kill -9, restart, eight threads at once."""

import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2

from tests.support import PLAIN, SOAK, BrokerProcess, TestApp, bearer, registration

THREADS = 8
PAIRS_EACH = 25


def create_and_release(broker: BrokerProcess, app: TestApp, app_token: str) -> tuple[str, str]:
    """One agent's whole life, over a connection of its own. Returns its id and its dead token."""
    with httpx2.Client(base_url=broker.url, timeout=30, trust_env=False, verify=PLAIN) as http:
        policy = {"agent_name": "worker", "allowed_scope": ["read:data:1"]}
        launch = http.post("/v1/app/launch-tokens", json=policy, headers=bearer(app_token))
        assert launch.status_code == 201, launch.text
        nonce = http.get("/v1/challenge").json()["nonce"]
        agent = http.post("/v1/register", json=registration(launch.json()["launch_token"], nonce))
        assert agent.status_code == 200, agent.text
        token = agent.json()["access_token"]
        released = http.post("/v1/token/release", headers=bearer(token))
        assert released.status_code == 204, released.text
        return agent.json()["agent_id"], token


def test_two_hundred_released_tokens_stay_dead_after_kill_9_and_no_event_is_missing(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        app = broker.app()
        app_token = app.token()
        with ThreadPoolExecutor(THREADS) as threads:
            lives = list(threads.map(lambda _: create_and_release(broker, app, app_token), range(THREADS * PAIRS_EACH)))
        broker.kill()
        broker.start()
        assert not any(broker.is_valid(token) for _, token in lives)
        for event_type in ("agent_registered", "token_issued", "token_released"):
            assert {event["agent_id"] for event in broker.events(event_type=event_type)} == {
                agent_id for agent_id, _ in lives
            }


def test_kill_9_under_load_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """Killed at a random moment, and again; the seed is printed when it fails."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    with BrokerProcess(tmp_path / "data") as broker:
        for _ in range(2 * SOAK):
            app = broker.app()
            app_token = app.token()
            answered: list[tuple[str, str]] = []
            enough = threading.Event()
            limit = generator.randrange(5, 60)

            def live(
                app: TestApp = app,
                app_token: str = app_token,
                answered: list[tuple[str, str]] = answered,
                enough: threading.Event = enough,
                limit: int = limit,
            ) -> None:
                try:
                    while True:
                        answered.append(create_and_release(broker, app, app_token))
                        if len(answered) >= limit:
                            enough.set()
                except httpx2.TransportError:
                    return  # the broker is gone

            threads = [threading.Thread(target=live) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            assert enough.wait(60)
            broker.kill()
            for thread in threads:
                thread.join()
            broker.start()
            assert not any(broker.is_valid(token) for _, token in answered)
            released = {event["agent_id"] for event in all_events(broker, "token_released")}
            assert {agent_id for agent_id, _ in answered} <= released


def all_events(broker: BrokerProcess, event_type: str) -> list[dict[str, str]]:
    events: list[dict[str, str]] = []
    while page := broker.events(event_type=event_type, **({"after": events[-1]["id"]} if events else {})):
        events += page
    return events


def test_a_restart_keeps_live_tokens_alive_and_the_operators_token_too(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        operator = broker.admin()
        token = broker.app().agent()["access_token"]
        broker.kill()
        broker.start()
        assert broker.is_valid(token)
        assert broker.http.get("/v1/admin/apps", headers=operator).status_code == 200


def test_a_launch_token_and_a_nonce_are_spent_across_a_crash(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        app = broker.app()
        body = registration(app.launch_token(), broker.nonce())
        assert broker.http.post("/v1/register", json=body).status_code == 200
        broker.kill()
        broker.start()
        assert broker.http.post("/v1/register", json=body).status_code == 401
        again = registration(app.launch_token(), body["nonce"])
        assert broker.http.post("/v1/register", json=again).status_code == 401


def test_renewal_answers_with_the_same_successor_after_a_crash(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        token = broker.app().agent()["access_token"]
        successor = broker.renew(token).json()["access_token"]
        broker.kill()
        broker.start()
        assert broker.renew(token).json()["access_token"] == successor
        assert not broker.is_valid(token)


def test_sigterm_finishes_what_is_in_flight_and_exits_with_0(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        app = broker.app()
        app_token = app.token()
        lives: list[tuple[str, str]] = []
        unfinished: list[Exception] = []
        started = threading.Semaphore(0)

        def live() -> None:
            try:
                while True:
                    lives.append(create_and_release(broker, app, app_token))
                    started.release()
            except httpx2.ConnectError:
                return  # no longer listening: the clean end
            except Exception as error:
                unfinished.append(error)

        threads = [threading.Thread(target=live) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for _ in range(THREADS):
            assert started.acquire(timeout=30)
        broker.process.send_signal(signal.SIGTERM)
        assert broker.process.wait(20) == 0
        for thread in threads:
            thread.join()
        # A connection may be closed between two requests of one life; none may be cut off inside a request.
        assert all(isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError) for error in unfinished)
        broker.start()
        assert not any(broker.is_valid(token) for _, token in lives)
