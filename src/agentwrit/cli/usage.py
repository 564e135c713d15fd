"""`agentwrit audit usage`: which granted scopes were used."""

import click

from agentwrit.cli import options
from agentwrit.cli.output import print_json_line, print_table, say
from agentwrit.progress import ProgressBar

SHOWN_USES = 3


@click.command()
@click.option("--app", required=True, metavar="APP", help="The app, by its id or name.")
@click.option("--since", metavar="TIME", help="Only grants and uses from this time on (RFC 3339).")
@click.option("--never-used", is_flag=True, help="Only the scopes that were never used.")
@options.broker_url
@click.option("--json", "is_json", is_flag=True, help="Print one line of JSON per scope.")
def usage(app: str, since: str | None, never_used: bool, broker_url: str, is_json: bool) -> None:
    """Show which of the scopes granted to an app's agents were used.

    Uses are those that resource servers reported. If a wildcard scope was used only as a few narrow scopes, request
    these instead. Scopes that were never used can be omitted.
    """
    secret = options.admin_secret()
    from agentwrit.client.audit_log import AuditLog
    from agentwrit.client.usage import ScopeUsage, Usage, add_up
    from agentwrit.domain import audit

    with options.operator_client(broker_url) as operator:
        app_id = operator.get_app(options.app_id(operator, app))["app_id"]
    with (
        AuditLog(broker_url, secret, operator=options.operator_name(), cert=options.client_certificate()) as log,
        Usage() as found,
    ):
        removed = log.archives().removed
        with ProgressBar() as progress:
            add_up(log, found, app_id, since=since, progress=progress)
        if removed:
            say(f"not counted: what is archived, up to {audit.event_id(removed)}")
        scopes = found.scopes(is_never_used=never_used)
        if is_json:
            for scope in scopes:
                print_json_line(scope._asdict())
            return

        def row(scope: ScopeUsage) -> tuple[object, ...]:
            shown = scope.used_as[:SHOWN_USES]
            more = scope.used_as_count - len(shown)
            used_as = [*shown, *([f"and {more} more"] if more else [])] if scope.used_as != [scope.scope] else []
            return scope.scope, scope.granted, scope.used or "never", scope.last_used, used_as

        print_table(("scope", "granted", "used", "last used", "used as"), map(row, scopes))
        granted, used = found.totals
        say(f"{granted} scopes: {used} used, {granted - used} never used")
