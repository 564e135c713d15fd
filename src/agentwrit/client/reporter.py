"""The thread that reports accesses to the broker."""

import atexit
import os
import threading
import weakref
from collections.abc import Sequence

from agentwrit.client.clock import Clock
from agentwrit.client.driver import Driver
from agentwrit.client.reporting import END_SECONDS, Done, Reports, Rest, Tell, reporting
from agentwrit.errors import AgentWritError
from agentwrit.models import AgentClaims


class Reporter:
    """Takes accesses from any thread, and reports them to the broker in its own thread, started when needed."""

    def __init__(self, driver: Driver, clock: Clock) -> None:
        self._driver = driver
        self._clock = clock
        self._telling: _Telling | None = None
        self.begin()
        _reporters.add(self)

    @property
    def unreported(self) -> int:
        return self._reports.unreported

    def note(self, claims: AgentClaims, scope: str | Sequence[str], resource: str, outcome: Done) -> None:
        """Note an access. Raises what `Reports.note` raises."""
        is_waking = self._reports.note(claims, scope, resource, outcome)
        telling = self._telling
        if telling is None or telling.is_over:
            telling = self._start()
        if is_waking:
            telling.wake.set()

    def stop(self) -> None:
        """Report what is waiting, and end, within `END_SECONDS`. A later access starts again."""
        with self._lock:
            telling, self._telling = self._telling, None
        if telling is not None:
            telling.end()
            telling.thread.join(END_SECONDS)

    def begin(self) -> None:
        """Start empty, also in a forked child: the parent's waiting accesses and its thread belong to the parent."""
        self._lock = threading.Lock()
        self._reports = Reports(self._clock)
        self._telling = None

    def _start(self) -> "_Telling":
        with self._lock:
            if self._telling is None or self._telling.is_over:
                self._telling = _Telling(self._reports, self._driver)
                weakref.finalize(self, self._telling.end).atexit = False
                self._telling.thread.start()
            return self._telling


class _Telling:
    """The thread. It holds no reference to the reporter, which may be garbage-collected without being stopped."""

    def __init__(self, reports: Reports, driver: Driver) -> None:
        self.wake = threading.Event()
        self.is_over = False
        self.thread = threading.Thread(target=self._run, name="agentwrit-reports", daemon=True)
        self._is_ending = False
        self._reports = reports
        self._driver = driver

    def end(self) -> None:
        """Make the thread report what is waiting, and end."""
        self._is_ending = True
        self.wake.set()

    def _run(self) -> None:
        work = reporting(self._reports, lambda: self._is_ending)
        try:
            needed = next(work)
            while True:
                try:
                    answer = self._carry_out(needed)
                except AgentWritError as error:
                    needed = work.throw(error)
                else:
                    needed = work.send(answer)
        except StopIteration:
            return
        finally:
            self.is_over = True

    def _carry_out(self, needed: Tell | Rest) -> object:
        if isinstance(needed, Tell):
            return self._driver.run(needed.steps, timeout=needed.timeout)
        self.wake.wait(needed.seconds)
        self.wake.clear()
        return None


_reporters: "weakref.WeakSet[Reporter]" = weakref.WeakSet()


def _at_exit() -> None:
    for reporter in list(_reporters):
        reporter.stop()


def _after_fork() -> None:
    for reporter in list(_reporters):
        reporter.begin()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
