"""The standard streams of a process, whoever started it, and with whatever."""

import contextlib
import os
import sys
from typing import Final, TextIO

_NUMBERS: Final = range(3)


def complete() -> None:
    """Have those that a process was started without lead nowhere.

    Else the next file that is opened has the number of one of them, and gets what is meant for people; and what is
    meant for standard error would be printed on standard output. Standard input stays None where there is none.
    """
    for number in _NUMBERS:
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()


def tell(line: str) -> None:
    """A line on standard error. If nobody can hear it, that changes nothing of what is done, or of how that ends."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        with contextlib.suppress(OSError):
            sys.stderr.close()  # or what is still in its buffer fails once more when the interpreter ends
        sys.stderr = _nowhere()


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  # as long as the process is there
