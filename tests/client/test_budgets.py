"""No path of the SDK's waits longer than it may, whatever there is in place of a broker: see docs/limits.md."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from agentwrit import (
    Agent,
    AgentWritApp,
    AgentWritError,
    AsyncAgent,
    AsyncAgentWritApp,
    AsyncVerifier,
    TransportError,
    Verifier,
    validate,
)
from agentwrit.broker.config import Config
from agentwrit.broker.server import HEALTH_SECONDS, check_health
from agentwrit.client.acceptance import OnStale
from agentwrit.client.audit_log import AuditLog
from agentwrit.client.life import PATIENCE_SECONDS
from agentwrit.client.operator import OperatorClient
from agentwrit.client.verifier import JOIN_SECONDS, VERIFY_SECONDS
from agentwrit.testing import LocalBroker
from tests.client.peer import Handler, answer, never, peer
from tests.client.test_redirects import LIBRARIES
from tests.integrations.front import Front, Way, front, page

pytestmark = pytest.mark.alone

SCOPE = ["read:data:1"]
SECONDS = 0.5
STALE: tuple[OnStale, ...] = ("online", "refuse")
SLACK = 1.5  # on a busy machine

Tokens = Callable[[int], list[str]]

WAYS: dict[str, Way] = {
    "silent": "silent",
    "refused": "refused",
    "hung up": "hung up",
    "502": page(502, "Bad Gateway"),
    "503": page(503, "Service Unavailable"),
    "503, later": page(503, "Service Unavailable", "retry-after: 300"),
    "half an answer": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
}


@pytest.fixture(scope="module")
def local() -> Iterator[LocalBroker]:
    with LocalBroker(log_level="error") as broker:
        yield broker


@pytest.fixture
def before(local: LocalBroker) -> Iterator[Front]:
    with front(local.url) as made:
        yield made


@pytest.fixture(scope="module")
def credentials(local: LocalBroker) -> tuple[str, str]:
    registered = local.operator.register_app("budgets", ["read:data:*"])
    return registered["client_id"], registered["client_secret"]


@pytest.fixture
def tokens(local: LocalBroker, credentials: tuple[str, str]) -> Tokens:
    """Makes so many agents, each for five minutes, and returns their tokens."""

    def make(count: int) -> list[str]:
        with AgentWritApp(local.url, *credentials, clock=local.clock) as app:
            return [app.create_agent("o", "t", SCOPE).access_token for _ in range(count)]

    return make


def took(call: Callable[[], object]) -> tuple[float, Exception | None]:
    """How long a call took, and how it failed."""
    began = time.monotonic()
    try:
        call()
    except Exception as error:
        return time.monotonic() - began, error
    return time.monotonic() - began, None


async def took_async(call: Callable[[], Awaitable[object]]) -> tuple[float, Exception | None]:
    began = time.monotonic()
    try:
        await call()
    except Exception as error:
        return time.monotonic() - began, error
    return time.monotonic() - began, None


def check(way: str, outcomes: dict[str, tuple[float, Exception | None]]) -> None:
    for name, (seconds, error) in outcomes.items():
        assert isinstance(error, AgentWritError), (way, name, error)
        assert isinstance(error, TransportError) or way.startswith("50"), (way, name, error)
        assert seconds < SECONDS + SLACK, (way, name)


@pytest.mark.parametrize("way", WAYS)
def test_no_call_takes_longer_than_its_timeout(
    way: str, before: Front, credentials: tuple[str, str], tokens: Tokens
) -> None:
    with ExitStack() as opened:
        app = opened.enter_context(AgentWritApp(before.url, *credentials, timeout=SECONDS))
        new = opened.enter_context(AgentWritApp(before.url, *credentials, timeout=SECONDS))  # has not logged in yet
        operator = opened.enter_context(OperatorClient(before.url, "secret", timeout=SECONDS))
        log = opened.enter_context(AuditLog(before.url, timeout=SECONDS))
        verifiers = [Verifier(before.url, timeout=SECONDS, on_stale=on_stale) for on_stale in STALE]
        agents: list[Agent] = [app.take_over(token) for token in tokens(4)]
        token = agents[3].access_token
        took(lambda: app.create_agent("o", "t", SCOPE))  # it has logged in
        before.go(WAYS[way])
        calls: dict[str, Callable[[], object]] = {
            "create": lambda: app.create_agent("o", "t", SCOPE),
            "log in": lambda: new.create_agent("o", "t", SCOPE),
            "validate": lambda: app.validate(token),
            "validate, alone": lambda: validate(before.url, token, timeout=SECONDS),
            "health": app.health,
            "renew": agents[0].renew,
            "release": agents[1].release,
            "delegate": lambda: agents[2].delegate(agents[3].agent_id, SCOPE),
            "operator": lambda: operator.revoke("agent", "spiffe://none"),
            "audit log": log.checkpoint,
            "verify": lambda: verifiers[0].verify(token),
            "verify, or refuse": lambda: verifiers[1].verify(token),
        }
        with ThreadPoolExecutor(len(calls)) as threads:
            outcomes = dict(zip(calls, threads.map(took, calls.values()), strict=True))
        check(way, outcomes)


@pytest.mark.parametrize("way", WAYS)
def test_no_call_on_an_event_loop_takes_longer_either(
    way: str, before: Front, credentials: tuple[str, str], tokens: Tokens
) -> None:
    made = tokens(4)

    async def main() -> None:
        async with (
            AsyncAgentWritApp(before.url, *credentials, timeout=SECONDS) as app,
            AsyncAgentWritApp(before.url, *credentials, timeout=SECONDS) as new,
            AsyncVerifier(before.url, timeout=SECONDS) as asking,
            AsyncVerifier(before.url, timeout=SECONDS, on_stale="refuse") as refusing,
        ):
            agents: list[AsyncAgent] = [app.take_over(token) for token in made]
            token = agents[3].access_token
            await took_async(lambda: app.create_agent("o", "t", SCOPE))  # it has logged in
            before.go(WAYS[way])
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "create": lambda: app.create_agent("o", "t", SCOPE),
                "log in": lambda: new.create_agent("o", "t", SCOPE),
                "validate": lambda: app.validate(token),
                "health": app.health,
                "renew": agents[0].renew,
                "release": agents[1].release,
                "delegate": lambda: agents[2].delegate(agents[3].agent_id, SCOPE),
                "verify": lambda: asking.verify(token),
                "verify, or refuse": lambda: refusing.verify(token),
            }
            check(way, dict(zip(calls, await asyncio.gather(*map(took_async, calls.values())), strict=True)))

    asyncio.run(main())


@pytest.mark.parametrize("way", ["silent", "refused", "502"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_request_with_a_token_that_is_good_yet_waits_a_moment_for_its_renewal(
    library: str, way: str, local: LocalBroker, before: Front, credentials: tuple[str, str], tokens: Tokens
) -> None:
    ask = LIBRARIES[library]
    with AgentWritApp(before.url, *credentials, clock=local.clock) as app, peer(answer(200, {})) as service:
        agent = app.take_over(tokens(1)[0])
        before.go(WAYS[way])
        local.advance(240)  # it is due
        seconds, error = took(lambda: ask(agent, "GET", service.url))
        assert error is None
        assert seconds < PATIENCE_SECONDS + SLACK
        # Nobody waits once more, however slow the machine is.
        assert min(took(lambda: ask(agent, "GET", service.url))[0] for _ in range(5)) < PATIENCE_SECONDS
        shown = {headers["Authorization"] for _, _, headers in service.seen}
        assert shown == {agent.bearer_header["Authorization"]}


@pytest.mark.parametrize("way", ["silent", "refused", "502"])
def test_a_request_with_a_token_that_is_over_waits_for_its_renewal_as_long_as_for_a_call(
    way: str, local: LocalBroker, before: Front, credentials: tuple[str, str], tokens: Tokens
) -> None:
    with AgentWritApp(before.url, *credentials, timeout=SECONDS, clock=local.clock) as app:
        agent = app.take_over(tokens(1)[0])
        before.go(WAYS[way])
        local.advance(360)
        with httpx2.Client(auth=agent.auth, trust_env=False) as http:
            seconds, error = took(lambda: http.get("http://127.0.0.1:1/"))
            assert isinstance(error, TransportError)
            assert seconds < SECONDS + SLACK


def test_a_request_of_an_async_agent_waits_a_moment_too(
    local: LocalBroker, before: Front, credentials: tuple[str, str], tokens: Tokens
) -> None:
    made = tokens(1)

    async def main(url: str) -> None:
        async with AsyncAgentWritApp(before.url, *credentials, clock=local.clock) as app:
            agent = app.take_over(made[0])
            before.go("silent")
            local.advance(240)
            async with httpx2.AsyncClient(auth=agent.auth, trust_env=False) as http:
                many = await asyncio.gather(*(took_async(lambda: http.get(url)) for _ in range(40)))
                assert [error for _, error in many if error is not None] == []
                assert max(seconds for seconds, _ in many) < PATIENCE_SECONDS + SLACK
                seconds, error = await took_async(lambda: http.get(url))
                assert (error, seconds < PATIENCE_SECONDS) == (None, True)  # it is under way, and nobody waits any more
            before.go("refused")  # what hangs is cut off

    with peer(answer(200, {})) as service:
        asyncio.run(main(service.url))


class Late:
    """A broker whose answer to a renewal comes when it is let."""

    def __init__(self) -> None:
        self.is_let = threading.Event()

    def __call__(self, handler: Handler) -> None:
        assert self.is_let.wait(30)
        answer(200, {"access_token": "a-successor", "expires_in": 300})(handler)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_renewed_beside_the_requests_is_shown_by_the_next(
    local: LocalBroker, credentials: tuple[str, str], tokens: Tokens
) -> None:
    late, made = Late(), tokens(1)

    async def asynchronous(url: str, service: str) -> None:
        async with AsyncAgentWritApp(url, *credentials, clock=local.clock) as app:
            agent = app.take_over(made[0])
            local.advance(240)
            async with httpx2.AsyncClient(auth=agent.auth, trust_env=False) as http:
                assert (await http.get(service)).status_code == 200
                late.is_let.set()
                await asyncio.to_thread(until, lambda: agent.access_token == "a-successor")
                assert (await http.get(service)).status_code == 200

    with peer(late) as broker, peer(answer(200, {})) as service:
        asyncio.run(asynchronous(broker.url, service.url))
        late.is_let.clear()
        made += tokens(1)
        with AgentWritApp(broker.url, *credentials, clock=local.clock) as app:
            agent = app.take_over(made[1])
            local.advance(240)
            with httpx2.Client(auth=agent.auth, trust_env=False) as http:
                assert http.get(service.url).status_code == 200
                late.is_let.set()
                until(lambda: agent.access_token == "a-successor")
                assert http.get(service.url).status_code == 200
        shown = [headers["Authorization"] for _, _, headers in service.seen]
        assert shown == [f"Bearer {made[0]}", "Bearer a-successor", f"Bearer {made[1]}", "Bearer a-successor"]
        assert len(broker.seen) == 2


def slow(handler: Handler) -> None:
    """The keys, later than a check may take."""
    time.sleep(VERIFY_SECONDS * 1.5)
    answer(200, {"keys": []})(handler)


def test_the_first_check_waits_longer_for_a_broker_that_answers_slowly(tokens: Tokens) -> None:
    """It has said something in time, and what is missing may take a while; a broker that says nothing may not."""
    token = tokens(1)[0]
    with peer(answer(200, {"keys": []}), slow) as broker:
        seconds, error = took(lambda: Verifier(broker.url).verify(token))
        assert isinstance(error, AgentWritError)
        assert VERIFY_SECONDS < seconds < 3 * VERIFY_SECONDS + SLACK
    with peer(never) as broker:
        verifier = Verifier(broker.url)
        seconds, error = took(lambda: verifier.verify(token))
        assert isinstance(error, TransportError)
        assert seconds < VERIFY_SECONDS + SLACK
        seconds, error = took(lambda: verifier.verify(token))
        assert isinstance(error, TransportError)
        assert seconds < VERIFY_SECONDS / 2  # nobody waits for what another one has just waited for


def test_a_first_check_that_waited_has_less_time_to_ask(tokens: Tokens) -> None:
    """What a proxy says late, and then nothing: a check has one limit for all that it waits for."""
    token, timeout = tokens(1)[0], 2.0

    def late(handler: Handler) -> None:
        time.sleep(timeout * 0.9)
        answer(502, b"<html>")(handler)

    async def main(url: str) -> tuple[float, Exception | None]:
        async with AsyncVerifier(url, timeout=timeout) as verifier:
            return await took_async(lambda: verifier.verify(token))

    with peer(late, never) as broker:
        outcomes = [took(lambda: Verifier(broker.url, timeout=timeout).verify(token))]
    with peer(late, never) as broker:
        outcomes.append(asyncio.run(main(broker.url)))
    for seconds, error in outcomes:
        assert isinstance(error, TransportError)
        assert seconds < timeout + SLACK


def test_closing_waits_for_no_broker(before: Front) -> None:
    def use(verifier: Any) -> None:
        took(lambda: verifier.verify("none"))

    before.go("silent")
    verifier = Verifier(before.url, timeout=SECONDS)
    use(verifier)
    assert took(verifier.close)[0] < JOIN_SECONDS + SLACK

    async def main() -> float:
        verifier = AsyncVerifier(before.url, timeout=SECONDS)
        await took_async(lambda: verifier.verify("none"))
        return (await took_async(verifier.aclose))[0]

    assert asyncio.run(main()) < JOIN_SECONDS + SLACK


def test_the_health_check_waits_for_three_seconds() -> None:
    with peer(never) as broker:
        seconds, error = took(lambda: check_health(Config(port=broker.server_address[1])))
    assert error is None
    assert seconds < HEALTH_SECONDS + SLACK
