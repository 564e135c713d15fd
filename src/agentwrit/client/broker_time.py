"""The broker's time, as far as its signed pages tell a verifier."""

from typing import Final

from agentwrit.client.clock import Moment

ROUND_TRIP_SECONDS: Final = 1.0  # further delay of an answer is not counted as the broker's time
DRIFT_SECONDS: Final = 1.0  # by which two clocks may drift apart between two answers


class BrokerTime:
    """How far the broker's clock is ahead of the local monotonic clock: a lower and an upper bound.

    An answer to a question bounds it on both sides. A page that arrived unasked may have been delayed on its way: it
    gives a lower bound only.
    """

    def __init__(self) -> None:
        self._at_least = float("-inf")
        self._at_most = float("inf")

    @property
    def was_asked_for(self) -> bool:
        """Whether an answer to a question has been received."""
        return self._at_most != float("inf")

    def answered(self, issued_at: int, asked_at: float, heard_at: float) -> None:
        """Take in an answer that was made in the second `issued_at`, between two moments of the monotonic clock.

        It replaces the previous bounds, because the broker's clock may have been set.
        """
        self._at_least = max(issued_at - heard_at, issued_at - asked_at - ROUND_TRIP_SECONDS)
        self._at_most = issued_at + 1 - asked_at

    def shown(self, issued_at: int, heard_at: float) -> bool:
        """Take in a page that arrived unasked. Returns whether its date is possible by present knowledge."""
        if issued_at - heard_at > self._at_most + DRIFT_SECONDS:
            return False
        self._at_least = max(self._at_least, issued_at - heard_at)
        return True

    def age(self, issued_at: int, now: float) -> float:
        """The minimum age of a page with this date in seconds; 0 if the date seems to lie ahead."""
        return max(0.0, self._at_least + now - issued_at)

    def now(self, at: Moment) -> float:
        """The broker's time (Unix seconds): this machine's, limited to what the broker's pages allow.

        So a local clock that is behind lets no token live longer, and a clock that is ahead lets no token die early.
        """
        wall, monotonic = at
        at_least, at_most = self._at_least + monotonic, self._at_most + monotonic
        now = wall if wall < at_most else at_most  # runs for each token: min() and max() would take three times as long
        return now if now > at_least else at_least
