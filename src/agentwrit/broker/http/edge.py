"""The outermost layer: every request gets its id, its headers, its log line and its count, and every error its form."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import structlog
from starlette.types import Receive, Scope, Send

from agentwrit.broker.config import Network
from agentwrit.broker.http import problems
from agentwrit.broker.http.admission import BUSY, Admission
from agentwrit.broker.http.exchange import DIRECT, Answer, Direct, Exchange, Header, joined
from agentwrit.broker.http.routing import Router
from agentwrit.broker.metrics import Metrics
from agentwrit.domain.errors import InternalError, NotFound, Refusal, TamperedRecord, Unavailable

UNKNOWN_ROUTE: Final = "unknown"

_SECURITY_HEADERS: Final[list[Header]] = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]
_NO_STORE: Final = (b"cache-control", b"no-store")
_CLOSE: Final = (b"connection", b"close")
_STRICT_TRANSPORT: Final = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")

STALLED_SECONDS: Final = 10  # how long a piece of a stream may wait for a client that does not read

_IS_COUNTED: Final = "agentwrit.is_counted"
_FOUND: Final = "agentwrit.found"

# Asked many times a second by machines; their counts say what their lines would.
_QUIET_ROUTES: Final = frozenset(
    {"/v1/health", "/livez", "/readyz", "/v1/metrics", "/v1/token/validate", "/oauth2/introspect"}
)

_ALTERED: Final = Unavailable(
    "what this needs was altered in the store, outside the broker",
    retry_after=60,
    hint="`agentwrit store verify` says what; keep the file as evidence, and put a backup in its place",
)

log = structlog.get_logger("agentwrit.http")


class Edge:
    """An ASGI application around a router. While `is_draining`, each answer is the last of its connection."""

    def __init__(
        self,
        router: Router,
        metrics: Metrics,
        *,
        trusted_proxies: Sequence[Network],
        is_tls: bool,
        is_draining: Callable[[], bool],
    ) -> None:
        self._router = router
        self._metrics = metrics
        self._trusted_proxies = trusted_proxies
        self._headers = [*_SECURITY_HEADERS, _STRICT_TRANSPORT] if is_tls else _SECURITY_HEADERS
        self._uncached = [*self._headers, _NO_STORE]
        self._head, self._uncached_head = joined(self._headers), joined(self._uncached)
        self._is_draining = is_draining
        self._admission = Admission()

    def admit(self, scope: Scope) -> bool:
        """Whether a request is to be worked on: asked before there is a task for it. What is admitted has to be called.

        Only what apps and agents ask is bounded: validation takes no longer than saying no would, and what an operator
        ends has to end.
        """
        try:
            scope[_FOUND] = resource, _ = self._router.find(scope["path"])
        except NotFound:
            return True
        if not resource.is_bounded:
            return True
        scope[_IS_COUNTED] = self._admission.enter(time.monotonic())
        if not scope[_IS_COUNTED]:
            method = scope["method"] if scope["method"] in resource.routes else "other"
            self._metrics.count_request(method, resource.path, problems.STATUS[BUSY.error_code].value, 0)
        return bool(scope[_IS_COUNTED])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = time.perf_counter()
        direct: Direct | None = scope.pop(DIRECT, None)  # it knows the scope: a circle is garbage that has to be found
        exchange = Exchange(scope, receive, self._trusted_proxies, direct)
        route = UNKNOWN_ROUTE
        status = 0
        try:
            try:
                resource, exchange.path_params = scope.get(_FOUND) or self._router.find(scope["path"])
                route = resource.path
                handler = resource.handler(scope["method"])
                exchange.route = resource.routes[scope["method"]]
                answer = await handler(exchange)
            except Refusal as refusal:
                answer = _problem(refusal, scope, exchange)
            except TamperedRecord as altered:  # no defect of ours: somebody has to look at the store
                fields = _fields(scope, route, exchange)
                log.error("the store was altered outside the broker", reason=str(altered), **fields)
                answer = _problem(_ALTERED, scope, exchange)
            except Exception:  # a defect: the log gets the trace, the caller gets its number
                log.exception("internal error", **_fields(scope, route, exchange))
                error = InternalError("the broker failed; its log has the details under this request id")
                answer = _problem(error, scope, exchange)
            status = answer.status
            if direct is None or answer.stream is not None or not self._answer(direct, answer, exchange):
                await self._send(receive, send, answer, exchange)
        finally:
            if scope.get(_IS_COUNTED):
                self._admission.leave()
            self._account(scope, route, exchange, status, time.perf_counter() - started_at)

    def _answer(self, direct: Direct, answer: Answer, exchange: Exchange) -> bool:
        common = self._head if answer.is_cacheable else self._uncached_head
        head = b"%b%bx-request-id: %b\r\n" % (answer.head(), common, exchange.request_id.encode("ascii"))
        return direct.answer(answer.status, head, answer.body, is_last=self._is_last(exchange))

    async def _send(self, receive: Receive, send: Send, answer: Answer, exchange: Exchange) -> None:
        common = self._headers if answer.is_cacheable else self._uncached
        headers = [*answer.fields(), *common, (b"x-request-id", exchange.request_id.encode("ascii"))]
        if self._is_last(exchange):
            headers.append(_CLOSE)
        if answer.stream is not None:
            await _stream(receive, send, answer.status, headers, answer.stream)
        else:
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body})

    def _is_last(self, exchange: Exchange) -> bool:
        return exchange.is_body_unread or self._is_draining()

    def _account(self, scope: Scope, route: str, exchange: Exchange, status: int, seconds: float) -> None:
        method = scope["method"] if route != UNKNOWN_ROUTE and status != 405 else "other"
        self._metrics.count_request(method, route, status, seconds)
        if route in _QUIET_ROUTES and status < 400:
            return
        fields = _fields(scope, route, exchange)
        log.info("request", **fields, status=status, address=exchange.caller.address, ms=round(seconds * 1000, 3))


def _fields(scope: Scope, route: str, exchange: Exchange) -> dict[str, str]:
    """What a log line says of a request: the route's template and never the path, which may hold anything."""
    fields = {"method": scope["method"], "route": route, "request_id": exchange.request_id}
    if exchange.caller.trace_id:
        fields["trace_id"] = exchange.caller.trace_id
    return fields


def _problem(refusal: Refusal, scope: Scope, exchange: Exchange) -> Answer:
    return Answer(
        body=problems.body(refusal, path=scope["path"], request_id=exchange.request_id),
        status=problems.STATUS[refusal.error_code].value,
        media_type=problems.MEDIA_TYPE,
        headers=problems.headers(refusal),
    )


async def _stream(
    receive: Receive, send: Send, status: int, headers: list[Header], pieces: AsyncIterator[bytes]
) -> None:
    """Send an answer piece by piece, until there are no more, or the client is gone or does not read."""

    async def pump() -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        async for piece in pieces:
            async with asyncio.timeout(STALLED_SECONDS):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    pumping = asyncio.ensure_future(pump())
    leaving = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({pumping, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        pumping.cancel()
        [_, ended] = await asyncio.gather(leaving, pumping, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended  # the answer is under way and cannot be taken back: the server closes the connection


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
