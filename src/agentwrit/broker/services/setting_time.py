"""Changing the time of a store: the operator declares that the system's clock is right.

The rules:

- Forward, nothing is lost: the time in between passes at once.
- Back, what has expired would be valid again. So every grant ends, as when a store is restored (`restoring`), and the
  keys are revoked for the same reason. An app's previous secret that still works ends as well, and the use of app
  limits is counted anew.
- The audit log records both times. Its earlier events keep their times, which are then in the future: a search by time
  finds the events after this one, and earlier ones as far as possible.
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
    """The store's previous and new time (Unix seconds), and what ended because the new one is earlier."""

    before: float
    now: float
    restored: Restored | None = None


def set_ahead(transaction: Transaction, before: float) -> TimeSet:
    """Move the store's time forward from `before` to the time of this unit."""
    _record(transaction, before)
    return TimeSet(before, transaction.now)


def set_back(transaction: Transaction, before: float, end: Callable[[Transaction], Restored]) -> TimeSet:
    """Move the store's time back from `before` to the time of this unit.

    `end`: ends all grants.
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
