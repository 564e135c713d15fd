"""A connection that asks one question at a time, on the event loop, with as little as that takes.

It speaks to libpq, below psycopg's own `execute`: that costs the event loop more than the question costs the server,
and the read barrier asks before every answer to whether a token is alive.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result

from agentwrit.broker.storage import postgres_link

_GOOD: Final = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


class QueryConnection:
    """Owned by one event loop, and by one who asks. `mark` is what its session is told by."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], mark: str = "") -> None:
        self.mark = mark.encode("ascii")
        self._connection = connection
        self._pgconn = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._socket = self._pgconn.socket
        self._prepared: dict[bytes, bytes] = {}
        self._answer: asyncio.Future[pq.abc.PGresult] | None = None
        self._result: pq.abc.PGresult | None = None
        self._is_writing = False
        self._is_watching = True
        self._loop.add_reader(self._socket, self._read)

    @classmethod
    async def connect(cls, url: str) -> Self:
        """A new connection.

        Raises:
            psycopg.Error: there is none to be had.
        """
        mark = postgres_link.new_mark()
        return cls(await postgres_link.connect_async(url, mark), mark)

    async def query(self, sql: bytes, *values: bytes) -> Sequence[tuple[Any, ...]]:
        """Ask, and wait for the rows. `values`: as texts, for `$1` and so on.

        Raises:
            psycopg.Error: the server refused; an OperationalError if the connection is lost.
        """
        name = self._prepared.get(sql)
        if name is None:
            name = b"query_%d" % len(self._prepared)
            await self._send(lambda: self._pgconn.send_prepare(name, sql))
            self._prepared[sql] = name
        result = await self._send(lambda: self._pgconn.send_query_prepared(name, values))
        rows = Transformer(self._connection)
        rows.set_pgresult(result)
        return rows.load_rows(0, result.ntuples, tuple)

    def break_off(self) -> None:
        """Make what is asked fail, whatever the server does."""
        with (
            contextlib.suppress(OSError, psycopg.OperationalError),  # it broke off by itself
            socket.socket(fileno=os.dup(self._pgconn.socket)) as own,
        ):
            own.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        self._stop_watching()
        await self._connection.close()

    async def _send(self, send: Callable[[], None]) -> pq.abc.PGresult:
        self._result, self._answer = None, self._loop.create_future()
        try:
            send()
            self._flush()
            result = await self._answer
        finally:
            self._answer = None
        if result.status not in _GOOD:
            raise error_from_result(result)
        return result

    def _flush(self) -> None:
        """Send what libpq holds. It nearly always goes at once."""
        try:
            is_left = bool(self._pgconn.flush())
        except psycopg.OperationalError as error:
            self._fail(error)
            return
        if is_left and not self._is_writing:
            self._loop.add_writer(self._socket, self._flush)
        elif self._is_writing and not is_left:
            self._loop.remove_writer(self._socket)
        self._is_writing = is_left

    def _read(self) -> None:
        try:
            # Behind the server's last words stands the end of the connection, which uvloop does not tell of again.
            is_whole = self._take() or self._take()
        except psycopg.OperationalError as error:
            self._fail(error)
            return
        if is_whole and self._result is not None and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._result)

    def _take(self) -> bool:
        """Take in what has come. Returns whether libpq waits for no more."""
        self._pgconn.consume_input()
        while not self._pgconn.is_busy():
            result = self._pgconn.get_result()
            if result is None:
                return True
            self._result = result
        return False

    def _fail(self, error: psycopg.OperationalError) -> None:
        self._stop_watching()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _stop_watching(self) -> None:
        """Once: libpq closes a socket that is lost, and then its number may be another one's."""
        if self._is_watching:
            self._is_watching = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
