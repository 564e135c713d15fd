"""Termination signals, for a process that runs another one."""

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
    """A signal arrived while waiting for the broker. `number`: the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Handles termination signals.

    - During a wait for the broker, a signal raises Stopped.
    - While COMMAND runs, signals are passed to it, and it decides how to end.
    - At any other time, signals are deferred, so that neither startup nor cleanup is interrupted.
    - Signals that are ignored, as under nohup, stay ignored.
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
        """Raise Stopped for signals in this block."""
        self._ends_us = True
        try:
            if self._kept:
                raise Stopped(self._kept[0])
            yield
        finally:
            self._ends_us = False

    @contextlib.contextmanager
    def go_to(self, command: subprocess.Popen[bytes]) -> Iterator[None]:
        """Pass signals in this block to COMMAND."""
        self._command = command
        try:
            for number in self._kept:
                command.send_signal(number)
            yield
        finally:
            self._command = None

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._command is not None:
            # The terminal has signalled COMMAND already. A second signal would make it skip its cleanup.
            if not (number in TERMINAL_KEYS and _terminal_is_ours()):
                self._command.send_signal(number)
        elif self._ends_us:
            self._ends_us = False
            raise Stopped(number)
        else:
            self._kept.append(number)


def _terminal_is_ours() -> bool:
    """Whether the terminal sends its keys' signals to this process group, which is also that of COMMAND."""
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
