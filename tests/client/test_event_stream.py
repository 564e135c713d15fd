"""Server-sent events as whoever answers may send them: in whatever pieces, and without an end."""

import asyncio
import contextlib
import gzip
import itertools
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.client.event_stream import MAX_ERROR_BYTES, MAX_EVENT_BYTES, AsyncEventStream, EventData, EventStream
from agentwrit.errors import ProblemResponseError, TransportError

SILENCE = 5.0

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
STREAM = HEAD + b"\r\n"

Serve = Callable[[bytes], Iterable[bytes]]  # what is sent in answer to a request


@contextlib.contextmanager
def serving(serve: Serve) -> Iterator[str]:
    """A server that sends what `serve` gives, one request on each connection. Yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            for piece in serve(connection.recv(65536)):
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        listener.close()


def read(url: str, *, events: int = 1, silence: float = SILENCE) -> list[str]:
    with httpx2.Client(trust_env=False) as client:
        stream = EventStream(client, silence=silence)
        try:
            stream.open(url)
            return [stream.next_data() for _ in range(events)]
        finally:
            stream.close()


def read_on_a_loop(url: str, *, events: int = 1, silence: float = SILENCE) -> list[str]:
    async def reading() -> list[str]:
        async with httpx2.AsyncClient(trust_env=False) as client:
            stream = AsyncEventStream(client, silence=silence)
            try:
                await stream.open(url)
                return [await stream.next_data() for _ in range(events)]
            finally:
                await stream.close()

    return asyncio.run(reading())


Read = Callable[..., list[str]]
both = pytest.mark.parametrize("read", [read, read_on_a_loop], ids=["threads", "loop"])


# -- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@given(cuts=st.lists(st.integers(0, 80)))
def test_events_are_read_however_they_are_cut(end: bytes, cuts: Sequence[int]) -> None:
    lines = [
        b"id: 1",
        b"event: page",
        b"data: one",
        b"",
        b": a word",
        b"",
        b"data:two",
        b"data: 2",
        b"",
        b"data: three",
    ]
    stream = end.join([*lines, b""])
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reading = EventData()
    events = [event for first, last in itertools.pairwise(places) for event in reading.feed(stream[first:last])]
    assert events == ["one", "two\n2"]
    assert reading.feed(end) == ["three"]


@both
def test_events_come_one_by_one_from_a_stream(read: Read) -> None:
    with serving(lambda _: [STREAM, b"data: one\n\ndata: t", b"wo\n\n"]) as url:
        assert read(url, events=2) == ["one", "two"]
        with pytest.raises(TransportError, match="ended"):
            read(url, events=3)


# -- whoever answers --------------------------------------------------------------------------------------------------


ENDLESS: dict[str, Iterable[bytes]] = {
    "a line": [b"data: ", *[b"a" * 65536] * 400],
    "lines of data": [b"data: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n" * 1024] * 400,
    "a name": [b"a" * 65536] * 400,
    "a comment": [b": ", *[b"a" * 65536] * 400],
}


@both
@pytest.mark.parametrize("what", list(ENDLESS))
def test_what_has_no_end_does_not_fill_memory(read: Read, what: str) -> None:
    with serving(lambda _: [STREAM, *ENDLESS[what]]) as url:
        tracemalloc.start()
        try:
            with pytest.raises(TransportError, match="too large"):
                read(url, silence=60)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 16 * MAX_EVENT_BYTES


def test_empty_lines_count_as_well() -> None:
    reading = EventData()
    with pytest.raises(TransportError, match="too large"):
        reading.feed(b"data:\n" * MAX_EVENT_BYTES)
    assert len(reading._data) <= MAX_EVENT_BYTES // len(b"data:")


@both
def test_the_text_of_an_error_has_an_end(read: Read) -> None:
    with serving(lambda _: [b"HTTP/1.1 503 Service Unavailable\r\n\r\n", *[b"a" * 65536] * 400]) as url:
        tracemalloc.start()
        try:
            with pytest.raises(ProblemResponseError) as refused:
                read(url)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert refused.value.status_code == 503
    assert peak < 32 * MAX_ERROR_BYTES


@both
def test_a_stream_is_asked_for_as_it_is_and_refused_compressed(read: Read) -> None:
    asked: list[bytes] = []

    def compressed(request: bytes) -> Iterable[bytes]:
        asked.append(request.lower())
        return [HEAD + b"content-encoding: gzip\r\n\r\n", gzip.compress(b"data: one\n\n")]

    with serving(compressed) as url, pytest.raises(TransportError, match="compressed"):
        read(url)
    assert b"\r\naccept-encoding: identity\r\n" in asked[0]


def head_that_drips(_: bytes) -> Iterable[bytes]:
    for byte in itertools.cycle(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1000):
        threading.Event().wait(0.02)
        yield bytes([byte])


@pytest.mark.alone
@both
def test_an_answer_that_does_not_begin_is_not_waited_for(read: Read) -> None:
    started = time.monotonic()
    with serving(head_that_drips) as url, pytest.raises(TransportError):
        read(url, silence=0.2)
    assert time.monotonic() - started < 5


def words_without_an_event(_: bytes) -> Iterable[bytes]:
    yield STREAM
    while True:
        threading.Event().wait(0.02)
        yield b": a word\n"


@both
def test_a_stream_without_events_is_dead_whatever_else_it_brings(read: Read) -> None:
    with serving(words_without_an_event) as url, pytest.raises(TransportError):
        read(url, silence=0.2)
