"""A broker that watches its event loop: `python -m benchmarks.held FILE serve …` writes the longest hold into FILE.

FILE holds two doubles, in the machine's own order, each the highest since whoever reads it wrote zeros: the seconds by
which a timer came too late, and the seconds of processor time that the event loop's thread took from one to the next.
The first is what is waited for, and has in it what else runs on the machine. The second has not, nor what other threads
of the broker did meanwhile.
"""

import asyncio
import mmap
import struct
import sys
import time
from pathlib import Path
from typing import Final

import uvloop

from agentwrit.broker import __main__ as broker

TICK_SECONDS: Final = 0.001
DOUBLES: Final = struct.Struct("dd")


class Held:
    """The longest hold, in a file that two processes share."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), DOUBLES.size)

    @classmethod
    def make(cls, path: Path) -> "Held":
        path.write_bytes(DOUBLES.pack(0.0, 0.0))
        return cls(path)

    def reset(self) -> None:
        self._shared[:] = DOUBLES.pack(0.0, 0.0)

    def take(self, seconds: float, worked: float) -> None:
        """Count one."""
        longest, most = DOUBLES.unpack(self._shared[:])
        if seconds > longest or worked > most:
            self._shared[:] = DOUBLES.pack(max(seconds, longest), max(worked, most))

    @property
    def seconds(self) -> float:
        """By how much a timer came too late."""
        return float(DOUBLES.unpack(self._shared[:])[0])

    @property
    def worked(self) -> float:
        """How much processor time the event loop's thread took at a stretch, in seconds."""
        return float(DOUBLES.unpack(self._shared[:])[1])


def main() -> int:
    held = Held(Path(sys.argv.pop(1)))
    new_event_loop = uvloop.new_event_loop

    def watched() -> asyncio.AbstractEventLoop:
        loop = new_event_loop()

        def tick(due: float, before: float) -> None:
            now, worked = time.monotonic(), time.thread_time()
            held.take(now - due, worked - before)
            loop.call_later(TICK_SECONDS, tick, now + TICK_SECONDS, worked)

        loop.call_soon(tick, time.monotonic(), time.thread_time())
        return loop

    uvloop.new_event_loop = watched  # type: ignore[assignment]  # a loop as the real one
    return broker.main()


if __name__ == "__main__":
    sys.exit(main())
