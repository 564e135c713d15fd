"""Moving a store that no broker uses to a new master key.

The new key is on disk before anything is under it, and the store records which key it is under. So after an
interruption at any point, the store opens with the old key or with the new one, and both are available.
"""

import secrets
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from agentwrit.broker import master_keys, stores
from agentwrit.broker.clock import Clock
from agentwrit.broker.config import Config
from agentwrit.broker.data_directory import (
    DATABASE_FILE,
    MASTER_KEY_FILE,
    DataDirectory,
    read_key_file,
    write_key_file,
)
from agentwrit.broker.keystore import KEY_BYTES, KeyWrap, MasterKey
from agentwrit.broker.storage import sqlite_rewrap, sqlite_verification
from agentwrit.broker.storage.sql_rewrap import Keys
from agentwrit.domain.audit_export import Progress
from agentwrit.domain.errors import ConfigurationError

NEW_MASTER_KEY: Final = "AGENTWRIT_NEW_MASTER_KEY"


class Given(NamedTuple):
    """The source of the new key: a variable's value, or a file, which is created if it does not exist."""

    text: str | None = None
    file: Path | None = None


class Moved(NamedTuple):
    """The number of moved rows, None if the store was already under the new key, and where the keys are now."""

    rows: int | None
    where: str


def rewrap(config: Config, given: Given, *, progress: Progress) -> Moved:
    """Move the store of these settings to another master key.

    A data directory with its key in a file needs no given key: a new one is generated.

    Raises:
        TamperedRecord: a row, or the end of the audit log, is not the broker's. Nothing was changed.
        ConfigurationError: a broker runs, the store or a key cannot be used, or a required new key is missing.
    """
    if given.text is not None and given.file is not None:
        raise ConfigurationError(f"give the new master key in {NEW_MASTER_KEY} or with --to, not both")
    if config.database_url is not None:
        return _shared(config, config.database_url, given, progress)
    if not (config.data_dir / DATABASE_FILE).is_file():
        raise ConfigurationError(f"{config.data_dir} is no data directory of a broker: it has no database")
    with closing(DataDirectory(config.data_dir)) as directory:
        if config.master_key is None:
            return _with_key_file(config, directory, given, progress)
        new = _new_key(given)
        keys = _keys(MasterKey.parse(config.master_key), new)
        return Moved(_embedded(directory, keys, progress), _where(given))


def _with_key_file(config: Config, directory: DataDirectory, given: Given, progress: Progress) -> Moved:
    """Move a data directory with its master key in a file, and put the new key in its place."""
    where = f"{directory.path / MASTER_KEY_FILE} is the new one"
    if master_keys.settle_master_key(directory):
        return Moved(None, where)
    old = master_keys.load_master_key(config, directory)
    new = MasterKey(secrets.token_bytes(KEY_BYTES)) if given == Given() else _new_key(given)
    if sqlite_verification.sealed_by(directory.database) == master_keys.row_sealer(new).name:
        return Moved(None, where)
    former = directory.path / f"{MASTER_KEY_FILE}.{master_keys.former_name(old)}"
    directory.keep_new_master_key(new.text)
    try:
        rows = _embedded(directory, _keys(old, new), progress)
    finally:
        master_keys.settle_master_key(directory)
    return Moved(rows, f"{where}, {former.name} beside it the old one: backups made before need that")


def _embedded(directory: DataDirectory, keys: Keys, progress: Progress) -> int | None:
    if sqlite_verification.sealed_by(directory.database) == keys.new.name:
        return None
    return sqlite_rewrap.rewrap(directory.database, keys, Clock(), progress=progress)


def _shared(config: Config, url: str, given: Given, progress: Progress) -> Moved:
    with stores.driver_of_postgres():
        from agentwrit.broker.storage import postgres_rewrap
    keys = _keys(MasterKey.parse(config.master_key or ""), _new_key(given))
    sealed_by = postgres_rewrap.sealed_by(url)
    if sealed_by is None:
        raise ConfigurationError("the database has no store of a broker: check AGENTWRIT_DATABASE_URL")
    if sealed_by == keys.new.name:
        return Moved(None, _where(given))
    return Moved(postgres_rewrap.rewrap(url, stores.cluster_name(config), keys, progress=progress), _where(given))


def _keys(old: MasterKey, new: MasterKey) -> Keys:
    return Keys(
        master_keys.row_sealer(old),
        master_keys.row_sealer(new),
        partial(KeyWrap(new).rewrapped, before=KeyWrap(old)),
    )


def _new_key(given: Given) -> MasterKey:
    """The new key, which is on disk or was given by the operator.

    Raises:
        ConfigurationError: it is missing or invalid.
    """
    if given.file is not None:
        source, text = str(given.file), read_key_file(given.file)
        if text is None:
            text = secrets.token_hex(KEY_BYTES)
            write_key_file(given.file, text)
    elif given.text is not None:
        source, text = NEW_MASTER_KEY, given.text
    else:
        raise ConfigurationError(
            f"give the new master key: a file with --to, where one is made if there is none, or {NEW_MASTER_KEY}"
        )
    try:
        return MasterKey.parse(text)
    except ConfigurationError:
        raise ConfigurationError(f"{source} is not 32 bytes in hex or base64") from None


def _where(given: Given) -> str:
    source = f"what is in {given.file}" if given.file is not None else "the new one"
    return (
        f"start brokers with AGENTWRIT_MASTER_KEY set to {source}, and keep the old one with the backups that need it"
    )
