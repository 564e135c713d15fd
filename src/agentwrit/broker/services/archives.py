"""Archives of the audit log: the broker's records of them, and the removal of archived events.

Another program writes an archive, makes it durable and reports it (`record`). The broker then removes its events from
the store, one tile at a time (`prune`), as soon as a checkpoint covers the event that records the archive. After a
crash, the broker continues where it was.
"""

import re
from collections.abc import Sequence
from typing import Final

from agentwrit.archive_files import Checked
from agentwrit.broker.services.context import Caller
from agentwrit.broker.storage.base import Snapshot, Store, Transaction
from agentwrit.domain import audit, audit_archive, checkpoint, merkle
from agentwrit.domain.audit import EventType
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.errors import Conflict, InvalidRequest

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class ArchiveService:
    """Keeps the list of archives."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def known(self) -> tuple[int, Sequence[Archive]]:
        """The event up to which the log was removed from the store, and all archives, oldest first."""
        return await self._store.read(lambda snapshot: (snapshot.pruned(), snapshot.archives()))

    async def record(self, caller: Caller, archived: Checked, *, principal: str, sid: str = "") -> Archive:
        """Record that the oldest events are durable in an archive, and can be removed. A retry is recorded once.

        Raises:
            InvalidRequest: the log has no such part, or the part has another root.
            Conflict: the next archive has to begin elsewhere.
        """
        _check_texts(archived)

        def record(transaction: Transaction) -> Archive:
            known = transaction.archives()
            if known and _is_same(known[-1], archived):
                return known[-1]
            _check_place(transaction, archived, known[-1].last if known else 0)
            archive = Archive(
                first=archived.first,
                last=archived.last,
                root=archived.root,
                file=archived.file,
                sha256=archived.sha256,
                archived_at=int(transaction.now),
                event=transaction.head.sequence + 1,
            )
            transaction.record(
                caller.event(
                    EventType.AUDIT_ARCHIVED,
                    detail="the oldest events of this log were archived",
                    principal=principal,
                    sid=sid,
                    data=audit_archive.data(archive),
                )
            )
            transaction.put(archive)
            return archive

        return await self._store.write(record)

    async def prune(self) -> None:
        """Remove archived events, as far as checkpoints cover their archives' records."""

        def prune(transaction: Transaction) -> int:
            waiting, signed = transaction.archives(after=transaction.pruned()), transaction.checkpoint()
            if not waiting or signed is None or checkpoint.unverified(signed).size < waiting[0].event:
                return 0
            return transaction.prune()

        if not await self._store.read(lambda snapshot: bool(snapshot.archives(after=snapshot.pruned()))):
            return
        while await self._store.write(prune):
            pass


def where(snapshot: Snapshot, sequence: int) -> str | None:
    """Where an event was archived, in words, if it was removed from the store."""
    if sequence > snapshot.pruned():
        return None
    archive = next(iter(snapshot.archives(after=sequence - 1)), None)
    if archive is None:
        return None
    first, last = audit.event_id(archive.first), audit.event_id(archive.last)
    return f"{first} to {last} are in the archive {archive.file} (SHA-256 {archive.sha256})"


def _is_same(known: Archive, archived: Checked) -> bool:
    return (known.first, known.last, known.root, known.sha256) == (
        archived.first,
        archived.last,
        archived.root,
        archived.sha256,
    )


def _check_texts(archived: Checked) -> None:
    name = archived.file
    if not 0 < len(name) <= audit_archive.MAX_FILE_NAME or not name.isprintable() or "/" in name:
        raise InvalidRequest("file takes the name of a file, without its directory")
    for field, text in (("sha256", archived.sha256), ("root", archived.root)):
        if _SHA256.fullmatch(text) is None:
            raise InvalidRequest(f"{field} takes 64 hexadecimal digits in lower case")


def _check_place(transaction: Transaction, archived: Checked, behind: int) -> None:
    if archived.first != behind + 1:
        raise Conflict(f"the next archive begins with {audit.event_id(behind + 1)}")
    signed = transaction.checkpoint()
    covered = 0 if signed is None else checkpoint.unverified(signed).size
    if not behind < archived.last <= covered or archived.last % merkle.TILE_WIDTH:
        raise InvalidRequest(
            f"an archive ends with a full tile of {merkle.TILE_WIDTH} events, which a checkpoint covers"
        )
    if merkle.edge_at(archived.last, transaction.tile).root().hex() != archived.root:
        raise InvalidRequest("root is not that of the log up to this event")
