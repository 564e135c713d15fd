"""What MCP servers of every kind have in common: tools that need scopes, checked at each call. Loads no MCP library.

A call is checked twice. `CallGuard` sees the request, knows the token that came with it, and can answer with 403 or
503. The guard at the function sees the arguments as the function gets them, however the call came.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, ParamSpec, TypeAlias, TypeVar

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentwrit.client.acceptance import OnStale
from agentwrit.client.async_verifier import AsyncVerifier
from agentwrit.client.requirement import Requirement, guarded
from agentwrit.client.secrecy import Secret
from agentwrit.domain import authorization
from agentwrit.domain.authorization import SeveralCredentials
from agentwrit.domain.scope import scope_is_subset
from agentwrit.domain.target_uri import spellings
from agentwrit.errors import InvalidToken, ScopeDenied, TransportError
from agentwrit.integrations.starlette import RETRY_AFTER_SECONDS, UNTOLD
from agentwrit.models import AgentClaims
from agentwrit.protected_resource import challenge

P = ParamSpec("P")
R = TypeVar("R")

MAX_CALL_BYTES: Final = 4 * 1024 * 1024  # a longer request is left to the function's own guard
REFUSED: Final = -32003  # JSON-RPC 2.0 §5.1: a server's own error


_Call: TypeAlias = tuple[str, Mapping[str, object]]


def verifier_of(
    broker: str | AsyncVerifier, resource: str, *, max_staleness: float, on_stale: OnStale, timeout: float
) -> AsyncVerifier:
    """What checks the tokens of a server that is the resource `resource`: one of its own, for the broker at a URL.

    The rest is as for `AsyncVerifier`.

    Raises:
        AgentWritError: the broker's URL is none.
    """
    if not isinstance(broker, str):
        return broker
    return AsyncVerifier(
        broker, audience=spellings(resource), max_staleness=max_staleness, on_stale=on_stale, timeout=timeout
    )


class _Tool(NamedTuple):
    requirement: Requirement
    defaults: Mapping[str, object]


class Tools:
    """The tools of one server, and what they need. `required`: what every request needs.

    `refusal`: the error that the server's library has for a call that fails as foreseen. `held`: the scopes of whoever
    calls now, None for nobody.
    """

    def __init__(
        self,
        verifier: AsyncVerifier,
        resource: str,
        *,
        required: Sequence[str],
        refusal: Callable[[str], Exception],
        held: Callable[[], Sequence[str] | None],
    ) -> None:
        self.resource = resource
        self._verifier = verifier
        self._required = required
        self._refusal = refusal
        self._held = held
        self._tools: dict[str, _Tool] = {}

    async def claims(self, token: str) -> AgentClaims | None:
        """What a token says; None for one that does not hold.

        Raises:
            TransportError: whether it holds cannot be told now.
        """
        checked = _checked.get()
        if checked is not None and checked.by is self and checked.token == Secret(token):
            return checked.claims
        try:
            return await self._verifier.verify(token)
        except InvalidToken:
            return None

    async def access_token(self, token: str) -> dict[str, Any] | None:
        """The members of an `AccessToken`, as MCP libraries have it; None for a token that does not hold.

        They compare scopes as texts. So of what is required all that the token covers is among its scopes.

        Raises:
            TransportError: whether it holds cannot be told now.
        """
        claims = await self.claims(token)
        if claims is None:
            return None
        covered = [scope for scope in self._required if scope_is_subset([scope], claims.scope)]
        return {
            "token": token,
            "client_id": claims.client_id or claims.sub,
            "scopes": [*claims.scope, *(scope for scope in covered if scope not in claims.scope)],
            "expires_at": claims.exp,
            "resource": self.resource,  # which the verifier has found in `aud`
            "subject": claims.sub,
            "claims": {"iss": claims.iss, "task_id": claims.task_id, "orch_id": claims.orch_id, "sid": claims.sid},
        }

    def requires(self, *scopes: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """A decorator for the functions of tools."""
        requirement = _ToolRequirement(scopes, self._refusal)

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            guard = guarded(function, requirement, self._scopes)
            parameters = inspect.signature(function).parameters.values()
            defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
            self._tools[guard.__name__] = _Tool(Requirement(scopes), defaults)
            return guard

        return decorate

    def check_call(self, name: str, arguments: Mapping[str, object], held: Sequence[str]) -> None:
        """Check a call, as it came, against what is held.

        A value that is missing may have another name in the call: the function's guard sees it in any case.

        Raises:
            ScopeDenied: it is not covered.
        """
        tool = self._tools.get(name)
        if tool is not None:
            values = {**tool.defaults, **arguments}
            if tool.requirement.holes <= values.keys():
                tool.requirement.check(values, held)

    def _scopes(self) -> Sequence[str]:
        held = self._held()
        if held is None:
            raise self._refusal("a token is needed")
        return held


class _ToolRequirement(Requirement):
    """Refuses in the words of the server's library, so that the model reads what is needed."""

    def __init__(self, scopes: Sequence[str], refusal: Callable[[str], Exception]) -> None:
        super().__init__(scopes)
        self._refusal = refusal

    def check(self, values: Mapping[str, object], held: Sequence[str]) -> None:
        try:
            super().check(values, held)
        except ScopeDenied as denied:
            raise self._refusal(str(denied)) from denied


class _Checked(NamedTuple):
    """A token that a request came with, and what it says; None if it does not hold."""

    by: Tools
    token: Secret[str]
    claims: AgentClaims | None


_checked: ContextVar[_Checked | None] = ContextVar("agentwrit_checked", default=None)


class CallGuard:
    """ASGI middleware: answers a call that a token does not cover with 403 and `insufficient_scope`, and any request
    with 503 where it cannot be told whether its token holds.

    Whoever comes without a token that holds is left to the server, which answers with 401. Whoever comes with two is
    answered with 400: the server would take one of them, and this the other. A token is checked once, and the server is
    told what came of it.
    """

    def __init__(self, app: ASGIApp, tools: Tools) -> None:
        self._app = app
        self._tools = tools

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            token = _bearer_token(Headers(scope=scope))
        except SeveralCredentials:
            await self._several(scope, receive, send)
            return
        if token is None:
            await self._app(scope, receive, send)
            return
        try:
            claims = await self._tools.claims(token.reveal())
        except TransportError:
            untold = JSONResponse(_error(UNTOLD), 503, {"retry-after": str(RETRY_AFTER_SECONDS)})
            await untold(scope, receive, send)
            return
        if claims is not None and scope["method"] == "POST":
            body, receive = await _read(receive)
            refusal = self._refusal(_calls(body), claims.scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        before = _checked.set(_Checked(self._tools, token, claims))
        try:
            await self._app(scope, receive, send)
        finally:
            _checked.reset(before)

    async def _several(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = "there is more than one Authorization header"
        told = challenge(self._tools.resource, error="invalid_request")
        await JSONResponse(_error(detail), 400, {"www-authenticate": told})(scope, receive, send)

    def _refusal(self, calls: Sequence[_Call], held: Sequence[str]) -> JSONResponse | None:
        needed: list[str] = []
        for name, arguments in calls:
            try:
                self._tools.check_call(name, arguments, held)
            except ScopeDenied as denied:
                needed += denied.needed
        if not needed:
            return None
        told = challenge(self._tools.resource, error="insufficient_scope", scope=needed)
        return JSONResponse(_error(str(ScopeDenied(needed, list(held)))), 403, {"www-authenticate": told})


def _bearer_token(headers: Headers) -> Secret[str] | None:
    shown = authorization.read(headers.getlist("authorization"))
    return None if shown is None or shown.scheme != "bearer" or not shown.credentials else Secret(shown.credentials)


def _error(message: str) -> dict[str, object]:
    """What clients of MCP understand, and give to the model. It answers the one request that the body held."""
    return {"jsonrpc": "2.0", "id": None, "error": {"code": REFUSED, "message": message}}


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """The body, as far as it is to be looked at, and what gives it to the application after all."""
    messages: list[Message] = []
    body = b""
    while len(body) <= MAX_CALL_BYTES:
        message = await receive()
        messages.append(message)
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    waiting = iter(messages)

    async def again() -> Message:
        return next(waiting, None) or await receive()

    return body, again


def _calls(body: bytes) -> list[_Call]:
    """The calls of tools in a body: names and arguments. What is not understood holds none."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return []
    found: list[_Call] = []
    for each in message if isinstance(message, list) else [message]:
        parameters = each.get("params") if isinstance(each, dict) and each.get("method") == "tools/call" else None
        if isinstance(parameters, dict) and isinstance(parameters.get("name"), str):
            arguments = parameters.get("arguments")
            found.append((parameters["name"], arguments if isinstance(arguments, dict) else {}))
    return found
