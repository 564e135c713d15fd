"""`agentwrit audit`: the audit log, read, exported, checked and proven."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agentwrit import reading
from agentwrit.cli import broker, options
from agentwrit.cli.output import (
    STANDARD_OUTPUT,
    print_json,
    print_json_line,
    print_table,
    say,
    say_out,
    written,
)
from agentwrit.progress import ProgressBar

if TYPE_CHECKING:
    from agentwrit.client.audit_log import AuditLog
    from agentwrit.domain.audit import Head
    from agentwrit.domain.audit_export import Progress, Verified
    from agentwrit.domain.note import VerifierKey

PAGE: Final = 1000
FOLLOW_SECONDS: Final = 1.0


@click.group()
def audit() -> None:
    """Read the audit log, and check that it is whole.

    A log is checked against a checkpoint that the broker signed. Whose checkpoint it is, a key says that you hold: note
    it down once (`agentwrit audit keys`), away from the broker, and give it with --key. Exits with 1 where the log, an
    export or a proof is not what was signed.
    """


keys_option = click.option(
    "--key", "keys", multiple=True, metavar="KEY", help="A key of checkpoints that you hold; repeatable."
)
_output = click.option(
    "--output", type=click.Path(dir_okay=False), default=STANDARD_OUTPUT, metavar="FILE", help="Where to; - is here."
)


FILTERS: Final = {
    "agent": ("agent_id", "AGENT", "what concerns this agent, by its SPIFFE id"),
    "task": ("task_id", "TASK", "what concerns this task"),
    "orch": ("orch_id", "ORCH", "what concerns agents of this orchestration"),
    "type": ("event_type", "TYPE", "events of this type"),
    "principal": ("principal", "WHO", "what this one did: admin, admin:NAME, app:…, or an agent's SPIFFE id"),
    "grant": ("sid", "SID", "what concerns this grant"),
    "parent-grant": ("parent_sid", "SID", "what was delegated from this grant"),
    "original-principal": ("original_principal", "AGENT", "what was delegated, at whatever depth, from this agent"),
    "chain": ("deleg_chain_hash", "HASH", "what concerns this delegation chain"),
    "token": ("jti", "JTI", "what concerns this token"),
    "address": ("client_address", "ADDRESS", "what came from this address"),
    "request": ("request_id", "ID", "what this request did"),
    "trace": ("trace_id", "ID", "what happened in this trace"),
    "route": ("resource", "ROUTE", "requests of this route, for example 'POST /v1/delegate'"),
}


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options for the fields of events that are compared as they are."""
    for name, (field, metavar, what) in reversed(FILTERS.items()):
        command = click.option(f"--{name}", field, metavar=metavar, help=f"Only {what}.")(command)
    return command


@audit.command()
@click.option("--app", metavar="APP", help="Only what concerns this app, by its id or name.")
@_filters
@click.option("--outcome", type=click.Choice(["success", "denied"]), help="Only what ended so.")
@click.option("--since", metavar="TIME", help="Only from then on (RFC 3339).")
@click.option("--until", metavar="TIME", help="Only until then (RFC 3339).")
@click.option("--after", metavar="EVENT", help="Only events behind this one.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="No more than N.")
@click.option("--follow", is_flag=True, help="Go on with events as they come.")
@options.broker_url
@click.option("--json", "is_json", is_flag=True, help="A line of JSON for each event.")
def events(
    app: str | None,
    after: str | None,
    limit: int | None,
    follow: bool,
    broker_url: str,
    is_json: bool,
    **filters: str | None,
) -> None:
    """Show events, the oldest first. What was archived is in its file."""
    if app is not None:
        filters["app_id"] = _app_id(broker_url, app)
    with audit_log(broker_url) as log:
        found = _events(log, filters, after, limit, follow=follow)
        if is_json or follow:
            for event in found:
                if is_json:
                    print_json_line(event)
                else:
                    say_out("  ".join(_row(event)))
                sys.stdout.flush()
            return
        print_table(("event", "time", "type", "outcome", "by", "agent", "detail"), map(_row, found))


@audit.command()
@_output
@keys_option
@options.broker_url
def export(output: str, keys: tuple[str, ...], broker_url: str) -> int:
    """Write the log with its checkpoint, as lines of JSON, checking it on the way: all that was not archived."""
    from agentwrit.domain import audit_export, checkpoint
    from agentwrit.domain.audit import Replay

    with audit_log(broker_url) as log, checking() as progress, written(output) as file:
        believed = held(keys) or log.verifier_keys()
        signed = log.checkpoint()
        covered = checkpoint.read(signed, believed)
        start = log.beginning(log.archives().removed, covered)
        entries = log.checked_entries(covered, Replay(start), progress=progress)
        for line in audit_export.write(signed, entries, start=start):
            file.write(line)
    say(f"exported {_counted(covered.size, start)}")
    return 0


@audit.command()
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option("--database", type=click.Path(exists=True), help="Check this data directory or database file instead.")
@keys_option
@options.broker_url
@options.as_json
def verify(files: tuple[str, ...], database: str | None, keys: tuple[str, ...], broker_url: str, is_json: bool) -> int:
    """Check that no event was altered, dropped, moved or cut off.

    Asks the broker for its log; or checks each FILE, an export or an archive, for which the log's key has to be given,
    and that each begins where the one before it ends; or a data directory or database file, with the broker stopped or
    running. In a data directory the master key tells more: without it, give --key.
    """
    if files and database is not None:
        raise click.UsageError("give files or --database, not both")
    if database is not None:
        broker.verify_audit(database, keys)
    from agentwrit.domain.audit import event_id

    with checking(is_json=is_json) as progress:
        if files:
            if not keys:
                raise click.UsageError("give the log's key with --key: `agentwrit audit keys` shows it")
            verified = _verify_files(files, held(keys), progress)
        else:
            with audit_log(broker_url) as log:
                if not keys:
                    say("the keys are those that the broker itself names: give --key to rely on your own")
                verified = log.verify(held(keys) or log.verifier_keys(), progress=progress)
    covered, start, end = verified.checkpoint, verified.start, verified.end
    if is_json:
        print_json(
            {
                "verified": True,
                "events": verified.size,
                "after": event_id(start.sequence) if start.sequence else None,
                "last": event_id(end.sequence) if end.sequence else None,
                "origin": covered.origin,
                "root": covered.root.hex(),
            }
        )
    else:
        say_out(f"verified {_counted(end.sequence, start)} of {covered.origin}")
    return 0


def _verify_files(files: Sequence[str], keys: "Sequence[VerifierKey]", progress: "Progress") -> "Verified":
    """What exports and archives show that follow one another."""
    from agentwrit.domain import audit_export

    def verified(name: str) -> "Verified":
        with Path(name).open("rb") as file:
            return audit_export.verify(reading.lines(file, audit_export.MAX_LINE_BYTES), keys, progress=progress)

    whole = verified(files[0])
    for name in files[1:]:
        following = verified(name)
        audit_export.check_joined(whole, following)
        whole = following._replace(start=whole.start)
    return whole


@audit.command()
@click.argument("event")
@click.option(
    "--archive", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Where EVENT is, if archived."
)
@_output
@keys_option
@options.broker_url
def prove(event: str, archive: str | None, output: str, keys: tuple[str, ...], broker_url: str) -> int:
    """Write a proof that EVENT is in the log, which anyone with the log's key can check (C2SP tlog-proof)."""
    with audit_log(broker_url) as log, checking():
        entry = None if archive is None else _archived_entry(Path(archive), event)
        proof = log.prove(event, held(keys) or log.verifier_keys(), entry=entry)
    with written(output) as file:
        file.write(proof.encode())
    return 0


@audit.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@keys_option
def check(file: str, keys: tuple[str, ...]) -> int:
    """Check the proof in FILE, and show the event that it proves."""
    from agentwrit.domain import audit_proof

    if not keys:
        raise click.UsageError("give the log's key with --key: `agentwrit audit keys` shows it")
    with checking(), click.open_file(file, encoding="utf-8", errors="replace") as stream:
        proven = audit_proof.check(stream.read(audit_proof.MAX_BYTES + 1), held(keys))
    print_json(json.loads(proven.entry))
    say(f"this event is in the log of {proven.checkpoint.origin}, among its first {proven.checkpoint.size}")
    return 0


@audit.command()
@click.argument("file", type=click.Path(dir_okay=False))
@keys_option
@options.broker_url
def witness(file: str, keys: tuple[str, ...], broker_url: str) -> int:
    """Remember in FILE the last checkpoint of the log, and refuse one that does not continue it.

    Run it now and then, on another machine than the broker: that is what catches a history that was rewritten. Needs no
    secret. Without --key the first run believes the keys that the broker names, and later runs believe the same.
    """
    from agentwrit.cli.witness import Witness

    with checking(), _public_log(broker_url) as log:
        seen = Witness(Path(file)).look(log, held(keys))
    say_out(f"{seen.origin}: {seen.size} events, consistent")
    return 0


@audit.command(name="keys")
@options.broker_url
@options.as_json
def list_keys(broker_url: str, is_json: bool) -> None:
    """Show the keys of checkpoints, for --key. Keep them where the broker cannot change them."""
    with _public_log(broker_url) as log:
        held = [str(key) for key in log.verifier_keys()]
    if is_json:
        print_json({"keys": held})
        return
    for key in held:
        say_out(key)


@audit.command()
@options.broker_url
def checkpoint(broker_url: str) -> None:
    """Show the newest checkpoint."""
    with _public_log(broker_url) as log:
        for line in log.checkpoint().splitlines():
            say_out(line)


def _counted(last: int, start: "Head") -> str:
    from agentwrit.domain.audit import event_id

    behind = f", those behind {event_id(start.sequence)}," if start.sequence else ""
    return f"{last - start.sequence} events{behind}"


def _archived_entry(archive: Path, event: str) -> bytes:
    from agentwrit.domain import audit_export

    wanted = f',"id":{json.dumps(event)},'.encode()
    with archive.open("rb") as file:
        lines = reading.lines(file, audit_export.MAX_LINE_BYTES)
        found = next((line for line in lines if wanted in line), None)
    if found is None:
        raise click.UsageError(f"{event} is not in {archive}")
    return audit_export.entry(found)


def _app_id(broker_url: str, app: str) -> str:
    with options.operator_client(broker_url) as operator:
        return options.app_id(operator, app)


def _events(
    log: "AuditLog",
    filters: Mapping[str, str | None],
    after: str | None,
    limit: int | None,
    *,
    follow: bool,
) -> Iterator[dict[str, Any]]:
    left = limit
    while left is None or left > 0:
        size = PAGE if left is None else min(left, PAGE)
        page = log.events({**filters, "after": after, "limit": size})["events"]
        yield from page
        after = page[-1]["id"] if page else after
        left = None if left is None else left - len(page)
        if len(page) < size:
            if not follow:
                return
            time.sleep(FOLLOW_SECONDS)


def _row(event: Mapping[str, Any]) -> Sequence[str]:
    from agentwrit.client.shapes import completed

    event = completed(event)
    by = event["principal"] or event["client_address"]
    return (
        event["id"],
        event["timestamp"],
        event["event_type"],
        event["outcome"],
        by,
        event["agent_id"],
        event["detail"],
    )


def held(keys: Sequence[str]) -> "list[VerifierKey]":
    from agentwrit.domain.note import VerifierKey

    try:
        return [VerifierKey.parse(key) for key in keys]
    except ValueError as error:
        raise click.UsageError(f"--key: {error}") from None


@contextlib.contextmanager
def checking(*, is_json: bool = False) -> Iterator[ProgressBar]:
    """Work that may find that something is not what was signed."""
    from agentwrit.domain.errors import TamperedRecord

    try:
        with ProgressBar() as progress:
            yield progress
    except TamperedRecord as error:
        if is_json:
            print_json({"verified": False, "error": str(error)})
        raise NotGenuine(str(error)) from None


class NotGenuine(click.ClickException):
    """Something is not what was signed."""


def audit_log(broker_url: str) -> "AuditLog":
    from agentwrit.client.audit_log import AuditLog

    return AuditLog(
        broker_url, options.admin_secret(), operator=options.operator_name(), cert=options.client_certificate()
    )


def _public_log(broker_url: str) -> "AuditLog":
    from agentwrit.client.audit_log import AuditLog

    return AuditLog(broker_url, cert=options.client_certificate())
