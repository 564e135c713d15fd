"""Connections to one broker on one event loop, kept between requests: the twin of `agentwrit.client.connections`.

Data is read as soon as it arrives, so that nothing but the requested answer waits in memory.
"""

import asyncio
import http.client
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from agentwrit.client import http1
from agentwrit.client.addresses import Address, Remaining, seconds_for
from agentwrit.client.connections import IDLE_SECONDS, MAX_IDLE, Origin
from agentwrit.client.exchange import ConnectFailed, HttpResponse
from agentwrit.client.http1 import Answer, AnswerReader
from agentwrit.client.secrecy import Secret


class AsyncConnections:
    """Connections to the server of `url`, for the tasks of the loop on which this is created.

    `context` supplies the TLS settings. It is called once, and only for an https URL.
    """

    def __init__(self, url: str, context: Callable[[], ssl.SSLContext]) -> None:
        self._origin = Origin(url, context)
        self._host_field = self._origin.host_field
        self._idle: list[_Idle] = []  # the most recently used one is taken first, so that the others may age
        self._is_closed = False

    async def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str | Secret[str]],
        content: Secret[bytes] | None,
        *,
        remaining: Remaining,
        max_bytes: int,
    ) -> HttpResponse:
        """As `Connections.send`."""
        async with asyncio.timeout(remaining()):
            connection = self._take() or await self._connect(remaining)
            try:
                answer = await connection.exchange(
                    http1.request(method, self._origin.path + path, self._host_field, headers, content),
                    AnswerReader(method, max_bytes=max_bytes),
                )
            except BaseException:
                connection.close()  # further data on it would be taken for the answer to another request
                raise
        if answer.is_last or connection.is_over or self._is_closed:
            connection.close()
        else:
            self._give_back(connection)
        return answer.response

    async def close(self) -> None:
        """Close the idle connections, and those in use when they are returned."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().connection.close()
        await asyncio.sleep(0)  # after one turn of the loop they are closed

    def _take(self) -> "_Connection | None":
        """An idle connection that is still usable."""
        while self._idle:
            idle = self._idle.pop()
            if time.monotonic() - idle.since < IDLE_SECONDS and not idle.connection.is_over:
                return idle.connection
            idle.connection.close()
        return None

    def _give_back(self, connection: "_Connection") -> None:
        self._idle.append(_Idle(connection, time.monotonic()))
        if len(self._idle) > MAX_IDLE:
            self._idle.pop(0).connection.close()

    async def _connect(self, remaining: Remaining) -> "_Connection":
        loop, origin = asyncio.get_running_loop(), self._origin
        failure = OSError("the host has no address")
        try:
            addresses = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        except OSError as error:
            addresses, failure = [], error
        for place, address in enumerate(addresses):
            try:
                return await _connected(loop, address, seconds_for(place, len(addresses), remaining()), origin)
            except OSError as error:
                failure = error
        if isinstance(failure, TimeoutError):
            raise TimeoutError
        raise ConnectFailed(str(failure))


class _Connection(asyncio.Protocol):
    """One connection, for one request at a time."""

    def __init__(self) -> None:
        self.is_over = False
        self._transport: Any = None
        self._reader: AnswerReader | None = None
        self._answer: asyncio.Future[Answer] | None = None

    async def exchange(self, data: bytes, reader: AnswerReader) -> Answer:
        """Send a request, and wait for its answer.

        Raises:
            OSError, http.client.HTTPException: the connection failed, or the data is not an HTTP answer.
        """
        self._reader, self._answer = reader, asyncio.get_running_loop().create_future()
        self._transport.write(data)
        del data
        try:
            return await self._answer
        finally:
            self._reader = self._answer = None

    def close(self) -> None:
        """Close at once: nothing is in progress that has to finish."""
        self.is_over = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            self.close()  # no request is in progress
        else:
            self._settle(lambda: reader.feed(data))

    def eof_received(self) -> None:
        self.is_over = True
        reader = self._reader
        if reader is not None:
            self._settle(reader.end)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_over = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or http.client.RemoteDisconnected("the connection was closed"))

    def _settle(self, read: Callable[[], Answer | None]) -> None:
        """Give the caller what was read if the answer is complete, or the reason why it cannot be read."""
        waiting = self._answer
        if waiting is None or waiting.done():  # there is data after the answer: the connection is not used again
            self.close()
            return
        try:
            answer = read()
        except http.client.HTTPException as error:
            waiting.set_exception(error.with_traceback(None))
            self.close()
            return
        if answer is not None:
            waiting.set_result(answer)


class _Idle(NamedTuple):
    connection: _Connection
    since: float


async def _connected(loop: asyncio.AbstractEventLoop, address: Address, seconds: float, origin: Origin) -> _Connection:
    family, kind, protocol, _, place = address
    transport = socket.socket(family, kind, protocol)
    try:
        transport.setblocking(False)
        async with asyncio.timeout(seconds):
            await loop.sock_connect(transport, place)
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = None if origin.context is None else origin.host
        _, connection = await loop.create_connection(
            _Connection, sock=transport, ssl=origin.context, server_hostname=name
        )
    except BaseException:
        transport.close()
        raise
    return connection
