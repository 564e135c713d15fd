"""The task that reports accesses to the broker."""

import asyncio
import contextlib
import os
import weakref
from collections.abc import Sequence

from agentwrit.client.async_driver import AsyncDriver
from agentwrit.client.clock import Clock
from agentwrit.client.reporting import END_SECONDS, Done, Reports, Rest, Tell, reporting
from agentwrit.errors import AgentWritError
from agentwrit.models import AgentClaims


class AsyncReporter:
    """As `Reporter`, on an event loop. What was not reported when a loop ended is reported on the next one."""

    def __init__(self, driver: AsyncDriver, clock: Clock) -> None:
        self._driver = driver
        self._clock = clock
        self._telling: _Telling | None = None
        self.begin()
        _reporters.add(self)

    @property
    def unreported(self) -> int:
        return self._reports.unreported

    def note(self, claims: AgentClaims, scope: str | Sequence[str], resource: str, outcome: Done) -> None:
        """Note an access. Raises what `Reports.note` raises, and RuntimeError if no loop is running."""
        loop = asyncio.get_running_loop()
        is_waking = self._reports.note(claims, scope, resource, outcome)
        telling = self._telling
        if telling is None or not telling.is_at_work(loop):
            telling = self._telling = _Telling(self._reports, self._driver)
            weakref.finalize(self, telling.end).atexit = False
        if is_waking:
            telling.rouse()

    async def stop(self) -> None:
        """Report what is waiting, and end, within `END_SECONDS`. A later access starts again."""
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.end()
            await telling.finish()

    def begin(self) -> None:
        """Start empty, also in a forked child: the parent's waiting accesses and its task belong to the parent."""
        self._reports = Reports(self._clock)
        self._telling = None


class _Telling:
    """The task. It holds no reference to the reporter, which may be garbage-collected without being stopped."""

    def __init__(self, reports: Reports, driver: AsyncDriver) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._is_ending = False
        self._reports = reports
        self._driver = driver
        self._task = self._loop.create_task(self._run(), name="agentwrit-reports")

    def is_at_work(self, here: asyncio.AbstractEventLoop) -> bool:
        """Whether the task reports what is noted on this loop: its own loop is this one, or runs in another thread."""
        return not self._task.done() and (self._loop is here or self._loop.is_running())

    def rouse(self) -> None:
        """Wake the task, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    def end(self) -> None:
        """Make the task report what is waiting, and end."""
        self._is_ending = True
        self.rouse()

    async def finish(self) -> None:
        if self._loop is asyncio.get_running_loop():
            _, unfinished = await asyncio.wait({self._task}, timeout=END_SECONDS)
            if unfinished:
                self._task.cancel()
                await asyncio.wait(unfinished)

    async def _run(self) -> None:
        work = reporting(self._reports, lambda: self._is_ending)
        try:
            needed = next(work)
            while True:
                try:
                    answer = await self._carry_out(needed)
                except AgentWritError as error:
                    needed = work.throw(error)
                else:
                    needed = work.send(answer)
        except StopIteration:
            return

    async def _carry_out(self, needed: Tell | Rest) -> object:
        if isinstance(needed, Tell):
            return await self._driver.run(needed.steps, timeout=needed.timeout)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(needed.seconds):
                await self._wake.wait()
        self._wake.clear()
        return None


_reporters: "weakref.WeakSet[AsyncReporter]" = weakref.WeakSet()


def _after_fork() -> None:
    for reporter in list(_reporters):
        reporter.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
