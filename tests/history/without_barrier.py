"""`python -m tests.history.without_barrier`: a broker with a bug, that the checker is there to find.

It answers from what it happens to know, and does not ask what other brokers have revoked.
"""

import sys

from agentwrit.broker.__main__ import main
from agentwrit.broker.storage.postgres import PostgresStore


async def _catch_up(self: PostgresStore) -> None:
    return


PostgresStore.catch_up = _catch_up  # type: ignore[method-assign]

sys.exit(main())
