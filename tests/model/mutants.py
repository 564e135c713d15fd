"""Bugs to plant in a broker's process, each of a kind that the model is there to find."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from agentwrit.broker.clock import Clock
from agentwrit.broker.services import ending
from agentwrit.broker.services.issuing import TokenIssuer
from agentwrit.broker.services.liveness import Liveness
from agentwrit.broker.storage.base import Store
from agentwrit.domain.claims import Claims
from agentwrit.domain.delegation import Chain
from agentwrit.domain.grant import Grant
from agentwrit.domain.revocation import RevocationIndex


def forget_the_second_ancestor() -> None:
    """Whatever ends the second grant of a chain ends nothing below it.

    Death is enforced twice, when a grant ends and when a token is checked, so both have to look away.
    """
    is_grant_dead = RevocationIndex.is_grant_dead

    def without_second(chain: Chain) -> Chain:
        return chain[:1] + chain[2:]

    falling = ending._Work._falling

    def forgetful_falling(self: ending._Work, sids: tuple[str, ...], agents: tuple[str, ...]) -> Sequence[Grant] | None:
        found = falling(self, sids, agents)
        below_second = {grant.sid for grant in found or () if len(grant.chain) == 2 and grant.parent_sid in sids}
        return None if found is None else [grant for grant in found if grant.sid not in below_second]

    def forgetful_is_grant_dead(self: RevocationIndex, kid: str, claims: Claims, now: float) -> bool:
        pruned = msgspec.structs.replace(claims, delegation_chain=without_second(claims.delegation_chain))
        return is_grant_dead(self, kid, pruned, now)

    ending._Work._falling = forgetful_falling  # type: ignore[method-assign]
    RevocationIndex.is_grant_dead = forgetful_is_grant_dead  # type: ignore[method-assign]


def cut_delegations_to_the_grants_end() -> None:
    """A delegation is cut to the end of the delegator's grant, and not to that of the token it is made with."""
    delegated = TokenIssuer.delegated

    def generous(
        self: TokenIssuer, parent: Grant, to: Grant, scope: Sequence[str], *, ends_at: int, now: float, born: int
    ) -> Grant:
        cut = parent.ends_at if ends_at == parent.exp else ends_at
        return delegated(self, parent, to, scope, ends_at=cut, now=now, born=born)

    TokenIssuer.delegated = generous  # type: ignore[method-assign]


def start_without_revocations() -> None:
    """What was revoked before a start is not loaded."""

    async def load(cls: type[Liveness], store: Store, clock: Clock) -> Liveness:
        index = RevocationIndex()
        store.listen(index.add)
        return cls(store, clock, index)

    loading: Any = classmethod(load)
    Liveness.load = loading  # type: ignore[method-assign]


PLANT: Final[dict[str, Callable[[], None]]] = {
    plant.__name__: plant
    for plant in (forget_the_second_ancestor, cut_delegations_to_the_grants_end, start_without_revocations)
}
