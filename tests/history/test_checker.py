"""The checker itself: histories that can be, and histories that cannot."""

from collections.abc import Sequence

import pytest

from tests.history.checker import Kind, Logged, Operation, Told, Violation, check

YES, NO, NOTHING = Told.YES, Told.NO, Told.NOTHING


def register(told: Told, asked_at: float, answered_at: float, made: str = "", token: str = "launch") -> Operation:
    return Operation(Kind.REGISTER, token, told, asked_at, answered_at, made)


def release(told: Told, asked_at: float, answered_at: float, sid: str = "s") -> Operation:
    return Operation(Kind.RELEASE, sid, told, asked_at, answered_at)


def validate(told: Told, asked_at: float, answered_at: float, sid: str = "s") -> Operation:
    return Operation(Kind.VALIDATE, sid, told, asked_at, answered_at)


REGISTERED, RELEASED = Logged("agent_registered", "s"), Logged("token_released", "s")


@pytest.mark.parametrize(
    ("history", "log"),
    [
        ([validate(YES, 0, 1), release(YES, 2, 3), validate(NO, 4, 5)], [RELEASED]),
        # Asked while the release was under way: either answer can be.
        ([release(YES, 0, 9), validate(NO, 1, 2), validate(NO, 3, 4)], [RELEASED]),
        ([release(YES, 0, 9), validate(YES, 1, 8), validate(NO, 2, 3)], [RELEASED]),
        # A release whose answer was lost has happened at some time, or never.
        ([release(NOTHING, 0, 1), validate(YES, 2, 3), validate(NO, 4, 5)], [RELEASED]),
        ([release(NOTHING, 0, 1), validate(YES, 2, 3)], []),
        ([release(YES, 0, 5), release(NO, 1, 2)], [RELEASED]),
        ([register(YES, 0, 1, "s"), register(NO, 0, 2)], [REGISTERED]),
        ([register(NOTHING, 0, 1), register(NO, 2, 3)], [REGISTERED]),
        ([register(NOTHING, 0, 1), register(YES, 2, 3, "s")], [REGISTERED]),
    ],
)
def test_a_history_that_can_be_is_accepted(history: Sequence[Operation], log: Sequence[Logged]) -> None:
    check(history, log)


@pytest.mark.parametrize(
    ("history", "log", "reason"),
    [
        ([release(YES, 0, 1), validate(YES, 2, 3)], [RELEASED], "valid after it was dead"),
        ([release(YES, 0, 9), validate(NO, 1, 2), validate(YES, 3, 4)], [RELEASED], "valid after it was dead"),
        ([release(NOTHING, 0, 1), validate(NO, 2, 3), validate(YES, 4, 5)], [RELEASED], "valid after it was dead"),
        ([validate(NO, 0, 1)], [], "dead before anybody"),
        ([validate(NO, 0, 1), release(YES, 2, 3)], [RELEASED], "dead before anybody"),
        ([release(NO, 0, 1)], [], "dead before anybody"),
        (
            [register(YES, 0, 1, "s"), register(YES, 0, 1, "t")],
            [REGISTERED, Logged("agent_registered", "t")],
            "2 times",
        ),
        ([register(NO, 0, 1)], [], "before anybody had used it"),
        ([register(NO, 0, 1), register(YES, 2, 3, "s")], [REGISTERED], "before anybody had used it"),
        ([release(YES, 0, 1)], [], "not in the log"),
        ([release(YES, 0, 1)], [RELEASED, RELEASED], "twice"),
        ([], [RELEASED], "nobody asked"),
        ([], [REGISTERED], "nobody asked"),
        ([register(YES, 0, 1, "s"), release(YES, 2, 3)], [RELEASED, REGISTERED], "asked later"),
    ],
)
def test_a_history_that_cannot_be_is_found(history: Sequence[Operation], log: Sequence[Logged], reason: str) -> None:
    with pytest.raises(Violation, match=reason):
        check(history, log)
