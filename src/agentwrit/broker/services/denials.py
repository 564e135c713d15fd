"""Denials of strangers, recorded so that no stranger can fill the disk.

The first denial of its kind (event type, route, and as a rule address prefix and grant) is written before it is
answered. Repeats within a minute are counted in memory, and the count is written as one more event when the minute is
over. A crash may lose a count, never a first.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from agentwrit.broker.clock import Clock
from agentwrit.broker.services.context import Caller
from agentwrit.broker.storage.base import Row, Store, Transaction
from agentwrit.domain import timestamps
from agentwrit.domain.audit import Draft
from agentwrit.domain.errors import AgentWritError, Refusal

T = TypeVar("T")

WINDOW_SECONDS: Final = 60
MAX_WINDOWS: Final = 4096

_Key = tuple[str, ...]


class StrangerDenied(AgentWritError):
    """Raised in a use case, or in its unit of work: record `event`, and tell the caller `error`.

    `about`: what tells its kind from others of this type on this route, if not who called.
    """

    def __init__(self, error: Refusal, caller: Caller, event: Draft, *, about: tuple[str, ...] | None = None) -> None:
        super().__init__(error.detail)
        self.error = error
        self.event = event
        self.about = (caller.network, event.sid) if about is None else about


class _Window:
    def __init__(self, event: Draft, now: float) -> None:
        self.event = event
        self.opened_at = now
        self.last_at = now
        self.repeats = 0


class DenialLog:
    """Records what strangers were denied. Bounded in memory, whatever they do."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._windows: dict[_Key, _Window] = {}

    async def write(self, unit: Callable[[Transaction], T], *, reads: Sequence[Row] = ()) -> T:
        """`Store.write`, for a unit that may raise `StrangerDenied`."""
        try:
            return await self._store.write(unit, reads=reads)
        except StrangerDenied as denied:
            raise await self.record(denied) from None

    async def record(self, denied: StrangerDenied) -> Refusal:
        """Record a denial, or count it. Returns what to tell the caller.

        Raises:
            Unavailable: it cannot be recorded.
        """
        now = self._clock.now()
        key = self._key(denied)
        window = self._windows.get(key)
        if window is not None and now < window.opened_at + WINDOW_SECONDS:
            window.repeats += 1
            window.last_at = now
            return denied.error
        opened = self._windows[key] = _Window(denied.event, now)
        counted = [] if window is None or not window.repeats else [_summary(window)]
        try:
            await self._write([*counted, denied.event])
        except BaseException:
            # Nothing was written: the next one is a first again, and the count is still owed.
            if window is None:
                self._windows.pop(key, None)
            else:
                self._windows[key] = window
                window.repeats += opened.repeats
            raise
        return denied.error

    async def flush(self, *, everything: bool = False) -> None:
        """Write the counts of the minutes that are over, or at the end those of all."""
        now = self._clock.now()
        over = [key for key, window in self._windows.items() if everything or now >= window.opened_at + WINDOW_SECONDS]
        closed = [self._windows.pop(key) for key in over]
        counted = [_summary(window) for window in closed if window.repeats]
        if counted:
            await self._write(counted)

    def _key(self, denied: StrangerDenied) -> _Key:
        event = denied.event
        key = (event.event_type.value, event.resource, *denied.about)
        if key in self._windows or len(self._windows) < MAX_WINDOWS:
            return key
        return (event.event_type.value,)  # too many kinds at once: told apart by type alone

    async def _write(self, events: list[Draft]) -> None:
        def record_all(transaction: Transaction) -> None:
            for event in events:
                transaction.record(event)

        await self._store.write(record_all)


def _summary(window: _Window) -> Draft:
    return msgspec.structs.replace(
        window.event,
        detail=f"{window.repeats} more like this",
        request_id="",
        trace_id="",
        data={
            **window.event.data,
            "count": window.repeats,
            "first": timestamps.rfc3339_micros(window.opened_at),
            "last": timestamps.rfc3339_micros(window.last_at),
        },
    )
