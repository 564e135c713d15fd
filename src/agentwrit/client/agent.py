"""An agent: an identity, a token for one task, and an end."""

import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from agentwrit.client import steps
from agentwrit.client.driver import Driver
from agentwrit.client.keys import AgentKey
from agentwrit.domain import base64url
from agentwrit.domain import claims as claims_rules
from agentwrit.domain.claims import Claims
from agentwrit.domain.errors import InvalidToken
from agentwrit.errors import AgentWritError, AuthenticationError, AuthorizationError
from agentwrit.models import DelegatedToken, RegisterResult


class Agent:
    """A registered agent, made by `AgentWritApp.create_agent`. Safe to share between threads.

    As a context manager it releases its token on the way out, whatever happened inside.
    """

    def __init__(
        self,
        driver: Driver,
        key: AgentKey,
        registered: RegisterResult,
        *,
        scope: Sequence[str],
        orch_id: str,
        task_id: str,
    ) -> None:
        self.agent_id = registered.agent_id
        self.scope = list(scope)
        self.orch_id = orch_id
        self.task_id = task_id
        self._driver = driver
        self._key = key
        self._lock = threading.Lock()
        self._access_token = registered.access_token
        self._expires_in = registered.expires_in
        self._is_released = False

    @property
    def access_token(self) -> str:
        """The current token. After `release` it is still here, and dead."""
        return self._access_token

    @property
    def expires_in(self) -> int:
        """How many seconds the current token had when it was issued."""
        return self._expires_in

    @property
    def bearer_header(self) -> dict[str, str]:
        """The header that presents the token to a service (RFC 6750 §2.1)."""
        return {"Authorization": f"Bearer {self._access_token}"}

    def renew(self) -> None:
        """Replace the token by its successor; the one before is dead then.

        Raises:
            AgentWritError: the agent was released.
            AuthenticationError: the grant has ended.
            TransportError: the broker was not reached. The token in use may have been superseded: renew again.
        """
        seen = self._access_token
        with self._lock:
            token = self._live_token()
            if token != seen:
                return  # another thread has just done it
            successor = self._driver.run(steps.renew(token))
            self._access_token = successor.access_token
            self._expires_in = successor.expires_in

    def delegate(self, delegate_to: str, scope: Iterable[str], *, ttl: int | None = None) -> DelegatedToken:
        """Give another agent of this app, by its `agent_id`, some of what this one holds.

        `ttl`: seconds; the broker's default is 60, and it is cut to what this agent's token has left. The delegate
        takes it with `accept`, or shows it to a service as it is.

        Raises:
            AgentWritError: this agent was released.
            AuthenticationError: this agent's token has expired.
            AuthorizationError: the scope exceeds this agent's, the chain is too long, or the grant has ended.
            ProblemResponseError: there is no such live agent in this app (404), or an argument is wrong (400).
            TransportError: the broker was not reached.
        """
        if isinstance(scope, str):
            raise TypeError("scope is a list of scopes, not one string")
        wanted = list(scope)
        token = self._live_token()
        try:
            return self._driver.run(steps.delegate(token, delegate_to, wanted, ttl))
        except (AuthenticationError, AuthorizationError):
            with self._lock:  # so that it is not renewed under us a second time
                successor = self._live_token()
                if successor == token:
                    raise
                return self._driver.run(steps.delegate(successor, delegate_to, wanted, ttl))

    def accept(self, delegated: DelegatedToken | str) -> "Agent":
        """This agent, acting on what another one delegated to it. What that agent delegates is the chain's next hop.

        It is a grant of its own: releasing it leaves this agent's own as it is. Makes no call.

        Raises:
            AgentWritError: it is not a delegated token, or was delegated to another agent.
        """
        token = delegated if isinstance(delegated, str) else delegated.access_token
        claims = _read_unverified(token)
        if claims.sub != self.agent_id:
            raise AgentWritError(f"the token was delegated to {claims.sub!r}, and this is {self.agent_id!r}")
        registered = RegisterResult(self.agent_id, token, claims.exp - claims.iat)
        return Agent(
            self._driver,
            self._key,
            registered,
            scope=claims.scopes,
            orch_id=claims.orch_id,
            task_id=claims.task_id,
        )

    def release(self) -> None:
        """End the grant: this token, its successors and all that was delegated from it. Again, it does nothing.

        A grant that has ended already counts as released.

        Raises:
            TransportError: the broker was not reached; it may be tried again.
        """
        with self._lock:
            if not self._is_released:
                self._driver.run(steps.release(self._access_token))
                self._is_released = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except AgentWritError as failure:
            if error is None:
                raise
            # What happened inside is what matters; the token ends by itself.
            error.add_note(f"the agent could not be released: {failure}")

    def _live_token(self) -> str:
        if self._is_released:
            raise AgentWritError("the agent was released: create a new one")
        return self._access_token

    def __repr__(self) -> str:
        return f"Agent({self.agent_id!r}, scope={self.scope!r})"

    def __reduce__(self) -> str:
        raise TypeError("an agent is not pickled: its key and its token stay in this process")


def _read_unverified(token: str) -> Claims:
    """What a delegated token says of itself. Whether it is true, whoever is shown it will find out."""
    try:
        claims = claims_rules.decode(base64url.decode(token.split(".")[1]))
    except (ValueError, IndexError, InvalidToken):
        raise AgentWritError("this is not a delegated token") from None
    if not claims.delegation_chain:
        raise AgentWritError("the token was not delegated: it is an agent's own")
    return claims
