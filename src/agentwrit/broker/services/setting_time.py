"""Having a store go on from another time than it knows: the operator says that the system's clock is right.

The rules:

- Ahead, nothing is lost: time passes, all at once.
- Back, what time has ended would live again: so everything ends that was granted, as it does when a store is restored
  (`restoring`), and for the same reason the keys are revoked. A former secret of an app that still worked ends as well,
  and what apps use of their limits is counted anew.
- The audit log says from when and to when. Its earlier events keep their times, which are later ones then: a search by
  time finds those behind this event, and those before it as well as it can.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from agentwrit.broker.services.keys import BROKER
from agentwrit.broker.services.restoring import Restored
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.limits import AppUsage
from agentwrit.domain.timestamps import rfc3339

DETAIL: Final = "the store's time was set back: all that was granted before ends"


class TimeSet(NamedTuple):
    """What time it was in the store and is now (Unix seconds), and what ended because that is earlier."""

    before: float
    now: float
    restored: Restored | None = None


def set_ahead(transaction: Transaction, before: float) -> TimeSet:
    """Let the store go on from the time of this unit, which is later than the one that it knows: `before`."""
    _record(transaction, before)
    return TimeSet(before, transaction.now)


def set_back(transaction: Transaction, before: float, end: Callable[[Transaction], Restored]) -> TimeSet:
    """Let the store go on from the time of this unit, which is earlier than the one that it knows: `before`.

    `end`: ends all that was granted.
    """
    _record(transaction, before)
    restored = end(transaction)
    for app in transaction.apps():
        if app.previous_secret_until > transaction.now:
            transaction.put(msgspec.structs.replace(app, previous_secret_hash=b"", previous_secret_until=0))
        if transaction.app_usage(app.app_id) is not None:
            transaction.put(AppUsage(app_id=app.app_id, counted_at=int(transaction.now)))
    return TimeSet(before, transaction.now, restored)


def _record(transaction: Transaction, before: float) -> None:
    transaction.record(
        Draft(
            event_type=EventType.STORE_TIME_SET,
            principal=BROKER,
            detail=f"the store's time was {rfc3339(int(before))}, and is {rfc3339(int(transaction.now))}",
            data={"before": int(before), "now": int(transaction.now)},
        )
    )
