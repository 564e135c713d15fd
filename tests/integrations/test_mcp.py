"""MCP servers of the SDK and of FastMCP over real streamable HTTP, and clients that are agents."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import httpx2
import pytest
import uvicorn
from fastmcp import Client as FastMCPClient
from fastmcp import FastMCP
from fastmcp.client.transports import StreamableHttpTransport
from mcp import Client, MCPError
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.server import MCPServer
from mcp.shared.auth import OAuthToken
from starlette.requests import Request
from starlette.responses import JSONResponse

from agentwrit import AsyncAgentWritApp, AsyncVerifier
from agentwrit.integrations import fastmcp as for_fastmcp
from agentwrit.integrations import mcp as for_mcp
from agentwrit.integrations.mcp_tools import MAX_CALL_BYTES
from agentwrit.protected_resource import metadata_url
from agentwrit.testing import LocalBroker
from tests.e2e.test_settings import free_port

READ = "read:data:customer-{customer_id}"
TOOLS_CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
JSON = {"accept": "application/json, text/event-stream", "content-type": "application/json"}

Make = Callable[..., tuple[Any, Any]]


def read_customer(customer_id: str, detail: str = "name") -> str:
    return f"{detail} of customer {customer_id}"


async def write_order(number: int, copies: int = 1) -> str:
    return f"order {number}"


def sdk_server(broker_url: str, resource: str, *, path: str = "/mcp", **options: Any) -> tuple[Any, Any]:
    guard = for_mcp.AgentWrit(broker_url, resource=resource, **options)
    server = MCPServer("orders", auth=guard.settings(), token_verifier=guard)
    server.tool()(guard.requires(READ)(read_customer))
    server.tool()(guard.requires("write:data:order-{number}", "read:data:copies-{copies}")(write_order))
    return guard.middleware(server.streamable_http_app(streamable_http_path=path)), guard


def fastmcp_server(broker_url: str, resource: str, *, path: str = "/mcp", **options: Any) -> tuple[Any, Any]:
    auth = for_fastmcp.AgentWrit(broker_url, resource=resource, **options)
    server = FastMCP("orders", auth=auth)
    server.tool(auth.requires(READ)(read_customer))
    server.tool(auth.requires("write:data:order-{number}", "read:data:copies-{copies}")(write_order))
    return server.http_app(path=path), auth


@pytest.fixture(params=[sdk_server, fastmcp_server], ids=["mcp", "fastmcp"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@contextlib.asynccontextmanager
async def serving(make: Make, broker: LocalBroker, *, path: str = "/mcp", **options: Any) -> AsyncIterator[str]:
    """The URL of a server that is up, which is also the audience of tokens for it."""
    listener = socket.create_server(("127.0.0.1", 0))
    resource = f"http://127.0.0.1:{listener.getsockname()[1]}{path}"
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


def test_two_authorization_headers_are_answered_with_400_whichever_is_right(make: Make) -> None:
    async def run(broker: LocalBroker) -> None:
        async with serving(make, broker) as resource, app_for(broker, resource) as app:
            wide = await app.create_agent("o", "t", ["read:data:*"], audience=resource)
            narrow = await app.create_agent("o", "t", ["read:data:customer-7"], audience=resource)
            shown = [("authorization", f"Bearer {agent.access_token}") for agent in (wide, narrow)]
            call = {**TOOLS_CALL, "params": {"name": "read_customer", "arguments": {"customer_id": "8"}}}
            async with httpx2.AsyncClient(trust_env=False) as http:
                for both in (shown, shown[::-1], [shown[0], ("Authorization", "Basic eDp5")]):
                    for method in ("POST", "GET", "DELETE"):
                        refused = await http.request(method, resource, headers=[*JSON.items(), *both], json=call)
                        assert refused.status_code == 400
                        assert 'error="invalid_request"' in refused.headers["www-authenticate"]

    with LocalBroker() as broker:
        asyncio.run(run(broker))


class Storage:
    """Where the SDK's OAuth client keeps what it gets."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> None:
        return None

    async def set_client_info(self, client_info: Any) -> None:
        raise AssertionError("it is registered already")


@pytest.mark.parametrize("slash", ["", "/"], ids=["issuer", "issuer with a slash"])
@pytest.mark.parametrize("path", ["/mcp", ""], ids=["path", "no path"])
def test_a_client_that_knows_oauth_alone_gets_its_token_by_itself(make: Make, path: str, slash: str) -> None:
    async def run(broker: LocalBroker) -> None:
        issuer = broker.url + slash

        def at(broker_url: str, resource: str) -> tuple[Any, Any]:
            return make(broker_url, resource, path=path or "/", issuer=issuer)

        async with serving(at, broker, path=path) as resource:
            app = broker.operator.register_app("shop", ["read:data:customer-7"], audiences=[resource])
            login = {"client_id": app["client_id"], "client_secret": app["client_secret"]}
            oauth = ClientCredentialsOAuthProvider(resource, Storage(), issuer=issuer, **login)
            async with (
                httpx2.AsyncClient(auth=oauth, trust_env=False) as http,
                Client(streamable_http_client(resource, http_client=http)) as client,
            ):
                assert {tool.name for tool in (await client.list_tools()).tools} == {"read_customer", "write_order"}
                answer = await client.call_tool("read_customer", {"customer_id": "7"})
                assert text(answer) == "name of customer 7"
                described = (await http.get(metadata_url(resource), auth=None)).json()
                metadata = (await http.get(f"{broker.url}/.well-known/oauth-authorization-server", auth=None)).json()
            assert (described["resource"], described["authorization_servers"]) == (resource, [metadata["issuer"]])

    port = free_port()
    with LocalBroker(
        port=port, issuer=f"http://127.0.0.1:{port}{slash}", public_url=f"http://127.0.0.1:{port}"
    ) as broker:
        asyncio.run(run(broker))


def test_an_agents_token_for_a_resource_without_a_path_holds_with_a_slash_and_without(make: Make) -> None:
    async def run(broker: LocalBroker) -> None:
        async with serving(partial(make, path="/"), broker, path="") as resource:
            app = broker.async_app("read:data:*", audiences=[resource, f"{resource}/", f"{resource}/x"])
            for audience, status in ((resource, 200), (f"{resource}/", 200), (f"{resource}/x", 401)):
                agent = await app.create_agent("o", "t", ["read:data:*"], audience=audience)
                answer = await ask(resource, agent.access_token, "read_customer", {"customer_id": "7"})
                assert (answer.status_code == 401) == (status == 401), (audience, answer.text)
            await app.aclose()

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


def test_a_server_s_library_learns_whose_token_it_is_and_when_it_ends(make: Make) -> None:
    async def run(broker: LocalBroker) -> None:
        resource = "http://127.0.0.1:8000/mcp"
        _, guard = make(broker.url, resource)
        async with app_for(broker, resource) as app:
            agent = await app.create_agent("o", "t", ["read:data:customer-7"], audience=resource, max_ttl=90)
            claims = (await app.validate(agent.access_token)).claims
            known = await guard.verify_token(agent.access_token)
            assert claims is not None
            assert known is not None
            assert (known.token, known.client_id, known.scopes) == (agent.access_token, app.client_id, claims.scope)
            assert known.expires_at == claims.exp
            await agent.release()
            await guard.aclose()
            assert await guard.verify_token(agent.access_token) is None
            await guard.aclose()

    with LocalBroker() as broker:
        asyncio.run(run(broker))


def test_what_was_found_of_a_request_s_token_is_said_of_no_other_and_by_no_other_guard() -> None:
    async def run(broker: LocalBroker) -> None:
        resource, known = "http://127.0.0.1:8000/mcp", []
        guard, elsewhere = (for_mcp.AgentWrit(broker.url, resource=url) for url in (resource, f"{resource}/elsewhere"))

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            known.append(await guard.verify_token(first.access_token))
            known.append(await guard.verify_token(second.access_token))
            known.append(await elsewhere.verify_token(first.access_token))
            await JSONResponse(None)(scope, receive, send)

        transport = httpx2.ASGITransport(app=guard.middleware(inner))
        async with app_for(broker, resource) as app, httpx2.AsyncClient(transport=transport) as http:
            first, second = [await app.create_agent("o", "t", ["read:data:1"], audience=resource) for _ in range(2)]
            assert (await http.get(resource, headers=first.bearer_header)).status_code == 200
        assert [each.subject if each is not None else None for each in known] == [
            first.agent_id,
            second.agent_id,
            None,
        ]
        await guard.aclose()
        await elsewhere.aclose()

    with LocalBroker() as broker:
        asyncio.run(run(broker))


def test_a_call_is_checked_however_its_body_comes_and_the_server_gets_all_of_it() -> None:
    call = json.dumps({**TOOLS_CALL, "params": {"name": "read_customer", "arguments": {"customer_id": "8"}}}).encode()
    bodies = {
        call: 403,
        b"[" + call + b"]": 403,
        b" " * (MAX_CALL_BYTES - len(call)) + call: 403,
        b" " * MAX_CALL_BYTES + call: 200,  # that long it is left to the guard at the function
        b"[" * 100_000: 200,  # it is no call, and the server's to answer
        b"": 200,
    }

    async def run(broker: LocalBroker) -> None:
        resource = "http://127.0.0.1:8000/mcp"
        guard = for_mcp.AgentWrit(broker.url, resource=resource)
        guard.requires(READ)(read_customer)
        got: list[bytes] = []

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            got.append(await Request(scope, receive).body())
            await JSONResponse(None)(scope, receive, send)

        async def pieces(body: bytes) -> AsyncIterator[bytes]:
            step = max(7, len(body) // 50)
            for at in range(0, len(body), step):
                yield body[at : at + step]

        transport = httpx2.ASGITransport(app=guard.middleware(inner))
        async with app_for(broker, resource) as app, httpx2.AsyncClient(transport=transport) as http:
            agent = await app.create_agent("o", "t", ["read:data:customer-7"], audience=resource)
            for body, status in bodies.items():
                answer = await http.post(resource, content=pieces(body), headers=agent.bearer_header)
                assert (body[-200:], answer.status_code) == (body[-200:], status)
        assert got == [body for body, status in bodies.items() if status == 200]
        await guard.aclose()

    with LocalBroker() as broker:
        asyncio.run(run(broker))


def test_a_call_without_an_argument_that_a_scope_needs_is_answered_by_the_server(make: Make) -> None:
    async def run(broker: LocalBroker) -> None:
        async with serving(make, broker) as resource, app_for(broker, resource) as app:
            agent = await app.create_agent("o", "t", ["read:data:customer-7"], audience=resource)
            async with for_mcp.connect(resource, agent) as client:
                refused = await client.call_tool("read_customer", {})
                assert refused.is_error
                assert "customer_id" in text(refused)

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
