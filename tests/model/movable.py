"""The broker's own process with a clock that a test moves: time is when the file named by CLOCK_FILE was modified.

So it is moved at once, by one system call, and stays where it is over restarts. MUTANT, if not empty, names a bug to
be planted.
"""

import importlib
import os
import sys
import time
from collections.abc import Callable

from agentwrit.broker import clock


class MovableClock(clock.Clock):
    """The broker's clock, on the file's time. Nothing moves it but the test, which is believed whatever it says."""

    @classmethod
    def of_broker(cls, _: Callable[[], float] = time.time) -> "MovableClock":
        file = os.environ["CLOCK_FILE"]
        return cls(lambda: os.stat(file).st_mtime, lambda: 0.0)  # noqa: PTH116  # asked at every request


if __name__ == "__main__":
    vars(clock)["Clock"] = MovableClock  # before the composition root takes it from there
    program, mutants = (importlib.import_module(name) for name in ("agentwrit.broker.__main__", "tests.model.mutants"))
    if os.environ["MUTANT"]:
        mutants.PLANT[os.environ["MUTANT"]]()
    sys.exit(program.main())
