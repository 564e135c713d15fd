"""An app, for programs on an event loop."""

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from agentwrit.client import steps
from agentwrit.client.app import Identity
from agentwrit.client.async_agent import AsyncAgent
from agentwrit.client.async_driver import AsyncConnected, AsyncDriver
from agentwrit.client.clock import SYSTEM_CLOCK, Clock
from agentwrit.client.current import acting_as
from agentwrit.client.keys import Ed25519PrivateKey
from agentwrit.client.life import AgentLife
from agentwrit.client.policy import CALL_SECONDS, Login
from agentwrit.client.secrecy import Secret, discreet
from agentwrit.models import HealthStatus, ValidateResult

if TYPE_CHECKING:
    import httpx2


class AsyncAgentWritApp(Identity, AsyncConnected):
    """An `AgentWritApp` whose calls are awaited. Safe to share between tasks, and to use on several loops in turn.

        async with AsyncAgentWritApp("https://broker.example", client_id, client_secret) as app:
            async with await app.create_agent("orders", "order-4823", ["read:data:customer-7291"]) as agent:
                ...  # call services with auth=agent.auth

    The number of calls in progress is limited, and further calls wait. The wait does not count towards `timeout` while
    the broker answers.
    """

    @discreet
    def __init__(
        self,
        broker_url: str,
        client_id: str,
        client_secret: str,
        *,
        timeout: float = CALL_SECONDS,
        user_agent: str | None = None,
        http_client: "httpx2.AsyncClient | None" = None,
        verify: Any = None,
        cert: Any = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """As for `AgentWritApp`. `http_client`: an httpx2.AsyncClient, for use on its own loop only.

        Raises:
            AgentWritError: `broker_url` is not a valid URL.
        """
        secret = Secret(client_secret)
        self.client_id = client_id
        self._clock = clock
        self._driver = AsyncDriver(
            broker_url,
            timeout=timeout,
            user_agent=user_agent,
            login=Login(lambda: steps.app_login(client_id, secret)),
            http_client=http_client,
            verify=verify,
            cert=cert,
        )
        self._ceremony = steps.Ceremony(self._driver.broker_url)

    async def create_agent(
        self,
        orch_id: str,
        task_id: str,
        requested_scope: Iterable[str],
        *,
        private_key: Ed25519PrivateKey | None = None,
        max_ttl: int = 300,
        label: str | None = None,
        audience: str | Sequence[str] | None = None,
        bound: bool = False,
    ) -> AsyncAgent:
        """Register an agent for one task, as `AgentWritApp.create_agent`."""
        life = await self._driver.run(
            AgentLife.begin(
                self._ceremony,
                orch_id=orch_id,
                task_id=task_id,
                requested_scope=requested_scope,
                private_key=private_key,
                max_ttl=max_ttl,
                label=label,
                audience=audience,
                bound=bound,
                clock=self._clock,
            )
        )
        return AsyncAgent(self._driver, life)

    @contextlib.asynccontextmanager
    async def agent_for(
        self,
        *,
        task_id: str,
        scope: Iterable[str],
        orch_id: str | None = None,
        max_ttl: int = 300,
        label: str | None = None,
        audience: str | Sequence[str] | None = None,
        bound: bool = False,
    ) -> AsyncIterator[AsyncAgent]:
        """An agent for one task, current inside the `async with`, as `AgentWritApp.agent_for`."""
        agent = await self.create_agent(
            self.client_id if orch_id is None else orch_id,
            task_id,
            scope,
            max_ttl=max_ttl,
            label=label,
            audience=audience,
            bound=bound,
        )
        async with agent:
            with acting_as(agent):
                yield agent

    @discreet
    def take_over(self, token: str) -> AsyncAgent:
        """An agent that acts on a token from elsewhere, as `AgentWritApp.take_over`. Makes no call."""
        return AsyncAgent(self._driver, AgentLife.take_over(Secret(token), clock=self._clock))

    @discreet
    async def validate(
        self, token: str, *, proof: str | None = None, htm: str | None = None, htu: str | None = None
    ) -> ValidateResult:
        """Ask the broker whether `token` is valid, and what it says, as `AgentWritApp.validate`."""
        return await self._driver.run(steps.validate(Secret(token), steps.ShownProof(proof, htm, htu)))

    async def health(self) -> HealthStatus:
        """The broker's health, as `AgentWritApp.health`."""
        return await self._driver.run(steps.health())
