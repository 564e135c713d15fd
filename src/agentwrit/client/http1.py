"""HTTP/1.1 over a socket, for messages as plain as ours (RFC 9112).

The standard library reads the head of an answer with its parser for mail, and that takes longer than all else that a
call does. So an answer of the plain form, as brokers send it, is read here: its head comes whole, its fields are ASCII
and none of them is folded, its length is said once or there is no body. An answer of any other form goes to the
standard library from its first byte on, which reads it or refuses it.
"""

import http.client
import io
import re
import socket
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from agentwrit.client.exchange import HttpResponse

CHUNK_BYTES: Final = 64 * 1024
MAX_LENGTH_DIGITS: Final = 18

_FIELD_LINE: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e]*\r\n"  # RFC 9112 §5, without obs-text
_PLAIN_HEAD: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2}) [\t\x20-\x7e]*\r\n((?:" + _FIELD_LINE + rb")*)\r\n")
_TARGET: Final = re.compile(r"[\x21-\x7e]+")
_FIELDS: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

_WITH_CONTENT: Final = frozenset({"POST", "PUT", "PATCH"})
_WITHOUT_BODY: Final = frozenset({204, 304})  # RFC 9112 §6.3, 1


class Answer(NamedTuple):
    """An answer, whole. `is_last`: no other will come on this connection."""

    response: HttpResponse
    is_last: bool


class _Head(NamedTuple):
    """A head of the plain form. `length`: bytes of the body; `end`: where the body begins."""

    status: int
    fields: dict[str, str]
    length: int
    end: int


def request(method: str, target: str, host: str, fields: Mapping[str, str], content: bytes | None) -> bytes:
    """The bytes of a request (RFC 9112 §3). `host`: what the Host field says.

    Raises:
        ValueError: the target, or a field, holds what cannot stand there, such as the end of a line.
    """
    if not _TARGET.fullmatch(target):
        raise ValueError("the target of a request holds what cannot stand in it")
    if not _FIELDS.fullmatch("".join(fields.values())):
        raise ValueError("a header field holds what cannot stand in it")
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}", "accept-encoding: identity"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    if content is not None or method in _WITH_CONTENT:
        lines.append(f"content-length: {len(content or b'')}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (content or b"")


def read_answer(
    transport: socket.socket,
    method: str,
    *,
    remaining: Callable[[], float],
    collect: Callable[[bytearray, bytes], None],
) -> Answer:
    """The answer to a request with this method. `remaining` and `collect` are as for `Connections.send`.

    Raises:
        OSError, http.client.HTTPException: it does not come, not whole, or is none.
    """
    received = transport.recv(CHUNK_BYTES)
    head = _plain_head(received, method)
    if head is None:
        return _read_any(transport, received, method, remaining, collect)
    body = bytearray()
    chunk, surplus = received[head.end : head.end + head.length], received[head.end + head.length :]
    missing = head.length - len(chunk)
    if chunk:
        collect(body, chunk)
    while missing:
        transport.settimeout(remaining())
        chunk = transport.recv(min(missing, CHUNK_BYTES))
        if not chunk:
            raise http.client.IncompleteRead(b"", missing)
        missing -= len(chunk)
        collect(body, chunk)
    is_last = bool(surplus) or "close" in head.fields.get("connection", "").lower()
    return Answer(HttpResponse(head.status, head.fields, bytes(body)), is_last)


def _plain_head(received: bytes, method: str) -> _Head | None:
    """The head that `received` begins with, if it is one of the plain form."""
    match = _PLAIN_HEAD.match(received)
    if match is None:
        return None
    fields: dict[str, str] = {}
    for line in match[2].decode("ascii").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        _add(fields, name, value.strip(" \t"))
    status = int(match[1])
    length = "0" if status in _WITHOUT_BODY or method == "HEAD" else fields.get("content-length", "")
    if "transfer-encoding" in fields or not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        return None
    return _Head(status, fields, int(length), match.end())


class _Resumed(io.RawIOBase):
    """What a connection sends, beginning with what was taken from it already. Closing it leaves the connection open."""

    def __init__(self, received: bytes, transport: socket.socket) -> None:
        self._received = received
        self._transport = transport

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # which is what a BufferedReader gives it
        if not self._received:
            return self._transport.recv_into(buffer)
        given, self._received = self._received[: len(buffer)], self._received[len(buffer) :]
        buffer[: len(given)] = given
        return len(given)


def _read_any(
    transport: socket.socket,
    received: bytes,
    method: str,
    remaining: Callable[[], float],
    collect: Callable[[bytearray, bytes], None],
) -> Answer:
    """The answer that begins with `received`, read by the standard library."""
    resumed = _Resumed(received, transport)
    response = http.client.HTTPResponse(resumed, method=method)  # type: ignore[arg-type]  # it takes its makefile alone
    try:
        response.begin()
        body = bytearray()
        while chunk := response.read1(CHUNK_BYTES):
            collect(body, chunk)
            if response.length == 0:
                break
            transport.settimeout(remaining())
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        fields: dict[str, str] = {}
        for name, value in response.headers.items():
            _add(fields, name, value)
        return Answer(HttpResponse(response.status, fields, bytes(body)), response.will_close)
    finally:
        response.close()


def _add(fields: dict[str, str], name: str, value: str) -> None:
    """Names are in lower case; a field that came more than once is a list (RFC 9110 §5.3)."""
    known = name.lower()
    fields[known] = f"{fields[known]}, {value}" if known in fields else value
