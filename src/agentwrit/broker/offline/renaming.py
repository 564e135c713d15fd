"""Giving a store that no broker uses another issuer and trust domain.

Tokens of the previous issuer are then refused, and witnesses that remember a checkpoint of the previous trust domain
report a different log. So no broker does this because of changed settings: an operator has to request it.
"""

import asyncio
from functools import partial
from typing import NamedTuple

from agentwrit.broker import master_keys, stores
from agentwrit.broker.config import Config
from agentwrit.broker.data_directory import DATABASE_FILE
from agentwrit.broker.keystore import MasterKey
from agentwrit.broker.services.keys import BROKER
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import ConfigurationError


class Renamed(NamedTuple):
    """The previous and the new name of a store."""

    before: str
    now: str


def rename(config: Config) -> Renamed:
    """Give the store of these settings the names in them.

    Raises:
        ConfigurationError: there is no store, a broker uses it, or its master key is missing or wrong.
        TamperedRecord: the store is not as the broker left it.
    """
    now = stores.cluster_name(config)
    unit = partial(_rename, now)
    if config.database_url is not None:
        with stores.driver_of_postgres():
            from agentwrit.broker.storage import postgres_alone
        sealer = master_keys.row_sealer(MasterKey.parse(config.master_key or ""))
        return Renamed(postgres_alone.run_alone(config.database_url, sealer, None, unit), now)
    if not (config.data_dir / DATABASE_FILE).is_file():
        raise ConfigurationError(f"there is no store in {config.data_dir}: set AGENTWRIT_DATA_DIR to the broker's")
    return Renamed(asyncio.run(_embedded(config, unit)), now)


async def _embedded(config: Config, unit: "partial[str]") -> str:
    async with stores.open_store(config, is_ours=False) as opened:
        return await opened.store.write(unit)


def _rename(name: str, transaction: Transaction) -> str:
    before = transaction.cluster()
    if before != name:
        transaction.name_cluster(name)
        transaction.record(
            Draft(
                event_type=EventType.STORE_RENAMED,
                principal=BROKER,
                detail=f"the store is that of {name} now",
                data={"before": before, "now": name},
            )
        )
    return before
