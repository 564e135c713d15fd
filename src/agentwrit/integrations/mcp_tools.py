"""What MCP servers of every kind have in common: tools that need scopes, checked at each call. Loads no MCP library.

A call is checked twice. `CallGuard` sees the request, knows the token that came with it, and can answer with 403. The
guard at the function sees the arguments as the function gets them, however the call came.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentwrit.client.async_verifier import AsyncVerifier
from agentwrit.client.requirement import Requirement, guarded
from agentwrit.domain.scope import scope_is_subset
from agentwrit.errors import InvalidToken, ScopeDenied, TransportError
from agentwrit.models import AgentClaims
from agentwrit.protected_resource import challenge

P = ParamSpec("P")
R = TypeVar("R")

MAX_CALL_BYTES: Final = 4 * 1024 * 1024  # a longer request is left to the function's own guard
RETRY_AFTER_SECONDS: Final = 1
REFUSED: Final = -32003  # JSON-RPC 2.0 §5.1: a server's own error


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


class CallGuard:
    """ASGI middleware: answers a call that a token does not cover with 403 and `insufficient_scope`.

    Whoever comes without a token that holds is left to the server, which answers with 401.
    """

    def __init__(self, app: ASGIApp, tools: Tools) -> None:
        self._app = app
        self._tools = tools

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            body, receive = await _read(receive)
            refusal = await self._refusal(Headers(scope=scope), body)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refusal(self, headers: Headers, body: bytes) -> JSONResponse | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        calls = _calls(body)
        if not calls or scheme.lower() != "bearer":
            return None
        try:
            claims = await self._tools.claims(token.strip())
        except TransportError:
            detail = "whether the token holds cannot be told now"
            return JSONResponse(_error(detail), 503, {"retry-after": str(RETRY_AFTER_SECONDS)})
        if claims is None:
            return None
        needed: list[str] = []
        for name, arguments in calls:
            try:
                self._tools.check_call(name, arguments, claims.scope)
            except ScopeDenied as denied:
                needed += denied.needed
        if not needed:
            return None
        told = challenge(self._tools.resource, error="insufficient_scope", scope=needed)
        return JSONResponse(_error(str(ScopeDenied(needed, claims.scope))), 403, {"www-authenticate": told})


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


def _calls(body: bytes) -> list[tuple[str, Mapping[str, object]]]:
    """The calls of tools in a body: names and arguments. What is not understood holds none."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return []
    found: list[tuple[str, Mapping[str, object]]] = []
    for each in message if isinstance(message, list) else [message]:
        parameters = each.get("params") if isinstance(each, dict) and each.get("method") == "tools/call" else None
        if isinstance(parameters, dict) and isinstance(parameters.get("name"), str):
            arguments = parameters.get("arguments")
            found.append((parameters["name"], arguments if isinstance(arguments, dict) else {}))
    return found
