"""TLS under a connection: the standard library's SSLObject, between a socket's transport and what speaks through it.

asyncio's TLS, and uvloop's, seal an answer as soon as it is written, so each client that does not read holds a copy of
it, and their buffers keep the size of the most that ever came at once. Here a piece is sealed when the system has taken
the one before, and at most a piece is read at a time. So what a connection holds besides its answer, which others may
share, is a few pieces, whatever its client does.

A client makes us answer without a request, too (RFC 8446 §4.6.3). While it does not read that, nothing is read of it.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentwrit.broker.http.connection import Connection

PIECE_BYTES: Final = 16 * 1024  # what a record of TLS holds (RFC 8446 §5.1)


class TlsTransport(asyncio.BufferedProtocol, asyncio.Transport):
    """TLS for one connection. `buffer`: what is received goes through it; connections of one event loop share it."""

    def __init__(
        self, context: ssl.SSLContext, connection: "Connection", buffer: memoryview, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__()
        self._connection: Connection | None = connection
        self._buffer = buffer
        self._loop = loop
        self._below: asyncio.Transport
        self._received, self._sealed = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = context.wrap_bio(self._received, self._sealed, server_side=True)
        self._unsealed: deque[memoryview] = deque()
        self._has_shaken_hands = False
        self._is_reading = True
        self._is_full = False  # the system takes no more for now
        self._is_paused = False  # and the connection was told so
        self._has_input_ended = False
        self._is_closing = False
        self._is_deaf = False  # what comes is not for us any more

    # -- called by asyncio ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        self._below.set_write_buffer_limits(high=0, low=0)
        if self._connection is not None:
            self._connection.connecting(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_closing:
            return
        if not self._is_deaf:
            self._received.write(self._buffer[:nbytes])
            self._read_on()
        elif self._connection is not None:
            self._connection.data_received(bytes(nbytes))  # of which it counts the bytes

    def eof_received(self) -> bool:
        return self._end_of_input()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        connection, self._connection, self._tls = self._connection, None, None  # which hold each other
        self._is_closing = True
        self._unsealed.clear()
        if connection is not None:
            connection.connection_lost(exc)

    # -- called by the connection --------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._below.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._is_closing or self._below.is_closing()

    def pause_reading(self) -> None:
        self._is_reading = False
        self._choose_whether_to_read()

    def resume_reading(self) -> None:
        self._is_reading = True
        self._choose_whether_to_read()
        self._loop.call_soon(self._read_on)  # what was received with what came before

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: "Iterable[bytes | bytearray | memoryview[Any]]") -> None:
        if not self._is_closing:
            self._unsealed.extend(memoryview(data) for data in list_of_data if data)
            self._flush()

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._unsealed)) + self._sealed.pending + self._below.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Say that this was all, which is on its way. What comes from now on is not opened."""
        if not self._is_closing and not self._is_deaf:
            self._is_deaf = True
            self._say_goodbye()
            self._below.write_eof()

    def close(self) -> None:
        """Close it when all is sent."""
        if not self._is_closing:
            self._is_closing = True
            self._flush()

    def abort(self) -> None:
        self._is_closing = True
        self._unsealed.clear()
        self._below.abort()

    # ------------------------------------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        """Hand on what was received, for as long as it is asked for."""
        tls, connection = self._tls, self._connection
        if tls is None or connection is None or self._is_deaf:
            return
        if not (self._has_shaken_hands or self._shake_hands(tls, connection)):
            return
        with contextlib.suppress(ssl.SSLWantReadError):
            while self._is_reading and not self._is_closing and not self._is_deaf:
                try:
                    data = tls.read(PIECE_BYTES)
                except ssl.SSLWantReadError:
                    raise
                except OSError:  # what is no TLS
                    self.abort()
                    return
                if data:
                    connection.data_received(data)
                elif self._has_input_ended:
                    break
                elif not self._end_of_input():
                    self.close()
        self._flush()

    def _shake_hands(self, tls: ssl.SSLObject, connection: "Connection") -> bool:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except OSError:  # a stranger, or no TLS at all: the alert says so
            self._flush()
            self._is_closing = True
            self._below.close()
            return False
        self._has_shaken_hands = True
        self._flush()
        if not self._is_closing:
            connection.connection_made(self)
        return not self._is_closing

    def _end_of_input(self) -> bool:
        """The client has said all. Returns whether it may still listen."""
        if not self._has_input_ended:
            self._has_input_ended = True
            return self._connection is not None and self._connection.eof_received()
        return not self._is_closing

    def _flush(self) -> None:
        """Send what is sealed, and seal the next piece, for as long as the system takes it."""
        if self._tls is None:
            return
        while not self._is_full and not self._below.is_closing():
            if self._sealed.pending:
                self._below.write(self._sealed.read())
            elif not self._unsealed:
                break
            elif not self._seal(self._tls):
                self.abort()
                return
        if self._is_closing:
            if not self._unsealed and not self._sealed.pending and not self._below.is_closing():
                self._say_goodbye()
                self._below.close()
            return
        self._choose_whether_to_read()
        self._tell_whether_to_write()

    def _seal(self, tls: ssl.SSLObject) -> bool:
        piece = self._unsealed.popleft()
        try:
            tls.write(piece[:PIECE_BYTES])
        except OSError:
            return False
        if len(piece) > PIECE_BYTES:
            self._unsealed.appendleft(piece[PIECE_BYTES:])
        return True

    def _say_goodbye(self) -> None:
        """Say that nothing more comes. The client's own goodbye is not waited for (RFC 8446 §6.1)."""
        if self._tls is not None:
            with contextlib.suppress(OSError):
                self._tls.unwrap()
        if self._sealed.pending:
            self._below.write(self._sealed.read())

    def _choose_whether_to_read(self) -> None:
        if self._below.is_closing():
            return
        if self._is_reading and not self._sealed.pending:
            self._below.resume_reading()
        else:
            self._below.pause_reading()

    def _tell_whether_to_write(self) -> None:
        is_waiting = self._is_full or bool(self._unsealed)
        if self._connection is None or is_waiting is self._is_paused or not self._has_shaken_hands:
            return
        self._is_paused = is_waiting
        if is_waiting:
            self._connection.pause_writing()
        else:
            self._connection.resume_writing()
