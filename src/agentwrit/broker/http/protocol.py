"""HTTP/1.1 on a connection: uvicorn's protocol, with bounds on what a stranger can make it hold.

Without them a header that never ends grows in memory, and a connection that says nothing stays open for ever.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from agentwrit.broker.http import problems
from agentwrit.domain.errors import InvalidRequest, Refusal

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_HEAD_SECONDS: Final = 15
KEEP_ALIVE_SECONDS: Final = 75  # longer than clients keep idle connections, so that the client is the one who closes


class BoundedHttpProtocol(HttpToolsProtocol):
    """A request's head has 15 seconds to arrive, and is refused if 32 KiB of it did not bring its end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows it to Transport
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._is_in_head or self.transport.is_closing():
            self._stop_waiting()
        elif self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(InvalidRequest(f"a request's head has at most {MAX_HEAD_BYTES} bytes"))
        elif self._head_timer is None:
            self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest("this is not HTTP/1.1"))

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(MAX_HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, refusal: Refusal) -> None:
        status = problems.STATUS[refusal.error_code]
        body = problems.body(refusal, path="", request_id="")
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {problems.MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nx-content-type-options: nosniff\r\nx-frame-options: DENY\r\n"
            "cache-control: no-store\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()
