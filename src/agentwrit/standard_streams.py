"""Standard streams that work, also in a process that was started without some of them."""

import contextlib
import os
import sys
from typing import Final, TextIO

_NUMBERS: Final = range(3)


def complete() -> None:
    """Open the null device in place of each missing standard stream.

    Otherwise the next file that is opened would get the number of a missing stream, and with it the output for people.
    `sys.stdin` stays None if standard input is missing.
    """
    for number in _NUMBERS:
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number: this one
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()


def tell(line: str) -> None:
    """Print a line on standard error. A failure to write changes neither the program's work nor its exit code."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        with contextlib.suppress(OSError):
            sys.stderr.close()  # otherwise flushing the rest fails again when the interpreter exits
        sys.stderr = _nowhere()


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  # open until the process ends
