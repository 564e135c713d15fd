"""Running `agentwrit` as people do: as a process, in a pipe or at a terminal."""

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

AGENTWRIT = str(Path(sys.executable).parent / "agentwrit")
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("AGENTWRIT_", "PYTEST_")) and not name.lower().endswith("_proxy")
}

# Makes standard input the terminal whose keys signal the process, as a login does; then becomes the command.
_AT_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def run(*arguments: str | bytes, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [AGENTWRIT, *arguments], input=stdin, env={**CLEAN, **environment}, capture_output=True, text=True, timeout=60
    )


def one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It failed with one clear line."""
    assert done.returncode == code, done
    assert done.stderr.startswith("agentwrit: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


class Terminal:
    """A command at a terminal of its own, and whoever types there."""

    def __init__(self, process: subprocess.Popen[bytes], keyboard: int) -> None:
        self.process = process
        self.shown = ""
        self._keyboard = keyboard

    def type(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def wait_for(self, text: str) -> None:
        """Read what is shown until `text` is."""
        while text not in self.shown:
            read = self._read()
            assert read, self.shown
            self.shown += read

    def finish(self) -> int:
        """Read to the end. Returns the exit code."""
        while read := self._read():
            self.shown += read
        return self.process.wait()

    def _read(self) -> str:
        try:
            return os.read(self._keyboard, 4096).decode()
        except OSError:  # Linux says so when nobody has the terminal open any more
            return ""


@contextlib.contextmanager
def terminal(arguments: Sequence[str], **environment: str) -> Iterator[Terminal]:
    """Run `agentwrit` in the foreground of a new terminal."""
    keyboard, screen = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _AT_TERMINAL, AGENTWRIT, *arguments],
        env={**CLEAN, **environment},
        stdin=screen,
        stdout=screen,
        stderr=screen,
        start_new_session=True,
    )
    os.close(screen)
    try:
        yield Terminal(process, keyboard)
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)
