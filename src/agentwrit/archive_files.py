"""Archives of the audit log as files: written atomically and durably, and verified by reading them back."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

from agentwrit import reading
from agentwrit.domain import audit_archive, audit_export
from agentwrit.domain.audit_export import Progress, unwatched
from agentwrit.domain.note import VerifierKey
from agentwrit.durable import NewFile

PACED_LINES: Final = 256


class Checked(NamedTuple):
    """The content of a verified archive. `first`, `last`: sequence numbers; `root` and `sha256`: in hex."""

    first: int
    last: int
    root: str
    file: str
    sha256: str


class NewArchive:
    """A new archive of the events `first` to `last`. The directory is created if necessary.

    Until `seal`, the file has a temporary name, and is removed when the object is closed.
    """

    def __init__(self, directory: Path, first: int, last: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = directory / audit_archive.file_name(first, last)
        self._file = NewFile(self.path)

    def write(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._file.write(line)

    def seal(self) -> None:
        """Make the file durable, under its final name."""
        self._file.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def left_behind(directory: Path, first: int) -> Path | None:
    """An archive in `directory` that begins with the event `first`, left by a process that died before recording it."""
    pattern = audit_archive.file_name(first, 0).replace(f"{0:012d}.", "*.")
    return next(iter(sorted(directory.glob(pattern))), None)


def check(
    path: Path, keys: Iterable[VerifierKey], *, progress: Progress = unwatched, pace: Callable[[], None] = lambda: None
) -> Checked:
    """Read an archive back and verify it. `pace` is called every 256 lines, so that the caller can yield.

    Raises:
        TamperedRecord: the file is not as it was written.
    """
    digest = hashlib.sha256()

    def paced(file: IO[bytes]) -> Iterator[bytes]:
        for number, line in enumerate(reading.lines(file, audit_export.MAX_LINE_BYTES)):
            if number % PACED_LINES == 0:
                pace()
            digest.update(line)
            yield line

    with path.open("rb") as file:
        verified = audit_export.verify(paced(file), keys, progress=progress)
    root = verified.end.tree.root().hex()
    return Checked(verified.start.sequence + 1, verified.end.sequence, root, path.name, digest.hexdigest())
