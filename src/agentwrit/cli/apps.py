"""`agentwrit app`: register and manage apps."""

import functools
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import click

from agentwrit.cli import ANSWER_IS_NO, options
from agentwrit.cli.output import confirmed, print_fields, print_json, print_table


@click.group()
def app() -> None:
    """Register and manage apps.

    APP is the id or name of an app. The operator's secret is read from AGENTWRIT_ADMIN_SECRET. Operators other than the
    first set AGENTWRIT_OPERATOR to their name.
    """


_scopes = click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="A scope of the ceiling; repeatable.")
_token_ttl = click.option("--token-ttl", type=int, metavar="SECONDS", help="Lifetime of the app's own tokens.")

_audiences = click.option(
    "--audience",
    "audiences",
    multiple=True,
    metavar="NAME",
    help="An audience that its agents' tokens may have; repeatable.",
)

_reports_for = click.option(
    "--reports-for",
    "reports_for",
    multiple=True,
    metavar="NAME",
    help="An audience whose resource server it is: it may report how tokens for it were used; repeatable.",
)


_NONE = "none"


def _limit(text: str) -> int | str:
    """Parse a limit: a number, or `none`."""
    try:
        return _NONE if text == _NONE else int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a whole number nor {_NONE!r}") from None


_LIMITS = (
    ("max_live_agents", "N", "How many live agents it may have."),
    ("max_ttl", "SECONDS", "Maximum lifetime of its agents' tokens."),
    ("creates_per_second", "N", "How many agents it may create per second."),
)


def _limits(command: options.Command) -> options.Command:
    """Add the options for an app's limits. The command receives the given ones by name as `limits`."""

    @functools.wraps(command)
    def limited(**given: Any) -> Any:
        asked = {name: given.pop(name) for name, _, _ in _LIMITS}
        limits = {name: None if limit == _NONE else limit for name, limit in asked.items() if limit is not None}
        return command(limits=limits, **given)

    for name, metavar, help_text in reversed(_LIMITS):
        option = click.option(
            f"--{name.replace('_', '-')}", name, type=_limit, metavar=f"{metavar}|{_NONE}", help=help_text
        )
        limited = option(limited)
    return limited


_BOUND_HELP = "Whether its agents' tokens must be bound to their keys."


@app.command()
@click.argument("name")
@_scopes
@_token_ttl
@_audiences
@click.option("--require-bound", is_flag=True, help="Its agents' tokens must be bound to their keys.")
@_reports_for
@_limits
@options.broker_url
@options.as_json
def register(
    name: str,
    scopes: tuple[str, ...],
    token_ttl: int | None,
    audiences: tuple[str, ...],
    require_bound: bool,
    reports_for: tuple[str, ...],
    limits: dict[str, int | None],
    broker_url: str,
    is_json: bool,
) -> None:
    """Register an app. Its secret is shown only once."""
    if not scopes and not reports_for:
        raise click.UsageError("give the ceiling with --scope, for example --scope 'read:data:*'")
    with options.operator_client(broker_url) as operator:
        registered = operator.register_app(
            name,
            scopes,
            token_ttl=token_ttl,
            audiences=audiences,
            require_bound=require_bound,
            reports_for=reports_for,
            limits=limits,
        )
    if is_json:
        print_json(registered)
        return
    print_fields({name: registered[name] for name in ("app_id", "scopes", "token_ttl")})
    _print_exports(broker_url, registered)


@app.command(name="list")
@options.broker_url
@options.as_json
def list_(broker_url: str, is_json: bool) -> None:
    """List all apps."""
    with options.operator_client(broker_url) as operator:
        listed = operator.list_apps()
    if is_json:
        print_json(listed)
        return
    columns = ("name", "app_id", "status", "scopes", "token_ttl", "created_at")
    print_table(columns, [[record[column] for column in columns] for record in listed["apps"]])


@app.command()
@click.argument("app")
@options.broker_url
@options.as_json
def show(app: str, broker_url: str, is_json: bool) -> None:
    """Show one app."""
    with options.operator_client(broker_url) as operator:
        _print(operator.get_app(options.app_id(operator, app)), is_json=is_json)


@app.command()
@click.argument("app")
@_scopes
@_token_ttl
@_audiences
@click.option("--no-audience", is_flag=True, help="Remove all its audiences.")
@click.option("--require-bound/--no-require-bound", default=None, help=_BOUND_HELP)
@_reports_for
@click.option("--no-reports", is_flag=True, help="Remove all audiences that it may report on.")
@_limits
@click.option("--keep-grants", is_flag=True, help="Do not end live grants that exceed a narrower ceiling.")
@options.broker_url
@options.as_json
def update(
    app: str,
    scopes: tuple[str, ...],
    token_ttl: int | None,
    audiences: tuple[str, ...],
    no_audience: bool,
    require_bound: bool | None,
    reports_for: tuple[str, ...],
    no_reports: bool,
    limits: dict[str, int | None],
    keep_grants: bool,
    broker_url: str,
    is_json: bool,
) -> None:
    """Change an app's settings.

    A narrower ceiling, fewer audiences or --require-bound ends the live grants that exceed it. A lower limit ends no
    grants: it applies from now on.
    """
    given = (scopes, audiences, no_audience, reports_for, no_reports, limits)
    if not any(given) and token_ttl is None and require_bound is None:
        raise click.UsageError("give what is to be changed, for example --scope, --audience, --token-ttl or --max-ttl")
    if audiences and no_audience:
        raise click.UsageError("give --audience or --no-audience, not both")
    if reports_for and no_reports:
        raise click.UsageError("give --reports-for or --no-reports, not both")
    with options.operator_client(broker_url) as operator:
        updated = operator.update_app(
            options.app_id(operator, app),
            scopes=scopes or None,
            token_ttl=token_ttl,
            audiences=audiences if audiences or no_audience else None,
            require_bound=require_bound,
            reports_for=reports_for if reports_for or no_reports else None,
            limits=limits,
            keep_grants=keep_grants,
        )
    _print(updated, is_json=is_json)


@app.command()
@click.argument("app")
@click.option(
    "--overlap", type=int, default=0, show_default=True, metavar="SECONDS", help="How long the old secret works."
)
@options.broker_url
@options.as_json
def rotate_secret(app: str, overlap: int, broker_url: str, is_json: bool) -> None:
    """Give an app a new secret. It is shown only once."""
    with options.operator_client(broker_url) as operator:
        rotated = operator.rotate_secret(options.app_id(operator, app), overlap=overlap)
    if is_json:
        print_json(rotated)
        return
    until = rotated["previous_secret_expires_at"]
    print_fields({"app_id": rotated["app_id"], "the old secret": f"works until {until}" if until else "is dead"})
    _print_exports(broker_url, rotated)


@app.command()
@click.argument("app")
@options.broker_url
@options.as_json
def suspend(app: str, broker_url: str, is_json: bool) -> None:
    """Suspend an app. Ends all its grants, and refuses its requests until it is resumed."""
    with options.operator_client(broker_url) as operator:
        _print(operator.suspend_app(options.app_id(operator, app)), is_json=is_json)


@app.command()
@click.argument("app")
@options.broker_url
@options.as_json
def resume(app: str, broker_url: str, is_json: bool) -> None:
    """Let a suspended app log in again, with the same secret."""
    with options.operator_client(broker_url) as operator:
        _print(operator.resume_app(options.app_id(operator, app)), is_json=is_json)


@app.command()
@click.argument("app")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@options.broker_url
@options.as_json
def remove(app: str, yes: bool, broker_url: str, is_json: bool) -> int:
    """Remove an app for good. Ends every credential that came through it."""
    question = f"Remove {app}, and end every credential that came through it?"
    if not yes and not confirmed(sys.stdin, question, "removing an app"):
        return ANSWER_IS_NO
    with options.operator_client(broker_url) as operator:
        _print(operator.remove_app(options.app_id(operator, app)), is_json=is_json)
    return 0


def _print(record: Mapping[str, Any], *, is_json: bool) -> None:
    if is_json:
        print_json(record)
    else:
        print_fields(record)


def _print_exports(broker_url: str, credentials: Mapping[str, Any]) -> None:
    print("\nThe secret is shown this once. For the app's environment:\n")
    exports = {
        "AGENTWRIT_BROKER_URL": broker_url,
        "AGENTWRIT_CLIENT_ID": credentials["client_id"],
        "AGENTWRIT_CLIENT_SECRET": credentials["client_secret"],
    }
    for name, value in exports.items():
        print(f"export {name}={shlex.quote(value)}")  # quoted, because a broker may send anything
