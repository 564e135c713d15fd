"""Checking the audit log in a database, row by row, whatever database it is.

The rules:

- Every event is read and hashed, in order: none may be missing, out of place or altered.
- The tree over them is built anew and compared with the one that was kept, so that the first wrong event is known even
  if all hashes behind it were made to fit.
- What of the log was archived is still in the tree: its tiles take the place of its events. An event has to say that it
  was archived, and a checkpoint to cover that event.
- The newest checkpoint has to cover the first events, and to be signed by one of the log's keys.
- With the master key, the log has to end where the broker ended it. Without it, the checkpoint's keys have to come from
  somewhere else.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from agentwrit.broker.storage import sql_log
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Session
from agentwrit.domain import audit, checkpoint, merkle
from agentwrit.domain.audit import Head
from agentwrit.domain.audit_export import PROGRESS_EVENTS, Progress, unwatched
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import ConfigurationError, TamperedRecord
from agentwrit.domain.note import VerifierKey
from agentwrit.domain.signing_key import KeyPurpose, StoredKey


class End(NamedTuple):
    """Where the broker ended the log, by what only it can have written, and how much of it a checkpoint covers."""

    sequence: int
    hash: str
    covered: int = 0


def verify(
    connection: Session,
    sealer: Sealer | None,
    end: Callable[[], End] | None,
    signing_keys: Callable[[], Sequence[StoredKey]],
    keys: Sequence[VerifierKey] = (),
    *,
    progress: Progress = unwatched,
    renew: Callable[[], object] = lambda: None,
) -> tuple[int, Checkpoint | None]:
    """Check the log in the database of `connection`. Returns how many events it has, and the checkpoint that covers the
    first.

    `sealer`, `end`: where the master key is at hand; `keys`: of checkpoints, else those that `signing_keys` gives.
    `renew` is called now and then, between two events: what `connection` sees may be a later state from then on.

    Raises:
        TamperedRecord: the log is not as the broker left it. Names the first event that is wrong.
        ConfigurationError: events were archived before they were read.
    """
    signed = sql_log.checkpoint(connection)
    covered = _covered(keys, signed, None if sealer is None else signing_keys)
    total = sql_log.last_sequence(connection)
    ended = None if end is None else _end(end)
    following = audit.Replay(_beginning(connection, sealer))
    if covered is not None and covered.size < following.sequence:
        raise TamperedRecord("the checkpoint is older than what was archived: the newest one was taken away")
    while following.sequence < total:
        for tiles in _page(connection, following, total):
            if tiles:
                _check_tiles(connection, sealer, tiles)
            if covered is not None and following.sequence == covered.size:
                following.check_covered(covered.size, covered.root)
                following.check_beginning()
        progress(following.sequence, total)
        renew()
        if sql_log.first_sequence(connection) > following.sequence + 1 and following.sequence < total:
            raise ConfigurationError("the broker archived events before they were read: run it again")
    if covered is None:
        following.check_beginning()
    elif following.sequence <= covered.size:
        following.check_covered(covered.size, covered.root)
        following.check_beginning()
    if ended is not None:
        _check_end(ended, following, 0 if covered is None else covered.size)
    return following.sequence, covered


def _page(connection: Session, following: audit.Replay, total: int) -> Iterator[Sequence[merkle.Tile]]:
    """Follow the log by some more events, as `sql_log.replay`."""
    before = following.sequence
    yield from sql_log.replay(connection, following, min(total, before + PROGRESS_EVENTS))
    if following.sequence == before:  # the next ones are missing, which the one behind them tells
        yield from sql_log.replay(connection, following, total)
    if following.sequence == before:
        raise TamperedRecord(f"{audit.event_id(before + 1)} is missing")


def _end(end: Callable[[], End]) -> End | TamperedRecord:
    """Where the log ends, as of the state that is seen now; or what is wrong with that."""
    try:
        return end()
    except TamperedRecord as error:
        return error


def _beginning(connection: Session, sealer: Sealer | None) -> Head:
    """Where the log was before the oldest event that is there, by the tiles of what was archived.

    Raises:
        TamperedRecord: a tile is not what the tree was built of.
    """
    archived = sql_log.first_sequence(connection) - 1
    before = sql_log.hash_at(connection, archived)
    if archived <= 0 or archived % merkle.TILE_WIDTH or before is None:
        return Head()  # what is missing then, the first event tells
    tree = merkle.Growth()
    for number in range(archived // merkle.TILE_WIDTH):
        hashes = sql_log.kept_tile(connection, sealer, 0, number)
        if len(hashes) != merkle.FULL_TILE_BYTES:
            raise TamperedRecord(f"tile {number} of level 0 of the tree was altered")
        for at in range(0, merkle.FULL_TILE_BYTES, merkle.HASH_BYTES):
            _check_tiles(connection, sealer, tree.append(hashes[at : at + merkle.HASH_BYTES]))
    return Head(before, tree.edge)


def _check_end(end: End | TamperedRecord, following: audit.Replay, covered: int) -> None:
    """Check that a log that was followed to its end ends as the broker left it, and so does what covers it.

    Raises:
        TamperedRecord: its tail was replaced, or its newest checkpoint.
    """
    if isinstance(end, TamperedRecord):
        raise end  # only now: a wrong event says more
    if (end.sequence, end.hash) != (following.sequence, following.hash):
        raise TamperedRecord(f"the log does not end with {audit.event_id(following.sequence)}: its tail was replaced")
    if covered < end.covered:
        raise TamperedRecord(f"the checkpoint of the first {end.covered} events was deleted, or replaced by an older")


def _covered(
    keys: Sequence[VerifierKey], signed: str | None, signing_keys: Callable[[], Sequence[StoredKey]] | None
) -> Checkpoint | None:
    if signed is None:
        if keys:
            raise TamperedRecord("there is no checkpoint")
        return None  # the broker has not lived for long enough to sign one
    if not keys and signing_keys is not None:
        name = checkpoint.unverified(signed).origin
        keys = [
            VerifierKey(name, key.public_key)
            for key in signing_keys()
            if key.purpose is KeyPurpose.AUDIT_CHECKPOINT and not key.revoked_at
        ]
    return checkpoint.read(signed, keys)


def _check_tiles(connection: Session, sealer: Sealer | None, tiles: Iterable[merkle.Tile]) -> None:
    """Compare tiles of the tree that was built anew with those that were kept; upper ones have grown since."""
    for built in tiles:
        kept = sql_log.kept_tile(connection, sealer, built.level, built.number)
        if kept[: len(built.hashes)] == built.hashes:
            continue
        if built.level:
            raise TamperedRecord(f"tile {built.number} of level {built.level} of the tree was altered")
        size = merkle.HASH_BYTES
        at = next((at for at in range(0, len(built.hashes), size) if built.hashes[at:][:size] != kept[at:][:size]), 0)
        raise TamperedRecord(
            f"{audit.event_id(built.number * merkle.TILE_WIDTH + at // size + 1)} is not the event that was recorded"
        )
