"""`agentwrit operator`: manage operators."""

import shlex
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from agentwrit.cli import ANSWER_IS_NO, options
from agentwrit.cli.output import confirmed, is_terminal, print_fields, print_json, print_table
from agentwrit.reading import first_line

MAX_LINE: Final = 64 * 1024  # a secret has 1,024 characters


@click.group()
def operator() -> None:
    """Add and manage operators, each with a secret of their own.

    All operators have the same permissions; the audit log says who acted. An operator sets AGENTWRIT_OPERATOR to their
    name and AGENTWRIT_ADMIN_SECRET to their secret. The default is the first operator, whose secret `agentwrit init`
    creates, and whom audit events call admin.
    """


_given_secret = click.option(
    "--secret-stdin", is_flag=True, help="Read the secret, plain or as $argon2id$…, from standard input instead."
)


@operator.command()
@click.argument("name")
@_given_secret
@options.broker_url
@options.as_json
def add(name: str, secret_stdin: bool, broker_url: str, is_json: bool) -> None:
    """Add the operator NAME. The secret is shown only once."""
    secret = _read_secret() if secret_stdin else None
    with options.operator_client(broker_url) as client:
        _print(client.add_operator(name, secret=secret), broker_url, is_json=is_json)


@operator.command(name="list")
@options.broker_url
@options.as_json
def list_(broker_url: str, is_json: bool) -> None:
    """List all operators, including removed ones."""
    with options.operator_client(broker_url) as client:
        listed = client.list_operators()
    if is_json:
        print_json(listed)
        return
    columns = ("name", "status", "created_at", "updated_at")
    print_table(columns, [[record[column] for column in columns] for record in listed["operators"]])


@operator.command()
@click.argument("name")
@_given_secret
@options.broker_url
@options.as_json
def rotate(name: str, secret_stdin: bool, broker_url: str, is_json: bool) -> None:
    """Give the operator NAME a new secret. It is shown only once, and logins on the old one end."""
    secret = _read_secret() if secret_stdin else None
    with options.operator_client(broker_url) as client:
        _print(client.rotate_operator(name, secret=secret), broker_url, is_json=is_json)


@operator.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@options.broker_url
@options.as_json
def remove(name: str, yes: bool, broker_url: str, is_json: bool) -> int:
    """Remove the operator NAME, and end their logins. The last operator cannot be removed."""
    if not yes and not confirmed(sys.stdin, f"Remove the operator {name}?", "removing an operator"):
        return ANSWER_IS_NO
    with options.operator_client(broker_url) as client:
        removed = client.remove_operator(name)
    if is_json:
        print_json(removed)
    else:
        print_fields(removed)
    return 0


def _read_secret() -> str:
    if is_terminal(sys.stdin):
        return str(click.prompt("The new secret", hide_input=True, confirmation_prompt=True, err=True))
    line = "" if sys.stdin is None else first_line(sys.stdin, MAX_LINE)
    if not line or not line.rstrip("\r\n"):
        raise click.UsageError("standard input has no secret in its first line")
    return line.rstrip("\r\n")


def _print(record: Mapping[str, Any], broker_url: str, *, is_json: bool) -> None:
    if is_json:
        print_json(record)
        return
    print_fields({name: record[name] for name in ("name", "status", "updated_at")})
    if "secret" in record:
        print("\nThe secret is shown this once. For the operator's environment:\n")
        for name, value in {
            "AGENTWRIT_BROKER_URL": broker_url,
            options.OPERATOR: record["name"],
            options.ADMIN_SECRET: record["secret"],
        }.items():
            print(f"export {name}={shlex.quote(value)}")  # quoted, because a broker may send anything
