"""`agentwrit serve` and `agentwrit init`: this process becomes the broker's."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

import click

from agentwrit.cli import INSTALL_HINT, options

BROKER = ("-m", "agentwrit.broker")


def check_installed() -> None:
    """Say what to install where the broker's part is missing."""
    if find_spec("uvicorn") is None:
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
@click.option("--print-env", is_flag=True, help="Print a line for the shell instead.")
def init(config: str | None, print_env: bool) -> None:
    """Make the operator's secret, or make it anew.

    It is shown this once; what is stored is its argon2id hash. The broker must not be running.
    """
    _become("init", config, *(["--print-env"] if print_env else []))


def verify_audit(database: str, keys: Sequence[str]) -> NoReturn:
    """Check the audit log in a data directory or a database file."""
    _become("verify-audit", None, *(f"--key={key}" for key in keys), "--", database)


def _become(command: str, config: str | None, *arguments: str) -> NoReturn:
    check_installed()
    given = ["--config", config] if config is not None else []
    os.execv(sys.executable, [sys.executable, *BROKER, command, *given, *arguments])  # noqa: S606  # no shell is meant
