"""Structured logs, on standard error: lines for people, or JSON for machines."""

import asyncio
import logging
import re
import sys
import threading
from collections.abc import Awaitable
from typing import Final, TextIO, TypeVar

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

T = TypeVar("T")

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class _Lines:
    """Writes the lines of the log. Those that tell of nothing wrong may wait for the others of their turn.

    The turn is that of the event loop which `gathered` was called on: a system call for each line would take the broker
    longer than most of what it logs.
    """

    def __init__(self) -> None:
        self.file: TextIO = sys.stderr
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    async def gathered(self, work: Awaitable[T]) -> T:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        try:
            return await work
        finally:
            self._loop = None
            self._write()

    def info(self, line: str) -> None:
        if self._loop is None or threading.get_ident() != self._thread:
            self.msg(line)
            return
        with self._lock:
            if not self._waiting:
                self._loop.call_soon(self._write)
            self._waiting.append(line)

    def msg(self, line: str) -> None:
        self._write(line)

    debug = info
    warning = warn = error = critical = fatal = failure = exception = log = msg

    def _write(self, *last: str) -> None:
        with self._lock:
            lines, self._waiting = [*self._waiting, *last], []
            if lines:
                self.file.write("\n".join([*lines, ""]))
                self.file.flush()


_lines = _Lines()


async def gathered(work: Awaitable[T]) -> T:
    """Do this work, and write what the event loop logs meanwhile once a turn, not line by line."""
    return await _lines.gathered(work)


def configure(*, level: str, log_format: str) -> None:
    """Send our own logs, and those of the libraries below us, the same way."""
    _lines.file = sys.stderr
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=renderer, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


def _json_renderer() -> list[Processor]:
    # Without local variables: tokens and secrets are among them.
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()]


def _line_renderer() -> list[Processor]:
    if sys.stderr.isatty():
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback, pad_event_to=0)]
    return [structlog.processors.format_exc_info, _line]


_PLAIN = re.compile(r"[!#-&(-<>-~]+")


def _line(_: WrappedLogger, __: str, fields: EventDict) -> str:
    """A line like that of structlog's console, for whoever reads it later: three times as fast, and without colours.

    Values are quoted where they hold anything but plain text, so that no value can look like another field.
    """
    start = f"{fields.pop('timestamp')} [{fields.pop('level'):9}] {fields.pop('event')}"
    trace = fields.pop("exception", None)
    for name, value in fields.items():
        text = str(value)
        start += f" {name}={text if _PLAIN.fullmatch(text) else repr(text)}"
    return start if trace is None else f"{start}\n{trace}"
