"""The revocation feed on the wire: as pages, by waiting for one, as a stream of events, and as a snapshot.

It needs no credential: who holds a token can tell whether an entry means it, and nobody else learns anything. Whoever
shows one has a better chance of a place, where there are not enough for all.
"""

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Final, Self

from agentwrit.broker.http.exchange import Answer, Exchange, integer_parameter
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.http.service_routes import jwks_answer
from agentwrit.broker.keystore import SigningKeys
from agentwrit.broker.services.authentication import Authenticator
from agentwrit.broker.services.feed import SNAPSHOT_SECONDS, RevocationFeed
from agentwrit.broker.services.feed_pages import Signed, SignedPage
from agentwrit.broker.services.feed_places import Asker
from agentwrit.domain import feed
from agentwrit.domain.errors import InvalidRequest, InvalidToken, Unavailable

JOSE: Final = "application/jose"  # RFC 7515 §9.2.1
EVENT_STREAM: Final = "text/event-stream"
MAX_WAIT_SECONDS: Final = 30
MAX_NUMBER: Final = 2**53 - 1

_NONCE: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")
_PARAMETERS: Final = ("after", "wait", "log", "nonce")


class FeedRoutes:
    """Routes under /v1/revocations."""

    def __init__(self, revocations: RevocationFeed, keys: SigningKeys, authenticator: Authenticator) -> None:
        self._feed = revocations
        self._keys = keys
        self._authenticator = authenticator

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/revocations", {"GET": self.pages}),
            Resource("/v1/revocations/snapshot", {"GET": self.snapshot}),
            Resource("/v1/revocations/jwks.json", {"GET": self.jwks}),
        ]

    async def pages(self, exchange: Exchange) -> Answer:
        given = exchange.query(*_PARAMETERS)
        wait = integer_parameter(given, "wait", 0, low=0, high=MAX_WAIT_SECONDS)
        known = _places(given)
        nonce = given.get("nonce")
        if nonce is not None and not _NONCE.fullmatch(nonce):
            raise InvalidRequest("nonce takes 16 to 64 of the characters A-Z, a-z, 0-9, - and _")
        if exchange.accepts(EVENT_STREAM):
            return await self._stream(exchange, given, known)
        after = integer_parameter(given, "after", 0, low=0, high=MAX_NUMBER)
        stranger = Asker(exchange.caller.network)
        if nonce is not None:
            return _jose(exchange, await self._feed.page(after, stranger, known=known, nonce=nonce), "no-store")
        if wait:
            asker = await self._asker(exchange)
            page = await self._feed.wait(after, asker, known=known, seconds=wait)
        else:
            page = await self._feed.page(after, stranger, known=known)
        if page.is_sealed:
            return _jose(exchange, page, "public, max-age=86400, immutable")  # RFC 8246
        return _jose(exchange, page, f"public, max-age={0 if wait else feed.HEARTBEAT_SECONDS}")

    async def snapshot(self, exchange: Exchange) -> Answer:
        # All who are sent it share the same bytes.
        return _jose(exchange, await self._feed.snapshot(), f"public, max-age={SNAPSHOT_SECONDS}")

    async def jwks(self, exchange: Exchange) -> Answer:
        return jwks_answer(exchange, self._keys)

    async def _stream(self, exchange: Exchange, given: Mapping[str, str], known: Sequence[int]) -> Answer:
        seen = exchange.header("last-event-id")
        after = integer_parameter({"after": seen} if seen else given, "after", 0, low=0, high=MAX_NUMBER)
        # nginx would keep events back, otherwise.
        headers = {**_headers("no-store"), "x-accel-buffering": "no"}
        if exchange.method == "HEAD":
            return Answer(media_type=EVENT_STREAM, headers=headers)
        pages = self._feed.follow(after, await self._asker(exchange), known=known)
        # Whoever finds no place, or no store, is told so before the answer begins.
        return Answer(media_type=EVENT_STREAM, headers=headers, stream=_Events(await anext(pages), pages))

    async def _asker(self, exchange: Exchange) -> Asker:
        """Who asks for a place. A token that does not hold makes nobody worse off than none."""
        network, token = exchange.caller.network, exchange.bearer()
        if token is None:
            return Asker(network)
        try:
            principal = await self._authenticator.alive(token)
        except (InvalidToken, Unavailable):
            return Asker(network)
        if principal.claims.cnf is not None:  # RFC 9449 §7.2: it says nothing about whoever bears it
            return Asker(network)
        return Asker(network, principal.claims.client_id or principal.name)


class _Events:
    """Pages as events of a stream, of which the first is there. To be closed, whether it was read or not."""

    def __init__(self, first: SignedPage, pages: AsyncGenerator[SignedPage, None]) -> None:
        self._first: SignedPage | None = first
        self._pages = pages

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        page, self._first = self._first, None
        if page is None:
            try:
                page = await anext(self._pages)
            except Unavailable:
                raise StopAsyncIteration from None  # the reader hears no more, and comes again
        return page.event

    async def aclose(self) -> None:
        await self._pages.aclose()


def _places(given: Mapping[str, str]) -> list[int]:
    """The places in the audit log that the query names."""
    named = given["log"].split(",") if "log" in given else []
    if len(named) > feed.MAX_PLACES:
        raise InvalidRequest(f"log takes at most {feed.MAX_PLACES} numbers")
    return [integer_parameter({"log": each}, "log", 0, low=0, high=MAX_NUMBER) for each in named]


def _jose(exchange: Exchange, signed: Signed, cache_control: str) -> Answer:
    headers = {**_headers(cache_control), "etag": signed.tag}
    if exchange.has_seen(signed.tag):
        return Answer(status=304, headers=headers)
    return Answer(body=signed.body, media_type=JOSE, headers=headers)


def _headers(cache_control: str) -> dict[str, str]:
    return {"cache-control": cache_control, "vary": "accept"}
