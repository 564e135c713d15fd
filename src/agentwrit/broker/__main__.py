"""`python -m agentwrit.broker`: the broker's process. `agentwrit serve` and `agentwrit init` become this."""

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from agentwrit.broker import bootstrap, logs, rewrapping, server
from agentwrit.broker.config import Config, from_environment
from agentwrit.broker.services.operators import set_secret
from agentwrit.domain.errors import AgentWritError, ConfigurationError, TamperedRecord
from agentwrit.domain.note import VerifierKey
from agentwrit.progress import ProgressBar


def main() -> int:
    arguments = _parser().parse_args()
    logs.configure(level="warning", log_format="console")  # as long as no settings have been read
    try:
        return _run(arguments)
    except TamperedRecord as error:
        print(f"agentwrit: {error}", file=sys.stderr)
        return 1 if arguments.command.startswith("verify") else 2
    except AgentWritError as error:
        print(f"agentwrit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("agentwrit: interrupted", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "serve":
        server.serve(
            arguments.config,
            ready_fd=arguments.ready_fd,
            stop_fd=arguments.stop_on_eof,
            listen_fd=arguments.listen_fd,
        )
    elif arguments.command == "health":
        return 0 if server.is_healthy(from_environment(arguments.config)) else 1
    elif arguments.command == "verify-audit":
        _verify_audit(arguments.database, from_environment(arguments.config), arguments.key)
    elif arguments.command == "verify-store":
        _verify_store(arguments.directory, from_environment(arguments.config))
    elif arguments.command == "migrate-store":
        asyncio.run(_migrate(from_environment(arguments.config)))
    elif arguments.command == "copy-store":
        _copy_store(arguments.directory, arguments.to, from_environment(arguments.config))
    elif arguments.command == "rewrap-keys":
        _rewrap_keys(arguments.to, from_environment(arguments.config))
    else:
        secret = asyncio.run(_init(from_environment(arguments.config)))
        _show(secret, print_env=arguments.print_env)
    return 0


async def _init(config: Config) -> str:
    """Make the operator's secret, or make it anew, and store its hash."""
    secret = secrets.token_hex(32)
    async with bootstrap.open_store(config) as opened:
        await set_secret(opened.store, secret)
    return secret


async def _migrate(config: Config) -> None:
    """Make the store, or bring its schema up to date, as a start does."""
    async with bootstrap.open_store(config):
        print("the store is up to date")


def _verify_audit(database: Path, config: Config, texts: Sequence[str]) -> None:
    """Check the audit log in a database file, and say what was checked."""
    try:
        keys = [VerifierKey.parse(text) for text in texts]
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    with ProgressBar() as progress:
        count, covered = bootstrap.verify_audit_log(database, config, keys, progress=progress)
    print(f"verified {count} events")
    if covered is not None:
        print(f"the first {covered.size} are covered by a checkpoint of {covered.origin}")


def _verify_store(directory: Path, config: Config) -> None:
    """Check all that is in a data directory, and say what was checked."""
    with ProgressBar() as progress:
        count = bootstrap.verify_store(directory, config, progress=progress)
    print(f"verified {count} events, and that everything else is as they say")


def _copy_store(directory: Path, url: str | None, config: Config) -> None:
    """Copy a data directory into a database, and say what was copied."""
    url = url or config.database_url
    if url is None:
        raise ConfigurationError("where to copy it to is missing: give --to, or set AGENTWRIT_DATABASE_URL")
    with ProgressBar() as progress:
        counts = bootstrap.copy_store(directory, url, config, progress=progress)
    print(f"copied {', '.join(f'{count} {table}' for table, count in counts.items() if count)}")
    print(f"verified all {counts['events']} events where they are now")
    print("Start brokers with AGENTWRIT_DATABASE_URL, and with the same master key in AGENTWRIT_MASTER_KEY.")


def _rewrap_keys(key_file: Path | None, config: Config) -> None:
    """Move the store to a new master key, and say where the keys are."""
    given = rewrapping.Given(os.environ.get(rewrapping.NEW_MASTER_KEY) or None, key_file)
    with ProgressBar(things="rows") as progress:
        moved = rewrapping.rewrap(config, given, progress=progress)
    if moved.rows is None:
        print("the store is under the new master key already")
    else:
        print(f"moved {moved.rows} rows to the new master key")
    print(moved.where)


def _show(secret: str, *, print_env: bool) -> None:
    if print_env:
        print(f"export AGENTWRIT_ADMIN_SECRET={secret}")
        return
    print(f"The operator's secret, shown this once:\n\n    {secret}\n")
    print("Start the broker with `agentwrit serve`. For the commands that manage it, set AGENTWRIT_ADMIN_SECRET.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agentwrit.broker")
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="serve until told to stop")
    init = commands.add_parser("init", help="make the operator's secret")
    health = commands.add_parser(
        "health", help="ask the broker on this machine how it is; exit with 1 if it is not well"
    )
    verify = commands.add_parser("verify-audit", help="check the audit log in a database file")
    verify.add_argument("database", type=Path, help="a data directory, or a database file")
    verify.add_argument("--key", action="append", default=[], help="a key of checkpoints")
    verify_store = commands.add_parser("verify-store", help="check a data directory against its audit log")
    verify_store.add_argument("directory", type=Path, help="a data directory")
    copying = commands.add_parser("copy-store", help="copy a data directory into a database")
    copying.add_argument("directory", type=Path, help="a data directory that no broker uses")
    copying.add_argument("--to", metavar="URL", help="an empty database; else that of AGENTWRIT_DATABASE_URL")
    migrate = commands.add_parser("migrate-store", help="bring the store up to date")
    rewrapping_keys = commands.add_parser("rewrap-keys", help="move the store to a new master key")
    rewrapping_keys.add_argument("--to", type=Path, metavar="FILE", help="the new key's file; made if it is not there")
    for command in (rewrapping_keys, copying, migrate, serving, init, health, verify, verify_store):
        command.add_argument("--config", type=Path, help="a TOML file with settings")
    serving.add_argument("--ready-fd", type=int, help="write the URL here when listening")
    serving.add_argument("--stop-on-eof", type=int, metavar="FD", help="stop when this descriptor reaches its end")
    serving.add_argument("--listen-fd", type=int, metavar="FD", help="be a worker, and take connections from this")
    init.add_argument("--print-env", action="store_true", help="print a line for the shell instead")
    return parser


if __name__ == "__main__":
    sys.exit(main())
