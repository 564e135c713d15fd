"""Agents on the wire, for apps that create them and for those who watch over them."""

from collections.abc import Sequence

from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import Answer, Exchange, integer_parameter, json_answer, large_json_answer
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.services.agents import MAX_LIMIT, AgentService
from agentwrit.broker.services.authentication import Authenticator
from agentwrit.broker.services.registration import DirectApplication, RegistrationService
from agentwrit.broker.services.turns import Asker, Turns
from agentwrit.broker.storage.base import GrantQuery
from agentwrit.domain import app
from agentwrit.domain.grant import GrantKind
from agentwrit.domain.target_uri import KnownNames


class AgentRoutes:
    """Routes under /v1/agents. `names`: by which the broker is known."""

    def __init__(
        self,
        agents: AgentService,
        registration: RegistrationService,
        authenticator: Authenticator,
        turns: Turns,
        *,
        names: KnownNames,
    ) -> None:
        self._agents = agents
        self._turns = turns
        self._registration = registration
        self._authenticator = authenticator
        self._names = names

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/agents", {"GET": self.list, "POST": self.create}, is_bounded=True),
            # A SPIFFE id holds slashes, which arrive as such, percent-encoded or not.
            Resource("/v1/agents/{agent_id:path}", {"GET": self.show}),
        ]

    async def create(self, exchange: Exchange) -> Answer:
        token = exchange.bearer()
        required = {GrantKind.APP: app.AGENTS_SCOPE}
        principal = await self._authenticator.require(exchange.caller, token, required)
        request = await exchange.body(wire.CreateAgent)
        issued = await self._registration.create(
            exchange.caller,
            token or "",
            principal,
            DirectApplication(
                public_key=wire.decode_public_key(request.public_key),
                orch_id=request.orch_id,
                task_id=request.task_id,
                requested_scope=tuple(request.requested_scope),
                agent_name=request.agent_name or f"{request.orch_id}/{request.task_id}",
                max_ttl=request.max_ttl,
                audience=tuple(request.audience),
                is_bound=request.bound,
                proof=request.proof,
                urls=exchange.urls(self._names),
                idempotency_key=exchange.idempotency_key(),
            ),
        )
        return json_answer(wire.registered(issued), status=201)

    async def list(self, exchange: Exchange) -> Answer:
        principal = await self._agents.authorize(exchange.caller, exchange.bearer())
        given = exchange.query("app_id", "agent_id", "task_id", "orch_id", "limit", "after")
        query = GrantQuery(
            app_id=given.get("app_id"),
            subject=given.get("agent_id"),
            task_id=given.get("task_id"),
            orch_id=given.get("orch_id"),
            after=given.get("after"),
        )
        limit = integer_parameter(given, "limit", 100, low=1, high=MAX_LIMIT)
        async with self._turns.turn(Asker.who(principal)):
            page = await self._agents.list(principal, query, limit=limit)
            return await large_json_answer(
                lambda: {"agents": [wire.grant(grant) for grant in page.grants], "next": page.next}
            )

    async def show(self, exchange: Exchange) -> Answer:
        principal = await self._agents.authorize(exchange.caller, exchange.bearer())
        agent_id = exchange.path_params["agent_id"]
        async with self._turns.turn(Asker.who(principal)):
            trees = await self._agents.show(principal, agent_id)
            return await large_json_answer(
                lambda: {"agent_id": agent_id, "grants": [wire.grant_tree(tree) for tree in trees]}
            )
