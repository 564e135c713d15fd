"""All connections of a broker: how many there may be and what they may hold, and who is closed when they are too many.

Whoever connects is taken in. Beyond the limits another connection is closed for it: the one that has kept us waiting
longest, whatever for; if none does, the oldest stream; and if there is none, what has been worked on longest. So a
stranger who opens more than there is room for closes his own, and whoever asks something is served.
"""

import asyncio
import contextlib
import errno
import heapq
import os
import resource
import socket
import sys
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from ssl import SSLContext
from typing import Final

import structlog

from agentwrit.broker.http.connection import App, Connection
from agentwrit.broker.http.tls import PIECE_BYTES, TlsTransport
from agentwrit.broker.metrics import Metrics

BACKLOG: Final = 2048
LOG_SECONDS: Final = 10
RESERVED_DESCRIPTORS: Final = 256  # for the store, the log and what connects in one turn; where few, a quarter of them
CANDIDATES: Final = 256  # for being closed, found in one go

_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})

log = structlog.get_logger("agentwrit.http")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What connections may take. Times are in seconds."""

    connections: int = 10_000
    sweep: float = 1  # from one look at the deadlines to the next
    handshake: float = 15
    first: float = 15  # until a new connection says something
    idle: float = 75  # longer than clients keep idle connections, so that the client is the one who closes
    head: float = 15
    body: float = 10
    answer: float = 120
    stall: float = 10
    stall_bytes: int = 256 * 1024  # which a client has to read in that time, if so much waits for it
    linger: float = 30
    lingering_bytes: int = 32 * 1024 * 1024
    close: float = 10
    free_bytes: int = 4 * 1024  # that each connection may hold of its input
    kept_bytes: int = 64 * 1024 * 1024  # that all of them hold beyond that
    unread_bytes: int = 64 * 1024 * 1024  # that wait for clients to read them


class HttpServer:
    """Serves applications on sockets that listen."""

    def __init__(self, metrics: Metrics, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._metrics = metrics
        self._servers: list[asyncio.Server] = []
        self._received = memoryview(bytearray(PIECE_BYTES))  # by TLS, for a moment
        self._connections: set[Connection] = set()
        self._being_closed: set[Connection] = set()  # to make room: the system has yet to hear of it
        self._left_alone: set[asyncio.Task[None]] = set()  # what is still worked on for clients that are gone
        self._candidates: deque[tuple[Connection, tuple[int, float]]] = deque()
        self._kept = 0
        self._unread: dict[Connection, bytes] = {}  # answers that their clients have yet to read, the oldest first
        self._readers: Counter[int] = Counter()  # by the identity of an answer: how many have yet to read it
        self._unread_bytes = 0
        self._closed_early: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}
        self._descriptors = _usable_descriptors()
        self._sweeping: asyncio.TimerHandle | None = None
        self._all_gone = asyncio.Event()

    async def listen(self, listener: socket.socket, app: App, tls: SSLContext | None) -> None:
        """Serve `app` to all who connect from now on."""
        loop = asyncio.get_running_loop()
        create = (
            partial(Connection, self, app, loop, is_tls=False) if tls is None else partial(self._secure, app, loop, tls)
        )
        if listener.family == socket.AF_UNIX:
            self._servers.append(await loop.create_unix_server(create, sock=listener, backlog=BACKLOG))
        else:
            self._servers.append(await loop.create_server(create, sock=listener, backlog=BACKLOG))
        if self._sweeping is None:
            self._sweeping = loop.call_later(self.limits.sweep, self._sweep, loop)

    async def stop(self, grace_seconds: float) -> None:
        """Listen no more, and give what is under way so long to end. Then it is cut."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.let_go()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                while self._connections or self._left_alone:
                    self._all_gone.clear()
                    await self._all_gone.wait()
        tasks = [*self._left_alone, *(each.task for each in self._connections if each.task is not None)]
        for connection in list(self._connections):
            connection.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _secure(self, app: App, loop: asyncio.AbstractEventLoop, tls: SSLContext) -> TlsTransport:
        return TlsTransport(tls, Connection(self, app, loop, is_tls=True), self._received, loop)

    # -- called by connections -----------------------------------------------------------------------------------------

    def opened(self, connection: Connection, descriptor: int) -> None:
        self._connections.add(connection)
        self._metrics.connections += 1
        if len(self._connections) > self.limits.connections:
            self._make_room("too_many", len(self._connections) - self.limits.connections, but=connection)
        # The system gives out the lowest number that is free: a high one tells how many are taken, by whomever.
        elif descriptor >= self._descriptors:
            self._make_room("no_descriptors", descriptor + 1 - self._descriptors, but=connection)

    def closed(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._being_closed.discard(connection)
        self._metrics.connections -= 1
        task = connection.task
        if task is not None and not task.done():
            self._left_alone.add(task)
            task.add_done_callback(self._is_done)
        self._all_gone.set()

    def change_kept(self, count: int) -> bool:
        """Count bytes of input that are kept beyond what each connection may. False if that is too much."""
        if count > 0 and self._kept + count > self.limits.kept_bytes:
            return False
        self._kept += count
        return True

    def note_unread(self, connection: Connection, body: bytes) -> bool:
        """Count an answer that a client has not read yet. An answer that is sent to many counts once.

        If that is too much, the clients that have had an answer of their own for longest are cut off. Returns False if
        this client is one of them.
        """
        self.forget_unread(connection)
        self._unread[connection] = body
        self._readers[id(body)] += 1
        if self._readers[id(body)] == 1:
            self._unread_bytes += len(body)
        while self._unread_bytes > self.limits.unread_bytes:
            alone = (each for each, unread in self._unread.items() if self._readers[id(unread)] == 1)
            slowest = next(alone, connection)
            self.forget_unread(slowest)
            if slowest is connection:
                return False
            slowest.abort()
        return True

    def forget_unread(self, connection: Connection) -> None:
        body = self._unread.pop(connection, None)
        if body is None:
            return
        self._readers[id(body)] -= 1
        if not self._readers[id(body)]:
            del self._readers[id(body)]
            self._unread_bytes -= len(body)

    # -- deadlines, and too many ---------------------------------------------------------------------------------------

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeping = loop.call_later(self.limits.sweep, self._sweep, loop)
        now = loop.time()
        for connection in list(self._connections):
            if connection.deadline <= now:
                connection.expire()
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                self._make_room("no_descriptors", RESERVED_DESCRIPTORS)

    def _make_room(self, reason: str, count: int, *, but: Connection | None = None) -> None:
        """See to it that `count` connections are being closed, in the order above."""
        first = self._next_to_close()
        while len(self._being_closed) < count and (connection := next(first, None)) is not None:
            if connection is not but:
                self._being_closed.add(connection)
                connection.abort()
                self._closed_early[reason] += 1
                self._metrics.connections_closed_early[reason] += 1
        self._say(reason)

    def _next_to_close(self) -> Iterator[Connection]:
        """Connections in the order above. They are found many at a time: whoever connects must not cost a search."""
        for is_found_now in (False, True):
            if is_found_now:
                standing = ((each, each.standing) for each in self._connections)
                waiting = [(each, place) for each, place in standing if place is not None]
                first = heapq.nsmallest(CANDIDATES, waiting, key=itemgetter(1))
                self._candidates.extend(pair for pair in first if pair[1][0] == first[0][1][0])
            while self._candidates:
                connection, place = self._candidates.popleft()
                if connection.standing == place:  # it has not moved since
                    yield connection

    def _say(self, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._logged_at.get(reason, float("-inf")) + LOG_SECONDS:
            self._logged_at[reason] = now
            log.warning(_SAID[reason], closed=self._closed_early.pop(reason, 0), open=len(self._connections))

    def _is_done(self, task: asyncio.Task[None]) -> None:
        self._left_alone.discard(task)
        self._all_gone.set()


_SAID: Final = {
    "too_many": "too many connections: those that have waited longest are closed",
    "no_descriptors": "descriptors are running out: the connections that have waited longest are closed;"
    " raise the limit of open files",
}


def _usable_descriptors() -> int:
    """Up to which number descriptors are for connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft - min(RESERVED_DESCRIPTORS, soft // 4)
