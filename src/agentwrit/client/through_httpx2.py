"""Requests through an httpx2 client: the caller's own, or the driver's if there is a proxy.

httpx2's timeouts restart with each part of an answer. Here a call has a deadline, so that a server cannot extend it by
answering slowly: on an event loop it is a task, which is cancelled at the deadline; otherwise it has a thread, whose
connection is closed.
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

LATE_SECONDS: Final = 0.1  # in which httpx2 may report the timeout itself

Arguments: TypeAlias = Callable[[], dict[str, Any]]
"""The arguments of a client's `stream`. They hold secrets in plain text, so they are created where they are used."""


class Caller:
    """Makes blocking calls through a client. Safe to share between threads."""

    def __init__(self, client: "httpx2.Client") -> None:
        self._client = client
        # The connections that have carried an answer. httpx2 does not say which one it reuses.
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()

    def send(self, arguments: Arguments, *, timeout: float, max_bytes: int) -> HttpResponse:
        """Make a request, once.

        Raises:
            TimeoutError: the call took too long.
            AnswerTooLarge: the answer is larger than the limit.
            Exception: what the client raises, without its traceback.
        """
        done: Future[HttpResponse] = Future()
        made: list[Any] = []  # the connections that were opened for this call

        def run() -> None:
            try:
                done.set_result(self._call(arguments, max_bytes, made))
            except BaseException as error:
                done.set_exception(_bare(error))

        context = contextvars.copy_context()  # the client's transport may rely on it
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
            with suppress(KeyError, TypeError):  # absent if the transport uses no network
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
    """As `Caller.send`. `tasks`: holds the task until it is done."""
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
    """An answer while it arrives, not decompressed, because the content may be far larger than its compressed form."""

    def __init__(self, response: "httpx2.Response", max_bytes: int) -> None:
        if len(response.headers.raw) > MAX_FIELDS:  # checked first: reading them takes quadratic time
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
    """An error without traceback and causes: frames of HTTP libraries hold the request, and the secrets in it."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _hang_up(connection: Any) -> None:
    """End a connection for the thread that waits for it."""
    connected = connection.get_extra_info("socket")
    if connected is not None:
        with suppress(OSError):  # it may already be closed
            socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not a TLS shutdown: that must not run in two threads
