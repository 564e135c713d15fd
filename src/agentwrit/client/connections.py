"""Connections to one broker, by the standard library, kept between requests.

For small requests, the HTTP library accounts for most of a call's processor time. This implementation
(`agentwrit.client.http1`) takes a fraction of httpx2's, and holds the interpreter lock for that much less time while
other threads want it. Proxies, streams and a caller's own client still go through httpx2.

Each wait of a request (for a slot, the host's address, a connection, a part of the answer) is limited to the time that
remains, so that a server that answers slowly cannot make it wait longer.
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
    """The server of a URL: where to connect, and how requests name it. `context` supplies TLS settings, once."""

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
        """The Host field of requests (RFC 9110 §7.2)."""
        host = self.host if self.host.isascii() else self.host.encode("idna").decode("ascii")
        if ":" in host:
            host = f"[{host.partition('%')[0]}]"  # the zone, a local interface, is not sent
        return host if self._is_default_port else f"{host}:{self.port}"


class _Idle(NamedTuple):
    transport: socket.socket
    since: float


def is_proxied(url: str) -> bool:
    """Whether the environment or the system settings name a proxy for this URL."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not urllib.request.proxy_bypass(
        parts.netloc.rpartition("@")[2]
    )


class Connections:
    """Connections to the server of `url`. Safe to share between threads; a child process makes its own.

    `context` supplies the TLS settings. It is called once, and only for an https URL.
    """

    def __init__(self, url: str, context: Callable[[], ssl.SSLContext]) -> None:
        self._origin = Origin(url, context)
        self._host_field = self._origin.host_field
        self._idle: list[_Idle] = []  # the most recently used one is taken first, so that the others may age
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
        """Make one request, once. `max_bytes`: the largest body to accept.

        Raises:
            ConnectFailed: no connection could be made.
            TimeoutError: the request took too long.
            OSError, http.client.HTTPException: the connection failed, or the data is not an HTTP answer.
            ValueError: the request holds characters that HTTP does not allow there.
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
                transport.close()  # further data on it would be taken for the answer to another request
                raise
            if answer.is_last or self._is_closed:
                transport.close()
            else:
                self._give_back(transport)
            return answer.response
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close the idle connections, and those in use when they are returned."""
        self._is_closed = True
        while (idle := self._pop(-1)) is not None:
            idle.transport.close()

    def _take(self) -> socket.socket | None:
        """An idle connection that is still usable."""
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
        except IndexError:  # the list is empty, or another thread was faster
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
    """Send all of `data`. It is a memoryview, whose repr does not show the content."""
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
    """Whether unrequested data arrived: usually the end of the stream, because the server closed the connection."""
    if not hasattr(select, "poll"):  # Windows, where select() accepts descriptors of any size
        return bool(select.select([transport], [], [], 0)[0])
    waiting = select.poll()
    waiting.register(transport, select.POLLIN)
    return bool(waiting.poll(0))
