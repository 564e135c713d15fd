"""Copying a database while a broker writes it, and keeping its write-ahead log small meanwhile.

A read transaction that is open for as long as a slow disk takes keeps SQLite from folding the log in, and every commit
adds to it. So the database is copied in passes, each of which writes only what has changed since the one before, and a
pass lets go of its transaction when the log grows too large. The first that gets through without has the copy.

Why that is one state (https://www.sqlite.org/walformat.html): while a read transaction is open,

- SQLite writes no page into the database file that is not in the log as well, among the commits that the reader sees;
- nor does it begin the log anew, unless all of it was in the file before. Then the log has later commits alone.

So the file and the log, each read at whatever moment, are what SQLite itself finds after a power cut: it puts them
together, up to the last commit that is whole. Of a page that was being written while it was read the log has all.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentwrit.durable import create

PIECE_BYTES: Final = 256 * 1024  # what is compared, and written if it has changed
MAX_LOG_BYTES: Final = 128 * 2**20  # when a pass lets go
MAX_PASSES: Final = 20
DIGEST_BYTES: Final = 16
LOG_HEADER_BYTES: Final = 32  # in it stands what tells one log from the next

WAL: Final = "-wal"


class TooSlow(Exception):
    """The database changes faster than its copy is written."""


def copy(source: sqlite3.Connection, database: int, log: Path, target: Path) -> None:
    """Copy a database into the empty file `target`, with its log beside it for SQLite to fold in.

    `source`: a connection to it, in no transaction; `database`: a descriptor of its file, which is not to be closed
    before the connection is: that would take its locks away; `log`: the path of its log.

    Raises:
        OSError, sqlite3.Error: it cannot be read or written.
        TooSlow: see there.
    """
    digests: list[bytes] = []  # of the pieces as they are in the copy
    with open(target, "r+b", buffering=0) as file:  # noqa: PTH123  # unbuffered: what is written is what is compared
        for _ in range(MAX_PASSES):
            source.execute("BEGIN")
            try:
                source.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # from here on it sees one state
                for number, piece, digest in _pieces(database):
                    if digests[number : number + 1] != [digest]:
                        os.pwrite(file.fileno(), piece, number * PIECE_BYTES)
                        digests[number : number + 1] = [digest]
                    if source.in_transaction and _size(log) > MAX_LOG_BYTES:
                        source.rollback()
                size = os.fstat(database).st_size
                os.ftruncate(file.fileno(), size)
                del digests[-(-size // PIECE_BYTES) :]
                frames = _read_log(log) if source.in_transaction else None
            finally:
                source.rollback()
            if frames is not None:
                _write_log(target.with_name(target.name + WAL), frames)
                return
    raise TooSlow


def _pieces(database: int) -> Iterator[tuple[int, bytes, bytes]]:
    """The pieces of a file by their numbers, and the digest of each."""
    number = 0
    while piece := os.pread(database, PIECE_BYTES, number * PIECE_BYTES):
        yield number, piece, hashlib.blake2b(piece, digest_size=DIGEST_BYTES).digest()
        number += 1


def _read_log(log: Path) -> bytes:
    """The log, all of one beginning."""
    while True:
        try:
            with log.open("rb") as file:
                content = file.read()
                file.seek(0)
                if file.read(LOG_HEADER_BYTES) == content[:LOG_HEADER_BYTES]:
                    return content
        except FileNotFoundError:
            return b""


def _write_log(path: Path, content: bytes) -> None:
    if content:
        with os.fdopen(create(path), "wb") as file:
            file.write(content)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
