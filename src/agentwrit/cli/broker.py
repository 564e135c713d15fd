"""`agentwrit serve`, `init`, `backup`, `restore` and `store`: this process becomes the broker's."""

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
    """Say what to install where the broker's part is missing."""
    if find_spec("httptools") is None:
        raise click.ClickException(INSTALL_HINT)


@click.command()
@options.config_file
def serve(config: str | None) -> None:
    """Run a broker.

    It is set up by AGENTWRIT_* variables or the same names in a TOML file, keeps its data in AGENTWRIT_DATA_DIR
    (agentwrit-data), and stops cleanly on SIGTERM and Ctrl-C.
    """
    _become("serve", config)


@click.command()
@options.config_file
@click.option("--replace", is_flag=True, help="Make a new secret where there is one, and end what was granted on it.")
@click.option("--print-env", is_flag=True, help="Print a line for the shell instead.")
def init(config: str | None, replace: bool, print_env: bool) -> None:
    """Make the operator's secret.

    It is shown this once; what is stored is its argon2id hash. The broker must not be running.
    """
    _become("init", config, *(["--replace"] if replace else []), *(["--print-env"] if print_env else []))


def verify_audit(database: str, keys: Sequence[str]) -> NoReturn:
    """Check the audit log in a data directory or a database file."""
    _become("verify-audit", None, *(f"--key={key}" for key in keys), "--", database)


def rewrap_keys(config: str | None, key_file: str | None) -> NoReturn:
    """Move the store to a new master key."""
    _become("rewrap-keys", config, *([f"--to={key_file}"] if key_file is not None else []))


@click.group()
def store() -> None:
    """Look after the broker's store."""


@store.command(name="verify")
@click.argument("directory", type=click.Path(exists=True), required=False)
@options.config_file
def verify_store(directory: str | None, config: str | None) -> None:
    """Check the audit log in DIRECTORY, or in a backup, and everything else there against the log.

    Without DIRECTORY it is the database of AGENTWRIT_DATABASE_URL, as one committed state has it.

    Finds what was altered, deleted, or put back as it once was: a released grant, an app's old ceiling, a revoked key.
    Changes nothing; the broker may be running. Exits with 1 where something is wrong, and says what.
    """
    _become("verify-store", config, *(["--", directory] if directory is not None else []))


@store.command(name="copy")
@click.option("--from", "directory", required=True, type=click.Path(exists=True, file_okay=False), metavar="DIR")
@click.option("--to", "url", metavar="URL", help="The database; else that of AGENTWRIT_DATABASE_URL.")
@options.config_file
def copy_store(directory: str, url: str | None, config: str | None) -> None:
    """Copy the data directory DIR of a broker that is stopped into an empty PostgreSQL database.

    Everything goes along: apps, live tokens, keys, and the audit log, which is verified where it arrives. Where
    anything is wrong nothing is written.
    """
    _become("copy-store", config, *([f"--to={url}"] if url is not None else []), "--", directory)


@store.command(name="migrate")
@click.option("--back-to", type=int, metavar="SCHEMA", help="Bring a database back to this older schema instead.")
@options.config_file
def migrate_store(back_to: int | None, config: str | None) -> None:
    """Bring the store up to this version, and make it where there is none.

    A broker does so itself when it starts. This is for those who want it done, or refused, before they replace one.

    With --back-to all that is in a database goes on, under brokers of an older version: of which schema they are, they
    say when they refuse to start. No broker may be running.
    """
    _become("migrate-store", config, *([f"--back-to={back_to}"] if back_to is not None else []))


@store.command(name="restored")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.config_file
def end_restored(yes: bool, config: str | None) -> int:
    """Tell a store that it was put back from a backup, by other means than `agentwrit restore`.

    That is a database that was restored with its own tools (AGENTWRIT_DATABASE_URL), or a data directory from a
    snapshot of its disk. As with `restore`, everything that was granted before ends, and new keys sign. Run it before
    a broker is started on it.
    """
    question = "End everything that was granted in this store, and revoke its signing keys?"
    if yes or confirmed(sys.stdin, question, "ending everything"):
        _become("end-restored", config)
    return ANSWER_IS_NO


@store.command(name="clock")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.config_file
def set_time(yes: bool, config: str | None) -> int:
    """Have the store believe the system's clock; where it is in PostgreSQL, that server's.

    A store's time never runs back, and no broker starts on one that was used last more than 30 days ago: so a clock
    that was wrong for a moment can be wrong for long. Set the clock right, stop the broker, and run this. If the
    store's time was later, everything that was granted ends, as with `restored`. The broker must not be running.
    """
    question = "Have the store go on from the time of the clock? If that is earlier, everything that was granted ends."
    if yes or confirmed(sys.stdin, question, "setting a store's time"):
        _become("set-time", config)
    return ANSWER_IS_NO


@store.command(name="rename")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.config_file
def rename_store(yes: bool, config: str | None) -> int:
    """Give the store AGENTWRIT_ISSUER and AGENTWRIT_TRUST_DOMAIN as they are set now.

    A broker with other names than its store's does not start. Tokens of another issuer are refused from then on, new
    agents get ids in the new trust domain, and the audit log goes on under another name. The broker must not be
    running.
    """
    if yes or confirmed(sys.stdin, "Give this store the names in the settings?", "renaming a store"):
        _become("rename-store", config)
    return ANSWER_IS_NO


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@options.config_file
def backup(file: str, overwrite: bool, config: str | None) -> None:
    """Write a backup of the broker's data directory to FILE. The broker may be running.

    It is one consistent state, read back before FILE gets its name. The master key is not in it: keep that in another
    place. A store in PostgreSQL is backed up with the database's own tools.
    """
    _become("backup", config, *(["--overwrite"] if overwrite else []), "--", file)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@options.config_file
def restore(file: str, config: str | None) -> None:
    """Make the broker's data directory from the backup FILE. There must be no store in it yet.

    Everything that was granted before ends, and new keys sign: what was revoked after the backup does not live again.
    Prints what goes on as it was in the backup, for you to change again what was changed since.
    """
    _become("restore", config, "--", file)


def _become(command: str, config: str | None, *arguments: str) -> NoReturn:
    check_installed()
    given = ["--config", config] if config is not None else []
    os.execv(sys.executable, [sys.executable, *BROKER, command, *given, *arguments])  # noqa: S606  # no shell is meant
