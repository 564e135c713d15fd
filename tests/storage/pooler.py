"""A pooler that gives a client another session for each transaction, as PgBouncer does with `pool_mode = transaction`.

It speaks as much of PostgreSQL's protocol as it has to see where a transaction ends (§55.2 of its manual).
"""

import asyncio
from collections import deque
from contextlib import suppress
from urllib.parse import urlsplit

from tests.loop_thread import LoopServer

ENCRYPTION_REQUESTS = (80877103, 80877104)  # SSLRequest, GSSENCRequest


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[1:]) - 4)


class _Session:
    """A connection to the server. `client`: who has it at the moment."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.greeting = b""
        self.client: asyncio.StreamWriter | None = None
        self.unanswered = 0  # messages that end with ReadyForQuery

    async def greet(self, startup: bytes) -> None:
        self.writer.write(startup)
        while not (message := await _message(self.reader)).startswith(b"Z"):
            self.greeting += message
        self.greeting += message


class TransactionPooler(LoopServer):
    """Between clients and the server of a URL. `url` leads to it."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._free: deque[_Session] = deque()
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return self._parts._replace(netloc=f"{self._parts.username}@127.0.0.1:{self.port}").geturl()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session: _Session | None = None
        try:
            startup = await self._startup(reader, writer)
            first = await self._take(startup)
            writer.write(first.greeting)
            self._free.append(first)
            while not (message := await _message(reader)).startswith(b"X"):
                if session is None or session.client is not writer:
                    session = await self._take(startup)
                    session.client = writer
                session.unanswered += message.startswith((b"Q", b"S"))
                session.writer.write(message)
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            writer.close()

    async def _startup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        while True:
            length = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(length) - 4)
            if int.from_bytes(body[:4]) not in ENCRYPTION_REQUESTS:
                return length + body
            writer.write(b"N")

    async def _take(self, startup: bytes) -> _Session:
        """The session that was used last, or a new one."""
        if self._free:
            return self._free.pop()
        session = _Session(*await asyncio.open_connection(self._parts.hostname, self._parts.port))
        await session.greet(startup)
        self._answering.add(asyncio.get_running_loop().create_task(self._answer(session)))
        return session

    async def _answer(self, session: _Session) -> None:
        try:
            while True:
                message = await _message(session.reader)
                if session.client is not None:
                    with suppress(OSError):
                        session.client.write(message)
                if message.startswith(b"Z"):
                    session.unanswered -= 1
                    if message.endswith(b"I") and not session.unanswered:
                        session.client = None
                        self._free.append(session)
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            session.writer.close()
