"""MCP servers of the SDK and of FastMCP over real streamable HTTP, and clients that are agents."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
import uvicorn
from fastmcp import Client as FastMCPClient
from fastmcp import FastMCP
from fastmcp.client.transports import StreamableHttpTransport
from mcp import MCPError
from mcp.server import MCPServer

from agentwrit import AsyncAgentWritApp, AsyncVerifier
from agentwrit.integrations import fastmcp as for_fastmcp
from agentwrit.integrations import mcp as for_mcp
from agentwrit.protected_resource import metadata_url
from agentwrit.testing import LocalBroker

READ = "read:data:customer-{customer_id}"
TOOLS_CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
JSON = {"accept": "application/json, text/event-stream", "content-type": "application/json"}

Make = Callable[..., tuple[Any, Any]]


def read_customer(customer_id: str, detail: str = "name") -> str:
    return f"{detail} of customer {customer_id}"


async def write_order(number: int, copies: int = 1) -> str:
    return f"order {number}"


def sdk_server(broker_url: str, resource: str, **options: Any) -> tuple[Any, Any]:
    guard = for_mcp.AgentWrit(broker_url, resource=resource, **options)
    server = MCPServer("orders", auth=guard.settings(), token_verifier=guard)
    server.tool()(guard.requires(READ)(read_customer))
    server.tool()(guard.requires("write:data:order-{number}", "read:data:copies-{copies}")(write_order))
    return guard.middleware(server.streamable_http_app()), guard


def fastmcp_server(broker_url: str, resource: str, **options: Any) -> tuple[Any, Any]:
    auth = for_fastmcp.AgentWrit(broker_url, resource=resource, **options)
    server = FastMCP("orders", auth=auth)
    server.tool(auth.requires(READ)(read_customer))
    server.tool(auth.requires("write:data:order-{number}", "read:data:copies-{copies}")(write_order))
    return server.http_app(), auth


@pytest.fixture(params=[sdk_server, fastmcp_server], ids=["mcp", "fastmcp"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@contextlib.asynccontextmanager
async def serving(make: Make, broker: LocalBroker, **options: Any) -> AsyncIterator[str]:
    """The URL of a server that is up, which is also the audience of tokens for it."""
    listener = socket.create_server(("127.0.0.1", 0))
    resource = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    app, guard = make(broker.url, resource, **options)
    http = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    running = asyncio.create_task(http.serve([listener]))
    try:
        while not http.started:
            await asyncio.sleep(0)
        yield resource
    finally:
        http.should_exit = True
        await running
        await guard.aclose()


def app_for(broker: LocalBroker, resource: str) -> AsyncAgentWritApp:
    return broker.async_app("read:data:*", "write:data:*", audiences=[resource])


async def ask(resource: str, token: str | None, name: str, arguments: dict[str, Any]) -> httpx2.Response:
    """A call by hand, as it goes over the wire."""
    headers = JSON if token is None else {**JSON, "authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(trust_env=False) as http:
        return await http.post(
            resource, headers=headers, json={**TOOLS_CALL, "params": {"name": name, "arguments": arguments}}
        )


def text(result: Any) -> str:
    return str(result.content[0].text)


def test_an_agent_calls_the_tools_that_its_scope_covers(make: Make) -> None:
    async def run(broker: LocalBroker) -> None:
        async with serving(make, broker) as resource, app_for(broker, resource) as app:
            scope = ["read:data:customer-7", "write:data:*", "read:data:copies-1"]
            async with (
                app.agent_for(task_id="t", scope=scope, audience=resource) as agent,
                for_mcp.connect(resource, agent) as client,
            ):
                assert {tool.name for tool in (await client.list_tools()).tools} == {"read_customer", "write_order"}
                answer = await client.call_tool("read_customer", {"customer_id": "7"})
                assert text(answer) == "name of customer 7"
                assert text(await client.call_tool("write_order", {"number": 9})) == "order 9"
                await agent.renew()
                answer = await client.call_tool("read_customer", {"customer_id": "7", "detail": "address"})
                assert text(answer) == "address of customer 7"

    with LocalBroker() as broker:
        asyncio.run(run(broker))


def test_fastmcps_own_client_is_an_agent_by_its_auth(make: Make) -> None:
    async def run(broker: LocalBroker) -> None:
        async with (
            serving(make, broker) as resource,
            app_for(broker, resource) as app,
            app.agent_for(task_id="t", scope=["read:data:*"], audience=resource) as agent,
            FastMCPClient(StreamableHttpTransport(resource, auth=agent.auth)) as client,
        ):
            assert text(await client.call_tool("read_customer", {"customer_id": "7"})) == "name of customer 7"

    with LocalBroker() as broker:
        asyncio.run(run(broker))


def test_what_a_token_does_not_cover_is_refused_with_all_that_is_needed(make: Make) -> None:
    async def run(broker: LocalBroker) -> None:
        async with serving(make, broker) as resource, app_for(broker, resource) as app:
            agent = await app.create_agent("o", "t", ["read:data:customer-7"], audience=resource)
            for name, arguments, needed in (
                ("read_customer", {"customer_id": "8"}, "read:data:customer-8"),
                ("read_customer", {"customer_id": "*"}, READ),
                ("read_customer", {"customer_id": "7 read:data:*"}, READ),
                ("write_order", {"number": 9}, "write:data:order-9 read:data:copies-1"),
            ):
                refused = await ask(resource, agent.access_token, name, arguments)
                assert refused.status_code == 403
                told = refused.headers["www-authenticate"]
                assert f'error="insufficient_scope", scope="{needed}"' in told.replace(", error_description", "")
                assert metadata_url(resource) in told

    with LocalBroker() as broker:
        asyncio.run(run(broker))


def test_a_model_reads_what_was_needed_and_the_session_goes_on(make: Make) -> None:
    async def run(broker: LocalBroker) -> None:
        async with serving(make, broker) as resource, app_for(broker, resource) as app:
            agent = await app.create_agent("o", "t", ["read:data:customer-7"], audience=resource)
            async with for_mcp.connect(resource, agent) as client:
                with pytest.raises(MCPError, match="needed read:data:customer-8, held read:data:customer-7"):
                    await client.call_tool("read_customer", {"customer_id": "8"})
                assert text(await client.call_tool("read_customer", {"customer_id": "7"})) == "name of customer 7"

    with LocalBroker() as broker:
        asyncio.run(run(broker))


def test_who_has_no_token_that_holds_learns_where_to_get_one(make: Make) -> None:
    async def run(broker: LocalBroker) -> None:
        async with serving(make, broker, issuer="https://broker.example") as resource, app_for(broker, resource) as app:
            agent = await app.create_agent("o", "t", ["read:data:*"], audience=resource)
            other = await app.create_agent("o", "t", ["read:data:*"])
            bound = await app.create_agent("o", "t", ["read:data:*"], audience=resource, bound=True)
            await agent.release()
            for token in (None, "nonsense", agent.access_token, other.access_token, bound.access_token):
                refused = await ask(resource, token, "read_customer", {"customer_id": "7"})
                assert refused.status_code == 401
                assert metadata_url(resource) in refused.headers["www-authenticate"]
            async with httpx2.AsyncClient(trust_env=False) as http:
                described = (await http.get(metadata_url(resource))).json()
            assert described["resource"] == resource
            assert [each.rstrip("/") for each in described["authorization_servers"]] == ["https://broker.example"]

    with LocalBroker() as broker:
        asyncio.run(run(broker))


def test_what_every_request_needs_is_covered_by_a_wildcard(make: Make) -> None:
    async def run(broker: LocalBroker) -> None:
        required = ["read:data:orders"]
        async with serving(make, broker, required_scopes=required) as resource, app_for(broker, resource) as app:
            wide = await app.create_agent("o", "t", ["read:data:*"], audience=resource)
            async with for_mcp.connect(resource, wide) as client:
                assert text(await client.call_tool("read_customer", {"customer_id": "7"})) == "name of customer 7"
            narrow = await app.create_agent("o", "t", ["read:data:customer-7"], audience=resource)
            refused = await ask(resource, narrow.access_token, "read_customer", {"customer_id": "7"})
            assert refused.status_code == 403

    with LocalBroker() as broker:
        asyncio.run(run(broker))


def test_a_session_outlives_many_tokens_of_its_agent(make: Make) -> None:
    async def run(broker: LocalBroker) -> None:
        def on_its_clock(broker_url: str, resource: str) -> tuple[Any, Any]:
            return make(AsyncVerifier(broker_url, audience=resource, clock=broker.clock), resource)

        tokens: set[str] = set()
        async with (
            serving(on_its_clock, broker) as resource,
            app_for(broker, resource) as app,
            app.agent_for(task_id="t", scope=["read:data:*"], audience=resource) as agent,
            for_mcp.connect(resource, agent) as client,
        ):
            for _ in range(6):
                assert text(await client.call_tool("read_customer", {"customer_id": "7"})) == "name of customer 7"
                tokens.add(agent.access_token)
                broker.advance(0.8 * agent.expires_in)
        assert len(tokens) == 6

    with LocalBroker() as broker:
        asyncio.run(run(broker))


def test_a_guard_at_a_function_holds_without_the_middleware() -> None:
    async def run(broker: LocalBroker) -> None:
        def bare(broker_url: str, resource: str) -> tuple[Any, Any]:
            guard = for_mcp.AgentWrit(broker_url, resource=resource)
            server = MCPServer("orders", auth=guard.settings(), token_verifier=guard)
            server.tool()(guard.requires(READ)(read_customer))
            return server.streamable_http_app(), guard

        async with serving(bare, broker) as resource, app_for(broker, resource) as app:
            agent = await app.create_agent("o", "t", ["read:data:customer-7"], audience=resource)
            async with for_mcp.connect(resource, agent) as client:
                assert text(await client.call_tool("read_customer", {"customer_id": "7"})) == "name of customer 7"
                refused = await client.call_tool("read_customer", {"customer_id": "8"})
                assert refused.is_error
                assert "needed read:data:customer-8, held read:data:customer-7" in text(refused)

    with LocalBroker() as broker:
        asyncio.run(run(broker))
