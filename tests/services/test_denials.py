"""Denials that are counted: no count is lost, whatever fails while it is written."""

import asyncio
from collections.abc import Callable

import pytest

from agentwrit.broker.clock import Clock
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.denials import WINDOW_SECONDS, Denial, DenialLog
from agentwrit.broker.storage.base import EventQuery
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.errors import Unauthorized, Unavailable
from tests.services.test_faults import Time

CALLER = Caller(address="192.0.2.1", route="GET /v1/x")


def denial() -> Denial:
    return Denial(Unauthorized("no"), CALLER, CALLER.event(EventType.TOKEN_AUTH_FAILED, Outcome.DENIED, detail="no"))


class Setup:
    """A log of denials over a store; `meanwhile` is done once, and then the unit of work that had begun fails."""

    def __init__(self) -> None:
        self.time = Time()
        self.meanwhile: Callable[[], object] | None = None
        clock = Clock(self.time, self.time)
        self.store = MemoryStore(clock, fault=self._fault)
        self.log = DenialLog(self.store, clock)

    def _fault(self, point: str) -> None:
        if point == "begin" and self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
            raise Unavailable("the disk is full")

    def deny(self) -> None:
        """A denial, in the middle of something else."""
        with pytest.raises(StopIteration):
            self.log.record(denial()).send(None)

    def told(self) -> list[str]:
        async def read() -> list[str]:
            events = await self.store.read(lambda snapshot: snapshot.events(EventQuery(limit=100)))
            return [event.detail for event in events]

        return asyncio.run(read())


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_what_was_counted_while_a_first_one_failed_is_still_owed(setup: Setup) -> None:
    for _ in range(3):
        setup.deny()
    setup.time.now += WINDOW_SECONDS
    setup.meanwhile = setup.deny  # while the first of the next minute, and the count, are being written
    with pytest.raises(Unavailable):
        asyncio.run(setup.log.record(denial()))
    asyncio.run(setup.log.flush())
    assert setup.told() == ["no", "3 more like this"]


def test_what_was_counted_before_a_flush_failed_is_added_to_what_came_meanwhile(setup: Setup) -> None:
    for _ in range(3):
        setup.deny()
    setup.time.now += WINDOW_SECONDS

    def two_more() -> None:
        setup.deny()
        setup.deny()

    setup.meanwhile = two_more
    with pytest.raises(Unavailable):
        asyncio.run(setup.log.flush())
    setup.time.now += WINDOW_SECONDS
    asyncio.run(setup.log.flush())
    assert setup.told() == ["no", "no", "3 more like this"]
