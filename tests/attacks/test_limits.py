"""Attempts of an app to have more than its limits allow, or to go on while it is suspended."""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.proofs import Creation
from tests.support import SOAK, BrokerProcess, TestApp, bearer, registration

THREADS = 8
ROUNDS = 2 * SOAK


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """One of its own: what happens here at once, or again and again, fills the log."""
    with BrokerProcess(tmp_path_factory.mktemp("limits") / "data") as process:
        yield process


def act(app: TestApp, what: str) -> httpx2.Response:
    return app.broker.http.post(f"/v1/admin/apps/{app.app_id}/{what}", headers=app.broker.admin())


def live(app: TestApp, token: str | None = None) -> list[dict[str, Any]]:
    """The app's live agents, as it sees them itself, or the operator."""
    headers = app.broker.admin() if token is None else bearer(token)
    params: dict[str, str | int] = {"app_id": app.app_id, "limit": 1000}
    return list(app.broker.http.get("/v1/agents", params=params, headers=headers).json()["agents"])


@pytest.mark.parametrize("way", ["directly", "by-launch-token", "by-login"])
def test_nothing_that_is_created_while_an_app_is_suspended_outlives_it(broker: BrokerProcess, way: str) -> None:
    """Threads create until they are refused; at a random moment (the seed is printed) the app is suspended."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    for _ in range(ROUNDS):
        app = broker.app()
        launch_token = app.launch_token(single_use=False, ttl=600)
        creation, begun = Creation(app), threading.Semaphore(0)
        tokens: list[str] = []

        def create(
            app: TestApp = app, launch_token: str = launch_token, creation: Creation = creation
        ) -> httpx2.Response:
            if way == "directly":
                return creation.post()
            if way == "by-login":
                return app.login()
            return broker.http.post("/v1/register", json=registration(launch_token, broker.nonce()))

        def go_on(tokens: list[str] = tokens, begun: threading.Semaphore = begun, create: Any = create) -> int:
            while True:
                answer = create()
                if answer.status_code not in (200, 201):
                    return int(answer.status_code)
                tokens.append(answer.json()["access_token"])
                begun.release()

        with ThreadPoolExecutor(THREADS) as threads:
            running = [threads.submit(go_on) for _ in range(THREADS)]
            for _ in range(generator.randrange(1, 30)):
                assert begun.acquire(timeout=30)
            assert act(app, "suspend").json()["status"] == "suspended"
            dead_at_once = [not broker.is_valid(token) for token in list(tokens)]
            assert all(dead_at_once)
            assert {each.result() for each in running} <= {401, 403, 429}
        assert not any(broker.is_valid(token) for token in tokens)
        assert live(app) == []
        act(app, "resume")
        assert not any(broker.is_valid(token) for token in tokens)
        assert live(app) == []


def test_an_app_never_has_more_agents_than_it_may_whatever_it_does_at_once(broker: BrokerProcess) -> None:
    """Threads create, renew and release in a random order (the seed is printed)."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    app = broker.app(max_live_agents=5)
    token, statuses = app.token(), Counter[int]()

    def live_on(number: int) -> None:
        generator, held = random.Random(seed + number), list[str]()
        for _ in range(30 * ROUNDS):
            match generator.choice(["create", "create", "renew", "release"]):
                case "create":
                    answer = Creation(app, token).post()
                    statuses[answer.status_code] += 1
                    if answer.status_code == 201:
                        held.append(answer.json()["access_token"])
                case "renew" if held:
                    answer = broker.renew(held.pop())
                    held.append(answer.json()["access_token"])
                case "release" if held:
                    assert broker.release(held.pop()).status_code == 204
            assert len(live(app, token)) <= 5

    with ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(live_on, number) for number in range(THREADS)]:
            done.result()
    assert set(statuses) == {201, 429}
    room = 5 - len(live(app))
    answers = [Creation(app, token).post().status_code for _ in range(room + 1)]
    assert answers == [201] * room + [429]


def test_neither_a_crash_nor_a_restart_makes_room(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        app = broker.app(max_live_agents=3)
        agents = [app.agent() for _ in range(3)]
        suspended = broker.app()
        held = suspended.agent()["access_token"]
        act(suspended, "suspend")
        for stop in (broker.kill, broker.stop):
            stop()
            broker.start()
            assert Creation(app).post().status_code == 429
            assert not broker.is_valid(held)
            assert suspended.login().status_code == 401
        broker.release(agents[0]["access_token"])
        broker.kill()
        broker.start()
        assert [Creation(app).post().status_code for _ in range(2)] == [201, 429]
        act(suspended, "resume")
        broker.kill()
        broker.start()
        assert not broker.is_valid(held)
        assert suspended.login().status_code == 200


def test_an_agent_cannot_live_longer_than_its_app_allows_by_any_road(broker: BrokerProcess) -> None:
    app = broker.app(max_ttl=30)
    first, second = app.agent(max_ttl=86_400), app.agent(max_ttl=86_400)
    tokens = [first["access_token"], second["access_token"]]
    tokens.append(broker.renew(tokens.pop(0)).json()["access_token"])
    to_itself = broker.delegate(tokens[-1], first["agent_id"], ttl=86_400).json()["access_token"]
    tokens.append(broker.renew(to_itself).json()["access_token"])
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": tokens[0],
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "actor_token": tokens[1],
        "actor_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "scope": "read:data:1",
        "client_id": app.client_id,
        "client_secret": app.client_secret,
    }
    exchanged = broker.http.post("/oauth2/token", data=form)
    assert exchanged.status_code == 200, exchanged.text
    tokens.append(exchanged.json()["access_token"])
    for token in tokens:
        claims = broker.validate(token)["claims"]
        assert claims["exp"] - claims["iat"] <= 30


def test_only_the_operator_sets_limits(broker: BrokerProcess) -> None:
    app = broker.app(max_live_agents=1)
    for token in (app.token(), app.agent()["access_token"]):
        path = f"/v1/admin/apps/{app.app_id}"
        answer = broker.http.put(path, json={"max_live_agents": None}, headers=bearer(token))
        assert answer.status_code == 403
    assert Creation(app).post().status_code == 429
