"""A progress bar for long work, shown only on a terminal."""

import sys
import time
from types import TracebackType
from typing import Final, Self, TextIO

SHOWN_AFTER_SECONDS: Final = 1.0
WIDTH: Final = 30


class ProgressBar:
    """A progress bar on standard error for work that takes longer than a second.

    Call it with the number of things that are done and the total. `things`: the noun for what is counted.
    """

    def __init__(self, stream: TextIO | None = None, *, things: str = "events") -> None:
        self._things = things
        self._stream = sys.stderr if stream is None else stream
        self._is_seen = self._stream is not None and self._stream.isatty()
        self._show_at = time.monotonic() + SHOWN_AFTER_SECONDS
        self._is_shown = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._is_seen and now >= self._show_at:
            self._show_at, self._is_shown = now + 0.1, True
            full = WIDTH * done // max(1, total)
            bar = "=" * full + " " * (WIDTH - full)
            self._stream.write(f"\r[{bar}] {done:,} of {total:,} {self._things}")
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Erase the bar."""
        if self._is_shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
