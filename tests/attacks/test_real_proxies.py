"""Attempts to get others' answers behind proxies that keep connections to a broker: each request gets its own."""

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.attacks.test_request_smuggling import SMUGGLED, VALIDATE, cut, hostile, mixed
from tests.e2e.test_settings import free_port
from tests.proxies import NAMES, proxy
from tests.raw_http import SECONDS, Answer, Raw, request
from tests.support import SOAK, BrokerProcess

APPS = 3
STRANGERS = 2
REQUESTS = 40 * SOAK  # of each: 10,000 for each proxy in a soak
METRICS_REQUESTS = 8 * SOAK
CONNECTIONS = 2  # to the broker, which all share

PATIENCE = 0.5  # seconds: some proxies keep a body back that comes with an upgrade
LEAVE_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: what is under way is thrown away

UPGRADES = [
    "Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: c2FtcGxlIG5vbmNlIDEyMw==\r\n",
    "Connection: Upgrade\r\nUpgrade: x\r\n",
]


class Client:
    """A client of a proxy, with a connection that it keeps as long as it may."""

    def __init__(self, url: str, name: str, generator: random.Random) -> None:
        self.generator = generator
        self._url = url
        self._name = name
        self._count = 0
        self._connection: Raw | None = None

    def next_name(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    def open(self) -> Raw:
        if self._connection is None:
            self._connection = Raw(self._url)
        return self._connection

    def ask(self, *requests: bytes) -> list[Answer]:
        """Send requests ahead of each other, in pieces. Returns the answers, one to each."""
        connection = self.open()
        for piece in cut(b"".join(requests), self.generator):
            connection.try_to_send(piece)
        return [self._answer(connection, data) for data in requests]

    def ask_waiting_for_a_word(self, head: bytes, body: bytes) -> Answer:
        """Send a body when the server says that it wants one."""
        connection = self.open().send(head)
        answer = connection.answer()
        if answer.status == 100:
            answer = self._answer(connection.send(body), head)
        return answer

    def _answer(self, connection: Raw, to: bytes) -> Answer:
        answer = connection.answer(to=to.partition(b" ")[0].decode())
        while answer.status == 100:
            answer = connection.answer(to=to.partition(b" ")[0].decode())
        if answer.headers.get("connection") == "close" or answer.status >= 400:
            self.close()
        return answer

    def leave(self, data: bytes) -> None:
        """Go in the middle of a request, or of its answer."""
        connection = self.open()
        connection.try_to_send(data)
        if self.generator.random() < 0.5:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LEAVE_AT_ONCE)
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.socket.close()
            self._connection = None


class App(Client):
    """An honest one: it asks about a token of its own, between requests of all forms."""

    def __init__(self, url: str, name: str, generator: random.Random, token: str, sid: str) -> None:
        super().__init__(url, name, generator)
        self._body = json.dumps({"token": token}).encode()
        self._sid = sid

    def turn(self) -> int:
        """Ask once, and look at the answer. Returns how many requests that took."""
        own = self.next_name()
        match self.generator.randrange(8):
            case 0:
                head = request("/v1/token/validate", self._body, name=own, fields="Expect: 100-continue\r\n")
                head = head[: -len(self._body)]
                self._check(own, self.ask_waiting_for_a_word(head, self._body), is_about_token=True)
            case 1:
                names = [own, *(self.next_name() for _ in range(self.generator.randrange(4)))]
                sent = [request("/v1/token/validate", self._body, name=each) for each in names]
                for each, answer in zip(names, self.ask(*sent), strict=True):
                    self._check(each, answer, is_about_token=True)
                return len(names)
            case 2:
                fields = self.generator.choice(UPGRADES)
                [answer] = self.ask(request("/livez", name=own, fields=fields))
                self._check(own, answer)
                self.close()  # the broker's connection is over, and what a proxy makes of ours is its own affair
            case 3:
                whole = request("/v1/token/validate", self._body, name=own)
                self.leave(whole[: self.generator.randrange(len(whole) + 1)])
            case 4 | 5:
                chunked = self.generator.random() < 0.5
                [answer] = self.ask(request("/v1/token/validate", self._body, name=own, chunked=chunked))
                self._check(own, answer, is_about_token=True)
            case _:
                [answer] = self.ask(mixed(own, self.generator))
                self._check(own, answer)
        return 1

    def _check(self, own: str, answer: Answer, *, is_about_token: bool = False) -> None:
        assert answer.headers.get("x-request-id") == own, answer
        if is_about_token:
            assert json.loads(answer.body)["claims"]["sid"] == self._sid, answer


class Stranger(Client):
    """It sends what others have taken for several requests, and hopes for an answer that is not its own."""

    def __init__(self, url: str, name: str, generator: random.Random) -> None:
        super().__init__(url, name, generator)
        self.lost = Counter[str]()

    def turn(self) -> int:
        own = self.next_name()
        data = hostile(own, self.generator)
        if self.generator.random() < 0.2:
            head, _, body = data.partition(b"\r\n\r\n")
            keep = self.generator.choice([len(head) + 4, len(head) + 4 + len(body) // 2, len(data)])
            self.leave(data[:keep] + (SMUGGLED if keep < len(data) else b""))  # which is of the body
            return 1
        try:
            self.open().socket.settimeout(PATIENCE)
            [answer] = self.ask(data)
        except (AssertionError, OSError):  # a proxy may close without a word
            self.close()
            self.lost["closed"] += 1
            return 1
        answered = answer.headers.get("x-request-id")
        if answered != own:
            assert answered is None, answer  # then the proxy has answered itself
            self.lost[str(answer.status)] += 1
        assert not self._is_sent_more()
        return 1

    def _is_sent_more(self) -> bool:
        """Whether there is an answer that nobody here asked for."""
        if self._connection is None:
            return False
        self._connection.socket.setblocking(False)
        try:
            return bool(self._connection.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            return False
        finally:
            if self._connection is not None:
                self._connection.socket.settimeout(SECONDS)


class Scraper(Client):
    """An honest client of the metrics' own port."""

    def turn(self) -> int:
        own = self.next_name()
        data = request("/v1/metrics", name=own) if self.generator.random() < 0.5 else mixed(own, self.generator)
        [answer] = self.ask(data)
        assert answer.headers.get("x-request-id") == own, answer
        return 1


def work(turn: Callable[[], int], requests: int, pool: threading.Semaphore) -> int:
    count = 0
    while count < requests:
        with pool:
            count += turn()
    return count


def run_together(
    clients: Sequence[App | Scraper], strangers: Sequence[Stranger], requests: int, broker: BrokerProcess
) -> int:
    pool = threading.Semaphore(CONNECTIONS)
    with ThreadPoolExecutor(len(clients) + len(strangers)) as threads:
        running = [threads.submit(work, each.turn, requests, pool) for each in (*clients, *strangers)]
        total = sum(each.result() for each in running)
    for client in (*clients, *strangers):
        client.close()
    lost = sum((each.lost for each in strangers), Counter[str]())
    print(f"{total} requests; the proxy answered the stranger itself, or closed: {dict(lost)}")
    assert "smuggled" not in broker.logged()
    return total


@pytest.fixture
def seed() -> int:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return seed


class Behind(NamedTuple):
    """A broker, and proxies in front of its port and of that of its metrics."""

    broker: BrokerProcess
    url: str
    metrics_url: str


@pytest.fixture(scope="module", params=NAMES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """Behind proxies that hand everything on, over two connections for all."""
    first, second = (directory_for(request.param, tmp_path_factory) for _ in range(2))
    metrics_port = free_port()
    metrics = f"http://127.0.0.1:{metrics_port}"
    with (
        BrokerProcess(first / "data", AGENTWRIT_METRICS_PORT=str(metrics_port)) as broker,
        proxy(request.param, broker.url, first, is_open=True) as url,
        proxy(request.param, metrics, second, is_open=True, health="/v1/metrics") as metrics_url,
    ):
        yield Behind(broker, url, metrics_url)


@pytest.fixture(scope="module", params=NAMES)
def behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """Behind a proxy with the configuration as it is shown."""
    directory = directory_for(request.param, tmp_path_factory)
    with (
        BrokerProcess(directory / "data", AGENTWRIT_TRUSTED_PROXIES="127.0.0.1/32") as broker,
        proxy(request.param, broker.url, directory) as url,
    ):
        yield Behind(broker, url, "")


def directory_for(name: str, factory: pytest.TempPathFactory) -> Path:
    """One that a proxy's own user may read."""
    directory = factory.mktemp(name)
    directory.chmod(0o755)
    return directory


def test_behind_a_proxy_each_request_gets_its_own_answer(opened: Behind, seed: int) -> None:
    broker, url, _ = opened
    agents = [broker.app().agent() for _ in range(APPS)]
    apps = [
        App(url, f"app{number}", random.Random(seed + number), agent["access_token"], sid_of(broker, agent))
        for number, agent in enumerate(agents)
    ]
    strangers = [Stranger(url, f"s{number}", random.Random(seed - 1 - number)) for number in range(STRANGERS)]
    assert run_together(apps, strangers, REQUESTS, broker) >= (APPS + STRANGERS) * REQUESTS
    with Raw(url) as connection:
        assert connection.send(request("/v1/token/validate", VALIDATE, name="last")).answer().request_id == "last"


def test_so_it_does_at_the_port_of_the_metrics(opened: Behind, seed: int) -> None:
    url = opened.metrics_url
    scrapers = [Scraper(url, f"m{number}", random.Random(seed + number)) for number in range(APPS)]
    strangers = [Stranger(url, f"s{number}", random.Random(seed - 1 - number)) for number in range(STRANGERS)]
    run_together(scrapers, strangers, METRICS_REQUESTS, opened.broker)


def lines(broker: BrokerProcess) -> list[str]:
    return [line for line in broker.log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def sid_of(broker: BrokerProcess, agent: dict[str, str]) -> str:
    answer = broker.http.post("/v1/token/validate", json={"token": agent["access_token"]})
    return str(answer.json()["claims"]["sid"])


# -- what the page says of each, with the files as they are ------------------------------------------------------------


@pytest.mark.alone
def test_who_leaves_in_the_middle_keeps_nobody_waiting(behind: Behind) -> None:
    """A proxy that took it for a failure of the broker would send it nothing for a while."""
    leaving, waited = Client(behind.url, "leaving", random.Random(1)), []
    for part in (b"", b"{", b'{"token":', VALIDATE):
        leaving.leave(request("/v1/token/validate", VALIDATE)[: -len(VALIDATE)] + part)
        began = time.monotonic()
        with Raw(behind.url) as connection:
            assert connection.send(request("/v1/token/validate", VALIDATE)).answer().status == 200
        waited.append(time.monotonic() - began)
    assert max(waited) < 1.5, waited


def test_the_address_is_that_of_who_asks_whatever_they_say(behind: Behind) -> None:
    with Raw(behind.url, address="127.0.0.2") as connection:
        forged = "X-Forwarded-For: 203.0.113.9\r\n"
        assert connection.send(request("/nowhere", fields=forged)).answer().status == 404
    deadline = time.monotonic() + SECONDS
    while not (found := [line for line in map(json.loads, lines(behind.broker)) if line.get("status") == 404]):
        assert time.monotonic() < deadline  # it is written behind the answer
    assert [line["address"] for line in found] == ["127.0.0.2"]


@pytest.mark.alone
def test_events_come_at_once(behind: Behind) -> None:
    with Raw(behind.url) as connection:
        stream = request("/v1/revocations?after=0", fields="Accept: text/event-stream\r\n")
        connection.send(stream)
        data, began = b"", time.monotonic()
        while data.count(b"data:") < 2:
            data += connection.socket.recv(65536)
        assert time.monotonic() - began < 6  # what is there, and a heartbeat each second


def test_who_sends_too_much_gets_to_know(behind: Behind) -> None:
    with Raw(behind.url) as connection:
        connection.send(f"POST /v1/app/auth HTTP/1.1\r\nHost: x\r\nContent-Length: {2**20 + 1}\r\n\r\n".encode())
        for _ in range(2**20 // 2**16 + 1):
            connection.try_to_send(b" " * 2**16)
        assert connection.answer().status == 413
