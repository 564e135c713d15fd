"""Rows as the PostgreSQL schema has them, and the one row that every commit moves on."""

from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Session
from agentwrit.broker.storage.sql_rows import SqlSnapshot, SqlTransaction
from agentwrit.domain import audit
from agentwrit.domain.audit import Head
from agentwrit.domain.errors import TamperedRecord

SELECT_STATE: Final = "SELECT state FROM cluster WHERE one = 1"
# With it, up to where a checkpoint covers the log; for whoever is to move on both.
SELECT_ALL: Final = "SELECT state, covered FROM cluster WHERE one = 1"
_TABLE: Final = "cluster"
_COVERED: Final = "cluster.covered"


class State(NamedTuple):
    """What a commit left: where the log ends, the newest number of the feed, and the highest time (Unix seconds)."""

    sequence: int = 0
    hash: str = audit.GENESIS_HASH
    feed_head: int = 0
    now: float = 0.0

    def sealed(self, sealer: Sealer) -> str:
        """The text of the row."""
        body = f"{self.sequence} {self.hash} {self.feed_head} {self.now!r}"
        return f"{body} {sealer.mac(_TABLE, body.encode('ascii')).hex()}"

    @classmethod
    def opened(cls, row: Sequence[object] | None, sealer: Sealer) -> Self:
        """What a row says.

        Raises:
            TamperedRecord: the broker did not write it, or it is missing.
        """
        body, _, mac = str(row[0] if row is not None else "").rpartition(" ")
        try:
            sealer.check(_TABLE, body.encode("utf-8"), bytes.fromhex(mac))
            sequence, last_hash, feed_head, now = body.split(" ")
            return cls(int(sequence), last_hash, int(feed_head), float(now))
        except ValueError:
            raise TamperedRecord("the row of the cluster's state was altered outside the broker") from None


def columns(state: State, covered: int, sealer: Sealer) -> tuple[str, str]:
    """The texts of the columns `state` and `covered`: the second belongs to the first, and to no earlier one."""
    text = state.sealed(sealer)
    return text, f"{covered} {sealer.mac(_COVERED, _covered_body(text, covered)).hex()}"


def covered_of(row: Sequence[object] | None, sealer: Sealer) -> int:
    """Up to where a checkpoint covers the log, as a row of these two columns says.

    Raises:
        TamperedRecord: the broker did not write it, or not with this state.
    """
    state, text = row if row is not None else ("", "")
    covered, _, mac = str(text).partition(" ")
    try:
        sealer.check(_COVERED, _covered_body(str(state), int(covered)), bytes.fromhex(mac))
        return int(covered)
    except ValueError:
        raise TamperedRecord("up to where a checkpoint covers the log was altered outside the broker") from None


def _covered_body(state: str, covered: int) -> bytes:
    return f"{covered} {state}".encode()


class PostgresSnapshot(SqlSnapshot):
    GRANT_PLACE = "place"
    UNINDEXED = ""

    def _one_of(self, column: str, names: Sequence[str]) -> tuple[str, Sequence[object]]:
        return f"{column} = ANY(?)", (tuple(names),)  # one statement, however many they are

    MEMBER = "data::json ->> '{}'"


class PostgresTransaction(SqlTransaction, PostgresSnapshot):
    def __init__(
        self, session: Session, sealer: Sealer, head: Head, now: float, *, feed_head: int, covered: int
    ) -> None:
        super().__init__(session, sealer, head, now, covered=covered)
        self._feed_head = feed_head

    def feed_head(self) -> int:
        """Known without asking: whoever writes has the row that tells it."""
        return self._feed_head + len(self.revoked)
