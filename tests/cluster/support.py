"""What tests of several brokers have in common."""

from pathlib import Path

from tests.support import PLAIN, BrokerProcess

MASTER_KEY = "a5" * 32


def member(database_url: str, place: Path, *, module: str = "agentwrit.broker", **settings: str) -> BrokerProcess:
    """A broker of the cluster in this database. `place`: where its log goes."""
    shared = {"AGENTWRIT_DATABASE_URL": database_url, "AGENTWRIT_MASTER_KEY": MASTER_KEY}
    return BrokerProcess(place, wrapper=(), verify=PLAIN, arguments=(), module=module, **{**shared, **settings})
