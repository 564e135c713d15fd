"""The revocation feed on the wire: signed, numbered, cacheable, and bounded."""

import hashlib
import json
import socket
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest

from tests.support import PLAIN, BrokerProcess, bearer, problem

PAGE = 512


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker whose feed nobody else adds to."""
    with BrokerProcess(tmp_path_factory.mktemp("feed") / "data") as process:
        yield process


def opened(broker: BrokerProcess, token: str, typ: str = "agentwrit-revocations+jwt") -> dict[str, Any]:
    """What a page says, its signature checked by a library that is not ours."""
    header = jwt.get_unverified_header(token)
    keys = broker.http.get("/v1/revocations/jwks.json").json()["keys"]
    [key] = [jwt.PyJWK(key) for key in keys if key["kid"] == header["kid"]]
    assert list(header) == ["alg", "typ", "kid"]
    assert header["typ"] == typ
    return dict(json.loads(jwt.PyJWS().decode(token, key, algorithms=["EdDSA"])))


def page(broker: BrokerProcess, after: int, **params: Any) -> dict[str, Any]:
    answer = broker.http.get("/v1/revocations", params={"after": after, **params})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/jose"
    return opened(broker, answer.text)


def head(broker: BrokerProcess) -> int:
    """The number of the newest entry: from beyond it, since a full page keeps the head that it was made with."""
    return int(page(broker, 10**9)["head"])


def digest(name: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).rstrip(b"=").decode()


def claims(token: str) -> dict[str, Any]:
    return dict(json.loads(urlsafe_b64decode(token.split(".")[1] + "==")))


@contextmanager
def following(broker: BrokerProcess, after: int = 0, *, last_event_id: str = "") -> Iterator[Iterator[dict[str, Any]]]:
    """The pages of a stream as they come."""
    headers = {"accept": "text/event-stream"} | ({"last-event-id": last_event_id} if last_event_id else {})
    with (
        httpx2.Client(base_url=broker.url, timeout=10, trust_env=False, verify=PLAIN) as http,
        http.stream("GET", "/v1/revocations", params={"after": after}, headers=headers) as stream,
    ):
        assert stream.status_code == 200
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"

        def pages() -> Iterator[dict[str, Any]]:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    yield opened(broker, line.removeprefix("data: "))

        yield pages()


def test_an_entry_names_what_died_to_whoever_knows_it_and_to_nobody_else(own: BrokerProcess) -> None:
    before = head(own)
    token = own.app().agent()["access_token"]
    own.release(token)
    answer = own.http.get("/v1/revocations", params={"after": before})
    shown = opened(own, answer.text)
    [[kind, name, since, until]] = shown["entries"]
    said = claims(token)
    assert (kind, name) == ("sid", digest(said["sid"]))
    assert since <= time.time() + 1
    assert until == said["exp"]
    assert (shown["iss"], shown["first"], shown["last"], shown["head"]) == (
        "agentwrit",
        before + 1,
        before + 1,
        before + 1,
    )
    for secret in (said["sid"], said["jti"], said["sub"]):
        assert secret not in json.dumps(shown)


def test_every_kind_of_end_enters_the_feed(own: BrokerProcess) -> None:
    before = head(own)
    app = own.app()
    agent, other = app.agent(), app.agent()
    below = own.delegate(agent["access_token"], other["agent_id"]).json()["access_token"]
    own.renew(other["access_token"])
    own.revoke("agent", agent["agent_id"])
    own.http.delete(f"/v1/admin/apps/{app.app_id}", headers=own.admin())
    entries = {(kind, name) for kind, name, _, _ in page(own, before)["entries"]}
    expected = {("jti", digest(claims(other["access_token"])["jti"]))}
    expected |= {
        ("sid", digest(claims(token)["sid"])) for token in (agent["access_token"], below, other["access_token"])
    }
    assert expected <= entries


def test_at_its_head_the_feed_answers_with_a_heartbeat(own: BrokerProcess) -> None:
    last = head(own)
    for after in (last, last + 1000):
        shown = page(own, after)
        assert (shown["first"], shown["last"], shown["head"], shown["entries"]) == (last + 1, last, last, [])
        assert abs(shown["issued_at"] - time.time()) < 3


@pytest.mark.alone
def test_a_waiting_reader_is_answered_when_something_dies(own: BrokerProcess) -> None:
    last = head(own)
    token = own.app().agent()["access_token"]
    answers: list[dict[str, Any]] = []
    with httpx2.Client(base_url=own.url, timeout=40, trust_env=False) as http:

        def wait() -> None:
            text = http.get("/v1/revocations", params={"after": last, "wait": 30}).text
            answers.append(opened(own, text))

        waiting = threading.Thread(target=wait)
        waiting.start()
        deadline = time.monotonic() + 10
        while "agentwrit_feed_followers 1.0" not in own.http.get("/v1/metrics").text:
            assert time.monotonic() < deadline
        started = time.monotonic()
        own.release(token)
        waiting.join(10)
    assert time.monotonic() - started < 1
    assert [entry[1] for entry in answers[0]["entries"]] == [digest(claims(token)["sid"])]


@pytest.mark.alone
def test_a_stream_brings_what_was_missed_then_news_and_a_heartbeat_each_second(own: BrokerProcess) -> None:
    own.release(own.app().agent()["access_token"])
    token = own.app().agent()["access_token"]
    with following(own) as pages:
        seen = 0
        while seen < head(own):
            shown = next(pages)
            assert shown["first"] <= seen + 1
            seen = max(seen, shown["last"])
        started = time.monotonic()
        own.release(token)
        while not (shown := next(pages))["entries"]:
            assert shown["first"] == shown["last"] + 1
        assert time.monotonic() - started < 1
        assert shown["entries"][-1][1] == digest(claims(token)["sid"])
        heartbeats = [next(pages), next(pages)]
        assert heartbeats[1]["issued_at"] - heartbeats[0]["issued_at"] in (1, 2)
    with following(own, last_event_id=str(shown["last"])) as pages:
        assert next(pages)["entries"] == []


def test_a_full_page_never_changes_and_may_be_kept_by_anybody(own: BrokerProcess) -> None:
    app = own.app()
    while head(own) < PAGE + 1:
        token = app.agent(max_ttl=3000)["access_token"]
        for _ in range(60):
            token = own.renew(token).json()["access_token"]
    answer = own.http.get("/v1/revocations", params={"after": 0})
    shown = opened(own, answer.text)
    assert (shown["first"], shown["last"], len(shown["entries"])) == (1, PAGE, PAGE)
    assert answer.headers["cache-control"] == "public, max-age=86400, immutable"
    assert own.http.get("/v1/revocations", params={"after": 0}).text == answer.text
    tag = {"if-none-match": answer.headers["etag"]}
    assert own.http.get("/v1/revocations", params={"after": 0}, headers=tag).status_code == 304
    rest = own.http.get("/v1/revocations", params={"after": PAGE})
    assert opened(own, rest.text)["first"] == PAGE + 1
    assert rest.headers["cache-control"] == "public, max-age=1"
    assert rest.headers["vary"] == "accept"
    middle = page(own, 100)
    assert (middle["first"], middle["last"], middle["entries"]) == (101, PAGE, shown["entries"][100:])


def test_a_snapshot_holds_all_that_cannot_be_forgotten_yet(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        token = broker.app().agent()["access_token"]
        broker.release(token)
        answer = broker.http.get("/v1/revocations/snapshot")
        shown = opened(broker, answer.text, "agentwrit-revocations-snapshot+jwt")
        assert shown["head"] == head(broker)
        assert [entry[:2] for entry in shown["entries"]] == [["sid", digest(claims(token)["sid"])]]
        assert shown["epoch"] == page(broker, 0)["epoch"]
        assert answer.headers["cache-control"] == "public, max-age=30"


def test_numbers_go_on_after_a_kill_and_a_new_store_has_a_new_epoch(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        broker.release(broker.app().agent()["access_token"])
        before = page(broker, 0)
        broker.kill()
        broker.start()
        after = page(broker, 0)
        assert (after["epoch"], after["head"], after["entries"]) == (before["epoch"], before["head"], before["entries"])
    with BrokerProcess(tmp_path / "other") as other:
        assert page(other, 0)["epoch"] != before["epoch"]


@pytest.mark.alone
def test_a_broker_that_stops_does_not_wait_for_those_who_follow(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker, following(broker) as pages:
        next(pages)
        started = time.monotonic()
        assert broker.stop() == 0
        assert time.monotonic() - started < 5


def test_followers_that_leave_are_forgotten(own: BrokerProcess) -> None:
    for _ in range(5):
        with following(own) as pages:
            next(pages)
    deadline = time.monotonic() + 10
    while "agentwrit_feed_followers 0.0" not in own.http.get("/v1/metrics").text:
        assert time.monotonic() < deadline


@pytest.mark.alone
def test_one_that_does_not_read_keeps_nobody_waiting(own: BrokerProcess) -> None:
    port = int(own.url.rpartition(":")[2])
    token = own.app().agent()["access_token"]
    with ExitStack() as sleepers:
        for _ in range(20):
            sleeper = sleepers.enter_context(socket.create_connection(("127.0.0.1", port)))
            sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            sleeper.sendall(b"GET /v1/revocations HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n")
        with following(own, head(own)) as pages:
            next(pages)
            started = time.monotonic()
            own.release(token)
            while not next(pages)["entries"]:
                pass
            assert time.monotonic() - started < 1


def test_a_page_that_is_asked_for_answers_the_question_and_no_other(own: BrokerProcess) -> None:
    last = head(own)
    answers = []
    for nonce in ("0123456789abcdef", "A-nonce_of-64-characters" + "x" * 40):
        answer = own.http.get("/v1/revocations", params={"after": last, "nonce": nonce})
        assert answer.headers["cache-control"] == "no-store"
        answers.append(opened(own, answer.text)["nonce"])
        assert answers[-1] == nonce
    assert "nonce" not in page(own, last)


def test_a_page_says_where_the_audit_log_ended_to_whoever_knows_a_place_in_it_and_nothing_else(
    own: BrokerProcess,
) -> None:
    asked = {"nonce": "0123456789abcdef"}  # others may have a page of this second
    events = own.events()
    before = page(own, head(own), **asked)["log"]
    assert before[0] == int(events[-1]["id"].removeprefix("evt-"))
    expected = hashlib.sha256(b"agentwrit-log-place-v1\n" + events[-1]["hash"].encode()).digest()
    assert before[1] == urlsafe_b64encode(expected).rstrip(b"=").decode()
    own.release(own.app().agent()["access_token"])
    shown = page(own, head(own), log=before[0], **asked)
    assert shown["since"] == [before]
    assert shown["log"][0] > before[0]
    both = page(own, head(own), log=f"{before[0]},{shown['log'][0]}", **asked)
    assert both["since"] == [before, shown["log"]]
    assert "since" not in page(own, head(own), log=shown["log"][0] + 1000, **asked)
    assert "since" not in page(own, head(own), **asked)


def test_odd_questions_are_refused(own: BrokerProcess) -> None:
    for params in ({"after": -1}, {"after": "x"}, {"wait": 31}, {"before": 1}, {"after": "1" * 20}):
        problem(own.http.get("/v1/revocations", params=params), 400, "invalid_request")
    problem(own.http.post("/v1/revocations"), 405, "method_not_allowed")


def test_an_access_token_is_no_page_and_a_page_is_no_token(own: BrokerProcess) -> None:
    assert not own.is_valid(own.http.get("/v1/revocations", params={"after": 0}).text)
    text = own.http.get("/v1/revocations", params={"after": head(own)}).text  # a page that fits into a request's head
    assert not own.is_valid(text)
    assert own.http.get("/v1/agents", headers=bearer(text)).status_code == 401
    kids = {key["kid"] for key in own.http.get("/.well-known/jwks.json").json()["keys"]}
    assert jwt.get_unverified_header(text)["kid"] not in kids
