"""`agentwrit revoke`: revoke live grants by name."""

from typing import Final

import click

from agentwrit.cli import options
from agentwrit.cli.output import print_json, say_out

# The values of RevocationLevel, repeated here so that `--help` need not import the modules that verify signatures.
LEVELS: Final = ("token", "agent", "task", "chain", "grant", "app")


@click.command()
@click.argument("level", type=click.Choice(LEVELS))
@click.argument("target")
@click.option("--reason", default="", metavar="TEXT", help="The reason, for the audit log.")
@options.broker_url
@options.as_json
def revoke(level: str, target: str, reason: str, broker_url: str, is_json: bool) -> None:
    """Revoke all live grants of a name at once. Everything delegated from them ends too.

    \b
    LEVEL  TARGET
    token  the jti of a grant's current token
    agent  an agent's SPIFFE ID: all its grants
    task   a task id, in every app
    chain  the SPIFFE ID of the agent with which chains begin
    grant  a sid
    app    an app's id or name: its agents, and its own logins

    Later grants of the same name are not affected. To exclude an app for good, remove it.
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
