"""When a broker counts as out of reach, who asks it then, and when that is told."""

import logging
from itertools import islice

import pytest

from agentwrit import BrokerUnavailable, ProblemDetail, TransportError
from agentwrit.client.following import Following, OpenFeed, Pause, Retry
from agentwrit.client.reach import MAX_PAUSE_SECONDS, PAUSE_SECONDS, Reach

AWAY = TransportError("it is away")


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def reach(time: Time) -> Reach:
    return Reach("http://broker", time)


def asks(reach: Reach) -> bool:
    try:
        reach.check()
    except TransportError:
        return False
    return True


def busy(retry_after: float | None) -> BrokerUnavailable:
    problem = ProblemDetail(type="about:blank", title="x", detail="not now", instance="/")
    return BrokerUnavailable(problem, 503, retry_after)


def test_while_a_broker_does_not_answer_one_asks_at_a_time(reach: Reach, time: Time) -> None:
    assert asks(reach)
    reach.failed(AWAY)
    assert not asks(reach)
    time.now += PAUSE_SECONDS
    assert [asks(reach) for _ in range(3)] == [True, False, False]
    time.now += PAUSE_SECONDS
    assert [asks(reach) for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize(
    ("asked_for", "pause"), [(None, PAUSE_SECONDS), (0.0, PAUSE_SECONDS), (3.0, 3.0), (300.0, MAX_PAUSE_SECONDS)]
)
def test_a_broker_is_left_alone_for_as_long_as_it_asks_and_not_for_long(
    reach: Reach, time: Time, asked_for: float | None, pause: float
) -> None:
    reach.failed(busy(asked_for))
    time.now += pause - 0.01
    assert not asks(reach)
    time.now += 0.01
    assert asks(reach)


def test_a_feed_is_lost_when_it_fails_twice_and_back_when_it_is_followed(
    reach: Reach, caplog: pytest.LogCaptureFixture
) -> None:
    def following() -> Following:
        yield Retry(0.0, "once")
        yield OpenFeed("/", 1.0)
        for why in ("once", "twice", "thrice"):
            yield Retry(0.0, why)
        yield Pause(1.0)
        yield Pause(1.0)

    with caplog.at_level(logging.WARNING, "agentwrit"):
        counts = [len(caplog.messages) for _ in islice(reach.following(following()), 7)]
    assert counts == [0, 0, 0, 1, 1, 2, 2]
    lost, back = caplog.messages
    assert "out of reach" in lost
    assert "twice" in lost
    assert "within reach again" in back


def test_what_is_left_to_ask_is_what_was_not_waited_for(reach: Reach) -> None:
    assert [reach.left_to_ask(1.0, waited, more=5.0) for waited in (0.0, 0.75, 1.5)] == [1.0, 0.25, 0.0]
    reach.has_heard = True
    assert [reach.left_to_ask(1.0, waited, more=5.0) for waited in (0.75, 5.0, 5.75, 7.0)] == [1.0, 1.0, 0.25, 0.0]
