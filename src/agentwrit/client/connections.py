"""Connections to one broker over the standard library's HTTP client, kept between requests.

For requests as small as ours most of a call is what the HTTP library does itself: here that is less than half of what
it is with httpx2, and it holds on to the interpreter's lock for as much less while other threads want it. What httpx2
does beyond this (proxies, streams, a client of the caller's own) goes through httpx2 still.
"""

import http.client
import select
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

from agentwrit.client.exchange import ConnectFailed, HttpResponse

MAX_CONNECTIONS: Final = 256
MAX_IDLE: Final = 64
IDLE_SECONDS: Final = 30
CHUNK_BYTES: Final = 64 * 1024


class _Idle(NamedTuple):
    connection: http.client.HTTPConnection
    since: float


def is_proxied(url: str) -> bool:
    """Whether the environment, or the system's settings, want a proxy between us and this URL."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not urllib.request.proxy_bypass(
        parts.netloc.rpartition("@")[2]
    )


class Connections:
    """Connections to whoever serves `url`. Safe to share between threads; a child process makes its own.

    `context` is asked for TLS settings, once, where the URL is an https one.
    """

    def __init__(self, url: str, context: Callable[[], ssl.SSLContext]) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port
        self._path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
        self._context = context() if parts.scheme == "https" else None
        self._idle: list[_Idle] = []  # the one that was used last comes first: the others may grow old
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._is_closed = False

    def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes | None,
        *,
        remaining: Callable[[], float],
        collect: Callable[[bytearray, bytes], None],
    ) -> HttpResponse:
        """Make one request, once. `remaining`: says how many seconds there are; `collect`: takes a part of the answer.

        Raises:
            ConnectFailed: there was nobody to ask.
            TimeoutError: it took too long.
            OSError, http.client.HTTPException: the connection failed.
            ValueError: what was to be sent cannot stand in a request.
        """
        if not self._slots.acquire(timeout=remaining()):
            raise TimeoutError
        try:
            connection = self._take() or self._connect(remaining())
            try:
                answer = self._exchange(connection, method, path, headers, content, remaining, collect)
            except BaseException:
                connection.close()  # whatever else comes on it would be taken for the answer to something else
                raise
            return answer
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close the connections that wait, and those in use when they come back."""
        self._is_closed = True
        while (idle := self._pop(-1)) is not None:
            idle.connection.close()

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes | None,
        remaining: Callable[[], float],
        collect: Callable[[bytearray, bytes], None],
    ) -> HttpResponse:
        transport: socket.socket = connection.sock
        transport.settimeout(remaining())
        connection.request(method, self._path + path, content, headers)
        response = connection.getresponse()
        body = bytearray()
        while chunk := response.read1(CHUNK_BYTES):
            collect(body, chunk)
            if response.length == 0:
                break
            transport.settimeout(remaining())
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        will_close = response.will_close
        response.close()
        if will_close or self._is_closed:
            connection.close()
        else:
            self._give_back(connection)
        return HttpResponse(response.status, _fields(response.headers), bytes(body))

    def _take(self) -> http.client.HTTPConnection | None:
        """A connection that waits, and is fit for use."""
        while (idle := self._pop(-1)) is not None:
            if time.monotonic() - idle.since < IDLE_SECONDS and not _is_readable(idle.connection.sock):
                return idle.connection
            idle.connection.close()
        return None

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        self._idle.append(_Idle(connection, time.monotonic()))
        if len(self._idle) > MAX_IDLE or self._is_closed:
            surplus = self._pop(0)
            if surplus is not None:
                surplus.connection.close()

    def _pop(self, place: int) -> _Idle | None:
        try:
            return self._idle.pop(place)
        except IndexError:  # there is none, or another thread was faster
            return None

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=timeout)
            if self._context is None
            else http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=self._context)
        )
        try:
            connection.connect()
        except TimeoutError:
            connection.close()
            raise
        except OSError as error:
            connection.close()
            raise ConnectFailed(str(error)) from None
        return connection


def _is_readable(transport: socket.socket) -> bool:
    """Whether something came that nobody asked for: as a rule the end, since the other side closed the connection."""
    if not hasattr(select, "poll"):  # on Windows, where descriptors of any size can be selected
        return bool(select.select([transport], [], [], 0)[0])
    waiting = select.poll()
    waiting.register(transport, select.POLLIN)
    return bool(waiting.poll(0))


def _fields(headers: http.client.HTTPMessage) -> dict[str, str]:
    """The fields by their names in lower case; one that came more than once as a list (RFC 9110 §5.3)."""
    fields: dict[str, str] = {}
    for name, value in headers.items():
        known = name.lower()
        fields[known] = f"{fields[known]}, {value}" if known in fields else value
    return fields
