"""Tasks that outlive their tokens many times over, and tasks whose process dies in the middle."""

import asyncio
import math
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from agentwrit import AgentWritApp, AsyncAgentWritApp
from agentwrit.client.life import RENEW_AT, WHOLE_SECOND
from agentwrit.integrations.starlette import Guard
from tests.cli.support import CLEAN
from tests.support import SOAK, BrokerProcess

pytestmark = pytest.mark.alone

TTL = 4
PERIOD = RENEW_AT * (TTL - WHOLE_SECOND)
SECONDS = 5 if SOAK == 1 else 60
CALLERS = 50
SCOPE = ["read:data:1"]


@contextmanager
def service(broker_url: str) -> Iterator[str]:
    """The URL of a resource server that answers 401 to a token that does not hold, at a socket of its own."""
    guard = Guard(broker_url)

    @guard.requires(*SCOPE)
    async def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse("read")

    app = Starlette(routes=[Route("/", read)], lifespan=guard.lifespan)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def is_renewed_once_a_period(broker: BrokerProcess, agent_id: str, lasted: float) -> bool:
    renewals = len(broker.events(event_type="token_renewed", agent_id=agent_id))
    return math.floor(lasted / TTL) <= renewals <= math.ceil(lasted / PERIOD)


def test_fifty_threads_see_no_401_and_renew_once_a_period(broker: BrokerProcess) -> None:
    registered = broker.app("read:data:*")
    app = AgentWritApp(broker.url, registered.client_id, registered.client_secret)

    with app, service(broker.url) as url, app.create_agent("o", "t", SCOPE, max_ttl=TTL) as agent:
        ends_at = time.monotonic() + SECONDS
        client = httpx2.Client(auth=agent.auth, limits=httpx2.Limits(max_connections=CALLERS), timeout=30)

        def call(_: int) -> Counter[int]:
            seen: Counter[int] = Counter()
            while time.monotonic() < ends_at:
                seen[client.get(url).status_code] += 1
            return seen

        began = time.monotonic()
        with client, ThreadPoolExecutor(CALLERS) as pool:
            seen = sum(pool.map(call, range(CALLERS)), Counter[int]())
        assert set(seen) == {200}, seen
        assert seen[200] > CALLERS * SECONDS
        assert is_renewed_once_a_period(broker, agent.agent_id, time.monotonic() - began)


def test_fifty_tasks_see_no_401_and_renew_once_a_period(broker: BrokerProcess) -> None:
    registered = broker.app("read:data:*")

    async def call(client: httpx2.AsyncClient, url: str, ends_at: float) -> Counter[int]:
        seen: Counter[int] = Counter()
        while time.monotonic() < ends_at:
            seen[(await client.get(url)).status_code] += 1
        return seen

    async def task(url: str) -> tuple[Counter[int], str, float]:
        app = AsyncAgentWritApp(broker.url, registered.client_id, registered.client_secret)
        async with app, app.agent_for(task_id="t", scope=SCOPE, max_ttl=TTL) as agent:
            began = time.monotonic()
            async with httpx2.AsyncClient(auth=agent.auth, timeout=30) as client:
                calls = (call(client, url, began + SECONDS) for _ in range(CALLERS))
                seen = sum(await asyncio.gather(*calls), Counter[int]())
            return seen, agent.agent_id, time.monotonic() - began

    with service(broker.url) as url:
        seen, agent_id, lasted = asyncio.run(task(url))
    assert set(seen) == {200}, seen
    assert seen[200] > CALLERS * SECONDS
    assert is_renewed_once_a_period(broker, agent_id, lasted)


IN_THE_MIDDLE = """
import sys
from agentwrit import AgentWritApp

with AgentWritApp.from_env() as app, app.agent_for(task_id="killed", scope=["read:data:1"], max_ttl=2) as agent:
    delegated = agent.delegate(agent.agent_id, ["read:data:1"], ttl=60)
    print(agent.access_token, delegated.access_token, flush=True)
    sys.stdin.read()
"""


def test_a_process_that_is_killed_leaves_nothing_alive_past_its_ttl(broker: BrokerProcess) -> None:
    registered = broker.app("read:data:*")
    environment = {
        **CLEAN,
        "AGENTWRIT_BROKER_URL": broker.url,
        "AGENTWRIT_CLIENT_ID": registered.client_id,
        "AGENTWRIT_CLIENT_SECRET": registered.client_secret,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", IN_THE_MIDDLE], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    tokens = process.stdout.readline().split()
    assert [broker.is_valid(token) for token in tokens] == [True, True]
    process.kill()
    process.communicate()
    ends_at = time.monotonic() + 2
    while any(map(broker.is_valid, tokens)):
        assert time.monotonic() < ends_at, "a token outlived its TTL"
        time.sleep(0.05)
    listed = broker.http.get("/v1/agents", params={"app_id": registered.app_id}, headers=broker.admin())
    assert listed.status_code == 200, listed.text
    assert listed.json()["agents"] == []
