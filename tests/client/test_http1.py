"""Messages as plain as ours are read here, and as the standard library reads them; all others it reads itself."""

import http.client
import io
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwrit.client import http1
from agentwrit.client.exchange import HttpResponse

LIMIT = 10**18


def read(*parts: bytes, method: str = "POST", max_bytes: int = LIMIT) -> http1.Answer:
    """What is read on a connection on which these parts come, one after the other, and then the end."""
    reader = http1.AnswerReader(method, max_bytes=max_bytes)
    for part in filter(None, parts):
        answer = reader.feed(part)
        if answer is not None:
            return answer
    return reader.end()


class Replay:
    """What the standard library reads an answer from."""

    def __init__(self, received: bytes) -> None:
        self._received = received

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._received)


def read_by_the_standard_library(received: bytes, method: str) -> tuple[HttpResponse, bool]:
    response = http.client.HTTPResponse(Replay(received), method=method)  # type: ignore[arg-type]
    response.begin()
    fields: dict[str, str] = {}
    for name, value in response.headers.items():
        known, bare = name.lower(), value.strip(" \t")
        fields[known] = f"{fields[known]}, {bare}" if known in fields else bare
    return HttpResponse(response.status, fields, response.read()), response.will_close


LINES = st.sampled_from(
    [
        b"connection: close",
        b"Connection: Keep-Alive, Close",
        b"connection: keep-alive",
        b"www-authenticate: DPoP a",
        b"WWW-Authenticate: Bearer b",
        b"x:",
        b"date: Tue, 24 Nov 2026 02:41:43 GMT",
    ]
)
ODD_LINES = st.sampled_from(
    [
        b"content-length: 5",
        b"Content-Length:0",
        b"content-length:\t3 ",
        b"content-length: 5, 5",
        b"content-length: -1",
        b"content-length: +5",
        b"content-length: 0x5",
        b"content-length: 1_0",
        b"content-length: " + b"0" * 20 + b"5",
        b"content-length : 5",
        b" content-length: 5",
        b"transfer-encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"x: caf\xe9",
        b"x:\x00",
        b"x: a\x0bb\x1cc\x85d",
        b"x: a\rcontent-length: 1",
        b"x: a\ncontent-length: 1",
        b"x",
        b": x",
        b"From me: x",
        b"\tfolded",
        b"(x): y",
    ]
)
STARTS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 201 ",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 304 Not Modified",
        b"HTTP/1.1 200",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 1000 OK",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy",
        b"HTTP/1.1 103 Early",
        b"HTTP/1.1 999 What",
        b"HTTP/1.0 200 OK",
        b"HTTP/2 200 OK",
        b"http/1.1 200 OK",
        b"ICY 200 OK",
        b"HTTP/1.1 200 \xe4",
    ]
)
CRLF = b"\r\n"
BODIES = st.sampled_from([b"", b"abc", b"abcde", b"abcdefghij", b"3\r\nabc\r\n0\r\n\r\n"])


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer that is nearly of the plain form, or far from it."""
    odd = draw(st.booleans())
    start = draw(STARTS) if odd else b"HTTP/1.1 200 OK"
    length = b"content-length: %d" % draw(st.integers(0, 5))
    lines = draw(st.permutations([length, *draw(st.lists(st.one_of(LINES, ODD_LINES) if odd else LINES, max_size=4))]))
    ends = st.sampled_from([CRLF, CRLF, b"\n", b"\r"]) if odd else st.just(CRLF)
    return b"".join(line + draw(ends) for line in [start, *lines, b""]) + draw(BODIES)


@settings(max_examples=1500, deadline=None)
@given(received=st.one_of(answers(), st.binary(max_size=64)), method=st.sampled_from(["GET", "POST", "HEAD"]))
def test_whatever_is_taken_for_plain_the_standard_library_reads_the_same_way(received: bytes, method: str) -> None:
    head = http1._plain_head(received, method)
    if head is None:
        return
    body = received[head.end : head.end + head.length]
    if len(body) < head.length:
        with pytest.raises(http.client.IncompleteRead):
            read_by_the_standard_library(received, method)
        return
    expected, will_close = read_by_the_standard_library(received, method)
    assert HttpResponse(head.status, head.fields, body) == expected
    surplus = len(received) > head.end + head.length
    answer = read(received, method=method)
    assert answer.response == expected
    assert answer.is_last >= (will_close or surplus)  # of two Connection fields the standard library sees the first


@settings(max_examples=200, deadline=None)
@given(received=answers(), cuts=st.sets(st.integers(1, 200), max_size=4))
def test_in_however_many_parts_an_answer_comes_it_says_the_same(received: bytes, cuts: set[int]) -> None:
    places = sorted({0, len(received), *(cut for cut in cuts if cut < len(received))})
    parts = [received[begin:end] for begin, end in pairwise(places)]
    try:
        whole = read(received).response
    except (http.client.HTTPException, ValueError) as error:
        with pytest.raises(type(error)):
            read(*parts)
    else:
        given_ = read(*parts).response
        assert (given_.status, given_.body) == (whole.status, whole.body)
        assert {name: value.strip() for name, value in given_.headers.items()} == {
            name: value.strip() for name, value in whole.headers.items()
        }


@pytest.mark.parametrize(
    "received",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 204 No Content\r\ndate: today\r\n\r\n",
        b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: DPoP\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_what_a_broker_sends_is_of_the_plain_form(received: bytes) -> None:
    assert http1._plain_head(received, "POST") is not None


@pytest.mark.parametrize(
    "fields",
    [
        b"content-length: 2\r\ncontent-length: 3\r\n",
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n",
        b"content-length : 2\r\n",
        b"x: a\r\n content-length: 2\r\n",
        b"x: a\ncontent-length: 2\r\n",
        b"x: \x00\r\ncontent-length: 2\r\n",
    ],
    ids=["two lengths", "two framings", "space before the colon", "folded", "bare LF", "NUL"],
)
def test_what_could_be_read_in_two_ways_is_not_of_the_plain_form(fields: bytes) -> None:
    assert http1._plain_head(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n{}", "GET") is None


def test_more_than_the_answer_ends_the_connection() -> None:
    assert read(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n").is_last


def test_a_connection_that_ends_before_the_answer_is_an_error() -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        read()


def test_a_large_answer_is_whole() -> None:
    body = bytes(range(256)) * 4096
    whole = read(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    assert (whole.response.body, whole.is_last) == (body, False)


def test_the_length_that_is_promised_is_no_memory_that_is_taken() -> None:
    with pytest.raises(http.client.IncompleteRead):
        read(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999999999\r\n\r\nabc")


def test_a_request_is_one_piece() -> None:
    made = http1.request("POST", "/v1/agents", "broker:8080", {"accept": "application/json"}, b"{}")
    assert made == (
        b"POST /v1/agents HTTP/1.1\r\nhost: broker:8080\r\naccept-encoding: identity\r\n"
        b"accept: application/json\r\ncontent-length: 2\r\n\r\n{}"
    )


@pytest.mark.parametrize(("method", "says"), [("GET", False), ("POST", True)])
def test_a_request_without_a_body_says_so_where_one_is_expected(method: str, says: bool) -> None:
    assert (b"content-length: 0\r\n" in http1.request(method, "/", "h", {}, None)) is says


@given(st.text(), st.text())
def test_nothing_in_a_request_ends_its_head_or_adds_a_field(target: str, value: str) -> None:
    try:
        made = http1.request("GET", target, "h", {"authorization": value}, None)
    except ValueError:
        return
    assert made.count(b"\n") == made.count(b"\r") == made.count(b"\r\n") == 5
    assert made.split(b"\r\n")[0].split(b" ") == [b"GET", target.encode("ascii"), b"HTTP/1.1"]
    assert b"\x00" not in made
