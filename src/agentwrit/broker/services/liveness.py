"""Whether a genuine token is still alive: the one place where every check of a token ends."""

from agentwrit.broker.storage.base import Store
from agentwrit.domain.claims import Claims
from agentwrit.domain.revocation import RevocationIndex


class Liveness:
    """Answers from an index in memory that every commit updates before it is answered.

    That is enough where one process makes all the commits. Its methods may await, so that a broker that shares its
    store with others can first make sure that it has seen their commits.
    """

    def __init__(self, index: RevocationIndex) -> None:
        self._index = index

    @classmethod
    async def load(cls, store: Store, now: float) -> "Liveness":
        """Follow the store's commits, and catch up with those before."""
        index = RevocationIndex()
        store.listen(index.add)
        index.add(await store.read(lambda snapshot: list(snapshot.revocations(now))))
        return cls(index)

    async def is_dead(self, kid: str, claims: Claims, now: float) -> bool:
        """Whether the token was revoked by `now`."""
        return self._index.is_dead(kid, claims, now)

    async def is_grant_dead(self, kid: str, claims: Claims, now: float) -> bool:
        """Whether the token's grant was revoked by `now`: false for one that was merely superseded."""
        return self._index.is_grant_dead(kid, claims, now)

    def forget(self, now: float) -> tuple[int, int]:
        """Drop what no unexpired token can meet any more. Returns how many entries that were, and how many are left."""
        before = len(self._index)
        self._index.forget(now)
        return before - len(self._index), len(self._index)
