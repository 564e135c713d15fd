"""Attempts to have bytes of one request run as another: whoever shares a connection would get others' answers."""

import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import h11
import pytest

from tests.e2e.test_settings import free_port
from tests.raw_http import Raw, request
from tests.support import PLAIN, SOAK, BrokerProcess

SMUGGLED = request("/smuggled", name="smuggled")  # to a route that is logged
VALIDATE = b'{"token":"none"}'


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """One of its own, whose log is read, with a second port."""
    settings = {"AGENTWRIT_METRICS_PORT": str(free_port())}
    with BrokerProcess(tmp_path_factory.mktemp("smuggling") / "data", verify=PLAIN, **settings) as process:
        process.metrics_url = f"http://127.0.0.1:{settings['AGENTWRIT_METRICS_PORT']}"  # type: ignore[attr-defined]
        yield process


@pytest.fixture(params=["main", "metrics"])
def url(request: pytest.FixtureRequest, broker: BrokerProcess) -> str:
    """Where it listens."""
    return broker.url if request.param == "main" else str(broker.metrics_url)  # type: ignore[attr-defined]


def head(*fields: str, first: str = "POST /v1/token/validate HTTP/1.1", host: str = "Host: broker") -> bytes:
    return "\r\n".join([first, *([host] if host else []), *fields, "", ""]).encode("latin-1")


AMBIGUOUS = {
    "upgrade": head("Connection: Upgrade", "Upgrade: h2c", first="GET /livez HTTP/1.1"),
    "upgrade without the option": head("Upgrade: h2c", first="GET /livez HTTP/1.1"),
    "upgrade in chunks": head("Connection: Upgrade", "Upgrade: x", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "CONNECT": head(first="CONNECT broker:80 HTTP/1.1"),
    "a length and chunks": head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "chunks and a length": head("Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n",
    "two lengths": head("Content-Length: 0", "Content-Length: 5"),
    "the same length twice": head("Content-Length: 0", "Content-Length: 0"),
    "a list of lengths": head("Content-Length: 0, 0"),
    "another coding": head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "an unknown coding": head("Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "a coding behind a tab": head("Transfer-Encoding:\tchunked") + b"0\r\n\r\n",
    "chunks in HTTP/1.0": head("Transfer-Encoding: chunked", first="POST /livez HTTP/1.0") + b"0\r\n\r\n",
    "a chunk that is longer than it says": head("Transfer-Encoding: chunked") + b"1\r\nab\r\n0\r\n\r\n",
    "a chunk behind a bare LF": head("Transfer-Encoding: chunked") + b"1\na\r\n0\r\n\r\n",
    "a fold": head("X: a", " b"),
    "a folded length": head("Content-Length:", " 0"),
    "a bare CR": head("X: a\rContent-Length: 5"),
    "a bare LF": head("X: a\nContent-Length: 5"),
    "a head that a bare LF ends": head()[:-2] + b"\n",
    "a blank before a colon": head("Content-Length : 0"),
    "no host": head(host=""),
    "two hosts": head("Host: other"),
    "the URL of another host": head(first="GET http://other/livez HTTP/1.1"),
    "HTTP/1.0 that would go on": head("Connection: keep-alive", first="GET /livez HTTP/1.0"),
    "another expectation": head("Expect: 200-ok", "Content-Length: 0"),
    "a line in front": b"\r\n" + head("Content-Length: 0"),
    "two blanks": head("Content-Length: 0", first="POST  /v1/token/validate HTTP/1.1"),
    "the last one by its own word": head("Connection: close", first="GET /livez HTTP/1.1"),
    "too long a head": head("X: " + "x" * 60_000),
    "too large a body": head("Content-Length: 1048577"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_answered_once_and_nothing_behind_it_is_run(
    url: str, broker: BrokerProcess, name: str
) -> None:
    for pieces in (
        [AMBIGUOUS[name] + SMUGGLED],
        [AMBIGUOUS[name], SMUGGLED],
        [AMBIGUOUS[name], SMUGGLED[:9], SMUGGLED[9:]],
    ):
        with Raw(url) as connection, Raw(url) as honest:
            for piece in pieces:
                connection.try_to_send(piece)
                assert honest.send(request("/v1/metrics")).answer().status in (200, 404)  # by now that was read
            connection.try_to_shut_down()
            answers = connection.answers()
            assert len(answers) == 1
            assert answers[0].request_id != "smuggled"
            assert answers[0].headers["connection"] == "close"
    assert "smuggled" not in broker.logged()


@pytest.mark.parametrize("name", ["no host", "two hosts", "two lengths", "a length and chunks", "a fold"])
def test_what_is_no_request_is_refused_as_such(url: str, name: str) -> None:
    with Raw(url) as connection:
        assert connection.send(AMBIGUOUS[name]).answer().status == 400


UPGRADES = [
    "Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "Connection: upgrade\r\nUpgrade: websocket\r\n",
    "Upgrade: x\r\n",
    "",
]


@pytest.mark.parametrize("target", ["GET /livez", "POST /v1/token/validate", "POST /nowhere"])
@pytest.mark.parametrize("upgrade", UPGRADES)
def test_a_declared_body_that_comes_by_itself_is_no_request(broker: BrokerProcess, target: str, upgrade: str) -> None:
    method, _, path = target.partition(" ")
    whole = request(path, SMUGGLED * 3, method=method, name="outer", fields=upgrade)
    before = len(whole) - len(SMUGGLED) * 3
    with Raw(broker.url) as connection, Raw(broker.url) as honest:
        for piece in (whole[:before], *[SMUGGLED] * 3):
            connection.try_to_send(piece)
            assert honest.send(request("/livez")).answer().status == 200
        connection.socket.shutdown(socket.SHUT_WR)
        assert [answer.request_id for answer in connection.answers()] == ["outer"]
    assert "smuggled" not in broker.logged()


def mixed(name: str, generator: random.Random) -> bytes:
    """A request of one of many forms, which all are right. Its body looks like a request."""
    body = request("/smuggled", VALIDATE, name="smuggled")
    match generator.randrange(7):
        case 0:
            return request("/livez", name=name)
        case 1:
            return request("/v1/challenge", name=name, method="HEAD")
        case 2:
            return request("/v1/token/validate", VALIDATE, name=name)
        case 3:
            return request("/v1/token/validate", VALIDATE, name=name, chunked=True)
        case 4:
            return request("/v1/token/validate", body * generator.randrange(1, 200), name=name, chunked=True)
        case 5:
            return request("/v1/app/auth", body * generator.randrange(1, 200), name=name)
        case _:
            return request("/livez?" + "a" * generator.randrange(5000), body, method="GET", name=name)


def cut(data: bytes, generator: random.Random) -> list[bytes]:
    places = sorted(generator.sample(range(len(data) + 1), min(generator.randrange(5), len(data))))
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


def test_wherever_requests_are_cut_each_gets_its_own_answer(broker: BrokerProcess) -> None:
    requests = [
        request("/v1/token/validate", VALIDATE, name="one"),
        request("/livez", name="two"),
        request("/v1/token/validate", VALIDATE, name="three", chunked=True),
    ]
    data = b"".join(requests)
    with Raw(broker.url) as connection:
        for at in range(1, len(data)):
            connection.send(data[:at], data[at:])
            assert [connection.answer().request_id for _ in requests] == ["one", "two", "three"]
        connection.send(*(data[at : at + 1] for at in range(len(data))))
        assert [connection.answer().request_id for _ in requests] == ["one", "two", "three"]


def test_requests_sent_ahead_are_answered_in_their_order(broker: BrokerProcess) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    for _ in range(20 * SOAK):
        names = [f"n{number}" for number in range(generator.randrange(1, 20))]
        requests = [mixed(name, generator) for name in names]
        with Raw(broker.url) as connection:
            sending = threading.Thread(target=connection.send, args=cut(b"".join(requests), generator))
            sending.start()
            found = [connection.answer(to=data.partition(b" ")[0].decode()) for data in requests]
            sending.join()
            assert [answer.request_id for answer in found] == names
            assert {answer.status for answer in found} <= {200, 400}


class PoolingProxy:
    """What a proxy does that keeps two connections to a broker for all of its clients."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._free: list[Raw] = []
        self._places = threading.Semaphore(2)

    def ask(self, data: bytes, generator: random.Random) -> str:
        """Send one request on whichever connection is free. Returns the id of what comes back for it."""
        with self._places:
            with self._lock:
                connection = self._free.pop() if self._free else Raw(self._url)
            connection.send(*cut(data, generator))
            answer = connection.answer(to=data.partition(b" ")[0].decode())
            if answer.headers.get("connection") == "close":
                connection.socket.close()
            else:
                with self._lock:
                    self._free.append(connection)
            return answer.request_id

    def close(self) -> None:
        for connection in self._free:
            connection.socket.close()


def hostile(name: str, generator: random.Random) -> bytes:
    """One request by its own word, that others have taken for several."""
    fields = generator.choice(UPGRADES) + generator.choice(["", "Connection: close\r\n", "Expect: 100-continue\r\n"])
    body = b"\r\n" * generator.randrange(3000) + SMUGGLED * generator.randrange(1, 4)
    fields = fields.replace("Expect: 100-continue\r\n", "") if generator.random() < 0.9 else ""
    path = generator.choice(["/livez", "/v1/token/validate", "/nowhere"])
    if generator.random() < 0.02:
        path = "/v1/revocations?wait=1&after=99999"  # which takes its time to be answered
    return request(path, body, method=generator.choice(["GET", "POST"]), name=name, fields=fields)


def test_whoever_shares_a_connection_with_an_attacker_gets_its_own_answers(broker: BrokerProcess) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    proxy = PoolingProxy(broker.url)

    def ask(client: int, make: Callable[[str, random.Random], bytes]) -> int:
        generator = random.Random(seed + client)
        names = [f"c{client}-{number}" for number in range(60 * SOAK)]
        return sum(proxy.ask(make(name, generator), generator) == name for name in names)

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, client, hostile if client < 2 else mixed) for client in range(8)]
        assert [each.result() for each in asked] == [60 * SOAK] * 8
    proxy.close()
    assert "smuggled" not in broker.logged()


def seen_strictly(data: bytes) -> int:
    """How many requests a strict reader, of others, sees in what a client sends before it says that this was all."""
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    reader.receive_data(data)
    reader.receive_data(b"")
    count, is_within = 0, False
    while True:
        try:
            event = reader.next_event()
        except h11.RemoteProtocolError:
            return count if is_within else count + 1  # what is none may be answered as well, once
        if isinstance(event, h11.Request):
            count, is_within = count + 1, True
        elif isinstance(event, h11.EndOfMessage):
            is_within = False
            reader.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            reader.send(h11.EndOfMessage())
            if reader.our_state is not h11.DONE or reader.their_state is not h11.DONE:
                return count
            reader.start_next_cycle()
        elif not isinstance(event, h11.Data):
            return count


TOKENS = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"\x00", b":", b"0", b"1", b"5", b"f", b"0\r\n\r\n", b"HTTP/1.0",
    b"HTTP/1.1", b"Content-Length: 0\r\n", b"Content-Length: 40\r\n", b"Transfer-Encoding: chunked\r\n", b"chunked",
    b"Host: other\r\n", b"Connection: close\r\n", b"Upgrade: x\r\n", b"Connection: upgrade\r\n", SMUGGLED,
]  # fmt: skip


def mutated(data: bytes, generator: random.Random) -> bytes:
    for _ in range(generator.randrange(1, 4)):
        at = generator.randrange(len(data))
        to = min(len(data), at + generator.randrange(1, 12))
        match generator.randrange(5):
            case 0:
                data = data[:at] + bytes([generator.randrange(256)]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[to:]
            case 2:
                data = data[:at] + data[at:to] * 2 + data[to:]
            case _:
                data = data[:at] + generator.choice(TOKENS) + data[at:]
    return data


def test_there_are_never_more_answers_than_requests_for_a_strict_reader(broker: BrokerProcess) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")

    def attack(number: int) -> tuple[bytes, int, int]:
        generator = random.Random(seed * 1_000_000 + number)
        valid = [mixed(f"n{each}", generator)[:2000] for each in range(generator.randrange(1, 5))]
        data = mutated(b"".join(valid), generator)
        with Raw(broker.url) as connection:
            for piece in cut(data, generator):
                connection.try_to_send(piece)
            connection.try_to_shut_down()
            received = connection.rest()
        # A body may speak of HTTP/1.1; only a status line has a number behind it.
        answered = len(re.findall(rb"HTTP/1\.1 [2-5][0-9][0-9] ", received))
        return data, answered, seen_strictly(data)

    with ThreadPoolExecutor(8) as threads:
        for data, answered, seen in threads.map(attack, range(1500 * SOAK)):
            assert answered <= seen, data
    assert broker.http.get("/livez").status_code == 200
    assert '"exception"' not in broker.logged()
