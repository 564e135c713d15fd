"""When a token is dead before its time.

The rules:

- What dies is a grant (sid), a superseded token (jti), or all that one key signed (kid). What ends with a grant says
  `agentwrit.domain.grant`.
- A token is dead when its jti, its sid or its key is revoked, or for any record in its delegation chain the grant that
  it names or the key that signed it. And it is dead when its time is over: see `agentwrit.domain.claims`.
- Revoking an agent, a task, a chain or an app means ending the grants of that name that are alive at that commit, and
  no later ones. Only removing an app bars those.
- To revoke a grant's current token is to revoke the grant. A token that was superseded is dead already: revoking it
  ends nothing.
- An entry may take effect later (an app token whose secret is in its overlap); then it is not yet an end.
- An entry is forgotten once no token that it can touch is unexpired: from then on time alone refuses them.
- The empty string names nothing.
- Where an agent's registration has ended, and more was delegated to it than can be ended at once, what was delegated to
  it is dead by its name, and so is what was passed on from that. SPIFFE ids are never used again.
"""

import heapq
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

from agentwrit.domain.claims import Claims
from agentwrit.domain.grant import Grant, GrantKind

RETENTION_SECONDS: Final = 3600
"""How long the store keeps an entry after the last exp that it touches."""


MOSTLY_EMPTY: Final = 4  # how many times more there once was in the index, when it is made smaller
LEAST_PEAK: Final = 1024


class RevocationKind(StrEnum):
    """What an entry names."""

    TOKEN = "jti"
    GRANT = "sid"
    KEY = "kid"
    SUBJECT = "sub"
    """The delegations to the agent of this SPIFFE id, whose registration has ended."""
    ENDING = "ending"
    """Not an end itself: what an ending under way may be about (see `agentwrit.domain.ending`)."""


PUBLIC_KINDS: Final = frozenset({RevocationKind.TOKEN, RevocationKind.GRANT, RevocationKind.KEY})
"""What the feed names: what has 128 random bits. The other kinds are the brokers' own, until each grant has its end."""


class RevocationLevel(StrEnum):
    """What an operator can name to be revoked."""

    TOKEN = "token"
    """The grant whose current token has this jti."""
    AGENT = "agent"
    """All that the agent of this SPIFFE id holds: its registration and what was delegated to it."""
    TASK = "task"
    """All grants for this task_id."""
    CHAIN = "chain"
    """The registration of the agent of this SPIFFE id, where its chains begin."""
    GRANT = "grant"
    """The grant of this sid."""
    APP = "app"
    """All that came through the app of this id, its own logins included."""


def names(level: RevocationLevel, target: str, grant: Grant) -> bool:
    """Whether a revocation of `target` means `grant`. What ends along with it is another question."""
    is_agents = grant.kind is GrantKind.AGENT
    match level:
        case RevocationLevel.TOKEN:
            return grant.jti == target
        case RevocationLevel.AGENT:
            return is_agents and grant.subject == target
        case RevocationLevel.TASK:
            return is_agents and grant.task_id == target
        case RevocationLevel.CHAIN:
            return grant.is_registration and grant.subject == target
        case RevocationLevel.GRANT:
            return grant.sid == target
        case RevocationLevel.APP:
            return grant.app_id == target


class Revocation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
        self._peaks: dict[RevocationKind, int] = dict.fromkeys(RevocationKind, 0)
        self._by_last_exp: dict[int, list[Revocation]] = {}
        self._last_exps: list[int] = []  # a heap of those

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    def add(self, entries: Iterable[Revocation]) -> None:
        """Take in entries that were committed."""
        for entry in entries:
            if not entry.id:
                continue
            known = self._entries[entry.kind].get(entry.id)
            if known is not None:
                entry = known.joined(entry)
            self._entries[entry.kind][entry.id] = entry
            if known is not None and known.last_exp == entry.last_exp:
                continue  # whoever says the same again and again makes nobody hold more
            if entry.last_exp not in self._by_last_exp:
                self._by_last_exp[entry.last_exp] = []
                heapq.heappush(self._last_exps, entry.last_exp)
            self._by_last_exp[entry.last_exp].append(entry)

    def forget(self, now: float, *, limit: int = sys.maxsize) -> int:
        """Drop up to `limit` entries that no unexpired token can meet any more. Returns how many it looked at."""
        looked_at = 0
        for kind, entries in self._entries.items():
            self._peaks[kind] = max(self._peaks[kind], len(entries))
        while self._last_exps and self._last_exps[0] <= now:
            over_then = self._by_last_exp[self._last_exps[0]]
            while over_then and looked_at < limit:
                over = over_then.pop()
                looked_at += 1
                entry = self._entries[over.kind].get(over.id)
                if entry is not None and entry.last_exp <= now:
                    del self._entries[over.kind][over.id]
            if over_then:
                return looked_at
            del self._by_last_exp[heapq.heappop(self._last_exps)]
        for kind, entries in self._entries.items():
            if self._peaks[kind] > MOSTLY_EMPTY * max(len(entries), LEAST_PEAK):
                # A dict keeps the room that it once needed, unless it is made anew.
                self._entries[kind] = dict(entries)
                self._peaks[kind] = len(entries)
        return looked_at

    def is_revoked(self, kind: RevocationKind, name: str, now: float) -> bool:
        """Whether the thing of this name is dead at `now`."""
        entry = self._entries[kind].get(name)
        return entry is not None and entry.effective_at <= now

    def is_dead(self, kid: str, claims: Claims, now: float) -> bool:
        """Whether a genuine token, signed by `kid`, has been revoked by `now`."""
        return self.is_revoked(RevocationKind.TOKEN, claims.jti, now) or self.is_grant_dead(kid, claims, now)

    def is_grant_dead(self, kid: str, claims: Claims, now: float) -> bool:
        """Whether the grant of a genuine token, one above it, or a key that signed any of it was revoked by `now`."""
        return (
            self.is_revoked(RevocationKind.GRANT, claims.sid, now)
            or self.is_revoked(RevocationKind.KEY, kid, now)
            or (bool(claims.delegation_chain) and self._is_chain_dead(claims, now))
        )

    def _is_chain_dead(self, claims: Claims, now: float) -> bool:
        chain = claims.delegation_chain
        # The first one in a chain delegated from its registration; whoever came later, from what was delegated to it.
        given_to = (claims.sub, *(hop.agent for hop in chain[1:]))
        return any(
            self.is_revoked(RevocationKind.GRANT, hop.sid, now) or self.is_revoked(RevocationKind.KEY, hop.kid, now)
            for hop in chain
        ) or any(self.is_revoked(RevocationKind.SUBJECT, agent, now) for agent in given_to)
