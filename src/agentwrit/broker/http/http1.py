"""One request of HTTP/1.1, from its first byte to its last, and no byte more (RFC 9112). Without I/O.

llhttp decides what the bytes say, by the public interface of httptools and with none of its leniencies. The bytes of a
request are kept from being read as another's like this:

- A head ends with a blank line, and so does a body in chunks. The parser is fed up to the next blank line at most, and
  says whether the request is whole. It is never shown what comes after.
- A body of a declared length is counted, and no parser sees it.
- Each request has a parser of its own, which is gone with it. A parser that begins a second request has failed.

What is refused although llhttp takes it, because others read it otherwise:

- a request line that is spelled in any way but the one of §3: blanks or line ends too many, RTSP, other versions
- not exactly one Host field, or one that names no host; in HTTP/1.0 more than one (§3.2)
- a request target that is neither a path nor the URL of this host, or that has a fragment; CONNECT (§3.2)
- a Transfer-Encoding that is not chunked alone, or that comes in HTTP/1.0 or with an upgrade (§6.1)
- a Content-Length or Transfer-Encoding with other blanks around its value than the one in front of it
- a second Content-Length, Transfer-Encoding, Upgrade or Expect field, and any expectation but 100-continue
  (RFC 9110 §10.1.1)

An upgrade is not made: the request is answered as what it is, and as the last one of its connection. So is each request
of HTTP/1.0. Trailers are read and dropped.
"""

import re
from typing import Any, Final, TypedDict
from urllib.parse import unquote

import httptools

from agentwrit.domain.errors import InvalidRequest, PayloadTooLarge, Refusal

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_FIELDS: Final = 256
MAX_BODY_BYTES: Final = 1024 * 1024
MAX_FRAMING_BYTES: Final = 64 * 1024  # of a body in chunks: what is not the body itself
MAX_BLANK_LINES: Final = 4096  # in a body in chunks: the parser is called for each

_BLANK_LINE: Final = b"\r\n\r\n"
_FRAMING: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade"})
_LENGTHS: Final = frozenset({b"content-length", b"transfer-encoding"})
_OWS: Final = b" \t"  # RFC 9110 §5.6.3

# uri-host [":" port] (RFC 9110 §7.2); whether it is a name or an address is not asked.
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~%!$&'()*+,;=]+|\[[A-Za-z0-9\-._~%:]+\])(?::[0-9]*)?")

_NOT_HTTP: Final = "this is not HTTP/1.1"


class Scope(TypedDict):
    """What a request's head says, under ASGI's names. Names of header fields are in lower case."""

    http_version: str
    method: str
    scheme: str
    path: str
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    client: tuple[str, int] | None
    server: tuple[str, int] | None


class RequestReader:
    """Reads one request. `client`: the peer's address and port, if it has them; `server`: those it came to.

    `scope` is there when the head is whole, `body` when `is_whole`. `is_last`: nothing that follows is to be read.
    `wants_continue`: the client waits for a word before it sends the body (RFC 9110 §10.1.1).
    """

    __slots__ = (
        "_blank_lines",
        "_chunked_bytes",
        "_client",
        "_fields",
        "_framing",
        "_gathered",
        "_has_begun",
        "_has_ended",
        "_head",
        "_lengths",
        "_missing",
        "_parser",
        "_raw",
        "_read_end",
        "_refusal",
        "_scheme",
        "_server",
        "_url",
        "body",
        "is_last",
        "is_whole",
        "scope",
        "wants_continue",
    )  # fmt: skip

    def __init__(self, scheme: str, client: tuple[str, int] | None, server: tuple[str, int] | None = None) -> None:
        self.scope: Scope | None = None
        self.body = b""
        self.is_whole = self.is_last = self.wants_continue = False
        self._scheme = scheme
        self._client, self._server = client, server
        self._raw = b""  # the head as it came
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._framing: dict[bytes, bytes] = {}
        self._lengths: list[tuple[bytes, bytes]] = []  # as they were spelled
        self._head: tuple[bytes, bool, bool] | None = None  # method, keep-alive, upgrade
        self._read_end = b""  # where a blank line may have begun
        self._missing = 0  # of a body whose length was declared
        self._gathered: bytearray | None = None  # of a body that does not come in one piece
        self._chunked_bytes = self._blank_lines = 0
        self._has_begun = self._has_ended = False
        self._refusal: Refusal | None = None
        self._parser: Any = httptools.HttpRequestParser(self)

    @property
    def held(self) -> int:
        """How many bytes of the request are kept."""
        return len(self._raw) + len(self.body if self._gathered is None else self._gathered)

    def feed(self, data: bytes) -> bytes:
        """Read on. Returns what is behind the request, unread.

        Raises:
            InvalidRequest: it is none, or could be read in two ways. Nothing more of its connection may be read.
            PayloadTooLarge: its body is over 1 MiB. Likewise; if the length was declared, `scope` is there.
        """
        try:
            while data and not self.is_whole:
                data = self._take(data) if self._missing else self._parse(data)
        except Refusal:
            self.close()
            raise
        if self.is_whole:
            self.close()
        return data

    def close(self) -> None:
        """Let go of the parser: the two hold each other."""
        self._parser = None

    def _take(self, data: bytes) -> bytes:
        """Take what belongs to a body of a declared length."""
        piece, rest = data[: self._missing], data[self._missing :]
        self._missing -= len(piece)
        if not self._missing and self._gathered is None:
            self.body = piece
        else:
            self._gather(piece)
        if not self._missing:
            self._complete()
        return rest

    def _parse(self, data: bytes) -> bytes:
        """Have the parser read up to the next blank line."""
        known = self._read_end
        at = (known + data if known else data).find(_BLANK_LINE)
        if at < 0:
            piece, rest = data, b""
            self._read_end = (known + data)[-3:]
        else:
            end = at + len(_BLANK_LINE) - len(known)
            piece, rest = data[:end], data[end:]
            self._read_end = _BLANK_LINE[1:]
            self._blank_lines += 1
        if self.scope is None:
            if len(self._raw) + len(piece) > MAX_HEAD_BYTES:
                raise InvalidRequest(f"a request's head has at most {MAX_HEAD_BYTES} bytes")
            self._raw += piece
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            pass  # it stops behind the head, as it would anyway: the piece ends there
        except httptools.HttpParserError as error:
            raise self._refusal or InvalidRequest(_NOT_HTTP, hint=str(error)) from None
        if self.scope is not None:
            self._count_chunked(len(piece))
        elif self._head is not None:
            self._read_head(*self._head)
        return rest

    def _count_chunked(self, count: int) -> None:
        self._chunked_bytes += count
        framing = self._chunked_bytes - len(self._gathered or b"")
        if framing > MAX_FRAMING_BYTES or self._blank_lines > MAX_BLANK_LINES:
            raise PayloadTooLarge("a body in chunks has too much besides the body")
        if self._has_ended:
            self._complete()

    def _gather(self, piece: bytes) -> None:
        if self._gathered is None:
            self._gathered = bytearray()
        self._gathered += piece

    def _complete(self) -> None:
        if self._gathered is not None:
            self.body, self._gathered = bytes(self._gathered), None
        self.is_whole = True

    # -- what the head says --------------------------------------------------------------------------------------------

    def _read_head(self, method: bytes, is_kept_alive: bool, is_upgrade: bool) -> None:
        is_old = not self._raw.startswith(b"%b %b HTTP/1.1\r\n" % (method, self._url))
        if is_old and not self._raw.startswith(b"%b %b HTTP/1.0\r\n" % (method, self._url)):
            raise InvalidRequest("the request line is not one of HTTP/1.1")
        framing = self._framing
        host = framing.get(b"host")
        if host is None and not is_old:
            raise InvalidRequest("a request of HTTP/1.1 has a host field")
        if host is not None and _HOST.fullmatch(host) is None:
            raise InvalidRequest("the host field names no host")
        path, query = self._target(method, host)
        is_chunked, length = self._extent(is_old or is_upgrade, is_upgrade)
        expected = framing.get(b"expect")
        if expected is not None and not is_old:
            if expected.lower() != b"100-continue":
                raise InvalidRequest("an expectation other than 100-continue cannot be met")
            self.wants_continue = True
        self.is_last = is_old or b"upgrade" in framing or not is_kept_alive
        self.scope = {
            "http_version": "1.0" if is_old else "1.1",
            "method": method.decode("ascii"),
            "scheme": self._scheme,
            "path": path,
            "query_string": query,
            "headers": self._fields,
            "client": self._client,
            "server": self._server,
        }
        if length > MAX_BODY_BYTES:
            raise _too_large()
        self._missing = length
        if not length and not is_chunked:
            self._complete()

    def _extent(self, is_without_chunks: bool, is_upgrade: bool) -> tuple[bool, int]:
        """Whether the body comes in chunks, and else how long it is (RFC 9112 §6.3)."""
        for field in self._lengths:
            if b"\r\n%b: %b\r\n" % field not in self._raw and b"\r\n%b:%b\r\n" % field not in self._raw:
                raise InvalidRequest("the length of the body is not spelled as HTTP/1.1 does")
        coding = self._framing.get(b"transfer-encoding")
        if coding is not None:
            if coding.lower() != b"chunked" or is_without_chunks:
                raise InvalidRequest("a body comes with its length or, in HTTP/1.1, in chunks")
            return True, 0
        length = int(self._framing.get(b"content-length", b"0"))
        if not is_upgrade and self._has_ended is (length > 0):
            raise InvalidRequest(_NOT_HTTP)  # the parser and we would differ on where the request ends
        return False, length

    def _target(self, method: bytes, host: bytes | None) -> tuple[str, bytes]:
        """The path and the query of the request target."""
        target = self._url
        if b"#" in target or method == b"CONNECT":
            raise InvalidRequest("the request target is not one of this broker's")
        if not target.startswith(b"/"):
            if target == b"*" and method == b"OPTIONS":  # RFC 9112 §3.2.4
                return "*", b""
            base = b"%b://%b" % (self._scheme.encode("ascii"), host or b"")
            is_own = target[: len(base)].lower() == base.lower() and target[len(base) : len(base) + 1] in b"/?"
            if host is None or not is_own:  # RFC 9112 §3.2.2
                raise InvalidRequest("the request target is not one of this broker's")
            target = target[len(base) :]
        raw_path, _, query = target.partition(b"?")
        path = raw_path.decode("latin-1") or "/"
        return unquote(path) if "%" in path else path, query

    # -- called by the parser ------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._has_begun:
            raise InvalidRequest(_NOT_HTTP)
        self._has_begun = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is not None:
            return  # a trailer
        field = name.lower(), value.rstrip(_OWS)
        self._fields.append(field)
        if field[0] in _FRAMING:
            if field[0] in self._framing:
                self._refuse(f"there is more than one {field[0].decode('ascii')} field")
            self._framing[field[0]] = field[1]
            if field[0] in _LENGTHS:
                self._lengths.append((name, field[1]))
        elif len(self._fields) > MAX_FIELDS:
            self._refuse(f"a request's head has at most {MAX_FIELDS} fields")

    def on_headers_complete(self) -> None:
        parser = self._parser
        self._head = parser.get_method(), parser.should_keep_alive(), parser.should_upgrade()

    def on_body(self, body: bytes) -> None:
        if len(self._gathered or b"") + len(body) > MAX_BODY_BYTES:
            self._refusal = _too_large()
            raise self._refusal
        self._gather(body)

    def on_message_complete(self) -> None:
        self._has_ended = True

    def _refuse(self, detail: str) -> None:
        """Refuse the request from within the parser, which would hide the reason."""
        self._refusal = InvalidRequest(detail)
        raise self._refusal


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"a body has at most {MAX_BODY_BYTES} bytes")
