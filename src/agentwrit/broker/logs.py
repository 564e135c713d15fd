"""Structured logs on standard error: lines for people, or JSON for machines."""

import atexit
import logging
import os
import re
import select
import sys
import threading
import time
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from agentwrit.domain import text

MAX_WAITING_BYTES: Final = 4 * 2**20  # of lines waiting to be written
STUCK_SECONDS: Final = 2.0  # for one write, after which the log is considered stuck
RETRY_SECONDS: Final = 1.0
LAST_SECONDS: Final = 2.0  # that process exit waits for the last lines
STANDARD_ERROR: Final = 2

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class _Lines:
    """Writes the lines of the log, in its own thread.

    Logging never blocks and never raises: a pipe that nobody reads, or a full or unresponsive disk, stops only this
    thread. Lines wait for it up to a limit. Lines beyond it are lost and counted; the log reports the count once it can
    be written again.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._descriptor = STANDARD_ERROR
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0  # includes lines that are being written
        self._untold = 0
        self._is_failing = False
        self._begun_at: float | None = None  # when the write in progress began
        self._thread: threading.Thread | None = None

    def msg(self, line: str) -> None:
        encoded = (line + "\n").encode(errors="backslashreplace")
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
                self._thread.start()
            if self._waiting_bytes + len(encoded) > MAX_WAITING_BYTES:
                self.lost += 1
                self._untold += 1
                return
            self._waiting.append(encoded)
            self._waiting_bytes += len(encoded)
            self._changed.notify_all()

    debug = info = warning = warn = error = critical = fatal = failure = exception = log = msg

    def is_failing(self) -> bool:
        """Whether lines cannot be written now."""
        begun_at = self._begun_at
        return self._is_failing or (begun_at is not None and time.monotonic() > begun_at + STUCK_SECONDS)

    def flush(self, seconds: float) -> None:
        """Wait until all lines are written, at most for `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting_bytes, seconds)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines, self._waiting = self._waiting, []
            written = b"".join(lines)
            self._write(written)
            with self._changed:
                self._waiting_bytes -= len(written)
                untold, self._untold = self._untold, 0
                self._changed.notify_all()
            if untold:
                log.warning("log lines could not be written, and are lost", count=untold)

    def _write(self, data: bytes) -> None:
        """Write all of `data`, however long that takes."""
        left = memoryview(data)
        while left:
            self._begun_at = time.monotonic()
            try:
                # Not by `sys.stderr`: it would hold a lock for that time, which the interpreter needs at exit.
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # another user of this pipe has made it non-blocking
                select.select([], [self._descriptor], [], RETRY_SECONDS)
            except OSError:
                self._is_failing = True
                time.sleep(RETRY_SECONDS)
            else:
                self._is_failing = False
                self._begun_at = None


class _Handler(logging.Handler):
    """Passes the logs of libraries to the broker's log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _lines.msg(self.format(record))
        except Exception:  # a library's record that cannot be formatted
            _lines.msg(f"a record of {record.name} cannot be shown")


log = structlog.get_logger("agentwrit.log")
_lines = _Lines()
atexit.register(_lines.flush, LAST_SECONDS)


def lost() -> int:
    """The number of lines lost since startup, because the log could not be written and too many waited."""
    return _lines.lost


def is_failing() -> bool:
    """Whether the log cannot be written now."""
    return _lines.is_failing()


def configure(*, level: str, log_format: str) -> None:
    """Send the broker's log and those of libraries to the same output."""
    threshold = _LEVELS[level]
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer = _json_renderer() if log_format == "json" else _line_renderer()
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _lines,
        cache_logger_on_first_use=True,
    )
    handler = _Handler()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=renderer, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


def _json_renderer() -> list[Processor]:
    # Without local variables, which may include tokens and secrets.
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()]


def _line_renderer() -> list[Processor]:
    if sys.stderr.isatty():
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback, pad_event_to=0)]
    return [structlog.processors.format_exc_info, _line]


_PLAIN = re.compile(r"[!#-&(-<>-~]+")


def _line(_: WrappedLogger, __: str, fields: EventDict) -> str:
    """A line like that of structlog's console renderer, three times as fast and without colors.

    Values that hold anything but plain text are quoted, so that no value can look like another field.
    """
    start = f"{fields.pop('timestamp')} [{fields.pop('level'):9}] {text.escaped(str(fields.pop('event')))}"
    trace = fields.pop("exception", None)
    for name, value in fields.items():
        shown = str(value)
        start += f" {name}={shown if _PLAIN.fullmatch(shown) else repr(shown)}"
    if trace is None:
        return start
    # An exception's text may come from a caller: none of its lines may look like a log line or control a terminal.
    return "\n".join([start, *(f"    {text.escaped(part)}" for part in trace.splitlines())])
