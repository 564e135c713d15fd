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
from fastmcp.server import auth as fastmcp_auth
from fastmcp.server.auth import AccessToken, RemoteAuthProvider, TokenVerifier
from fastmcp.server.dependencies import get_access_token
from mcp.server.auth.routes import cors_middleware
from pydantic import AnyHttpUrl
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from agentwrit.client.acceptance import OnStale
from agentwrit.client.async_verifier import AsyncVerifier
from agentwrit.client.secrecy import discreet
from agentwrit.client.verifier import VERIFY_SECONDS
from agentwrit.errors import TransportError
from agentwrit.integrations.mcp_tools import CallGuard, Tools, verifier_of
from agentwrit.protected_resource import WELL_KNOWN, metadata

P = ParamSpec("P")
R = TypeVar("R")

# What FastMCP has since 4.2 for a token that could not be checked; where several providers are asked it tries the next.
_Untold: type[Exception] = getattr(fastmcp_auth, "TokenVerificationError", TransportError)


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
        on_stale: OnStale = "online",
        timeout: float = VERIFY_SECONDS,
    ) -> None:
        """`broker`: its URL, or a verifier to use, and to close by whoever made it.

        `resource`: the server's own URL with the path of its endpoint, which tokens for it have as `aud`; `issuer`: the
        broker's AGENTWRIT_ISSUER, where clients find its metadata, if that is not its URL; `required_scopes`: what
        every request needs; `scopes_supported`: what the metadata tells clients to ask for; `max_staleness`,
        `on_stale`, `timeout`: as for `AsyncVerifier`.

        Raises:
            AgentWritError: the broker's URL is none.
        """
        self._owns_verifier = isinstance(broker, str)
        self._verifier = verifier_of(broker, resource, max_staleness=max_staleness, on_stale=on_stale, timeout=timeout)
        self._tools = Tools(self._verifier, resource, required=required_scopes, refusal=ToolError, held=_held)
        parts, issuer = urlsplit(resource), issuer or self._verifier.broker_url
        self._described = metadata(
            resource,
            authorization_servers=[issuer],
            scopes_supported=scopes_supported or required_scopes,
            dpop_signing_alg_values_supported=(),
        )
        super().__init__(
            _Tokens(self._tools, list(required_scopes)),
            authorization_servers=[AnyHttpUrl(issuer)],
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

    def get_routes(self, mcp_path: str | None = None) -> list[Route]:
        """FastMCP's own, with metadata that names resource and issuer letter by letter, as clients compare them."""
        handle = cors_middleware(self._metadata, ["GET", "OPTIONS"])
        return [
            Route(route.path, endpoint=handle, methods=["GET", "OPTIONS"])
            if route.path.startswith(WELL_KNOWN)
            else route
            for route in super().get_routes(mcp_path)
        ]

    async def _metadata(self, request: Request) -> JSONResponse:
        return JSONResponse(self._described, headers={"cache-control": "public, max-age=3600"})

    def get_middleware(self) -> list[Any]:
        """The check of each request, and FastMCP's own, which would answer 500 where a token cannot be checked."""
        return [Middleware(CallGuard, tools=self._tools), *super().get_middleware()]

    async def aclose(self) -> None:
        """Stop following revocations, unless the verifier is somebody else's."""
        if self._owns_verifier:
            await self._verifier.aclose()


class _Tokens(TokenVerifier):
    def __init__(self, tools: Tools, required_scopes: list[str]) -> None:
        super().__init__(required_scopes=required_scopes)
        self._tools = tools

    @discreet
    async def verify_token(self, token: str) -> AccessToken | None:
        try:
            members = await self._tools.access_token(token)
        except TransportError as error:
            raise _Untold(str(error)) from None
        return None if members is None else AccessToken.model_validate(members)


def _held() -> Sequence[str] | None:
    token = get_access_token()
    return None if token is None else token.scopes
