"""Noticing that brokers of one store have settings that differ, where a client would get another answer by chance.

Each broker says what it was started with, under a MAC that shows nothing of it, and the last to say so counts: all that
were started with something else say so in their logs, their health and their metrics. It is no reason not to start: a
setting is changed one broker after the other.
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

_KEY: Final = "key"  # under which the MACs are: a new master key makes others of the same settings

log = structlog.get_logger("agentwrit.agreement")


class Agreement:
    """What this broker was started with, beside what the others were. `key`: of the MACs, which all brokers have."""

    def __init__(self, store: Store, config: Config, key: bytes) -> None:
        self._store = store
        self._own = {name: _mac(key, name, repr(getattr(config, name))) for name in COMPARED}
        self._own[_KEY] = _mac(key, _KEY, "")
        self.differing: list[str] = []
        """The settings of this broker that are not those of the broker that was started last."""

    async def declare(self) -> None:
        """Say what this broker was started with, and whether that is something new.

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
                "this broker has other settings than the one that was started before it: give all of them the same",
                settings=names,
            )

    async def run(self, background: Background) -> None:
        """Look now and then what others were started with since, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            await background.attempt(Work.SETTINGS, self.look)

    async def look(self) -> None:
        """Compare with what was said last, and tell what is new about that.

        Raises:
            Unavailable: the store cannot be read.
        """
        names = self._differing(await self._said())
        if names and names != self.differing:
            log.warning(
                "another broker was started with other settings than this one has: give all of them the same",
                settings=names,
            )
        elif self.differing and not names:
            log.info("this broker has the settings of the others again")
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
