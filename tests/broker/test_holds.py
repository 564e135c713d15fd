"""How long the event loop was held is measured."""

import asyncio
import time

from agentwrit.broker.holds import REMEMBERED_SECONDS, TICK_SECONDS, Holds

HELD_SECONDS = 0.2


def test_a_hold_is_measured_but_for_what_may_be_missed() -> None:
    async def measure() -> Holds:
        holds = Holds()
        holds.start()
        time.sleep(HELD_SECONDS)  # which is what holds it
        while not holds.longest():
            await asyncio.sleep(0)
        holds.stop()
        return holds

    holds = asyncio.run(measure())
    assert holds.longest() >= HELD_SECONDS - TICK_SECONDS
    *counts, seconds = holds.durations.numbers
    assert sum(counts) >= 1
    assert seconds >= holds.longest()


def test_nothing_is_measured_after_the_end() -> None:
    async def measure() -> None:
        holds = Holds()
        holds.start()
        holds.stop()
        before = list(holds.durations.numbers)
        await asyncio.sleep(3 * TICK_SECONDS)
        assert holds.durations.numbers == before

    asyncio.run(measure())


def test_the_longest_is_told_for_a_while_and_then_no_more() -> None:
    holds = Holds()
    holds.add(0.3, now=0.0)
    holds.add(0.1, now=REMEMBERED_SECONDS - 1)
    assert holds.longest() == 0.3
    holds.add(0.2, now=REMEMBERED_SECONDS)
    assert holds.longest() == 0.3
    holds.add(0.01, now=2 * REMEMBERED_SECONDS)
    assert holds.longest() == 0.2
    holds.add(0.01, now=5 * REMEMBERED_SECONDS)
    assert holds.longest() == 0.01
