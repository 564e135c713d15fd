"""Periodic work: dropping what has expired, and writing counts that are due."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from agentwrit.broker import memory
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services.archives import ArchiveService
from agentwrit.broker.services.background import Background, Work
from agentwrit.broker.services.denials import DenialLog
from agentwrit.broker.services.endings import Endings
from agentwrit.broker.services.keys import KeyService
from agentwrit.broker.services.liveness import Liveness
from agentwrit.broker.storage.base import Store

INTERVAL_SECONDS: Final = 5
MANY_ENTRIES: Final = 10_000  # some megabytes
PURGE_ROWS: Final = 100  # a batch, so that a purge does not delay others


class Housekeeping:
    """Keeps the store and the memory bounded."""

    def __init__(
        self,
        store: Store,
        liveness: Liveness,
        denials: DenialLog,
        keys: KeyService,
        archives: ArchiveService,
        endings: Endings,
        metrics: Metrics,
        background: Background,
    ) -> None:
        self._store = store
        self._liveness = liveness
        self._denials = denials
        self._keys = keys
        self._archives = archives
        self._endings = endings
        self._metrics = metrics
        self._background = background
        self._parts: Sequence[tuple[Work, Callable[[], Awaitable[object]]]] = [
            (Work.FOLLOWING, store.catch_up),  # so an idle broker follows the others and their time
            (Work.FORGETTING, self._forget),
            (Work.DENIALS, denials.flush),
            (Work.KEYS, keys.keep),
            (Work.RESUMING, endings.resume),
            (Work.PURGING, self._purge),
            (Work.ARCHIVES, self._prune),
        ]

    async def run(self) -> None:
        """Repeat until cancelled. A failing part does not prevent the others, and is retried in the next round."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await self._keys.is_behind.wait()
            self._keys.is_behind.clear()  # before the round, so that a failing round is not repeated without a pause
            for work, part in self._parts:
                if not await self._background.attempt(work, part) and not self._store.is_writable():
                    break  # each part would wait just as long for the store

    async def round(self) -> None:
        """Do everything that is due, once. The commit also makes the time durable across a restart.

        Raises:
            Exception: the error of the first part that failed. Later parts were not run.
        """
        for _, part in self._parts:
            await part()

    async def _forget(self) -> None:
        forgotten, left = await self._liveness.forget()
        if forgotten >= MANY_ENTRIES:
            await asyncio.to_thread(memory.give_back)
        self._metrics.revocation_entries = left

    async def _purge(self) -> None:
        # A broker that cannot write gets no more requests, and finds out here that it can write again.
        if await self._store.is_in_charge() or not self._store.is_writable():
            while await self._store.write(lambda transaction: transaction.purge(PURGE_ROWS)) >= PURGE_ROWS:
                pass

    async def _prune(self) -> None:
        if await self._store.is_in_charge():
            await self._archives.prune()
