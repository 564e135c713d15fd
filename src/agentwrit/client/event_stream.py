"""Server-sent events over a kept connection, as far as the revocation feed needs them (WHATWG HTML §9.2).

The rules:

- Whoever answers may be anybody. A line, an event and an error's text have a largest size each, however they come.
- A stream is asked for without compression, and refused with it: a proxy that compresses events keeps them back, and a
  few compressed bytes can become any number of others.
- A stream that brings no event for `silence` seconds is taken for dead, whatever else it brings.
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
MAX_ERROR_BYTES: Final = 64 * 1024  # of an answer that is no stream

_LINE_ENDS: Final = (b"\n", b"\r")


class EventData:
    """Collects the data of events from a stream, piece by piece."""

    def __init__(self) -> None:
        self._line = bytearray()  # the one that has not come to its end
        self._data: list[bytes] = []
        self._data_size = 0
        self._is_after_return = False

    def feed(self, piece: bytes) -> list[str]:
        """Take a piece of the stream. Returns the data of the events that end in it.

        Raises:
            TransportError: an event is larger than any of ours.
        """
        rest = piece[1:] if self._is_after_return and piece.startswith(b"\n") else piece  # a line may end with both
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
    """One stream at a time, over a client that somebody else owns.

    `silence`: seconds without an event after which the stream is taken for dead.
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
        """Open the stream at `url`, in place of one that is open. `bearer`: a token to show, if one is to be shown.

        Raises:
            TransportError: it is out of reach.
            ProblemResponseError: it is refused.
        """
        self.close()
        # httpx2 has a limit for each read, and none for all that it takes until an answer has begun.
        patience = threading.Timer(self._silence, self.interrupt)
        patience.daemon = True
        patience.start()
        try:
            with _translated():
                arguments = _arguments(url, self._silence, bearer)
                response = self._open.enter_context(
                    self._client.stream(**arguments, extensions={"trace": self._watch_connecting})
                )
                network = response.extensions.get("network_stream")  # there is none where no network is
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
            TransportError: there is no next one: the stream has ended, or has been silent for too long. It is closed.
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
        """End the stream for whoever is waiting for an event, in another thread."""
        connected = self._socket
        if connected is not None:
            with contextlib.suppress(OSError):  # it may be closed by now
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not TLS's own, which is not for two threads

    def close(self) -> None:
        """Close the stream that is open."""
        self._pieces = self._socket = None
        self._reading, self._arrived = EventData(), deque()
        self._open.close()

    def _watch_connecting(self, event: str, info: Mapping[str, Any]) -> None:
        """Learn of the connection before there is an answer on it. Called by httpx2's transport."""
        if event == "connection.connect_tcp.complete":
            self._socket = info["return_value"].get_extra_info("socket")


class AsyncEventStream:
    """The same on an event loop."""

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
        """Close the stream that is open."""
        self._pieces = None
        self._reading, self._arrived = EventData(), deque()
        await self._open.aclose()


def _arguments(url: str, silence: float, bearer: Secret[str] | None) -> dict[str, Any]:
    headers = {"accept": "text/event-stream", "accept-encoding": "identity"}
    if bearer is not None:
        headers["authorization"] = f"Bearer {bearer.reveal()}"
    return {"method": "GET", "url": url, "headers": headers, "timeout": silence, "follow_redirects": False}


def _check_plain(headers: Mapping[str, str]) -> None:
    """Refuse a stream in a content coding (RFC 9110 §8.4), which is not what was asked for."""
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise TransportError("the stream of revocations comes compressed, although it was asked for as it is")


def _first(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The first of the pieces, as many as it takes to know what an error says."""
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
    """Errors of the HTTP library as ours, in words that hold nothing of what was sent."""
    import httpx2

    failure = ""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, TimeoutError) as error:
        failure = type(error).__name__
    if failure:
        raise TransportError(f"the stream of revocations failed ({failure})")
