"""What a verifier knows of revocations, and when it relies on it, whoever passes the feed on and whatever clocks do."""

import pytest
from msgspec import UNSET

from agentwrit.client.clock import SYSTEM_CLOCK
from agentwrit.client.revocations import (
    KEPT_SECONDS,
    MAX_DIFFERENCE_SECONDS,
    BeginAgain,
    OtherHistory,
    OutOfStep,
)
from agentwrit.domain import feed
from agentwrit.domain.errors import InvalidToken
from agentwrit.domain.jws import Ed25519Signer
from tests.client.signed_feed import ANOTHER, EPOCH, LATER, NOW, World, entries_of


@pytest.fixture
def world() -> World:
    """A verifier that is up to date."""
    world = World()
    world.known.begin(world.snapshot(("dead", LATER)))
    world.ask()
    assert world.known.staleness() == 0
    return world


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_a_snapshot_alone_makes_nobody_fresh() -> None:
    world = World()
    world.known.begin(world.snapshot(("dead", LATER)))
    assert world.knows("dead")
    assert world.known.staleness() == float("inf")


def test_a_page_that_was_skipped_makes_those_after_it_worth_nothing(world: World) -> None:
    world.passes(1)
    world.page(("withheld", LATER))
    for entries in ([], [("next", LATER)], []):
        world.passes(1)
        with pytest.raises(OutOfStep):
            world.beat(*entries)
    assert world.known.staleness() == 4
    assert world.knows("next")  # whatever is missing before it
    assert world.ask(first=1, last=2, head=2, entries=entries_of([("withheld", LATER), ("next", LATER)])) == 0
    assert world.known.staleness() == 0
    assert world.knows("withheld")


def test_a_page_that_does_not_reach_the_head_makes_nobody_fresh(world: World) -> None:
    world.passes(3)
    assert world.beat(("one", LATER), head=5) == 4
    assert world.knows("one")
    assert world.known.staleness() == 3


def test_a_snapshot_that_was_kept_for_ever_loses_nothing(world: World) -> None:
    kept = world.snapshot(("dead", LATER))
    world.beat(("later", LATER))
    world.known.begin(kept)
    assert (world.known.last, world.knows("later")) == (1, True)
    late = World()
    late.known.begin(kept)
    assert late.known.staleness() == float("inf")
    late.ask(first=1, last=1, head=1, entries=entries_of([("later", LATER)]), log=late.place(101))
    assert late.known.staleness() == 0
    assert late.knows("later")


def test_a_kept_snapshot_of_an_epoch_that_is_over_makes_nobody_fresh(world: World) -> None:
    kept = world.snapshot(("dead", LATER))
    world.epoch = ANOTHER
    for _ in range(3):
        world.passes(1)
        with pytest.raises(BeginAgain):
            world.beat()
        world.known.begin(kept)
        with pytest.raises(BeginAgain):
            world.ask()
        assert world.known.staleness() == float("inf")


def test_what_is_dead_stays_dead_through_every_new_beginning(world: World) -> None:
    world.beat(("later", LATER))
    world.epoch = ANOTHER
    world.known.begin(world.snapshot(head=0))
    world.ask(first=1, last=0, head=0)
    assert world.knows("dead")
    assert world.knows("later")


# -- histories --------------------------------------------------------------------------------------------------------


def test_a_history_that_lost_what_was_seen_is_not_gone_on_with(world: World) -> None:
    """A standby without the last commit was promoted, and the numbers are given again."""
    world.beat(("lost", LATER))
    world.passes(1)
    world.history, world.head, world.log = "b", 0, 100
    with pytest.raises(OutOfStep):
        world.ask()  # it is behind what was seen
    world.page(("other", LATER))
    for entries in ([], [("third", LATER)], []):
        world.passes(1)
        with pytest.raises(OtherHistory):
            world.beat(*entries)
        with pytest.raises(OtherHistory):
            world.ask()
        assert world.known.staleness() == float("inf")
        assert world.known.is_forked
    assert world.knows("lost")
    assert world.knows("third")  # whatever history it is of
    world.epoch = ANOTHER
    with pytest.raises(BeginAgain):
        world.beat()
    world.known.begin(world.snapshot())
    world.ask()
    assert world.known.staleness() == 0
    assert not world.known.is_forked
    assert world.knows("lost")


def test_a_snapshot_of_the_other_history_does_not_hide_that_it_is_another(world: World) -> None:
    world.history = "b"
    with pytest.raises(OtherHistory):
        world.known.begin(world.snapshot())
    world.epoch = ANOTHER
    world.known.begin(world.snapshot())
    world.epoch = EPOCH
    world.log += 1
    world.known.begin(world.snapshot())  # by whoever kept one: what was known of the epoch is known still
    with pytest.raises(OtherHistory):
        world.ask()
    assert not world.known.have_begun  # that snapshot is of no use


def test_the_history_that_is_known_is_gone_on_with_when_it_is_back(world: World) -> None:
    """Two brokers behind one name, of which one is on another history."""
    world.history = "b"
    with pytest.raises(OtherHistory):
        world.ask()
    world.history = "a"
    world.beat()
    assert world.known.staleness() == 0
    assert not world.known.is_forked


def test_what_was_taken_of_another_history_does_not_count_when_the_known_one_is_back(world: World) -> None:
    """Two brokers behind one name, who answer by turns someone that has much to catch up with."""
    sure = world.known.last
    world.history = "b"
    for _ in range(2):  # full pages, from wherever: they do not say what they go on from
        world.known.advance(world.page(*((f"b-{number}", LATER) for number in range(feed.PAGE_SIZE)), head=10_000))
    assert world.known.last == sure + 2 * feed.PAGE_SIZE
    world.history = "a"
    with pytest.raises(OtherHistory):
        world.ask()
    assert world.known.staleness() == float("inf")
    assert world.known.last == sure
    world.head = sure
    world.beat(("a-1", LATER))
    assert world.known.staleness() == 0
    assert world.knows("a-1")


def test_full_pages_are_gone_on_from_once_they_are_covered(world: World) -> None:
    for _ in range(3):
        world.known.advance(world.page(*((f"sid-{world.log}-{n}", LATER) for n in range(feed.PAGE_SIZE)), head=10_000))
    assert len(world.known.places) == 4
    world.passes(1)
    world.known.advance(world.page(since=world.known.places[1:]))
    assert world.known.staleness() == 1
    world.known.advance(world.page(since=world.known.places))
    assert world.known.staleness() == 0
    assert world.known.places == [world.log]


def test_who_begins_with_a_snapshot_of_another_history_begins_again() -> None:
    world = World()
    world.history = "b"
    world.known.begin(world.snapshot())
    world.history = "a"
    with pytest.raises(BeginAgain):
        world.ask()
    assert not world.known.have_begun
    world.known.begin(world.snapshot())
    world.ask()
    assert world.known.staleness() == 0


def test_an_answer_that_ends_before_what_was_seen_is_of_another_history(world: World) -> None:
    world.log -= 1
    question = world.known.question()
    with pytest.raises(OtherHistory):
        world.known.advance(world.page(question=question), question)
    assert world.known.is_forked


def test_a_page_from_before_what_was_seen_is_merely_late(world: World) -> None:
    kept = world.page(since=[world.log])
    world.log += 1
    world.passes(1)
    world.beat()
    assert world.known.staleness() == 0
    world.passes(1)
    world.known.advance(kept)
    assert world.known.staleness() == 1
    assert not world.known.is_forked


def test_a_page_that_does_not_say_what_it_goes_on_from_makes_nobody_fresh(world: World) -> None:
    world.passes(2)
    world.log += 1
    world.known.advance(world.page())
    assert world.known.staleness() == 2
    world.ask()
    assert world.known.staleness() == 0


def test_a_page_may_go_on_from_one_of_several_places(world: World) -> None:
    seen = world.log
    world.log += 5
    world.passes(1)
    world.known.advance(world.page(since=[seen - 7, seen, seen + 2]))
    assert world.known.staleness() == 0
    assert world.known.places == [seen + 5]


def test_where_the_log_was_archived_a_verifier_from_before_goes_on(world: World) -> None:
    archived = feed.Place(world.log, "")
    world.log += 1000
    world.passes(1)
    world.known.advance(world.page())
    assert world.known.staleness() == 1  # it does not say so
    world.known.advance(world.page(places=(archived,)))
    assert world.known.staleness() == 0
    assert world.known.places == [world.log]


def test_brokers_that_do_not_say_where_their_log_ends_are_believed_as_before(world: World) -> None:
    world.passes(1)
    world.known.advance(world.page(("dead too", LATER), log=UNSET))
    assert world.known.staleness() == 0
    assert world.knows("dead too")


# -- clocks -----------------------------------------------------------------------------------------------------------


def test_an_answer_is_as_fresh_as_the_question(world: World) -> None:
    question = world.known.question()
    world.passes(2)
    world.known.advance(world.page(question=question, since=[world.log]), question)
    assert world.known.staleness() == 2


def test_the_answer_to_another_question_is_a_page_like_any_other(world: World) -> None:
    world.passes(10)
    old = world.known.question()
    kept = world.page(question=old, since=[world.log])
    world.passes(10)
    world.known.advance(kept, world.known.question())
    assert world.known.staleness() == 10


@pytest.mark.parametrize("difference", [-MAX_DIFFERENCE_SECONDS + 5, -60, 60, 3600, 10 * 365 * 86_400])
def test_what_time_a_broker_has_matters_to_no_answer(difference: float) -> None:
    world = World()
    world.broker += difference
    world.known.begin(world.snapshot())
    for _ in range(5):
        world.ask()
        assert world.known.staleness() == 0
        world.passes(1)
        world.beat()
        assert world.known.staleness() == 0
    assert abs(world.known.now() - world.broker) <= 1


@pytest.mark.parametrize("ahead", [60, 3600, 10 * 365 * 86_400])
def test_a_brokers_clock_that_is_set_right_makes_nobody_stale_for_good(ahead: float) -> None:
    world = World()
    world.broker += ahead
    world.known.begin(world.snapshot())
    world.ask()
    world.broker -= ahead
    world.passes(1)
    world.beat()
    assert world.known.staleness() == 1  # by its date it is old
    try:
        world.ask()
    except BeginAgain:  # it is so much earlier that what was forgotten may matter
        world.known.begin(world.snapshot())
        world.ask()
    assert world.known.staleness() == 0
    for _ in range(5):
        world.passes(1)
        world.beat()
        assert world.known.staleness() == 0


def test_a_brokers_clock_that_goes_at_half_speed_looks_late_until_it_is_asked(world: World) -> None:
    for _ in range(10):
        world.passes(1, at_broker=0.5)
        world.beat()
    assert 4 <= world.known.staleness() <= 6
    world.ask()
    assert world.known.staleness() == 0


def test_a_page_dated_ahead_makes_nobody_fresh(world: World) -> None:
    """One that a mirror kept from when the broker's clock was ahead."""
    ahead = [world.page(since=[world.log], issued_at=int(NOW) + 3600 + number) for number in range(60)]
    world.passes(3)
    for page in ahead:
        world.known.advance(page)
        assert world.known.staleness() >= 3
        world.passes(1)


def test_a_page_dated_ahead_makes_nobody_fresh_for_longer_where_none_was_asked_for() -> None:
    world = World()
    world.known.begin(world.snapshot())
    world.beat(issued_at=int(NOW) + 3600)
    assert world.known.staleness() == 0
    world.passes(10)
    assert world.known.staleness() == 10
    world.beat(issued_at=int(NOW) + 3600)
    assert world.known.staleness() == 10


def test_a_page_that_is_passed_on_again_grows_old(world: World) -> None:
    world.passes(1)
    kept = world.page(since=[world.log])
    for age in range(5):
        world.known.advance(kept)
        assert world.known.staleness() == age
        world.passes(1)


def test_pages_that_are_passed_on_late_look_as_late_as_they_are() -> None:
    """By whoever holds everything back from the beginning, but for the answer, which cannot be."""
    world = World()
    world.known.begin(world.snapshot())
    world.ask()
    kept = [world.page(since=[world.log], issued_at=int(world.broker) + second) for second in range(20)]
    world.passes(10)
    for age in range(10):
        world.known.advance(kept[age])
        assert world.known.staleness() >= 10 - 1
        world.passes(1)


def test_a_machine_whose_clock_is_far_ahead_relies_on_nothing(world: World) -> None:
    world.wall += 3600
    world.passes(1)
    world.ask()
    world.beat()
    assert world.known.staleness() >= 3600 - MAX_DIFFERENCE_SECONDS


def test_tokens_end_by_the_brokers_clock_where_it_is_asked(world: World) -> None:
    for difference in (-3600.0, -2.0, 2.0, 200.0):
        world.wall = world.broker + difference
        world.ask()
        assert abs(world.known.now() - world.broker) <= 1


@pytest.mark.parametrize("seconds", [6, 60, 86_400])
def test_a_machine_that_slept_is_stale_whatever_its_monotonic_clock_says(world: World, seconds: float) -> None:
    world.passes(0, by_wall=seconds)
    assert world.known.staleness() == seconds


def test_a_clock_that_is_set_back_makes_nothing_look_fresh(world: World) -> None:
    world.passes(10, by_wall=-3600)
    assert world.known.staleness() == 10


def test_the_monotonic_clock_goes_on_while_the_machine_sleeps() -> None:
    import time

    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    assert abs(SYSTEM_CLOCK.monotonic() - time.clock_gettime(clock)) < 1


def test_where_it_is_earlier_than_it_was_what_was_forgotten_is_fetched_again() -> None:
    world = World()
    world.broker += 3600
    world.known.begin(world.snapshot(("dead", int(NOW) + 600)))
    world.ask()
    assert not world.knows("dead")  # and no token of that time is unexpired
    world.broker -= 3600
    world.passes(1)
    with pytest.raises(BeginAgain):
        world.ask()
    assert world.known.staleness() == float("inf")
    world.known.begin(world.snapshot(("dead", int(NOW) + 600)))
    world.ask()
    assert world.known.staleness() == 0
    assert world.knows("dead")


def test_what_is_forgotten_is_kept_for_as_long_as_it_may_be_earlier(world: World) -> None:
    world.beat(("brief", int(NOW) + 10))
    world.passes(10 + KEPT_SECONDS - 1)
    world.ask()
    assert world.knows("brief")
    world.passes(2)
    world.ask()
    assert not world.knows("brief")


# -- signatures -------------------------------------------------------------------------------------------------------


def test_what_the_broker_did_not_sign_says_nothing(world: World) -> None:
    other = Ed25519Signer(bytes(32))
    page = feed.Page(iss="agentwrit", epoch=EPOCH, first=1, last=0, head=0, issued_at=int(NOW))
    world.passes(2)
    for token in (feed.sign_page(page, other), world.snapshot(), "a.b.c", ""):
        with pytest.raises(InvalidToken):
            world.known.advance(token)
    with pytest.raises(InvalidToken):
        world.known.begin(world.page())
    assert world.known.staleness() == 2
