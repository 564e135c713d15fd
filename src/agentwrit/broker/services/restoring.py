"""Continuing from a backup: everything that it would revive ends before anyone can use it.

A backup is the store as one commit left it. It does not contain later changes: tokens that were revoked since then
would be valid again, and tokens that were issued since then are unknown and cannot be revoked individually.

The rules:

- Every grant that is alive in the backup ends: of agents, delegations, and logins of apps and operators.
- Launch tokens and the answers kept for safe retries are deleted: they may have been used since.
- Every key for tokens or the feed that has signed and still verifies, or was the next to sign, is revoked, and new keys
  sign. So a token that was issued after the backup is dead as well, although its grant is unknown: it was signed by one
  of the revoked keys, or by a later key that is no longer published.
- Keys of checkpoints remain. They grant no rights, and auditors hold them manually: an auditor who remembers a
  checkpoint of the lost log finds, with a trusted key, that the log was cut. And it was.
- The feed begins a new epoch, because numbers that were assigned since the backup are assigned again: followers fetch a
  new snapshot, in which those keys and grants are dead.
- The first event after the backup's log is `store_restored`, and states where that log ended. Further events record
  each grant and each key.
- Time continues from the highest time in the backup, as at every start.
- Apps, their secrets and operators are as they were in the backup, whatever was changed since: the operator has to
  check them, by the time of the last change, and repeat the changes.
- All of it is in force with one unit of work: a store has done it or has not. With many grants, recording the end of
  each continues after that (see `agentwrit.domain.ending`). A data directory made from a backup gets its store only
  when everything is done.
- Doing it again ends what was granted since, and otherwise changes nothing.
- It is done only once it has been verified: the caller reads the store again after the commit (`check`).
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.ending import end_named
from agentwrit.broker.services.keys import BROKER, complete, end_key, key_data
from agentwrit.broker.storage.base import EventQuery, GrantQuery, Snapshot, Transaction
from agentwrit.domain import audit
from agentwrit.domain.app import App
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.ending import Ending, EndingLevel, Named
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.grant import EndReason
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import RevocationKind
from agentwrit.domain.signing_key import KeyPurpose, KeyState, StoredKey

# The reason, as stated in the event about the store and in that of each revoked key.
_SAID: Final = {
    EndReason.STORE_RESTORED: "the store was restored from a backup",
    EndReason.STORE_PROMOTED: "commits may have been lost when a database server was promoted",
}


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup was, what of it ended, and what of it remains.

    `last_event` and `last_event_at` (RFC 3339) state where its log ended. The counts are of what ended; `kids` names
    the keys among it. `epoch` is the feed's new epoch, and `at` the time (Unix seconds) from which it applies.
    `checkpoint_key` is the key that signs checkpoints; `ending` is the ending of the grants, which may have to be
    continued.
    """

    last_event: str
    last_event_at: str
    at: float
    epoch: str
    grants: int
    launch_tokens: int
    kids: Sequence[str]
    apps: Sequence[App]
    operators: Sequence[Operator]
    checkpoint_key: StoredKey | None
    ending: Ending

    @property
    def keys(self) -> int:
        """The number of revoked keys."""
        return len(self.kids)


def end_everything(
    transaction: Transaction,
    wrap: KeyWrap,
    config: Config,
    *,
    epoch: str,
    why: EndReason = EndReason.STORE_RESTORED,
    detail: str = "",
) -> Restored:
    """End everything that a restored store revives, by the rules above. `epoch`: the feed's new one, a random name.

    `detail`: the text in the audit log, if it does not follow from `why`.
    """
    head = transaction.head
    newest = transaction.events(EventQuery(is_newest_first=True, limit=1))
    grants = transaction.grants(GrantQuery(live_at=transaction.now))
    keys = transaction.signing_keys()
    revoked = [key for key in keys if key.is_published and key.purpose is not KeyPurpose.AUDIT_CHECKPOINT]
    launch_tokens, first_answers = transaction.drop_launch_tokens(), transaction.drop_first_answers()
    transaction.record(
        Draft(
            event_type=EventType.STORE_RESTORED,
            detail=detail or f"{_SAID[why]}: all that was granted before ends",
            principal=BROKER,
            data={
                "backup_last": audit.event_id(head.sequence),
                "backup_hash": head.hash,
                "feed_epoch": epoch,
                "grants": len(grants),
                "launch_tokens": launch_tokens,
                "first_answers": first_answers,
                "kids": [key.kid for key in revoked],
            },
        )
    )
    transaction.begin_feed_epoch(epoch)
    ending = end_named(transaction, Caller(), BROKER, Named(level=EndingLevel.ALL), why)
    for key in revoked:
        end_key(transaction, key, config)
        transaction.record(
            Draft(
                event_type=EventType.SIGNING_KEY_REVOKED,
                detail="a signing key was revoked, with all that it signed",
                principal=BROKER,
                data={**key_data(key), "revocation_reason": _SAID[why]},
            )
        )
    complete(transaction, wrap)
    return Restored(
        last_event=audit.event_id(head.sequence),
        last_event_at=newest[0].timestamp if newest else "",
        at=transaction.now,
        epoch=epoch,
        grants=len(grants),
        launch_tokens=launch_tokens,
        kids=[key.kid for key in revoked],
        apps=transaction.apps(),
        operators=[operator for operator in transaction.operators() if operator.is_active],
        checkpoint_key=next((key for key in keys if _signs_checkpoints(key)), None),
        ending=ending,
    )


def check(snapshot: Snapshot, restored: Restored) -> None:
    """Check that everything that was to end has ended.

    `snapshot`: read after the commit, over a separate connection, because the stored state may differ from what was
    written.

    Raises:
        TamperedRecord: something is still alive. The message names it.
    """
    keys = {key.kid: key for key in snapshot.signing_keys()}
    for kid in restored.kids:
        key = keys.get(kid)
        if key is None or key.state is not KeyState.GONE or snapshot.revocation(RevocationKind.KEY, kid) is None:
            raise TamperedRecord(f"the signing key {kid} was not revoked")
        alive = snapshot.grants(GrantQuery(live_at=restored.at, signed_by=kid))
        if alive:
            raise TamperedRecord(f"{len(alive)} grants did not end, {alive[0].sid} among them")
    if snapshot.launch_token_count() or snapshot.first_answer_count():
        raise TamperedRecord("launch tokens, or answers to be repeated, were not forgotten")
    if snapshot.feed_epoch() != restored.epoch:
        raise TamperedRecord("the feed did not begin another epoch")
    told = snapshot.events(EventQuery(event_type=EventType.STORE_RESTORED, is_newest_first=True, limit=1))
    if not told or told[0].data.get("feed_epoch") != restored.epoch:
        raise TamperedRecord("the audit log does not tell of it")


def _signs_checkpoints(key: StoredKey) -> bool:
    return key.purpose is KeyPurpose.AUDIT_CHECKPOINT and key.state is KeyState.ACTIVE
