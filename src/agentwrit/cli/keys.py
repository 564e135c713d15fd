"""`agentwrit keys`: manage the broker's signing keys and master key."""

import sys

import click

from agentwrit.cli import ANSWER_IS_NO, broker, options
from agentwrit.cli.output import confirmed, print_fields, print_json, print_table, say_out
from agentwrit.domain.signing_key import KeyPurpose


@click.group()
def keys() -> None:
    """Manage the broker's signing keys and its master key."""


@keys.command(name="list")
@options.broker_url
@options.as_json
def list_(broker_url: str, is_json: bool) -> None:
    """List all keys, the newest first."""
    with options.operator_client(broker_url) as operator:
        listed = operator.list_keys()
    if is_json:
        print_json(listed)
        return
    columns = ("kid", "purpose", "state", "created_at", "active_since", "verifies_until", "revoked_at")
    print_table(columns, [[key[column] for column in columns] for key in listed["keys"]])


@keys.command()
@click.option(
    "--purpose",
    type=click.Choice([purpose.value for purpose in KeyPurpose]),
    default=KeyPurpose.ACCESS_TOKEN.value,
    show_default=True,
    help="What the key signs.",
)
@click.option("--force", is_flag=True, help="Rotate even if verifiers may not know the next key yet.")
@options.broker_url
@options.as_json
def rotate(purpose: str, force: bool, broker_url: str, is_json: bool) -> None:
    """Rotate the signing key: the next key signs from now on. Tokens stay valid."""
    with options.operator_client(broker_url) as operator:
        rotated = operator.rotate_key(purpose=purpose, force=force)
    if is_json:
        print_json(rotated)
        return
    retired = rotated["retired"]
    print_fields(
        {
            "signs now": rotated["active"]["kid"],
            "signed before": f"{retired['kid']}, verifies until {retired['verifies_until']}",
            "next": rotated["next"]["kid"],
        }
    )


@keys.command()
@click.argument("kid")
@click.option("--reason", default="", metavar="TEXT", help="The reason, for the audit log.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@options.broker_url
@options.as_json
def revoke(kid: str, reason: str, yes: bool, broker_url: str, is_json: bool) -> int:
    """Revoke the key KID: everything that it signed is dead at once, and the next key replaces it."""
    if not yes and not confirmed(sys.stdin, f"Revoke {kid}, and end every token that it signed?", "revoking a key"):
        return ANSWER_IS_NO
    with options.operator_client(broker_url) as operator:
        revoked = operator.revoke_key(kid, reason=reason)
    if is_json:
        print_json(revoked)
    else:
        count = revoked["count"]
        say_out(f"revoked key {kid}: {count} live token{'' if count == 1 else 's'} killed")
    return 0


@keys.command()
@click.option(
    "--to", "key_file", type=click.Path(dir_okay=False), metavar="FILE", help="The new key's file; created if missing."
)
@options.config_file
def rewrap(key_file: str | None, config: str | None) -> None:
    """Change the master key of a stopped broker's store. Tokens stay valid.

    Everything under the old key is verified and moved to the new key in one transaction. If this is interrupted, the
    store opens with either the old or the new key, and both still exist: run the command again.

    A data directory with a master.key gets a new one. If AGENTWRIT_MASTER_KEY has the old key, the new key is taken
    from FILE or AGENTWRIT_NEW_MASTER_KEY. If brokers share a database, all of them must be stopped.
    """
    broker.rewrap_keys(config, key_file)
