"""Units of work that wait, and running one of them inside of a transaction that several share."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from agentwrit.broker.storage.base import Denied, Row, Transaction
from agentwrit.broker.storage.sql import Session
from agentwrit.broker.storage.sql_rows import SqlTransaction
from agentwrit.domain.errors import AgentWritError, Unavailable

T = TypeVar("T")
S = TypeVar("S", bound=SqlTransaction)

MAX_WAITING_UNITS: Final = 4096


class Waiting(NamedTuple):
    """A unit that somebody waits for. `since`: of the monotonic clock; `reads`: what it is known to read."""

    unit: Callable[[Transaction], Any]
    answer: asyncio.Future[Any]
    since: float
    reads: Sequence[Row]


class Queue(deque[Waiting]):
    """Units that wait. `take_up` is called once for all that have come in a turn of the event loop, at its end."""

    def __init__(self, take_up: Callable[[], object]) -> None:
        super().__init__()
        self._take_up = take_up
        self._is_called = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def put(self, unit: Callable[[Transaction], T], reads: Sequence[Row], *, ahead: int = 0) -> asyncio.Future[T]:
        """Put a unit at the end. Returns its answer to be. `ahead`: how many were taken out, and still wait.

        Raises:
            Unavailable: too many wait already.
        """
        if ahead + len(self) >= MAX_WAITING_UNITS:
            raise Unavailable("the broker is busy", cause="busy")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # which asks the system, each time
        answer: asyncio.Future[T] = self._loop.create_future()
        self.append(Waiting(unit, answer, time.monotonic(), reads))
        self.call()
        return answer

    def call(self) -> None:
        """Have `take_up` called at the end of the turn, if anything is left."""
        if self and not self._is_called and self._loop is not None:
            self._is_called = True
            self._loop.call_soon(self._called)

    def _called(self) -> None:
        self._is_called = False
        self._take_up()


class Outcome(NamedTuple):
    """What a unit came to, to be told once it is durable."""

    answer: asyncio.Future[Any]
    value: Any
    error: BaseException | None


def run(
    waiting: Waiting,
    begin: Callable[[], S],
    *,
    undo: Callable[[], object] = lambda: None,
    is_passed_on: Callable[[Exception], bool],
) -> tuple[Outcome, S]:
    """Run a unit. Returns what it came to, and the transaction with what is left of it.

    `begin` gives a transaction that goes on from where the last unit ended, and `undo` undoes all of one. What the
    unit raises is its caller's to see, and no other's, unless it `is_passed_on`.
    """
    transaction = begin()
    try:
        return Outcome(waiting.answer, waiting.unit(transaction), None), transaction
    except Denied as denied:
        undo()
        transaction = begin()
        for event in denied.events:
            transaction.record(event)
        return Outcome(waiting.answer, None, denied.error), transaction
    except Exception as error:
        if is_passed_on(error):
            raise
        undo()
        return Outcome(waiting.answer, None, _without_frames(error)), begin()


def _without_frames(error: Exception) -> Exception:
    """An error for whoever awaits a unit. Its frames would hold the unit, with it what the error is delivered in, and
    so all of it until the garbage collector comes. Those of a defect are kept: somebody has to find it.
    """
    return error.with_traceback(None) if isinstance(error, AgentWritError) else error


def run_in_savepoint(
    waiting: Waiting, session: Session, begin: Callable[[], S], *, is_stores_fault: Callable[[Exception], bool]
) -> tuple[Outcome, S]:
    """As `run`, in a transaction that others share. What is the store's fault ends the batch: it is raised."""
    session.execute("SAVEPOINT unit")
    done = run(waiting, begin, undo=lambda: session.execute("ROLLBACK TO unit"), is_passed_on=is_stores_fault)
    session.execute("RELEASE unit")
    return done


def deliver(outcomes: Iterable[Outcome]) -> None:
    """Tell those who wait what their units came to."""
    for answer, value, error in outcomes:
        if answer.cancelled():
            continue
        if error is None:
            answer.set_result(value)
        else:
            answer.set_exception(error)


def fail(
    answers: Iterable[asyncio.Future[Any]], detail: str, error: BaseException, *, cause: str = "store_write"
) -> None:
    """Tell those who wait that the store is out of order."""
    for answer in answers:
        if not answer.cancelled():
            refusal = Unavailable(detail, cause=cause)
            refusal.__cause__ = error
            answer.set_exception(refusal)
