"""Connections to one broker, made by the standard library, kept between requests.

For requests as small as ours most of a call is what the HTTP library does itself: here (`agentwrit.client.http1`) that
is a fraction of what it is with httpx2, and it holds on to the interpreter's lock for as much less while other threads
want it. What httpx2 does beyond this (proxies, streams, a client of the caller's own) goes through httpx2 still.
"""

import http.client
import select
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

from agentwrit.client import http1
from agentwrit.client.exchange import ConnectFailed, HttpResponse

MAX_CONNECTIONS: Final = 256
MAX_IDLE: Final = 64
IDLE_SECONDS: Final = 30


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
        self._default_port = 443 if parts.scheme == "https" else 80
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
        transport.sendall(http1.request(method, self._path + path, self._host_field, headers, content))
        answer = http1.read_answer(transport, method, remaining=remaining, collect=collect)
        if answer.is_last or self._is_closed:
            connection.close()
        else:
            self._give_back(connection)
        return answer.response

    @cached_property
    def _host_field(self) -> str:
        """What requests name the host by (RFC 9110 §7.2)."""
        host = self._host if self._host.isascii() else self._host.encode("idna").decode("ascii")
        if ":" in host:
            host = f"[{host.partition('%')[0]}]"  # which of our interfaces leads there is nobody else's business
        return host if self._port in (None, self._default_port) else f"{host}:{self._port}"

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
