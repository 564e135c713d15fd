"""An agent, for programs on an event loop."""

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from agentwrit.client.async_driver import AsyncDriver
from agentwrit.client.life import AgentLife
from agentwrit.client.presence import Presence, note_failed_release
from agentwrit.client.secrecy import discreet
from agentwrit.errors import AgentWritError
from agentwrit.models import DelegatedToken

if TYPE_CHECKING:
    from agentwrit.client.auth import Tokens


class AsyncAgent(Presence):
    """A registered agent, created by `AsyncAgentWritApp.create_agent`. Safe to share between tasks.

        async with await app.create_agent("orders", "order-4823", ["read:data:customer-7291"]) as agent:
            async with httpx2.AsyncClient(auth=agent.auth) as client:
                await client.get("https://orders.example/customers/7291")

    With `async with`, it releases its token on exit, also if the task is cancelled. A second cancellation during the
    release takes effect after it. All else is as for `Agent`.
    """

    def __init__(self, driver: AsyncDriver, life: AgentLife) -> None:
        self._driver = driver
        self._life = life
        self._shown: Tokens | None = None

    async def renew(self) -> None:
        """Replace the token with its successor, as `Agent.renew`. The renewal continues if the caller is cancelled."""
        await self._driver.run_through(self._life.renew())

    async def delegate(self, delegate_to: str, scope: Iterable[str], *, ttl: int | None = None) -> DelegatedToken:
        """Delegate some of this agent's scope to another agent, as `Agent.delegate`."""
        return await self._driver.run(self._life.delegate(delegate_to, scope, ttl))

    @discreet
    def accept(self, delegated: DelegatedToken | str) -> "AsyncAgent":
        """This agent, acting on a delegation to it, as `Agent.accept`. Makes no call."""
        return AsyncAgent(self._driver, self._life.accept(delegated))

    async def release(self) -> None:
        """End the grant, as `Agent.release`. A cancellation takes effect after the release."""
        await self._driver.run_to_the_end(self._life.release())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._life.is_own:
            return  # after a fork inside the `with`: only the parent ends its grant
        try:
            await self.release()
        except AgentWritError as failure:
            if error is None:
                raise
            note_failed_release(error, failure)

    def _tokens(self) -> "Tokens":
        if self._shown is None:
            from agentwrit.client.auth import AsyncTokens

            self._shown = AsyncTokens(self._driver, self._life)
        return self._shown
