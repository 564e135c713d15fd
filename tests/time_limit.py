"""A test that waits for what never comes fails, and the others go on: hooks on what pytest-timeout does."""

import asyncio
import contextlib
import signal
from collections.abc import Generator
from types import FrameType
from typing import Final

import pytest
from pytest_timeout import Settings

AGAIN_SECONDS: Final = 20  # after which a test is interrupted once more: what it does on its way out may wait as well

_limit = pytest.StashKey[Settings]()


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Settings) -> Generator[None, object, object]:
    """Stop the event loop that a test waits on.

    What the signal raises, a loop would take for a failure of the callback that it came in: uvloop always.
    """
    item.stash[_limit] = settings
    is_set = yield
    fail = signal.getsignal(signal.SIGALRM)

    def interrupt(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):  # none is running
            asyncio.get_running_loop().stop()
        assert callable(fail)
        fail(number, frame)

    if settings.method == "signal":
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, AGAIN_SECONDS)
    return is_set


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Give what a test leaves to its fixtures as much time again: once it has failed, nothing else limits that.

    An exception would end the waiting of one fixture, and leave it to those below. The process is ended.
    """
    hooks, limit = item.config.hook, item.stash.get(_limit, None)
    hooks.pytest_timeout_cancel_timer(item=item)
    if limit is not None:
        hooks.pytest_timeout_set_timer(item=item, settings=limit._replace(method="thread"))
    try:
        yield
    finally:
        hooks.pytest_timeout_cancel_timer(item=item)
