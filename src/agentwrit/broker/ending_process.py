"""The process beside a broker that completes large endings, so that requests do not wait for the interpreter lock.

Most of an ending's cost is Python code: reading grants, computing MACs, hashing events. In a thread, this would keep
the interpreter lock from the event loop. So a broker forks as soon as it has its settings, before it has threads or
sockets. The child waits for orders and carries out one ending at a time.

For a data directory, the broker lends the database to the child for a few commits at a time (see `sqlite_loan`). On a
shared database, the child acts as one more broker.

The child ends with the broker: it reads the end of their socket, however the broker ended. If the child is gone, the
broker completes its endings itself.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import struct
import time
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec
import structlog

from agentwrit.broker import stores
from agentwrit.broker.config import Config
from agentwrit.broker.services import endings
from agentwrit.broker.services.ending import go_on
from agentwrit.broker.storage.base import Store, Transaction
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.broker.storage.sqlite_loan import Borrower, Loan, Returned
from agentwrit.domain.ending import Ending
from agentwrit.domain.errors import Unavailable

AT_ONCE: Final = 512
"""Grants that end in one commit of a data directory."""
LENT_MS: Final = 100
"""After this time no further commit is started, because other writers have waited that long."""
NICENESS: Final = 3
"""The process's nice value. What is to end is refused already, so requests take precedence."""
ANSWER_SECONDS: Final = 30.0
"""The time limit for these commits. A process that takes longer is killed."""

_LENGTH: Final = struct.Struct("!I")

log = structlog.get_logger("agentwrit.ending")


class _Step(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Order: continue an ending in a data directory. `key`: the key that seals its rows."""

    ending_id: str
    database: str
    key: bytes
    loan: Loan


class _All(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Order: complete an ending in the database of the settings."""

    ending_id: str


class _Stepped(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answer: the progress of an ending. `returned`: what the broker has to know about the database."""

    ending: Ending
    returned: Returned


class _Over(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answer: the ending is complete."""

    ending: Ending


class _Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answer: the ending could not be continued, and nothing was committed."""

    reason: str


_Order = _Step | _All
_Answer = _Stepped | _Over | _Failed
A = TypeVar("A", _Stepped, _Over)

_encode = msgspec.msgpack.encode
_decode_order = msgspec.msgpack.Decoder(_Order).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode


class Gone(Exception):
    """The process has ended."""


class EndingProcess:
    """The broker's side of the process. `see_through` is for one event loop, one ending at a time."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._connection = connection
        self._is_over = False

    @classmethod
    def fork(cls, config: Config) -> Self | None:
        """Start the process, if the system permits. Call this before the broker has threads."""
        ours, theirs = socket.socketpair()
        gc.collect()
        gc.freeze()  # so that neither process writes to shared memory pages
        try:
            pid = os.fork()
        except OSError as error:
            log.warning("large endings are completed by the broker itself", reason=error.strerror)
            ours.close()
            theirs.close()
            return None
        if pid == 0:
            ours.close()
            _be_the_child(theirs, config)
        theirs.close()
        return cls(pid, ours)

    async def see_through(self, store: Store, key: bytes, database: Path, ending_id: str) -> Ending | None:
        """Complete an ending that has a record. None if this process cannot.

        `key`: the key that seals the store's rows; `database`: the database file, if there is one.
        """
        try:
            if not isinstance(store, SqliteStore):
                return await asyncio.to_thread(self._all, ending_id)
            while True:
                ending = await store.lend(partial(self._step, ending_id, str(database), key))
                if ending.is_over:
                    return ending
        except (Gone, Unavailable) as error:
            reason = str(error.__cause__ or error)
            log.warning("the broker continues an ending itself", ending=ending_id, reason=reason)
            return None

    def close(self) -> None:
        """Kill the process, and wait until it is gone."""
        self._end()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # for a thread that is waiting for an answer
        self._connection.close()

    def _step(self, ending_id: str, database: str, key: bytes, loan: Loan) -> tuple[Ending, Returned]:
        answer = self._ask(_Step(ending_id, database, key, loan), _Stepped, ANSWER_SECONDS)
        return answer.ending, answer.returned

    def _all(self, ending_id: str) -> Ending:
        return self._ask(_All(ending_id), _Over, None).ending

    def _ask(self, order: _Order, kind: type[A], seconds: float | None) -> A:
        if self._is_over:
            raise Gone("its process is gone")
        try:
            self._connection.settimeout(seconds)
            _send(self._connection, _encode(order))
            answer: _Answer = _decode_answer(_receive(self._connection))
        except (OSError, EOFError, msgspec.DecodeError) as error:
            self._end()
            raise Gone(f"its process is gone ({error!r})") from error
        if isinstance(answer, kind):
            return answer
        raise Unavailable(answer.reason if isinstance(answer, _Failed) else "the answer is another one's")

    def _end(self) -> None:
        """Kill the process in any state: nothing else may write before it is gone."""
        self._is_over = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(message)) + message)


def _receive(connection: socket.socket) -> bytes:
    """The next message.

    Raises:
        EOFError: the connection has ended.
    """
    [length] = _LENGTH.unpack(_read(connection, _LENGTH.size))
    return _read(connection, length)


def _read(connection: socket.socket, length: int) -> bytes:
    parts: list[bytes] = []
    while length:
        part = connection.recv(min(length, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


# -- in the child -----------------------------------------------------------------------------------------------------


def _be_the_child(connection: socket.socket, config: Config) -> None:
    """Carry out orders until the broker is gone. Does not return."""
    status = 1
    try:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)  # signals go to all processes of a broker, and this one ends with it
        _close_all_but(connection.fileno())
        os.nice(NICENESS)
        gc.disable()
        _serve(connection, config)
        status = 0
    except BaseException as error:  # its frames are the parent's: none of them may continue here
        os.write(2, f"agentwrit: the process for endings has ended: {error!r}\n".encode())
    finally:
        os._exit(status)


def _close_all_but(kept: int) -> None:
    """Close the broker's descriptors. A process that waits for the broker to close them would wait for this one too."""
    for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        if descriptor > 2 and descriptor != kept:
            with contextlib.suppress(OSError):  # the listing's own descriptor is already closed
                os.close(descriptor)


def _serve(connection: socket.socket, config: Config) -> None:
    here: _DataDirectory | None = None
    while True:
        try:
            order = _decode_order(_receive(connection))
        except (EOFError, OSError):
            return
        answer: _Answer
        try:
            if isinstance(order, _Step):
                here = here or _DataDirectory(Path(order.database), Sealer(order.key))
                answer = here.step(order)
            else:
                answer = _Over(asyncio.run(_see_through(config, order.ending_id, connection)))
        except Exception as error:
            answer = _Failed(str(error) or type(error).__name__)
        _send(connection, _encode(answer))
        if isinstance(answer, _Failed) or answer.ending.is_over:
            gc.collect()


class _DataDirectory:
    def __init__(self, database: Path, sealer: Sealer) -> None:
        self._borrower = Borrower(database, sealer)

    def step(self, order: _Step) -> _Stepped:
        until = time.monotonic() + LENT_MS / 1000
        ending, returned = self._borrower.commit(
            order.loan,
            partial(_go_on, order.ending_id),
            is_last=lambda ending: ending.is_over or time.monotonic() >= until,
        )
        return _Stepped(ending, returned)


def _go_on(ending_id: str, transaction: Transaction) -> Ending:
    ending = transaction.ending(ending_id)
    if ending is None:
        raise Unavailable("the record of the ending is missing")
    return ending if ending.is_over else go_on(transaction, ending, at_once=AT_ONCE)


async def _see_through(config: Config, ending_id: str, connection: socket.socket) -> Ending:
    """Complete an ending as one more broker of the database. Exit at once if the broker ends: another one continues."""
    asyncio.get_running_loop().add_reader(connection, os._exit, 0)  # nothing more is sent but the end
    try:
        async with stores.open_store(config, is_to_serve=True) as (store, *_):
            ending = await store.read(lambda snapshot: snapshot.ending(ending_id))
            if ending is None:
                raise Unavailable("the record of the ending is missing")
            return await endings.see_through(store, ending)
    finally:
        asyncio.get_running_loop().remove_reader(connection)
