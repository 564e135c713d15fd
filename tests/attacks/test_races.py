"""Attempts to get by fifty requests at once what one would not get: each thing happens exactly once, or not at all."""

import random
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx2
import pytest

from tests.support import SOAK, BrokerProcess, bearer, registration

THREADS = 50
ROUNDS = 2 * SOAK

T = TypeVar("T")


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


def at_once(threads: ThreadPoolExecutor, act: Callable[[int], T]) -> list[T]:
    """What fifty threads get that begin together."""
    gate = threading.Barrier(THREADS)

    def begin(number: int) -> T:
        gate.wait(30)
        return act(number)

    return list(threads.map(begin, range(THREADS)))


def delegate(broker: BrokerProcess, token: str, to: str, *, ttl: int = 60, key: str | None = None) -> httpx2.Response:
    headers = bearer(token) if key is None else {**bearer(token), "idempotency-key": key}
    body = {"delegate_to": to, "scope": ["read:data:1"], "ttl": ttl}
    return broker.http.post("/v1/delegate", json=body, headers=headers)


def test_fifty_renewals_of_one_token_have_one_successor(broker: BrokerProcess, threads: ThreadPoolExecutor) -> None:
    app = broker.app()
    for _ in range(ROUNDS):
        agent = app.agent()

        def renew(_: int, token: str = agent["access_token"]) -> httpx2.Response:
            return broker.renew(token)

        answers = at_once(threads, renew)
        assert {answer.status_code for answer in answers} == {200}
        [successor] = {answer.json()["access_token"] for answer in answers}
        assert broker.is_valid(successor)
        assert not broker.is_valid(agent["access_token"])
        assert len(broker.events(agent_id=agent["agent_id"], event_type="token_renewed")) == 1


def test_fifty_registrations_with_one_launch_token_are_one_agent(
    broker: BrokerProcess, threads: ThreadPoolExecutor
) -> None:
    app = broker.app()
    for _ in range(ROUNDS):
        launch_token, task = app.launch_token(), f"task-{secrets.token_hex(4)}"
        bodies = [{**registration(launch_token, broker.nonce()), "task_id": task} for _ in range(THREADS)]

        def register(number: int, bodies: list[dict[str, Any]] = bodies) -> httpx2.Response:
            return broker.http.post("/v1/register", json=bodies[number])

        answers = at_once(threads, register)
        assert sorted(answer.status_code for answer in answers) == [200] + [401] * (THREADS - 1)
        [event] = broker.events(task_id=task, event_type="agent_registered")
        assert event["agent_id"] in {answer.json().get("agent_id") for answer in answers}


def test_fifty_delegations_under_one_idempotency_key_are_one_grant(
    broker: BrokerProcess, threads: ThreadPoolExecutor
) -> None:
    app = broker.app()
    for _ in range(ROUNDS):
        delegator, to = app.agent(), app.agent()
        key = secrets.token_hex(8)

        def ask(
            _: int, token: str = delegator["access_token"], to: str = to["agent_id"], key: str = key
        ) -> httpx2.Response:
            return delegate(broker, token, to, key=key)

        answers = at_once(threads, ask)
        assert {answer.status_code for answer in answers} == {200}
        [token] = {answer.json()["access_token"] for answer in answers}
        assert broker.is_valid(token)
        assert len(broker.events(agent_id=delegator["agent_id"], event_type="delegation_created")) == 1
        held = broker.http.get("/v1/agents", params={"agent_id": to["agent_id"]}, headers=broker.admin()).json()
        assert [grant["depth"] for grant in held["agents"]] == [0, 1]


def release(broker: BrokerProcess, claims: dict[str, Any], token: str) -> None:
    assert broker.release(token).status_code == 204


def revoke(level: str, claim: str) -> Callable[[BrokerProcess, dict[str, Any], str], None]:
    def revoke_it(broker: BrokerProcess, claims: dict[str, Any], token: str) -> None:
        body = {"level": level, "target": claims[claim]}
        answer = broker.http.post("/v1/revoke", json=body, headers=broker.admin())
        assert answer.status_code == 200, answer.text

    return revoke_it


ENDS = {
    "release": release,
    "token": revoke("token", "jti"),
    "grant": revoke("grant", "sid"),
    "agent": revoke("agent", "sub"),
    "chain": revoke("chain", "sub"),
}


@pytest.mark.parametrize("whose", ["delegator", "delegate"])
@pytest.mark.parametrize("how", ENDS)
def test_no_delegation_made_while_an_end_is_answered_outlives_it(broker: BrokerProcess, how: str, whose: str) -> None:
    """Ten threads delegate until they are refused; at a random moment (the seed is printed) one of the agents ends."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    app = broker.app()
    with ThreadPoolExecutor(10) as threads:
        for _ in range(ROUNDS):
            delegator, to = app.agent(), app.agent()
            ending = delegator if whose == "delegator" else to
            claims = broker.validate(ending["access_token"])["claims"]
            begun, ended = threading.Semaphore(0), threading.Event()
            race = _Race(broker, delegator["access_token"], to["agent_id"], begun, ended)
            running = [threads.submit(race.run) for _ in range(10)]
            for _ in range(generator.randrange(30)):
                assert begun.acquire(timeout=30)
            ENDS[how](broker, claims, ending["access_token"])
            ended.set()
            refusals = {thread.result() for thread in running}
            assert refusals == {403 if whose == "delegator" else 404}
            assert not any(broker.is_valid(token) for token in race.tokens)
            made = broker.events(agent_id=delegator["agent_id"], event_type="delegation_created")
            assert len(made) == len(race.tokens)


class _Race:
    """Delegating from one agent to another until it is refused."""

    def __init__(
        self, broker: BrokerProcess, token: str, to: str, begun: threading.Semaphore, ended: threading.Event
    ) -> None:
        self.tokens: list[str] = []
        self._broker = broker
        self._token = token
        self._to = to
        self._begun = begun
        self._ended = ended

    def run(self) -> int:
        """Returns the status of the refusal. What is given after the end was answered is dead from the start."""
        while True:
            answer = delegate(self._broker, self._token, self._to)
            if answer.status_code != 200:
                return answer.status_code
            token = str(answer.json()["access_token"])
            self.tokens.append(token)
            self._begun.release()
            if self._ended.is_set():
                assert not self._broker.is_valid(token)
