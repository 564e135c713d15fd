"""The master key of a store: where it comes from, what is derived from it, and which of two keys a store is under."""

from pathlib import Path
from typing import Final

import structlog

from agentwrit.broker.config import Config
from agentwrit.broker.data_directory import DATABASE_FILE, DataDirectory, read_master_key_text, read_new_master_key_text
from agentwrit.broker.keystore import MasterKey
from agentwrit.broker.storage import sqlite_verification
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import ConfigurationError

ROW_MAC: Final = "row-mac"  # the purpose of the key that seals rows

log = structlog.get_logger("agentwrit.master_keys")


def row_sealer(master_key: MasterKey) -> Sealer:
    """The sealer of rows under a master key."""
    return Sealer(master_key.derive(ROW_MAC))


def is_sealed_by(database: Path, text: str) -> bool:
    """Whether a database exists and its rows are under the master key `text`."""
    try:
        key = MasterKey.parse(text)
    except ConfigurationError:
        return False
    return database.is_file() and sqlite_verification.sealed_by(database) == row_sealer(key).name


def at_rest(path: Path, config: Config) -> tuple[Path, Sealer | None]:
    """The database in a data directory, or the file itself, and the sealer of its rows if known."""
    database = path / DATABASE_FILE if path.is_dir() else path
    new = read_new_master_key_text(database.parent)
    if config.master_key is None and new is not None and is_sealed_by(database, new):
        return database, row_sealer(MasterKey.parse(new))  # a change of the key was interrupted after it was done
    text = config.master_key or read_master_key_text(database.parent)
    return database, None if text is None else row_sealer(MasterKey.parse(text))


def load_master_key(config: Config, directory: DataDirectory) -> MasterKey:
    """The master key of a data directory. A new one is created if there is no database yet.

    Raises:
        ConfigurationError: it is missing or invalid.
    """
    if config.master_key is not None:
        return MasterKey.parse(config.master_key)
    is_moved = settle_master_key(directory)
    if is_moved is not None:
        log.warning(
            "a change of the master key was cut short when it was done: master.key is the new one now"
            if is_moved
            else "a change of the master key was cut short before it was done: master.key is the old one, as before"
        )
    text = directory.read_master_key_text()
    if text is not None:
        return MasterKey.parse(text)
    if directory.database.exists():
        raise ConfigurationError(
            f"the master key of {directory.path} is missing: put its master.key back, or set AGENTWRIT_MASTER_KEY"
        )
    return MasterKey.parse(directory.create_master_key())


def settle_master_key(directory: DataDirectory) -> bool | None:
    """Finish an interrupted change of the master key. Returns whether the store is under the new key.

    Returns None if there is no change to finish, or if it cannot be determined; then the new key stays in its file.

    Raises:
        ConfigurationError: the store, which would show it, is gone.
    """
    new, old = directory.read_new_master_key_text(), directory.read_master_key_text()
    if new is None:
        return None
    if not directory.database.is_file():
        raise ConfigurationError(
            f"a change of the master key in {directory.path} was cut short, and {DATABASE_FILE} is missing: put it back"
        )
    if is_sealed_by(directory.database, new):
        directory.take_new_master_key(former=None if old is None else former_name(MasterKey.parse(old)))
        return True
    if old is not None and is_sealed_by(directory.database, old):
        directory.drop_new_master_key()
        return False
    return None


def former_name(master_key: MasterKey) -> str:
    """The suffix that identifies the file of a replaced master key."""
    return row_sealer(master_key).name[:8]
