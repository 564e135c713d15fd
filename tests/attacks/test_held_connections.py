"""Attempts to keep others from being served by holding connections: what is held is bounded, and others come first."""

import asyncio
import http.client
import json
import os
import resource
import signal
import socket
import ssl
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from agentwrit.broker.config import Config
from agentwrit.broker.services.turns import WAITING
from tests.attacks.test_large_endings import MASTER_KEY, TASK, fill
from tests.e2e.test_tls import self_signed
from tests.raw_http import Raw, request
from tests.support import ADMIN_SECRET, BrokerProcess, bearer

DESCRIPTORS = 200
CLIENTS = 300
KIB = 1024
LIMITED = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")


@pytest.fixture(autouse=True)
def many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker that may have few descriptors."""
    with BrokerProcess(tmp_path / "data", wrapper=LIMITED) as process:
        process.http.close()
        yield process


def test_heads_whose_bodies_do_not_come_take_nobodys_place(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker, ExitStack() as stack:
        app = broker.app()
        agents = [app.agent() for _ in range(2)]
        for path in ("/v1/register", "/v1/token/renew", "/v1/app/auth", "/oauth2/token"):
            for _ in range(100):
                held = stack.enter_context(Raw(broker.url))
                held.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n".encode(), b"{")
        for _ in range(10):
            assert app.login().status_code == 200
        assert broker.renew(agents[0]["access_token"]).status_code == 200
        assert broker.release(agents[1]["access_token"]).status_code == 204


HOLDING = {
    "nothing": b"",
    "half a head": b"GET /livez HT",
    "half a body": b"POST /v1/app/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx",
    "idle": request("/livez"),
    "a body that nobody reads": b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx",
    "a stream": b"GET /v1/revocations HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n",
    "a long question": b"GET /v1/revocations?wait=30&after=99999 HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", HOLDING)
def test_where_descriptors_run_out_whoever_is_new_is_served_and_the_log_says_so(
    limited: BrokerProcess, name: str
) -> None:
    with ExitStack() as stack:
        for _ in range(2 * DESCRIPTORS):
            stack.enter_context(Raw(limited.url)).try_to_send(HOLDING[name])
        assert [is_well(limited) for _ in range(20)] == [True] * 20
        with Raw(limited.url) as connection:
            shown = connection.send(request("/v1/metrics")).answer().body.decode()
    lines = [json.loads(line) for line in limited.logged().splitlines()]
    told = [line for line in lines if line["event"].startswith("descriptors are running out")]
    assert 1 <= len(told) <= 3  # one in so many seconds
    [count] = [line for line in shown.splitlines() if 'closed_early_total{reason="no_descriptors"}' in line]
    assert float(count.rpartition(" ")[2]) > DESCRIPTORS / 2
    assert "agentwrit_http_connections " in shown


def is_well(broker: BrokerProcess) -> bool:
    try:
        with Raw(broker.url) as connection:
            return connection.send(request("/v1/health")).answer().status == 200
    except (AssertionError, OSError):
        return False


def test_a_burst_of_connections_leaves_a_broker_that_serves(limited: BrokerProcess) -> None:
    address = urlsplit(limited.url)
    with ExitStack() as stack:
        for _ in range(1500):  # more at once than it has descriptors
            connection = stack.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex((address.hostname, address.port))
        assert any(is_well(limited) for _ in range(100))  # the first of whom find the burst still in the way
        assert [is_well(limited) for _ in range(20)] == [True] * 20
    assert "descriptors are running out" in limited.logged()


@pytest.mark.parametrize("size", [2**20 + 1, 3 * 2**20, 20 * 2**20])
def test_whoever_sends_too_much_gets_to_know(broker: BrokerProcess, size: int) -> None:
    """By clients of the standard library, which read nothing before they have sent everything."""
    address = urlsplit(broker.url)
    for headers in ({}, bearer("x")):
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
        connection.request("POST", "/v1/token/validate", body=b" " * size, headers=headers)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error_code"]) == (413, "payload_too_large")
        connection.close()
        asking = urllib.request.Request(f"{broker.url}/v1/token/validate", data=b" " * size, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asking, timeout=30)
        with refused.value as error:
            assert error.code == 413


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker that speaks TLS itself, whose snapshot is large."""
    certificate, key = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))
    settings = {
        "AGENTWRIT_TLS_CERT": str(certificate),
        "AGENTWRIT_TLS_KEY": str(key),
        "AGENTWRIT_MASTER_KEY": MASTER_KEY,
    }
    with BrokerProcess(tmp_path / "data", verify=trust, **settings) as broker:
        app_id = broker.app("read:data:*").app_id
        broker.stop()
        asyncio.run(fill(Config(data_dir=tmp_path / "data", master_key=MASTER_KEY), app_id))
        broker.start()
        broker.revoke("task", TASK)
        yield broker


def test_who_does_not_read_what_is_sent_over_tls_has_no_copy_of_it(secure: BrokerProcess) -> None:
    asking = request("/v1/revocations/snapshot")
    assert len(secure.http.get("/v1/revocations/snapshot").content) > 150 * KIB
    with ExitStack() as stack:
        held = [stack.enter_context(Raw(secure.url, receive_buffer=4096)) for _ in range(CLIENTS)]
        before = secure.resident
        for connection in held:
            connection.send(asking, asking)  # of which the second tells whether the first was taken for sent
        assert secure.http.get("/v1/health").status_code == 200
        for connection in held:
            assert connection.socket.recv(1)
        assert secure.resident < before + CLIENTS * 64 * KIB


def test_who_has_sent_much_over_tls_holds_none_of_it(secure: BrokerProcess) -> None:
    asking = request("/v1/token/validate", b'{"token":"%b"}' % (150 * KIB * b"x"))
    with ExitStack() as stack:
        held = [stack.enter_context(Raw(secure.url)) for _ in range(CLIENTS)]
        before = secure.resident
        for connection in held:
            assert connection.send(asking).answer().status == 200
        assert secure.resident < before + CLIENTS * 64 * KIB


def test_an_app_that_asks_a_great_deal_of_the_log_keeps_nobody_from_reading(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MASTER_KEY=MASTER_KEY) as broker, ExitStack() as stack:
        app = broker.app("read:data:*")
        broker.stop()
        asyncio.run(fill(Config(data_dir=tmp_path / "data", master_key=MASTER_KEY), app.app_id))
        broker.start()
        token, operator = app.token(), broker.admin()
        asking = [stack.enter_context(Raw(broker.url)) for _ in range(CLIENTS)]
        os.kill(broker.pid, signal.SIGSTOP)  # so that all of it is there at once
        for number, connection in enumerate(asking):
            target = f"/v1/audit/events?jti={number}"  # so nothing is found, after all of it was looked through
            connection.send(request(target, fields=f"Authorization: Bearer {token}\r\n"))
        os.kill(broker.pid, signal.SIGCONT)
        assert broker.http.get("/v1/health").status_code == 200
        assert broker.http.get("/v1/audit/events", headers=operator).status_code == 200
        assert broker.http.post("/v1/admin/auth", json={"secret": ADMIN_SECRET}).status_code == 200
        answered = Counter(connection.answer().status for connection in asking)
    assert set(answered) == {200, 503}
    assert answered[200] > WAITING
