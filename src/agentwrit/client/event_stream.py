"""Server-sent events over a kept connection, as far as the revocation feed needs them (WHATWG HTML §9.2)."""

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from agentwrit.errors import TransportError, from_response

if TYPE_CHECKING:
    import httpx2

MAX_EVENT_CHARACTERS = 1024 * 1024


class DataLines:
    """Collects the data of events from the lines of a stream."""

    def __init__(self) -> None:
        self._data: list[str] = []
        self._size = 0

    def feed(self, line: str) -> str | None:
        """Take a line. Returns the data of the event that it ends, if it ends one.

        Raises:
            TransportError: the event is larger than any of ours.
        """
        if not line:
            data, self._data, self._size = "\n".join(self._data), [], 0
            return data or None
        if line.startswith("data:"):
            self._size += len(line)
            if self._size > MAX_EVENT_CHARACTERS:
                raise TransportError("an event of the stream is too large: is this a broker?")
            self._data.append(line.removeprefix("data:").removeprefix(" "))
        return None


class EventStream:
    """One stream at a time, over a client that somebody else owns.

    `silence`: seconds without a word after which the stream is taken for dead.
    """

    def __init__(self, client: "httpx2.Client", *, silence: float) -> None:
        self._client = client
        self._silence = silence
        self._events: Iterator[str] | None = None
        self._socket: socket.socket | None = None
        self._open = contextlib.ExitStack()

    def open(self, url: str) -> None:
        """Open the stream at `url`, in place of one that is open.

        Raises:
            TransportError: it is out of reach.
            ProblemResponseError: it is refused.
        """
        self.close()
        with _translated():
            response = self._open.enter_context(self._client.stream(**_arguments(url, self._silence)))
            network = response.extensions.get("network_stream")  # there is none where no network is
            self._socket = None if network is None else network.get_extra_info("socket")
            if response.status_code != 200:
                raise from_response(response.status_code, dict(response.headers), response.read())
            self._events = _events(response)

    def next_data(self) -> str:
        """The data of the next event.

        Raises:
            TransportError: there is no next one: the stream has ended, or has been silent for too long.
        """
        with _translated():
            data = None if self._events is None else next(self._events, None)
        if data is None:
            raise TransportError("the stream of revocations has ended")
        return data

    def interrupt(self) -> None:
        """End the stream for whoever is waiting for an event, in another thread."""
        connected = self._socket
        if connected is not None:
            with contextlib.suppress(OSError):  # it may be closed by now
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not TLS's own, which is not for two threads

    def close(self) -> None:
        """Close the stream that is open."""
        self._events = self._socket = None
        self._open.close()


class AsyncEventStream:
    """The same on an event loop."""

    def __init__(self, client: "httpx2.AsyncClient", *, silence: float) -> None:
        self._client = client
        self._silence = silence
        self._events: AsyncIterator[str] | None = None
        self._open = contextlib.AsyncExitStack()

    async def open(self, url: str) -> None:
        """As `EventStream.open`."""
        await self.close()
        with _translated():
            response = await self._open.enter_async_context(self._client.stream(**_arguments(url, self._silence)))
            if response.status_code != 200:
                raise from_response(response.status_code, dict(response.headers), await response.aread())
            self._events = _async_events(response)

    async def next_data(self) -> str:
        """As `EventStream.next_data`."""
        with _translated():
            data = None if self._events is None else await anext(self._events, None)
        if data is None:
            raise TransportError("the stream of revocations has ended")
        return data

    async def close(self) -> None:
        """Close the stream that is open."""
        self._events = None
        await self._open.aclose()


def _arguments(url: str, silence: float) -> dict[str, Any]:
    headers = {"accept": "text/event-stream"}
    return {"method": "GET", "url": url, "headers": headers, "timeout": silence, "follow_redirects": False}


def _events(response: "httpx2.Response") -> Iterator[str]:
    lines = DataLines()
    for line in response.iter_lines():
        data = lines.feed(line)
        if data is not None:
            yield data


async def _async_events(response: "httpx2.Response") -> AsyncIterator[str]:
    lines = DataLines()
    async for line in response.aiter_lines():
        data = lines.feed(line)
        if data is not None:
            yield data


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of the HTTP library as ours, in words that hold nothing of what was sent."""
    import httpx2

    failure = ""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        failure = type(error).__name__
    if failure:
        raise TransportError(f"the stream of revocations failed ({failure})")
