"""Recording denials, so that no anonymous client, agent or app can fill the disk with them.

The first denial of its kind (event type, route, and usually the address prefix and the grant of the caller) is written
before it is answered. Repeats within a minute are counted in memory, and the count is written as one more event after
the minute. A crash may lose a count, but never a first denial.

The number of kinds per caller is bounded. Beyond it, a caller's denials are distinguished by event type only.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from agentwrit.broker.clock import Clock
from agentwrit.broker.services.context import Caller
from agentwrit.broker.storage.base import Row, Store, Transaction
from agentwrit.domain import audit, timestamps
from agentwrit.domain.audit import Draft
from agentwrit.domain.errors import AgentWritError, Refusal

T = TypeVar("T")

WINDOW_SECONDS: Final = 60
MAX_WINDOWS: Final = 4096
MAX_WINDOWS_OF_ONE: Final = 64
FLUSHED_AT_ONCE: Final = 128  # counts in a unit of work, so that it does not delay others
MAX_TEXT: Final = 1024  # characters of each text in the event's data; of a list, a few items are kept

_Key = tuple[str, ...]


class Denial(AgentWritError):
    """Raised in a use case or its unit of work: records `event`, and gives the caller `error`.

    `by`: the app that is denied, with all its agents, if known; otherwise the address prefix counts. `about`: what
    distinguishes this kind from others of the same type, route and caller, if not the address prefix and the grant.
    """

    def __init__(
        self, error: Refusal, caller: Caller, event: Draft, *, by: str = "", about: tuple[str, ...] | None = None
    ) -> None:
        super().__init__(error.detail)
        self.error = error
        self.event = event
        self.by = by or caller.network
        self.about = (caller.network, event.sid) if about is None else about


class _Window:
    def __init__(self, event: Draft, by: str, now: float) -> None:
        # What is kept until then is small; the lists are in the first event.
        few = {name: value for name, value in event.data.items() if not isinstance(value, list)}
        self.event = msgspec.structs.replace(event, request_id="", trace_id="", data=few)
        self.by = by
        self.opened_at = now
        self.last_at = now
        self.repeats = 0


class DenialLog:
    """Records denials. Bounded in memory and on disk, whatever callers do."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._windows: dict[_Key, _Window] = {}
        self._open: Counter[str] = Counter()  # the number of windows for each caller

    async def write(self, unit: Callable[[Transaction], T], *, reads: Sequence[Row] = ()) -> T:
        """`Store.write`, for a unit that may raise a `Denial`."""
        try:
            return await self._store.write(unit, reads=reads)
        except Denial as denial:
            raise await self.record(denial) from None

    async def record(self, denial: Denial) -> Refusal:
        """Record a denial, or count it. Returns the error for the caller.

        Raises:
            Unavailable: it cannot be recorded.
        """
        now = self._clock.now()
        key = self._key(denial)
        window = self._windows.get(key)
        if window is not None and now < window.opened_at + WINDOW_SECONDS:
            window.repeats += 1
            window.last_at = now
            return denial.error
        event = msgspec.structs.replace(denial.event, data=audit.cut(denial.event.data, MAX_TEXT))
        opened = _Window(event, denial.by, now)
        self._put(key, opened)
        counted = [] if window is None or not window.repeats else [_summary(window)]
        try:
            await self._write([*counted, event])
        except BaseException:
            # Nothing was written: the next denial is a first one again, and the count still has to be written.
            if window is None:
                self._close(key)
            else:
                window.repeats += opened.repeats
                self._put(key, window)
            raise
        return denial.error

    async def flush(self, *, everything: bool = False) -> None:
        """Write the counts of minutes that are over, or at shutdown all counts."""
        now = self._clock.now()
        over = [key for key, window in self._windows.items() if everything or now >= window.opened_at + WINDOW_SECONDS]
        for at in range(0, len(over), FLUSHED_AT_ONCE):
            await self._flush(over[at : at + FLUSHED_AT_ONCE])

    async def _flush(self, keys: Sequence[_Key]) -> None:
        closed = {key: window for key in keys if (window := self._close(key)) is not None and window.repeats}
        if not closed:
            return
        try:
            await self._write([_summary(window) for window in closed.values()])
        except BaseException:
            for key, window in closed.items():  # the counts still have to be written
                newer = self._windows.get(key)
                if newer is None:
                    self._put(key, window)
                else:
                    newer.repeats += window.repeats
            raise

    def _key(self, denial: Denial) -> _Key:
        event = denial.event
        key = (event.event_type.value, event.resource, *denial.about)
        if key in self._windows:
            return key
        if len(self._windows) >= MAX_WINDOWS:  # too many kinds at once
            return (event.event_type.value,)
        return key if self._open[denial.by] < MAX_WINDOWS_OF_ONE else (event.event_type.value, denial.by)

    def _put(self, key: _Key, window: _Window) -> None:
        self._close(key)
        self._windows[key] = window
        self._open[window.by] += 1

    def _close(self, key: _Key) -> _Window | None:
        window = self._windows.pop(key, None)
        if window is not None:
            self._open[window.by] -= 1
            if not self._open[window.by]:
                del self._open[window.by]
        return window

    async def _write(self, events: list[Draft]) -> None:
        def record_all(transaction: Transaction) -> None:
            for event in events:
                transaction.record(event)

        await self._store.write(record_all)


def _summary(window: _Window) -> Draft:
    return msgspec.structs.replace(
        window.event,
        detail=f"{window.repeats} more like this",
        data={
            **window.event.data,
            "count": window.repeats,
            "first": timestamps.rfc3339_micros(window.opened_at),
            "last": timestamps.rfc3339_micros(window.last_at),
        },
    )
