"""The outermost layer: every request gets its id, its headers, its log line and its count, and every error its form."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import structlog

from agentwrit.broker.config import Network
from agentwrit.broker.http import problems
from agentwrit.broker.http.admission import BUSY, Admission
from agentwrit.broker.http.exchange import Answer, Exchange, Header, Pieces, joined, new_request_id
from agentwrit.broker.http.http1 import Scope
from agentwrit.broker.http.routing import UNKNOWN, Resource, Router
from agentwrit.broker.metrics import Metrics
from agentwrit.domain.errors import InternalError, MethodNotAllowed, NotFound, Refusal, TamperedRecord, Unavailable

_SECURITY_HEADERS: Final[list[Header]] = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]
_NO_STORE: Final = (b"cache-control", b"no-store")
_STRICT_TRANSPORT: Final = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")

# Asked many times a second by machines; their counts say what their lines would.
_QUIET_ROUTES: Final = frozenset(
    {"/v1/health", "/livez", "/readyz", "/v1/metrics", "/v1/token/validate", "/oauth2/introspect"}
)

_ALTERED: Final = Unavailable(
    "what this needs was altered in the store, outside the broker",
    retry_after=60,
    hint="`agentwrit store verify` says what; keep the file as evidence, and put a backup in its place",
    cause="altered",
)

log = structlog.get_logger("agentwrit.http")


_Found = tuple[Resource, Mapping[str, str]]


class Reply(Protocol):
    """Where an answer goes. `head`: its header fields, as they stand in a message.

    `is_last`: the connection is closed behind it. Both do nothing if the client is gone.
    """

    def send(self, status: int, head: bytes, body: bytes, *, is_last: bool) -> None:
        """Answer."""
        ...

    async def stream(self, status: int, head: bytes, first: bytes, rest: Pieces) -> None:
        """Answer piece by piece, as fast as the client reads. The task is cancelled when the client is gone."""
        ...


class Edge:
    """An application around a router. While `is_draining`, each answer is the last of its connection."""

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
        fields = [*_SECURITY_HEADERS, _STRICT_TRANSPORT] if is_tls else _SECURITY_HEADERS
        self._head, self._uncached_head = joined(fields), joined([*fields, _NO_STORE])
        self._is_draining = is_draining
        self._admission = Admission()

    def start(
        self, scope: Scope, body: bytes, reply: Reply, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[None] | None:
        """Begin to answer a request. What is too much is turned away before there is so much as a task for it: None.

        Only what apps and agents ask is bounded: validation takes no longer than saying no would, and what an operator
        ends has to end. A place is free again when the task is over, however it ends.
        """
        found = self._router.find(scope["path"])
        if found[0].is_bounded and not self._admission.enter(time.monotonic()):
            self._refuse(BUSY, scope, reply, is_last=False)
            return None
        task = loop.create_task(self._serve(scope, body, reply, found))
        if found[0].is_bounded:
            task.add_done_callback(self._admission.leave)
        return task

    def objection(self, scope: Scope) -> Refusal | None:
        """Why a request is refused before its body is there, if it is: nobody would read it."""
        resource, _ = self._router.find(scope["path"])
        try:
            resource.handler(scope["method"])
        except (NotFound, MethodNotAllowed) as refusal:
            return refusal
        return None

    def refuse(self, refusal: Refusal, scope: Scope | None, reply: Reply) -> None:
        """Answer what is not worked on, because of what it is. `scope`: its head, if it has a whole one."""
        self._refuse(refusal, scope, reply, is_last=True)

    def _refuse(self, refusal: Refusal, scope: Scope | None, reply: Reply, *, is_last: bool) -> None:
        request_id, path, method, resource = new_request_id(), "", "other", UNKNOWN
        answer = None
        if scope is not None:
            request_id, path = Exchange(scope, b"", self._trusted_proxies).request_id, scope["path"]
            resource, _ = self._router.find(path)
            if scope["method"] in resource.routes:
                method = scope["method"]
                answer = resource.refusing(refusal) if resource.refusing is not None else None
        answer = answer or _problem(refusal, path, request_id)
        self._metrics.count_request(method, resource.path, answer.status, 0, cause=answer.cause)
        reply.send(answer.status, self._fields(answer, request_id), answer.body, is_last=is_last)

    async def _serve(self, scope: Scope, body: bytes, reply: Reply, found: _Found) -> None:
        started_at = time.perf_counter()
        exchange = Exchange(scope, body, self._trusted_proxies)
        route = found[0].path
        status, cause = 0, ""
        try:
            answer, first = await self._answer(scope, exchange, found)
            status, cause = answer.status, answer.cause
            head = self._fields(answer, exchange.request_id)
            if answer.stream is None:
                reply.send(status, head, answer.body, is_last=self._is_draining())
            else:
                await reply.stream(status, head, first, answer.stream)
        except ConnectionError:
            pass  # the client of a stream is gone
        except Unavailable as refusal:  # a stream is cut: what is under way cannot be taken back
            log.warning("a stream broke off", reason=refusal.detail, **_fields(scope, route, exchange))
        except Exception:
            log.exception("an answer broke off", **_fields(scope, route, exchange))
        finally:
            seconds = time.perf_counter() - started_at
            method = scope["method"] if route != UNKNOWN.path and status != 405 else "other"
            self._metrics.count_request(method, route, status, seconds, cause=cause)
            self._log(scope, route, exchange, status, seconds)

    async def _answer(self, scope: Scope, exchange: Exchange, found: _Found) -> tuple[Answer, bytes]:
        """The answer, and the first piece of its stream: what fails before that is answered as what it is."""
        resource, exchange.path_params = found
        try:
            handler = resource.handler(scope["method"])
            exchange.route = resource.routes[scope["method"]]
            exchange.max_body = resource.max_body
            answer = await handler(exchange)
            return answer, b"" if answer.stream is None else await anext(answer.stream, b"")
        except Refusal as refusal:
            # No name for it that outlives this clause, and nothing that it came from: its frames would hold it, and it
            # the frames, with all that the request brought, until the garbage collector comes.
            refusal.__context__ = None
            return _problem(refusal, scope["path"], exchange.request_id), b""
        except TamperedRecord as altered:  # no defect of ours: somebody has to look at the store
            fields = _fields(scope, resource.path, exchange)
            log.error("the store was altered outside the broker", reason=str(altered), **fields)
            return _problem(_ALTERED, scope["path"], exchange.request_id), b""
        except Exception:  # a defect: the log gets the trace, the caller gets its number
            log.exception("internal error", **_fields(scope, resource.path, exchange))
            shown = InternalError("the broker failed; its log has the details under this request id")
            return _problem(shown, scope["path"], exchange.request_id), b""

    def _fields(self, answer: Answer, request_id: str) -> bytes:
        common = self._head if answer.is_cacheable else self._uncached_head
        return b"%b%bx-request-id: %b\r\n" % (answer.head(), common, request_id.encode("ascii"))

    @staticmethod
    def _log(scope: Scope, route: str, exchange: Exchange, status: int, seconds: float) -> None:
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


def _problem(refusal: Refusal, path: str, request_id: str) -> Answer:
    return Answer(
        body=problems.body(refusal, path=path, request_id=request_id),
        status=problems.STATUS[refusal.error_code].value,
        media_type=problems.MEDIA_TYPE,
        headers=problems.headers(refusal),
        cause=refusal.cause if isinstance(refusal, Unavailable) else "",
    )
