"""Checking the audit log in a database file, from outside the broker and without changing the file.

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

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from agentwrit.broker.storage import sql_log, sqlite_schema
from agentwrit.broker.storage.base import Snapshot
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite_rows import SqliteSnapshot, saved_head
from agentwrit.domain import audit, checkpoint, merkle
from agentwrit.domain.audit import Head
from agentwrit.domain.audit_export import PROGRESS_EVENTS, Progress, unwatched
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import ConfigurationError, TamperedRecord
from agentwrit.domain.note import VerifierKey
from agentwrit.domain.signing_key import KeyPurpose

NO_KEYS: Final = "there is no master key, so give the log's public key with --key: `agentwrit audit keys` shows it"


def verify(
    path: Path,
    sealer: Sealer | None,
    keys: Sequence[VerifierKey] = (),
    *,
    progress: Progress = unwatched,
) -> tuple[int, Checkpoint | None]:
    """Check the log in the database `path`. Returns how many events it has, and the checkpoint that covers the first.

    `sealer`: of the broker's rows, where the master key is at hand; `keys`: of checkpoints, else those in the database.

    Raises:
        TamperedRecord: the log is not as the broker left it. Names the first event that is wrong.
        ConfigurationError: there is no such database, or nothing to check it by.
    """
    if sealer is None and not keys:
        raise ConfigurationError(NO_KEYS)
    with _reading(path) as connection:
        return _verify(connection, sealer, keys, progress)


@contextlib.contextmanager
def snapshot(path: Path, sealer: Sealer) -> Iterator[Snapshot]:
    """The state in the database `path`.

    Raises:
        TamperedRecord: the file is damaged, or a row in it is not the broker's.
        ConfigurationError: there is no such database.
    """
    with _reading(path) as connection:
        yield SqliteSnapshot(connection, sealer)


def sealed_by(path: Path) -> str | None:
    """The name of the key that the rows in the database `path` are sealed with, if there is one yet.

    Raises:
        TamperedRecord: the file is damaged.
        ConfigurationError: there is no such database.
    """
    with _reading(path) as connection:
        if not connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'").fetchone()[0]:
            return None
        return sqlite_schema.sealed_by(connection)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(_open(path)) as connection:
            connection.execute("BEGIN")
            yield connection
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # SQLite quotes in its errors what it found
        raise TamperedRecord(f"{path} is damaged: {error}") from error


def _verify(
    connection: sqlite3.Connection, sealer: Sealer | None, keys: Sequence[VerifierKey], progress: Progress
) -> tuple[int, Checkpoint | None]:
    signed = sql_log.checkpoint(connection)
    covered = _covered(connection, sealer, keys, signed)
    total = sql_log.last_sequence(connection)
    following = audit.Replay(_beginning(connection, sealer))
    if covered is not None and covered.size < following.sequence:
        raise TamperedRecord("the checkpoint is older than what was archived: the newest one was taken away")
    for tiles in sql_log.replay(connection, following, 2**63 - 1):
        if tiles:
            _check_tiles(connection, sealer, tiles)
        if covered is not None and following.sequence == covered.size:
            following.check_covered(covered.size, covered.root)
            following.check_beginning()
        if following.sequence % PROGRESS_EVENTS == 0:
            progress(following.sequence, total)
    if covered is None or following.sequence <= covered.size:
        if covered is not None:
            following.check_covered(covered.size, covered.root)
        following.check_beginning()
    if sealer is not None:
        _check_end(connection, sealer, following, 0 if covered is None else covered.size)
    return following.sequence, covered


def _beginning(connection: sqlite3.Connection, sealer: Sealer | None) -> Head:
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


def _check_end(connection: sqlite3.Connection, sealer: Sealer, following: audit.Replay, covered: int) -> None:
    """Check that a log that was followed to its end ends as the broker left it, and so does what covers it.

    Raises:
        TamperedRecord: its tail was replaced, or its newest checkpoint.
    """
    saved = saved_head(connection, sealer)
    if (saved.sequence, saved.hash) != (following.sequence, following.hash):
        raise TamperedRecord(f"the log does not end with {audit.event_id(following.sequence)}: its tail was replaced")
    if covered < saved.covered:
        raise TamperedRecord(f"the checkpoint of the first {saved.covered} events was deleted, or replaced by an older")


def _covered(
    connection: sqlite3.Connection, sealer: Sealer | None, keys: Sequence[VerifierKey], signed: str | None
) -> Checkpoint | None:
    if signed is None:
        if keys:
            raise TamperedRecord("there is no checkpoint")
        return None  # the broker has not lived for long enough to sign one
    if not keys and sealer is not None:
        name = checkpoint.unverified(signed).origin
        stored = SqliteSnapshot(connection, sealer).signing_keys()
        keys = [
            VerifierKey(name, key.public_key)
            for key in stored
            if key.purpose is KeyPurpose.AUDIT_CHECKPOINT and not key.revoked_at
        ]
    return checkpoint.read(signed, keys)


def _check_tiles(connection: sqlite3.Connection, sealer: Sealer | None, tiles: Iterable[merkle.Tile]) -> None:
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


def _open(path: Path) -> sqlite3.Connection:
    """A connection that only reads, and leaves no file behind where no broker is at work."""
    if not path.is_file():
        raise ConfigurationError(f"there is no database {path}")
    is_at_rest = not path.with_name(path.name + "-wal").exists()
    mode = "mode=ro&immutable=1" if is_at_rest else "mode=ro"
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        raise ConfigurationError(f"{path} cannot be opened as a database: {error}") from error
    return connection
