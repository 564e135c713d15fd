"""The broker's own process with a clock that a test moves: time is when the file named by CLOCK_FILE was modified.

So it is moved at once, by one system call, and stays where it is over restarts. MUTANT, if not empty, names a bug to
be planted.
"""

import os
import sys

from agentwrit.broker import bootstrap
from agentwrit.broker.__main__ import main
from agentwrit.broker.clock import Clock
from tests.model import mutants


class MovableClock(Clock):
    """The broker's clock, on the file's time. Nothing moves it but the test."""

    def __init__(self) -> None:
        file = os.environ["CLOCK_FILE"]
        super().__init__(lambda: os.stat(file).st_mtime, lambda: 0.0)  # noqa: PTH116  # asked at every request


if __name__ == "__main__":
    vars(bootstrap)["Clock"] = MovableClock  # what the composition root makes its clock from
    if os.environ["MUTANT"]:
        mutants.PLANT[os.environ["MUTANT"]]()
    sys.exit(main())
