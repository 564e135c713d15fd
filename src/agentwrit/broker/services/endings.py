"""Completing endings, in a sequence of units of work (see `agentwrit.domain.ending`)."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from agentwrit.broker.services.background import Background, Work
from agentwrit.broker.services.ending import AT_ONCE, go_on
from agentwrit.broker.services.liveness import Liveness
from agentwrit.broker.storage.base import Row, Store, Transaction
from agentwrit.domain.ending import Ending
from agentwrit.domain.errors import Unavailable

FREE_SECONDS: Final = 0.001
"""If the event loop works no longer than this between two steps, it has nothing else to do."""
BUSY_SHARE: Final = 0.15
"""The share of a busy event loop's time that an ending takes."""

AT_ONCE_ALONE: Final = 512
"""Grants that a unit of work ends on an otherwise idle event loop: 20 to 40 ms, and then its commit."""

RETRY_SECONDS: Final = 1.0
LONGEST_RETRIES_SECONDS: Final = 15.0

log = structlog.get_logger("agentwrit.ending")


async def see_through(store: Store, ending: Ending) -> Ending:
    """Continue an ending to its end, on an event loop that has nothing else to do.

    Raises:
        Unavailable: the store cannot be written.
    """
    return ending if ending.is_over else await _Steps(store, ending.id, is_alone=True).take()


Elsewhere = Callable[[str], Awaitable[Ending | None]]
"""Completes the ending with this ID outside of the event loop. None: it cannot, and the event loop has to."""


class Endings:
    """Completes endings. One broker of a store also completes those that others left unfinished."""

    def __init__(
        self, store: Store, liveness: Liveness, background: Background, elsewhere: Elsewhere | None = None
    ) -> None:
        self._store = store
        self._elsewhere = elsewhere
        self._background = background
        self._liveness = liveness
        self._turn = asyncio.Lock()  # one at a time: together they would not finish sooner
        self._under_way: dict[str, asyncio.Task[Ending]] = {}

    async def finish(self, ending: Ending) -> int:
        """Wait until everything is ended. Returns the number of ended grants.

        The work continues if the caller is cancelled.

        Raises:
            Unavailable: the ending is in force, but cannot be recorded completely now. It is retried.
        """
        if ending.is_over:
            return ending.count
        return (await asyncio.shield(self._task(ending.id))).count

    async def resume(self) -> None:
        """Continue all unfinished endings, if this broker is in charge."""
        endings = await self._store.read(lambda snapshot: snapshot.endings())
        self._liveness.know(endings)
        if endings and await self._store.is_in_charge():
            for ending in endings:
                self._task(ending.id)

    async def close(self) -> None:
        """Leave the rest to the next broker that opens the store."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _task(self, ending_id: str) -> "asyncio.Task[Ending]":
        task = self._under_way.get(ending_id)
        if task is None:
            task = self._under_way[ending_id] = asyncio.create_task(self._see_through(ending_id))
            task.add_done_callback(lambda done: self._over(ending_id, done))
        return task

    def _over(self, ending_id: str, task: "asyncio.Task[Ending]") -> None:
        del self._under_way[ending_id]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._background.succeeded(Work.ENDINGS)
        else:
            self._background.failed(Work.ENDINGS, error)
            log.error("an ending is in force, but not yet completely recorded", ending=ending_id, reason=str(error))

    async def _see_through(self, ending_id: str) -> Ending:
        async with self._turn:
            patience = LONGEST_RETRIES_SECONDS
            while True:
                try:
                    ending = await self._take_steps(ending_id)
                except Unavailable as error:
                    if patience <= 0:
                        raise Unavailable(
                            "what was to end is refused, but the store cannot be written: recording it goes on later"
                        ) from error
                    patience -= RETRY_SECONDS
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    self._liveness.is_over(ending_id)
                    return ending

    async def _take_steps(self, ending_id: str) -> Ending:
        done = None if self._elsewhere is None else await self._elsewhere(ending_id)
        return done or await _Steps(self._store, ending_id, is_alone=False).take()


class _Steps:
    """The units of work of one ending: the next one runs while the previous one is committed.

    `is_alone`: whether the event loop has nothing else to do.
    """

    IN_FLIGHT: Final = 8

    def __init__(self, store: Store, ending_id: str, *, is_alone: bool) -> None:
        self._store = store
        self._id = ending_id
        self._is_alone = is_alone
        self._at_once = AT_ONCE_ALONE if is_alone else AT_ONCE
        self._seconds = 0.0

    async def take(self) -> Ending:
        """Run units of work until the ending is over and all of them are durable."""
        flight: set[asyncio.Task[Ending]] = set()
        try:
            while True:
                flight.add(asyncio.create_task(self._store.write(self._step, reads=(Row("endings", self._id),))))
                if not self._is_alone:
                    await self._leave_to_others()
                while len(flight) >= self.IN_FLIGHT or any(task.done() for task in flight):
                    done, flight = await asyncio.wait(flight, return_when=asyncio.FIRST_COMPLETED)
                    over = [ending for ending in (task.result() for task in done) if ending.is_over]
                    if over:
                        return over[0]
        finally:
            for task in flight:
                with contextlib.suppress(Exception):
                    await task

    def _step(self, transaction: Transaction) -> Ending:
        started = time.thread_time()
        ending = transaction.ending(self._id)
        if ending is None:
            raise Unavailable("the record of the ending is missing")
        if not ending.is_over:
            ending = go_on(transaction, ending, at_once=self._at_once)
        self._seconds = time.thread_time() - started
        return ending

    async def _leave_to_others(self) -> None:
        """Let other tasks run; if they have much to do, leave them most of the time."""
        before = time.thread_time()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if time.thread_time() - before > FREE_SECONDS + self._seconds:
            await asyncio.sleep(self._seconds / BUSY_SHARE)
