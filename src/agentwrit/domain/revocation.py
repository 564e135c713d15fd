"""When a token is dead before its time.

The rules:

- What dies is a grant (sid), a superseded token (jti), or all that one key signed (kid). Revoking an agent, a task, a
  chain or an app means ending the grants that were alive at that commit.
- A token is dead when its jti, its sid, its key, or the sid of any ancestor in its delegation chain is revoked.
- An entry may take effect later (an app token whose secret is in its overlap); then it is not yet an end.
- An entry is forgotten once no token that it can touch is unexpired: from then on time alone refuses them.
- The empty string names nothing.
"""

import heapq
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

from agentwrit.domain.claims import Claims

RETENTION_SECONDS: Final = 3600
"""How long the store keeps an entry after the last exp that it touches."""


class RevocationKind(StrEnum):
    """What an entry names."""

    TOKEN = "jti"
    GRANT = "sid"
    KEY = "kid"


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is dead from `effective_at` on (Unix seconds). `last_exp`: the last exp that it touches."""

    kind: RevocationKind
    id: str
    effective_at: int
    last_exp: int

    def joined(self, other: "Revocation") -> "Revocation":
        """This entry and another for the same thing: the earlier end holds, for the longer time."""
        return msgspec.structs.replace(
            self,
            effective_at=min(self.effective_at, other.effective_at),
            last_exp=max(self.last_exp, other.last_exp),
        )


class RevocationIndex:
    """All entries that can still touch a token. Bounded by the tokens that are unexpired.

    Not thread-safe: owned by whoever delivers the store's commits.
    """

    def __init__(self) -> None:
        self._entries: dict[RevocationKind, dict[str, Revocation]] = {kind: {} for kind in RevocationKind}
        self._by_last_exp: list[tuple[int, RevocationKind, str]] = []

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    def add(self, entries: Iterable[Revocation]) -> None:
        """Take in entries that were committed."""
        for entry in entries:
            if not entry.id:
                continue
            known = self._entries[entry.kind].get(entry.id)
            entry = entry if known is None else known.joined(entry)
            self._entries[entry.kind][entry.id] = entry
            heapq.heappush(self._by_last_exp, (entry.last_exp, entry.kind, entry.id))

    def forget(self, now: float) -> None:
        """Drop the entries that no unexpired token can meet any more."""
        while self._by_last_exp and self._by_last_exp[0][0] <= now:
            _, kind, name = heapq.heappop(self._by_last_exp)
            entry = self._entries[kind].get(name)
            if entry is not None and entry.last_exp <= now:
                del self._entries[kind][name]

    def is_revoked(self, kind: RevocationKind, name: str, now: float) -> bool:
        """Whether the thing of this name is dead at `now`."""
        entry = self._entries[kind].get(name)
        return entry is not None and entry.effective_at <= now

    def is_dead(self, kid: str, claims: Claims, now: float) -> bool:
        """Whether a genuine token, signed by `kid`, has been revoked by `now`."""
        return self.is_revoked(RevocationKind.TOKEN, claims.jti, now) or self.is_grant_dead(kid, claims, now)

    def is_grant_dead(self, kid: str, claims: Claims, now: float) -> bool:
        """Whether the grant of a genuine token, one above it, or the key that signed it has been revoked by `now`."""
        return (
            self.is_revoked(RevocationKind.GRANT, claims.sid, now)
            or self.is_revoked(RevocationKind.KEY, kid, now)
            or any(self.is_revoked(RevocationKind.GRANT, hop.sid, now) for hop in claims.delegation_chain)
        )
