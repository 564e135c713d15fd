"""`agentwrit scope`: check which scopes cover which."""

import click

from agentwrit.cli import ANSWER_IS_NO, options
from agentwrit.cli.output import print_fields, print_json
from agentwrit.domain import scope as scope_rules
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.scope import Scope


@click.group()
def scope() -> None:
    """Check which scopes cover which."""


@scope.command()
@click.argument("requested", nargs=-1, required=True)
@click.option(
    "--against", "allowed", multiple=True, required=True, metavar="SCOPE", help="An allowed or held scope; repeatable."
)
@options.as_json
def check(requested: tuple[str, ...], allowed: tuple[str, ...], is_json: bool) -> int:
    """Check whether each scope REQUESTED is covered by an allowed scope, and say why if it is not.

    Applies the broker's own rule, without a broker. Exits with 1 if a scope is not covered.
    """
    held = [_parsed(text) for text in allowed]
    reasons = {text: _reason(_parsed(text), held) for text in requested}
    is_covered = not any(reasons.values())
    if is_json:
        print_json({"covered": is_covered, "scopes": reasons})
    else:
        print_fields({text: reason or "covered" for text, reason in reasons.items()})
    return 0 if is_covered else ANSWER_IS_NO


def _parsed(text: str) -> Scope:
    try:
        return scope_rules.parse(text)
    except InvalidRequest as error:
        raise click.UsageError(f"{error.detail}: {error.hint}") from None


def _reason(requested: Scope, held: list[Scope]) -> str | None:
    """Why no held scope covers a scope, by comparison with the closest ones; None if one covers it."""
    if any(each.covers(requested) for each in held):
        return None
    of_action = [each for each in held if each.action == requested.action]
    of_resource = [each for each in of_action if each.resource == requested.resource]
    if of_resource and requested.identifier == scope_rules.WILDCARD:
        return f"not covered: everything is more than {_either(of_resource, 'identifier')}"
    if of_resource:
        return f"not covered: {requested.identifier} is not {_either(of_resource, 'identifier')}"
    if of_action:
        return f"not covered: {requested.action} is for {_either(of_action, 'resource')}, not {requested.resource}"
    return f"not covered: nothing allows {requested.action}"


def _either(scopes: list[Scope], part: str) -> str:
    return " or ".join(dict.fromkeys(str(getattr(each, part)) for each in scopes))
