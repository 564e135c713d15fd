"""What time it is at a broker, as far as its signed pages tell a verifier."""

from typing import Final

from agentwrit.client.clock import Moment

ROUND_TRIP_SECONDS: Final = 1.0  # what an answer takes beyond that is delay, and none of the broker's time
DRIFT_SECONDS: Final = 1.0  # by which two clocks may part between one answer and the next


class BrokerTime:
    """By how much the broker's clock is ahead of our monotonic one: at least, and at most.

    An answer to a question bounds it on both sides. A page that came unasked may have been kept back by whoever passed
    it on: it shows that the broker's clock is as far ahead as that, and not how much further.
    """

    def __init__(self) -> None:
        self._at_least = float("-inf")
        self._at_most = float("inf")

    @property
    def was_asked_for(self) -> bool:
        """Whether there was an answer."""
        return self._at_most != float("inf")

    def answered(self, issued_at: int, asked_at: float, heard_at: float) -> None:
        """Take in an answer, made in the second `issued_at` and between two moments of the monotonic clock.

        What was known before counts no more: the broker's clock may have been set.
        """
        self._at_least = max(issued_at - heard_at, issued_at - asked_at - ROUND_TRIP_SECONDS)
        self._at_most = issued_at + 1 - asked_at

    def shown(self, issued_at: int, heard_at: float) -> bool:
        """Take in a page that came unasked. Returns whether its date is possible, as far as is known."""
        if issued_at - heard_at > self._at_most + DRIFT_SECONDS:
            return False
        self._at_least = max(self._at_least, issued_at - heard_at)
        return True

    def age(self, issued_at: int, now: float) -> float:
        """How old a page of this date is at least; 0 for one that seems to be ahead of us."""
        return max(0.0, self._at_least + now - issued_at)

    def now(self, at: Moment) -> float:
        """The broker's time (Unix seconds): this machine's, within what the broker's pages leave possible.

        So a clock that is behind lets no token live longer, and one that is ahead lets none die early.
        """
        wall, monotonic = at
        at_least, at_most = self._at_least + monotonic, self._at_most + monotonic
        now = wall if wall < at_most else at_most  # asked with each token: min() and max() would take thrice as long
        return now if now > at_least else at_least
