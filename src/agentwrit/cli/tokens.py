"""`agentwrit token`: looking at tokens."""

import sys
from dataclasses import asdict

import click

from agentwrit.cli import ANSWER_IS_NO, options
from agentwrit.cli.output import is_terminal, print_fields, print_json
from agentwrit.domain.timestamps import rfc3339

_TIMES = ("exp", "nbf", "iat")


@click.group()
def token() -> None:
    """Look at tokens."""


@token.command()
@click.argument("token", default="-")
@options.broker_url
@options.as_json
def validate(token: str, broker_url: str, is_json: bool) -> int:
    """Ask the broker whether TOKEN holds, and what it says.

    Without TOKEN, or with -, it is read from standard input, where no other process can see it. Exits with 1 if it does
    not hold.
    """
    text = _read_token() if token == "-" else token
    if not text:
        raise click.UsageError("there is no token: give it on standard input")
    from agentwrit.client.validation import validate as ask_broker  # here, so that `--help` does not wait for it

    result = ask_broker(broker_url, text)
    claims = {} if result.claims is None else asdict(result.claims)
    claims = {name: value for name, value in claims.items() if value is not None}
    if is_json:
        print_json({"valid": True, "claims": claims} if result.valid else {"valid": False, "error": result.error})
    elif not result.valid:
        print_fields({"valid": "no", "error": result.error})
    else:
        told = {name: value for name, value in claims.items() if value}
        times = {name: f"{told[name]} ({rfc3339(told[name])})" for name in _TIMES if name in told}
        print_fields({"valid": "yes", **told, **times})
    return 0 if result.valid else ANSWER_IS_NO


def _read_token() -> str:
    if is_terminal(sys.stdin):
        return str(click.prompt("The token", hide_input=True, err=True)).strip()
    return "" if sys.stdin is None else sys.stdin.readline().strip()
