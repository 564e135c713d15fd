"""`python -m agentwrit.broker`: the broker's process. `agentwrit serve` and `agentwrit init` run it."""

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from agentwrit.broker import logs, server, stores
from agentwrit.broker.config import Config, from_environment
from agentwrit.broker.data_directory import MASTER_KEY_FILE
from agentwrit.broker.offline import backups, databases, renaming, rewrapping, time_setting, verification
from agentwrit.broker.services.operators import set_secret
from agentwrit.broker.services.restoring import Restored
from agentwrit.domain import operator
from agentwrit.domain.errors import AgentWritError, ConfigurationError, TamperedRecord
from agentwrit.domain.note import VerifierKey
from agentwrit.domain.timestamps import rfc3339
from agentwrit.progress import ProgressBar
from agentwrit.standard_streams import complete, tell


def main() -> int:
    complete()
    arguments = _parser().parse_args()
    logs.configure(level="warning", log_format="console")  # until the settings have been read
    try:
        if arguments.command == "serve":
            server.serve(
                arguments.config,
                ready_fd=arguments.ready_fd,
                stop_fd=arguments.stop_on_eof,
                listen_fds=arguments.listen_fd,
                counts_fds=arguments.counts_fds,
            )
        elif arguments.command == "health":
            why = server.check_health(from_environment(arguments.config))
            if why is not None:
                tell(f"agentwrit: {why}")
                return 1
        else:
            _COMMANDS[arguments.command](arguments, from_environment(arguments.config))
    except TamperedRecord as error:
        tell(f"agentwrit: {error}")
        return 1 if arguments.command.startswith("verify") else 2
    except AgentWritError as error:
        tell(f"agentwrit: {error}")
        return 2
    except KeyboardInterrupt:
        tell("agentwrit: interrupted")
        return 130  # 128 + SIGINT, the convention of shells
    return 0


async def _init(config: Config, *, replace: bool) -> str:
    """Create or replace the first operator's secret, and store its hash."""
    secret = secrets.token_hex(32)
    async with stores.open_store(config) as opened:
        known = await opened.store.read(lambda snapshot: snapshot.operator(operator.SUBJECT))
        if known is not None and known.is_active and not replace:
            raise ConfigurationError(
                f"the operator has a secret since {rfc3339(known.updated_at)}: to make a new one, which ends what was"
                " granted on it, run `agentwrit init --replace`"
            )
        await set_secret(opened.store, secret)
    return secret


async def _migrate(config: Config, back_to: int | None) -> None:
    """Create the store or migrate its schema, as startup does; or migrate it back to an older version."""
    if back_to is not None:
        databases.go_back(back_to, config)
        print(f"the store has schema {back_to} again: start brokers of the version that made it")
        return
    async with stores.open_store(config):
        print("the store is up to date")


def _verify_audit(database: Path, config: Config, texts: Sequence[str]) -> None:
    """Verify the audit log in a database file, and print what was verified."""
    try:
        keys = [VerifierKey.parse(text) for text in texts]
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    with ProgressBar() as progress:
        count, covered = verification.verify_audit_log(database, config, keys, progress=progress)
    print(f"verified {count} events")
    if covered is not None:
        print(f"the first {covered.size} are covered by a checkpoint of {covered.origin}")


def _verify_store(directory: Path | None, config: Config) -> None:
    """Verify everything in a store, and print what was verified."""
    with ProgressBar() as progress:
        count = verification.verify_store(directory, config, progress=progress)
    print(f"verified {count} events, and that everything else is as they say")


def _copy_store(directory: Path, url: str | None, config: Config) -> None:
    """Copy a data directory into a database, and print what was copied."""
    url = url or config.database_url
    if url is None:
        raise ConfigurationError("where to copy it to is missing: give --to, or set AGENTWRIT_DATABASE_URL")
    with ProgressBar() as progress:
        counts = databases.copy_store(directory, url, config, progress=progress)
    print(f"copied {', '.join(f'{count} {table}' for table, count in counts.items() if count)}")
    print(f"verified all {counts['events']} events where they are now")
    print("Start brokers with AGENTWRIT_DATABASE_URL, and with the same master key in AGENTWRIT_MASTER_KEY.")


def _back_up(file: Path, config: Config, *, overwrite: bool) -> None:
    """Write a backup, and print what it does not contain."""
    count = backups.back_up(file, config, overwrite=overwrite)
    print(f"wrote {file}, with {count} events, and read it back")
    kept = "AGENTWRIT_MASTER_KEY" if config.master_key is not None else config.data_dir / MASTER_KEY_FILE
    print(f"The master key is not in it. Keep {kept} in another place: without it the backup is worthless.")


def _restore(file: Path, config: Config) -> None:
    """Create a data directory from a backup, and print the result."""
    with ProgressBar() as progress:
        restored = backups.restore(file, config, progress=progress)
    _show_restored(restored)


def _show_restored(restored: Restored) -> None:
    """Print what ended, and what a backup cannot know."""
    print(f"restored what there was at {restored.last_event_at}, when {restored.last_event} was the last event")
    ended = f"ended {restored.grants} grants, forgot {restored.launch_tokens} launch tokens"
    print(f"{ended} and revoked {restored.keys} keys: no token from before holds")
    print("This goes on as it was then. What was changed since, end or change again:")
    for app in restored.apps:
        print(f"  app {app.name} ({app.app_id}), {app.status}, last changed {rfc3339(app.updated_at)}")
    for person in restored.operators:
        print(f"  operator {person.name}, secret set {rfc3339(person.updated_at)}")
    if restored.checkpoint_key is not None:
        key = restored.checkpoint_key
        print(f"  checkpoint key {key.kid}, signs since {rfc3339(key.active_since)}")


def _set_time(config: Config) -> None:
    """Make the store accept the clock, and print the result."""
    done = time_setting.set_time(config)
    print(f"the store's time was {rfc3339(int(done.before))}, and is {rfc3339(int(done.now))} now")
    if done.restored is not None:
        print("It was set back, so that nothing lives longer than it was to:")
        _show_restored(done.restored)


def _rename(config: Config) -> None:
    """Give the store the names in the settings, and print the previous ones."""
    renamed = renaming.rename(config)
    if renamed.before == renamed.now:
        print(f"the store is that of {renamed.now} already")
        return
    print(f"the store was that of {renamed.before or 'nobody yet'}, and is that of {renamed.now} now")
    print("Witnesses of the audit log begin a new file, and whoever names the issuer is told of the new one.")


def _rewrap_keys(key_file: Path | None, config: Config) -> None:
    """Move the store to a new master key, and print where the keys are."""
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


_COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace, Config], None]]] = {
    "init": lambda given, config: _show(asyncio.run(_init(config, replace=given.replace)), print_env=given.print_env),
    "verify-audit": lambda given, config: _verify_audit(given.database, config, given.key),
    "verify-store": lambda given, config: _verify_store(given.directory, config),
    "migrate-store": lambda given, config: asyncio.run(_migrate(config, given.back_to)),
    "copy-store": lambda given, config: _copy_store(given.directory, given.to, config),
    "backup": lambda given, config: _back_up(given.file, config, overwrite=given.overwrite),
    "restore": lambda given, config: _restore(given.file, config),
    "rewrap-keys": lambda given, config: _rewrap_keys(given.to, config),
    "set-time": lambda given, config: _set_time(config),
    "rename-store": lambda given, config: _rename(config),
    "end-restored": lambda given, config: _show_restored(backups.end_restored(config)),
}


def _descriptors(text: str) -> Sequence[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agentwrit.broker")
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="serve until told to stop")
    init = commands.add_parser("init", help="make the operator's secret")
    commands.add_parser("health", help="ask the broker on this machine how it is; exit with 1 if it is not well")
    verify = commands.add_parser("verify-audit", help="check the audit log in a database file")
    verify.add_argument("database", type=Path, help="a data directory, or a database file")
    verify.add_argument("--key", action="append", default=[], help="a key of checkpoints")
    verify_store = commands.add_parser("verify-store", help="check a store against its audit log")
    verify_store.add_argument(
        "directory", type=Path, nargs="?", help="a data directory, or a backup; else the database"
    )
    copying = commands.add_parser("copy-store", help="copy a data directory into a database")
    copying.add_argument("directory", type=Path, help="a data directory that no broker uses")
    copying.add_argument("--to", metavar="URL", help="an empty database; else that of AGENTWRIT_DATABASE_URL")
    migrating = commands.add_parser("migrate-store", help="bring the store up to date")
    migrating.add_argument("--back-to", type=int, metavar="SCHEMA", help="bring it back to this older schema instead")
    backup = commands.add_parser("backup", help="write a backup of a data directory")
    backup.add_argument("file", type=Path, help="where to write it")
    backup.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    restore = commands.add_parser("restore", help="make a data directory from a backup, in which nothing is alive")
    restore.add_argument("file", type=Path, help="a backup")
    commands.add_parser("end-restored", help="end what is alive in a store that was put back")
    commands.add_parser("set-time", help="have a store believe the system's clock, or its database's")
    commands.add_parser("rename-store", help="give a store the issuer and the trust domain of the settings")
    rewrapping_keys = commands.add_parser("rewrap-keys", help="move the store to a new master key")
    rewrapping_keys.add_argument("--to", type=Path, metavar="FILE", help="the new key's file; made if it is not there")
    for command in commands.choices.values():
        command.add_argument("--config", type=Path, help="a TOML file with settings")
    serving.add_argument("--ready-fd", type=int, help="write the URL here when listening")
    serving.add_argument("--stop-on-eof", type=int, metavar="FD", help="stop when this descriptor reaches its end")
    serving.add_argument(
        "--listen-fd",
        type=int,
        metavar="FD",
        action="append",
        default=[],
        help="be a worker, and take connections from this",
    )
    serving.add_argument("--counts-fds", type=_descriptors, metavar="FDS", default=(), help="share counts by these")
    init.add_argument("--replace", action="store_true", help="make a new secret where there is one")
    init.add_argument("--print-env", action="store_true", help="print a line for the shell instead")
    return parser


if __name__ == "__main__":
    sys.exit(main())
