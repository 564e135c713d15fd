"""Options that several commands share."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from agentwrit.cli.output import is_terminal

if TYPE_CHECKING:
    from agentwrit.client.operator import OperatorClient
    from agentwrit.client.tls import Certificate

DEFAULT_BROKER_URL = "http://127.0.0.1:8080"
ADMIN_SECRET = "AGENTWRIT_ADMIN_SECRET"
OPERATOR = "AGENTWRIT_OPERATOR"

Command = Callable[..., Any]

broker_url = click.option(
    "--broker-url",
    envvar="AGENTWRIT_BROKER_URL",
    default=DEFAULT_BROKER_URL,
    show_default=True,
    show_envvar=True,
    help="The broker's URL.",
)
as_json = click.option("--json", "is_json", is_flag=True, help="Print the broker's JSON, for scripts.")
config_file = click.option("--config", type=click.Path(dir_okay=False), help="A TOML file with the broker's settings.")


def operator_name() -> str | None:
    """The operator's name; None for the first operator."""
    return os.environ.get(OPERATOR) or None


def admin_secret() -> str:
    """The operator's secret.

    It is read from the environment or the terminal, never from an argument, because arguments are visible to all users.
    """
    secret = os.environ.get(ADMIN_SECRET)
    if not secret:
        if not is_terminal(sys.stdin):
            raise click.ClickException(f"set {ADMIN_SECRET} to the operator's secret: `agentwrit init` makes one")
        name = operator_name()
        asked = "The operator's secret" if name is None else f"The secret of the operator {name}"
        secret = str(click.prompt(asked, hide_input=True, err=True))
    return secret


def operator_client(url: str) -> "OperatorClient":
    """A client with the operator's credentials."""
    secret = admin_secret()
    from agentwrit.client.operator import OperatorClient  # here, so that `--help` does not wait for it

    return OperatorClient(url, secret, name=operator_name(), cert=client_certificate())


def client_certificate() -> "Certificate | None":
    """The client certificate for brokers that require one: AGENTWRIT_CLIENT_CERT and AGENTWRIT_CLIENT_KEY."""
    from agentwrit.client import tls

    return tls.from_environment()


def app_id(operator: "OperatorClient", app: str) -> str:
    """The id of an app given by id or name. Of several apps with one name, the one that was not removed."""
    if app in ("", ".", ".."):  # in a URL's path these would lead elsewhere (RFC 3986 §5.2.4)
        raise click.UsageError(f"{app!r} names no app: give an app's id or name")
    named = [record for record in operator.list_apps()["apps"] if record["name"] == app]
    registered = [record for record in named if record["status"] != "inactive"]
    return str((registered or named)[-1]["app_id"]) if named else app
