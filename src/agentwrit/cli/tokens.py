"""`agentwrit token`: looking at tokens."""

import sys
from dataclasses import asdict

import click

from agentwrit.cli import options
from agentwrit.cli.output import print_fields, print_json
from agentwrit.client.validation import validate as ask_broker
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
    text = sys.stdin.readline().strip() if token == "-" else token
    result = ask_broker(broker_url, text)
    if is_json:
        print_json({name: value for name, value in asdict(result).items() if value is not None})
    elif result.claims is None:
        print_fields({"valid": "no", "error": result.error})
    else:
        claims = {name: value for name, value in asdict(result.claims).items() if value}
        times = {name: f"{claims[name]} ({rfc3339(claims[name])})" for name in _TIMES}
        print_fields({"valid": "yes", **claims, **times})
    return 0 if result.valid else 1
