"""Metrics of several processes that serve one port: each of them reports the totals of all.

Each worker writes its counts into an unnamed file that all of them hold: each second, and before it reports them, so
that reported counts never decrease. A worker that replaces another one continues from its counts.
"""

import asyncio
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

PUBLISH_SECONDS: Final = 1
READ_AGAIN: Final = 3  # times, if another process is writing

_HEAD: Final = 8  # bytes: CRC-32 and length of the body

log = structlog.get_logger("agentwrit.counts")


class Counts(msgspec.Struct, kw_only=True):
    """Numbers by name: counters and histograms by their labels, gauges to add up, and gauges whose maximum counts."""

    counters: dict[str, dict[str, float]] = {}
    histograms: dict[str, dict[str, list[float]]] = {}
    sums: dict[str, float] = {}
    highest: dict[str, float] = {}

    def add(self, other: "Counts", *, is_over: bool = False) -> None:
        """Add another process's counts. `is_over`: it has ended, so its gauges no longer count."""
        for name, labelled in other.counters.items():
            mine = self.counters.setdefault(name, {})
            for label, number in labelled.items():
                mine[label] = mine.get(label, 0) + number
        for name, series in other.histograms.items():
            ours = self.histograms.setdefault(name, {})
            for label, numbers in series.items():
                before = ours.get(label, [0] * len(numbers))
                ours[label] = [sum(pair) for pair in zip(before, numbers, strict=True)]
        if is_over:
            return
        for name, number in other.sums.items():
            self.sums[name] = self.sums.get(name, 0) + number
        for name, number in other.highest.items():
            self.highest[name] = max(self.highest.get(name, number), number, key=abs)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Counts).decode


class SharedCounts:
    """The counts of all workers. `files`: descriptors; this process writes the first. `own`: returns its own counts."""

    def __init__(self, files: Sequence[int], own: Callable[[], Counts]) -> None:
        self._file, *self._others = files
        self._own = own
        self._before = Counts()
        self._before.add(_read(self._file), is_over=True)

    async def run(self) -> None:
        """Publish this process's counts, until cancelled."""
        is_told = False
        while True:
            try:
                self._publish()
                is_told = False
            except Exception as error:  # the others report old counts meanwhile
                if not is_told:
                    log.error("counts cannot be shared with other workers, and this will be retried", exc_info=error)
                is_told = True
            await asyncio.sleep(PUBLISH_SECONDS)

    def of_all(self) -> Counts:
        """The counts of all processes together."""
        counts = self._publish()
        for file in self._others:
            counts.add(_read(file))
        return counts

    def _publish(self) -> Counts:
        counts = self._own()
        counts.add(self._before, is_over=True)
        body = _encode(counts)
        os.pwrite(self._file, zlib.crc32(body).to_bytes(4) + len(body).to_bytes(4) + body, 0)
        return counts


def new_file() -> int:
    """The descriptor of a file for one process. The file disappears with its last descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("agentwrit-counts")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _read(file: int) -> Counts:
    for _ in range(READ_AGAIN):
        content = os.pread(file, os.fstat(file).st_size, 0)
        body = content[_HEAD:][: int.from_bytes(content[4:_HEAD])]
        if body and zlib.crc32(body) == int.from_bytes(content[:4]):
            return _decode(body)
    return Counts()
