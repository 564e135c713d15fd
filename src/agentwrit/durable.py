"""Files that are there to stay, and how all of them are written.

The rules:

- A file is made beside its place, for its owner alone (mode 0600), under a name that nobody can guess and nobody has
  taken. It gets its own name when it is whole and on disk. Until then whatever had that name has it, and afterwards the
  directory is on disk too.
- Where the name is a link, the link is followed only if nobody else can have put it there: its directory is ours or
  root's, and nobody else may write to it. A file that has other names as well keeps what it holds under those.
- What is no file, a pipe or a device, is written as it is, by whoever means to; and only if it is ours or root's.
"""

import errno
import os
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

UNFINISHED: Final = ".partial"  # how a file's name ends until it gets its own
LONGEST_NAME: Final = 100  # characters of a name that are found in it until then
MOST_LINKS: Final = 40  # as Linux follows
NO_FILE: Final = "it is no file"
_NEW: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def sync(path: Path) -> None:
    """Make a file that is there durable; or, of a directory, the names in it.

    Raises:
        OSError: it cannot be.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes, *, replacing: bool = True) -> None:
    """Make a file that holds `content`, or put it in the place of the one that is there, whole and durably.

    Raises:
        FileExistsError: one is there, and none is to be replaced.
        OSError: it cannot be written. What was there is there.
    """
    with NewFile(path, replacing=replacing) as new:
        new.write(content)
        new.settle()


def rename(path: Path, to: Path) -> None:
    """Give a file another name in its directory, which another file may have had, durably.

    Raises:
        OSError: it cannot be.
    """
    path.replace(to)
    sync(to.parent)


def create(path: Path) -> int:
    """The descriptor of a new file that has its name from the beginning: what it is until it is whole, its name says.

    Raises:
        FileExistsError: there is something of that name.
        OSError: it cannot be made.
    """
    return os.open(path, _NEW | os.O_RDWR, 0o600)


def open_log(path: Path) -> int:
    """The descriptor of a file that grows, to read and write; it is made if it is not there.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    descriptor = os.open(_followed(path), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _refusal(errno.EINVAL, NO_FILE, path)
    return descriptor


class NewFile:
    """A file in the making. It is written through `write`, or at `place` by others; `settle` gives it its name.

    `replacing`: whether a file that is there may be replaced; `or_device`: whether a pipe or a device may be meant. If
    it was not settled it is gone when the object is closed.

    Raises:
        FileExistsError: one is there, and none is to be replaced.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, *, replacing: bool = True, or_device: bool = False) -> None:
        self._path = _followed(path)
        self._is_device = or_device and _is_device(self._path)
        if self._is_device:
            self.place = self._path
            descriptor = os.open(self.place, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        else:
            if os.path.lexists(self._path) and not self._path.is_file():
                raise _refusal(errno.EINVAL, NO_FILE, path)
            if os.path.lexists(self._path) and not replacing:
                raise _refusal(errno.EEXIST, os.strerror(errno.EEXIST), path)
            name = f".{self._path.name[:LONGEST_NAME]}.{secrets.token_hex(8)}{UNFINISHED}"
            self.place = self._path.with_name(name)
            descriptor = os.open(self.place, _NEW | os.O_WRONLY, 0o600)
        self._replacing = replacing
        self._file = os.fdopen(descriptor, "wb")

    def write(self, content: bytes) -> None:
        self._file.write(content)

    def settle(self) -> None:
        """Make it durable, under its name.

        Raises:
            FileExistsError: another one has come to have that name.
            OSError: it cannot be.
        """
        self._file.flush()
        if self._is_device:
            return
        os.fsync(self._file.fileno())
        if self._replacing:
            self.place.replace(self._path)
        else:
            self._path.hardlink_to(self.place)  # unlike a rename it takes no other file's place
            self.place.unlink()
        sync(self._path.parent)

    def close(self) -> None:
        self._file.close()
        if not self._is_device:
            self.place.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _followed(path: Path) -> Path:
    """What a name stands for."""
    for _ in range(MOST_LINKS):
        if _is_descriptor(path) or not path.is_symlink():
            return path
        directory = path.parent.stat()
        if directory.st_mode & _OTHERS_WRITE or not _is_trusted(directory):
            raise _refusal(errno.ELOOP, "it is a link, in a directory that others can write to", path)
        path = path.parent / path.readlink()
    raise _refusal(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _is_device(path: Path) -> bool:
    """Whether what is there is to be written as it is."""
    if _is_descriptor(path):
        return True
    if not path.exists() or path.is_file() or path.is_dir():
        return False
    if not _is_trusted(path.stat()):
        raise _refusal(errno.EPERM, "it is no file, and somebody else's", path)
    return True


def _is_descriptor(path: Path) -> bool:
    """Whether it is one of a process's own: /dev/stdout is a link to one."""
    directory = path.parent.resolve()
    return directory == Path("/dev/fd") or (directory.name == "fd" and directory.parent.parent == Path("/proc"))


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def _refusal(number: int, reason: str, path: Path) -> OSError:
    return OSError(number, reason, str(path))  # of the kind that the number stands for: FileExistsError for example
