"""What is read as a request, and what is refused: beside what llhttp makes of the same bytes by itself."""

from typing import Any, NamedTuple

import httptools
import pytest

from agentwrit.broker.http.http1 import (
    MAX_BLANK_LINES,
    MAX_BODY_BYTES,
    MAX_FIELDS,
    MAX_FRAMING_BYTES,
    MAX_HEAD_BYTES,
    RequestReader,
)
from agentwrit.domain.errors import InvalidRequest, PayloadTooLarge, Refusal

HOST = b"Host: h\r\n"
GET = b"GET /a HTTP/1.1\r\n" + HOST
POST = b"POST /b HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n"


class Shape(NamedTuple):
    """Bytes, what llhttp by itself makes of them (how many requests, and whether it fails), and what we read."""

    name: str
    data: bytes
    llhttp: str
    read: str


REFUSED = "refused"
SHAPES = [
    Shape("plain", GET + b"\r\n" + NEXT, "2", "GET /a, GET /next"),
    Shape("a length", POST + b"Content-Length: 3\r\n\r\nabc" + NEXT, "2", "POST /b abc, GET /next"),
    Shape("a length of nothing", POST + b"Content-Length: 0\r\n\r\n" + NEXT, "2", "POST /b, GET /next"),
    Shape("a length with zeros in front", POST + b"Content-Length: 003\r\n\r\nabc", "1", "POST /b abc"),
    Shape("chunks", CHUNKED + b"1\r\na\r\n2;x=y\r\nbc\r\n0\r\n\r\n" + NEXT, "2", "POST /b abc, GET /next"),
    Shape("blank lines in chunks", CHUNKED + b"6\r\n\r\n\r\n\r\n\r\n0\r\n\r\n" + NEXT, "2",
          "POST /b \r\n\r\n\r\n, GET /next"),
    Shape("blank lines in a body", POST + b"Content-Length: 6\r\n\r\n\r\n\r\n\r\n" + NEXT, "2",
          "POST /b \r\n\r\n\r\n, GET /next"),
    Shape("a request in a body", POST + b"Content-Length: %d\r\n\r\n" % len(NEXT) + NEXT, "1",
          f"POST /b {NEXT.decode()}"),
    Shape("chunks in capitals", POST + b"Transfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n" + NEXT, "2",
          "POST /b, GET /next"),
    Shape("trailers", CHUNKED + b"0\r\nA: b\r\nHost: other\r\nConnection: close\r\n\r\n", "1", "POST /b"),
    Shape("a body of GET", GET + b"Content-Length: 3\r\n\r\nabc" + NEXT, "2", "GET /a abc, GET /next"),
    Shape("a query", b"GET /a%20b?c=%20#" [:-1] + b" HTTP/1.1\r\n" + HOST + b"\r\n", "1", "GET /a b?c=%20"),
    Shape("the last one", GET + b"Connection: close\r\n\r\n" + NEXT, "1 fails", "GET /a last"),
    Shape("the last one of several words", GET + b"Connection: a, Close\r\n\r\n" + NEXT, "1 fails", "GET /a last"),
    Shape("HTTP/1.0", b"GET /a HTTP/1.0\r\n\r\n" + NEXT, "1 fails", "GET /a last"),
    Shape("HTTP/1.0 that would go on", b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + NEXT, "2",
          "GET /a last"),
    Shape("no end in sight", POST + b"Content-Length: 5\r\n\r\nabc", "0", "unfinished"),
    Shape("a chunk without an end", CHUNKED + b"ffffffffffffffff\r\nabc", "0", "unfinished"),
    # Upgrades: what comes behind the head is the body, and the request is the last one.
    Shape("upgrade", GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + NEXT, "1 fails", "GET /a last"),
    Shape("upgrade with a body", POST + b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 3\r\n\r\nabc" + NEXT,
          "1 fails", "POST /b abc last"),
    Shape("upgrade without the option", GET + b"Upgrade: h2c\r\n\r\n" + NEXT, "2", "GET /a last"),
    Shape("upgrade in chunks",
          POST + b"Connection: upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
          "1 fails", REFUSED),
    Shape("two upgrades", GET + b"Upgrade: x\r\nUpgrade: y\r\n\r\n", "1", REFUSED),
    Shape("CONNECT", b"CONNECT h:80 HTTP/1.1\r\n" + HOST + b"\r\n" + NEXT, "1 fails", REFUSED),
    Shape("CONNECT to a path", b"CONNECT /a HTTP/1.1\r\n" + HOST + b"\r\n", "1 fails", REFUSED),
    # Where the body ends.
    Shape("a length and chunks", POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "0 fails",
          REFUSED),
    Shape("chunks and a length", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", "0 fails",
          REFUSED),
    Shape("the same length twice", POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", "0 fails", REFUSED),
    Shape("two lengths in one", POST + b"Content-Length: 1, 1\r\n\r\nx", "0 fails", REFUSED),
    Shape("a signed length", POST + b"Content-Length: +1\r\n\r\nx", "0 fails", REFUSED),
    Shape("a length below zero", POST + b"Content-Length: -1\r\n\r\nx", "0 fails", REFUSED),
    Shape("a hexadecimal length", POST + b"Content-Length: 0x1\r\n\r\nx", "0 fails", REFUSED),
    Shape("an empty length", POST + b"Content-Length: \r\n\r\n", "0 fails", REFUSED),
    Shape("a length that overflows", POST + b"Content-Length: 18446744073709551617\r\n\r\nx", "0 fails", REFUSED),
    Shape("a length with a tab", POST + b"Content-Length:\t1\r\n\r\nx", "1", REFUSED),
    Shape("a length with a blank behind", POST + b"Content-Length: 1 \r\n\r\nx", "1", REFUSED),
    Shape("chunks with a tab", POST + b"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n", "1", REFUSED),
    Shape("chunks twice", POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
          "0 fails", REFUSED),
    Shape("another coding in front", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "1", REFUSED),
    Shape("another coding behind", POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "0 fails", REFUSED),
    Shape("another coding", POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "0 fails", REFUSED),
    Shape("no coding", POST + b"Transfer-Encoding: identity\r\n\r\n", "0 fails", REFUSED),
    Shape("an empty coding", POST + b"Transfer-Encoding:\r\n\r\n", "0 fails", REFUSED),
    Shape("a blank before the colon", POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "0 fails", REFUSED),
    Shape("chunks in HTTP/1.0", b"POST /b HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "1", REFUSED),
    Shape("a length among the trailers", CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n", "0 fails", REFUSED),
    Shape("a chunk's size with a blank", CHUNKED + b"1 \r\na\r\n0\r\n\r\n", "0 fails", REFUSED),
    Shape("a chunk's size in C", CHUNKED + b"0x1\r\na\r\n0\r\n\r\n", "0 fails", REFUSED),
    Shape("a chunk without a size", CHUNKED + b"\r\na\r\n0\r\n\r\n", "0 fails", REFUSED),
    Shape("a chunk that overflows", CHUNKED + b"ffffffffffffffff1\r\na\r\n", "0 fails", REFUSED),
    Shape("a chunk longer than its size", CHUNKED + b"1\r\nab\r\n0\r\n\r\n", "0 fails", REFUSED),
    Shape("chunks by bare LF", CHUNKED + b"1\na\n0\n\n", "0 fails", REFUSED),
    Shape("a bare LF in an extension", CHUNKED + b"1;a\nb\r\na\r\n0\r\n\r\n", "0 fails", REFUSED),
    Shape("a last chunk by bare LF", CHUNKED + b"0\r\n\n", "0 fails", REFUSED),
    # Lines.
    Shape("obs-fold", GET + b"X: a\r\n b\r\n\r\n", "0 fails", REFUSED),
    Shape("a folded length", POST + b"Content-Length:\r\n 1\r\n\r\nx", "0 fails", REFUSED),
    Shape("a blank in front of the first field", b"GET /a HTTP/1.1\r\n Host: h\r\n\r\n", "0 fails", REFUSED),
    Shape("bare LF", GET.replace(b"\r\n", b"\n") + b"\n", "0 fails", REFUSED),
    Shape("bare LF behind a field", b"GET /a HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", "0 fails", REFUSED),
    Shape("bare LF at the end", GET + b"\n", "0 fails", REFUSED),
    Shape("bare CR", GET.replace(b"\r\n", b"\r") + b"\r", "0 fails", REFUSED),
    Shape("bare CR in a field", GET + b"X: a\rY: b\r\n\r\n", "0 fails", REFUSED),
    Shape("CR twice", GET + b"X: a\r\r\n\r\n", "0 fails", REFUSED),
    Shape("NUL in a field", GET + b"X: a\x00b\r\n\r\n", "0 fails", REFUSED),
    Shape("a control character in a field", GET + b"X: a\x0bb\r\n\r\n", "0 fails", REFUSED),
    Shape("an empty name", GET + b": x\r\n\r\n", "0 fails", REFUSED),
    Shape("a name with a blank", GET + b"a b: x\r\n\r\n", "0 fails", REFUSED),
    Shape("no colon", GET + b"foo\r\n\r\n", "0 fails", REFUSED),
    Shape("an empty line in front", b"\r\n" + GET + b"\r\n", "1", REFUSED),
    Shape("LF in front", b"\n" + GET + b"\r\n", "1", REFUSED),
    Shape("an empty line between two", GET + b"\r\n\r\n" + NEXT, "2", "GET /a, refused"),
    # The request line.
    Shape("two blanks behind the method", b"GET  /a HTTP/1.1\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("two blanks behind the target", b"GET /a  HTTP/1.1\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("a blank behind the version", b"GET /a HTTP/1.1 \r\n" + HOST + b"\r\n", "0 fails", REFUSED),
    Shape("a blank in the target", b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", "0 fails", REFUSED),
    Shape("a tab", b"GET\t/a HTTP/1.1\r\n" + HOST + b"\r\n", "0 fails", REFUSED),
    Shape("HTTP/0.9", b"GET /a HTTP/0.9\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("HTTP/1.2", b"GET /a HTTP/1.2\r\n" + HOST + b"\r\n", "0 fails", REFUSED),
    Shape("HTTP/2.0", b"GET /a HTTP/2.0\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "0 fails", REFUSED),
    Shape("RTSP", b"GET /a RTSP/1.0\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("a version in small letters", b"GET /a http/1.1\r\n" + HOST + b"\r\n", "0 fails", REFUSED),
    Shape("a method in small letters", b"get /a HTTP/1.1\r\n" + HOST + b"\r\n", "0 fails", REFUSED),
    Shape("an unknown method", b"BREW /a HTTP/1.1\r\n" + HOST + b"\r\n", "0 fails", REFUSED),
    Shape("TLS", b"\x16\x03\x01\x02\x00\x01\x00", "0 fails", REFUSED),
    # The host and the target.
    Shape("no host", b"GET /a HTTP/1.1\r\n\r\n", "1", REFUSED),
    Shape("no host in HTTP/1.0", b"GET /a HTTP/1.0\r\n\r\n", "1", "GET /a last"),
    Shape("two hosts", GET + HOST + b"\r\n", "1", REFUSED),
    Shape("an empty host", b"GET /a HTTP/1.1\r\nHost:\r\n\r\n", "1", REFUSED),
    Shape("a host that is none", b"GET /a HTTP/1.1\r\nHost: a b/@\r\n\r\n", "1", REFUSED),
    Shape("a list of hosts", b"GET /a HTTP/1.1\r\nHost: a, b\r\n\r\n", "1", REFUSED),
    Shape("an address and a port", b"GET /a HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", "1", "GET /a"),
    Shape("the URL of this host", b"GET http://H/a?b HTTP/1.1\r\n" + HOST + b"\r\n", "1", "GET /a?b"),
    Shape("the URL of this host without a path", b"GET http://h HTTP/1.1\r\n" + HOST + b"\r\n", "1", "GET /"),
    Shape("the URL of another host", b"GET http://other/a HTTP/1.1\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("the URL of a host that begins like it", b"GET http://hh/a HTTP/1.1\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("the URL of another port", b"GET http://h:1/a HTTP/1.1\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("the URL of somebody at this host", b"GET http://h@other/a HTTP/1.1\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("the URL of another scheme", b"GET https://h/a HTTP/1.1\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("a URL in HTTP/1.0", b"GET http://h/a HTTP/1.0\r\n\r\n", "1", REFUSED),
    Shape("an asterisk", b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", "1", "OPTIONS *"),
    Shape("an asterisk of GET", b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("a relative path", b"GET a HTTP/1.1\r\n" + HOST + b"\r\n", "0 fails", REFUSED),
    Shape("a fragment", b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n", "1", REFUSED),
    Shape("NUL in the target", b"GET /a\x00 HTTP/1.1\r\n" + HOST + b"\r\n", "0 fails", REFUSED),
    Shape("letters beyond ASCII in the target", "GET /é HTTP/1.1\r\nHost: h\r\n\r\n".encode(), "0 fails", REFUSED),
    # Expectations.
    Shape("an expectation", POST + b"Content-Length: 1\r\nExpect: 100-Continue\r\n\r\nx", "1", "POST /b x"),
    Shape("another expectation", POST + b"Content-Length: 1\r\nExpect: 200-ok\r\n\r\nx", "1", REFUSED),
    Shape("an expectation of HTTP/1.0", b"POST /b HTTP/1.0\r\nContent-Length: 1\r\nExpect: x\r\n\r\nx", "1",
          "POST /b x last"),
]  # fmt: skip
NAMES = [shape.name for shape in SHAPES]


class Alone:
    """What the parser calls."""

    def __init__(self) -> None:
        self.count = 0

    def on_message_complete(self) -> None:
        self.count += 1

    def on_body(self, body: bytes) -> None: ...
    def on_url(self, url: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_message_begin(self) -> None: ...


def read(*pieces: bytes) -> str:
    """What is read from pieces that arrive one after the other on a connection."""
    found: list[str] = []
    reader = RequestReader("http", None)
    for piece in pieces:
        data = piece
        while data:
            try:
                data = reader.feed(data)
            except Refusal:
                return ", ".join([*found, REFUSED])
            if not reader.is_whole:
                continue
            found.append(shown(reader))
            if reader.is_last:
                return ", ".join(found)
            reader = RequestReader("http", None)
    return ", ".join(found) if not reader.held else ", ".join([*found, "unfinished"])


def shown(reader: RequestReader) -> str:
    scope: Any = reader.scope
    query = "?" + scope["query_string"].decode() if scope["query_string"] else ""
    parts = [scope["method"], scope["path"] + query, reader.body.decode(), "last" if reader.is_last else ""]
    return " ".join(part for part in parts if part)


@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_each_shape_is_read_as_the_table_says(shape: Shape) -> None:
    assert read(shape.data) == shape.read


@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_where_it_is_cut_changes_nothing(shape: Shape) -> None:
    data = shape.data
    assert read(*(data[at : at + 1] for at in range(len(data)))) == shape.read
    for at in range(1, len(data)):
        assert read(data[:at], data[at:]) == shape.read


@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_the_parser_alone_is_as_lenient_as_the_table_says(shape: Shape) -> None:
    """What we are stricter about is known: a version of the library that takes or refuses more is noticed here."""
    found = Alone()
    try:
        httptools.HttpRequestParser(found).feed_data(shape.data)
        assert shape.llhttp == f"{found.count}"
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        assert shape.llhttp == f"{found.count} fails"


def test_nothing_behind_a_request_is_looked_at() -> None:
    for whole in (GET + b"\r\n", POST + b"Content-Length: 3\r\n\r\nabc", CHUNKED + b"3\r\nabc\r\n0\r\n\r\n"):
        for behind in (b"\x00", b"\r\n", b"\r\n\r\n", b"GET", NEXT, bytes(range(256))):
            reader = RequestReader("http", None)
            assert reader.feed(whole + behind) == behind
            assert reader.is_whole


def refusal(*pieces: bytes) -> Refusal:
    reader = RequestReader("http", None)
    try:
        for piece in pieces:
            assert reader.feed(piece) == b""
    except Refusal as refused:
        return refused
    raise AssertionError("it was not refused")


def head_of(size: int) -> bytes:
    head = GET + b"X: \r\n\r\n"
    return head.replace(b"X: ", b"X: " + b"x" * (size - len(head)))


def test_a_head_of_32_kib_is_read_and_a_byte_more_is_refused_however_it_comes() -> None:
    assert read(head_of(MAX_HEAD_BYTES)) == "GET /a"
    for size in (MAX_HEAD_BYTES + 1, 250_000):
        head = head_of(size)
        for pieces in ([head], [head[:100], head[100:]], [head[at : at + 1000] for at in range(0, size, 1000)]):
            assert isinstance(refusal(*pieces), InvalidRequest)


def test_a_head_has_so_many_fields_and_no_more() -> None:
    assert read(GET + b"A: b\r\n" * (MAX_FIELDS - 1) + b"\r\n") == "GET /a"
    assert str(MAX_FIELDS) in refusal(GET + b"A: b\r\n" * MAX_FIELDS + b"\r\n").detail


def test_a_body_of_1_mib_is_read_and_a_byte_more_is_refused_however_it_comes() -> None:
    for size, is_read in ((MAX_BODY_BYTES, True), (MAX_BODY_BYTES + 1, False)):
        body = b"x" * size
        chunk = b"%x\r\n%b\r\n" % (size, body)
        for data in (POST + b"Content-Length: %d\r\n\r\n%b" % (size, body), CHUNKED + chunk + b"0\r\n\r\n"):
            for pieces in ([data], [data[:1000], data[1000:]]):
                if is_read:
                    assert read(*pieces) == f"POST /b {body.decode()}"
                else:
                    assert isinstance(refusal(*pieces), PayloadTooLarge)


def test_what_is_too_large_by_its_own_word_is_known_by_its_head() -> None:
    reader = RequestReader("http", None)
    with pytest.raises(PayloadTooLarge):
        reader.feed(POST + b"Content-Length: %d\r\n\r\n" % 2**63)
    assert reader.scope is not None
    assert reader.scope["path"] == "/b"


@pytest.mark.parametrize(
    "filling",
    [
        b"1;" + b"a" * MAX_FRAMING_BYTES + b"\r\nx\r\n",
        b"1\r\nx\r\n" * (MAX_FRAMING_BYTES // 5 + 1),
        b"0" * MAX_FRAMING_BYTES + b"1\r\nx\r\n",
        b"0\r\n" + b"A: b\r\n" * (MAX_FRAMING_BYTES // 6 + 1),
        b"%x\r\n" % MAX_BODY_BYTES + b"\r\n" * 2 * (MAX_BLANK_LINES + 1),
    ],
    ids=["extension", "small chunks", "zeros", "trailers", "blank lines"],
)
def test_a_body_in_chunks_costs_little_besides_the_body(filling: bytes) -> None:
    pieces = [filling[at : at + 60_000] for at in range(0, len(filling), 60_000)]
    assert isinstance(refusal(CHUNKED, *pieces), PayloadTooLarge)


def test_what_waits_is_counted() -> None:
    reader = RequestReader("http", None)
    reader.feed(GET)
    assert reader.held == len(GET)
    reader.feed(b"Content-Length: 10\r\n\r\n12345")
    assert reader.held == len(GET) + len(b"Content-Length: 10\r\n\r\n12345")
