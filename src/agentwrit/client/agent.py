"""An agent: an identity, a token for one task, and an end."""

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from agentwrit.client.driver import Driver
from agentwrit.client.life import AgentLife
from agentwrit.client.presence import Presence, note_failed_release
from agentwrit.client.secrecy import discreet
from agentwrit.errors import AgentWritError
from agentwrit.models import DelegatedToken

if TYPE_CHECKING:
    from agentwrit.client.auth import Tokens


class Agent(Presence):
    """A registered agent, made by `AgentWritApp.create_agent`. Safe to share between threads.

    As a context manager it releases its token on the way out, whatever happened inside.

    It is of the process that made it. A child that is forked from that (`multiprocessing`, prefork servers) may read
    its token and delegate; to renew, to release and to show a token through `auth` it creates an agent of its own.
    """

    def __init__(self, driver: Driver, life: AgentLife) -> None:
        self._driver = driver
        self._life = life
        self._shown: Tokens | None = None

    def renew(self) -> None:
        """Replace the token by its successor; the one before is dead then.

        Raises:
            AgentWritError: the agent was released, or was made by the process that this one was forked from.
            AuthenticationError: the grant has ended.
            ProblemResponseError: the broker refused otherwise.
            TransportError: the broker was not reached. The token in use may have been superseded: renew again.
        """
        self._driver.run(self._life.renew())

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
        return self._driver.run(self._life.delegate(delegate_to, scope, ttl))

    @discreet
    def accept(self, delegated: DelegatedToken | str) -> "Agent":
        """This agent, acting on what another one delegated to it. What that agent delegates is the chain's next hop.

        It is a grant of its own: releasing it leaves this agent's own as it is. Makes no call.

        Raises:
            AgentWritError: it is not a delegated token, or was delegated to another agent.
        """
        return Agent(self._driver, self._life.accept(delegated))

    def release(self) -> None:
        """End the grant: this token, its successors and all that was delegated from it. Again, it does nothing.

        A grant that has ended already counts as released.

        Raises:
            AgentWritError: the agent was made by the process that this one was forked from.
            TransportError: the broker was not reached; it may be tried again.
        """
        self._driver.run(self._life.release())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._life.is_own:
            return  # after a fork inside the `with`: what it is to end is the parent's
        try:
            self.release()
        except AgentWritError as failure:
            if error is None:
                raise
            note_failed_release(error, failure)

    def _tokens(self) -> "Tokens":
        if self._shown is None:
            from agentwrit.client.auth import BlockingTokens

            self._shown = BlockingTokens(self._driver, self._life)
        return self._shown
