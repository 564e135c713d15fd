"""Agents' tokens at the routes of a Starlette application.

    guard = Guard("https://broker.example.com", audience="orders")

    @guard.requires("read:data:customer-{customer_id}")
    async def read_customer(request: Request) -> Response: ...

    app = Starlette(routes=[Route("/customers/{customer_id}", read_customer)], lifespan=guard.lifespan)

What is refused is refused as RFC 6750 §3 has it, by a Starlette HTTPException.
"""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from agentwrit.client.async_verifier import AsyncVerifier
from agentwrit.domain.scope import scope_is_subset
from agentwrit.domain.scope_template import ScopeTemplate, UnfitValue
from agentwrit.errors import InvalidToken, TransportError
from agentwrit.models import AgentClaims

A = TypeVar("A")
Endpoint: TypeAlias = Callable[[Request], Awaitable[A]]

RETRY_AFTER_SECONDS: Final = 1


class Guard:
    """Checks the bearer tokens of requests with an `AsyncVerifier`, which it makes or is given."""

    def __init__(
        self,
        broker: str | AsyncVerifier,
        *,
        audience: str | Iterable[str] | None = None,
        max_staleness: float = 5.0,
    ) -> None:
        """`broker`: its URL, or a verifier to use, and to close by whoever made it.

        Raises:
            AgentWritError: the URL is none.
        """
        self._owns_verifier = isinstance(broker, str)
        self._verifier = (
            AsyncVerifier(broker, audience=audience, max_staleness=max_staleness) if isinstance(broker, str) else broker
        )

    async def check(self, request: Request, needed: Sequence[ScopeTemplate]) -> AgentClaims:
        """Who asks, if its token covers all of `needed`, filled from the path. They are also in `request.state.agent`.

        Raises:
            HTTPException: 401 without a token that holds, 403 if it does not reach that far, 503 where that cannot be
                told, 400 for two tokens at once. Its headers are those that belong to it.
            LookupError: a template has a hole that the path has no value for: a mistake of the route's author.
        """
        token = _bearer(request)
        try:
            claims = await self._verifier.verify(token)
        except InvalidToken:
            raise _refused(401, "the token does not hold", 'error="invalid_token"') from None
        except TransportError:
            retry = {"retry-after": str(RETRY_AFTER_SECONDS)}
            raise HTTPException(503, "whether the token holds cannot be told now", retry) from None
        try:
            scopes = [template.fill(request.path_params) for template in needed]
        except UnfitValue:
            # Nobody can hold that. What the route needs is told as its author wrote it, and what was sent not at all.
            raise _insufficient([template.text for template in needed]) from None
        if not scope_is_subset(scopes, claims.scope):
            raise _insufficient(scopes)
        request.state.agent = claims
        return claims

    def requires(
        self, *scopes: str
    ) -> Callable[[Callable[[Request], Awaitable[A]]], Callable[[Request], Awaitable[A]]]:
        """Let only those through to an endpoint whose tokens cover all these scopes.

        Raises:
            ValueError: one is no template of a scope.
        """
        needed = [ScopeTemplate(scope) for scope in scopes]

        def decorate(endpoint: Endpoint[A]) -> Endpoint[A]:
            @functools.wraps(endpoint)
            async def guarded(request: Request) -> A:
                await self.check(request, needed)
                return await endpoint(request)

            return guarded

        return decorate

    async def aclose(self) -> None:
        """Stop following revocations, unless the verifier is somebody else's."""
        if self._owns_verifier:
            await self._verifier.aclose()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """For an application's `lifespan`: closes at its end."""
        try:
            yield
        finally:
            await self.aclose()


def _bearer(request: Request) -> str:
    """The request's one bearer token (RFC 6750 §2.1)."""
    given = request.headers.getlist("authorization")
    if len(given) > 1:
        raise _refused(400, "there is more than one Authorization header", 'error="invalid_request"')
    scheme, _, token = (given or [""])[0].partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _refused(401, "a bearer token is needed", "")  # RFC 6750 §3.1: no error code where none was shown
    return token.strip()


def _insufficient(scopes: Sequence[str]) -> HTTPException:
    needed = " ".join(scopes)
    return _refused(403, f"needed: {needed}", f'error="insufficient_scope", scope="{needed}"')


def _refused(status: int, detail: str, parameters: str) -> HTTPException:
    return HTTPException(status, detail, {"www-authenticate": f"Bearer {parameters}".strip()})
