"""The life of an agent, without I/O: its token, and how renewing, delegating and releasing change it.

The rules:

- Callers that ask for a new token at the same time share one renewal. The previous token is then dead.
- If the predecessor is presented again shortly afterwards, the broker returns the same successor. So if the answer to a
  renewal is lost, renewing again recovers it.
- A request may be in flight with a token that is being replaced. If it is refused, it is repeated once, with the
  successor.
- At 75 % of its certain lifetime, a token is replaced before it is shown to a service (`fresh_token`). While the broker
  is out of reach, the token is used until it expires, and renewal is retried from time to time. A token that the broker
  does not renew, or whose successor would not outlive it, is used until it expires too.
- A bound token is shown with a proof by the agent's key, to the broker and to services alike. Its successors are bound
  too.
- A release is final: further calls do nothing.
- A token has one holder, which renews and releases it: the process that it was issued to. After a fork, two processes
  could do so, and the broker would take the later one for a thief. So the child may use the token that it sees, but not
  renew, release or show it as its own: an error tells it to create its own agent.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, Self

from agentwrit.client import steps
from agentwrit.client.clock import SYSTEM_CLOCK, Clock
from agentwrit.client.exchange import InTurn, Plan, Turn
from agentwrit.client.keys import AgentKey, Ed25519PrivateKey
from agentwrit.client.log import logger
from agentwrit.client.secrecy import Secret, discreet
from agentwrit.client.steps import AccessToken
from agentwrit.domain import base64url
from agentwrit.domain import claims as claims_rules
from agentwrit.domain.claims import Claims
from agentwrit.domain.errors import InvalidToken
from agentwrit.errors import (
    AgentWritError,
    AuthenticationError,
    AuthorizationError,
    ProblemResponseError,
    TransportError,
)
from agentwrit.models import DelegatedToken, RegisterResult

RENEW_AT: Final = 0.75  # of a token's lifetime
WHOLE_SECOND: Final = 1.0  # by which a token may end early: its times are rounded down to seconds (RFC 7519 §2)
RETRY_SECONDS: Final = 1.0  # after a renewal that did not reach the broker
PATIENCE_SECONDS: Final = 1.0  # for which a request with a valid token waits for a slow renewal
LEAST_GAIN_SECONDS: Final = 1.0  # by which a due token's successor outlives it, except at a grant's end


class AgentLife:
    """One grant of an agent. Safe to share between threads and tasks, because the driver gives turns.

    `asked_at`: when its token was requested, on the monotonic clock; `left`: the seconds that the token had left then;
    `broker_url`: the broker's name in proofs; `is_bound`: whether its tokens are bound to its key.
    """

    def __init__(
        self,
        key: AgentKey,
        registered: RegisterResult,
        *,
        scope: Sequence[str],
        orch_id: str,
        task_id: str,
        asked_at: float,
        broker_url: str = "",
        is_bound: bool = False,
        left: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.key = key
        self.agent_id = registered.agent_id
        self.scope = list(scope)
        self.orch_id = orch_id
        self.task_id = task_id
        self.token = AccessToken(Secret(registered.access_token), registered.expires_in)
        self.is_bound = is_bound
        self._broker_url = broker_url
        self._binding = steps.Binding(key, broker_url) if is_bound else None
        self._clock = clock
        self._monotonic = clock.monotonic
        self._turn = Turn()
        self._pid = os.getpid()
        self._is_released = False
        self._live(asked_at, registered.expires_in if left is None else left)
        self._is_failing = False  # whether the last renewal failed
        self._doubtful = Secret("")  # the token whose renewal started last: if it is still current, no answer came

    @classmethod
    def begin(
        cls,
        ceremony: steps.Ceremony,
        *,
        orch_id: str,
        task_id: str,
        requested_scope: Iterable[str],
        private_key: Ed25519PrivateKey | None,
        max_ttl: int,
        label: str | None,
        audience: str | Sequence[str] | None,
        bound: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Plan[Self]:
        """Register an agent. The arguments are those of `AgentWritApp.create_agent`."""
        if isinstance(requested_scope, str):
            raise TypeError("requested_scope is a list of scopes, not one string")
        scope = list(requested_scope)
        key = AgentKey(private_key)
        asked_at = clock.monotonic()
        wanted = steps.WantedAgent(
            orch_id=orch_id,
            task_id=task_id,
            requested_scope=scope,
            max_ttl=max_ttl,
            label=label,
            audience=audience if audience is None else [audience] if isinstance(audience, str) else list(audience),
            bound=bound,
        )
        registered = yield from steps.create_agent(ceremony, key, wanted)
        return cls(
            key,
            registered,
            scope=scope,
            orch_id=orch_id,
            task_id=task_id,
            asked_at=asked_at,
            broker_url=ceremony.broker_url,
            is_bound=bound,
            clock=clock,
        )

    # -- showing it ---------------------------------------------------------------------------------------------------

    @discreet
    def proof(self, method: str, url: str, token: Secret[str]) -> Secret[str]:
        """A new proof by the agent's key, for one request to a service with this token.

        Raises:
            AgentWritError: the URL is not absolute.
        """
        try:
            return steps.make_proof(self.key, method.upper(), url, token, wall=self._clock.wall)
        except ValueError:
            raise AgentWritError(
                "a proof is for an absolute URL, such as https://orders.example.com/orders/7"
            ) from None

    @discreet
    def headers(self, method: str, url: str, token: Secret[str]) -> dict[str, str]:
        """The header fields that show this token in one request to a service (RFC 6750 §2.1, RFC 9449 §7.1)."""
        if not self.is_bound:
            return {"Authorization": f"Bearer {token.reveal()}"}
        proof = self.proof(method, url, token)
        return {"Authorization": f"DPoP {token.reveal()}", "DPoP": proof.reveal()}

    # -- renewing -----------------------------------------------------------------------------------------------------

    def renew(self) -> Plan[None]:
        """Replace the present token, unless another caller does so before these steps get their turn."""
        self.check_own()
        return self._in_turn(self._renew(self.token.access_token))

    def _in_turn(self, steps: Plan[None]) -> Plan[None]:
        yield InTurn(self._turn, steps)

    @property
    def is_due(self) -> bool:
        """Whether to replace the token before showing it to a service."""
        return self._monotonic() >= self._renew_at and not self._is_released

    @property
    def is_over(self) -> bool:
        """Whether the token may have expired."""
        return self._monotonic() >= self._ends_at

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to renew the token failed."""
        return self._is_failing

    @property
    def seconds_left(self) -> float:
        """The seconds before the token may expire."""
        return max(0.0, self._ends_at - self._monotonic())

    def fresh_token(self) -> Plan[Secret[str]]:
        """A token to show to a service; a due token is replaced first.

        Raises:
            AgentWritError: the agent was released, or belongs to another process.
            AuthenticationError: the token has expired, and cannot be renewed.
            TransportError: the token has expired, and the broker was not reached.
        """
        self.check_own()
        if self.is_due:
            yield InTurn(self._turn, self._renew_if_due())
        return self.live_token()

    def token_after_refusal(self, refused: Secret[str]) -> Plan[Secret[str] | None]:
        """The token for a second attempt after a service refused `refused`, or None."""
        if self.token.access_token == refused == self._doubtful and not self._is_released:
            with suppress(TransportError, ProblemResponseError):
                yield InTurn(self._turn, self._renew(refused))
        current = self.token.access_token
        return None if current == refused or self._is_released else current

    def _renew(self, seen: Secret[str]) -> Plan[None]:
        token = self.live_token()
        if token != seen:
            return  # another caller has just renewed it
        asked_at = self._monotonic()
        self._doubtful = token
        try:
            successor = yield from steps.renew(token, self._binding)
        except AuthenticationError as error:
            self._renew_at = self._ends_at  # it cannot be renewed, but may be valid until then
            self._note_renewal(error)
            raise
        except (TransportError, ProblemResponseError) as error:
            self._renew_at = max(self._renew_at, self._monotonic() + RETRY_SECONDS)
            self._note_renewal(error)
            raise
        self._note_renewal(None)
        was_due, gain = asked_at >= self._due_at, asked_at + successor.expires_in - self._ends_at
        self._live(asked_at, successor.expires_in)
        if was_due and gain < min(LEAST_GAIN_SECONDS, successor.expires_in / 4):
            self._renew_at = self._ends_at  # the last renewal: the next one would gain nothing either
        self.token = successor

    def _note_renewal(self, error: AgentWritError | None) -> None:
        """Log that renewals fail, and that they work again: once each."""
        if error is not None and not self._is_failing:
            logger.warning("the token of %s was not renewed: %s", self.agent_id, error)
        elif error is None and self._is_failing:
            logger.warning("the token of %s was renewed again", self.agent_id)
        self._is_failing = error is not None

    def _live(self, asked_at: float, seconds: float) -> None:
        self._ends_at = asked_at + seconds
        self._due_at = asked_at + RENEW_AT * max(seconds - WHOLE_SECOND, seconds / 2)
        self._renew_at = self._due_at  # later than that after a failed renewal

    def _renew_if_due(self) -> Plan[None]:
        if self.is_due:
            try:
                yield from self._renew(self.token.access_token)
            except (TransportError, ProblemResponseError):
                if self.is_over:
                    raise

    # -- delegating ---------------------------------------------------------------------------------------------------

    def delegate(self, delegate_to: str, scope: Iterable[str], ttl: int | None) -> Plan[DelegatedToken]:
        """Delegate some of this scope to another agent."""
        if isinstance(scope, str):
            raise TypeError("scope is a list of scopes, not one string")
        wanted = list(scope)
        token = self.live_token()
        try:
            return (yield from steps.delegate(token, delegate_to, wanted, ttl, self._binding))
        except (AuthenticationError, AuthorizationError) as error:
            refusal = error

        def again() -> Plan[DelegatedToken]:
            successor = self.live_token()
            if successor == token:
                raise refusal
            return (yield from steps.delegate(successor, delegate_to, wanted, ttl, self._binding))

        # In turn: a renewal in progress finishes first, and no other starts.
        delegated: DelegatedToken = yield InTurn(self._turn, again())
        return delegated

    def accept(self, delegated: DelegatedToken | str) -> "AgentLife":
        """This agent's life on a grant that another agent delegated to it.

        Raises:
            AgentWritError: it is not a delegated token, or it was delegated to another agent.
        """
        token = Secret(delegated if isinstance(delegated, str) else delegated.access_token)
        claims = _read_unverified(token)
        if not claims.delegation_chain:
            raise AgentWritError("the token was not delegated: it is an agent's own")
        if claims.sub != self.agent_id:
            raise AgentWritError(f"the token was delegated to {claims.sub!r}, and this is {self.agent_id!r}")
        return AgentLife._on(token, claims, self.key, broker_url=self._broker_url, clock=self._clock)

    @classmethod
    def take_over(cls, token: Secret[str], *, clock: Clock = SYSTEM_CLOCK) -> "AgentLife":
        """The life of the holder of an agent's token, without its key.

        Raises:
            AgentWritError: it is not an agent's token, or it is bound to a key.
        """
        claims = _read_unverified(token)
        if not claims.task_id:
            raise AgentWritError("this is not an agent's token")
        if claims.cnf is not None:
            raise AgentWritError("the token is bound to its agent's key, and cannot be taken over without it")
        return cls._on(token, claims, AgentKey(None), broker_url="", clock=clock)

    @classmethod
    def _on(cls, token: Secret[str], claims: Claims, key: AgentKey, *, broker_url: str, clock: Clock) -> "AgentLife":
        return cls(
            key,
            RegisterResult(claims.sub, token.reveal(), claims.exp - claims.iat),
            scope=claims.scopes,
            orch_id=claims.orch_id,
            task_id=claims.task_id,
            asked_at=clock.monotonic(),
            broker_url=broker_url,
            is_bound=claims.cnf is not None,
            left=claims.exp - clock.wall(),
            clock=clock,
        )

    # -- the end ------------------------------------------------------------------------------------------------------

    @property
    def is_own(self) -> bool:
        """Whether the token belongs to this process, not to the one that it was forked from."""
        return self._pid == os.getpid()

    def check_own(self) -> None:
        """Check that the token belongs to this process.

        Raises:
            AgentWritError: it does not.
        """
        if not self.is_own:
            raise AgentWritError(
                f"the agent belongs to process {self._pid}, and this is a forked child of it: create one here"
            )

    def release(self) -> Plan[None]:
        """End the grant, unless it has ended already.

        Raises:
            AgentWritError: it belongs to another process.
        """
        self.check_own()
        yield InTurn(self._turn, self._release())

    def _release(self) -> Plan[None]:
        if not self._is_released:
            yield from steps.release(self.token.access_token, self._binding)
            self._is_released = True

    def own_token(self) -> Secret[str]:
        """The current token, to be shown by the process that renews it.

        Raises:
            AgentWritError: the agent was released, or belongs to another process.
        """
        self.check_own()
        return self.live_token()

    def live_token(self) -> Secret[str]:
        """The current token.

        Raises:
            AgentWritError: the agent was released.
        """
        if self._is_released:
            raise AgentWritError("the agent was released: create a new one")
        return self.token.access_token


def _read_unverified(token: Secret[str]) -> Claims:
    """The claims of a token, unverified. The broker or a service verifies them when the token is shown."""
    try:
        return claims_rules.decode(base64url.decode(token.reveal().split(".")[1]))
    except (ValueError, IndexError, InvalidToken):
        raise AgentWritError("this is not a token") from None
