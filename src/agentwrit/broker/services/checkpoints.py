"""Checkpoints of the audit log, and the proofs based on them.

A task signs a checkpoint whenever the log has grown; an operator may request one at any time. A checkpoint is on disk
before anyone sees it, so all later checkpoints continue it.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog

from agentwrit.broker.keystore import SigningKeys
from agentwrit.broker.services import archives
from agentwrit.broker.services.background import Background, Work
from agentwrit.broker.storage.base import Snapshot, Store, Transaction
from agentwrit.domain import checkpoint, merkle, note, tiles
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import InvalidRequest, NotFound, TamperedRecord
from agentwrit.domain.merkle import TileReader
from agentwrit.domain.note import VerifierKey
from agentwrit.domain.signing_key import KeyPurpose, StoredKey
from agentwrit.domain.tiles import EntryBundle, HashTile

INTERVAL_SECONDS: Final = 5

log = structlog.get_logger("agentwrit.checkpoints")


class CheckpointKey(msgspec.Struct, frozen=True, kw_only=True):
    """A past, present or future key of checkpoints, in the form that auditors keep."""

    verifier_key: str
    key: StoredKey


class InclusionProof(msgspec.Struct, frozen=True, kw_only=True):
    """A proof that event number `index` (from 0) is in the log of a checkpoint. `checkpoint`: the signed note."""

    index: int
    size: int
    hashes: Sequence[bytes]
    checkpoint: str


class Checkpoints:
    """Signs the end of the log, and serves parts of its tree. `origin`: the log's name."""

    def __init__(self, store: Store, keys: SigningKeys, origin: str) -> None:
        self._store = store
        self._keys = keys
        self._origin = origin
        self._unfinished: tuple[int, bytes] = (0, b"")
        self._overdue_since: float | None = None

    async def run(self, background: Background) -> None:
        """Sign a checkpoint at intervals, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            await background.attempt(Work.CHECKPOINTS, self._make_in_charge)

    async def _make_in_charge(self) -> None:
        if await self._store.is_in_charge():
            await self.make()
        else:
            await self._ends()  # the broker in charge may fail to sign

    async def make(self) -> str:
        """A checkpoint of all events so far.

        Raises:
            Unavailable: it cannot be stored.
        """
        size, newest = await self._ends()
        if newest is not None and self._is_current(newest, size):
            return newest

        def sign(transaction: Transaction) -> str:
            known, head = transaction.checkpoint(), transaction.head
            if known is not None and self._is_current(known, head.sequence):
                return known
            made = Checkpoint(self._origin, head.sequence, head.tree.root())
            signed = checkpoint.sign(made, self._keys.signer.public_key, self._keys.signer)
            transaction.put_checkpoint(made.size, signed)
            return signed

        made = await self._store.write(sign)
        self._overdue_since = None
        return made

    def overdue(self) -> float:
        """For how many seconds no checkpoint has covered the whole log, as far as this broker knows; or 0."""
        return 0.0 if self._overdue_since is None else time.monotonic() - self._overdue_since

    async def _ends(self) -> tuple[int, str | None]:
        """The size of the log, and the newest checkpoint."""
        size, newest = await self._store.read(lambda snapshot: (snapshot.event_head(), snapshot.checkpoint()))
        if newest is not None and _covers(newest, size):
            self._overdue_since = None
        elif self._overdue_since is None:
            self._overdue_since = time.monotonic()
        return size, newest

    async def newest(self) -> str:
        """The newest checkpoint, which may not cover the last events yet."""
        return await self._store.read(lambda snapshot: snapshot.checkpoint()) or await self.make()

    async def keys(self) -> Sequence[CheckpointKey]:
        """The keys of checkpoints, newest first, retired and revoked ones included, to check old exports with."""
        stored = await self._store.read(lambda snapshot: snapshot.signing_keys())
        return [
            CheckpointKey(verifier_key=str(VerifierKey(self._origin, key.public_key)), key=key)
            for key in stored
            if key.purpose is KeyPurpose.AUDIT_CHECKPOINT
        ]

    async def inclusion_proof(self, sequence: int) -> InclusionProof:
        """The proof that the event at this place (1 for the first) is in the log.

        Raises:
            NotFound: there is no such event, or no checkpoint covers it yet.
        """
        signed = await self.newest()
        size = checkpoint.unverified(signed).size
        if not 0 < sequence <= size:
            hint = "a checkpoint is made every few seconds; `POST /v1/audit/checkpoint` makes one now"
            raise NotFound("no checkpoint covers such an event", hint=hint)

        def find(snapshot: Snapshot) -> Sequence[bytes]:
            return merkle.inclusion_proof(sequence - 1, size, self._reader(snapshot))

        hashes = await self._store.read(find)
        return InclusionProof(index=sequence - 1, size=size, hashes=hashes, checkpoint=signed)

    async def consistency_proof(self, old: int, new: int) -> Sequence[bytes]:
        """The proof that the log of `new` events continues the log of `old` events.

        Raises:
            InvalidRequest: the sizes are not in order, or exceed the log's.
        """

        def find(snapshot: Snapshot) -> Sequence[bytes]:
            if not old <= new <= snapshot.event_head():
                raise InvalidRequest("old and new are sizes of the log, the smaller one first")
            return merkle.consistency_proof(old, new, self._reader(snapshot))

        return await self._store.read(find)

    async def tile(self, of: HashTile) -> bytes:
        """The hashes of a tile, in the requested width.

        Raises:
            NotFound: the tile has not grown that far.
        """

        def find(snapshot: Snapshot) -> bytes:
            return self._reader(snapshot)(of.level, of.number)[: of.width * merkle.HASH_BYTES]

        hashes = await self._store.read(find)
        if len(hashes) != of.width * merkle.HASH_BYTES:
            raise NotFound("there is no such tile yet")
        return hashes

    async def bundle(self, of: EntryBundle) -> bytes:
        """A bundle of entries, in the requested width.

        Raises:
            NotFound: there are fewer events.
        """
        first = of.number * merkle.TILE_WIDTH + 1

        def find(snapshot: Snapshot) -> Sequence[bytes]:
            archived = archives.where(snapshot, first)
            if archived is not None:
                raise NotFound("these events were archived", hint=archived)
            return snapshot.entries(first, first + of.width - 1)

        found = await self._store.read(find)
        if len(found) != of.width:
            raise NotFound("there is no such bundle of entries")
        return tiles.bundle(found)

    def _reader(self, snapshot: Snapshot) -> TileReader:
        """A reader that reads each tile once: anonymous clients ask for proofs, and a proof needs a tile many times."""
        head = snapshot.event_head()
        read: dict[tuple[int, int], bytes] = {}

        def tile(level: int, number: int) -> bytes:
            if (level, number) not in read:
                is_unfinished = level == 0 and number == head // merkle.TILE_WIDTH
                read[level, number] = (
                    self._unfinished_tile(snapshot, head) if is_unfinished else snapshot.tile(level, number)
                )
            return read[level, number]

        return tile

    def _unfinished_tile(self, snapshot: Snapshot, head: int) -> bytes:
        """The hashes of the last events, which are not in a tile yet. Computed hashes are kept."""
        number, width = divmod(head, merkle.TILE_WIDTH)
        known, hashes = self._unfinished
        if known != number:
            hashes = b""
        first = number * merkle.TILE_WIDTH + len(hashes) // merkle.HASH_BYTES + 1
        if first <= head:
            hashes += b"".join(map(merkle.leaf_hash, snapshot.entries(first, head)))
            self._unfinished = number, hashes
        return hashes[: width * merkle.HASH_BYTES]

    def _is_current(self, signed: str, size: int) -> bool:
        """Whether this is a checkpoint of `size` events by the present signing key."""
        if checkpoint.unverified(signed).size != size:
            return False
        return note.is_signed_by(signed, VerifierKey(self._origin, self._keys.signer.public_key))


def _covers(signed: str, size: int) -> bool:
    try:
        return checkpoint.unverified(signed).size >= size
    except TamperedRecord:
        return False
