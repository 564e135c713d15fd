"""The data directory of the embedded store: private, and one broker's at a time.

While the master key is changed, the new one is in a file beside that of the old. Which of the two the store is under,
the store says: with the next one who opens it the right one stays.
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
LOGS: Final = ("-wal", "-journal")  # what SQLite has beside a database, and takes for its newest part when it is opened
RESTORING: Final = ".restoring"  # the end of its name for as long as it is being restored


def read_key_file(path: Path) -> str | None:
    """What a key file says, or None if there is none.

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
    """Make a key file, or replace it, whole and durably: what is under a key that a power cut takes away is lost.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        durable.write(path, f"{text}\n".encode("ascii"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


def read_master_key_text(directory: Path) -> str | None:
    """What the key file in a data directory says, or None if there is none.

    Raises:
        ConfigurationError: it cannot be read.
    """
    return read_key_file(directory / MASTER_KEY_FILE)


def read_new_master_key_text(directory: Path) -> str | None:
    """What the file of the new key says, while the key is being changed or since that was cut short."""
    return read_key_file(directory / NEW_MASTER_KEY_FILE)


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
        """Whether there is a database, or a log or journal that belonged to one."""
        return any((self.path / (DATABASE_FILE + end)).exists() for end in ("", *LOGS))

    def clear_restoring(self) -> None:
        """Take away what a restore has left that was not finished."""
        for end in ("", "-shm", *LOGS):
            self.restoring.with_name(self.restoring.name + end).unlink(missing_ok=True)

    def finish_restoring(self) -> None:
        """Make what was restored the database, durably."""
        durable.rename(self.restoring, self.database)

    def create_master_key(self) -> str:
        """Make the key file, durably: what is wrapped under a key that a power cut takes away is lost."""
        text = secrets.token_hex(32)
        durable.write(self.path / MASTER_KEY_FILE, f"{text}\n".encode("ascii"), replacing=False)
        return text

    def read_new_master_key_text(self) -> str | None:
        """What the file of the new key says, if there is one."""
        return read_new_master_key_text(self.path)

    def keep_new_master_key(self, text: str) -> None:
        """Have the new key at hand, durably, before anything is under it."""
        write_key_file(self.path / NEW_MASTER_KEY_FILE, text)

    def take_new_master_key(self, *, former: str | None) -> None:
        """Let the new key take the old one's place, which is kept for backups in a file with the suffix `former`."""
        text = self.read_master_key_text()
        if text is not None and former is not None:
            write_key_file(self.path / f"{MASTER_KEY_FILE}.{former}", text)
        durable.rename(self.path / NEW_MASTER_KEY_FILE, self.path / MASTER_KEY_FILE)

    def drop_new_master_key(self) -> None:
        """Forget a new key that nothing is under."""
        (self.path / NEW_MASTER_KEY_FILE).unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._lock)


def _prepare(path: Path) -> int:
    """Make the directory if need be, and take its lock. Returns the lock's descriptor."""
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
        unfinished.unlink()  # its writer was killed; a key may be in it
    return lock


def _make_private(path: Path) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077 == 0:
        return
    # A directory that is ours alone is made private; one that holds other things is not ours to close.
    others = [entry.name for entry in path.iterdir() if entry.name != LOCK_FILE]
    if any(not name.removeprefix(".").startswith((DATABASE_FILE, MASTER_KEY_FILE)) for name in others):
        raise ConfigurationError(
            f"the data directory {path} is open to other users and holds other files:"
            " set AGENTWRIT_DATA_DIR to a directory of its own"
        )
    path.chmod(0o700)
