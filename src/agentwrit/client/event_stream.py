"""Server-sent events over a persistent connection, as far as the revocation feed needs them (WHATWG HTML §9.2).

The rules:

- The server is not trusted. A line, an event and an error's text each have a maximum size, however they are split.
- A stream is requested without compression, and refused with it: a proxy that compresses events delays them, and a few
  compressed bytes can expand to any number.
- A stream without an event for `silence` seconds is considered dead, whatever else it sends.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from agentwrit.client.secrecy import Secret
from agentwrit.errors import TransportError, from_response

if TYPE_CHECKING:
    import httpx2

MAX_EVENT_BYTES: Final = 1024 * 1024
MAX_ERROR_BYTES: Final = 64 * 1024  # of an answer that is not a stream

_LINE_ENDS: Final = (b"\n", b"\r")


class EventData:
    """Collects the data of events from a stream, piece by piece."""

    def __init__(self) -> None:
        self._line = bytearray()  # the incomplete last line
        self._data: list[bytes] = []
        self._data_size = 0
        self._is_after_return = False

    def feed(self, piece: bytes) -> list[str]:
        """Take a piece of the stream. Returns the data of the events that end in it.

        Raises:
            TransportError: an event is larger than any event of a broker.
        """
        rest = piece[1:] if self._is_after_return and piece.startswith(b"\n") else piece  # a line may end with CRLF
        self._is_after_return = piece.endswith(b"\r")
        events: list[str] = []
        for part in rest.splitlines(keepends=True):
            if self._data_size + len(self._line) + len(part) > MAX_EVENT_BYTES:
                raise TransportError("an event of the stream is too large: is this a broker?")
            if not part.endswith(_LINE_ENDS):
                self._line += part
                continue
            if self._line:
                part, self._line = bytes(self._line) + part, bytearray()
            self._take(part.rstrip(b"\r\n"), events)
        return events

    def _take(self, line: bytes, events: list[str]) -> None:
        if line.startswith(b"data:"):
            self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
            self._data_size += len(line)
        elif not line:
            data, self._data, self._data_size = b"\n".join(self._data), [], 0
            if data:
                events.append(data.decode("utf-8", "replace"))


class EventStream:
    """One stream at a time, over a client that belongs to the caller.

    `silence`: seconds without an event after which the stream is considered dead.
    """

    def __init__(self, client: "httpx2.Client", *, silence: float) -> None:
        self._client = client
        self._silence = silence
        self._pieces: Iterator[bytes] | None = None
        self._reading = EventData()
        self._arrived: deque[str] = deque()
        self._socket: socket.socket | None = None
        self._open = contextlib.ExitStack()

    def open(self, url: str, *, bearer: Secret[str] | None = None) -> None:
        """Open the stream at `url`, in place of one that is open. `bearer`: a token to show, if any.

        Raises:
            TransportError: the broker was not reached.
            ProblemResponseError: the broker refused.
        """
        self.close()
        # httpx2 limits each read, but not the total time until an answer begins.
        patience = threading.Timer(self._silence, self.interrupt)
        patience.daemon = True
        patience.start()
        try:
            with _translated():
                arguments = _arguments(url, self._silence, bearer)
                response = self._open.enter_context(
                    self._client.stream(**arguments, extensions={"trace": self._watch_connecting})
                )
                network = response.extensions.get("network_stream")  # absent if the transport uses no network
                self._socket = None if network is None else network.get_extra_info("socket")
                self._pieces = response.iter_raw()
                if response.status_code != 200:
                    text = b"".join(_first(self._pieces))
                    self.close()
                    raise from_response(response.status_code, dict(response.headers), text)
                _check_plain(response.headers)
        finally:
            patience.cancel()

    def next_data(self) -> str:
        """The data of the next event.

        Raises:
            TransportError: the stream has ended, or has been silent for too long. It is closed.
        """
        silent_until = time.monotonic() + self._silence
        try:
            while not self._arrived:
                with _translated():
                    piece = None if self._pieces is None else next(self._pieces, None)
                if piece is None:
                    raise TransportError("the stream of revocations has ended")
                self._arrived.extend(self._reading.feed(piece))
                if not self._arrived and time.monotonic() > silent_until:
                    raise TransportError("the stream of revocations brings no events")
            return self._arrived.popleft()
        except TransportError:
            self.close()  # it would keep a place at the broker that others could use
            raise

    def interrupt(self) -> None:
        """End the stream for a caller that waits for an event in another thread."""
        connected = self._socket
        if connected is not None:
            with contextlib.suppress(OSError):  # it may already be closed
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not TLS's: that must not run in two threads

    def close(self) -> None:
        """Close the stream."""
        self._pieces = self._socket = None
        self._reading, self._arrived = EventData(), deque()
        self._open.close()

    def _watch_connecting(self, event: str, info: Mapping[str, Any]) -> None:
        """Store the connection before the answer on it begins. Called by httpx2's transport."""
        if event == "connection.connect_tcp.complete":
            self._socket = info["return_value"].get_extra_info("socket")


class AsyncEventStream:
    """As `EventStream`, on an event loop."""

    def __init__(self, client: "httpx2.AsyncClient", *, silence: float) -> None:
        self._client = client
        self._silence = silence
        self._pieces: AsyncIterator[bytes] | None = None
        self._reading = EventData()
        self._arrived: deque[str] = deque()
        self._open = contextlib.AsyncExitStack()

    async def open(self, url: str, *, bearer: Secret[str] | None = None) -> None:
        """As `EventStream.open`."""
        await self.close()
        with _translated():
            async with asyncio.timeout(self._silence):
                opening = self._client.stream(**_arguments(url, self._silence, bearer))
                response = await self._open.enter_async_context(opening)
                self._pieces = response.aiter_raw()
                if response.status_code != 200:
                    text = b"".join([piece async for piece in _async_first(self._pieces)])
                    await self.close()
                    raise from_response(response.status_code, dict(response.headers), text)
                _check_plain(response.headers)

    async def next_data(self) -> str:
        """As `EventStream.next_data`."""
        try:
            with _translated():
                async with asyncio.timeout(self._silence):
                    while not self._arrived:
                        piece = None if self._pieces is None else await anext(self._pieces, None)
                        if piece is None:
                            raise TransportError("the stream of revocations has ended")
                        self._arrived.extend(self._reading.feed(piece))
            return self._arrived.popleft()
        except TransportError:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the stream."""
        self._pieces = None
        self._reading, self._arrived = EventData(), deque()
        await self._open.aclose()


def _arguments(url: str, silence: float, bearer: Secret[str] | None) -> dict[str, Any]:
    headers = {"accept": "text/event-stream", "accept-encoding": "identity"}
    if bearer is not None:
        headers["authorization"] = f"Bearer {bearer.reveal()}"
    return {"method": "GET", "url": url, "headers": headers, "timeout": silence, "follow_redirects": False}


def _check_plain(headers: Mapping[str, str]) -> None:
    """Refuse a stream in a content coding (RFC 9110 §8.4), because it was not requested."""
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise TransportError("the stream of revocations comes compressed, although it was asked for as it is")


def _first(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The first pieces, as many as needed to know what an error says."""
    left = MAX_ERROR_BYTES
    while left > 0 and (piece := next(pieces, None)) is not None:
        yield piece[:left]
        left -= len(piece)


async def _async_first(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    left = MAX_ERROR_BYTES
    while left > 0 and (piece := await anext(pieces, None)) is not None:
        yield piece[:left]
        left -= len(piece)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turns errors of the HTTP library into SDK errors, with messages that contain nothing of what was sent."""
    import httpx2

    failure = ""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, TimeoutError) as error:
        failure = type(error).__name__
    if failure:
        raise TransportError(f"the stream of revocations failed ({failure})")
