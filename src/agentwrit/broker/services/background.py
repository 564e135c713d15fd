"""Background work: it continues after any failure, and failures are reported to the operator."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Final

import structlog

from agentwrit.broker.metrics import Metrics
from agentwrit.domain.errors import Unavailable

PATIENCE_SECONDS: Final = 30.0  # for an unreachable store, which health reports by itself

log = structlog.get_logger("agentwrit.background")


class Work(StrEnum):
    """The kinds of background work, by their names in metrics and health."""

    FEED = "feed"
    CHECKPOINTS = "checkpoints"
    KEYS = "keys"
    ENDINGS = "endings"
    RESUMING = "resuming_endings"
    FOLLOWING = "following_brokers"
    FORGETTING = "forgetting"
    DENIALS = "denial_counts"
    PURGING = "purging"
    ARCHIVES = "archives"
    RETENTION = "retention"
    CLOCK = "clock"
    SETTINGS = "comparing_settings"


class _Failure:
    """The failures of one kind of work, from the first one to the next success."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.reason = ""
        self.is_defect = False


class Background:
    """Keeps account of background work: what fails, since when, and how often."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._failures: dict[Work, _Failure] = {}
        metrics.background_works = [work.value for work in Work]
        metrics.background_failing = self.failing

    async def attempt(self, work: Work, part: Callable[[], Awaitable[object]]) -> bool:
        """Do a part of the work. Returns whether it succeeded; the caller continues after any exception."""
        task = asyncio.current_task()
        try:
            await part()
        except asyncio.CancelledError as error:
            if task is None or task.cancelling():
                raise
            self.failed(work, error)  # the cancellation of something else that was awaited
        except Exception as error:
            self.failed(work, error)
        else:
            self.succeeded(work)
            return True
        return False

    def failed(self, work: Work, error: BaseException) -> None:
        """Record that a part of the work raised this error."""
        self._metrics.background_failures[work.value] += 1
        failure = self._failures.setdefault(work, _Failure())
        failure.is_defect = not isinstance(error, Unavailable)
        reason = f"{type(error).__name__}: {error}"
        if reason == failure.reason:
            return
        failure.reason = reason
        if isinstance(error, Unavailable):
            log.warning("background work has to wait", work=work.value, reason=error.detail)
        else:
            log.error("background work failed, and will be retried", work=work.value, exc_info=error)

    def succeeded(self, work: Work) -> None:
        """Record that a part of the work succeeded."""
        if self._failures.pop(work, None) is not None:
            log.info("background work succeeds again", work=work.value)

    def failing(self) -> Sequence[str]:
        """The kinds of work that fail now, unless the store has been out of reach only for a short time."""
        now = time.monotonic()
        return [
            work.value
            for work, failure in self._failures.items()
            if failure.is_defect or now > failure.since + PATIENCE_SECONDS
        ]
