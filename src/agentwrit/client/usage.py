"""What an app's agents were granted, by the audit log, and what they used of it, by resource servers' reports.

A use counts for the narrowest scope of the agent that covers it: an agent with `read:data:7` and `read:data:*` that
reads only the former does not use the latter. Delegated scopes count as granted too.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from agentwrit.client.audit_log import AuditLog
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.audit_export import PROGRESS_EVENTS, Progress, unwatched
from agentwrit.errors import TransportError

PAGE: Final = 1000
SHOWN_USES: Final = 10

_SCHEMA = """
CREATE TABLE scopes (scope TEXT PRIMARY KEY, granted INTEGER NOT NULL, used INTEGER NOT NULL, last_used TEXT NOT NULL)
    WITHOUT ROWID;
CREATE TABLE uses (scope TEXT, used_as TEXT, PRIMARY KEY (scope, used_as)) WITHOUT ROWID;
"""
_ADD = """
INSERT INTO scopes VALUES (:scope, :granted, :used, :last_used) ON CONFLICT (scope) DO UPDATE SET
    granted = granted + excluded.granted, used = used + excluded.used, last_used = max(last_used, excluded.last_used)
"""


class ScopeUsage(NamedTuple):
    """A scope: the number of grants with it, how often and when it was last used (RFC 3339, or empty), and as what.

    `used_as`: the first few of them; `used_as_count`: how many there are.
    """

    scope: str
    granted: int
    used: int
    last_used: str
    used_as: list[str]
    used_as_count: int


class Usage:
    """Adds up usage in a temporary file, so that memory use does not grow with the log."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None)  # a temporary file, in memory while it is small
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.executescript(_SCHEMA)

    def take(self, event: Mapping[str, Any]) -> None:
        """Count an event of the log.

        Raises:
            TransportError: it does not have the broker's format.
        """
        data = event.get("data", {})
        try:
            if event["event_type"] == EventType.TOKEN_ISSUED:
                for scope in data["scope"]:
                    self._add(scope, granted=1)
            elif event["event_type"] == EventType.RESOURCE_ACCESSED and event["outcome"] == Outcome.SUCCESS:
                uses = list(zip(data["scope_granted"], data["scope_used"], strict=True))
                for scope in dict(uses):
                    self._add(scope, used=data["count"], last_used=data["last"])
                self._table.executemany("INSERT OR IGNORE INTO uses VALUES (?, ?)", uses)
        except (KeyError, TypeError, ValueError, OverflowError, sqlite3.Error):
            raise TransportError(f"the event {event.get('id')} is not of the protocol: is this a broker?") from None

    def scopes(self, *, is_never_used: bool = False) -> Iterator[ScopeUsage]:
        """The scopes, most used first. `is_never_used`: only those that were never used."""
        where = "WHERE used = 0" if is_never_used else ""
        for scope, granted, used, last_used in self._table.execute(
            f"SELECT scope, granted, used, last_used FROM scopes {where} ORDER BY used DESC, scope"
        ):
            [count] = self._table.execute("SELECT count(*) FROM uses WHERE scope = ?", (scope,)).fetchone()
            query = "SELECT used_as FROM uses WHERE scope = ? ORDER BY used_as LIMIT ?"
            used_as = [row[0] for row in self._table.execute(query, (scope, SHOWN_USES))]
            yield ScopeUsage(scope, granted, used, last_used, used_as, count)

    @property
    def totals(self) -> tuple[int, int]:
        """The number of scopes, and how many of them were used."""
        all_of_them, used = self._table.execute("SELECT count(*), coalesce(sum(used > 0), 0) FROM scopes").fetchone()
        return int(all_of_them), int(used)

    def close(self) -> None:
        self._table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, scope: str, *, granted: int = 0, used: int = 0, last_used: str = "") -> None:
        self._table.execute(_ADD, {"scope": scope, "granted": granted, "used": used, "last_used": last_used})


def add_up(
    log: AuditLog, usage: Usage, app_id: str, *, since: str | None = None, progress: Progress = unwatched
) -> None:
    """Count all that the log says about an app's agents, from a time on (RFC 3339).

    Raises:
        ProblemResponseError, TransportError: the log cannot be read.
    """
    for event_type in (EventType.TOKEN_ISSUED, EventType.RESOURCE_ACCESSED):
        done, after = 0, None
        while True:
            filters = {"app_id": app_id, "event_type": event_type.value, "since": since, "after": after, "limit": PAGE}
            page = log.events(filters)
            for event in page["events"]:
                usage.take(event)
                done += 1
                if done % PROGRESS_EVENTS == 0:
                    progress(done, page["total"])
            if len(page["events"]) < PAGE:
                break
            after = page["events"][-1]["id"]
