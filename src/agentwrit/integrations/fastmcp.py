"""Agents' tokens at servers that are made with FastMCP.

    auth = AgentWrit("https://broker.example.com", resource="https://orders.example.com/mcp")
    server = FastMCP("orders", auth=auth)

    @server.tool
    @auth.requires("read:data:customer-{customer_id}")
    async def read_customer(customer_id: str) -> str: ...

The server's metadata names the broker (RFC 9728), and a call that a token does not cover is answered with 403 and all
scopes that are needed. Tokens that are bound to a key (RFC 9449) are refused: FastMCP knows bearer tokens alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from fastmcp.exceptions import ToolError
from fastmcp.server.auth import AccessToken, RemoteAuthProvider, TokenVerifier
from fastmcp.server.dependencies import get_access_token
from pydantic import AnyHttpUrl
from starlette.middleware import Middleware

from agentwrit.client.async_verifier import AsyncVerifier
from agentwrit.integrations.mcp_tools import CallGuard, Tools

P = ParamSpec("P")
R = TypeVar("R")


class AgentWrit(RemoteAuthProvider):
    """What `FastMCP(auth=…)` takes, and what the tools of this server require."""

    def __init__(
        self,
        broker: str | AsyncVerifier,
        *,
        resource: str,
        issuer: str | None = None,
        required_scopes: Sequence[str] = (),
        scopes_supported: Sequence[str] = (),
        max_staleness: float = 5.0,
    ) -> None:
        """`broker`: its URL, or a verifier to use, and to close by whoever made it.

        `resource`: the server's own URL with the path of its endpoint, which tokens for it have as `aud`; `issuer`: the
        broker's AGENTWRIT_ISSUER, where clients find its metadata, if that is not its URL; `required_scopes`: what
        every request needs; `scopes_supported`: what the metadata tells clients to ask for.

        Raises:
            AgentWritError: the broker's URL is none.
        """
        self._owns_verifier = isinstance(broker, str)
        self._verifier = (
            AsyncVerifier(broker, audience=resource, max_staleness=max_staleness) if isinstance(broker, str) else broker
        )
        self._tools = Tools(self._verifier, resource, required=required_scopes, refusal=ToolError, held=_held)
        parts = urlsplit(resource)
        super().__init__(
            _Tokens(self._tools, list(required_scopes)),
            authorization_servers=[AnyHttpUrl(issuer or self._verifier.broker_url)],
            base_url=f"{parts.scheme}://{parts.netloc}",
            scopes_supported=list(scopes_supported or required_scopes),
        )

    def requires(self, *scopes: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Let a tool begin only if the caller's token covers all of these, filled from its arguments.

        It stands below the server's own decorator. The tool is known by the function's name.

        Raises:
            ValueError: one is no template of a scope, or the function has no parameter of a hole's name.
        """
        return self._tools.requires(*scopes)

    def get_middleware(self) -> list[Any]:
        """FastMCP's own, and the check of each call."""
        return [*super().get_middleware(), Middleware(CallGuard, tools=self._tools)]

    async def aclose(self) -> None:
        """Stop following revocations, unless the verifier is somebody else's."""
        if self._owns_verifier:
            await self._verifier.aclose()


class _Tokens(TokenVerifier):
    def __init__(self, tools: Tools, required_scopes: list[str]) -> None:
        super().__init__(required_scopes=required_scopes)
        self._tools = tools

    async def verify_token(self, token: str) -> AccessToken | None:
        members = await self._tools.access_token(token)
        return None if members is None else AccessToken.model_validate(members)


def _held() -> Sequence[str] | None:
    token = get_access_token()
    return None if token is None else token.scopes
