"""How much of the audit log an app may fill, with all that it and its agents do.

Each event is there for ever, or until it is archived, and some cost nobody anything: a launch token that is never used,
a report, a renewal. So an app has so many bytes a second, and may be ahead by what it may write in a while. What was
written is charged afterwards, by an estimate that is in the app's favour, and while it owes, what would write more is
refused. Logins are charged and not refused; ends are neither, for they never wait. Each broker counts by itself.
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
EVENT_BYTES: Final = 1024  # of an event without its lists: most have a little less
MAX_APPS: Final = 4096


class LogBudget:
    """`per_second`: KiB that each app may write; 0 for no bound."""

    def __init__(self, per_second: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._monotonic = monotonic
        self._owing: OrderedDict[str, float] = OrderedDict()  # by client id: until when an app has spent what it has

    def check(self, caller: Caller, client_id: str, *, who: Who | None = None, app_id: str = "") -> None:
        """Refuse what would write more for an app that has spent what it has. This changes nothing.

        Raises:
            Denial: it has. `who`: who asks; `app_id`: which app it is, where nobody has said who they are.
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
        """Charge an app with events that were written, and with the texts that stand in them."""
        if self._per_second:
            now = self._monotonic()
            size = events * EVENT_BYTES + sum(map(len, lists))
            self._owing[client_id] = max(self._owing.get(client_id, now), now) + size / (self._per_second * 1024)
            self._owing.move_to_end(client_id)
            if len(self._owing) > MAX_APPS:
                self._owing.popitem(last=False)
