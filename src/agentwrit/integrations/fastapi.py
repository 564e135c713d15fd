"""Agents' tokens at the routes of a FastAPI application.

    auth = AgentWrit("https://broker.example.com", audience="orders")
    app = FastAPI(lifespan=auth.lifespan, responses=RESPONSES)

    @app.get("/customers/{customer_id}")
    async def read_customer(
        customer_id: str, agent: Annotated[AgentClaims, Security(auth, scopes=["read:data:customer-{customer_id}"])]
    ) -> Customer: ...

Scopes are templates, filled from the path's parameters; all of them are needed. The scheme and each operation's scopes
are in the OpenAPI document, and with `RESPONSES` what the guard may answer. In tests, `app.dependency_overrides[auth]`
takes a function that returns the claims.
"""

from functools import cache
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from agentwrit.client.secrecy import discreet
from agentwrit.domain.scope_template import ScopeTemplate
from agentwrit.integrations.starlette import Guard
from agentwrit.models import AgentClaims

RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    401: {"description": "There is no token, or it does not hold."},
    403: {"description": "The token does not cover what is needed."},
    503: {"description": "Whether the token holds cannot be told now."},
}
"""What the guard answers in place of an operation, for `FastAPI(responses=…)`, a router's or a route's."""

# It only describes the scheme: what is not as it should be the guard refuses, in the words of RFC 6750.
_SCHEME = HTTPBearer(
    bearerFormat="JWT", scheme_name="AgentWrit", description="A token of an AgentWrit agent.", auto_error=False
)


class AgentWrit(Guard):
    """A security dependency that gives the claims of the agent that asks (see `Guard`)."""

    @discreet  # `described` holds the token, and shows it
    async def __call__(
        self,
        request: Request,
        needed: SecurityScopes,
        described: Annotated[HTTPAuthorizationCredentials | None, Depends(_SCHEME)],
    ) -> AgentClaims:
        return await self.check(request, [_template(scope) for scope in needed.scopes])


@cache
def _template(scope: str) -> ScopeTemplate:
    return ScopeTemplate(scope)
