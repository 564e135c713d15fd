"""One connection of HTTP/1.1 on asyncio: what is read when, what is written, and how long each state may last.

One request at a time: what comes behind it is not looked at before its answer has been written, so nothing that was
parsed ever waits. What a request is, `http1` says. A connection is in one of these states, always with a deadline that
`HttpServer` compares with the clock; nothing that arrives takes it away.

========= ==================== ======================== =============================================================
state     input                end of input             deadline
========= ==================== ======================== =============================================================
HANDSHAKE TLS's own            aborted                  15 s: aborted
IDLE      begins a request     closed                   15 s on a new connection, else 75 s: closed
HEAD      read                 closed                   15 s from the first byte, not prolonged by others: closed
BODY      read                 closed                   10 s from the end of the head, not prolonged: answered, closed
ANSWERING kept for later,      answered, then closed    120 s: aborted, and the work goes on
          and reading pauses
WRITING   as ANSWERING         likewise                 10 s for each 256 KiB that the client reads: aborted
STREAMING dropped              aborted                  10 s for each piece that waits for the client, 120 s for one
                                                        that waits for us: aborted
LINGERING dropped, 32 MiB      closed                   30 s, not prolonged: aborted
CLOSED    dropped                                       10 s: aborted
========= ==================== ======================== =============================================================

A request that is refused for what it is (malformed, ambiguous, too large) is answered once and leads to LINGERING: the
answer is the last thing that is written, and the client may finish what it was sending, so that it sees the answer
instead of a reset (RFC 9112 §9.6). Nothing that arrives there is parsed.

What is kept of the input beyond 4 KiB counts for all connections together, and so does what clients have yet to read.
"""

import asyncio
import time
from email.utils import formatdate
from enum import IntEnum, auto
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import structlog

from agentwrit.broker.http.admission import BUSY
from agentwrit.broker.http.http1 import RequestReader, Scope
from agentwrit.domain.errors import InvalidRequest, Refusal

if TYPE_CHECKING:
    from agentwrit.broker.http.edge import Reply
    from agentwrit.broker.http.exchange import Pieces
    from agentwrit.broker.http.server import HttpServer

JOINED_BYTES: Final = 64 * 1024  # a body of more is sent as it is, and not copied to stand behind its head

LOOPBACK: Final = "127.0.0.1"
MAPPED: Final = "::ffff:"

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}

log = structlog.get_logger("agentwrit.http")


class State(IntEnum):
    """Where a connection is: see the table above."""

    HANDSHAKE = auto()
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWERING = auto()
    WRITING = auto()
    STREAMING = auto()
    LINGERING = auto()
    CLOSED = auto()


_TAKES_INPUT: Final = frozenset({State.IDLE, State.HEAD, State.BODY})
_KEEPS_INPUT: Final = frozenset({State.ANSWERING, State.WRITING})

# Whom to close first where there are too many: who keeps us waiting, who only listens, who is being served.
_STANDING: Final = {
    State.HANDSHAKE: 0,
    State.IDLE: 0,
    State.HEAD: 0,
    State.BODY: 0,
    State.WRITING: 0,
    State.LINGERING: 0,
    State.STREAMING: 1,
    State.ANSWERING: 2,
}


class App(Protocol):
    """What answers the requests of a connection."""

    def start(
        self, scope: Scope, body: bytes, reply: "Reply", loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[None] | None:
        """Begin to answer a request, all of which is here. None if it has been answered by now."""
        ...

    def objection(self, scope: Scope) -> Refusal | None:
        """What there is to say of a request by its head alone. None: its body is awaited."""
        ...

    def refuse(self, refusal: Refusal, scope: Scope | None, reply: "Reply") -> None:
        """Answer what is no request to work on. `scope`: its head, if it has a whole one."""
        ...


def _unmapped(address: tuple[Any, ...]) -> tuple[str, int]:
    """Host and port. An IPv4 address that came in an IPv6 one is itself (RFC 4291 §2.5.5.2)."""
    host, port = address[:2]
    return host.removeprefix(MAPPED) if host.startswith(MAPPED) and "." in host else host, port


class Connection(asyncio.Protocol):
    """A connection to `app`. `is_tls`: it is reached through TLS, and made when hands have been shaken."""

    def __init__(self, server: "HttpServer", app: App, loop: asyncio.AbstractEventLoop, *, is_tls: bool) -> None:
        self.state = State.HANDSHAKE if is_tls else State.IDLE
        self.since = self.deadline = 0.0
        self.task: asyncio.Task[None] | None = None
        self._server = server
        self._limits = server.limits
        self._app = app
        self._is_tls = is_tls
        self._loop = loop
        self._transport: asyncio.Transport
        self._client: tuple[str, int] | None = None
        self._address: tuple[str, int] | None = None  # of ours
        self._reader: RequestReader | None = None
        self._scope: Scope | None = None  # of the request that is being answered
        self._rest = b""  # what came behind it
        self._kept = 0  # bytes of input
        self._unsent = 0  # how much of it there was when it was last looked at
        self._is_writing_paused = False
        self._taken: asyncio.Future[None] | None = None  # when the client has read a piece of a stream
        self._is_last = False
        self._is_input_whole = True
        self._has_input_ended = False
        self._is_streaming = False
        self._lingered = 0

    # -- called by asyncio ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._client = _unmapped(peer) if isinstance(peer, tuple) else None
        address = transport.get_extra_info("sockname")
        self._address = _unmapped(address) if isinstance(address, tuple) else None
        if isinstance(address, str):  # a socket in the file system: who comes by that is on this machine
            self._client = LOOPBACK, 0
        if not self._is_tls:
            transport.set_write_buffer_limits(high=0, low=0)  # so written means: taken by the system, all of it
            self._server.opened(self, transport.get_extra_info("socket").fileno())
        self._enter(State.IDLE, self._limits.first)

    def data_received(self, data: bytes) -> None:
        if self.state in _TAKES_INPUT:
            self._read(data)
        elif self.state in _KEEPS_INPUT:
            self._keep(data)
        elif self.state is State.LINGERING:
            self._lingered += len(data)
            if self._lingered > self._limits.lingering_bytes:
                self.abort()

    def eof_received(self) -> bool:
        self._has_input_ended = True
        if self.state in (State.ANSWERING, State.WRITING):
            return True  # the transport stays open: who asked may still listen
        if self.state is State.STREAMING:
            self.abort()
        else:
            self._enter(State.CLOSED, self._limits.close)
        return False  # it is closed by asyncio

    def pause_writing(self) -> None:
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)
        elif self.state is State.WRITING:
            self._written()

    def connection_lost(self, exc: Exception | None) -> None:
        self.state = State.CLOSED
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._rest = b""
        self._keeps(0)
        self._server.forget_unread(self)
        if self._is_streaming and self.task is not None:
            self.task.cancel()
        self._server.closed(self)

    # -- called by TLS -------------------------------------------------------------------------------------------------

    def connecting(self, transport: asyncio.Transport) -> None:
        """Hands are shaken. Nothing comes of it to here until `connection_made`, or `connection_lost`."""
        self._transport = transport
        self._enter(State.HANDSHAKE, self._limits.handshake)
        self._server.opened(self, transport.get_extra_info("socket").fileno())

    # -- called by the server ------------------------------------------------------------------------------------------

    @property
    def standing(self) -> tuple[int, float] | None:
        """Where it stands among those that are closed first. None: it is being closed."""
        rank = _STANDING.get(self.state)
        return None if rank is None else (rank, self.since)

    def expire(self) -> None:
        """Its deadline has passed."""
        match self.state:
            case State.IDLE | State.HEAD:
                self.close()
            case State.BODY:
                self._refuse(InvalidRequest(f"the body did not arrive within {self._limits.body:g} seconds"))
            case State.WRITING | State.STREAMING if self._is_writing_paused and self._is_being_read():
                self.deadline = self._loop.time() + self._limits.stall
            case State.ANSWERING:
                log.warning("a request took too long: its connection is cut", seconds=self._limits.answer)
                self.abort()
            case _:
                self.abort()

    def let_go(self) -> None:
        """Close it if nothing is under way, and else behind the next answer."""
        if self.state in (State.IDLE, State.LINGERING):
            self.close()
        elif self.state is State.HANDSHAKE:
            self.abort()
        else:
            self._is_last = True

    def close(self) -> None:
        self._enter(State.CLOSED, self._limits.close)
        self._transport.close()

    def abort(self) -> None:
        """Close it now, whatever is still to be sent."""
        self._enter(State.CLOSED, self._limits.close)
        self._transport.abort()

    # -- called by the application: a Reply ----------------------------------------------------------------------------

    def send(self, status: int, head: bytes, body: bytes, *, is_last: bool) -> None:
        """Answer. It costs one system call, and does nothing if the client is gone."""
        if self.state is not State.ANSWERING:
            return
        if is_last:
            self._is_last = True
        end = b"connection: close\r\n\r\n" if self._is_last else b"\r\n"
        if self._scope is not None and self._scope["method"] == "HEAD":
            body = b""
        if len(body) <= JOINED_BYTES:
            body = b"".join((_STATUS_LINES[status], _date(int(time.time())), head, end, body))
            self._transport.write(body)
        else:
            self._transport.writelines((b"".join((_STATUS_LINES[status], _date(int(time.time())), head, end)), body))
        if not self._is_writing_paused:
            self._written()
        elif self._waits_for(body):
            self._enter(State.WRITING, self._limits.stall)

    async def stream(self, status: int, head: bytes, first: bytes, rest: "Pieces") -> None:
        """Answer piece by piece, until there are no more or the client is gone. The connection ends with the answer."""
        try:
            if self.state is not State.ANSWERING or self._scope is None:
                return
            self._is_last = self._is_streaming = True
            is_chunked = self._scope["http_version"] != "1.0"  # which knows none: there the end of the connection tells
            framing = b"transfer-encoding: chunked\r\n" if is_chunked else b""
            self._enter(State.STREAMING, self._limits.answer)
            lines = _STATUS_LINES[status], _date(int(time.time())), head, framing, b"connection: close\r\n\r\n"
            await self._give(b"".join(lines))
            if self._scope["method"] != "HEAD":
                await self._give(_chunk(first) if is_chunked else first)
                async for piece in rest:
                    await self._give(_chunk(piece) if is_chunked else piece)
                await self._give(b"0\r\n\r\n" if is_chunked else b"")
            self._end()
        except BaseException:
            self.abort()  # what is under way cannot be taken back
            raise
        finally:
            self._is_streaming = False
            await rest.aclose()

    # -- input ---------------------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            reader = self._reader = RequestReader("https" if self._is_tls else "http", self._client, self._address)
        try:
            rest = reader.feed(data)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        is_small = reader.is_whole and len(data) <= self._limits.free_bytes  # and came in one piece, as nearly all do
        if not is_small and not self._keeps(reader.held):
            self._refuse(BUSY)
        elif reader.is_whole:
            self._answer(reader, rest)
        elif reader.scope is None:
            if self.state is not State.HEAD:
                self._enter(State.HEAD, self._limits.head)
        elif self.state is not State.BODY:
            objection = self._app.objection(reader.scope)
            if objection is not None:
                self._refuse(objection)
                return
            self._enter(State.BODY, self._limits.body)
            if reader.wants_continue:
                self._transport.write(_CONTINUE)

    def _answer(self, reader: RequestReader, rest: bytes) -> None:
        assert reader.scope is not None  # noqa: S101  # it is whole
        self._reader = None
        self._scope = reader.scope
        if reader.is_last:
            self._is_last = True
        self._enter(State.ANSWERING, self._limits.answer)
        if rest:
            self._keep(rest)
        self.task = self._app.start(reader.scope, reader.body, self, self._loop)

    def _refuse(self, refusal: Refusal) -> None:
        reader, self._reader = self._reader, None
        self._scope = None if reader is None else reader.scope
        self._is_last, self._is_input_whole = True, False
        self._enter(State.ANSWERING, self._limits.answer)
        self._app.refuse(refusal, self._scope, self)

    def _keep(self, data: bytes) -> None:
        """Keep what came behind the request. It is the next one's turn when this one has been answered."""
        if self._is_last:
            self._is_input_whole = False  # there is no next one
            return
        self._transport.pause_reading()
        self._rest += data
        if not self._keeps(self._kept + len(data)):
            self._rest, self._is_last, self._is_input_whole = b"", True, False

    def _read_on(self) -> None:
        """Read what was kept."""
        if self.state is not State.IDLE:
            return
        rest, self._rest = self._rest, b""
        self._transport.resume_reading()
        if rest:
            self._read(rest)
        if self._has_input_ended and self.state in _TAKES_INPUT:
            self.close()

    # -- output --------------------------------------------------------------------------------------------------------

    def _written(self) -> None:
        """The answer is on its way, all of it."""
        self._server.forget_unread(self)
        self._scope = None
        if self._is_last:
            self._end()
            return
        if self._kept:
            self._keeps(len(self._rest))
        self._enter(State.IDLE, self._limits.idle)
        if self._rest:
            self._loop.call_soon(self._read_on)  # each in a turn of its own: others have requests too
        elif self._has_input_ended:
            self.close()

    def _end(self) -> None:
        """Close behind the last answer, so that the client gets to see it."""
        if (self._is_input_whole and not self._rest) or self._has_input_ended:
            self.close()
            return
        self._rest = b""
        self._keeps(0)
        self._enter(State.LINGERING, self._limits.linger)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.resume_reading()

    async def _give(self, piece: bytes) -> None:
        """Send a piece of a stream, and wait until the client has read it."""
        if self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._transport.write(piece)
        if self._is_writing_paused and self._waits_for(piece):
            self.deadline = self._loop.time() + self._limits.stall
            self._taken = self._loop.create_future()
            try:
                await self._taken
            finally:
                self._taken = None
                self._server.forget_unread(self)
        self.deadline = self._loop.time() + self._limits.answer

    def _waits_for(self, body: bytes) -> bool:
        """Begin to wait until the client has read what was written. False: too much waits, and it is cut."""
        self._unsent = self._transport.get_write_buffer_size()
        if not self._server.note_unread(self, body):
            self.abort()
            return False
        return True

    def _is_being_read(self) -> bool:
        before, self._unsent = self._unsent, self._transport.get_write_buffer_size()
        return before - self._unsent >= self._limits.stall_bytes

    # -- what it counts for --------------------------------------------------------------------------------------------

    def _enter(self, state: State, seconds: float) -> None:
        self.state = state
        self.since = self._loop.time()
        self.deadline = self.since + seconds

    def _keeps(self, size: int) -> bool:
        """Say how much of the input is kept. False if all connections together keep too much."""
        free = self._limits.free_bytes
        if size > free or self._kept > free:
            more = max(size, free) - max(self._kept, free)
            if not self._server.change_kept(more):
                return False
        self._kept = size
        return True


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""  # an empty one would be the last


@lru_cache(maxsize=1)
def _date(now: int) -> bytes:
    """The Date field (RFC 9110 §6.6.1)."""
    return f"date: {formatdate(now, usegmt=True)}\r\n".encode("ascii")
