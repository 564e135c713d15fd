"""What a broker has seen of the database that it shares, in a file of its own: a start knows what the one before knew.

What was written outlives the process, however that ends. Now and then it is made durable as well: a machine that loses
its power loses some seconds of it. The file has its full size from the beginning, so a disk that becomes full takes it.
It is not mapped into memory: what a disk does not take there ends the process.

Each process has a file that no other has, and reads those of all that were there before it. A file has two places,
written in turn: whatever moment a process ends at, one of the two is whole.
"""

import fcntl
import hashlib
import itertools
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog

from agentwrit.broker.storage.postgres_lineage import Seen

PLACE_BYTES: Final = 512

log = structlog.get_logger("agentwrit.storage")

_CHECKSUM = slice(0, 4)  # CRC-32 of the body
_LENGTH = slice(4, 8)


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    number: int
    seen: Seen


_decode = msgspec.json.Decoder(_Entry).decode
_encode = msgspec.json.Encoder().encode


class Memory:
    """The file of this process for one database, locked while it is open. Threads may share it, one at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._number = max((entry.number for entry in _entries(os.pread(descriptor, 2 * PLACE_BYTES, 0))), default=0)
        self._is_durable = True
        self._is_refused = False

    @classmethod
    def open(cls, directory: Path, system: str) -> Self:
        """Take a file that no other process has: the first that is free. `system`: what tells a database from others.

        Raises:
            OSError: the directory cannot be used.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in itertools.count():
            path = directory / f"{_name(system)}-{number}"
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            try:
                _allocate(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            return cls(descriptor)
        raise AssertionError  # numbers do not end

    def keep(self, seen: Seen) -> None:
        """Remember what was seen. It is safe from the end of the process, and not yet from that of the machine."""
        self._number += 1
        body = _encode(_Entry(self._number, seen))
        form = zlib.crc32(body).to_bytes(4) + len(body).to_bytes(4) + body
        self._is_durable = False
        try:
            os.pwrite(self._descriptor, form, self._number % 2 * PLACE_BYTES)
        except OSError as error:
            self._refused(error)
        else:
            self._is_refused = False

    def sync(self) -> None:
        """Make durable what was kept, if the disk lets us. It waits for it."""
        if not self._is_durable:
            self._is_durable = True
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self._refused(error)

    def close(self) -> None:
        self.sync()
        descriptor, self._descriptor = self._descriptor, -1  # its number may be another file's from now on
        os.close(descriptor)

    def _refused(self, error: OSError) -> None:
        if not self._is_refused:
            log.warning("what this broker has seen may be forgotten when it ends", reason=error.strerror)
        self._is_refused = True


def recall(directory: Path, system: str) -> Sequence[Seen]:
    """What processes that used this directory have seen last of a database, those that run included.

    Raises:
        OSError: the directory cannot be read.
    """
    newest = [_entries(path.read_bytes())[-1:] for path in directory.glob(f"{_name(system)}-*")]
    return [entry.seen for [entry] in filter(None, newest)]


def _allocate(descriptor: int) -> None:
    """Give a file its full size, with all that is in it, as far as a file that others cut short still has it."""
    content = os.pread(descriptor, 2 * PLACE_BYTES, 0)
    os.pwrite(descriptor, content.ljust(2 * PLACE_BYTES, b"\0"), 0)


def _name(system: str) -> str:
    return f"seen-{hashlib.sha256(system.encode('utf-8')).hexdigest()[:16]}"


def _entries(content: bytes) -> Sequence[_Entry]:
    """What is whole in a file, the newest last."""
    found = [_entry(content[start : start + PLACE_BYTES]) for start in (0, PLACE_BYTES)]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.number)


def _entry(place: bytes) -> _Entry | None:
    body = place[_LENGTH.stop :][: int.from_bytes(place[_LENGTH])]
    if not body or zlib.crc32(body).to_bytes(4) != place[_CHECKSUM]:
        return None
    try:
        return _decode(body)
    except msgspec.DecodeError:
        return None
