"""Agents on the wire, for those who watch over them."""

from collections.abc import Sequence

from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import Answer, Exchange, integer_parameter, json_answer
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.services.agents import MAX_LIMIT, AgentService
from agentwrit.broker.storage.base import GrantQuery


class AgentRoutes:
    """Routes under /v1/agents."""

    def __init__(self, agents: AgentService) -> None:
        self._agents = agents

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/agents", {"GET": self.list}),
            # A SPIFFE id holds slashes, which arrive as such, percent-encoded or not.
            Resource("/v1/agents/{agent_id:path}", {"GET": self.show}),
        ]

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
        page = await self._agents.list(principal, query, limit=limit)
        return json_answer({"agents": [wire.grant(grant) for grant in page.grants], "next": page.next})

    async def show(self, exchange: Exchange) -> Answer:
        principal = await self._agents.authorize(exchange.caller, exchange.bearer())
        agent_id = exchange.path_params["agent_id"]
        trees = await self._agents.show(principal, agent_id)
        return json_answer({"agent_id": agent_id, "grants": [wire.grant_tree(tree) for tree in trees]})
