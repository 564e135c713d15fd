"""What tests of several brokers have in common."""

from collections.abc import Sequence
from pathlib import Path

from tests.support import BrokerProcess

MASTER_KEY = "a5" * 32


def member(database_url: str, place: Path, *, wrapper: Sequence[str] = (), **settings: str) -> BrokerProcess:
    """A broker of the cluster in this database. `place`: where its log goes."""
    shared = {"AGENTWRIT_DATABASE_URL": database_url, "AGENTWRIT_MASTER_KEY": MASTER_KEY}
    return BrokerProcess(
        place, wrapper=wrapper, verify=True, arguments=(), module="agentwrit.broker", **{**shared, **settings}
    )
