"""`agentwrit dev`: a private broker for as long as a command runs."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import click

from agentwrit.cli.broker import BROKER, check_installed
from agentwrit.client.operator import OperatorClient

# What the sample apps need: scopes for any customer and any order, of which each agent gets one.
SAMPLE_CEILING: Final = ("read:data:*", "write:data:*")
SAMPLE_APP: Final = "sample-app"

COMMAND_NOT_FOUND: Final = 127  # as shells say it
COMMAND_NOT_EXECUTABLE: Final = 126
INTERRUPT_SECONDS: Final = 0.5
STOP_SECONDS: Final = 15


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="A scope more in the sample app's ceiling.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The broker's port; a free one if not given.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def dev(scopes: tuple[str, ...], port: int, command: tuple[str, ...]) -> int:
    """Run COMMAND with a broker of its own: agentwrit dev -- COMMAND…

    The broker has a free port and a data directory that is thrown away. An app is registered for COMMAND, which finds
    AGENTWRIT_BROKER_URL, AGENTWRIT_CLIENT_ID, AGENTWRIT_CLIENT_SECRET and AGENTWRIT_ADMIN_SECRET in its environment.
    The exit code is COMMAND's.
    """
    check_installed()
    # Turned into an exception, so that whatever stops us, the broker is stopped and its directory removed.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="agentwrit-dev-", ignore_cleanup_errors=True) as directory:
            secret = secrets.token_hex(32)
            with _broker(Path(directory), secret, port) as url:
                environment = {**_without_settings(os.environ), **_register(url, secret, [*SAMPLE_CEILING, *scopes])}
                return _run(command, environment)
    except _Terminated:
        return 128 + signal.SIGTERM


@contextlib.contextmanager
def _broker(directory: Path, secret: str, port: int) -> Iterator[str]:
    """A broker's URL, for as long as the broker runs.

    It holds one end of a pipe whose other end is ours alone: when we are gone, however that came about, it reads the
    end of it and stops.
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
            start_new_session=True,  # Ctrl-C is for COMMAND; the broker outlives it, and is stopped by us
        )
    os.close(ready_write)
    os.close(stop_read)
    try:
        with os.fdopen(ready_read) as ready:
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
    """The environment of an app that was registered for this."""
    with OperatorClient(url, secret) as operator:
        app = operator.register_app(SAMPLE_APP, ceiling)
    return {
        "AGENTWRIT_BROKER_URL": url,
        "AGENTWRIT_CLIENT_ID": app["client_id"],
        "AGENTWRIT_CLIENT_SECRET": app["client_secret"],
        "AGENTWRIT_ADMIN_SECRET": secret,
    }


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run COMMAND to its end. Returns its exit code, as a shell would."""
    try:
        process = subprocess.Popen(command, env=environment)
    except FileNotFoundError:
        print(f"agentwrit: {command[0]}: command not found", file=sys.stderr)
        return COMMAND_NOT_FOUND
    except OSError as error:
        print(f"agentwrit: {command[0]}: {error.strerror}", file=sys.stderr)
        return COMMAND_NOT_EXECUTABLE
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except _Terminated:
            process.terminate()
        except KeyboardInterrupt:
            _interrupt_command(process)


def _interrupt_command(process: subprocess.Popen[bytes]) -> None:
    """Pass Ctrl-C on to COMMAND, if it does not seem to have had it: a terminal sends it to both of us."""
    try:
        process.wait(INTERRUPT_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)


def _without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what is set up for another broker."""
    return {name: value for name, value in environ.items() if not name.startswith("AGENTWRIT_")}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("agentwrit: ") if lines else "the broker ended before it listened"


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough, and what follows must not be cut short
    raise _Terminated
