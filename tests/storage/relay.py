"""Something between a store and its server that can hold answers back, and cut a connection in the middle."""

import asyncio
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


class Relay:
    """Passes on what a store and the server of a URL say to each other, on the store's loop. `url` leads to it."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: list[_Connection] = []
        self._cut_behind = b""
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        self.has_held = asyncio.Event()
        """Set when there is an answer that is held back."""
        self.cuts = 0

    def hold(self) -> None:
        """Hold back what the server answers from now on."""
        self._may_answer.clear()
        self.has_held.clear()

    def let_go(self) -> None:
        self._may_answer.set()

    def cut_behind(self, word: bytes) -> None:
        """When the server has answered to this word, cut the connection in place of passing that on. Once."""
        self._cut_behind = word

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = self._parts._replace(netloc=f"{self._parts.username}@127.0.0.1:{port}").geturl()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections:
            await connection.closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        connection = _Connection((reader, writer), upstream)
        self._connections.append(connection)
        for work in (self._ask(connection), self._answer(connection)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, connection: "_Connection") -> None:
        with suppress(OSError):
            while data := await connection.client[0].read(65536):
                if self._cut_behind and self._cut_behind in data:
                    self._cut_behind, connection.is_to_be_cut = b"", True
                connection.server[1].write(data)
        connection.close()

    async def _answer(self, connection: "_Connection") -> None:
        with suppress(OSError):
            while data := await connection.server[0].read(65536):
                if connection.is_to_be_cut:
                    self.cuts += 1
                    break
                if not self._may_answer.is_set():
                    self.has_held.set()
                    await self._may_answer.wait()
                connection.client[1].write(data)
        connection.close()


_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    def __init__(self, client: _Ends, server: _Ends) -> None:
        self.client, self.server = client, server
        self.is_to_be_cut = False

    def close(self) -> None:
        for _, writer in (self.client, self.server):
            writer.close()

    async def closed(self) -> None:
        self.close()
        for _, writer in (self.client, self.server):
            with suppress(OSError):
                await writer.wait_closed()
