"""Work that is done by the event loop and a thread in turns."""

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from typing import Any

Steps = Generator[Callable[[], object], None, None]
"""What the event loop does, step by step. Between two steps it yields what the thread has to do."""


class Alternation:
    """Runs steps on the event loop, and what they yield on a thread. One that fails there fails where it was yielded.

    The event loop takes the next step when it comes round to it, which may be long after the thread has done its part:
    first it does all that was ready before. Whoever is on the event loop meanwhile can make it `catch_up`.
    """

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self._steps: Steps | None = None
        self._part: Future[object] | None = None  # what the thread does, or has done since the last step
        self._is_over = asyncio.Event()
        self._is_over.set()

    @property
    def is_running(self) -> bool:
        return self._steps is not None

    def start(self, steps: Steps) -> None:
        """Take the first step, and see to the others. To be called when the last steps are over."""
        self._loop = asyncio.get_running_loop()
        self._steps = steps
        self._is_over.clear()
        self._go_on()

    def catch_up(self) -> None:
        """Take the next step now, if the thread has done its part. Not to be called within a step."""
        if self._part is not None and self._part.done():
            self._go_on()

    async def over(self) -> None:
        """Wait until no steps are left."""
        await self._is_over.wait()

    def _go_on(self) -> None:
        done, self._part = self._part, None
        steps: Any = self._steps
        error = None if done is None else done.exception()
        try:
            part = next(steps) if error is None else steps.throw(error)
        except StopIteration:
            self._end()
        except Exception as failure:
            self._end()
            self._loop.call_exception_handler({"message": "a step failed", "exception": failure})
        else:
            self._part = self._thread.submit(part)
            self._part.add_done_callback(self._tell)

    def _end(self) -> None:
        self._steps = None
        self._is_over.set()

    def _tell(self, part: Future[object]) -> None:
        """The thread has done its part."""
        self._loop.call_soon_threadsafe(self._come_round, part)

    def _come_round(self, part: Future[object]) -> None:
        if part is self._part:
            self._go_on()
