"""HTTP/1.1 without I/O, for plain messages (RFC 9112).

Answers of the plain form, as brokers send them, are read here: the head arrives in one piece, its fields are ASCII and
not folded, and the length is given once or there is no body. Any other answer goes to h11 from its first byte on, which
reads or refuses it, at several times the cost.

All parts of an answer are bounded: its head, its fields, the interim answers before it (RFC 9110 §15.2), its body, and
the bytes that it takes to send that body. So no server can fill memory, or keep a reader busy for longer than it takes
to send that much.
"""

import http.client
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from agentwrit.client.exchange import AnswerTooLarge, HttpResponse
from agentwrit.client.secrecy import Secret, revealed

if TYPE_CHECKING:
    import h11

CHUNK_BYTES: Final = 64 * 1024  # read at once
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 100
MAX_INTERIM: Final = 16
MAX_LENGTH_DIGITS: Final = 18

_FIELD_LINE: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e]*\r\n"  # RFC 9112 §5, without obs-text
_PLAIN_HEAD: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2}) [\t\x20-\x7e]*\r\n((?:" + _FIELD_LINE + rb")*)\r\n")
_TARGET: Final = re.compile(r"[\x21-\x7e]+")
_FIELDS: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

_WITH_CONTENT: Final = frozenset({"POST", "PUT", "PATCH"})
_WITHOUT_BODY: Final = frozenset({204, 304})  # RFC 9112 §6.3, 1


class UnfitAnswer(http.client.HTTPException):
    """The data is not an HTTP answer (RFC 9112)."""


class TooLarge(UnfitAnswer, AnswerTooLarge):
    """The answer is larger than the limit."""


class Answer(NamedTuple):
    """A complete answer. `is_last`: no other will come on this connection."""

    response: HttpResponse
    is_last: bool


class _Head(NamedTuple):
    """A head of the plain form. `length`: bytes of the body; `end`: where the body begins."""

    status: int
    fields: dict[str, str]
    length: int
    end: int


def request(
    method: str,
    target: str,
    host: str,
    fields: Mapping[str, str | Secret[str]],
    content: bytes | Secret[bytes] | None,
) -> bytes:
    """The bytes of a request (RFC 9112 §3). `host`: the value of the Host field.

    Raises:
        ValueError: the target or a field holds characters that HTTP does not allow there, such as a line end.
    """
    if not _TARGET.fullmatch(target):
        raise ValueError("the target of a request holds what cannot stand in it")
    if not _FIELDS.fullmatch("".join(map(revealed, fields.values()))):
        raise ValueError("a header field holds what cannot stand in it")
    body = content.reveal() if isinstance(content, Secret) else content
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}", "accept-encoding: identity"]
    lines += [f"{name}: {revealed(value)}" for name, value in fields.items()]
    if body is not None or method in _WITH_CONTENT:
        lines.append(f"content-length: {len(body or b'')}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class AnswerReader:
    """Reads the answer to one request, as it arrives. `max_bytes`: the largest body to accept."""

    def __init__(self, method: str, *, max_bytes: int) -> None:
        self._method = method
        self._max_bytes = max_bytes
        self._received = 0
        self._interim = 0
        self._head: _Head | None = None
        self._parser: h11.Connection | None = None
        self._parsed: tuple[int, dict[str, str]] | None = None
        self._body = bytearray()

    def feed(self, data: bytes) -> Answer | None:
        """Take data from the connection. Returns the answer once it is complete.

        Raises:
            UnfitAnswer: it is not an HTTP answer, or it is too large.
        """
        if not self._received:
            self._head = _plain_head(data, self._method)
            if self._head is None:
                self._parser = _parser(self._method)
        is_first, self._received = not self._received, self._received + len(data)
        if self._head is None:
            return self._parse(data)
        if self._head.length > self._max_bytes:
            raise TooLarge
        missing = self._head.length - len(self._body)
        begin = self._head.end if is_first else 0
        self._body += data[begin : begin + missing]
        if len(self._body) < self._head.length:
            return None
        is_last = len(data) > begin + missing or "close" in self._head.fields.get("connection", "").lower()
        return Answer(HttpResponse(self._head.status, self._head.fields, bytes(self._body)), is_last)

    def end(self) -> Answer:
        """The connection has ended. Returns the answer if the end of the connection completes it (RFC 9112 §6.3, 8).

        Raises:
            http.client.HTTPException: the answer is incomplete.
        """
        if not self._received:
            raise http.client.RemoteDisconnected("the connection was closed without an answer")
        answer = None
        if self._head is None:
            try:
                answer = self._parse(b"")
            except TooLarge:
                raise
            except UnfitAnswer:
                answer = None
        if answer is None:
            raise http.client.IncompleteRead(b"")
        return answer

    def _parse(self, data: bytes) -> Answer | None:
        import h11  # here, because a broker's own answers do not need it

        assert self._parser is not None  # noqa: S101  # without a plain head there is one
        try:
            self._parser.receive_data(data)
            while True:
                event = self._parser.next_event()
                if isinstance(event, h11.EndOfMessage):
                    return self._parsed_answer()
                if event is h11.NEED_DATA:
                    # Counts the body as it arrives, and the framing around it, for example chunks of one byte each.
                    if self._received > MAX_HEAD_BYTES + (0 if self._parsed is None else 2 * self._max_bytes):
                        raise TooLarge
                    return None
                self._take(event)
        except h11.RemoteProtocolError as error:
            is_too_large = error.error_status_hint == 431
        raise TooLarge if is_too_large else UnfitAnswer

    def _take(self, event: object) -> None:
        import h11

        match event:
            case h11.InformationalResponse(status_code=status):
                self._interim += 1
                if self._interim > MAX_INTERIM:
                    raise TooLarge
                if status == 101:  # no other protocol was requested
                    raise UnfitAnswer
            case h11.Response(status_code=status, headers=headers):
                if len(headers) > MAX_FIELDS:
                    raise TooLarge
                fields: dict[str, str] = {}
                for name, value in headers:
                    _add(fields, name.decode("ascii"), value.decode("latin-1"))
                self._parsed = status, fields
            case h11.Data(data=data):
                self._body += data
                if len(self._body) > self._max_bytes:
                    raise TooLarge
            case _:
                raise UnfitAnswer

    def _parsed_answer(self) -> Answer:
        import h11

        assert self._parser is not None  # noqa: S101  # as above
        assert self._parsed is not None  # noqa: S101  # the end comes after the head
        status, fields = self._parsed
        # RFC 9112 §6.3, 3: an answer with both framings may be an attempt at response splitting.
        is_doubtful = "transfer-encoding" in fields and "content-length" in fields
        is_last = self._parser.their_state is not h11.DONE or bool(self._parser.trailing_data[0]) or is_doubtful
        return Answer(HttpResponse(status, fields, bytes(self._body)), is_last)


def _plain_head(received: bytes, method: str) -> _Head | None:
    """The head at the start of `received`, if it has the plain form."""
    match = _PLAIN_HEAD.match(received)
    if match is None:
        return None
    lines = match[2].decode("ascii").split("\r\n")[:-1]
    if len(lines) > MAX_FIELDS:
        return None
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        _add(fields, name, value.strip(" \t"))
    status = int(match[1])
    length = "0" if status in _WITHOUT_BODY or method == "HEAD" else fields.get("content-length", "")
    if "transfer-encoding" in fields or not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        return None
    return _Head(status, fields, int(length), match.end())


def _parser(method: str) -> "h11.Connection":
    """A parser for the answer to a request with this method. It has to see a request sent, with any content."""
    import h11

    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    parser.send(h11.Request(method=method, target="/", headers=[("host", "broker")]))
    parser.send(h11.EndOfMessage())
    return parser


def _add(fields: dict[str, str], name: str, value: str) -> None:
    """Add a field under its name in lower case. A field that occurs more than once becomes a list (RFC 9110 §5.3)."""
    known = name.lower()
    fields[known] = f"{fields[known]}, {value}" if known in fields else value
