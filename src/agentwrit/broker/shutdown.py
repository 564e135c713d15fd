"""How a broker's process ends.

- SIGTERM drains: `/readyz` fails at once, so that a proxy sends its requests elsewhere, and the broker continues to
  serve for `drain_seconds`, to give the proxy time to notice. Then it stops.
- A second SIGTERM during the drain stops it at once.
- SIGINT (Ctrl-C) stops it at once, because a person is waiting. So does the end of `stop_fd`, because the parent
  process is gone.
- SIGHUP stops it as well, because the terminal is gone. It is ignored if the parent process ignored it, as nohup does.
"""

import asyncio
import os
import signal

import structlog

log = structlog.get_logger("agentwrit.server")


class Shutdown:
    """The progress of a process's shutdown. `drain_seconds`: how long it continues to serve after SIGTERM."""

    def __init__(self, drain_seconds: float) -> None:
        self._drain_seconds = drain_seconds
        self._drain = asyncio.Event()
        self._stop = asyncio.Event()

    def is_draining(self) -> bool:
        """Whether new requests should go elsewhere. True from the first signal on."""
        return self._drain.is_set()

    def is_stopping(self) -> bool:
        """Whether only requests in progress are still being served."""
        return self._stop.is_set()

    async def wait_to_drain(self) -> None:
        """Wait for the first signal."""
        await self._drain.wait()

    async def wait(self) -> None:
        """Wait until the process has to stop."""
        await self._stop.wait()

    def heed(self, stop_fd: int | None) -> None:
        """Handle signals, and the end of a descriptor, from now on. Call this on the running loop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.drain)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self.stop)
        if stop_fd is not None:

            def readable() -> None:
                if not os.read(stop_fd, 1024):
                    loop.remove_reader(stop_fd)
                    self.stop()

            loop.add_reader(stop_fd, readable)

    def drain(self) -> None:
        """Report that the broker is not ready, and stop after the drain time. A second call stops at once."""
        if self._drain.is_set() or not self._drain_seconds:
            self.stop()
            return
        self._drain.set()
        log.info("draining", seconds=self._drain_seconds)
        asyncio.get_running_loop().call_later(self._drain_seconds, self.stop)

    def stop(self) -> None:
        """Stop now; requests in progress are still answered."""
        self._drain.set()
        self._stop.set()
