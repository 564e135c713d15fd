"""`agentwrit serve`, `init`, `backup`, `restore` and `store`: each replaces this process by the broker's program."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

import click

from agentwrit.cli import ANSWER_IS_NO, INSTALL_HINT, options
from agentwrit.cli.output import confirmed

BROKER = ("-m", "agentwrit.broker")


def check_installed() -> None:
    """Fail with an installation hint if the broker's dependencies are missing."""
    if find_spec("httptools") is None:
        raise click.ClickException(INSTALL_HINT)


@click.command()
@options.config_file
def serve(config: str | None) -> None:
    """Run a broker.

    AGENTWRIT_* variables, or the same names in a TOML file, configure it. Its data is in AGENTWRIT_DATA_DIR (by default
    agentwrit-data). SIGTERM and Ctrl-C stop it cleanly.
    """
    _become("serve", config)


@click.command()
@options.config_file
@click.option("--replace", is_flag=True, help="Replace an existing secret, and end all grants made on it.")
@click.option("--print-env", is_flag=True, help="Print a line for the shell instead.")
def init(config: str | None, replace: bool, print_env: bool) -> None:
    """Create the operator's secret.

    The secret is shown only once; its argon2id hash is stored. The broker must not be running.
    """
    _become("init", config, *(["--replace"] if replace else []), *(["--print-env"] if print_env else []))


def verify_audit(database: str, keys: Sequence[str]) -> NoReturn:
    """Verify the audit log in a data directory or a database file."""
    _become("verify-audit", None, *(f"--key={key}" for key in keys), "--", database)


def rewrap_keys(config: str | None, key_file: str | None) -> NoReturn:
    """Move the store to a new master key."""
    _become("rewrap-keys", config, *([f"--to={key_file}"] if key_file is not None else []))


@click.group()
def store() -> None:
    """Maintain the broker's store."""


@store.command(name="verify")
@click.argument("directory", type=click.Path(exists=True), required=False)
@options.config_file
def verify_store(directory: str | None, config: str | None) -> None:
    """Verify a store: the audit log, and all other data against it.

    DIRECTORY is a data directory or a backup. Without it, verifies the database of AGENTWRIT_DATABASE_URL, in one
    committed state.

    Finds data that was altered, deleted, or reset to an earlier state: a released grant, an app's old ceiling, a
    revoked key. Changes nothing; the broker may be running. Exits with 1 and names the fault if something is wrong.
    """
    _become("verify-store", config, *(["--", directory] if directory is not None else []))


@store.command(name="copy")
@click.option("--from", "directory", required=True, type=click.Path(exists=True, file_okay=False), metavar="DIR")
@click.option("--to", "url", metavar="URL", help="The database; by default that of AGENTWRIT_DATABASE_URL.")
@options.config_file
def copy_store(directory: str, url: str | None, config: str | None) -> None:
    """Copy a data directory into an empty PostgreSQL database.

    DIR is the data directory of a stopped broker. Everything is copied: apps, live tokens, keys and the audit log,
    which is verified at the destination. If anything is wrong, nothing is written.
    """
    _become("copy-store", config, *([f"--to={url}"] if url is not None else []), "--", directory)


@store.command(name="migrate")
@click.option("--back-to", type=int, metavar="SCHEMA", help="Downgrade a database to this older schema instead.")
@options.config_file
def migrate_store(back_to: int | None, config: str | None) -> None:
    """Migrate the store to this version's schema. Creates the store if there is none.

    A broker does this when it starts. Use the command to migrate, or to see that it fails, before you replace a broker.

    With --back-to, brokers of an older version can continue with the same data. They name their schema when they refuse
    to start. No broker may be running.
    """
    _become("migrate-store", config, *([f"--back-to={back_to}"] if back_to is not None else []))


@store.command(name="restored")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@options.config_file
def end_restored(yes: bool, config: str | None) -> int:
    """Declare that a store was restored with other tools.

    Use it for a database that was restored with its own tools (AGENTWRIT_DATABASE_URL), or a data directory from a disk
    snapshot; `agentwrit restore` does the same by itself. All earlier grants end, and new keys sign. Run it before a
    broker starts on the store.
    """
    question = "End everything that was granted in this store, and revoke its signing keys?"
    if yes or confirmed(sys.stdin, question, "ending everything"):
        _become("end-restored", config)
    return ANSWER_IS_NO


@store.command(name="clock")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@options.config_file
def set_time(yes: bool, config: str | None) -> int:
    """Set the store's time to the system's clock.

    With PostgreSQL, that is the clock of the database server. A store's time never runs backwards, and no broker starts
    on a store that was last used more than 30 days ago, so a clock that was wrong for a moment can have lasting
    effects. Correct the clock, stop the broker, and run this. If the store's time was later, all grants end, as with
    `restored`. The broker must not be running.
    """
    question = "Set the store's time to that of the clock? If that is earlier, everything that was granted ends."
    if yes or confirmed(sys.stdin, question, "setting a store's time"):
        _become("set-time", config)
    return ANSWER_IS_NO


@store.command(name="rename")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@options.config_file
def rename_store(yes: bool, config: str | None) -> int:
    """Change the store's issuer and trust domain.

    The new names are AGENTWRIT_ISSUER and AGENTWRIT_TRUST_DOMAIN. A broker whose settings differ from its store does
    not start. After the change, tokens of another issuer are refused, new agents get ids in the new trust domain, and
    the audit log continues under the new name. The broker must not be running.
    """
    if yes or confirmed(sys.stdin, "Give this store the names in the settings?", "renaming a store"):
        _become("rename-store", config)
    return ANSWER_IS_NO


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@options.config_file
def backup(file: str, overwrite: bool, config: str | None) -> None:
    """Write a backup of the broker's data directory to FILE. The broker may be running.

    The backup is one consistent state, verified before FILE gets its name. It does not contain the master key: keep
    that in another place. Back up a store in PostgreSQL with the database's own tools.
    """
    _become("backup", config, *(["--overwrite"] if overwrite else []), "--", file)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@options.config_file
def restore(file: str, config: str | None) -> None:
    """Create the broker's data directory from the backup FILE. It must not contain a store yet.

    All earlier grants end, and new keys sign, so nothing that was revoked after the backup becomes valid again. Prints
    what is again as it was in the backup, so that you can repeat later changes.
    """
    _become("restore", config, "--", file)


def _become(command: str, config: str | None, *arguments: str) -> NoReturn:
    check_installed()
    given = ["--config", config] if config is not None else []
    os.execv(sys.executable, [sys.executable, *BROKER, command, *given, *arguments])  # noqa: S606  # no shell is meant
