"""Time that never runs backwards."""

import time

from hypothesis import given
from hypothesis import strategies as st

from agentwrit.broker.clock import CATCH_UP_RATE, Clock, DatabaseTime

START = 1_800_000_000.0


class Source:
    """Where a clock's time comes from."""

    def __init__(self) -> None:
        self.wall = START
        self.monotonic = 500.0

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.monotonic)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def test_an_undisturbed_clock_tells_the_systems_time() -> None:
    source = Source()
    clock = source.clock()
    for _ in range(5):
        source.wait(1.5)
        assert clock.now() == source.wall


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-1000, 1000)), max_size=20))
def test_no_reading_is_below_an_earlier_one_or_below_the_systems(steps: list[tuple[float, float]]) -> None:
    source = Source()
    clock, last = source.clock(), START
    for waited, stepped in steps:
        source.wait(waited)
        source.wall += stepped
        now = clock.now()
        assert now >= last
        assert now >= source.wall
        last = now


def test_after_a_step_back_time_goes_on_slower_until_it_is_caught_up_with() -> None:
    source = Source()
    clock = source.clock()
    source.wall -= 100
    assert clock.now() == START
    source.wait(10)
    assert clock.now() == START + 10 * CATCH_UP_RATE
    source.wait(190)
    assert clock.now() == source.wall == START + 100
    source.wait(1)
    assert clock.now() == START + 101


def test_no_reading_is_below_a_mark_that_was_stored() -> None:
    source = Source()
    clock = source.clock()
    clock.advance_to(START + 60)
    assert clock.now() == START + 60
    clock.advance_to(START - 60)
    source.wait(2)
    assert clock.now() == START + 60 + 2 * CATCH_UP_RATE
    source.wait(1000)
    assert clock.now() == source.wall


def test_the_time_of_a_database_stays_within_what_each_of_its_answers_allows() -> None:
    told = DatabaseTime(1000.0, 10.0, 10.2)  # somewhere between 989.8 and 990 ahead of our clock
    assert abs(ahead(told) - 989.9) < 0.001
    told.observe(1010.0, 20.0, 20.5)  # from 989.5 to 990: it may be what it was
    assert abs(ahead(told) - 989.9) < 0.001
    told.observe(1020.0, 30.0, 30.01)  # from 989.99 to 990
    assert abs(ahead(told) - 989.99) < 0.001
    told.observe(1000.0, 40.0, 40.01)  # it was set back
    assert abs(ahead(told) - 960.0) < 0.001


def ahead(told: DatabaseTime) -> float:
    return told() - time.monotonic()
