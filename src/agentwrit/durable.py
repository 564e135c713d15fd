"""Durable, atomic file writes. Every persistent file is written by this module.

The rules:

- A file is created in the target directory with mode 0600, under an unpredictable and unused name. It is renamed to its
  final name when it is complete and on disk. Until then, an existing file of that name is unchanged. After the rename
  the directory is synced too.
- If the name is a symbolic link, the link is followed only if nobody else can have created it: its directory belongs to
  this user or root, and nobody else may write to it. Other hard links to a replaced file keep the old content.
- Pipes and devices are written in place, only if the caller allows it and only if they belong to this user or root.
"""

import errno
import os
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

UNFINISHED: Final = ".partial"  # suffix of a temporary name
LONGEST_NAME: Final = 100  # characters of the final name that the temporary name has
MOST_LINKS: Final = 40  # as many as Linux follows
NO_FILE: Final = "it is no file"
_NEW: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def sync(path: Path) -> None:
    """Sync an existing file to disk; for a directory, the names in it.

    Raises:
        OSError: the file cannot be synced.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes, *, replacing: bool = True) -> None:
    """Write a file atomically and durably. With `replacing`, an existing file is replaced.

    Raises:
        FileExistsError: the file exists and `replacing` is false.
        OSError: the file cannot be written. An existing file is unchanged.
    """
    with NewFile(path, replacing=replacing) as new:
        new.write(content)
        new.settle()


def rename(path: Path, to: Path) -> None:
    """Rename a file within its directory durably, replacing an existing file.

    Raises:
        OSError: the file cannot be renamed.
    """
    path.replace(to)
    sync(to.parent)


def create(path: Path) -> int:
    """Create a file under its final name. Returns its descriptor. The name must tell readers that it may be incomplete.

    Raises:
        FileExistsError: the name is taken.
        OSError: the file cannot be created.
    """
    return os.open(path, _NEW | os.O_RDWR, 0o600)


def open_log(path: Path) -> int:
    """Open a file that is appended to, for reading and writing. Creates it if necessary. Returns its descriptor.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    descriptor = os.open(_followed(path), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _refusal(errno.EINVAL, NO_FILE, path)
    return descriptor


class NewFile:
    """A file being written, by `write` or by other code at the path `place`. `settle` gives it its final name.

    `replacing`: whether an existing file may be replaced; `or_device`: whether `path` may be a pipe or a device. A file
    that was not settled is removed when the object is closed.

    Raises:
        FileExistsError: the file exists and `replacing` is false.
        OSError: the file cannot be created.
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
        """Make the file durable, under its final name.

        Raises:
            FileExistsError: a file of that name was created in the meantime and `replacing` is false.
            OSError: the file cannot be synced or renamed.
        """
        self._file.flush()
        if self._is_device:
            return
        os.fsync(self._file.fileno())
        if self._replacing:
            self.place.replace(self._path)
        else:
            self._path.hardlink_to(self.place)  # unlike a rename, fails if the name is taken
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
    """The path that a name leads to, following trusted symbolic links."""
    for _ in range(MOST_LINKS):
        if _is_descriptor(path) or not path.is_symlink():
            return path
        directory = path.parent.stat()
        if directory.st_mode & _OTHERS_WRITE or not _is_trusted(directory):
            raise _refusal(errno.ELOOP, "it is a link, in a directory that others can write to", path)
        path = path.parent / path.readlink()
    raise _refusal(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _is_device(path: Path) -> bool:
    """Whether the path is a pipe, a device or a descriptor, to be written in place."""
    if _is_descriptor(path):
        return True
    if not path.exists() or path.is_file() or path.is_dir():
        return False
    if not _is_trusted(path.stat()):
        raise _refusal(errno.EPERM, "it is no file, and somebody else's", path)
    return True


def _is_descriptor(path: Path) -> bool:
    """Whether the path is a descriptor of a process: /dev/stdout is a link to one."""
    directory = path.parent.resolve()
    return directory == Path("/dev/fd") or (directory.name == "fd" and directory.parent.parent == Path("/proc"))


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def _refusal(number: int, reason: str, path: Path) -> OSError:
    return OSError(number, reason, str(path))  # Python chooses the subclass by the number: FileExistsError, for example
