"""Time that never runs backwards."""

import time

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.broker.clock import (
    CATCH_UP_RATE,
    MAX_GAP_SECONDS,
    MAX_STEP_SECONDS,
    SLEPT_SECONDS,
    STEPS_SECONDS,
    Clock,
    DatabaseTime,
)
from agentwrit.broker.services import timekeeping as timekeeping_module
from agentwrit.broker.services.timekeeping import Timekeeping
from agentwrit.domain.errors import ConfigurationError

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


class Guarded(Source):
    """A source whose machine can sleep, and the clock of a broker that goes by it."""

    def __init__(self) -> None:
        super().__init__()
        self.slept = 7.0
        self.clock_of_broker = Clock(
            lambda: self.wall, lambda: self.monotonic, max_step=MAX_STEP_SECONDS, max_gap=MAX_GAP_SECONDS,
            slept=lambda: self.slept,
        )  # fmt: skip

    def now(self) -> float:
        return self.clock_of_broker.now()


@pytest.mark.parametrize("step", [MAX_STEP_SECONDS + 1, 3600.0, 3650 * 86_400.0])
def test_a_clock_that_steps_ahead_is_not_believed_and_time_goes_on_by_itself(step: float) -> None:
    source = Guarded()
    source.wait(10)
    source.wall += step
    for _ in range(5):
        assert source.now() == source.wall - step
        assert source.clock_of_broker.offset() == step
        source.wait(1)
    source.wall -= step
    assert source.now() == source.wall
    assert source.clock_of_broker.offset() == 0
    assert source.clock_of_broker.most_ahead() == step
    assert source.clock_of_broker.most_ahead() == 0


def test_a_small_step_ahead_is_believed() -> None:
    source = Guarded()
    source.wall += MAX_STEP_SECONDS
    assert source.now() == source.wall
    assert source.clock_of_broker.most_ahead() == 0


def test_many_small_steps_are_believed_no_further_than_a_large_one() -> None:
    source = Guarded()
    for _ in range(100):
        source.wait(1)
        source.wall += 1
        source.now()
    assert 0 <= source.now() - (START + 100 + MAX_STEP_SECONDS) <= 2
    source.wall = START + 100 + MAX_STEP_SECONDS
    source.wait(STEPS_SECONDS)
    source.wall += MAX_STEP_SECONDS
    assert source.now() == source.wall


def test_a_clock_that_runs_a_little_fast_is_believed_for_ever() -> None:
    source = Guarded()
    for _ in range(1000):
        source.wait(60)
        source.wall += 60 * 0.0005  # as far as NTP slews one
        assert source.now() == source.wall


def test_a_broker_that_nobody_asked_for_hours_has_taken_no_step() -> None:
    source = Guarded()
    source.wait(10 * 3600)
    assert source.now() == source.wall


def test_a_machine_that_was_asleep_is_believed_for_as_long_as_it_was() -> None:
    for asleep, stepped, is_believed in ((3600, 3600, True), (3600, 3600 + 61, False), (0, 3600, False)):
        source = Guarded()
        source.slept += asleep
        source.wall += stepped
        assert (source.now() == source.wall) is is_believed


def test_a_sleep_from_before_makes_no_later_step_believed() -> None:
    source = Guarded()
    source.slept += 3600
    source.wall += 3600
    assert source.now() == source.wall
    source.wait(SLEPT_SECONDS + 1)
    source.wall += 3600
    assert source.now() == source.wall - 3600
    source.wall -= 3600
    source.wait(SLEPT_SECONDS + 1)
    source.wall += 3600
    assert source.now() == source.wall - 3600


def test_a_source_that_hears_later_of_a_sleep_is_believed_as_well() -> None:
    """A database's time is told by our monotonic clock until the database is asked again."""
    source = Guarded()
    source.slept += 3600
    source.wait(2)
    assert source.now() == source.wall
    source.wall += 3600
    assert source.now() == source.wall


@pytest.mark.parametrize("gap", [0.0, 3600.0, MAX_GAP_SECONDS])
def test_a_store_that_was_used_not_too_long_ago_is_gone_on_with(gap: float) -> None:
    source = Guarded()
    source.clock_of_broker.resume(START - gap)
    assert source.now() == START
    source.clock_of_broker.resume(0.0)


def test_a_store_that_was_used_too_long_ago_is_not_gone_on_with_before_somebody_says_so() -> None:
    source = Guarded()
    with pytest.raises(ConfigurationError, match=r"2027-01-15T08:00:00Z.*2026-12-.*agentwrit store clock"):
        source.clock_of_broker.resume(START - MAX_GAP_SECONDS - 1)
    Clock(lambda: START).resume(1.0)


def test_the_operator_is_told_once_what_is_wrong_with_the_clock_and_once_that_it_is_over() -> None:
    source = Guarded()
    timekeeping = Timekeeping(source.clock_of_broker)

    def look(seconds: float = 5) -> list[tuple[str, str]]:
        source.wait(seconds)
        source.now()
        with structlog.testing.capture_logs() as lines:
            timekeeping.look()
        return [(line["log_level"], line["event"]) for line in lines]

    assert look() == []
    source.wall += 3600
    assert look() == [("error", timekeeping_module.AHEAD)]
    assert look() == []
    source.wall -= 3600
    assert look() == [("info", timekeeping_module.AGREED)]
    source.wall += 3600
    source.now()
    source.wall -= 3600
    assert look() == [("error", timekeeping_module.WAS_AHEAD)]
    source.wall -= 3600
    assert look() == [("error", timekeeping_module.BEHIND)]
    assert look() == []
    assert look(7200) == [("info", timekeeping_module.AGREED)]


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
