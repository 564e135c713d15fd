"""What has to be done now and then: forgetting what time has made meaningless, and writing counts that are due."""

import asyncio
import contextlib
from typing import Final

import structlog

from agentwrit.broker import memory
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services.archives import ArchiveService
from agentwrit.broker.services.denials import DenialLog
from agentwrit.broker.services.keys import KeyService
from agentwrit.broker.services.liveness import Liveness
from agentwrit.broker.storage.base import Store
from agentwrit.domain.errors import Unavailable

INTERVAL_SECONDS: Final = 5
MANY_ENTRIES: Final = 10_000  # some megabytes
PURGE_ROWS: Final = 100  # a batch, so that no purge keeps others waiting

log = structlog.get_logger("agentwrit.housekeeping")


class Housekeeping:
    """Keeps the store and the memory bounded."""

    def __init__(
        self,
        store: Store,
        liveness: Liveness,
        denials: DenialLog,
        keys: KeyService,
        archives: ArchiveService,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._liveness = liveness
        self._denials = denials
        self._keys = keys
        self._archives = archives
        self._metrics = metrics

    async def run(self) -> None:
        """Go on until cancelled. A store that is out of reach is tried again the next time."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await self._keys.is_behind.wait()
            self._keys.is_behind.clear()  # before the round: one that fails is not tried again without a pause
            try:
                await self.round()
            except Unavailable as error:
                log.warning("housekeeping has to wait", reason=error.detail)

    async def round(self) -> None:
        """Do once all that is due. Its commit also makes the time durable, so that a restart does not lose it."""
        await self._store.catch_up()  # a broker that nobody asks anything follows the others, and their time, too
        forgotten, left = self._liveness.forget()
        if forgotten >= MANY_ENTRIES:
            await asyncio.to_thread(memory.give_back)
        self._metrics.revocation_entries = left
        await self._denials.flush()
        await self._keys.keep()
        if not await self._store.is_in_charge():
            return
        while await self._store.write(lambda transaction: transaction.purge(PURGE_ROWS)) >= PURGE_ROWS:
            pass
        await self._archives.prune()
