"""Requests through a client of httpx2: the caller's own, or ours where there is a proxy.

httpx2 counts its timeouts anew with each part that comes. Here a call has a time in which it is over, whoever answers
a little at a time: on an event loop it is a task, which is cancelled then, and elsewhere it has a thread, whose
connection is closed under it.
"""

import asyncio
import contextvars
import socket
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agentwrit.client.exchange import AnswerTooLarge, HttpResponse
from agentwrit.client.http1 import MAX_FIELDS
from agentwrit.client.secrecy import discreet

if TYPE_CHECKING:
    import httpx2

LATE_SECONDS: Final = 0.1  # in which httpx2 may say itself that its time is over

Arguments: TypeAlias = Callable[[], dict[str, Any]]
"""What a client's `stream` takes. It holds secrets in the open, so it is made where it is used."""


class Caller:
    """Makes blocking calls through a client. Safe to share between threads."""

    def __init__(self, client: "httpx2.Client") -> None:
        self._client = client
        # The connections that have carried an answer. Which of them is used again httpx2 does not say.
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()

    def send(self, arguments: Arguments, *, timeout: float, max_bytes: int) -> HttpResponse:
        """Make a request, once.

        Raises:
            TimeoutError: it took longer.
            AnswerTooLarge: more came than is taken.
            Exception: what the client raises, without its traceback.
        """
        done: Future[HttpResponse] = Future()
        made: list[Any] = []  # the connections that were made for this

        def run() -> None:
            try:
                done.set_result(self._call(arguments, max_bytes, made))
            except BaseException as error:
                done.set_exception(_bare(error))

        context = contextvars.copy_context()  # which the client's transport may rely on
        threading.Thread(target=context.run, args=(run,), name="agentwrit-call", daemon=True).start()
        try:
            return done.result(timeout + LATE_SECONDS)
        finally:
            if not done.done():
                for connection in made or list(self._connections):
                    _hang_up(connection)

    @discreet
    def _call(self, arguments: Arguments, max_bytes: int, made: list[Any]) -> HttpResponse:
        def trace(_: str, told: Mapping[str, Any]) -> None:
            if hasattr(told.get("return_value"), "get_extra_info"):
                made.append(told["return_value"])

        with self._client.stream(**arguments(), extensions={"trace": trace}) as response:
            with suppress(KeyError, TypeError):  # there is none where no network is
                self._connections.add(response.extensions["network_stream"])
            answer = _Answer(response, max_bytes)
            for chunk in response.iter_raw():
                answer.collect(chunk)
            return answer.whole()


async def send(
    client: "httpx2.AsyncClient",
    arguments: Arguments,
    *,
    timeout: float,
    max_bytes: int,
    tasks: set[asyncio.Task[Any]],
) -> HttpResponse:
    """As `Caller.send`. `tasks`: where the task is kept until it is over."""
    task = asyncio.get_running_loop().create_task(_call(client, arguments, max_bytes))
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    try:
        await asyncio.wait({task}, timeout=timeout)
    finally:
        task.cancel()
    if not task.done() or task.cancelled():
        raise TimeoutError
    failure = task.exception()
    if failure is not None:
        raise _bare(failure)
    return task.result()


@discreet
async def _call(client: "httpx2.AsyncClient", arguments: Arguments, max_bytes: int) -> HttpResponse:
    async with client.stream(**arguments()) as response:
        answer = _Answer(response, max_bytes)
        async for chunk in response.aiter_raw():
            answer.collect(chunk)
        return answer.whole()


class _Answer:
    """An answer while it comes: as it is sent, since what is packed may be far larger than it looks."""

    def __init__(self, response: "httpx2.Response", max_bytes: int) -> None:
        if len(response.headers.raw) > MAX_FIELDS:  # asked first: to look at them takes the square of their number
            raise AnswerTooLarge
        self._status = response.status_code
        self._headers = dict(response.headers)
        self._max_bytes = max_bytes
        self._body = bytearray()

    def collect(self, chunk: bytes) -> None:
        self._body += chunk
        if len(self._body) > self._max_bytes:
            raise AnswerTooLarge

    def whole(self) -> HttpResponse:
        return HttpResponse(self._status, self._headers, bytes(self._body))


def _bare(error: BaseException) -> BaseException:
    """An error without what it came from: the frames of HTTP libraries hold the request, and what was sent with it."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _hang_up(connection: Any) -> None:
    """End a connection for the thread that waits for it."""
    connected = connection.get_extra_info("socket")
    if connected is not None:
        with suppress(OSError):  # it may be closed by now
            socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not TLS's own, which is not for two threads
