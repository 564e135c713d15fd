"""Strangers who take what the revocation feed has to give, and whoever stands between it and its verifiers."""

import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agentwrit import TransportError, Unverifiable
from agentwrit.broker.services.feed_places import MAX_OF_ADDRESS
from agentwrit.broker.services.turns import WAITING
from tests.cli.support import run
from tests.client.mirror import mirror_of
from tests.client.verifiers import (
    STALENESS,
    Either,
    Make,
    accepts,
    comes_to_refuse,
    eventually,
    free_port,
    is_up,
    make,
    refused,
    token_of,
)
from tests.raw_http import Raw, request
from tests.support import BrokerProcess, bearer, problem

__all__ = ["make"]  # a fixture

EVENTS = {"accept": "text/event-stream"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker whose places nobody else takes."""
    with BrokerProcess(tmp_path_factory.mktemp("feed") / "data") as process:
        yield process


@contextmanager
def idle_streams(broker: BrokerProcess, count: int, path: str = "/v1/revocations?after=0") -> Iterator[None]:
    """Streams that somebody holds from this address."""
    port = int(broker.url.rpartition(":")[2])
    with ExitStack() as held:
        for _ in range(count):
            stream = held.enter_context(socket.create_connection(("127.0.0.1", port)))
            stream.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n".encode())
        eventually(lambda: followers(broker) >= count)
        yield
    eventually(lambda: followers(broker) == 0)


def followers(broker: BrokerProcess) -> int:
    metrics = broker.http.get("/v1/metrics").text
    return int(float(metrics.partition("\nagentwrit_feed_followers ")[2].partition("\n")[0]))


def stream_from(broker: BrokerProcess, address: str, **headers: str) -> int:
    """What somebody at this address of the machine is answered who wants to follow."""
    transport = httpx2.HTTPTransport(local_address=address)
    with (
        httpx2.Client(transport=transport, base_url=broker.url) as http,
        http.stream("GET", "/v1/revocations", headers=EVENTS | headers) as answer,
    ):
        return answer.status_code


# -- places -----------------------------------------------------------------------------------------------------------


def test_idle_streams_take_no_place_from_another_address_nor_from_an_app(own: BrokerProcess) -> None:
    app = own.app()
    with idle_streams(own, MAX_OF_ADDRESS):
        for path in ("/v1/revocations", "/v1/revocations?wait=30&after=1000000"):
            refused = own.http.get(path, headers=EVENTS if "wait" not in path else {})
            problem(refused, 503, "unavailable")
            assert int(refused.headers["retry-after"]) >= 1
        assert stream_from(own, "127.0.0.2") == 200
        assert stream_from(own, "127.0.0.1", **bearer(app.token())) == 200
        for wrong in ("x", app.token()[:-4] + "AAAA"):
            assert stream_from(own, "127.0.0.1", **bearer(wrong)) == 503
        assert own.http.head("/v1/revocations", headers=EVENTS).status_code == 200
        assert own.http.get("/v1/revocations").status_code == 200


@pytest.mark.alone
def test_who_finds_no_place_stays_fresh_by_pages(own: BrokerProcess, make: Make) -> None:
    app = own.app()
    before, token, dead = make(own.url), token_of(app), token_of(app)
    before.verify(token)
    with idle_streams(own, MAX_OF_ADDRESS - 1):
        late = make(own.url)
        for verifier in (before, late):
            verifier.verify(token)
        own.release(dead)
        for verifier in (before, late):
            eventually(lambda verifier=verifier: refused(verifier, dead, "revoked"), 3)  # type: ignore[misc]
        until = time.monotonic() + STALENESS + 1
        while time.monotonic() < until:
            for verifier in (before, late):
                verifier.verify(token)
        late.close()
        before.close()


def test_a_verifier_with_an_app_to_show_follows_where_strangers_find_no_place(own: BrokerProcess, make: Make) -> None:
    app = own.app()
    with idle_streams(own, MAX_OF_ADDRESS):
        verifier = make(own.url, client_id=app.client_id, client_secret=app.client_secret)
        verifier.verify(token_of(app))
        assert followers(own) == MAX_OF_ADDRESS + 1
        verifier.close()


def test_asking_for_the_head_alone_takes_no_place(own: BrokerProcess) -> None:
    for _ in range(3):
        answer = own.http.head("/v1/revocations", headers=EVENTS)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert followers(own) == 0


def test_odd_questions_are_refused(own: BrokerProcess) -> None:
    places = ("-1", "x", "", "1,", ",".join(["1"] * 65))
    nonces = ("", "short", "x" * 65, "é" * 20, "x" * 16 + "\n")
    for params in (*({"log": place} for place in places), *({"nonce": nonce} for nonce in nonces)):
        problem(own.http.get("/v1/revocations", params=params), 400, "invalid_request")
        problem(own.http.get("/v1/revocations", params=params, headers=EVENTS), 400, "invalid_request")


# -- whoever stands between -------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_a_proxy_that_keeps_events_back_makes_nobody_stale(own: BrokerProcess, make: Make) -> None:
    token, dead = token_of(own.app()), token_of(own.app())
    with mirror_of(own) as mirror:
        mirror.passing = lambda _: []
        verifier = make(mirror.url, max_staleness=6.0)
        until = time.monotonic() + 7
        while time.monotonic() < until:
            verifier.verify(token)
        own.release(dead)
        eventually(lambda: refused(verifier, dead, "revoked"), 3)


@pytest.mark.alone
def test_a_mirror_that_skips_a_page_hides_no_revocation(own: BrokerProcess, make: Make) -> None:
    token = token_of(own.app())
    with mirror_of(own) as mirror:
        verifier = make(mirror.url)
        verifier.verify(token)
        mirror.is_cut_off = True  # nothing but the stream, from here on
        mirror.passing = lambda page: [] if _entries(page) else [page]
        own.release(token)
        eventually(lambda: not accepts(verifier, token), STALENESS + 2)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert not accepts(verifier, token)


def _entries(page: str) -> list[Any]:
    import base64
    import json

    payload = page.split(".")[1]
    return list(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["entries"])


def test_a_mirror_that_serves_one_snapshot_for_ever_hides_no_revocation(own: BrokerProcess, make: Make) -> None:
    token = token_of(own.app())
    with mirror_of(own) as mirror:
        make(mirror.url).verify(token)
        mirror.instead["/v1/revocations/snapshot"] = mirror.passed["/v1/revocations/snapshot"]
        own.release(token)
        assert refused(make(mirror.url), token, "revoked")


# -- two histories ----------------------------------------------------------------------------------------------------


def test_a_verifier_does_not_go_on_with_a_history_that_lost_what_it_has_seen(tmp_path: Path, make: Make) -> None:
    """A data directory that was put back as it once was, without a word: its numbers are given again."""
    port, key = str(free_port()), "5a" * 32
    with BrokerProcess(tmp_path / "data", AGENTWRIT_PORT=port, AGENTWRIT_MASTER_KEY=key) as broker:
        app = broker.app()
        lost, live, *others = (token_of(app) for _ in range(6))
        broker.stop()
        shutil.copytree(broker.data_dir, tmp_path / "kept")
        broker.start()
        refusing, asking = make(broker.url), make(broker.url, on_stale="online")
        for verifier in (refusing, asking):
            verifier.verify(live)
        broker.release(lost)
        for verifier in (refusing, asking):
            eventually(lambda verifier=verifier: refused(verifier, lost, "revoked"))  # type: ignore[misc]  # bound now
        broker.kill()
        shutil.rmtree(broker.data_dir)
        shutil.copytree(tmp_path / "kept", broker.data_dir)
        broker.start()
        assert broker.is_valid(lost)
        for token in others:  # and the new history is as long as the old one was, and longer
            broker.release(token)
        eventually(lambda: is_of_another_history(refusing, live))
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert is_of_another_history(refusing, live)
            assert refused(refusing, lost)
            assert refused(asking, lost)
            asking.verify(live)  # the broker says so, for what that is worth
        broker.stop()
        place = {"AGENTWRIT_DATA_DIR": str(broker.data_dir), "AGENTWRIT_MASTER_KEY": key}
        assert run("store", "restored", "--yes", **place).returncode == 0
        broker.start()
        new = token_of(app)
        for verifier in (refusing, asking):
            eventually(lambda verifier=verifier: is_up(verifier, new))  # type: ignore[misc]  # bound now
            assert comes_to_refuse(verifier, live)
            assert comes_to_refuse(verifier, lost)


def is_of_another_history(verifier: Either, token: str) -> bool:
    try:
        verifier.verify(token)
    except Unverifiable as error:
        return "another history" in str(error)
    except TransportError:
        return False
    return False


def test_a_stranger_who_asks_for_a_great_many_pages_keeps_nobody_from_reading(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker, ExitStack() as stack:
        asking = [stack.enter_context(Raw(broker.url)) for _ in range(3 * WAITING)]
        os.kill(broker.pid, signal.SIGSTOP)  # so that all of it is there at once
        for number, connection in enumerate(asking):
            connection.send(request(f"/v1/revocations?nonce=a-page-of-ones-own-{number:04}"))
        os.kill(broker.pid, signal.SIGCONT)
        assert broker.http.get("/v1/health").status_code == 200
        assert broker.admin()
        answered = Counter(connection.answer().status for connection in asking)
        assert set(answered) == {200, 503}
        assert answered[200] > WAITING
        assert broker.http.get("/v1/revocations").status_code == 200
