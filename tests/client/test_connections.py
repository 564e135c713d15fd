"""Connections of the SDK's own: kept, counted, and never used when they may be out of step."""

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing

import pytest

from agentwrit.client import connections
from agentwrit.client.connections import MAX_IDLE, Connections, Origin, is_proxied
from agentwrit.client.exchange import ConnectFailed, HttpResponse
from tests.client.peer import Handler, Peer, answer, hang_up, peer


def no_tls() -> ssl.SSLContext:
    raise AssertionError("no TLS is wanted")


@pytest.fixture
def broker() -> Iterator[Peer]:
    with peer(answer(200, {"ok": True})) as made:
        yield made


def ask(kept: Connections, path: str = "/livez", headers: Mapping[str, str] | None = None) -> HttpResponse:
    return kept.send("GET", path, headers or {}, None, remaining=lambda: 5.0, max_bytes=1024)


def ports(broker: Peer) -> list[str]:
    return [headers["x-peer-port"] for _, _, headers in broker.seen]


def test_one_connection_serves_one_request_after_another(broker: Peer) -> None:
    with closing(Connections(broker.url, no_tls)) as kept:
        answers = [ask(kept) for _ in range(3)]
    assert [(given.status, given.body) for given in answers] == [(200, b'{"ok": true}')] * 3
    assert answers[0].headers["content-length"] == "12"
    assert len(set(ports(broker))) == 1


def test_a_connection_that_the_other_side_closed_is_not_used_again() -> None:
    def answer_and_leave(handler: Handler) -> None:
        answer(200, {})(handler)
        handler.close_connection = True

    with peer(answer_and_leave) as broker, closing(Connections(broker.url, no_tls)) as kept:
        for _ in range(3):
            ask(kept)
            [idle] = kept._idle
            idle.transport.recv(1, socket.MSG_PEEK)  # waits until the end has arrived
        assert len(set(ports(broker))) == 3


def test_a_connection_that_waited_for_long_is_not_used_again(broker: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Connections(broker.url, no_tls)) as kept:
        ask(kept)
        [idle] = kept._idle
        kept._idle = [idle._replace(since=idle.since - connections.IDLE_SECONDS)]
        ask(kept)
    assert len(set(ports(broker))) == 2


def test_of_many_connections_some_are_kept() -> None:
    together = threading.Barrier(MAX_IDLE + 8)

    def wait_for_all(handler: Handler) -> None:
        together.wait()
        answer(200, {"ok": True})(handler)

    with peer(wait_for_all) as broker, closing(Connections(broker.url, no_tls)) as kept:
        threads = [threading.Thread(target=ask, args=(kept,)) for _ in range(MAX_IDLE + 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(kept._idle) == MAX_IDLE


def test_an_answer_that_breaks_off_is_none() -> None:
    def break_off(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        hang_up(handler)

    with peer(break_off) as broker, closing(Connections(broker.url, no_tls)) as kept:
        with pytest.raises(http.client.IncompleteRead):
            ask(kept)
        assert not kept._idle


def test_an_answer_in_chunks_is_one_answer() -> None:
    def in_chunks(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    with peer(in_chunks) as broker, closing(Connections(broker.url, no_tls)) as kept:
        assert [ask(kept).body for _ in range(2)] == [b"abcde"] * 2
        assert len(set(ports(broker))) == 1


def test_a_field_that_came_twice_is_a_list() -> None:
    def twice(handler: Handler) -> None:
        handler.wfile.write(
            b"HTTP/1.1 401 No\r\nWWW-Authenticate: a\r\nwww-authenticate: b\r\ncontent-length: 0\r\n\r\n"
        )

    with peer(twice) as broker, closing(Connections(broker.url, no_tls)) as kept:
        assert ask(kept).headers["www-authenticate"] == "a, b"


def test_nobody_to_ask_is_said() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConnectFailed, match="refused"):
        ask(Connections(f"http://127.0.0.1:{port}", no_tls))


def test_a_header_that_would_end_the_head_is_not_sent(broker: Peer) -> None:
    with closing(Connections(broker.url, no_tls)) as kept:
        with pytest.raises(ValueError, match="header"):
            ask(kept, headers={"authorization": "Bearer x\r\nhost: elsewhere"})
        assert not broker.seen


def test_a_path_before_the_routes_stays_before_them(broker: Peer) -> None:
    with closing(Connections(f"{broker.url}/under/ä", no_tls)) as kept:
        ask(kept, "/livez")
    assert [path for path, _, _ in broker.seen] == ["/under/%C3%A4/livez"]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://broker.example", "broker.example"),
        ("http://broker.example:80", "broker.example"),
        ("http://broker.example:443/under", "broker.example:443"),
        ("http://[fe80::1%25eth0]:8080", "[fe80::1]:8080"),
        ("http://bröker.example:8080", "xn--brker-kua.example:8080"),
    ],
)
def test_a_request_names_the_host_that_the_url_names(url: str, host: str) -> None:
    assert Origin(url, no_tls).host_field == host


def test_the_host_reaches_the_broker_as_it_is_in_the_url(broker: Peer) -> None:
    with closing(Connections(broker.url, no_tls)) as kept:
        ask(kept)
    [(_, _, headers)] = broker.seen
    assert headers["host"] == broker.url.removeprefix("http://")


def test_proxies_of_the_environment_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert not is_proxied("http://broker.example")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert is_proxied("http://broker.example")
    assert not is_proxied("https://broker.example")
    monkeypatch.setenv("no_proxy", "broker.example")
    assert not is_proxied("http://broker.example:8080")
