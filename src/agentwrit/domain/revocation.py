"""Revocation: when a token is dead before it expires.

The rules:

- A revocation applies to a grant (sid), a superseded token (jti), or everything that a key signed (kid). What else ends
  with a grant is defined in `agentwrit.domain.grant`.
- A token is dead if its jti, its sid or its key is revoked, or if, for any record in its delegation chain, the grant
  that the record names or the key that signed it is revoked. It is also dead when it has expired: see
  `agentwrit.domain.claims`.
- Revoking an agent, a task, a chain or an app ends the grants of that name that are alive at that commit. Later grants
  are not affected. Only removing an app prevents those.
- Revoking a grant's current token revokes the grant. A superseded token is dead already, so revoking it ends nothing.
- An entry may take effect later (for an app token whose secret is in its overlap). Until then it has no effect.
- An entry is forgotten when all tokens that it can affect have expired.
- The empty string names nothing.
- If an agent's registration has ended, but one unit of work cannot end all delegations to the agent, these, and
  everything delegated from them, are dead by the agent's SPIFFE ID. SPIFFE IDs are never reused.
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
"""How long the store keeps an entry after the last exp that it affects."""


MOSTLY_EMPTY: Final = 4  # the index is rebuilt smaller when it once held more than this many times its entries
LEAST_PEAK: Final = 1024


class RevocationKind(StrEnum):
    """What a revocation names."""

    TOKEN = "jti"
    GRANT = "sid"
    KEY = "kid"
    SUBJECT = "sub"
    """The delegations to the agent with this SPIFFE ID, whose registration has ended."""
    ENDING = "ending"
    """Revokes nothing itself: announces an ending in progress (see `agentwrit.domain.ending`)."""


PUBLIC_KINDS: Final = frozenset({RevocationKind.TOKEN, RevocationKind.GRANT, RevocationKind.KEY})
"""The kinds in the feed, whose ids have 128 random bits. Others are for brokers, until each grant has its entry."""


class RevocationLevel(StrEnum):
    """What an operator can revoke."""

    TOKEN = "token"
    """The grant whose current token has this jti."""
    AGENT = "agent"
    """All grants of the agent with this SPIFFE ID: its registration and the delegations to it."""
    TASK = "task"
    """All grants for this task_id."""
    CHAIN = "chain"
    """The registration of the agent with this SPIFFE ID, with which its chains begin."""
    GRANT = "grant"
    """The grant of this sid."""
    APP = "app"
    """All grants that came through the app with this id, including its own logins."""


def names(level: RevocationLevel, target: str, grant: Grant) -> bool:
    """Whether a revocation of `target` names `grant` itself. Grants that end with a named grant are not considered."""
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
    """A revocation that applies from `effective_at` on. `last_exp`: the last exp that it affects. Unix seconds."""

    kind: RevocationKind
    id: str
    effective_at: int
    last_exp: int

    def joined(self, other: "Revocation") -> "Revocation":
        """This entry merged with another of the same kind and id: the earlier `effective_at`, the later `last_exp`."""
        return msgspec.structs.replace(
            self,
            effective_at=min(self.effective_at, other.effective_at),
            last_exp=max(self.last_exp, other.last_exp),
        )


class RevocationIndex:
    """All revocations that can still affect a token. Its size is bounded by the number of unexpired tokens.

    Not thread-safe: it belongs to the code that delivers the store's commits.
    """

    def __init__(self) -> None:
        self._entries: dict[RevocationKind, dict[str, Revocation]] = {kind: {} for kind in RevocationKind}
        self._peaks: dict[RevocationKind, int] = dict.fromkeys(RevocationKind, 0)
        self._by_last_exp: dict[int, list[Revocation]] = {}
        self._last_exps: list[int] = []  # a heap of the keys of _by_last_exp

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    def add(self, entries: Iterable[Revocation]) -> None:
        """Add committed entries."""
        for entry in entries:
            if not entry.id:
                continue
            known = self._entries[entry.kind].get(entry.id)
            if known is not None:
                entry = known.joined(entry)
            self._entries[entry.kind][entry.id] = entry
            if known is not None and known.last_exp == entry.last_exp:
                continue  # repeated entries must not use more memory
            if entry.last_exp not in self._by_last_exp:
                self._by_last_exp[entry.last_exp] = []
                heapq.heappush(self._last_exps, entry.last_exp)
            self._by_last_exp[entry.last_exp].append(entry)

    def forget(self, now: float, *, limit: int = sys.maxsize) -> int:
        """Remove up to `limit` entries that can no longer affect an unexpired token. Returns how many it examined."""
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
                # A dict never releases memory when entries are removed; only a copy is smaller.
                self._entries[kind] = dict(entries)
                self._peaks[kind] = len(entries)
        return looked_at

    def is_revoked(self, kind: RevocationKind, name: str, now: float) -> bool:
        """Whether there is a revocation of this kind and id that applies at `now`."""
        entry = self._entries[kind].get(name)
        return entry is not None and entry.effective_at <= now

    def is_dead(self, kid: str, claims: Claims, now: float) -> bool:
        """Whether a genuine token, signed by `kid`, is revoked at `now`."""
        return self.is_revoked(RevocationKind.TOKEN, claims.jti, now) or self.is_grant_dead(kid, claims, now)

    def is_grant_dead(self, kid: str, claims: Claims, now: float) -> bool:
        """Whether the grant of a genuine token, one above it, or a key that signed any of it is revoked at `now`."""
        return (
            self.is_revoked(RevocationKind.GRANT, claims.sid, now)
            or self.is_revoked(RevocationKind.KEY, kid, now)
            or (bool(claims.delegation_chain) and self._is_chain_dead(claims, now))
        )

    def _is_chain_dead(self, claims: Claims, now: float) -> bool:
        chain = claims.delegation_chain
        # The first agent of a chain delegated from its registration; each later one from a delegation to it.
        given_to = (claims.sub, *(hop.agent for hop in chain[1:]))
        return any(
            self.is_revoked(RevocationKind.GRANT, hop.sid, now) or self.is_revoked(RevocationKind.KEY, hop.kid, now)
            for hop in chain
        ) or any(self.is_revoked(RevocationKind.SUBJECT, agent, now) for agent in given_to)
