"""HTTP/1.1 by hand, over sockets: requests as bytes, however they are cut, and answers read strictly."""

import contextlib
import socket
import ssl
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

SECONDS = 30  # for anything that is waited for


class Answer(NamedTuple):
    """An answer as it came. The names of its header fields are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]


class Raw:
    """A connection to a server. What is sent goes out at once, so each call is a segment of its own.

    `tls`: what it trusts at a URL of https; without it, whoever is there.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
        address: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        self.socket: socket.socket = socket.socket()
        if address is not None:  # of ours
            self.socket.bind((address, 0))
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(SECONDS)
        self.socket.connect((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if parts.scheme == "https":
            self.socket = (tls or _trusting_anybody()).wrap_socket(self.socket, server_hostname=parts.hostname)
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> Self:
        for piece in pieces:
            self.socket.sendall(piece)
        return self

    def try_to_send(self, data: bytes) -> None:
        """Send to a server that may have closed by now."""
        with contextlib.suppress(OSError):
            self.socket.sendall(data)

    def shut_down(self) -> None:
        """Say that this was all."""
        socket.socket.shutdown(self.socket, socket.SHUT_WR)  # that of an SSLSocket would read no more TLS

    def try_to_shut_down(self) -> None:
        """The same, to a server that may have closed by now."""
        with contextlib.suppress(OSError):
            self.shut_down()

    def answer(self, *, to: str = "GET") -> Answer:
        """The next answer, whole. `to`: the method that it answers."""
        head = self._until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        if status == "100":
            return Answer(100, {}, b"")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if to == "HEAD" or status in ("204", "304"):
            return Answer(int(status), headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(int(status), headers, self._chunks())
        return Answer(int(status), headers, self._take(int(headers["content-length"])))

    def rest(self) -> bytes:
        """All that is still sent, until the server closes."""
        while self._receive():
            pass
        return self._received

    def answers(self) -> list[Answer]:
        """All answers until the server closes."""
        self.rest()
        found = []
        while self._received:
            found.append(self.answer())
        return found

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self._until(b"\r\n"), 16):
            body += self._take(size)
            assert self._take(2) == b"\r\n"
        assert self._take(2) == b"\r\n"
        return body

    def _until(self, end: bytes) -> bytes:
        while end not in self._received:
            assert self._receive(), f"the connection ended after {self._received!r}"
        head, _, self._received = self._received.partition(end)
        return head + end

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            assert self._receive(), f"the connection ended after {self._received!r}"
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def _receive(self) -> bool:
        try:
            data = self.socket.recv(65_536)
        except (ConnectionResetError, ssl.SSLEOFError):
            data = b""
        self._received += data
        return bool(data)


@lru_cache(maxsize=1)
def _trusting_anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def request(
    target: str, body: bytes = b"", *, method: str = "", name: str = "", chunked: bool = False, fields: str = ""
) -> bytes:
    """A request. `name`: its id, which the answer repeats."""
    head = f"{method or ('POST' if body else 'GET')} {target} HTTP/1.1\r\nHost: broker\r\n{fields}"
    if name:
        head += f"X-Request-ID: {name}\r\n"
    if chunked:
        half = len(body) // 2
        chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:half], body[half:]) if piece]
        return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"".join(chunks) + b"0\r\n\r\n"
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{head}{length}\r\n".encode() + body
