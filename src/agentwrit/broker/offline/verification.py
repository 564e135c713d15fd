"""Verifying a store that is not being served: its audit log, and everything else in it against the log."""

from collections.abc import Sequence
from pathlib import Path

from agentwrit.broker.clock import Clock
from agentwrit.broker.config import Config
from agentwrit.broker.keystore import MasterKey
from agentwrit.broker.master_keys import at_rest, row_sealer
from agentwrit.broker.services import state_check
from agentwrit.broker.storage import sqlite_verification
from agentwrit.broker.stores import driver_of_postgres
from agentwrit.domain.audit_export import Progress
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import ConfigurationError
from agentwrit.domain.note import VerifierKey


def verify_audit_log(
    path: Path, config: Config, keys: Sequence[VerifierKey], *, progress: Progress
) -> tuple[int, Checkpoint | None]:
    """Verify the audit log in a data directory, or in a copied database file. Changes nothing.

    Raises:
        TamperedRecord: the log is not as the broker left it. The message names the first wrong event.
        ConfigurationError: there is no database, or no key to verify it with.
    """
    database, sealer = at_rest(path, config)
    return sqlite_verification.verify(database, sealer, keys, progress=progress)


def verify_store(path: Path | None, config: Config, *, progress: Progress) -> int:
    """Verify everything in a data directory: its audit log, and the rest against the log. Changes nothing.

    `path`: None for the shared database.

    Returns the number of events.

    Raises:
        TamperedRecord: something was altered, deleted, or replaced by an older version. The message names it.
        ConfigurationError: there is no database, or no master key.
    """
    if path is None:
        return _verify_shared(config, progress)
    database, sealer = at_rest(path, config)
    if sealer is None:
        raise ConfigurationError(f"the master key of {path} is missing: put its master.key there, or set its variable")
    count, _ = sqlite_verification.verify(database, sealer, progress=progress)
    with sqlite_verification.snapshot(database, sealer) as snapshot:
        state_check.check(snapshot, Clock().now(), progress=progress)
    return count


def _verify_shared(config: Config, progress: Progress) -> int:
    if config.database_url is None:
        raise ConfigurationError("what to verify is missing: name a data directory, or set AGENTWRIT_DATABASE_URL")
    with driver_of_postgres():
        from agentwrit.broker.storage import postgres_verification
    sealer = row_sealer(MasterKey.parse(config.master_key or ""))
    with postgres_verification.verified(config.database_url, sealer, progress=progress) as snapshot:
        state_check.check(snapshot, Clock().now(), progress=progress)
        return snapshot.event_head()
