"""How much of the audit log an app may fill, with everything that it and its agents do.

Each event is stored until it is archived, and some cost the caller nothing: an unused launch token, a report, a
renewal. So an app has a budget of bytes per second, and may use some seconds of it in advance. Written events are
charged afterwards, by an estimate that tends to be too low. While the app has exceeded its budget, operations that
would write more are refused. Logins are charged but not refused. Endings are neither charged nor refused, because they
must never wait. Each broker counts by itself.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from agentwrit.broker.services.context import Caller, EventData, Who
from agentwrit.broker.services.denials import Denial
from agentwrit.domain import limits
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.errors import RateLimited

AHEAD_SECONDS: Final = 10
EVENT_BYTES: Final = 1024  # an event without its lists: most are slightly smaller
MAX_APPS: Final = 4096


class LogBudget:
    """The budgets of all apps. `per_second`: KiB that each app may write; 0 for no limit."""

    def __init__(self, per_second: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._monotonic = monotonic
        self._owing: OrderedDict[str, float] = OrderedDict()  # by client ID: until when the app's budget is spent

    def check(self, caller: Caller, client_id: str, *, who: Who | None = None, app_id: str = "") -> None:
        """Refuse an operation that would write more for an app that has spent its budget. This changes nothing.

        Raises:
            Denial: it has spent its budget. `who`: the caller; `app_id`: the app, if the caller is not authenticated.
        """
        until = self._owing.get(client_id)
        if until is None:
            return
        now = self._monotonic()
        if until <= now + AHEAD_SECONDS:
            return
        event = caller.event(EventType.APP_RATE_LIMITED, Outcome.DENIED, app_id=app_id)
        if who is not None:
            event = msgspec.structs.replace(event, **who)
        detail = "the app writes more to the audit log than it may"
        data: EventData = {"limit": "audit_log", "allowed": self._per_second}
        error = RateLimited(
            detail,
            retry_after=limits.seconds_until(until - AHEAD_SECONDS, now),
            hint=f"{self._per_second} KiB a second: the operator says how many, with AGENTWRIT_APP_LOG_RATE",
        )
        event = msgspec.structs.replace(event, detail=detail, data=data)
        raise Denial(error, caller, event, by=client_id, about=(client_id,))

    def charge(self, client_id: str, events: int = 1, lists: Iterable[str] = ()) -> None:
        """Charge an app for written events, and for the texts in them."""
        if self._per_second:
            now = self._monotonic()
            size = events * EVENT_BYTES + sum(map(len, lists))
            self._owing[client_id] = max(self._owing.get(client_id, now), now) + size / (self._per_second * 1024)
            self._owing.move_to_end(client_id)
            if len(self._owing) > MAX_APPS:
                self._owing.popitem(last=False)
