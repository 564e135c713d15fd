"""Rows as the SQLite schema has them, and where the audit log ends there: a row of `meta`."""

import sqlite3
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


def save_head(connection: sqlite3.Connection, sealer: Sealer, head: Head) -> None:
    """Make where the log ends part of the transaction, and up to where a checkpoint covers it."""
    row = connection.execute("SELECT size FROM checkpoint").fetchone()
    body = f"{head.sequence} {head.hash} {0 if row is None else row[0]}"
    value = f"{body} {sealer.mac(HEAD, body.encode('ascii')).hex()}"
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (HEAD, value))


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
    save_head(connection, sealer, following.head)
