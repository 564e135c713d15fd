"""Continuing with a store whose database server was promoted: a failover to a standby, or the end of a recovery.

The rules:

- The promotion is recorded as the event `store_promoted`, with the timelines before and after it.
- The feed begins a new epoch: its followers on the old server may have seen what the new one does not have.
- If it is certain that nothing was lost, everything else continues.
- If commits may be lost, revocations may be among them: the store is treated like one that was restored from a backup
  (`restoring`).
- All of this is one unit of work, the first on the new timeline. A broker that comes later and remembers a lost commit
  does the same again.
"""

import secrets

from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap
from agentwrit.broker.services.keys import BROKER
from agentwrit.broker.services.restoring import end_everything
from agentwrit.broker.storage.base import Promotion, Transaction
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.grant import EndReason


def go_on(transaction: Transaction, promotion: Promotion, wrap: KeyWrap, config: Config) -> None:
    """Begin the new timeline, by the rules above."""
    epoch = secrets.token_hex(16)
    found = "nothing is lost" if promotion.is_lossless else "commits may be lost"
    transaction.record(
        Draft(
            event_type=EventType.STORE_PROMOTED,
            detail=f"the database server was promoted, and {found}",
            principal=BROKER,
            data={
                "timeline_before": promotion.before,
                "timeline": promotion.since,
                "feed_epoch": epoch,
                "is_lossless": str(promotion.is_lossless).lower(),
            },
        )
    )
    if promotion.is_lossless:
        transaction.begin_feed_epoch(epoch)
    else:
        end_everything(transaction, wrap, config, epoch=epoch, why=EndReason.STORE_PROMOTED)
