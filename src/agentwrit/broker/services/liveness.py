"""Whether a genuine token is still alive. Every check of a token ends here."""

import asyncio
from collections.abc import Sequence
from typing import Final

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage.base import GrantQuery, Snapshot, Store
from agentwrit.domain.claims import Claims
from agentwrit.domain.ending import Announced, Ending
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.grant import Grant
from agentwrit.domain.revocation import Revocation, RevocationIndex, RevocationKind

FORGOTTEN_AT_ONCE: Final = 4096
"""Entries that are dropped before other tasks run: some milliseconds."""


class Liveness:
    """Answers from an index in memory, which this broker's commits update before their callers are answered.

    Other brokers' commits are covered by a read barrier before each answer: `Store.catch_up`. The time is read after
    the barrier, because a token that another broker has just revoked is dead from that broker's time on.

    While an ending is in progress, everything that it names is already dead. For a token that may be affected, the
    store is asked for the grants that the token depends on.
    """

    def __init__(self, store: Store, clock: Clock, index: RevocationIndex) -> None:
        self._store = store
        self._clock = clock
        self._index = index
        self._under_way: dict[str, Announced] = {}  # endings, by their IDs

    @classmethod
    async def load(cls, store: Store, clock: Clock) -> "Liveness":
        """Follow the store's commits, and load those before.

        Raises:
            TamperedRecord: the revocation of a grant that has ended was deleted.
        """
        liveness = cls(store, clock, RevocationIndex())
        store.listen(liveness._take)

        def find(snapshot: Snapshot) -> tuple[Sequence[Revocation], Sequence[Ending]]:
            now = clock.now()
            forgotten = snapshot.forgotten_end(now)
            if forgotten is not None:
                raise TamperedRecord(f"the end of the grant {forgotten} was deleted outside the broker")
            return list(snapshot.revocations(now)), snapshot.endings()

        revocations, endings = await store.read(find)
        liveness._index.add(revocations)
        liveness.know(endings)
        return liveness

    async def is_dead(self, kid: str, claims: Claims) -> bool:
        """Whether the token has been revoked.

        Raises:
            Unavailable: this cannot be determined.
        """
        await self._store.catch_up()
        is_dead = self._index.is_dead(kid, claims, self._clock.now())
        return is_dead or (bool(self._under_way) and await self._is_named(claims))

    async def is_grant_dead(self, kid: str, claims: Claims) -> bool:
        """Whether the token's grant has been revoked. A superseded token alone does not count.

        Raises:
            Unavailable: this cannot be determined.
        """
        await self._store.catch_up()
        is_dead = self._index.is_grant_dead(kid, claims, self._clock.now())
        return is_dead or (bool(self._under_way) and await self._is_named(claims))

    def know(self, endings: Sequence[Ending]) -> None:
        """Take over the endings that the store reports as in progress."""
        for ending in endings:
            self._index.add(ending.barred(self._clock.now()))
            announced = Announced.of(ending)
            if announced is not None:
                self._under_way[ending.id] = announced

    def is_over(self, ending_id: str) -> None:
        """Record that an ending is over: all grants that it named are now in the index."""
        self._under_way.pop(ending_id, None)

    async def forget(self) -> tuple[int, int]:
        """Drop entries that affect no unexpired token. Returns the number of dropped and of remaining entries."""
        forgotten = 0
        while dropped := self._index.forget(self._clock.now(), limit=FORGOTTEN_AT_ONCE):
            forgotten += dropped
            await asyncio.sleep(0)  # very many may expire in one second
        return forgotten, len(self._index)

    def _take(self, revocations: Sequence[Revocation]) -> None:
        self._index.add(entry for entry in revocations if entry.kind is not RevocationKind.ENDING)
        for entry in revocations:
            if entry.kind is RevocationKind.ENDING:
                announced = Announced.parse(entry)
                self._under_way[announced.id] = announced

    async def _is_named(self, claims: Claims) -> bool:
        """Whether an ending in progress names the token's grant, or a grant that it depends on."""
        if not any(announced.may_name(claims) for announced in self._under_way.values()):
            return False

        def find(snapshot: Snapshot) -> tuple[Sequence[Ending], Sequence[Grant]]:
            return snapshot.endings(), _standing_on(snapshot, claims)

        known = list(self._under_way)
        endings, grants = await self._store.read(find)
        for ending_id in set(known).difference(ending.id for ending in endings):
            self.is_over(ending_id)  # another broker completed it, and announced the ended grants before
        return any(grant.is_ended or any(ending.names(grant) for ending in endings) for grant in grants)


def _standing_on(snapshot: Snapshot, claims: Claims) -> Sequence[Grant]:
    """The grants that a token depends on: its own, its chain's, and the registrations of all delegates in the chain."""
    found = [snapshot.grant(sid) for sid in (claims.sid, *(record.sid for record in claims.delegation_chain))]
    if claims.delegation_chain:
        for agent in {claims.sub, *(record.agent for record in claims.delegation_chain[1:])}:
            found += snapshot.grants(GrantQuery(subject=agent, parent=""))
    return [grant for grant in found if grant is not None]
