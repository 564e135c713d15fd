"""`agentwrit token`: validate and inspect tokens."""

import sys
from dataclasses import asdict
from typing import Final

import click
from msgspec import to_builtins

from agentwrit.cli import ANSWER_IS_NO, options
from agentwrit.cli.output import is_terminal, print_fields, print_json, print_table
from agentwrit.domain.errors import InvalidToken, Unproven
from agentwrit.domain.timestamps import rfc3339
from agentwrit.reading import first_line

MAX_LINE: Final = 64 * 1024  # a token has 8 KiB

_TIMES = ("exp", "nbf", "iat")

_MEANINGS = {
    "iss": "the issuer",
    "sub": "the subject: agent, app or operator",
    "aud": "the services that it is for",
    "exp": "when it expires",
    "nbf": "when it becomes valid",
    "iat": "when it was issued",
    "jti": "the id of the token, which renewal replaces",
    "sid": "the grant, which release and revocation end",
    "scope": "what it allows",
    "client_id": "the app that it came through",
    "task_id": "the task that it is for",
    "orch_id": "the orchestrator of the agent",
    "delegation_chain": "hops by which it was delegated",
    "cnf": "the key that must prove each use of it",
    "operator": "the operator, if not the first",
}


@click.group()
def token() -> None:
    """Validate and inspect tokens."""


@token.command()
@click.argument("token", default="-")
@options.broker_url
@options.as_json
def validate(token: str, broker_url: str, is_json: bool) -> int:
    """Ask the broker whether TOKEN is valid, and show its claims.

    Without TOKEN, or with -, the token is read from standard input, where no other process can see it. Exits with 1 if
    the token is not valid.
    """
    text = _given(token)
    from agentwrit.client.validation import validate as ask_broker  # here, so that `--help` does not wait for it

    result = ask_broker(broker_url, text, cert=options.client_certificate())
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


@token.command()
@click.argument("token", default="-")
@options.broker_url
@options.as_json
def inspect(token: str, broker_url: str, is_json: bool) -> int:
    """Explain TOKEN claim by claim, and say what is wrong with it.

    Its signature and lifetime are checked with the broker's keys, and its revocation with the broker's feed. TOKEN is
    given as for `validate`. Exits with 1 if the token is not valid.
    """
    text = _given(token)
    from agentwrit.client.verifier import Verifier  # here, so that `--help` does not wait for them
    from agentwrit.domain import base64url, claims

    try:
        said = claims.decode(base64url.decode(text.split(".")[1]))
    except (ValueError, IndexError, InvalidToken):
        raise click.UsageError("this is no token of an agent, an app or an operator: it cannot be read") from None
    with Verifier(
        broker_url, audience=said.aud, subjects=("agent", "app", "operator"), cert=options.client_certificate()
    ) as verifier:
        try:
            verifier.verify(text)
        except Unproven:
            wrong = None  # everything else has been checked; only the proof is missing, and that belongs to a request
        except InvalidToken as error:
            wrong = error.reason
        else:
            wrong = None
    told = {name: value for name, value in to_builtins(said).items() if value and name in _MEANINGS}
    if is_json:
        print_json({"holds": wrong is None, "error": wrong, "claims": told})
    else:
        times = {name: f"{told[name]} ({rfc3339(told[name])})" for name in _TIMES}
        chain = {"delegation_chain": len(said.delegation_chain)} if said.delegation_chain else {}
        shown = {**told, "aud": " ".join(said.aud), **times, **chain}
        print_fields({"holds": "yes" if wrong is None else f"no: {wrong}"})
        print_table(("claim", "value", "meaning"), [[name, shown[name], _MEANINGS[name]] for name in shown])
    return 0 if wrong is None else ANSWER_IS_NO


def _given(token: str) -> str:
    text = _read_token() if token == "-" else token
    if not text:
        raise click.UsageError("there is no token: give it on standard input")
    return text


def _read_token() -> str:
    if is_terminal(sys.stdin):
        return str(click.prompt("The token", hide_input=True, err=True)).strip()
    line = "" if sys.stdin is None else first_line(sys.stdin, MAX_LINE)
    if line is None:
        raise click.UsageError(
            f"standard input has more than {MAX_LINE} characters in its first line: that is no token"
        )
    return line.strip()
