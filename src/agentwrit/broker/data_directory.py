"""The data directory of the embedded store: private, and used by one broker at a time.

During a change of the master key, the new key is in a file beside the old one. The store knows which of the two it is
under: the next process that opens it keeps the right one.
"""

import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from agentwrit import durable
from agentwrit.domain.errors import AgentWritError, ConfigurationError
from agentwrit.reading import small_text

MASTER_KEY_FILE: Final = "master.key"
NEW_MASTER_KEY_FILE: Final = "master.key.new"
LOCK_FILE: Final = "lock"
DATABASE_FILE: Final = "agentwrit.db"
LOGS: Final = ("-wal", "-journal")  # files beside a database that SQLite would apply to it on opening
RESTORING: Final = ".restoring"  # the suffix of a database's name while it is being restored


def read_key_file(path: Path) -> str | None:
    """The content of a key file, or None if there is none.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return small_text(path, "ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, AgentWritError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def write_key_file(path: Path, text: str) -> None:
    """Create or replace a key file, whole and durably. Data under a key that is lost in a power failure is lost too.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        durable.write(path, f"{text}\n".encode("ascii"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


def read_master_key_text(directory: Path) -> str | None:
    """The content of the key file in a data directory, or None if there is none.

    Raises:
        ConfigurationError: it cannot be read.
    """
    return read_key_file(directory / MASTER_KEY_FILE)


def read_new_master_key_text(directory: Path) -> str | None:
    """The content of the new key's file, during a change of the key or after an interrupted one."""
    return read_key_file(directory / NEW_MASTER_KEY_FILE)


class DataDirectory:
    """A directory of mode 0700, locked while the object is open. The lock ends with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _prepare(path)

    def read_master_key_text(self) -> str | None:
        """The content of the key file, or None if there is none yet."""
        return read_master_key_text(self.path)

    @property
    def database(self) -> Path:
        """The path of the database."""
        return self.path / DATABASE_FILE

    @property
    def restoring(self) -> Path:
        """The path of a database that is being created from a backup."""
        return self.path / (DATABASE_FILE + RESTORING)

    @property
    def has_store(self) -> bool:
        """Whether there is a database, or the log or journal of one."""
        return any((self.path / (DATABASE_FILE + end)).exists() for end in ("", *LOGS))

    def clear_restoring(self) -> None:
        """Remove what an unfinished restore has left."""
        for end in ("", "-shm", *LOGS):
            self.restoring.with_name(self.restoring.name + end).unlink(missing_ok=True)

    def finish_restoring(self) -> None:
        """Make the restored file the database, durably."""
        durable.rename(self.restoring, self.database)

    def create_master_key(self) -> str:
        """Create the key file, durably. Data under a key that is lost in a power failure is lost too."""
        text = secrets.token_hex(32)
        durable.write(self.path / MASTER_KEY_FILE, f"{text}\n".encode("ascii"), replacing=False)
        return text

    def read_new_master_key_text(self) -> str | None:
        """The content of the new key's file, if there is one."""
        return read_new_master_key_text(self.path)

    def keep_new_master_key(self, text: str) -> None:
        """Write the new key, durably, before anything is under it."""
        write_key_file(self.path / NEW_MASTER_KEY_FILE, text)

    def take_new_master_key(self, *, former: str | None) -> None:
        """Put the new key in the old one's place. The old one is kept for backups, with the suffix `former`."""
        text = self.read_master_key_text()
        if text is not None and former is not None:
            write_key_file(self.path / f"{MASTER_KEY_FILE}.{former}", text)
        durable.rename(self.path / NEW_MASTER_KEY_FILE, self.path / MASTER_KEY_FILE)

    def drop_new_master_key(self) -> None:
        """Remove a new key that nothing is under."""
        (self.path / NEW_MASTER_KEY_FILE).unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._lock)


def _prepare(path: Path) -> int:
    """Create the directory if needed, and take its lock. Returns the lock's descriptor."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(path)
        lock = os.open(path / LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
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
    for unfinished in path.glob(f".*{durable.UNFINISHED}"):
        unfinished.unlink()  # its writer was killed; it may contain a key
    return lock


def _make_private(path: Path) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077 == 0:
        return
    # A directory that only the broker uses is made private; one with other files is not the broker's to close.
    others = [entry.name for entry in path.iterdir() if entry.name != LOCK_FILE]
    if any(not name.removeprefix(".").startswith((DATABASE_FILE, MASTER_KEY_FILE)) for name in others):
        raise ConfigurationError(
            f"the data directory {path} is open to other users and holds other files:"
            " set AGENTWRIT_DATA_DIR to a directory of its own"
        )
    path.chmod(0o700)
