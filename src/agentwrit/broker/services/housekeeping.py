"""What has to be done now and then: forgetting what time has made meaningless, and writing counts that are due."""

import asyncio
from typing import Final

import structlog

from agentwrit.broker.clock import Clock
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services.archives import ArchiveService
from agentwrit.broker.services.denials import DenialLog
from agentwrit.broker.services.keys import KeyService
from agentwrit.broker.services.liveness import Liveness
from agentwrit.broker.storage.base import Store
from agentwrit.domain.errors import Unavailable

INTERVAL_SECONDS: Final = 5
PURGE_ROWS: Final = 100  # a batch, so that no purge keeps others waiting

log = structlog.get_logger("agentwrit.housekeeping")


class Housekeeping:
    """Keeps the store and the memory bounded."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        liveness: Liveness,
        denials: DenialLog,
        keys: KeyService,
        archives: ArchiveService,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._clock = clock
        self._liveness = liveness
        self._denials = denials
        self._keys = keys
        self._archives = archives
        self._metrics = metrics

    async def run(self) -> None:
        """Go on until cancelled. A store that is out of reach is tried again the next time."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            try:
                await self.round()
            except Unavailable as error:
                log.warning("housekeeping has to wait", reason=error.detail)

    async def round(self) -> None:
        """Do once all that is due. Its commit also makes the time durable, so that a restart does not lose it."""
        self._metrics.revocation_entries = self._liveness.forget(self._clock.now())
        await self._denials.flush()
        await self._keys.keep()
        while await self._store.write(lambda transaction: transaction.purge(PURGE_ROWS)) >= PURGE_ROWS:
            pass
        await self._archives.prune()
