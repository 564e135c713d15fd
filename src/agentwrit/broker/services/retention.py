"""Scheduled archiving: once a day, events older than a set age move from the store into files.

It works in small steps with pauses, so that no request waits for it.
"""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from agentwrit import archive_files
from agentwrit.archive_files import NewArchive
from agentwrit.broker.clock import Clock
from agentwrit.broker.services.archives import ArchiveService
from agentwrit.broker.services.background import Background, Work
from agentwrit.broker.services.checkpoints import Checkpoints
from agentwrit.broker.services.context import Caller
from agentwrit.broker.storage.base import EventQuery, Snapshot, Store
from agentwrit.domain import audit_archive, audit_export, checkpoint, merkle, timestamps
from agentwrit.domain.audit import Head
from agentwrit.domain.audit_export import Ending
from agentwrit.domain.note import VerifierKey

INTERVAL_SECONDS: Final = 60
DAY_SECONDS: Final = 86_400
BREAK_SECONDS: Final = 0.02  # after each tile of events: computing in a thread delays the event loop
PRINCIPAL: Final = "retention"

log = structlog.get_logger("agentwrit.retention")


class Retention:
    """Archives events older than `days` into `directory`."""

    def __init__(
        self, store: Store, clock: Clock, checkpoints: Checkpoints, archives: ArchiveService, directory: Path, days: int
    ) -> None:
        self._store = store
        self._clock = clock
        self._checkpoints = checkpoints
        self._archives = archives
        self._directory = directory
        self._seconds = days * DAY_SECONDS

    async def run(self, background: Background) -> None:
        """Repeat until cancelled. Failures are retried; until then nothing leaves the store."""
        while True:
            await background.attempt(Work.RETENTION, self._archive)
            await asyncio.sleep(INTERVAL_SECONDS)

    async def _archive(self) -> None:
        try:
            while await self.round():
                pass
        except Exception as error:
            log.error("the audit log cannot be archived", directory=str(self._directory), reason=str(error))
            raise

    async def round(self) -> bool:
        """Write one archive, if one is due. Returns whether one was."""
        if not await self._store.is_in_charge():
            return False
        archived, last = await self._store.read(self._due)
        if last == archived:
            return False
        keys = [VerifierKey.parse(key.verifier_key) for key in await self._checkpoints.keys()]
        path = await asyncio.to_thread(archive_files.left_behind, self._directory, archived + 1)
        if path is None:
            path = await self._write(archived, last)
        checked = await asyncio.to_thread(archive_files.check, path, keys, pace=_pause)
        await self._archives.record(Caller(), checked, principal=PRINCIPAL)
        log.info("events were archived", file=str(path), first=checked.first, last=checked.last)
        return True

    def _due(self, snapshot: Snapshot) -> tuple[int, int]:
        """The event up to which the log is archived, and the one up to which it is to be archived."""
        now, archives = self._clock.now(), snapshot.archives()
        archived = archives[-1].last if archives else 0
        until = timestamps.rfc3339_micros(now - self._seconds)
        old = snapshot.events(EventQuery(until=until, is_newest_first=True, limit=1))
        last = audit_archive.last_to_archive(old[0].sequence if old else 0, archived)
        is_early = bool(archives) and archives[-1].archived_at > now - DAY_SECONDS
        return archived, archived if is_early and last - archived < audit_archive.MAX_EVENTS else last

    async def _write(self, archived: int, last: int) -> Path:
        signed = await self._checkpoints.make()
        size = checkpoint.unverified(signed).size

        def frame(snapshot: Snapshot) -> tuple[Head, Sequence[bytes]]:
            first = b"".join(snapshot.entries(archived + 1, archived + 1))
            start = audit_archive.beginning(first, archived, snapshot.tile)
            return start, merkle.consistency_proof(last, size, snapshot.tile)

        start, proof = await self._store.read(frame)
        with await asyncio.to_thread(NewArchive, self._directory, archived + 1, last) as file:
            file.write([audit_export.header(signed, start, Ending(last, proof))])
            for first in range(archived + 1, last, merkle.TILE_WIDTH):
                entries = await self._store.read(partial(_entries, first))
                await asyncio.to_thread(file.write, map(audit_export.line, entries))
                await asyncio.sleep(BREAK_SECONDS)
            await asyncio.to_thread(file.seal)
            return file.path


def _entries(first: int, snapshot: Snapshot) -> Sequence[bytes]:
    return snapshot.entries(first, first + merkle.TILE_WIDTH - 1)


def _pause() -> None:
    time.sleep(BREAK_SECONDS)
