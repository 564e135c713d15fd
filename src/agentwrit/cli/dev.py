"""`agentwrit dev`: run a command with a temporary broker."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import click

from agentwrit.cli.broker import BROKER, check_installed
from agentwrit.cli.output import say
from agentwrit.cli.signals import Signals, Stopped

# The scopes of all sample apps: for any customer, patient or service. Each agent gets the scope for one of these.
SAMPLE_CEILING: Final = (
    "read:data:*",
    "write:data:*",
    "read:tenant:*",
    "read:patient:*",
    "read:policy:*",
    "write:queue:*",
    "read:run:*",
    "build:service:*",
    "deploy:service:*",
    "verify:service:*",
    "trade:account:*",
    "read:claim:*",
    "pay:claim:*",
)
SAMPLE_APP: Final = "sample-app"

LOOPBACK: Final = "127.0.0.1"  # where a broker listens by default

COMMAND_NOT_FOUND: Final = 127  # as in shells
COMMAND_NOT_EXECUTABLE: Final = 126
STOP_SECONDS: Final = 15
LAST_BYTES: Final = 64 * 1024  # how much to read of the end of the broker's log, which says why it ended


# Options after COMMAND belong to COMMAND: in `agentwrit dev server --port 80`, --port is the server's.
@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="Another scope in the sample app's ceiling.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The broker's port; by default a free port.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def dev(scopes: tuple[str, ...], port: int, command: tuple[str, ...]) -> int:
    """Run COMMAND with a temporary broker: agentwrit dev -- COMMAND…

    The broker has a free port and a temporary data directory. An app is registered for COMMAND, whose environment has
    AGENTWRIT_BROKER_URL, AGENTWRIT_CLIENT_ID, AGENTWRIT_CLIENT_SECRET and AGENTWRIT_ADMIN_SECRET. The exit code is
    that of COMMAND.
    """
    check_installed()
    os.environ.update(_past_proxies(os.environ))  # for this process's call to the broker, and for those of COMMAND
    signals = Signals()
    try:
        with tempfile.TemporaryDirectory(prefix="agentwrit-dev-", ignore_cleanup_errors=True) as directory:
            secret = secrets.token_hex(32)
            with _broker(Path(directory), secret, port, signals) as url:
                with signals.end_us():
                    app = _register(url, secret, [*SAMPLE_CEILING, *scopes])
                return _run(command, {**_without_settings(os.environ), **app}, signals)
    except Stopped as stopped:
        return 128 + stopped.number


@contextlib.contextmanager
def _broker(directory: Path, secret: str, port: int, signals: Signals) -> Iterator[str]:
    """Run a broker. Yields its URL.

    The broker holds one end of a pipe, this process alone the other. If this process ends for whatever reason, the
    broker reads end-of-file and stops.
    """
    ready_read, ready_write = os.pipe()
    stop_read, stop_write = os.pipe()
    log_path = directory / "broker.log"
    settings = {
        "AGENTWRIT_DATA_DIR": str(directory / "data"),
        "AGENTWRIT_ADMIN_SECRET": secret,
        "AGENTWRIT_PORT": str(port),
    }
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *BROKER, "serve", "--ready-fd", str(ready_write), "--stop-on-eof", str(stop_read)],
            env={**_without_settings(os.environ), **settings},
            pass_fds=[ready_write, stop_read],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for COMMAND; the broker outlives it, and this process stops the broker
        )
    os.close(ready_write)
    os.close(stop_read)
    try:
        with os.fdopen(ready_read) as ready, signals.end_us():
            line = ready.readline()
        if not line:
            raise click.ClickException(_last_line(log_path))
        yield str(json.loads(line)["url"])
    finally:
        os.close(stop_write)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _register(url: str, secret: str, ceiling: Sequence[str]) -> dict[str, str]:
    """Register the sample app. Returns the environment variables for COMMAND."""
    from agentwrit.client.operator import OperatorClient  # here, so that `--help` does not wait for it

    with OperatorClient(url, secret) as operator:
        app = operator.register_app(SAMPLE_APP, ceiling)
    return {
        "AGENTWRIT_BROKER_URL": url,
        "AGENTWRIT_CLIENT_ID": app["client_id"],
        "AGENTWRIT_CLIENT_SECRET": app["client_secret"],
        "AGENTWRIT_ADMIN_SECRET": secret,
    }


def _run(command: Sequence[str], environment: Mapping[str, str], signals: Signals) -> int:
    """Run COMMAND and wait for it. Returns its exit code, as a shell would."""
    try:
        process = subprocess.Popen(command, env=environment)
    except FileNotFoundError:
        say(f"{command[0]}: command not found")
        return COMMAND_NOT_FOUND
    except OSError as error:
        say(f"{command[0]}: {error.strerror}")
        return COMMAND_NOT_EXECUTABLE
    with signals.go_to(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


def _without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings for another broker."""
    return {name: value for name, value in environ.items() if not name.startswith("AGENTWRIT_")}


def _past_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that exempt the loopback address from the proxies that `environ` names."""
    direct = environ.get("no_proxy") or environ.get("NO_PROXY") or ""  # clients disagree on which one has precedence
    if direct == "*" or not any(name.lower().endswith("_proxy") for name in environ):
        return {}
    direct = f"{direct},{LOOPBACK}" if direct else LOOPBACK
    return {"no_proxy": direct, "NO_PROXY": direct}


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        lines = file.read(LAST_BYTES).decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("agentwrit: ") if lines else "the broker ended before it listened"
