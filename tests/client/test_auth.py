"""Agents' tokens, shown by every HTTP library, to a service that accepts what the broker does."""

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests

from agentwrit import Agent, AgentWritApp, AgentWritError, AsyncAgent, AsyncAgentWritApp
from tests.client.libraries import ASYNC, BLOCKING, Get, get_httpx2
from tests.client.peer import Handler, Peer, Reply, answer, peer
from tests.support import BrokerProcess, TestApp

SCOPE = ["read:data:1"]


@pytest.fixture
def registered(broker: BrokerProcess) -> TestApp:
    return broker.app()


@pytest.fixture
def agent(registered: TestApp) -> Iterator[Agent]:
    with AgentWritApp(registered.broker.url, registered.client_id, registered.client_secret) as app:
        yield app.create_agent("o", "t", SCOPE)


def guarded(broker: BrokerProcess, refusal: Reply) -> Reply:
    """A service that refuses what the broker refuses."""

    def reply(handler: Handler) -> None:
        token = handler.headers.get("authorization", "").removeprefix("Bearer ")
        (answer(200, b"welcome") if token and broker.is_valid(token) else refusal)(handler)

    return reply


UNAUTHORIZED = answer(401, b"")
REVOKED = answer(403, b"", www_authenticate='Bearer error="invalid_token"')
FORBIDDEN = answer(403, b"", www_authenticate='Bearer error="insufficient_scope"')


class BehindItsBack:
    """An agent's auth whose token is replaced, by somebody else, after it was put into the first request."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def reply(self, rest: Reply) -> Reply:
        def first(handler: Handler) -> None:
            self.agent.renew()
            rest(handler)

        return first


def test_the_token_is_shown(get: Get, agent: Agent, broker: BrokerProcess) -> None:
    with peer(guarded(broker, UNAUTHORIZED)) as service:
        assert get(agent.auth_for, service.url) == (200, b"welcome")
        assert service.seen[0][2]


@pytest.mark.parametrize("refusal", [UNAUTHORIZED, REVOKED], ids=["401", "403"])
def test_a_request_with_a_token_that_was_replaced_is_repeated(
    get: Get, agent: Agent, broker: BrokerProcess, refusal: Reply
) -> None:
    guard = guarded(broker, refusal)
    with peer(BehindItsBack(agent).reply(guard), guard) as service:
        assert get(agent.auth_for, service.url, content=b'{"the":"body"}') == (200, b"welcome")
        assert [body for _, body, _ in service.seen] == [{"the": "body"}] * 2


def test_a_refusal_of_the_current_token_is_told(get: Get, agent: Agent) -> None:
    with peer(UNAUTHORIZED) as service:
        assert get(agent.auth_for, service.url)[0] == 401
        assert len(service.seen) == 1


def test_a_second_refusal_is_told(get: Get, agent: Agent) -> None:
    renewing = BehindItsBack(agent).reply(UNAUTHORIZED)
    with peer(renewing) as service:
        assert get(agent.auth_for, service.url)[0] == 401
        assert len(service.seen) == 2


def test_a_lack_of_scope_is_told(get: Get, agent: Agent) -> None:
    with peer(BehindItsBack(agent).reply(FORBIDDEN)) as service:
        assert get(agent.auth_for, service.url)[0] == 403
        assert len(service.seen) == 1


def test_a_released_agents_requests_are_not_made(get: Get, agent: Agent) -> None:
    agent.release()
    with peer(UNAUTHORIZED) as service:
        with pytest.raises(AgentWritError, match="released"):
            get(agent.auth_for, service.url)
        assert not service.seen


def test_a_redirect_to_another_host_does_not_take_the_token_along(agent: Agent, broker: BrokerProcess) -> None:
    with peer(UNAUTHORIZED) as elsewhere:
        there = elsewhere.url.replace("127.0.0.1", "localhost")
        with peer(answer(307, b"", location=there)) as service:
            visit_all(agent, service)
    assert len(elsewhere.seen) >= 6  # some begin again, where a token has been replaced meanwhile
    for _, _, headers in elsewhere.seen:
        assert not any(re.fullmatch("authorization", name, re.IGNORECASE) for name in headers)
    for _, _, headers in service.seen:
        assert any(value.startswith("Bearer ") for value in headers.values())


def visit_all(agent: Agent, service: Peer) -> None:
    def renew(handler: Handler, reply: Reply = service.script[0]) -> None:
        agent.renew()
        reply(handler)

    service.script = [renew]
    libraries: list[tuple[Any, Any]] = [(httpx2, "httpx2"), (httpx, "httpx")]
    for library, kind in libraries:
        with library.Client(auth=agent.auth_for(kind), follow_redirects=True) as client:
            client.get(service.url)

        async def visit(library: Any = library, kind: Any = kind) -> None:
            async with library.AsyncClient(auth=agent.auth_for(kind), follow_redirects=True) as client:
                await client.get(service.url)

        asyncio.run(visit())
    requests.get(service.url, auth=agent.auth_for("requests"), timeout=10)

    async def visit_with_aiohttp() -> None:
        auth = agent.auth_for("aiohttp")
        async with aiohttp.ClientSession(middlewares=[auth]) as session, session.get(service.url):
            pass

    asyncio.run(visit_with_aiohttp())


def test_a_body_that_is_a_stream_is_sent_once(agent: Agent) -> None:
    def stream() -> Iterator[bytes]:
        yield b"{}"

    with peer(BehindItsBack(agent).reply(UNAUTHORIZED)) as service:
        headers = {"content-length": "2"}
        with httpx2.Client(auth=agent.auth) as client:
            assert client.post(service.url, content=stream(), headers=headers).status_code == 401
        assert len(service.seen) == 1


def test_threads_and_tasks_that_share_an_agent_renew_it_once(agent: Agent, broker: BrokerProcess) -> None:
    with peer(guarded(broker, UNAUTHORIZED)) as service:
        agent._life._renew_at = 0.0  # it is due

        async def tasks() -> None:
            async with httpx2.AsyncClient(auth=agent.auth) as client:
                answers = await asyncio.gather(*(client.get(service.url) for _ in range(20)))
                assert {response.status_code for response in answers} == {200}

        with ThreadPoolExecutor(9) as threads:
            running = threads.submit(asyncio.run, tasks())
            statuses = set(threads.map(lambda _: get_httpx2(agent.auth_for, service.url)[0], range(20)))
            running.result()
        assert statuses == {200}
    assert len(broker.events(event_type="token_renewed", agent_id=agent.agent_id)) == 1


@pytest.mark.parametrize("visit", ASYNC)
def test_an_async_agents_token_is_shown_renewed_and_replaced(visit: Any, registered: TestApp) -> None:
    broker = registered.broker

    async def use(service: Peer) -> None:
        app = AsyncAgentWritApp(broker.url, registered.client_id, registered.client_secret)
        async with app, await app.create_agent("o", "t", SCOPE) as agent:
            await check(service, agent)

    async def check(service: Peer, agent: AsyncAgent) -> None:
        assert (await visit(agent.auth_for, service.url))[0] == 200
        first = agent.access_token
        agent._life._renew_at = 0.0  # it is due
        answers = await asyncio.gather(*(visit(agent.auth_for, service.url) for _ in range(10)))
        assert {status for status, _ in answers} == {200}
        assert agent.access_token != first
        loop, guard = asyncio.get_running_loop(), service.script[0]

        def renew(handler: Handler) -> None:
            asyncio.run_coroutine_threadsafe(agent.renew(), loop).result(10)
            guard(handler)

        service.script = [renew, guard]
        assert (await visit(agent.auth_for, service.url))[0] == 200

    with peer(guarded(broker, UNAUTHORIZED)) as service:
        asyncio.run(use(service))
        assert len(service.seen) == 13


def test_an_async_agents_token_is_not_for_blocking_clients(registered: TestApp) -> None:
    app = AsyncAgentWritApp(registered.broker.url, registered.client_id, registered.client_secret)
    agent = asyncio.run(app.create_agent("o", "t", SCOPE))
    for get in BLOCKING:
        with pytest.raises(AgentWritError, match="asynchronous"):
            get(agent.auth_for, "http://127.0.0.1:9")


def test_there_is_no_auth_for_other_libraries(agent: Agent) -> None:
    with pytest.raises(ValueError, match="aiohttp"):
        agent.auth_for("urllib")  # type: ignore[arg-type]  # the point
