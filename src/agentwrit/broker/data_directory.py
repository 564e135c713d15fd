"""The data directory of the embedded store: private, and one broker's at a time."""

import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from agentwrit.domain.errors import ConfigurationError

MASTER_KEY_FILE: Final = "master.key"
LOCK_FILE: Final = "lock"
DATABASE_FILE: Final = "agentwrit.db"
RESTORING: Final = ".restoring"  # the end of its name for as long as it is being restored


def read_master_key_text(directory: Path) -> str | None:
    """What the key file in a data directory says, or None if there is none.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return (directory / MASTER_KEY_FILE).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{directory / MASTER_KEY_FILE} cannot be read: {error}") from error


class DataDirectory:
    """A directory of mode 0700, locked for as long as the object is open. The lock dies with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _prepare(path)

    def read_master_key_text(self) -> str | None:
        """What the key file says, or None if there is none yet."""
        return read_master_key_text(self.path)

    @property
    def database(self) -> Path:
        """Where the database is, or will be."""
        return self.path / DATABASE_FILE

    @property
    def restoring(self) -> Path:
        """Where a database is until it can be used: it is being made from a backup."""
        return self.path / (DATABASE_FILE + RESTORING)

    @property
    def has_store(self) -> bool:
        """Whether there is a database, or a write-ahead log that belonged to one."""
        return any((self.path / (DATABASE_FILE + end)).exists() for end in ("", "-wal"))

    def clear_restoring(self) -> None:
        """Take away what a restore has left that was not finished."""
        for end in ("", "-wal", "-shm", "-journal"):
            self.restoring.with_name(self.restoring.name + end).unlink(missing_ok=True)

    def finish_restoring(self) -> None:
        """Make what was restored the database, durably."""
        self.restoring.rename(self.database)
        self._sync()

    def create_master_key(self) -> str:
        """Make the key file, durably: what is wrapped under a key that a power cut takes away is lost."""
        text = secrets.token_hex(32)
        descriptor = os.open(self.path / MASTER_KEY_FILE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._sync()
        return text

    def close(self) -> None:
        os.close(self._lock)

    def _sync(self) -> None:
        directory = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _prepare(path: Path) -> int:
    """Make the directory if need be, and take its lock. Returns the lock's descriptor."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(path)
        lock = os.open(path / LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the data directory {path} is not usable ({error.strerror}):"
            " make it writable for this user, or set AGENTWRIT_DATA_DIR to another one"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ConfigurationError(
            f"the data directory {path} is in use by another broker: stop it, or set AGENTWRIT_DATA_DIR to another one"
        ) from None
    return lock


def _make_private(path: Path) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077 == 0:
        return
    # A directory that is ours alone is made private; one that holds other things is not ours to close.
    others = [entry.name for entry in path.iterdir() if entry.name not in (LOCK_FILE, MASTER_KEY_FILE)]
    if any(not name.startswith(DATABASE_FILE) for name in others):
        raise ConfigurationError(
            f"the data directory {path} is open to other users and holds other files:"
            " set AGENTWRIT_DATA_DIR to a directory of its own"
        )
    path.chmod(0o700)
