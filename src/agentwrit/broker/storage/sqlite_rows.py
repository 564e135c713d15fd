"""Rows as the SQLite schema has them, and where the audit log ends there: a row of `meta`."""

import sqlite3
from collections.abc import Iterator
from typing import Final, NamedTuple

from agentwrit.broker.storage import sql_log
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql_rows import SqlSnapshot, SqlTransaction
from agentwrit.domain import audit
from agentwrit.domain.audit import Head
from agentwrit.domain.errors import TamperedRecord

HEAD: Final = "audit_head"  # its row in `meta`


class SqliteSnapshot(SqlSnapshot):
    GRANT_PLACE = "rowid"
    UNINDEXED = "+"
    MEMBER = "data ->> '$.{}'"


class SqliteTransaction(SqlTransaction, SqliteSnapshot):
    pass


def sealed_head(sealer: Sealer, head: Head, covered: int) -> str:
    """The value of HEAD: where the log ends, and up to where a checkpoint covers it."""
    body = f"{head.sequence} {head.hash} {covered}"
    return f"{body} {sealer.mac(HEAD, body.encode('ascii')).hex()}"


def spent_nonces(connection: sqlite3.Connection, now: float) -> Iterator[tuple[bytes, int]]:
    """The nonces that have to be remembered at this time, and until when (Unix seconds)."""
    return iter(connection.execute("SELECT nonce, expires_at FROM nonces WHERE expires_at > ?", (now,)))


class SavedHead(NamedTuple):
    """The place and the hash of the last event, and up to where a checkpoint covered the log at that time."""

    sequence: int
    hash: str
    covered: int

    @property
    def last(self) -> tuple[int, str]:
        return self.sequence, self.hash


def saved_head(connection: sqlite3.Connection, sealer: Sealer) -> SavedHead:
    """Where the log ends, as it was committed with the last event.

    Raises:
        TamperedRecord: somebody else wrote them.
    """
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (HEAD,)).fetchone()
    body, _, mac = str(row[0] if row is not None else "").rpartition(" ")
    sequence, last_hash, covered = [*body.split(" "), "0", "0"][:3]  # it did not always say what was covered
    try:
        sealer.check(HEAD, body.encode("utf-8"), bytes.fromhex(mac))
        return SavedHead(int(sequence), last_hash, int(covered))
    except ValueError:
        raise TamperedRecord("where the log ends was altered outside the broker") from None


def grow_tree(connection: sqlite3.Connection, sealer: Sealer) -> None:
    """Build the tree over a log that has none yet. Checks the log on the way.

    Raises:
        TamperedRecord: the log was altered.
    """
    following = audit.Replay()
    for tiles in sql_log.replay(connection, following, sql_log.last_sequence(connection)):
        sql_log.put_tiles(connection, sealer, tiles)
    value = sealed_head(sealer, following.head, sql_log.covered(connection))
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (HEAD, value))
