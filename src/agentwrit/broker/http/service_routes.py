"""What machines ask of the broker: its health, its counts and its public keys."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence

import msgspec

from agentwrit._version import __version__
from agentwrit.broker.clock import Clock
from agentwrit.broker.http.exchange import Answer, Exchange, json_answer
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.keystore import SigningKeys
from agentwrit.broker.metrics import CONTENT_TYPE, Metrics
from agentwrit.broker.services.agreement import Agreement
from agentwrit.broker.storage.base import Store
from agentwrit.domain.errors import Unavailable
from agentwrit.domain.signing_key import PUBLISHED_SECONDS

HEALTH_TIMEOUT_SECONDS = 2


class ServiceRoutes:
    """Routes that need no credential and say nothing of anybody's."""

    def __init__(
        self,
        store: Store,
        keys: SigningKeys,
        clock: Clock,
        metrics: Metrics,
        agreement: Agreement,
        *,
        failing: Callable[[], Sequence[str]],
        is_draining: Callable[[], bool],
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._metrics = metrics
        self._agreement = agreement
        self._failing = failing
        self._is_draining = is_draining
        self._started_at = time.monotonic()

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/health", {"GET": self.health}),
            Resource("/livez", {"GET": self.livez}),
            Resource("/readyz", {"GET": self.readyz}),
            Resource("/.well-known/jwks.json", {"GET": self.jwks}),
        ]

    def metrics_resource(self) -> Resource:
        """Apart from the others: it may have a port of its own."""
        return Resource("/v1/metrics", {"GET": self.metrics})

    async def health(self, exchange: Exchange) -> Answer:
        count = await self._event_count()
        is_ok = count is not None and self._store.is_writable()
        failing = list(self._failing())
        content = {
            "status": "ok" if is_ok and not failing else "degraded",
            "version": __version__,
            "uptime": int(time.monotonic() - self._started_at),
            "db_connected": is_ok,
            "audit_events_count": count or 0,
            "clock_offset": round(self._clock.offset()),
            "failing": failing,
            "settings_differing": self._agreement.differing,
        }
        # Only for the store: what fails in the background fails on other brokers too, and requests are served.
        return json_answer(content, status=200 if is_ok else 503)

    async def livez(self, exchange: Exchange) -> Answer:
        """Whether the process answers at all. Nothing that a restart would not mend."""
        return json_answer({"status": "ok"})

    async def readyz(self, exchange: Exchange) -> Answer:
        """Whether requests should be sent here."""
        if self._is_draining():
            raise Unavailable("the broker is stopping", cause="stopping")
        if await self._event_count() is None or not self._store.is_writable():
            raise Unavailable("the store is out of reach")
        return json_answer({"status": "ok"})

    async def metrics(self, exchange: Exchange) -> Answer:
        return Answer(body=self._metrics.render(), media_type=CONTENT_TYPE)

    async def jwks(self, exchange: Exchange) -> Answer:
        return jwks_answer(exchange, self._keys)

    async def _event_count(self) -> int | None:
        """How many events there are, or None if the store does not say, or not soon, or no token could be judged."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_SECONDS):
                await self._store.catch_up()
                return await self._store.read(lambda snapshot: snapshot.event_head())
        except (Unavailable, TimeoutError):
            return None


def jwks_answer(exchange: Exchange, keys: SigningKeys) -> Answer:
    """The public halves of keys as a JWK Set (RFC 7517 §5)."""
    body = msgspec.json.encode(keys.jwks)
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"cache-control": f"public, max-age={PUBLISHED_SECONDS}", "etag": tag}
    if exchange.has_seen(tag):
        return Answer(status=304, headers=headers)
    return Answer(body=body, media_type="application/jwk-set+json", headers=headers)  # RFC 7517 §8.5.2
