"""Bounded reading of files that others wrote, so that a long line or a large file cannot exhaust memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, AnyStr, Final

from agentwrit.domain.errors import AgentWritError, TamperedRecord

MAX_SMALL_FILE_BYTES: Final = 1024 * 1024
"""For settings, keys, cursors and witness files: many times the size of any of them."""


def lines(file: IO[bytes], longest: int) -> Iterator[bytes]:
    """The lines of a file, each with its line feed.

    Raises:
        TamperedRecord: a line has more than `longest` bytes, so this is not the expected kind of file.
    """
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            raise TamperedRecord(f"line {number} has more than {longest} bytes")
        yield line


def first_line(file: IO[AnyStr], longest: int) -> AnyStr | None:
    """The first line of a stream, or None if the line is longer than `longest`."""
    line = file.readline(longest + 1)
    return line if len(line) <= longest else None


def small_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a small file.

    Raises:
        AgentWritError: the file has more than 1 MiB.
        OSError, UnicodeDecodeError: the file cannot be read, or is not text.
    """
    with path.open("rb") as file:
        content = file.read(MAX_SMALL_FILE_BYTES + 1)
    if len(content) > MAX_SMALL_FILE_BYTES:
        raise AgentWritError(f"{path} has more than {MAX_SMALL_FILE_BYTES} bytes: it is not what it should be")
    return content.decode(encoding)
