"""Limits: the bucket of permits, and what is counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import limits
from agentwrit.domain.errors import InvalidRequest, InvalidTTL
from agentwrit.domain.limits import AppUsage
from tests.domain.records import NOW, make_app

NEW = AppUsage(app_id="app-1")


def take(usage: AppUsage, per_second: int, now: float) -> AppUsage | float:
    """The usage after a creation, or when there can be one."""
    usage = limits.refilled(usage, per_second, now)
    at = limits.permit_at(usage, per_second)
    return at if at > now else limits.created(usage, agents=0, permits=1)


def test_a_bucket_begins_full_and_has_at_least_one_permit() -> None:
    usage = take(NEW, 1, NOW)
    assert isinstance(usage, AppUsage)
    assert take(usage, 1, NOW) == NOW + 1
    assert take(usage, 1, NOW + 0.25) == NOW + 1
    assert isinstance(take(usage, 1, NOW + 1), AppUsage)


@given(
    st.integers(1, 50),
    st.lists(st.floats(0, 2), max_size=60),
    st.floats(1, 2_000_000_000),
)
def test_no_pattern_of_creations_is_faster_than_the_rate_and_one_burst(
    per_second: int, waits: list[float], begin: float
) -> None:
    usage, now, made = NEW, begin, 0
    for wait in waits:
        now += wait
        for _ in range(3):
            after = take(usage, per_second, now)
            if isinstance(after, AppUsage):
                usage, made = after, made + 1
    assert made <= per_second + (now - begin) * per_second + 0.001


@given(st.integers(1, 1000), st.floats(0, 0.999))
def test_who_waits_for_as_long_as_is_said_has_a_permit(per_second: int, permits: float) -> None:
    usage = AppUsage(app_id="a", permits=permits, refilled_at=NOW)
    at = limits.permit_at(usage, per_second)
    assert isinstance(take(usage, per_second, NOW + limits.seconds_until(at, NOW)), AppUsage)


def test_agents_that_end_are_taken_away_and_never_more_than_there_were() -> None:
    usage = limits.created(limits.counted(NEW, 2, NOW + 0.9), agents=1, permits=0)
    assert (usage.live_agents, usage.counted_at) == (3, NOW)
    assert limits.without(usage, 2).live_agents == 1
    assert limits.without(usage, 5).live_agents == 0


def test_an_app_cuts_a_life_only_where_it_has_a_limit() -> None:
    assert make_app().cut_ttl(300) == 300
    assert [make_app(max_ttl=60).cut_ttl(ttl) for ttl in (30, 60, 300)] == [30, 60, 60]


def test_what_can_be_a_limit() -> None:
    assert [limits.check("x", limit) for limit in (None, 1, limits.MAX_LIMIT)] == [None, 1, limits.MAX_LIMIT]
    assert [limits.check_max_ttl(ttl) for ttl in (None, 1, 10**9)] == [None, 1, 10**9]
    for limit in (0, -1, limits.MAX_LIMIT + 1):
        with pytest.raises(InvalidRequest, match="max_live_agents"):
            limits.check("max_live_agents", limit)
    with pytest.raises(InvalidTTL, match="max_ttl"):
        limits.check_max_ttl(0)
