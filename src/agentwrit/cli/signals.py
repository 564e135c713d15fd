"""Signals that ask a process for its end, for one that runs another."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
TERMINAL_KEYS: Final = (signal.SIGINT, signal.SIGQUIT)


class Stopped(BaseException):
    """A signal ended the start. `number`: which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """The signals that ask for an end.

    - While we wait for the broker they end the wait, as Stopped.
    - COMMAND gets them when it runs; how it ends is for it to say.
    - At any other moment they are kept, so that neither the start nor the tidying up is left half done.
    - One that is ignored, as under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self._ends_us = False
        self._command: subprocess.Popen[bytes] | None = None
        self._kept: list[int] = []
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._arrived)

    @contextlib.contextmanager
    def end_us(self) -> Iterator[None]:
        """A wait that they cut short."""
        self._ends_us = True
        try:
            if self._kept:
                raise Stopped(self._kept[0])
            yield
        finally:
            self._ends_us = False

    @contextlib.contextmanager
    def go_to(self, command: subprocess.Popen[bytes]) -> Iterator[None]:
        """COMMAND's run."""
        self._command = command
        try:
            for number in self._kept:
                command.send_signal(number)
            yield
        finally:
            self._command = None

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._command is not None:
            # Twice would tell COMMAND to leave its own tidying up.
            if not (number in TERMINAL_KEYS and _terminal_is_ours()):
                self._command.send_signal(number)
        elif self._ends_us:
            self._ends_us = False
            raise Stopped(number)
        else:
            self._kept.append(number)


def _terminal_is_ours() -> bool:
    """Whether a terminal sends its keys' signals to our process group, which is COMMAND's too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
