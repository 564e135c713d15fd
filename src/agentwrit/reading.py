"""Files that others made, read so that none fills the memory: no endless line, and no more than a small file has."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, AnyStr, Final

from agentwrit.domain.errors import AgentWritError, TamperedRecord

MAX_SMALL_FILE_BYTES: Final = 1024 * 1024
"""Settings, keys, cursors, what a witness remembers: many times what any of them has."""


def lines(file: IO[bytes], longest: int) -> Iterator[bytes]:
    """The lines of a file, each with the new line at its end.

    Raises:
        TamperedRecord: one has more than `longest` bytes: it is no line of what this should be.
    """
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            raise TamperedRecord(f"line {number} has more than {longest} bytes")
        yield line


def first_line(file: IO[AnyStr], longest: int) -> AnyStr | None:
    """The first line of a stream, or None if it is longer than that."""
    line = file.readline(longest + 1)
    return line if len(line) <= longest else None


def small_text(path: Path, encoding: str = "utf-8") -> str:
    """What a small file holds.

    Raises:
        AgentWritError: it is too large to be one.
        OSError, UnicodeDecodeError: it cannot be read, or is no text.
    """
    with path.open("rb") as file:
        content = file.read(MAX_SMALL_FILE_BYTES + 1)
    if len(content) > MAX_SMALL_FILE_BYTES:
        raise AgentWritError(f"{path} has more than {MAX_SMALL_FILE_BYTES} bytes: it is not what it should be")
    return content.decode(encoding)
