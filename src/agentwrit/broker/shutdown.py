"""How a broker's process ends.

- SIGTERM drains: `/readyz` says no at once, so that a proxy sends its requests elsewhere, and everything is served on
  for as long as `drain_seconds` gives the proxy to notice. Then the broker stops.
- A second SIGTERM while it drains stops it: somebody is in a hurry.
- SIGINT (Ctrl-C) stops at once, because a person is waiting; so does the end of `stop_fd`: whoever started us is gone.
- SIGHUP stops as well: the terminal is gone. It is not heeded where whoever started us had it ignored, as nohup does.
"""

import asyncio
import os
import signal

import structlog

log = structlog.get_logger("agentwrit.server")


class Shutdown:
    """Where a process is on its way to its end. `drain_seconds`: how long it serves on after SIGTERM."""

    def __init__(self, drain_seconds: float) -> None:
        self._drain_seconds = drain_seconds
        self._drain = asyncio.Event()
        self._stop = asyncio.Event()

    def is_draining(self) -> bool:
        """Whether new requests should go elsewhere. True from the first sign of an end."""
        return self._drain.is_set()

    def is_stopping(self) -> bool:
        """Whether nothing is waited for any more but the requests under way."""
        return self._stop.is_set()

    async def wait_to_drain(self) -> None:
        """Wait for the first sign of an end."""
        await self._drain.wait()

    async def wait(self) -> None:
        """Wait until the process has to stop."""
        await self._stop.wait()

    def heed(self, stop_fd: int | None) -> None:
        """Listen to signals, and to the end of a descriptor, from now on. On the running loop."""
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
        """Say that we are not ready, and stop when that has been heard. Said twice: stop."""
        if self._drain.is_set() or not self._drain_seconds:
            self.stop()
            return
        self._drain.set()
        log.info("draining", seconds=self._drain_seconds)
        asyncio.get_running_loop().call_later(self._drain_seconds, self.stop)

    def stop(self) -> None:
        """Stop now; requests under way are still answered."""
        self._drain.set()
        self._stop.set()
