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
    """A registered agent, created by `AgentWritApp.create_agent`. Safe to share between threads.

        with app.create_agent("orders", "order-4823", ["read:data:customer-7291"]) as agent:
            httpx2.get("https://orders.example/customers/7291", auth=agent.auth)

    As a context manager, it releases its token on exit, also after an exception.

    An agent belongs to the process that created it. A forked child (`multiprocessing`, prefork servers) may read its
    token and delegate. To renew, to release or to show a token through `auth`, the child creates an agent of its own.
    """

    def __init__(self, driver: Driver, life: AgentLife) -> None:
        self._driver = driver
        self._life = life
        self._shown: Tokens | None = None

    def renew(self) -> None:
        """Replace the token with its successor. The previous token is then dead.

        Raises:
            AgentWritError: the agent was released, or belongs to the parent of this process.
            AuthenticationError: the grant has ended.
            ProblemResponseError: the broker refused for another reason.
            TransportError: the broker was not reached. The current token may have been superseded: call `renew` again.
        """
        self._driver.run(self._life.renew())

    def delegate(self, delegate_to: str, scope: Iterable[str], *, ttl: int | None = None) -> DelegatedToken:
        """Delegate some of this agent's scope to another agent of the same app, named by its `agent_id`.

        `ttl`: seconds; by default the broker's 60, and never more than what is left of this agent's token. The delegate
        acts on the delegation with `accept`, or shows the delegated token to a service directly.

        Raises:
            AgentWritError: this agent was released.
            AuthenticationError: this agent's token has expired.
            AuthorizationError: the scope exceeds this agent's, the chain is too long, or the grant has ended.
            ProblemResponseError: the app has no such live agent (404), or an argument is invalid (400).
            TransportError: the broker was not reached.
        """
        return self._driver.run(self._life.delegate(delegate_to, scope, ttl))

    @discreet
    def accept(self, delegated: DelegatedToken | str) -> "Agent":
        """This agent, acting on a delegation to it. Its own delegations become the next hop of the chain.

        The delegation is a grant of its own: releasing it leaves this agent's registration as it is. Makes no call.

        Raises:
            AgentWritError: it is not a delegated token, or it was delegated to another agent.
        """
        return Agent(self._driver, self._life.accept(delegated))

    def release(self) -> None:
        """End the grant: this token, its successors and all delegations from it. Further calls do nothing.

        If the grant has already ended, this counts as success.

        Raises:
            AgentWritError: the agent belongs to the parent of this process.
            TransportError: the broker was not reached; call `release` again.
        """
        self._driver.run(self._life.release())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._life.is_own:
            return  # after a fork inside the `with`: only the parent ends its grant
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
