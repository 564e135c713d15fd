"""`agentwrit revoke`: ending what is alive under a name."""

from typing import Final

import click

from agentwrit.cli import options
from agentwrit.cli.output import print_json, say_out

# Those of RevocationLevel, written down so that `--help` need not load what checks signatures.
LEVELS: Final = ("token", "agent", "task", "chain", "grant", "app")


@click.command()
@click.argument("level", type=click.Choice(LEVELS))
@click.argument("target")
@click.option("--reason", default="", metavar="TEXT", help="For the audit log.")
@options.broker_url
@options.as_json
def revoke(level: str, target: str, reason: str, broker_url: str, is_json: bool) -> None:
    """End what is alive under a name, with everything below it, at once.

    \b
    LEVEL  TARGET
    token  the jti of a grant's current token
    agent  an agent's SPIFFE id: all that it holds
    task   a task id, in every app
    chain  the SPIFFE id of the agent where chains begin
    grant  a sid
    app    an app's id or name: its agents, and its own logins

    Later grants of the same name are not touched; to bar an app for good, remove it.
    """
    with options.operator_client(broker_url) as operator:
        if level == "app":
            target = options.app_id(operator, target)
        revoked = operator.revoke(level, target, reason=reason)
    if is_json:
        print_json(revoked)
    else:
        count = revoked["count"]
        say_out(f"revoked {level} {target}: {count} live token{'' if count == 1 else 's'} killed")
