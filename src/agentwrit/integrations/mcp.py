"""Agents' tokens at MCP servers and in MCP clients, with the `mcp` SDK.

A server takes the tokens of agents, and each tool says which scope its arguments need:

    guard = AgentWrit("https://broker.example.com", resource="https://orders.example.com/mcp")
    server = MCPServer("orders", auth=guard.settings(), token_verifier=guard)

    @server.tool()
    @guard.requires("read:data:customer-{customer_id}")
    async def read_customer(customer_id: str) -> str: ...

    app = guard.middleware(server.streamable_http_app())

A client is an agent, whose token it shows and renews:

    async with connect("https://orders.example.com/mcp", agent) as client:
        await client.call_tool("read_customer", {"customer_id": "7"})

Tokens that are bound to a key (RFC 9449) are refused: the SDK's servers know bearer tokens alone.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver.exceptions import ToolError

from agentwrit.client.acceptance import OnStale
from agentwrit.client.async_verifier import AsyncVerifier
from agentwrit.client.current import AnyAgent
from agentwrit.client.secrecy import discreet
from agentwrit.client.verifier import VERIFY_SECONDS
from agentwrit.integrations.mcp_tools import CallGuard, Tools, verifier_of

P = ParamSpec("P")
R = TypeVar("R")

# As the SDK's own: an answer may be a stream, with long silences.
TIMEOUT = httpx2.Timeout(30, read=300)


class AgentWrit:
    """The SDK's `TokenVerifier` for agents' tokens, and what the tools of one server require."""

    def __init__(
        self,
        broker: str | AsyncVerifier,
        *,
        resource: str,
        issuer: str | None = None,
        required_scopes: Sequence[str] = (),
        max_staleness: float = 5.0,
        on_stale: OnStale = "online",
        timeout: float = VERIFY_SECONDS,
    ) -> None:
        """`broker`: its URL, or a verifier to use, and to close by whoever made it.

        `resource`: the server's own URL, which tokens for it have as `aud`; `issuer`: the broker's AGENTWRIT_ISSUER,
        where clients find its metadata, if that is not its URL; `required_scopes`: what every request needs;
        `max_staleness`, `on_stale`, `timeout`: as for `AsyncVerifier`.

        Raises:
            AgentWritError: the broker's URL is none.
        """
        self._owns_verifier = isinstance(broker, str)
        self._verifier = verifier_of(broker, resource, max_staleness=max_staleness, on_stale=on_stale, timeout=timeout)
        self._resource = resource
        self._issuer = issuer or self._verifier.broker_url
        self._required = list(required_scopes)
        self._tools = Tools(self._verifier, resource, required=required_scopes, refusal=ToolError, held=_held)

    def settings(self) -> AuthSettings:
        """What `MCPServer(auth=…)` takes. The server then serves its metadata (RFC 9728), which names the broker."""
        # As texts: a URL that was parsed elsewhere has a slash at its end, and issuers are compared letter by letter.
        urls: dict[str, Any] = {"issuer_url": self._issuer, "resource_server_url": self._resource}
        return AuthSettings(**urls, required_scopes=self._required, validate_token_resource=True)

    @discreet
    async def verify_token(self, token: str) -> AccessToken | None:
        """What a token says, for the SDK: None for one that does not hold.

        Raises:
            TransportError: whether it holds cannot be told now.
        """
        members = await self._tools.access_token(token)
        return None if members is None else AccessToken.model_validate(members)

    def requires(self, *scopes: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Let a tool begin only if the caller's token covers all of these, filled from its arguments.

        It stands below the server's own decorator. The tool is known by the function's name.

        Raises:
            ValueError: one is no template of a scope, or the function has no parameter of a hole's name.
        """
        return self._tools.requires(*scopes)

    def middleware(self, app: Any) -> CallGuard:
        """The server's ASGI application behind a check of each request.

        What a token does not cover is answered with 403 and all scopes that are needed (RFC 6750 §3.1), from which a
        client learns what to ask for; where it cannot be told whether a token holds the answer is 503. Without this the
        SDK answers such a request with 500.
        """
        return CallGuard(app, self._tools)

    async def aclose(self) -> None:
        """Stop following revocations, unless the verifier is somebody else's."""
        if self._owns_verifier:
            await self._verifier.aclose()


@contextlib.asynccontextmanager
async def connect(url: str, agent: AnyAgent, **options: Any) -> AsyncIterator[Client]:
    """A client of the MCP server at `url` that acts as an agent: its token is renewed in time, and shown each time.

    `options`: those of `mcp.Client`. A call raises what `agent.auth` raises when the agent's token is over.
    """
    async with (
        httpx2.AsyncClient(auth=agent.auth, timeout=TIMEOUT) as http,
        Client(streamable_http_client(url, http_client=http), **options) as client,
    ):
        yield client


def _held() -> Sequence[str] | None:
    token = get_access_token()
    return None if token is None else token.scopes
