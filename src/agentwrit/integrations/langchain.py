"""The tools of LangChain's agents, held to the scope of the agent that is at work.

    graph = create_agent(
        model,
        tools=[read_customer, look_up_word],
        middleware=[
            AgentWritMiddleware({"read_customer": ["read:data:customer-{customer_id}"], "look_up_word": []})
        ],
    )
    with app.agent_for(task_id="support-7291", scope=["read:data:customer-7291"]):
        graph.invoke({"messages": [...]})

Each call is checked before its tool begins. What is refused becomes a ToolMessage that says what was needed and what is
held: the model reads it, and the run goes on. Inside a tool `current_agent()` is the agent it was checked for.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import ToolMessage
from langgraph.types import Command

from agentwrit.client.current import AnyAgent, acting_as, current_agent
from agentwrit.integrations.tool_scopes import ToolScopes

Answer = ToolMessage | Command[Any]


class AgentWritMiddleware(AgentMiddleware[Any, Any, Any]):
    """Checks each call of a tool, on threads and on an event loop."""

    def __init__(self, scopes: Mapping[str, Sequence[str]], *, agent: AnyAgent | None = None) -> None:
        """`scopes`: what each tool needs, by its name, as templates that its arguments fill.

        A tool that needs nothing has an empty list; one that is not named is refused. `agent`: who is at work, the
        current agent if not given.

        Raises:
            ValueError: one is no template of a scope.
            TypeError: a bare string was given where a list belongs.
        """
        super().__init__()
        self._scopes = ToolScopes(scopes)
        self._agent = agent

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Answer]) -> Answer:
        """Check a call, and let the tool begin.

        Raises:
            NoCurrentAgent: nobody is at work.
            AgentWritError: the agent was released.
        """
        agent = self._agent or current_agent()
        refusal = self._refusal(request, agent)
        if refusal is not None:
            return refusal
        with acting_as(agent):
            return handler(request)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Answer]]
    ) -> Answer:
        """As `wrap_tool_call`."""
        agent = self._agent or current_agent()
        refusal = self._refusal(request, agent)
        if refusal is not None:
            return refusal
        with acting_as(agent):
            return await handler(request)

    def _refusal(self, request: ToolCallRequest, agent: AnyAgent) -> ToolMessage | None:
        call = request.tool_call
        described = {} if request.tool is None else request.tool.args
        why = self._scopes.refusal(agent, call["name"], call["args"], described)
        if why is None:
            return None
        return ToolMessage(content=why, name=call["name"], tool_call_id=call["id"], status="error")
