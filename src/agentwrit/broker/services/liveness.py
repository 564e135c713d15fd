"""Whether a genuine token is still alive: the one place where every check of a token ends."""

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage.base import Store
from agentwrit.domain.claims import Claims
from agentwrit.domain.revocation import RevocationIndex


class Liveness:
    """Answers from an index in memory that every commit of ours updates before it is answered.

    For the commits of others there is a barrier in front of each answer: `Store.catch_up`. The time is read behind it,
    because what another broker has just revoked is dead from its time on.
    """

    def __init__(self, store: Store, clock: Clock, index: RevocationIndex) -> None:
        self._store = store
        self._clock = clock
        self._index = index

    @classmethod
    async def load(cls, store: Store, clock: Clock) -> "Liveness":
        """Follow the store's commits, and catch up with those before."""
        index = RevocationIndex()
        store.listen(index.add)
        index.add(await store.read(lambda snapshot: list(snapshot.revocations(clock.now()))))
        return cls(store, clock, index)

    async def is_dead(self, kid: str, claims: Claims) -> bool:
        """Whether the token has been revoked.

        Raises:
            Unavailable: it cannot be known.
        """
        await self._store.catch_up()
        return self._index.is_dead(kid, claims, self._clock.now())

    async def is_grant_dead(self, kid: str, claims: Claims) -> bool:
        """Whether the token's grant has been revoked: false for one that was merely superseded.

        Raises:
            Unavailable: it cannot be known.
        """
        await self._store.catch_up()
        return self._index.is_grant_dead(kid, claims, self._clock.now())

    def forget(self) -> tuple[int, int]:
        """Drop what no unexpired token can meet any more. Returns how many entries that were, and how many are left."""
        before = len(self._index)
        self._index.forget(self._clock.now())
        return before - len(self._index), len(self._index)
