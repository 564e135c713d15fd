"""`agentwrit audit`: read, export, verify and prove the audit log."""

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
    """Read and verify the audit log.

    A log is verified against a checkpoint that the broker signed. Note down the log's public key once (`agentwrit audit
    keys`), keep it away from the broker, and give it with --key. Exits with 1 if the log, an export or a proof is not
    what was signed.
    """


keys_option = click.option(
    "--key", "keys", multiple=True, metavar="KEY", help="A public key of the log that you trust; repeatable."
)
_output = click.option(
    "--output",
    type=click.Path(dir_okay=False),
    default=STANDARD_OUTPUT,
    metavar="FILE",
    help="The file to write; - is standard output.",
)


FILTERS: Final = {
    "agent": ("agent_id", "AGENT", "events about this agent, by its SPIFFE ID"),
    "task": ("task_id", "TASK", "events about this task"),
    "orch": ("orch_id", "ORCH", "events about agents of this orchestration"),
    "type": ("event_type", "TYPE", "events of this type"),
    "principal": ("principal", "WHO", "actions of this principal: admin, admin:NAME, app:…, or an agent's SPIFFE ID"),
    "grant": ("sid", "SID", "events about this grant"),
    "parent-grant": ("parent_sid", "SID", "delegations from this grant"),
    "original-principal": ("original_principal", "AGENT", "delegations, at any depth, from this agent"),
    "chain": ("deleg_chain_hash", "HASH", "events about this delegation chain"),
    "token": ("jti", "JTI", "events about this token"),
    "address": ("client_address", "ADDRESS", "events caused from this address"),
    "request": ("request_id", "ID", "events of this request"),
    "trace": ("trace_id", "ID", "events of this trace"),
    "route": ("resource", "ROUTE", "requests to this route, for example 'POST /v1/delegate'"),
}


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that filter by equality of an event's field."""
    for name, (field, metavar, what) in reversed(FILTERS.items()):
        command = click.option(f"--{name}", field, metavar=metavar, help=f"Only {what}.")(command)
    return command


@audit.command()
@click.option("--app", metavar="APP", help="Only events about this app, by its id or name.")
@_filters
@click.option("--outcome", type=click.Choice(["success", "denied"]), help="Only events with this outcome.")
@click.option("--since", metavar="TIME", help="Only events from this time on (RFC 3339).")
@click.option("--until", metavar="TIME", help="Only events up to this time (RFC 3339).")
@click.option("--after", metavar="EVENT", help="Only events after this one.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N events.")
@click.option("--follow", is_flag=True, help="Wait for new events and show them as they come.")
@options.broker_url
@click.option("--json", "is_json", is_flag=True, help="Print one line of JSON per event.")
def events(
    app: str | None,
    after: str | None,
    limit: int | None,
    follow: bool,
    broker_url: str,
    is_json: bool,
    **filters: str | None,
) -> None:
    """Show events, the oldest first. Archived events are not shown: they are in their files."""
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
    """Write the log with its checkpoint, as lines of JSON. Verifies it on the way. Archived events are left out."""
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
@click.option("--database", type=click.Path(exists=True), help="Verify this data directory or database file instead.")
@keys_option
@options.broker_url
@options.as_json
def verify(files: tuple[str, ...], database: str | None, keys: tuple[str, ...], broker_url: str, is_json: bool) -> int:
    """Verify that no event was altered, dropped, moved or cut off.

    By default, verifies the broker's log. With FILEs, verifies each of these exports and archives, and that each begins
    where the previous one ends; --key is required. With --database, verifies a data directory or a database file, while
    the broker is stopped or running. A data directory is also checked under its master key; without that, give --key.
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
                    say("these keys were supplied by the broker itself: give --key to use keys that you trust")
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
    """Verify exports and archives that follow one another."""
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
    "--archive", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="The archive that contains EVENT."
)
@_output
@keys_option
@options.broker_url
def prove(event: str, archive: str | None, output: str, keys: tuple[str, ...], broker_url: str) -> int:
    """Write a proof that EVENT is in the log (C2SP tlog-proof). Anyone with the log's public key can check it."""
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
    """Check the proof in FILE and show the proven event."""
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
    """Check that the log continues the checkpoint in FILE.

    If it does, FILE then has the log's newest checkpoint. Run it regularly on another machine than the broker's, to
    detect a rewritten history. It needs no secret. Without --key, the first run trusts the keys that the broker
    supplies, and later runs trust the same keys.
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
    """Show the log's public keys, for --key. Keep them where the broker cannot change them."""
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
    """Show progress, and turn TamperedRecord into the command's exit code 1."""
    from agentwrit.domain.errors import TamperedRecord

    try:
        with ProgressBar() as progress:
            yield progress
    except TamperedRecord as error:
        if is_json:
            print_json({"verified": False, "error": str(error)})
        raise NotGenuine(str(error)) from None


class NotGenuine(click.ClickException):
    """The log, an export or a proof is not what was signed."""


def audit_log(broker_url: str) -> "AuditLog":
    from agentwrit.client.audit_log import AuditLog

    return AuditLog(
        broker_url, options.admin_secret(), operator=options.operator_name(), cert=options.client_certificate()
    )


def _public_log(broker_url: str) -> "AuditLog":
    from agentwrit.client.audit_log import AuditLog

    return AuditLog(broker_url, cert=options.client_certificate())
