"""Connections to one broker, made by the standard library, kept between requests.

For requests as small as ours most of a call is what the HTTP library does itself: here (`agentwrit.client.http1`) that
is a fraction of what it is with httpx2, and it holds on to the interpreter's lock for as much less while other threads
want it. What httpx2 does beyond this (proxies, streams, a client of the caller's own) goes through httpx2 still.

Whatever a request waits for (a place, the address of the host, a connection, each part of the answer) it waits for
within the time that remains, so that nobody who answers a little at a time makes it wait for longer.
"""

import select
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

from agentwrit.client import http1
from agentwrit.client.addresses import Addresses, Remaining
from agentwrit.client.exchange import ConnectFailed, HttpResponse
from agentwrit.client.http1 import Answer, AnswerReader
from agentwrit.client.secrecy import Secret

MAX_CONNECTIONS: Final = 256
MAX_IDLE: Final = 64
IDLE_SECONDS: Final = 30


class Origin:
    """Where a URL leads: whom to connect to, and how requests name it. `context` is asked for TLS settings, once."""

    def __init__(self, url: str, context: Callable[[], ssl.SSLContext]) -> None:
        parts = urlsplit(url)
        default_port = 443 if parts.scheme == "https" else 80
        self.host = parts.hostname or ""
        self.port = parts.port or default_port
        self.path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
        self.context = context() if parts.scheme == "https" else None
        self._is_default_port = self.port == default_port

    @property
    def host_field(self) -> str:
        """What requests name the host by (RFC 9110 §7.2)."""
        host = self.host if self.host.isascii() else self.host.encode("idna").decode("ascii")
        if ":" in host:
            host = f"[{host.partition('%')[0]}]"  # which of our interfaces leads there is nobody else's business
        return host if self._is_default_port else f"{host}:{self.port}"


class _Idle(NamedTuple):
    transport: socket.socket
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
        self._origin = Origin(url, context)
        self._host_field = self._origin.host_field
        self._idle: list[_Idle] = []  # the one that was used last comes first: the others may grow old
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._addresses = Addresses(self._origin.host, self._origin.port)
        self._is_closed = False

    def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str | Secret[str]],
        content: Secret[bytes] | None,
        *,
        remaining: Remaining,
        max_bytes: int,
    ) -> HttpResponse:
        """Make one request, once. `max_bytes`: the largest body to take.

        Raises:
            ConnectFailed: there was nobody to ask.
            TimeoutError: it took too long.
            OSError, http.client.HTTPException: the connection failed, or what came is no answer.
            ValueError: what was to be sent cannot stand in a request.
            Exception: what `remaining` raises.
        """
        if not self._slots.acquire(timeout=remaining()):
            raise TimeoutError
        try:
            transport = self._take() or self._connect(remaining)
            try:
                _send(
                    transport,
                    memoryview(http1.request(method, self._origin.path + path, self._host_field, headers, content)),
                    remaining,
                )
                answer = _read(transport, AnswerReader(method, max_bytes=max_bytes), remaining)
            except BaseException:
                transport.close()  # whatever else comes on it would be taken for the answer to something else
                raise
            if answer.is_last or self._is_closed:
                transport.close()
            else:
                self._give_back(transport)
            return answer.response
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close the connections that wait, and those in use when they come back."""
        self._is_closed = True
        while (idle := self._pop(-1)) is not None:
            idle.transport.close()

    def _take(self) -> socket.socket | None:
        """A connection that waits, and is fit for use."""
        while (idle := self._pop(-1)) is not None:
            if time.monotonic() - idle.since < IDLE_SECONDS and not _is_readable(idle.transport):
                return idle.transport
            idle.transport.close()
        return None

    def _give_back(self, transport: socket.socket) -> None:
        self._idle.append(_Idle(transport, time.monotonic()))
        if len(self._idle) > MAX_IDLE or self._is_closed:
            surplus = self._pop(0)
            if surplus is not None:
                surplus.transport.close()

    def _pop(self, place: int) -> _Idle | None:
        try:
            return self._idle.pop(place)
        except IndexError:  # there is none, or another thread was faster
            return None

    def _connect(self, remaining: Remaining) -> socket.socket:
        transport = self._addresses.connect(remaining)
        context = self._origin.context
        try:
            transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is None:
                return transport
            transport.settimeout(remaining())
            return context.wrap_socket(transport, server_hostname=self._origin.host)
        except TimeoutError:
            transport.close()
            raise
        except OSError as error:
            transport.close()
            failure = str(error)
        raise ConnectFailed(failure)


def _send(transport: socket.socket, data: memoryview, remaining: Remaining) -> None:
    """Send all of it. `data` is no bytes: nothing shows what is in it."""
    while data:
        transport.settimeout(remaining())
        data = data[transport.send(data) :]


def _read(transport: socket.socket, reader: AnswerReader, remaining: Remaining) -> Answer:
    answer: Answer | None = None
    while answer is None:
        transport.settimeout(remaining())
        received = transport.recv(http1.CHUNK_BYTES)
        answer = reader.feed(received) if received else reader.end()
    return answer


def _is_readable(transport: socket.socket) -> bool:
    """Whether something came that nobody asked for: as a rule the end, since the other side closed the connection."""
    if not hasattr(select, "poll"):  # on Windows, where descriptors of any size can be selected
        return bool(select.select([transport], [], [], 0)[0])
    waiting = select.poll()
    waiting.register(transport, select.POLLIN)
    return bool(waiting.poll(0))
