"""Whoever answers in place of a broker: calls end in time, take no more than an answer has, and fail as foreseen."""

import asyncio
import contextlib
import json
import select
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwrit import AgentWritApp, AgentWritError, AsyncAgentWritApp, RateLimitError, TransportError, validate
from agentwrit.client import http1, steps
from agentwrit.client.exchange import HttpRequest, HttpResponse, LoginNeeded
from agentwrit.client.keys import AgentKey
from agentwrit.client.secrecy import Secret
from agentwrit.delivery import sinks, syslog
from agentwrit.errors import from_response

Behaviour = Callable[[socket.socket], None]

TIMEOUT = 0.6
SLACK = 4.0  # on a busy machine; what does not end in time would not end at all
OK = b"HTTP/1.1 200 OK\r\n"
DEAD = b'{"valid":false}'


@contextlib.contextmanager
def serving(behave: Behaviour) -> Iterator[str]:
    """A server that does with each connection as it likes, once a request has come. Its URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)
    taken: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            received = b""
            while b"\r\n\r\n" not in received:
                part = connection.recv(65536)
                if not part:
                    return
                received += part
            behave(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                taken.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in taken:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def dripping(before: bytes, drop: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(before)
        gone = select.poll()
        gone.register(connection, 0)  # the other side has left: that is told whatever is asked for
        connection.sendall(drop)
        while not gone.poll(TIMEOUT / 8 * 1000):  # never as long as a call may wait for something to come
            connection.sendall(drop)

    return behave


def sending(data: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.recv(1)

    return behave


def flooding(before: bytes, part: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(before)
        while True:
            connection.sendall(part)

    return behave


SLOW: dict[str, Behaviour] = {
    "a head": dripping(OK + b"x: ", b"a"),
    "fields": dripping(OK, b"x: a\r\n"),
    "a body": dripping(OK + b"content-length: 1000\r\n\r\n", b" "),
    "a body without a length": dripping(OK + b"\r\n", b" "),
    "chunks": dripping(OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "the size of a chunk": dripping(OK + b"transfer-encoding: chunked\r\n\r\n", b"0"),
    "trailers": dripping(OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x: a\r\n"),
    "interim answers": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early hints": dripping(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "nothing": lambda connection: [connection.recv(1)].clear(),
}

TOO_MUCH: dict[str, Behaviour] = {
    "interim answers": flooding(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early hints": flooding(b"", b"HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n" * 100),
    "a head": flooding(OK, b"x: " + b"a" * 1000 + b"\r\n"),
    "a line": flooding(OK + b"x: ", b"a" * 65536),
    "fields": sending(OK + b"".join(b"a%d: b\r\n" % number for number in range(5000)) + b"\r\n"),
    "a body": flooding(OK + b"content-length: 99999999999\r\n\r\n", b"a" * 65536),
    "a body without a length": flooding(OK + b"\r\n", b"a" * 65536),
    "chunks": flooding(OK + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + b"a" * 65536 + b"\r\n"),
    "the size of a chunk": flooding(OK + b"transfer-encoding: chunked\r\n\r\n", b"0" * 65536),
    "what a chunk says besides": flooding(
        OK + b"transfer-encoding: chunked\r\n\r\n", (b"1;" + b"x" * 8000 + b"\r\na\r\n") * 8
    ),
    "trailers": flooding(OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x: a\r\n" * 1000),
}

Ask = Callable[[str], None]


def directly(url: str) -> None:
    validate(url, "x", timeout=TIMEOUT)


def through_a_client_of_ones_own(url: str) -> None:
    with httpx2.Client() as client, AgentWritApp(url, "id", "secret", http_client=client, timeout=TIMEOUT) as app:
        app.validate("x")


def on_a_loop(url: str) -> None:
    async def main() -> None:
        async with AsyncAgentWritApp(url, "id", "secret", timeout=TIMEOUT) as app:
            await app.validate("x")

    asyncio.run(main())


def through_a_client_on_a_loop(url: str) -> None:
    async def main() -> None:
        async with (
            httpx2.AsyncClient() as client,
            AsyncAgentWritApp(url, "id", "secret", http_client=client, timeout=TIMEOUT) as app,
        ):
            await app.validate("x")

    asyncio.run(main())


WAYS: list[Ask] = [directly, through_a_client_of_ones_own, on_a_loop, through_a_client_on_a_loop]


def outcome(ask: Ask, behave: Behaviour) -> tuple[Any, float]:
    """What it came to, and how long it took."""
    with serving(behave) as url:
        began = time.monotonic()
        try:
            ask(url)
        except AgentWritError as error:
            return error, time.monotonic() - began
        except BaseException as error:
            return f"{type(error).__name__}: {error}", time.monotonic() - began
        return "an answer", time.monotonic() - began


def outcomes(ask: Ask, behaviours: dict[str, Behaviour]) -> dict[str, tuple[Any, float]]:
    """The same for all of these, at once."""
    found: dict[str, tuple[Any, float]] = {}

    def one(name: str) -> None:
        found[name] = outcome(ask, behaviours[name])

    threads = [threading.Thread(target=one, args=(name,), daemon=True) for name in behaviours]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT + 10)
    return found


@pytest.mark.alone
@pytest.mark.parametrize("ask", WAYS)
def test_whatever_comes_a_little_at_a_time_a_call_ends_with_its_timeout(ask: Ask) -> None:
    found = outcomes(ask, SLOW)
    assert found.keys() == SLOW.keys(), f"still waiting: {SLOW.keys() - found.keys()}"
    for name, (error, seconds) in found.items():
        assert isinstance(error, TransportError), (name, error)
        assert seconds < TIMEOUT + SLACK, (name, seconds)


@pytest.mark.alone
@pytest.mark.parametrize("ask", [directly, on_a_loop])
def test_of_nothing_that_comes_more_is_taken_than_an_answer_may_have(ask: Ask) -> None:
    tracemalloc.start()
    try:
        found = outcomes(ask, TOO_MUCH)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.keys() == TOO_MUCH.keys()
    for name, (error, seconds) in found.items():
        assert isinstance(error, TransportError), (name, error)
        assert seconds < TIMEOUT + SLACK, (name, seconds)
    assert peak < 128 * 1024 * 1024  # four bodies of 16 MiB at most, and what is made of them


@pytest.mark.alone
@pytest.mark.parametrize("ask", [through_a_client_of_ones_own, through_a_client_on_a_loop])
def test_through_a_client_of_ones_own_no_more_is_taken_either(ask: Ask) -> None:
    for name, (error, seconds) in outcomes(ask, TOO_MUCH).items():
        assert isinstance(error, TransportError), (name, error)
        assert seconds < TIMEOUT + SLACK, (name, seconds)


@pytest.mark.parametrize("behave", [TOO_MUCH["interim answers"], SLOW["early hints"]], ids=["flood", "drip"])
def test_a_thread_that_was_given_up_comes_to_its_end(behave: Behaviour) -> None:
    with serving(behave) as url, httpx2.Client() as client:
        app = AgentWritApp(url, "id", "secret", http_client=client, timeout=0.2)
        for _ in range(3):
            with pytest.raises(TransportError):
                app.validate("x")
        calls = [thread for thread in threading.enumerate() if thread.name == "agentwrit-call"]
        for thread in calls:
            thread.join(10)
        assert not any(thread.is_alive() for thread in calls)


@pytest.mark.alone
def test_behind_a_proxy_a_call_ends_with_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(SLOW["a head"]) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        for ask in (directly, on_a_loop):
            began = time.monotonic()
            with pytest.raises(TransportError):
                ask("http://proxied.example")
            assert time.monotonic() - began < TIMEOUT + SLACK


# -- before anything is sent ------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_a_name_that_the_system_looks_up_for_ever_costs_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up, end = socket.getaddrinfo, threading.Event()

    def hang(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "nobody.example" and not options.get("flags"):
            end.wait(20)
            raise socket.gaierror("no such host")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        before = threading.active_count()
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(TransportError, match="in time"):
                validate("http://nobody.example", "x", timeout=0.1)
            assert time.monotonic() - began < 0.1 + SLACK
        assert threading.active_count() <= before + 1  # one asks, for all who wait
    finally:
        end.set()


@pytest.mark.alone
@pytest.mark.parametrize("ask", [directly, on_a_loop])
def test_an_address_that_leads_nowhere_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    look_up = socket.getaddrinfo
    with serving(sending(OK + b"content-length: 15\r\n\r\n" + DEAD)) as url, contextlib.ExitStack() as open_ones:
        nowhere = open_ones.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):  # its queue is full, so whoever comes is not answered
            waiting = open_ones.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(nowhere.getsockname())

        def both(host: Any, *arguments: Any, **options: Any) -> Any:
            if host == "two.example":
                if options.get("flags"):
                    raise socket.gaierror
                kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
                return [(*kind, nowhere.getsockname()), (*kind, ("127.0.0.1", int(url.rpartition(":")[2])))]
            return look_up(host, *arguments, **options)

        monkeypatch.setattr(socket, "getaddrinfo", both)
        ask("http://two.example")


@pytest.mark.alone
@pytest.mark.parametrize("ask", [directly, on_a_loop])
def test_a_handshake_that_does_not_end_costs_the_timeout(ask: Ask) -> None:
    with serving(SLOW["nothing"]) as url:  # it waits for the end of a head that does not come
        began = time.monotonic()
        with pytest.raises(TransportError):
            ask(url.replace("http:", "https:"))
        assert time.monotonic() - began < TIMEOUT + SLACK


@pytest.mark.alone
def test_who_waits_for_his_turn_waits_until_his_own_deadline() -> None:
    with serving(SLOW["nothing"]) as url:
        app = AgentWritApp(url, "id", "secret", timeout=10)
        holding = app._driver._turn(app._driver._login.turn)  # type: ignore[union-attr]  # it has a login
        with holding:
            began = time.monotonic()
            with pytest.raises(TransportError, match="in time"):
                app._driver.run(steps.logged_in(HttpRequest("GET", "/v1/agents")), timeout=0.2)
            assert time.monotonic() - began < 0.2 + SLACK


# -- whose answer it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
@pytest.mark.parametrize("ask", [directly, on_a_loop])
def test_what_comes_before_an_answer_is_not_taken_for_it(ask: Ask, interim: bytes) -> None:
    def behave(connection: socket.socket) -> None:
        connection.sendall(interim)
        connection.sendall(OK + b"content-length: 15\r\n\r\n" + DEAD)
        connection.recv(1)

    with serving(behave) as url:
        ask(url)


def test_another_protocol_that_nobody_asked_for_is_no_answer() -> None:
    switching = sending(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
    with serving(switching) as url, pytest.raises(TransportError):
        validate(url, "x", timeout=0.2)


def test_two_lengths_of_one_answer_end_the_connection() -> None:
    both = b"transfer-encoding: chunked\r\ncontent-length: 15\r\n\r\nf\r\n" + DEAD + b"\r\n0\r\n\r\n"
    reader = http1.AnswerReader("POST", max_bytes=1024)
    answer = reader.feed(OK + both)
    assert answer is not None
    assert (answer.response.body, answer.is_last) == (DEAD, True)


# -- what it says -----------------------------------------------------------------------------------------------------

NUMBERS = [10**400, -(10**400), 2**63, 2**31, -1, 1.5, True, "5", None, [5], {}]
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8))
ANYTHING = st.recursive(
    st.one_of(SCALARS, st.sampled_from([10**400, -(10**400), "\u0000", "a\r\nb", "x" * 70_000])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
NAMES = [
    "access_token", "expires_in", "agent_id", "token_type", "launch_token", "nonce", "policy", "valid", "claims",
    "error", "status", "version", "uptime", "db_connected", "audit_events_count", "delegation_chain", "refused",
    "title", "detail", "hint", "error_code", "instance", "type", "exp", "nbf", "iat", "aud", "scope", "cnf", "sub",
]  # fmt: skip
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "access_token": st.one_of(st.just("a.b.c"), ANYTHING),
        "expires_in": st.one_of(st.just(60), ANYTHING),
        "agent_id": st.one_of(st.just("spiffe://x"), ANYTHING),
        "launch_token": st.one_of(st.just("ab" * 32), ANYTHING),
        "nonce": st.one_of(st.just("00" * 32), ANYTHING),
        "valid": st.just(True),
        "claims": st.one_of(ANYTHING, st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=6)),
        "delegation_chain": st.one_of(ANYTHING, st.lists(st.dictionaries(st.sampled_from(NAMES), ANYTHING))),
        "refused": st.one_of(ANYTHING, st.lists(st.fixed_dictionaries({"index": ANYTHING}))),
    },
)
BODIES = st.one_of(
    st.one_of(LIKELY, st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=8), ANYTHING).map(
        lambda body: json.dumps(body).encode()
    ),
    st.binary(max_size=32),
    st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b'{"expires_in":1e400}', b"\xff"]),
)
ANSWERS = st.builds(
    HttpResponse,
    st.sampled_from([200, 200, 200, 201, 204, 302, 400, 401, 403, 404, 405, 409, 429, 500, 502, 503, 504, 599, 999]),
    st.dictionaries(
        st.sampled_from(["retry-after", "dpop-nonce", "www-authenticate", "content-type", "location"]),
        st.one_of(st.text(max_size=8), st.sampled_from(["9" * 5000, "²", "-1", "0", 'error="invalid_token"'])),
    ),
    BODIES,
)
WANTED = steps.WantedAgent(orch_id="o", task_id="t", requested_scope=["read:data:1"], max_ttl=60, bound=True)
BOUND = steps.Binding(AgentKey(), "http://broker")
CALLS: dict[str, Callable[[], Any]] = {
    "create": lambda: steps.create_agent(steps.Ceremony("http://broker"), AgentKey(), WANTED),
    "renew": lambda: steps.renew(Secret("a.b.c"), BOUND),
    "release": lambda: steps.release(Secret("a.b.c"), BOUND),
    "delegate": lambda: steps.delegate(Secret("a.b.c"), "spiffe://y", ["read:data:1"], 60, BOUND),
    "validate": lambda: steps.validate(Secret("a.b.c")),
    "health": steps.health,
    "login": lambda: steps.app_login("id", Secret("secret")),
    "report": lambda: steps.report_accesses([], "key"),
}


@pytest.mark.parametrize("call", CALLS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_a_broker_answers_is_a_result_or_one_of_our_errors(call: str, data: st.DataObject) -> None:
    program = CALLS[call]()
    with contextlib.suppress(AgentWritError, StopIteration):
        needed = next(program)
        for _ in range(20):
            answer = Secret("login") if isinstance(needed, LoginNeeded) else data.draw(ANSWERS)
            needed = program.send(answer)


def short(value: object) -> str:
    return repr(value)[:12]


@pytest.mark.parametrize("expires_in", NUMBERS, ids=short)
def test_a_lifetime_that_is_none_is_no_brokers_answer(expires_in: object) -> None:
    program = steps.app_login("id", Secret("secret"))
    next(program)
    body = json.dumps({"access_token": "a.b.c", "expires_in": expires_in}).encode()
    with pytest.raises(TransportError, match="expires_in"):
        program.send(HttpResponse(200, {}, body))


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", [10**400, 10**12, -1, True, 1.5], ids=short)
def test_a_time_that_no_calendar_has_is_no_brokers_answer(name: str, value: object) -> None:
    program = steps.validate(Secret("a.b.c"))
    next(program)
    with pytest.raises(TransportError, match=name):
        program.send(HttpResponse(200, {}, json.dumps({"valid": True, "claims": {name: value}}).encode()))


def test_a_wait_that_is_asked_for_is_one_that_can_be_waited() -> None:
    error = from_response(429, {"retry-after": "9" * 5000}, b"{}")
    assert isinstance(error, RateLimitError)
    assert error.retry_after is not None
    assert 0 <= error.retry_after <= threading.TIMEOUT_MAX


# -- who receives the audit log ---------------------------------------------------------------------------------------


@pytest.mark.alone
def test_a_receiver_that_answers_a_little_at_a_time_has_not_taken_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "HTTP_SECONDS", TIMEOUT)
    monkeypatch.setattr(syslog, "SECONDS", TIMEOUT)
    event = {"outcome": "success", "timestamp": "2026-01-01T00:00:00Z", "event_type": "x"}
    with serving(SLOW["a head"]) as url:
        sink = sinks.HttpSink(url, lambda _: b"{}", is_json=True, authorization=None, tls=None)
        began = time.monotonic()
        with pytest.raises(sinks.NotDelivered):
            sink.deliver([event])
        assert time.monotonic() - began < TIMEOUT + SLACK
    with serving(dripping(b"", b"a")) as url:
        receiver = syslog.Receiver("127.0.0.1", int(url.rpartition(":")[2]))
        stream = syslog.StreamSink(receiver, lambda _: b"{}\r\n\r\n", hostname="h", tls=None, longest=8096)
        began = time.monotonic()
        with pytest.raises(sinks.NotDelivered):
            stream.deliver([event])
        assert time.monotonic() - began < TIMEOUT + SLACK


def test_a_receivers_answer_is_not_kept_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "HTTP_SECONDS", 5.0)
    with serving(TOO_MUCH["a body without a length"]) as url:
        sink = sinks.HttpSink(url, lambda _: b"{}", is_json=True, authorization=None, tls=None)
        with pytest.raises(sinks.NotDelivered):
            sink.deliver([{}])
