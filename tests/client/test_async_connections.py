"""Connections on an event loop: kept, and never used when they may be out of step."""

import asyncio
import http.client
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest
import uvloop

from agentwrit.client.async_connections import AsyncConnections
from agentwrit.client.connections import IDLE_SECONDS, MAX_IDLE
from agentwrit.client.exchange import ConnectFailed, HttpResponse
from tests.client.peer import Handler, Peer, Reply, answer, break_off, hang_up, never, peer

T = TypeVar("T")

OK = answer(200, {"ok": True})


def no_tls() -> ssl.SSLContext:
    raise AssertionError("no TLS is wanted")


async def ask(kept: AsyncConnections, path: str = "/livez", seconds: float = 5.0) -> HttpResponse:
    return await kept.send("GET", path, {}, None, remaining=lambda: seconds, max_bytes=1024)


def run(work: Callable[[AsyncConnections], Coroutine[Any, Any, T]], *script: Reply) -> tuple[T, Peer]:
    """What comes of this work with connections to a peer, on either kind of loop."""

    async def main() -> T:
        kept = AsyncConnections(broker.url, no_tls)
        try:
            return await work(kept)
        finally:
            await kept.close()

    with peer(*script) as broker:
        asyncio.run(main())
    with peer(*script) as broker, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main()), broker


def ports(broker: Peer) -> set[str]:
    return {headers["x-peer-port"] for _, _, headers in broker.seen}


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)  # each turn of the loop takes in what has come


def test_one_connection_serves_one_request_after_another() -> None:
    async def work(kept: AsyncConnections) -> list[HttpResponse]:
        return [await ask(kept) for _ in range(3)]

    answers, broker = run(work, OK)
    assert [(given.status, given.body) for given in answers] == [(200, b'{"ok": true}')] * 3
    assert len(ports(broker)) == 1


def test_a_connection_that_the_other_side_closed_is_not_used_again() -> None:
    def answer_and_leave(handler: Handler) -> None:
        OK(handler)
        handler.close_connection = True

    async def work(kept: AsyncConnections) -> None:
        for _ in range(3):
            await ask(kept)
            [idle] = kept._idle
            await until(lambda idle=idle: idle.connection.is_over)  # type: ignore[misc]  # one idle for each

    _, broker = run(work, answer_and_leave)
    assert len(ports(broker)) == 3


def test_a_connection_on_which_something_came_that_nobody_asked_for_is_not_used_again() -> None:
    heard = threading.Event()

    def say_more(handler: Handler) -> None:
        OK(handler)
        heard.wait(5)
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")

    async def work(kept: AsyncConnections) -> list[bytes]:
        bodies = []
        for _ in range(2):
            heard.clear()
            bodies.append((await ask(kept)).body)
            heard.set()
            await until(lambda: all(idle.connection.is_over for idle in kept._idle))
        return bodies

    bodies, broker = run(work, say_more)
    assert bodies == [b'{"ok": true}'] * 2
    assert len(ports(broker)) == 2


def test_a_call_that_was_given_up_leaves_its_answer_to_nobody() -> None:
    asked = threading.Event()

    def reply(handler: Handler) -> None:
        if handler.path == "/silent":
            asked.set()
            never(handler)
        else:
            OK(handler)

    async def work(kept: AsyncConnections) -> bytes:
        asked.clear()
        seconds = 0.05
        while not asked.is_set():  # given up when it had been asked, and not before
            seconds *= 2
            with pytest.raises(TimeoutError):
                await ask(kept, "/silent", seconds)
        asked.clear()
        task = asyncio.create_task(ask(kept, "/silent", 60))
        assert await asyncio.to_thread(asked.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not kept._idle
        return (await ask(kept)).body

    body, broker = run(work, reply)
    assert body == b'{"ok": true}'
    used = [(path, headers["x-peer-port"]) for path, _, headers in broker.seen]
    assert used[-1][0] == "/livez"
    assert len({port for _, port in used}) == len(used) >= 3


@pytest.mark.parametrize(
    ("reply", "error"), [(hang_up, http.client.RemoteDisconnected), (break_off, http.client.IncompleteRead)]
)
def test_an_answer_that_breaks_off_is_none(reply: Reply, error: type[Exception]) -> None:
    async def work(kept: AsyncConnections) -> None:
        with pytest.raises((error, ConnectionResetError)):
            await ask(kept)
        assert not kept._idle

    run(work, reply)


def test_an_answer_may_end_with_its_connection() -> None:
    def without_a_length(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\nto the end")
        handler.close_connection = True

    async def work(kept: AsyncConnections) -> bytes:
        body = (await ask(kept)).body
        assert not kept._idle
        return body

    assert run(work, without_a_length)[0] == b"to the end"


def test_of_many_connections_some_are_kept_and_none_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(kept: AsyncConnections) -> None:
        await asyncio.gather(*(ask(kept) for _ in range(MAX_IDLE + 8)))
        assert len(kept._idle) <= MAX_IDLE
        kept._idle[:] = [idle._replace(since=idle.since - IDLE_SECONDS) for idle in kept._idle]
        await ask(kept)
        assert len(kept._idle) == 1

    run(work, OK)


def test_nobody_to_ask_is_said() -> None:
    async def work(kept: AsyncConnections) -> None:
        gone = AsyncConnections("http://127.0.0.1:9", no_tls)
        with pytest.raises(ConnectFailed, match=r"refused|Connect call failed"):
            await ask(gone)

    run(work, OK)


def test_what_is_closed_keeps_nothing_that_comes_back() -> None:
    async def work(kept: AsyncConnections) -> None:
        waiting: Awaitable[HttpResponse] = asyncio.create_task(ask(kept))
        await asyncio.sleep(0)
        await kept.close()
        await waiting
        assert not kept._idle

    run(work, OK)
