"""Connections to a server of a few routes, whose limits are small enough to be met, in plain text and over TLS."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pytest
import structlog
import uvloop

from agentwrit.broker.http.edge import Edge
from agentwrit.broker.http.exchange import Answer, Exchange, json_answer
from agentwrit.broker.http.routing import Resource, Router
from agentwrit.broker.http.server import HttpServer, Limits
from agentwrit.broker.metrics import Metrics
from agentwrit.domain.errors import Unavailable
from tests.e2e.test_tls import self_signed
from tests.raw_http import SECONDS, Raw, request

LARGE: Final = Answer(body=b"x" * 4_000_000)
SOON: Final = 0.2  # seconds: what a deadline is that a test waits for
PIECE: Final = b"y" * 50_000
QUICK: Final = request("/quick")


_tls: ssl.SSLContext | None = None
"""What servers speak TLS with in the test that is run, if they do."""


@pytest.fixture(scope="module")
def server_tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path_factory.mktemp("tls")))
    return context


@pytest.fixture(params=["plain", "TLS"], autouse=True)
def way(request: pytest.FixtureRequest, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "TLS":
        monkeypatch.setitem(globals(), "_tls", server_tls)


class Server:
    """An HTTP server in a thread, and what its handlers saw. `is_open`: whether requests to /gate are answered."""

    def __init__(self, limits: Limits) -> None:
        self.metrics = Metrics()
        self.started: list[str] = []  # the ids of the requests that handlers were given
        self.streams_ended = 0
        self._limits = limits
        self._begun: Future[str] = Future()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.url = self._begun.result()

    def open_gate(self) -> None:
        self._set(self._gate)

    def begin_to_stop(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._set(self._end)

    def stop(self, grace_seconds: float = 0) -> None:
        """Stop, and wait until it has."""
        self.begin_to_stop(grace_seconds)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def _set(self, event: asyncio.Event) -> None:
        with contextlib.suppress(RuntimeError):  # it has stopped
            self._loop.call_soon_threadsafe(event.set)

    @property
    def connections(self) -> int:
        return self.metrics.connections

    @property
    def kept(self) -> int:
        """How much of their input connections keep, beyond a little of each."""
        return self._http._kept

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._gate, self._end = asyncio.Event(), asyncio.Event()
        handlers: dict[str, Any] = {
            "/quick": {"GET": self._quick, "POST": self._quick},
            "/large": {"GET": self._large},
            "/copied": {"GET": self._copied},
            "/gate": {"GET": self._wait},
            "/stream": {"GET": self._stream},
            "/pieces": {"GET": self._pieces},
            "/refused-stream": {"GET": self._refused_stream},
        }
        bounded = {"/bounded": {"POST": self._wait}, "/bounded-broken": {"POST": self._break}}
        router = Router(
            [Resource(path, by_method) for path, by_method in handlers.items()]
            + [Resource(path, by_method, is_bounded=True) for path, by_method in bounded.items()]
        )
        edge = Edge(router, self.metrics, trusted_proxies=(), is_tls=False, is_draining=lambda: False)
        http = self._http = HttpServer(self.metrics, self._limits)
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        listener.setblocking(False)
        await http.listen(listener, edge, _tls)
        self._begun.set_result(f"{'http' if _tls is None else 'https'}://127.0.0.1:{listener.getsockname()[1]}")
        await self._end.wait()
        await http.stop(self._grace_seconds)

    async def _quick(self, exchange: Exchange) -> Answer:
        self.started.append(exchange.request_id)
        return json_answer(len(await exchange.read()))

    async def _large(self, exchange: Exchange) -> Answer:
        self.started.append(exchange.request_id)
        return LARGE

    async def _copied(self, exchange: Exchange) -> Answer:
        return Answer(body=bytes(4_000_000))

    async def _wait(self, exchange: Exchange) -> Answer:
        self.started.append(exchange.request_id)
        await self._gate.wait()
        return json_answer("through the gate")

    async def _break(self, exchange: Exchange) -> Answer:
        raise ValueError("a defect")

    async def _stream(self, exchange: Exchange) -> Answer:
        return Answer(stream=self._endless())

    async def _endless(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield PIECE
                await asyncio.sleep(0)
        finally:
            self.streams_ended += 1

    async def _pieces(self, exchange: Exchange) -> Answer:
        async def three() -> AsyncGenerator[bytes, None]:
            for piece in (b"one", b"", b"two", b"three"):
                yield piece

        return Answer(stream=three())

    async def _refused_stream(self, exchange: Exchange) -> Answer:
        async def nothing() -> AsyncGenerator[bytes, None]:
            if self._loop.is_running():
                raise Unavailable("no place is left")
            yield b""

        return Answer(stream=nothing())


@contextmanager
def serving(**limits: Any) -> Iterator[Server]:
    server = Server(Limits(sweep=0.01, **limits))
    try:
        yield server
    finally:
        server.open_gate()
        server.stop()


def until(is_so: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain until {what}"


def trickles_until_closed(connection: Raw, byte: bytes) -> None:
    """Send a byte again and again, until the server closes."""
    connection.socket.settimeout(0.01)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        connection.try_to_send(byte)
        try:
            if not connection.socket.recv(65_536):
                return
        except TimeoutError:
            continue
        except OSError:
            return
    raise AssertionError("the connection stayed open")


# -- deadlines -------------------------------------------------------------------------------------------------------

BODY_AWAITED = b"POST /quick HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"

WAITING: Final[dict[str, tuple[dict[str, float], bytes, bytes]]] = {
    # by name: the limit, what is sent at first, and what is sent again and again
    "nothing said": ({"first": SOON}, b"", b""),
    "half a head": ({"head": SOON}, b"GET /quick HT", b""),
    "a head that drips": ({"head": SOON}, b"GET /quick HTTP/1.1\r\nX: ", b"x"),
    "empty lines": ({"head": SOON}, b"\r\n", b"\r\n"),
    "a body that does not come": ({"body": SOON, "linger": SOON}, BODY_AWAITED, b""),
    "a body that drips": ({"body": SOON, "linger": SOON}, BODY_AWAITED, b"x"),
    "a body of GET that drips": ({"body": SOON, "linger": SOON}, BODY_AWAITED.replace(b"POST", b"GET"), b"x"),
    "chunks that drip": (
        {"body": SOON, "linger": SOON},
        b"POST /quick HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n",
    ),
    "a body that nobody reads": ({"linger": SOON}, BODY_AWAITED.replace(b"/quick", b"/nowhere"), b"x"),
    "what follows an upgrade": (
        {"linger": SOON},
        b"GET /quick HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + QUICK,
        b"x",
    ),
    "what follows what is no request": ({"linger": SOON}, b"no request\r\n\r\n", b"x"),
    "nothing more said": ({"idle": SOON}, QUICK, b""),
}


@pytest.mark.parametrize("name", WAITING)
def test_whatever_is_waited_for_the_wait_ends(name: str) -> None:
    limit, first, then = WAITING[name]
    with serving(**limit) as server, Raw(server.url) as connection:
        connection.send(first)
        trickles_until_closed(connection, then)
        until(lambda: server.connections == 0, "it is closed on the other side")


def test_an_idle_connection_is_not_kept_by_line_ends() -> None:
    with serving(idle=SOON, head=SOON) as server, Raw(server.url) as connection:
        assert connection.send(QUICK).answer().status == 200
        trickles_until_closed(connection, b"\r\n")


def test_a_body_that_comes_late_is_answered_and_nothing_of_it_is_run() -> None:
    with serving(body=SOON) as server, Raw(server.url) as connection:
        [answer] = connection.send(BODY_AWAITED).answers()
        assert answer.status == 400
        assert answer.headers["connection"] == "close"
        assert b"did not arrive within" in answer.body
        assert server.started == []


def test_whoever_does_not_read_an_answer_is_cut() -> None:
    with serving(stall=SOON) as server, Raw(server.url, receive_buffer=4096) as connection:
        connection.send(request("/large"))
        until(lambda: server.started, "it is answered")
        until(lambda: server.connections == 0, "it is cut")


def test_whoever_reads_a_drop_of_an_answer_at_a_time_is_cut() -> None:
    with serving(stall=SOON, stall_bytes=3_000_000) as server, Raw(server.url, receive_buffer=4096) as connection:
        connection.send(request("/large"))
        until(lambda: connection.socket.recv(1) and server.started and not server.connections, "it is cut")


def test_whoever_reads_slowly_is_waited_for() -> None:
    with serving(stall=2, stall_bytes=100_000) as server, Raw(server.url, receive_buffer=4096) as connection:
        connection.send(request("/large"))
        begun_at, received = time.monotonic(), 0
        while time.monotonic() < begun_at + 3:  # longer than the limit would allow for all of it
            if received < 1_000_000 * (time.monotonic() - begun_at):
                received += len(connection.socket.recv(65_536))
        while received < len(LARGE.body):
            data = connection.socket.recv(65_536)
            assert data
            received += len(data)


def test_whoever_does_not_read_a_stream_is_cut_and_the_stream_ends() -> None:
    with serving(stall=SOON) as server, Raw(server.url, receive_buffer=4096) as connection:
        connection.send(request("/stream"))
        until(lambda: server.streams_ended == 1, "the stream ends")
        until(lambda: server.connections == 0, "it is cut")


@pytest.mark.parametrize("way", ["close", "shut down"])
def test_a_stream_ends_with_its_client(way: str) -> None:
    with serving() as server, Raw(server.url) as connection:
        connection.send(request("/stream"))
        connection.socket.recv(1000)
        if way == "close":
            connection.socket.close()
        else:
            connection.shut_down()
        until(lambda: server.streams_ended == 1, "the stream ends")


def test_work_that_takes_too_long_loses_its_client_and_goes_on() -> None:
    with serving(answer=SOON) as server, ExitStack() as stack:
        for _ in range(256):
            stack.enter_context(Raw(server.url)).send(request("/bounded", b"x"))
        until(lambda: len(server.started) == 256 and not server.connections, "all are cut")
        connection = stack.enter_context(Raw(server.url))
        assert connection.send(request("/bounded", b"x")).answer().status == 503
        server.open_gate()
        until(lambda: connection.send(request("/bounded", b"x")).answer().status == 200, "their places are free")


# -- one request at a time ---------------------------------------------------------------------------------------------


def test_requests_that_come_at_once_are_worked_on_one_after_the_other() -> None:
    with serving() as server, Raw(server.url) as connection:
        names = [f"n{number}" for number in range(20)]
        paths = ["/gate", *["/quick"] * 6] * 3
        connection.send(*(request(path, name=name) for path, name in zip(paths, names, strict=False)))
        until(lambda: server.started, "the first is worked on")
        with Raw(server.url) as another:
            assert another.send(request("/quick", name="other")).answer().status == 200
        assert server.started == ["n0", "other"]
        server.open_gate()
        assert [connection.answer().request_id for _ in names] == names


def test_who_reads_no_answer_has_no_further_request_worked_on() -> None:
    with serving() as server, Raw(server.url, receive_buffer=65_536) as connection:
        connection.send(request("/large", name="first") + request("/quick", name="second"))
        until(lambda: server.started, "the first is worked on")
        with Raw(server.url) as another:
            for _ in range(10):
                assert another.send(request("/quick", name="other")).answer().status == 200
        assert "second" not in server.started
        assert connection.answer().body == LARGE.body
        assert connection.answer().request_id == "second"


def test_whoever_has_said_all_gets_all_answers() -> None:
    with serving() as server, Raw(server.url) as connection:
        connection.send(*(request("/gate" if number == 1 else "/quick", name=f"n{number}") for number in range(3)))
        connection.shut_down()
        until(lambda: len(server.started) == 2, "the second is worked on")
        server.open_gate()
        assert [answer.request_id for answer in connection.answers()] == ["n0", "n1", "n2"]


def test_half_a_request_of_one_who_has_said_all_gets_nothing() -> None:
    with serving() as server, Raw(server.url) as connection:
        connection.send(request("/quick") + BODY_AWAITED)
        connection.shut_down()
        assert [answer.status for answer in connection.answers()] == [200]
        assert len(server.started) == 1


def test_the_body_is_asked_for_where_a_client_waits_to_be() -> None:
    waiting = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
    with serving() as server:
        with Raw(server.url) as connection:
            assert connection.send(waiting % (b"/quick", 3)).answer().status == 100
            assert connection.send(b"abc").answer().body == b"3"
            assert connection.send(QUICK).answer().status == 200
        for path, size, status in ((b"/nowhere", 3, 404), (b"/large", 3, 405), (b"/quick", 2**30, 413)):
            with Raw(server.url) as refused:
                [answer] = refused.send(waiting % (path, size)).answers()
                assert answer.status == status


def test_a_stream_comes_in_chunks_and_to_an_old_client_as_it_is() -> None:
    with serving() as server:
        with Raw(server.url) as connection:
            [answer] = connection.send(request("/pieces")).answers()
            assert (answer.body, answer.headers["connection"]) == (b"onetwothree", "close")
        with Raw(server.url) as old:
            head, _, body = old.send(b"GET /pieces HTTP/1.0\r\n\r\n").rest().partition(b"\r\n\r\n")
            assert body == b"onetwothree"
            assert b"chunked" not in head
        with Raw(server.url) as asking:
            head = asking.send(request("/pieces", method="HEAD")).rest()
            assert head.endswith(b"\r\n\r\n")
            assert head.count(b"\r\n\r\n") == 1


def test_what_is_refused_before_its_first_piece_is_no_stream() -> None:
    with serving() as server, Raw(server.url) as connection:
        answer = connection.send(request("/refused-stream")).answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert connection.send(QUICK).answer().status == 200


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_place_is_taken_by_a_request_that_is_there_and_by_no_other() -> None:
    with structlog.testing.capture_logs() as lines, serving() as server, ExitStack() as stack:
        for _ in range(300):
            held = stack.enter_context(Raw(server.url))
            held.send(b"POST /bounded-broken HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf")
        with Raw(server.url) as connection:
            for _ in range(300):  # each of which fails, which frees its place as well
                assert connection.send(request("/bounded-broken", b"x")).answer().status == 500
    assert len([line for line in lines if line["event"] == "internal error"]) == 300


def test_the_place_of_one_who_is_gone_is_free_when_the_work_is_done() -> None:
    with serving() as server:
        for number in range(256):
            with Raw(server.url) as connection:
                connection.send(request("/bounded", b"x"))
                until(lambda count=number + 1: len(server.started) == count, "it is worked on")  # type: ignore[misc]
        with Raw(server.url) as connection:
            assert connection.send(request("/bounded", b"x")).answer().status == 503
            server.open_gate()
            until(lambda: connection.send(request("/bounded", b"x")).answer().status == 200, "there is a place")
            for _ in range(300):
                assert connection.send(request("/bounded", b"x")).answer().status == 200


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_of_too_many_connections_those_that_wait_longest_are_closed() -> None:
    with structlog.testing.capture_logs() as lines, serving(connections=10) as server, ExitStack() as stack:
        working = stack.enter_context(Raw(server.url)).send(request("/gate", name="working"))
        until(lambda: server.started, "it is worked on")
        held = []
        for number in range(30):
            connection = stack.enter_context(Raw(server.url))
            assert connection.send(QUICK).answer().status == 200
            connection.send([b"", b"GET", BODY_AWAITED][number % 3])
            held.append(connection)
        until(lambda: server.connections == 10, "the others are closed")
        assert [connection.rest() for connection in held[:18]] == [b""] * 18  # some of the others came at the same time
        for connection in held[24::3]:
            assert connection.send(QUICK).answer().status == 200
        server.open_gate()
        assert working.answer().request_id == "working"
        assert +server.metrics.connections_closed_early == {"too_many": 21}
    [line] = [line for line in lines if line["event"].startswith("too many connections")]
    assert line["log_level"] == "warning"


def test_whoever_is_new_is_served_however_many_are_being_worked_on() -> None:
    with serving(connections=5) as server, ExitStack() as stack:
        for number in range(1, 10):
            stack.enter_context(Raw(server.url)).send(request("/gate"))
            until(lambda count=number: len(server.started) == count, "it is worked on")  # type: ignore[misc]
        with Raw(server.url) as connection:
            assert connection.send(QUICK).answer().status == 200


def test_what_all_connections_keep_of_their_input_is_bounded() -> None:
    body = b"x" * 100_000
    whole = request("/quick", body)
    with serving(kept_bytes=250_000) as server, ExitStack() as stack:
        held = [stack.enter_context(Raw(server.url)).send(whole[:-1]) for _ in range(2)]
        until(lambda: server.kept >= 2 * (len(whole) - 5000), "they are read")
        with Raw(server.url) as connection:  # what is small is served all the same
            assert connection.send(request("/quick", b"x" * 2000)).answer().status == 200
        with Raw(server.url) as connection:
            [answer] = connection.send(whole[:-1]).answers()
            assert (answer.status, answer.headers["connection"]) == (503, "close")
        for connection in held:
            assert connection.send(b"x").answer().body == b"100000"
        with Raw(server.url) as connection:  # and all of it is free again
            for _ in range(10):
                assert connection.send(whole).answer().status == 200


def test_what_is_sent_ahead_is_bounded_too() -> None:
    with serving(kept_bytes=10_000) as server, Raw(server.url) as connection:
        connection.send(request("/gate"))
        until(lambda: server.started, "it is worked on")
        connection.send(request("/quick", name="ahead") * 500)
        server.open_gate()
        answers = connection.answers()
        assert answers[0].body == b'"through the gate"'
        assert len(answers) == 1 + server.started.count("ahead")


def test_what_clients_have_yet_to_read_is_bounded() -> None:
    with serving(unread_bytes=10_000_000) as server, ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(Raw(server.url, receive_buffer=4096)).send(request("/copied"))
        until(lambda: server.connections == 2, "the others are cut")


def test_where_too_much_waits_a_client_that_reads_gets_its_answer() -> None:
    with serving(unread_bytes=2 * len(LARGE.body) + 1) as server, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(Raw(server.url, receive_buffer=4096)).send(request("/copied"))
        until(lambda: server.connections == 2, "one is cut")
        for _ in range(3):
            answer = stack.enter_context(Raw(server.url, receive_buffer=65_536)).send(request("/copied")).answer()
            assert answer.body == bytes(4_000_000)


def test_what_many_are_sent_counts_once() -> None:
    with serving(unread_bytes=5_000_000) as server, ExitStack() as stack:
        sent = [stack.enter_context(Raw(server.url, receive_buffer=65_536)).send(request("/large")) for _ in range(6)]
        assert [connection.answer().body == LARGE.body for connection in sent] == [True] * 6


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_server_that_stops_lets_go_whoever_has_nothing_under_way_and_answers_the_others() -> None:
    with serving() as server, ExitStack() as stack:
        idle, working, arriving = (stack.enter_context(Raw(server.url)) for _ in range(3))
        assert idle.send(QUICK).answer().status == 200
        working.send(request("/gate") + QUICK)
        arriving.send(request("/quick", b"abc")[:-1])
        until(lambda: len(server.started) == 2 and server.connections == 3, "all are there")
        server.begin_to_stop(SECONDS)
        assert idle.rest() == b""
        [arrived] = arriving.send(b"c").answers()
        server.open_gate()
        [worked] = working.answers()
        for answer in (arrived, worked):
            assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_a_server_that_stops_waits_for_nobody_longer_than_it_was_told() -> None:
    with serving() as server, Raw(server.url) as working, Raw(server.url) as streaming:
        working.send(request("/gate"))
        streaming.send(request("/stream"))
        until(lambda: server.started, "it is worked on")
        server.stop(grace_seconds=SOON)
        assert working.rest() == b""
        assert server.streams_ended == 1
