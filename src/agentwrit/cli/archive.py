"""`agentwrit audit archive`: move the oldest events from the broker's store into files."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from agentwrit.cli import options
from agentwrit.cli.audit import audit_log, checking, held, keys_option
from agentwrit.cli.output import say, say_out

if TYPE_CHECKING:
    from agentwrit.client.audit_log import AuditLog
    from agentwrit.domain.audit_export import Progress
    from agentwrit.domain.note import VerifierKey

PATIENCE_SECONDS: Final = 30

_AGE: Final = re.compile(r"(0|[1-9][0-9]{0,8})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.command()
@click.option(
    "--before", required=True, metavar="AGE", help="Archive events older than 90d, 12h, or a time (RFC 3339)."
)
@click.option("--to", "directory", required=True, type=click.Path(file_okay=False), help="The directory for the files.")
@keys_option
@options.broker_url
def archive(before: str, directory: str, keys: tuple[str, ...], broker_url: str) -> int:
    """Write old events to files, and make the broker remove them.

    Each file is durable and verified before the broker is told of it. Files can be verified on their own (`agentwrit
    audit verify FILE`), and their events can still be proven (`agentwrit audit prove --archive FILE`). Only full tiles
    of 256 events are archived, so a few old events stay. After a crash, run the command again: it continues where it
    stopped.
    """
    until = _until(before)
    with audit_log(broker_url) as log, checking() as progress:
        believed = held(keys) or log.verifier_keys()
        archived, done = log.archives().archived, 0
        while (last := _last(log, until, archived)) > archived:
            path = _write(log, believed, Path(directory), archived, last)
            archived, done = _record(log, believed, path, progress), done + 1
        if done and not _is_removed(log, archived):
            say("the broker has not removed them yet: it continues in the background")
    if not done:
        say_out("nothing to archive: no full tile of 256 events is old enough")
    return 0


def _last(log: "AuditLog", until: str, archived: int) -> int:
    """The last event of the next archive."""
    from agentwrit.domain import audit, audit_archive

    found = log.events({"until": until, "order": "desc", "limit": 1})["events"]
    return audit_archive.last_to_archive(audit.parse_event_id(found[0]["id"]) if found else 0, archived)


def _write(log: "AuditLog", keys: "list[VerifierKey]", directory: Path, archived: int, last: int) -> Path:
    """The next archive, durable: one that was left by an earlier run, or a new one."""
    from agentwrit import archive_files
    from agentwrit.domain import checkpoint

    left_behind = archive_files.left_behind(directory, archived + 1)
    if left_behind is not None:
        return left_behind
    signed = log.checkpoint()
    covered = checkpoint.read(signed, keys)
    with archive_files.NewArchive(directory, archived + 1, last) as file:
        file.write(log.archive(signed, covered, archived, last))
        file.seal()
        return file.path


def _record(log: "AuditLog", keys: "list[VerifierKey]", path: Path, progress: "Progress") -> int:
    """Verify an archive and record it at the broker. Returns its last event."""
    from agentwrit import archive_files
    from agentwrit.domain import audit

    checked = archive_files.check(path, keys, progress=progress)
    log.record_archive(checked)
    say_out(f"archived {audit.event_id(checked.first)} to {audit.event_id(checked.last)} in {path}")
    return checked.last


def _is_removed(log: "AuditLog", last: int) -> bool:
    """Wait up to 30 seconds until the broker has removed the archived events. Returns whether it has."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while log.archives().removed < last:
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(0.1)
    return True


def _until(before: str) -> str:
    """The RFC 3339 time for an age or a time."""
    from agentwrit.domain import timestamps

    age = _AGE.fullmatch(before)
    try:
        at = time.time() - int(age[1]) * _SECONDS[age[2]] if age else timestamps.parse_rfc3339(before)
        return timestamps.rfc3339_micros(at)
    except (ValueError, OverflowError):
        raise click.UsageError("--before takes an age such as 90d, or a time such as 2026-01-31T00:00:00Z") from None
