"""The revocation feed on the wire: as pages, by waiting for one, as a stream of events, and as a snapshot.

It needs no credential: who holds a token can tell whether an entry means it, and nobody else learns anything.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from agentwrit.broker.http.exchange import Answer, Exchange, integer_parameter
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.http.service_routes import jwks_answer
from agentwrit.broker.keystore import SigningKeys
from agentwrit.broker.services.feed import SNAPSHOT_SECONDS, RevocationFeed
from agentwrit.domain import feed

JOSE: Final = "application/jose"  # RFC 7515 §9.2.1
EVENT_STREAM: Final = "text/event-stream"
MAX_WAIT_SECONDS: Final = 30
MAX_NUMBER: Final = 2**53 - 1


class FeedRoutes:
    """Routes under /v1/revocations."""

    def __init__(self, revocations: RevocationFeed, keys: SigningKeys) -> None:
        self._feed = revocations
        self._keys = keys

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/revocations", {"GET": self.pages}),
            Resource("/v1/revocations/snapshot", {"GET": self.snapshot}),
            Resource("/v1/revocations/jwks.json", {"GET": self.jwks}),
        ]

    async def pages(self, exchange: Exchange) -> Answer:
        given = exchange.query("after", "wait")
        wait = integer_parameter(given, "wait", 0, low=0, high=MAX_WAIT_SECONDS)
        if exchange.accepts(EVENT_STREAM):
            seen = exchange.header("last-event-id")
            after = integer_parameter({"after": seen} if seen else given, "after", 0, low=0, high=MAX_NUMBER)
            return Answer(media_type=EVENT_STREAM, headers=_headers("no-store"), stream=self._events(after))
        after = integer_parameter(given, "after", 0, low=0, high=MAX_NUMBER)
        page = await self._feed.page(after, wait=wait)
        if not page.is_sealed:
            age = 0 if wait else feed.HEARTBEAT_SECONDS
            return _jose(exchange, page.token, f"public, max-age={age}")
        return _jose(exchange, page.token, "public, max-age=86400, immutable")  # RFC 8246

    async def snapshot(self, exchange: Exchange) -> Answer:
        return _jose(exchange, await self._feed.snapshot(), f"public, max-age={SNAPSHOT_SECONDS}")

    async def jwks(self, exchange: Exchange) -> Answer:
        return jwks_answer(exchange, self._keys)

    async def _events(self, after: int) -> AsyncIterator[bytes]:
        async for page in self._feed.follow(after):
            yield f"id: {page.last}\nevent: page\ndata: {page.token}\n\n".encode("ascii")


def _jose(exchange: Exchange, token: str, cache_control: str) -> Answer:
    tag = f'"{hashlib.sha256(token.encode("ascii")).hexdigest()[:32]}"'
    headers = {**_headers(cache_control), "etag": tag}
    if exchange.has_seen(tag):
        return Answer(status=304, headers=headers)
    return Answer(body=token.encode("ascii"), media_type=JOSE, headers=headers)


def _headers(cache_control: str) -> dict[str, str]:
    return {"cache-control": cache_control, "vary": "accept"}
