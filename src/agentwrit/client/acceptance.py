"""What a verifier accepts, without I/O: when what it knows is enough, and whom it asks when it is not.

The rules:

- On knowledge that is fresh nobody is asked.
- A token by a key that is not known may be by a new one: then the keys are fetched, once for all who have such tokens,
  and no more than once in `KEYS_AGAIN_SECONDS`, however many such tokens there are.
- A token that is bound to a key needs a proof by that key (`agentwrit.client.possession`), whoever says that it holds.
- On knowledge that may be out of date (`max_staleness`) the broker is asked for each token, or none is accepted.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from agentwrit.client import steps
from agentwrit.client.clock import SYSTEM_CLOCK, Clock
from agentwrit.client.exchange import InTurn, Plan, Turn
from agentwrit.client.following import Following, fetch_keys, follow
from agentwrit.client.possession import Possession
from agentwrit.client.steps import ShownProof
from agentwrit.client.verification import Known, TokenChecker, check_scope
from agentwrit.errors import InvalidToken, Unverifiable
from agentwrit.models import AgentClaims

KEYS_AGAIN_SECONDS: Final = 1.0

OnStale = Literal["online", "refuse"]


class Acceptance:
    """The rules of one verifier. `max_staleness`: seconds."""

    def __init__(
        self,
        broker_url: str,
        *,
        audience: str | Iterable[str] | None,
        max_staleness: float,
        on_stale: OnStale,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if on_stale not in ("online", "refuse"):
            raise ValueError('on_stale takes "online" or "refuse"')
        self._broker_url = broker_url
        self._checker = TokenChecker([audience] if isinstance(audience, str) else audience, clock)
        self._revocations = self._checker.revocations
        self._possession = Possession()
        self._max_staleness = max_staleness
        self._on_stale = on_stale
        self._monotonic = clock.monotonic
        self._turn = Turn()
        self._keys_fetched_at = float("-inf")  # because of a token

    @property
    def staleness(self) -> float:
        """How many seconds ago all revocations were known; infinite before the first time."""
        return self._monotonic() - self._revocations.fresh_at

    @property
    def known_until(self) -> float:
        """Up to when all revocations are known, on the monotonic clock."""
        return self._revocations.fresh_at

    def follow(self) -> Following:
        """What it takes to stay up to date."""
        return follow(self._checker)

    def accept(
        self, token: str, scope: str | Sequence[str] | None, shown: ShownProof | None = None
    ) -> AgentClaims | None:
        """What a token says, if what is known is enough to accept it; None where somebody has to be asked (`ask`).

        Raises:
            InvalidToken: it does not hold.
            ScopeDenied: it does not cover `scope`.
        """
        if self._monotonic() - self._revocations.fresh_at > self._max_staleness:
            return None
        try:
            known = self._checker.check(token, self._revocations.now())
        except InvalidToken:
            if self._checker.is_by_unknown_key(token):
                return None
            raise
        if not known.is_plain:
            self._check_possession(known, token, shown)
        check_scope(scope, known.public.scope)
        return known.shown()

    def ask(self, token: str, scope: str | Sequence[str] | None, shown: ShownProof | None = None) -> Plan[AgentClaims]:
        """The same for a token that what is known was not enough for.

        Raises:
            InvalidToken: it does not hold.
            ScopeDenied: it does not cover `scope`.
            Unverifiable: revocations may be missing, and the broker is not to be asked.
            TransportError: the broker was to be asked, and was not reached.
        """
        if self.staleness <= self._max_staleness:
            yield InTurn(self._turn, self._fetch_keys(token))
            known = self._checker.check(token, self._revocations.now())
            self._check_possession(known, token, shown)
            check_scope(scope, known.public.scope)
            return known.shown()
        if self._on_stale == "refuse":
            raise Unverifiable(f"revocations of {self._broker_url} are not known up to now: nothing is accepted")
        result = yield from steps.validate(token, shown)
        if result.claims is None:
            raise InvalidToken("the broker says that the token does not hold")
        self._checker.check_audience(result.claims.aud, result.claims.iss)
        if result.claims.cnf is not None:  # remembered here too, for when the broker is not asked any more
            self._possession.check(shown, token, result.claims.cnf.get("jkt", ""), self._revocations.now())
        check_scope(scope, result.claims.scope)
        return result.claims

    def _check_possession(self, known: Known, token: str, shown: ShownProof | None) -> None:
        if known.claims.cnf is not None:
            self._possession.check(shown, token, known.claims.cnf.jkt, self._revocations.now())

    def _fetch_keys(self, token: str) -> Plan[None]:
        is_too_soon = self._monotonic() < self._keys_fetched_at + KEYS_AGAIN_SECONDS
        if self._checker.is_by_unknown_key(token) and not is_too_soon:
            self._keys_fetched_at = self._monotonic()
            yield from fetch_keys(self._checker)
