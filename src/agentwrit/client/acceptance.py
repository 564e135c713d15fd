"""What a verifier accepts, without I/O: when what it knows is enough, and whom it asks when it is not.

The rules:

- On knowledge that is fresh nobody is asked.
- A token by a key that is not known may be by a new one: then the keys are fetched, once for all who have such tokens,
  and no more than once in `KEYS_AGAIN_SECONDS`, however many such tokens there are.
- A token that is bound to a key needs a proof by that key (`agentwrit.client.possession`), whoever says that it holds.
- On knowledge that may be out of date (`max_staleness`) the broker is asked for each token, or none is accepted. While
  it does not answer (`agentwrit.client.reach`) it is not asked, and none is accepted.
- What is known to be dead is refused, however old that knowledge is, and whoever might say otherwise.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Literal, get_args

from agentwrit.client import steps
from agentwrit.client.clock import SYSTEM_CLOCK, Clock, Moment
from agentwrit.client.exchange import InTurn, Plan, Turn
from agentwrit.client.following import Following, fetch_keys, follow
from agentwrit.client.possession import Possession
from agentwrit.client.reach import Reach
from agentwrit.client.secrecy import Secret
from agentwrit.client.steps import ShownProof
from agentwrit.client.verification import REVOKED, Known, TokenChecker, check_scope
from agentwrit.domain.grant import GrantKind
from agentwrit.errors import InvalidToken, ProblemResponseError, TransportError, Unverifiable, unavailable
from agentwrit.models import AgentClaims

KEYS_AGAIN_SECONDS: Final = 1.0

OnStale = Literal["online", "refuse"]
Subject = Literal["agent", "app", "operator"]


class Acceptance:
    """The rules of one verifier. `max_staleness`: seconds; `can_log_in`: whether it has an app to show as."""

    def __init__(
        self,
        broker_url: str,
        *,
        audience: str | Iterable[str] | None,
        max_staleness: float,
        on_stale: OnStale,
        subjects: Iterable[Subject] = ("agent",),
        can_log_in: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if on_stale not in get_args(OnStale):
            raise ValueError('on_stale takes "online" or "refuse"')
        wanted = [subjects] if isinstance(subjects, str) else list(subjects)
        if not wanted or not set(wanted) <= set(get_args(Subject)):
            raise ValueError('subjects takes some of "agent", "app" and "operator"')
        self._broker_url = broker_url
        self._checker = TokenChecker(
            [audience] if isinstance(audience, str) else audience, clock, subjects=map(GrantKind, wanted)
        )
        self._revocations = self._checker.revocations
        self._possession = Possession()
        self._max_staleness = max_staleness
        self._on_stale = on_stale
        self._can_log_in = can_log_in
        self._wall, self._monotonic = clock.wall, clock.monotonic
        self.reach = Reach(broker_url, clock.monotonic)
        self._turn = Turn()
        self._keys_fetched_at = float("-inf")  # because of a token

    @property
    def staleness(self) -> float:
        """How many seconds ago all revocations were known; infinite before the first time."""
        return self._revocations.staleness()

    @property
    def known_until(self) -> float:
        """Up to when all revocations are known, on the monotonic clock."""
        return self._revocations.known_until

    def follow(self) -> Following:
        """What it takes to stay up to date."""
        following = follow(
            self._checker, self._broker_url, max_staleness=self._max_staleness, can_log_in=self._can_log_in
        )
        return self.reach.following(following)

    def accept(
        self, token: str, scope: str | Sequence[str] | None, shown: ShownProof | None = None
    ) -> AgentClaims | None:
        """What a token says, if what is known is enough to accept it; None where somebody has to be asked (`ask`).

        Raises:
            InvalidToken: it does not hold.
            ScopeDenied: it does not cover `scope`.
        """
        now = Moment(self._wall(), self._monotonic())
        if self._revocations.staleness(now) > self._max_staleness:
            if self._checker.is_known_dead(token):
                raise InvalidToken(REVOKED)
            return None
        try:
            known = self._checker.check(token, self._revocations.now(now))
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
            why = ": it goes on from another history than the one that is known" if self._revocations.is_forked else ""
            raise Unverifiable(f"revocations of {self._broker_url} are not known up to now{why}: nothing is accepted")
        result = yield from self.reach.asking(steps.validate(Secret(token), shown))
        if result.claims is None:
            raise InvalidToken("the broker says that the token does not hold")
        self._checker.check_meant(result.claims.sub, result.claims.aud, result.claims.iss)
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
            try:
                yield from fetch_keys(self._checker)
            except ProblemResponseError as error:
                raise unavailable(error) from None
            except InvalidToken:
                raise TransportError("the keys that are published are none: is this a broker?") from None
