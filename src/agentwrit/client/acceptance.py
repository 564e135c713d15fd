"""Which tokens a verifier accepts, without I/O: when its own knowledge is enough, and whom it asks otherwise.

The rules:

- While the verifier's knowledge is fresh, it asks nobody.
- A token signed by an unknown key may be signed by a new one. The keys are then fetched again, once for all such
  tokens, and at most once in `KEYS_AGAIN_SECONDS`, however many such tokens arrive.
- A bound token needs a proof by its key (`agentwrit.client.possession`), whether the verifier or the broker says that
  the token is valid.
- While the knowledge may be out of date (`max_staleness`), the verifier asks the broker about each token, or accepts
  none. While the broker does not answer (`agentwrit.client.reach`), it is not asked, and no token is accepted.
- A token that is known to be dead is refused, however old that knowledge is, and whatever the broker says.
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
    """The rules of one verifier. `max_staleness`: seconds; `can_log_in`: whether it has an app's token to show."""

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
        self._keys_fetched_at = float("-inf")  # because of a token with an unknown key

    @property
    def staleness(self) -> float:
        """The seconds since all revocations were known; infinite before the first time."""
        return self._revocations.staleness()

    @property
    def known_until(self) -> float:
        """The time up to which all revocations are known, on the monotonic clock."""
        return self._revocations.known_until

    def follow(self) -> Following:
        """The steps that keep the verifier up to date."""
        following = follow(
            self._checker, self._broker_url, max_staleness=self._max_staleness, can_log_in=self._can_log_in
        )
        return self.reach.following(following)

    def accept(
        self, token: str, scope: str | Sequence[str] | None, shown: ShownProof | None = None
    ) -> AgentClaims | None:
        """The claims of a token, if present knowledge is enough to accept it; None if `ask` is needed.

        Raises:
            InvalidToken: the token is not valid.
            ScopeDenied: the token does not cover `scope`.
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
        """Check a token for which `accept` returned None: fetch the keys, or ask the broker.

        Raises:
            InvalidToken: the token is not valid.
            ScopeDenied: the token does not cover `scope`.
            Unverifiable: revocations may be missing, and the settings forbid asking the broker.
            TransportError: the broker had to be asked, and was not reached.
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
        if result.claims.cnf is not None:  # remembered here too, for when the broker is no longer asked
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
