"""Whether a verifier can reach its broker, as far as is known, so that not every caller waits to find out.

The rules:

- The feed is lost when following it has failed twice in a row. It is back when all revocations up to now are known.
- When a question to the broker fails, nobody asks for `PAUSE_SECONDS`: callers that would ask get an error at once.
  Then one caller asks, and the others do not meanwhile. The broker is back with an answer, or with the feed.
- The log says when the first of these is lost, and when both are back: once each, however many callers ask.
- A question that can be answered without the broker says nothing about its reach.
"""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Final, TypeVar

from agentwrit.client.exchange import HttpResponse, Plan
from agentwrit.client.following import Following, OpenFeed, Pause, Retry
from agentwrit.client.log import logger
from agentwrit.errors import AgentWritError, BrokerUnavailable, TransportError

T = TypeVar("T")

PAUSE_SECONDS: Final = 1.0
MAX_PAUSE_SECONDS: Final = 5.0  # if the broker, or a proxy, asks for more

_FEED: Final = "its revocations cannot be followed"
_ANSWERS: Final = "it does not answer"


class Reach:
    """What a verifier knows about its broker's reach. Safe to share between threads, and on both sides of a fork."""

    def __init__(self, broker_url: str, monotonic: Callable[[], float]) -> None:
        self.has_heard = False  # whether the broker has ever answered
        self._broker_url = broker_url
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._lost: dict[str, str] = {}  # what is lost, and why
        self._lost_at = 0.0
        self._asks_at = float("-inf")  # when the next caller may ask
        self._is_asking = False
        _all.add(self)

    def check(self) -> None:
        """Fail at once for a caller that would ask a broker that does not answer.

        Raises:
            TransportError: the broker is out of reach.
        """
        if _ANSWERS not in self._lost:  # usually, without a lock
            return
        with self._lock:
            why, now = self._lost.get(_ANSWERS), self._monotonic()
            if why is not None and now >= self._asks_at:
                self._asks_at = now + PAUSE_SECONDS  # this caller asks
                why = None
        if why is not None:
            raise TransportError(f"the broker at {self._broker_url} is out of reach: {why}")

    def check_heard(self) -> None:
        """End the wait for the broker's first answer if none has come in time.

        Raises:
            TransportError: none has come. Other callers now fail without waiting.
        """
        if not self.has_heard:
            error = TransportError(f"the broker at {self._broker_url} did not answer in time")
            self.failed(error)
            raise error

    def left_to_ask(self, timeout: float, waited: float, *, more: float) -> float:
        """How many seconds a check may still ask the broker that has `waited` for its first word: together they are no
        more than `timeout`, and `more` where the broker has answered something.
        """
        return max(0.0, min(timeout, timeout + (more if self.has_heard else 0.0) - waited))

    def asking(self, plan: Plan[T]) -> Plan[T]:
        """Ask the broker. Raises at once what `check` raises."""
        try:
            needed = next(plan)
        except StopIteration as done:
            answer: T = done.value  # the broker is not needed for the answer
            return answer
        self.check()
        if not self._is_asking:
            self._is_asking = True
            logger.info("the known revocations of %s are out of date: it is asked about each token", self._broker_url)
        try:
            while True:
                needed = plan.send((yield needed))
        except StopIteration as done:
            self._back(_ANSWERS)
            answer = done.value
            return answer
        except TransportError as error:
            self.failed(error)
            raise

    def failed(self, error: TransportError) -> None:
        """Record that a question to the broker failed."""
        asked_for = error.retry_after if isinstance(error, BrokerUnavailable) else None
        pause = min(max(PAUSE_SECONDS, asked_for or 0.0), MAX_PAUSE_SECONDS)
        with self._lock:
            self._asks_at = self._monotonic() + pause
        self._away(_ANSWERS, str(error))

    def following(self, following: Following) -> Following:
        """The same steps, watched for failures."""
        failures = 0
        needed = next(following)
        while True:
            match needed:
                case Retry(why=why):
                    if why is not None:
                        failures += 1
                    if why is not None and failures > 1:
                        self._away(_FEED, why)
                case OpenFeed() | Pause():  # all revocations are known
                    failures, self._is_asking = 0, False
                    self._back(_FEED)
                    self._back(_ANSWERS)
            try:
                answer = yield needed
            except AgentWritError as error:
                needed = following.throw(error)
                continue
            if isinstance(answer, HttpResponse) and answer.status == 200:  # other answers may be a proxy's
                self.has_heard = True
            needed = following.send(answer)

    def after_fork(self) -> None:
        """Replace the lock: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def _away(self, what: str, why: str) -> None:
        with self._lock:
            is_first = not self._lost
            if is_first:
                self._lost_at = self._monotonic()
            self._lost[what] = why
        if is_first:
            logger.warning("the broker at %s is out of reach: %s (%s)", self._broker_url, what, why)

    def _back(self, what: str) -> None:
        if what not in self._lost:
            return
        with self._lock:
            was_last = self._lost.pop(what, None) is not None and not self._lost
            seconds = self._monotonic() - self._lost_at
        if was_last:
            logger.warning("the broker at %s is within reach again, after %.0f s", self._broker_url, seconds)


_all: "weakref.WeakSet[Reach]" = weakref.WeakSet()


def _after_fork() -> None:
    for reach in list(_all):
        reach.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
