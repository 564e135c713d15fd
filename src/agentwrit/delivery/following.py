"""Following the log and delivering it: each event at least once and in order.

This holds even if the broker, the receiver or this process is restarted.
"""

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentwrit import durable
from agentwrit.delivery.sinks import NotDelivered, Sink
from agentwrit.domain import audit
from agentwrit.errors import AgentWritError, ProblemResponseError, TransportError
from agentwrit.reading import small_text

if TYPE_CHECKING:
    from agentwrit.client.audit_log import AuditLog

POLL_SECONDS: Final = 1.0
FIRST_WAIT_SECONDS: Final = 0.5
LONGEST_WAIT_SECONDS: Final = 30.0

_PASSING: Final = frozenset({429, 500, 502, 503, 504})


class Cursor:
    """The last delivered event, in a file that is replaced atomically and durably."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sequence = 0
        self.hash = ""
        if path.exists():
            try:
                content = json.loads(small_text(path))
                self.sequence, self.hash = audit.parse_event_id(content["delivered"]), str(content["hash"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise AgentWritError(f"{path} is no cursor of a delivery: give another file") from None

    def advance(self, event: Mapping[str, Any]) -> None:
        """Record that everything up to this event was delivered."""
        content = json.dumps({"delivered": event["id"], "hash": event["hash"]}) + "\n"
        durable.write(self._path, content.encode())
        self.sequence, self.hash = audit.parse_event_id(event["id"]), str(event["hash"])


class Delivery:
    """Delivers a log to a sink. `say` is called with a line when delivery begins to fail, and when it works again."""

    def __init__(self, log: "AuditLog", sink: Sink, cursor: Cursor, *, batch: int, say: Callable[[str], None]) -> None:
        self._log = log
        self._sink = sink
        self._cursor = cursor
        self._batch = batch
        self._say = say

    def run(self, *, once: bool = False) -> None:
        """Deliver events for ever, or with `once` up to the end of the log.

        Raises:
            NotDelivered, TransportError: delivery failed, with `once`.
            ProblemResponseError: the broker refused, and would refuse a retry.
            AgentWritError: this is not the log that was delivered before, or it has a gap.
        """
        self._check_cursor(once=once)
        while True:
            events = self._persistently(self._next, once=once)
            if events:
                self._persistently(partial(self._sink.deliver, events), once=once)
                self._cursor.advance(events[-1])
            elif once:
                return
            else:
                time.sleep(POLL_SECONDS)

    def _check_cursor(self, *, once: bool) -> None:
        """Reject a log that does not have the last delivered event, unless that was archived since."""
        at = self._cursor.sequence
        if not at:
            return
        found = self._persistently(partial(self._page, at - 1, 1), once=once)
        if not found:
            raise AgentWritError(f"the log ends before {audit.event_id(at)}, which was delivered: it is another one")
        # If the event was archived, the next page shows whether the one after it is still there.
        is_there = found[0]["id"] == audit.event_id(at)
        if is_there and self._cursor.hash and found[0]["hash"] != self._cursor.hash:
            raise AgentWritError(f"{audit.event_id(at)} is not the event that was delivered: the log is another one")

    def _next(self) -> list[Mapping[str, Any]]:
        """The next events, if there are any yet."""
        after = self._cursor.sequence
        events = self._page(after, self._batch)
        if events and after and events[0]["id"] != audit.event_id(after + 1):
            raise AgentWritError(
                f"{audit.event_id(after + 1)} was archived before it was delivered: deliver the archive by other means,"
                f" and go on with --after evt-… behind it (the broker has {events[0]['id']} and what follows)"
            )
        return events

    def _page(self, after: int, limit: int) -> list[Mapping[str, Any]]:
        from agentwrit.client.shapes import completed  # here, so that `--help` does not wait for it

        page = self._log.events({"after": audit.event_id(after) if after else None, "limit": limit})
        return [completed(event) for event in page["events"]]

    def _persistently(self, work: Callable[[], Any], *, once: bool) -> Any:
        """Run `work` until it succeeds, with backoff."""
        wait, is_failing = FIRST_WAIT_SECONDS, False
        while True:
            try:
                result = work()
            except (NotDelivered, TransportError, ProblemResponseError) as error:
                if once or (isinstance(error, ProblemResponseError) and error.status_code not in _PASSING):
                    raise
                if not is_failing:
                    self._say(f"not delivered, trying again: {error}")
                is_failing = True
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            else:
                if is_failing:
                    self._say("delivering again")
                return result
