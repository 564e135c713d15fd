"""An event loop in a thread of its own, and servers that live on one."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop()  # whose end cancels what is left


class LoopServer(ABC):
    """A server on loopback, on a loop of its own for as long as it is open. `port`: where it is."""

    def __enter__(self) -> Self:
        self._loop = LoopThread()
        self._server = self._loop.run(asyncio.start_server(self.serve, "127.0.0.1", 0))
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._close())
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()

    @abstractmethod
    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
