"""Detecting that brokers of one store have different settings, so that clients get different answers by chance.

At startup, each broker stores MACs of its settings, which reveal nothing of the values. The settings of the last broker
to start are the reference: every broker with other settings says so in its log, its health and its metrics. A
difference does not prevent startup, because settings are changed one broker at a time.
"""

import asyncio
import hmac
from collections.abc import Mapping
from typing import Final

import msgspec
import structlog

from agentwrit.broker.config import PREFIX, Config
from agentwrit.broker.services.background import Background, Work
from agentwrit.broker.storage.base import Store

INTERVAL_SECONDS: Final = 5
COMPARED: Final = (
    "admin_secret",
    "public_url",
    "audience",
    "default_ttl",
    "max_ttl",
    "max_lifetime",
    "app_token_ttl",
    "app_log_rate",
    "admin_token_ttl",
    "key_max_age",
    "audit_retention",
    "audit_archive",
)

_KEY: Final = "key"  # identifies the key of the MACs: a new master key changes all MACs

log = structlog.get_logger("agentwrit.agreement")


class Agreement:
    """This broker's settings, compared with the other brokers'. `key`: the key of the MACs, which all brokers share."""

    def __init__(self, store: Store, config: Config, key: bytes) -> None:
        self._store = store
        self._own = {name: _mac(key, name, repr(getattr(config, name))) for name in COMPARED}
        self._own[_KEY] = _mac(key, _KEY, "")
        self.differing: list[str] = []
        """The settings in which this broker differs from the broker that started last."""

    async def declare(self) -> None:
        """Store this broker's settings, and log where they differ from the previous ones.

        Raises:
            Unavailable: the store cannot be read or written.
        """
        before = await self._said()
        if before == self._own:
            return
        text = msgspec.json.encode(self._own).decode("ascii")
        await self._store.write(lambda transaction: transaction.put_settings(text))
        names = self._differing(before)
        if names:
            log.warning(
                "this broker's settings differ from those of the one that started before it: give all brokers the same",
                settings=names,
            )

    async def run(self, background: Background) -> None:
        """Check from time to time which settings other brokers have started with, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            await background.attempt(Work.SETTINGS, self.look)

    async def look(self) -> None:
        """Compare with the stored settings, and log a new difference.

        Raises:
            Unavailable: the store cannot be read.
        """
        names = self._differing(await self._said())
        if names and names != self.differing:
            log.warning(
                "another broker has started with settings that differ from this one's: give all brokers the same",
                settings=names,
            )
        elif self.differing and not names:
            log.info("this broker's settings no longer differ from the others'")
        self.differing = names

    def _differing(self, said: Mapping[str, str]) -> list[str]:
        if said.get(_KEY) != self._own[_KEY]:
            return []
        return [PREFIX + name.upper() for name in COMPARED if name in said and said[name] != self._own[name]]

    async def _said(self) -> Mapping[str, str]:
        text = await self._store.read(lambda snapshot: snapshot.settings())
        try:
            return msgspec.json.decode(text, type=dict[str, str])
        except msgspec.DecodeError:
            return {}


def _mac(key: bytes, name: str, value: str) -> str:
    return hmac.digest(key, f"{name}={value}".encode("utf-8", "surrogatepass"), "sha256").hex()
