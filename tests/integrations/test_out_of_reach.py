"""Guards whose broker is away, or whose broker's store is, or what stands between: 503 soon, and a word in the log."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import FastAPI, Security
from fastmcp import FastMCP
from mcp.server import MCPServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from agentwrit import AgentClaims
from agentwrit.integrations import fastapi as for_fastapi
from agentwrit.integrations import fastmcp as for_fastmcp
from agentwrit.integrations import mcp as for_mcp
from agentwrit.integrations import starlette as for_starlette
from agentwrit.testing import LocalBroker
from tests.integrations.front import Front, Way, front, page

SERVICE = "http://127.0.0.1:8000"
RESOURCE = f"{SERVICE}/mcp"
READ = "read:data:customer-{customer_id}"
SCOPE = ["read:data:customer-7"]
STALENESS = 0.5
LIMIT = 1.0  # what a guard waits at most, if nothing else is said
SLACK = 1.5  # on a busy machine

Served = tuple[Any, Any]


def fastapi_service(url: str, **options: Any) -> Served:
    guard = for_fastapi.AgentWrit(url, audience=RESOURCE, **options)
    app = FastAPI()

    @app.get("/customers/{customer_id}")
    async def read(customer_id: str, agent: Annotated[AgentClaims, Security(guard, scopes=[READ])]) -> str:
        return customer_id

    return app, guard


def starlette_service(url: str, **options: Any) -> Served:
    guard = for_starlette.Guard(url, audience=RESOURCE, **options)

    @guard.requires(READ)
    async def read(request: Request) -> JSONResponse:
        return JSONResponse(request.path_params["customer_id"])

    return Starlette(routes=[Route("/customers/{customer_id}", read)]), guard


def mcp_service(url: str, **options: Any) -> Served:
    guard = for_mcp.AgentWrit(url, resource=RESOURCE, **options)
    server = MCPServer("orders", auth=guard.settings(), token_verifier=guard)

    @server.tool()
    @guard.requires(READ)
    async def read(customer_id: str) -> str:
        return customer_id

    return guard.middleware(server.streamable_http_app(stateless_http=True, json_response=True)), guard


def fastmcp_service(url: str, **options: Any) -> Served:
    guard = for_fastmcp.AgentWrit(url, resource=RESOURCE, **options)
    server = FastMCP("orders", auth=guard)

    @server.tool
    @guard.requires(READ)
    async def read(customer_id: str) -> str:
        return customer_id

    return server.http_app(stateless_http=True, json_response=True), guard


def message(method: str, **parameters: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}


INITIALIZE = message(
    "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "x", "version": "1"}
)
JSON = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
MCP_REQUESTS: dict[str, tuple[str, str, Any]] = {
    "initialize": ("POST", "/mcp", INITIALIZE),
    "tools/list": ("POST", "/mcp", message("tools/list")),
    "tools/call": ("POST", "/mcp", message("tools/call", name="read", arguments={"customer_id": "7"})),
    "GET": ("GET", "/mcp", None),
    "DELETE": ("DELETE", "/mcp", None),
    "no JSON": ("POST", "/mcp", "no call"),
}
HTTP_REQUESTS: dict[str, tuple[str, str, Any]] = {"GET": ("GET", "/customers/7", None)}
SERVICES: dict[str, tuple[Callable[..., Served], dict[str, tuple[str, str, Any]]]] = {
    "fastapi": (fastapi_service, HTTP_REQUESTS),
    "starlette": (starlette_service, HTTP_REQUESTS),
    "mcp": (mcp_service, MCP_REQUESTS),
    "fastmcp": (fastmcp_service, MCP_REQUESTS),
}
WAYS: dict[str, Way] = {
    "refused": "refused",
    "hung up": "hung up",
    "nginx: 502": page(502, "Bad Gateway"),
    "haproxy: 503": page(503, "Service Unavailable"),
    "apache: 503, later": page(503, "Service Unavailable", "retry-after: 300"),
    "caddy: 502, no body": b"HTTP/1.1 502 Bad Gateway\r\nserver: Caddy\r\ncontent-length: 0\r\n\r\n",
    "504": page(504, "Gateway Time-out"),
    "500": page(500, "Internal Server Error"),
    "429": page(429, "Too Many Requests"),
    "404": page(404, "Not Found"),
    "403": page(403, "Forbidden"),
    "302": page(302, "Found", "location: http://127.0.0.1:9/sign-in"),
    "200": page(200, "Please sign in"),
    "junk": b"junk\r\n\r\n",
}


@contextlib.asynccontextmanager
async def serving(service: Served) -> AsyncIterator[httpx2.AsyncClient]:
    app, guard = service
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with contextlib.AsyncExitStack() as open_ones:
        inner: Any = getattr(app, "_app", app)
        await open_ones.enter_async_context(inner.router.lifespan_context(inner))
        http = await open_ones.enter_async_context(httpx2.AsyncClient(transport=transport, base_url=SERVICE))
        open_ones.push_async_callback(guard.aclose)
        yield http


@pytest.fixture(scope="module")
def broker() -> Any:
    with LocalBroker(log_level="error") as made:
        yield made


@pytest.fixture(scope="module")
def headers(broker: LocalBroker) -> dict[str, str]:
    app = broker.app("read:data:*", audiences=[RESOURCE])
    return {**JSON, **app.create_agent("o", "t", SCOPE, audience=RESOURCE).bearer_header}


@pytest.fixture(scope="module")
def before(broker: LocalBroker) -> Any:
    with front(broker.url) as made:
        yield made


async def ask(http: httpx2.AsyncClient, request: tuple[str, str, Any], headers: dict[str, str]) -> httpx2.Response:
    method, path, body = request
    return await http.request(method, path, json=body, headers=headers, timeout=30)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", SERVICES)
def test_whatever_comes_in_place_of_the_broker_a_guard_answers_503(
    name: str, before: Front, headers: dict[str, str]
) -> None:
    make, requests = SERVICES[name]
    request = requests.get("tools/call", HTTP_REQUESTS["GET"])

    async def main() -> None:
        for way, does in WAYS.items():
            before.go(does)
            async with serving(make(before.url, timeout=0.1)) as http:

                async def is_heard() -> bool:
                    """Within so little time a busy machine does not always get to ask."""
                    answer = await ask(http, request, headers)
                    assert (way, answer.status_code) == (way, 503)  # noqa: B023
                    assert int(answer.headers["retry-after"]) >= 1
                    return bool(before.heard) or does == "refused"  # noqa: B023

                await until(is_heard)

    try:
        asyncio.run(main())
    finally:
        before.go("well")


@pytest.mark.parametrize("name", ["mcp", "fastmcp"])
def test_every_request_of_mcp_is_answered_with_503(name: str, headers: dict[str, str]) -> None:
    make, requests = SERVICES[name]

    async def main() -> None:
        async with serving(make("http://127.0.0.1:9", timeout=0.2)) as http:
            for kind, request in requests.items():
                answer = await ask(http, request, headers)
                assert (kind, answer.status_code, answer.headers.get("retry-after")) == (kind, 503, "1")
            without = await ask(http, requests["initialize"], JSON)
            assert without.status_code == 401  # who has no token learns where to get one

    asyncio.run(main())


@pytest.mark.alone
@pytest.mark.parametrize("name", SERVICES)
def test_a_broker_that_is_refused_costs_one_request_a_second_and_the_others_nothing(
    name: str, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    make, requests = SERVICES[name]
    request = requests.get("tools/call", HTTP_REQUESTS["GET"])

    async def timed(http: httpx2.AsyncClient) -> float:
        began = time.monotonic()
        assert (await ask(http, request, headers)).status_code == 503
        return time.monotonic() - began

    async def main() -> None:
        async with serving(make("http://127.0.0.1:9")) as http:
            assert await timed(http) < LIMIT + SLACK
            took = [await timed(http) for _ in range(20)]
            assert sorted(took)[len(took) // 2] < 0.1
            together = await asyncio.gather(*(timed(http) for _ in range(50)))
            assert max(together) < LIMIT + SLACK
            assert sorted(together)[-2] < LIMIT / 2  # but for the one that asks

    with caplog.at_level(logging.WARNING, "agentwrit"):
        asyncio.run(main())
    assert [record.message for record in caplog.records if "out of reach" in record.message][1:] == []
    assert len(caplog.records) == 1


def test_the_log_says_once_that_the_broker_is_lost_and_once_that_it_is_back(
    before: Front, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    request = HTTP_REQUESTS["GET"]

    async def main() -> None:
        async with serving(fastapi_service(before.url, max_staleness=STALENESS)) as http:

            async def status() -> int:
                return (await ask(http, request, headers)).status_code

            async def is_answered_with(expected: int) -> bool:
                return await status() == expected

            assert await status() == 200
            for _ in range(2):
                before.go("refused")
                await until(lambda: is_answered_with(503))
                for _ in range(20):
                    assert await status() == 503
                before.go("well")
                await until(lambda: is_answered_with(200))
                while len(caplog.records) % 2:  # it is asked before it is followed again
                    await asyncio.sleep(0.02)

    with caplog.at_level(logging.WARNING, "agentwrit"):
        asyncio.run(main())
    said = [record.message for record in caplog.records]
    assert len(said) == 4
    for lost, back in (said[:2], said[2:]):
        assert f"the broker at {before.url} is out of reach" in lost
        assert f"the broker at {before.url} is within reach again" in back
    assert headers["Authorization"].split()[1] not in caplog.text


def test_what_a_guard_is_to_do_when_its_knowledge_is_old_is_a_setting(before: Front, headers: dict[str, str]) -> None:
    async def main() -> None:
        for make, requests in SERVICES.values():
            request = requests.get("tools/call", HTTP_REQUESTS["GET"])
            async with serving(make(before.url, max_staleness=0.0, on_stale="refuse")) as http:
                assert (await ask(http, request, headers)).status_code == 503
            with pytest.raises(ValueError, match="on_stale"):
                make(before.url, on_stale="perhaps")

    asyncio.run(main())


@pytest.mark.alone
def test_a_silent_broker_costs_the_limit_and_no_more(before: Front, headers: dict[str, str]) -> None:
    """From the very first request, and for many at once."""

    async def main() -> None:
        before.go("silent")
        async with serving(fastapi_service(before.url)) as http:
            for count in (1, 60):
                began = time.monotonic()
                answers = await asyncio.gather(*(ask(http, HTTP_REQUESTS["GET"], headers) for _ in range(count)))
                assert {answer.status_code for answer in answers} == {503}
                assert time.monotonic() - began < LIMIT + SLACK

    try:
        asyncio.run(main())
    finally:
        before.go("well")


@pytest.mark.parametrize("name", ["mcp", "fastmcp"])
def test_the_broker_is_asked_once_for_a_request(name: str, before: Front, headers: dict[str, str]) -> None:
    """The check before the server and the server's own see one answer."""
    make, requests = SERVICES[name]
    expected = {"initialize": 401, "tools/call": 401, "GET": 401 if name == "mcp" else 405}
    body = b'{"valid":false,"error":"token is invalid or expired"}'

    async def main() -> None:
        before.go(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body))
        async with serving(make(before.url)) as http:
            for kind, status in expected.items():
                before.heard.clear()
                assert (await ask(http, requests[kind], headers)).status_code == status
                assert sum("/v1/token/validate" in line for line in before.heard) == 1

    try:
        asyncio.run(main())
    finally:
        before.go("well")
