"""`agentwrit keys`: the broker's signing keys."""

import sys

import click

from agentwrit.cli import ANSWER_IS_NO, broker, options
from agentwrit.cli.output import confirmed, print_fields, print_json, print_table, say_out
from agentwrit.domain.signing_key import KeyPurpose


@click.group()
def keys() -> None:
    """Look at the broker's signing keys, rotate and revoke them, and change the master key that they are kept under."""


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
@click.option("--force", is_flag=True, help="Even if verifiers may not know the next key yet.")
@options.broker_url
@options.as_json
def rotate(purpose: str, force: bool, broker_url: str, is_json: bool) -> None:
    """Let the next key sign from now on. No token dies by this."""
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
@click.option("--reason", default="", metavar="TEXT", help="For the audit log.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.broker_url
@options.as_json
def revoke(kid: str, reason: str, yes: bool, broker_url: str, is_json: bool) -> int:
    """Revoke the key KID: all that it signed is dead at once, and the next one takes its place."""
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
    "--to", "key_file", type=click.Path(dir_okay=False), metavar="FILE", help="The new key's; made if there is none."
)
@options.config_file
def rewrap(key_file: str | None, config: str | None) -> None:
    """Move the store of a broker that is stopped to a new master key. No token dies by this.

    All that is under the old key is checked, and put under the new one, in one transaction. Whatever stops that, the
    store opens with the old key or with the new one, and both are there: run the command again.

    A data directory with a master.key gets a new one. Where AGENTWRIT_MASTER_KEY holds the old key, the new one is what
    FILE or AGENTWRIT_NEW_MASTER_KEY holds. Of brokers that share a database all have to be stopped.
    """
    broker.rewrap_keys(config, key_file)
