"""Going on from a backup: what it would revive is ended before anybody can use it.

A backup is the store as one commit left it. It knows nothing of what came later: what was revoked since then would live
again, and of what was issued since then nothing is known that could be revoked.

The rules:

- Every grant that is alive in the backup ends: agents', what was delegated, and logins of apps and operators.
- Launch tokens and the answers that are kept for safe retries are forgotten: they may have been used since.
- Every key that signs tokens or the feed, did so and still verifies, or was to be the next, is revoked, and new ones
  sign. So a token that was issued after the backup is dead as well, although its grant is not known: it was signed by
  one of these, which are revoked, or by one that came later, which nobody publishes any more.
- Keys of checkpoints go on. They give nobody a right, and auditors hold them by hand: who remembers a checkpoint of the
  log that was lost finds, under a key that he believes, that the log was cut. So it was.
- The feed begins another epoch, because numbers that were given since the backup are given again: who follows it takes
  a new snapshot, in which those keys and grants are dead.
- The first event behind the log of the backup is `store_restored`, and names where that log ended. The others tell of
  each grant and each key.
- The time goes on from the highest that the backup knows, as it does at every start.
- Apps, their secrets and operators are as they were in the backup, whatever was changed since: that is for the
  operator to see, with its last change, and to do again.
- All of it is one unit of work: a store has done it or has not. A data directory that is made from a backup gets its
  store only when that has.
- Doing it again ends what was granted since, and harms nothing else.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.ending import end_grants
from agentwrit.broker.services.keys import BROKER, complete, end_key, key_data
from agentwrit.broker.storage.base import EventQuery, GrantQuery, Transaction
from agentwrit.domain import audit
from agentwrit.domain.app import App
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.grant import EndReason
from agentwrit.domain.operator import Operator
from agentwrit.domain.signing_key import KeyPurpose, KeyState, StoredKey

REASON: Final = "the store was restored from a backup"


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup was, what of it ended, and what of it goes on as it was then.

    `last_event` and `last_event_at` (RFC 3339) say where its log ended; the counts are of what ended; `checkpoint_key`
    is the key that signs checkpoints.
    """

    last_event: str
    last_event_at: str
    grants: int
    launch_tokens: int
    keys: int
    apps: Sequence[App]
    operators: Sequence[Operator]
    checkpoint_key: StoredKey | None


def end_everything(transaction: Transaction, wrap: KeyWrap, config: Config, *, epoch: str) -> Restored:
    """End all that a restored store revives, by the rules above. `epoch`: the feed's new one, a random name."""
    head = transaction.head
    newest = transaction.events(EventQuery(is_newest_first=True, limit=1))
    grants = transaction.grants(GrantQuery(live_at=transaction.now))
    keys = transaction.signing_keys()
    ending = [key for key in keys if key.is_published and key.purpose is not KeyPurpose.AUDIT_CHECKPOINT]
    launch_tokens, first_answers = transaction.drop_launch_tokens(), transaction.drop_first_answers()
    transaction.record(
        Draft(
            event_type=EventType.STORE_RESTORED,
            detail="the store was restored from a backup: all that was granted before ends",
            principal=BROKER,
            data={
                "backup_last": audit.event_id(head.sequence),
                "backup_hash": head.hash,
                "feed_epoch": epoch,
                "grants": len(grants),
                "launch_tokens": launch_tokens,
                "first_answers": first_answers,
                "kids": [key.kid for key in ending],
            },
        )
    )
    transaction.begin_feed_epoch(epoch)
    end_grants(transaction, Caller(), BROKER, grants, EndReason.STORE_RESTORED)
    for key in ending:
        end_key(transaction, key, config)
        transaction.record(
            Draft(
                event_type=EventType.SIGNING_KEY_REVOKED,
                detail="a signing key was revoked, with all that it signed",
                principal=BROKER,
                data={**key_data(key), "revocation_reason": REASON},
            )
        )
    complete(transaction, wrap)
    return Restored(
        last_event=audit.event_id(head.sequence),
        last_event_at=newest[0].timestamp if newest else "",
        grants=len(grants),
        launch_tokens=launch_tokens,
        keys=len(ending),
        apps=transaction.apps(),
        operators=[operator for operator in transaction.operators() if operator.is_active],
        checkpoint_key=next((key for key in keys if _signs_checkpoints(key)), None),
    )


def _signs_checkpoints(key: StoredKey) -> bool:
    return key.purpose is KeyPurpose.AUDIT_CHECKPOINT and key.state is KeyState.ACTIVE
