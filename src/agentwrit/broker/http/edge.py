"""The outermost layer: every request gets its id, its headers, its log line and its count, and every error its form."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentwrit.broker.config import Network
from agentwrit.broker.http import problems
from agentwrit.broker.http.exchange import BODY_UNREAD, Answer, Exchange, caller_of
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services.context import Caller
from agentwrit.domain.errors import InternalError, MethodNotAllowed, NotFound, Refusal

Handler = Callable[[Exchange], Awaitable[Answer]]

UNKNOWN_ROUTE: Final = "unknown"

_CALLER: Final = "agentwrit.caller"
_ROUTE: Final = "agentwrit.route"

_SECURITY_HEADERS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]
_NO_STORE: Final = (b"cache-control", b"no-store")
_CLOSE: Final = (b"connection", b"close")
_STRICT_TRANSPORT: Final = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")

STALLED_SECONDS: Final = 10  # how long a piece of a stream may wait for a client that does not read

# Asked many times a second by machines; their counts say what their lines would.
_QUIET_ROUTES: Final = frozenset(
    {"/v1/health", "/livez", "/readyz", "/v1/metrics", "/v1/token/validate", "/oauth2/introspect"}
)

log = structlog.get_logger("agentwrit.http")


class Resource:
    """What stands at one path: a handler for each method."""

    def __init__(self, path: str, handlers: Mapping[str, Handler]) -> None:
        self.path = path
        self._handlers = dict(handlers)
        if "GET" in self._handlers:
            self._handlers.setdefault("HEAD", self._handlers["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_ROUTE] = self.path
        handler = self._handlers.get(scope["method"])
        if handler is None:
            raise MethodNotAllowed(frozenset(self._handlers))
        caller: Caller = scope[_CALLER]
        answer = await handler(Exchange(scope, receive, caller.at(f"{scope['method']} {self.path}")))
        if answer.stream is None:
            await _send(send, answer)
        else:
            await _stream(receive, send, answer, answer.stream)


def create_router(resources: Sequence[Resource]) -> ASGIApp:
    """The resources by path."""

    async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFound("there is nothing at this path")

    routes: list[BaseRoute] = [Route(resource.path, resource) for resource in resources]
    return Router(routes, redirect_slashes=False, default=not_found)


class Edge:
    """An ASGI application around the router."""

    def __init__(self, router: ASGIApp, metrics: Metrics, *, trusted_proxies: Sequence[Network], is_tls: bool) -> None:
        self._router = router
        self._metrics = metrics
        self._trusted_proxies = trusted_proxies
        self._headers = [*_SECURITY_HEADERS, _STRICT_TRANSPORT] if is_tls else _SECURITY_HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = time.perf_counter()
        caller = scope[_CALLER] = caller_of(scope, UNKNOWN_ROUTE, self._trusted_proxies)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = self._complete(message["headers"], scope, caller)
            await send(message)

        try:
            await self._router(scope, receive, send_with_headers)
        except Refusal as refusal:
            await _send(send_with_headers, _problem(refusal, scope, caller))
        except Exception:  # a defect: the log gets the trace, the caller gets its number
            log.exception("internal error", **_fields(scope, caller))
            if status:
                raise  # the answer is under way and cannot be taken back: the server closes the connection
            error = InternalError("the broker failed; its log has the details under this request id")
            await _send(send_with_headers, _problem(error, scope, caller))
        finally:
            self._account(scope, caller, status, time.perf_counter() - started_at)

    def _complete(
        self, headers: Sequence[tuple[bytes, bytes]], scope: Scope, caller: Caller
    ) -> list[tuple[bytes, bytes]]:
        complete = [*headers, *self._headers, (b"x-request-id", caller.request_id.encode("ascii"))]
        if not any(name == b"cache-control" for name, _ in headers):
            complete.append(_NO_STORE)
        if scope.get(BODY_UNREAD, False):
            complete.append(_CLOSE)
        return complete

    def _account(self, scope: Scope, caller: Caller, status: int, seconds: float) -> None:
        route = scope.get(_ROUTE, UNKNOWN_ROUTE)
        method = scope["method"] if route != UNKNOWN_ROUTE and status != 405 else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.latency.labels(route).observe(seconds)
        if route in _QUIET_ROUTES and status < 400:
            return
        log.info(
            "request", **_fields(scope, caller), status=status, address=caller.address, ms=round(seconds * 1000, 3)
        )


def _fields(scope: Scope, caller: Caller) -> dict[str, str]:
    """What a log line says of a request: the route's template and never the path, which may hold anything."""
    fields = {
        "method": scope["method"],
        "route": scope.get(_ROUTE, UNKNOWN_ROUTE),
        "request_id": caller.request_id,
    }
    if caller.trace_id:
        fields["trace_id"] = caller.trace_id
    return fields


def _problem(refusal: Refusal, scope: Scope, caller: Caller) -> Answer:
    return Answer(
        body=problems.body(refusal, path=scope["path"], request_id=caller.request_id),
        status=problems.STATUS[refusal.error_code].value,
        media_type=problems.MEDIA_TYPE,
        headers=problems.headers(refusal),
    )


async def _send(send: Send, answer: Answer) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    if answer.status not in (204, 304):  # RFC 9110 §15.3.5, §15.4.5: no content, and no word on it
        headers.append((b"content-type", answer.media_type.encode("latin-1")))
        headers.append((b"content-length", str(len(answer.body)).encode("ascii")))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _stream(receive: Receive, send: Send, answer: Answer, pieces: AsyncIterator[bytes]) -> None:
    """Send an answer piece by piece, until there are no more, or the client is gone or does not read."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    headers.append((b"content-type", answer.media_type.encode("latin-1")))

    async def pump() -> None:
        first = await anext(pieces, b"")  # what is refused is refused before the answer begins
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await _send_piece(send, first)
        async for piece in pieces:
            await _send_piece(send, piece)
        await send({"type": "http.response.body", "body": b""})

    pumping = asyncio.ensure_future(pump())
    leaving = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({pumping, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not pumping.done():
            pumping.cancel()
        await asyncio.gather(leaving, pumping, return_exceptions=True)
    if not pumping.cancelled() and pumping.exception() is not None:
        raise pumping.exception() or RuntimeError


async def _send_piece(send: Send, piece: bytes) -> None:
    async with asyncio.timeout(STALLED_SECONDS):
        await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
