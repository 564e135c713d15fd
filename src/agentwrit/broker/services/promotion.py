"""Going on with a store whose database server was promoted: a standby took over, or a recovery ended.

The rules:

- It is an event of the log, `store_promoted`, with the timelines before and since.
- The feed begins another epoch: who followed it on the old server may have seen what the new one does not have.
- If it is known that nothing is lost, everything else goes on.
- If commits may be lost, revocations are among them: it is treated as a store that was restored from a backup
  (`restoring`).
- All of it is one unit of work, the first on the new timeline. A broker that comes later, and knows of a commit that is
  lost, does the same once more.
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
