"""Whether a broker is within a verifier's reach, as far as is known: so that not everybody waits to find that out.

The rules:

- Its feed is lost when it cannot be followed, and once more it cannot; it is back when all is known up to then.
- When asking the broker fails, nobody asks for `PAUSE_SECONDS`: whoever would have is told at once. Then one asks, and
  meanwhile nobody else. It is back with an answer, or with the feed.
- When the first of these is lost that is logged, and when none of them is any more: once each, however many ask.
- What is asked without a broker's answer, because nothing has to be asked, says nothing of its reach.
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
    """What one verifier knows of its broker's reach. Safe to share between threads, and on both sides of a fork."""

    def __init__(self, broker_url: str, monotonic: Callable[[], float]) -> None:
        self.has_heard = False  # whether the broker has ever answered anything
        self._broker_url = broker_url
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._lost: dict[str, str] = {}  # what is lost, and why
        self._lost_at = 0.0
        self._asks_at = float("-inf")  # when the next one may ask
        self._is_asking = False
        _all.add(self)

    def check(self) -> None:
        """Let whoever would ask the broker know at once that it does not answer.

        Raises:
            TransportError: it does not.
        """
        if _ANSWERS not in self._lost:  # as a rule, without a lock
            return
        with self._lock:
            why, now = self._lost.get(_ANSWERS), self._monotonic()
            if why is not None and now >= self._asks_at:
                self._asks_at = now + PAUSE_SECONDS  # this one asks
                why = None
        if why is not None:
            raise TransportError(f"the broker at {self._broker_url} is out of reach: {why}")

    def check_heard(self) -> None:
        """Whoever has waited for the broker's first word, and waited long enough, need not wait if none came.

        Raises:
            TransportError: none came. Nobody else waits for it now.
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
        """Ask the broker something. Raises at once what `check` raises."""
        try:
            needed = next(plan)
        except StopIteration as done:
            answer: T = done.value  # it takes nobody to answer that
            return answer
        self.check()
        if not self._is_asking:
            self._is_asking = True
            logger.info("what is known of the revocations of %s is out of date: it is asked instead", self._broker_url)
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
        """Asking has failed."""
        asked_for = error.retry_after if isinstance(error, BrokerUnavailable) else None
        pause = min(max(PAUSE_SECONDS, asked_for or 0.0), MAX_PAUSE_SECONDS)
        with self._lock:
            self._asks_at = self._monotonic() + pause
        self._away(_ANSWERS, str(error))

    def following(self, following: Following) -> Following:
        """The same work, watched."""
        failures = 0
        needed = next(following)
        while True:
            match needed:
                case Retry(why=why):
                    if why is not None:
                        failures += 1
                    if why is not None and failures > 1:
                        self._away(_FEED, why)
                case OpenFeed() | Pause():  # what is known is up to date
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
        """Another thread of the parent may have held the lock."""
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
