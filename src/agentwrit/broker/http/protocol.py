"""HTTP/1.1 on a connection: uvicorn's protocol, with bounds on what a stranger can make it hold.

Without them a header that never ends grows in memory, and a connection that says nothing stays open for ever.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from agentwrit.broker.http import problems
from agentwrit.broker.http.admission import BUSY
from agentwrit.broker.http.edge import Edge
from agentwrit.broker.http.exchange import DIRECT, Header, joined, new_request_id
from agentwrit.domain.errors import InvalidRequest, Refusal

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_HEAD_SECONDS: Final = 15
MAX_BODY_SECONDS: Final = 10
KEEP_ALIVE_SECONDS: Final = 75  # longer than clients keep idle connections, so that the client is the one who closes


class _Gathering:
    """A transport that sends what is written in one turn of the event loop at once.

    uvicorn writes the head and the body of an answer apart; sent apart they would cost two system calls.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._call_soon = loop.call_soon
        self._pieces: list[bytes] = []
        self.is_closing: Callable[[], bool] = transport.is_closing  # asked at each answer

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._call_soon(self._flush)
        self._pieces.append(data)

    def write_whole(self, data: bytes) -> None:
        """Write what nothing belongs to that is written afterwards."""
        if self._pieces:
            self._pieces.append(data)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._transport.write(b"".join(pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Direct:
    """A request that is answered past uvicorn's messages: it would check each of our header fields once more."""

    __slots__ = ("_cycle", "_protocol")

    _default_fields: list[Header] | None = None
    _default_head = b""

    def __init__(self, protocol: "BoundedHttpProtocol", cycle: Any) -> None:
        self._protocol = protocol
        self._cycle = cycle

    def body(self) -> bytes | None:
        cycle = self._cycle
        if cycle.more_body or cycle.waiting_for_100_continue or cycle.disconnected or cycle.response_complete:
            return None
        body = bytes(cycle.body)
        cycle.body = bytearray()
        cycle.message_event.clear()
        self._protocol.flow.resume_reading()
        return body

    def answer(self, status: int, head: bytes, body: bytes, *, is_last: bool) -> bool:
        cycle = self._cycle
        if cycle.response_started or cycle.disconnected or self._protocol.flow.write_paused:
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.keep_alive = cycle.keep_alive and not is_last
        end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        content = b"" if cycle.scope["method"] == "HEAD" else body
        transport: Any = self._protocol.transport
        transport.write_whole(b"".join((STATUS_LINE[status], self._defaults(), head, end, content)))
        cycle.message_event.set()
        if not cycle.keep_alive:
            transport.close()
        cycle.on_response()
        return True

    def _defaults(self) -> bytes:
        """The date, and whatever else uvicorn puts into every answer: a new list every second."""
        fields = self._protocol.server_state.default_headers
        if fields is not _Direct._default_fields:
            _Direct._default_fields, _Direct._default_head = fields, joined(fields)
        return _Direct._default_head


class BoundedHttpProtocol(HttpToolsProtocol):
    """A request's head has 15 seconds to arrive, and its body 10 more; a head of more than 32 KiB is refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: object = None  # the scope of the request whose head has begun to arrive
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(_Gathering(transport, self.loop))  # type: ignore[arg-type]  # it acts as one
        self._give(MAX_HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle: Any = self.cycle
        if cycle is not None and cycle.scope is self.scope and not cycle.more_body:  # whole requests, as nearly always
            if self._timer is not None:
                self._stop_waiting()
        elif self._is_in_head():
            self._head_arrives(len(data))
        elif self._is_in_body():
            if self._head is not None or self._timer is None:
                self._head = None
                self._give(MAX_BODY_SECONDS)
        elif self._timer is not None:
            self._stop_waiting()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(app, Edge) and not app.admit(cycle.scope):
            cycle.response_started = cycle.response_complete = (
                True  # and with that the body, if there is any, is skipped
            )
            self.transport.write(_raw(BUSY, path=cycle.scope["path"], is_last=not cycle.keep_alive))
            if not cycle.keep_alive:
                self.transport.close()
            cycle.on_response()
            return
        cycle.scope[DIRECT] = _Direct(self, cycle)
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest("this is not HTTP/1.1"))

    def _is_in_head(self) -> bool:
        # A scope is made when a request begins, and its cycle when its head is complete.
        return bool(self.scope) and getattr(self.cycle, "scope", None) is not self.scope

    def _is_in_body(self) -> bool:
        return getattr(self.cycle, "more_body", False) and not self.cycle.response_complete

    def _head_arrives(self, count: int) -> None:
        if self.transport.is_closing():
            self._stop_waiting()
        elif self._head is not self.scope:
            self._head, self._head_bytes = self.scope, 0
            self._give(MAX_HEAD_SECONDS)
        else:
            self._head_bytes += count
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(InvalidRequest(f"a request's head has at most {MAX_HEAD_BYTES} bytes"))

    def _give(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._is_in_body() and not self.cycle.response_started:
            self._refuse(InvalidRequest(f"the body did not arrive within {MAX_BODY_SECONDS} seconds"))
        else:
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, refusal: Refusal) -> None:
        self._stop_waiting()
        self.transport.write(_raw(refusal, path="", is_last=True))
        self.transport.close()


def _raw(refusal: Refusal, *, path: str, is_last: bool) -> bytes:
    """The whole answer to what no application sees. `is_last`: the connection is closed behind it."""
    status = problems.STATUS[refusal.error_code]
    request_id = new_request_id()
    body = problems.body(refusal, path=path, request_id=request_id)
    fields = {
        "content-type": problems.MEDIA_TYPE,
        "content-length": str(len(body)),
        **problems.headers(refusal),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "cache-control": "no-store",
        "x-request-id": request_id,
        **({"connection": "close"} if is_last else {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{head}\r\n".encode("ascii") + body
