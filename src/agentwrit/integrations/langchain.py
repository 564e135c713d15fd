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
from agentwrit.client.requirement import Requirement
from agentwrit.errors import ScopeDenied

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
        self._needed = {name: Requirement(needed) if needed else None for name, needed in scopes.items()}
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
        agent.check()
        name = request.tool_call["name"]
        if name not in self._needed:
            return _refused(request, f"no scope is set for the tool {name}: it is not to be called")
        requirement = self._needed[name]
        if requirement is None:
            return None
        try:
            requirement.check({**_defaults(request), **request.tool_call["args"]}, agent.scope)
        except ScopeDenied as denied:
            return _refused(request, str(denied))
        return None


def _defaults(request: ToolCallRequest) -> dict[str, object]:
    """The arguments that a model may leave out, with what the tool then gets."""
    described = {} if request.tool is None else request.tool.args
    return {name: member["default"] for name, member in described.items() if "default" in member}


def _refused(request: ToolCallRequest, why: str) -> ToolMessage:
    call = request.tool_call
    return ToolMessage(content=f"refused: {why}", name=call["name"], tool_call_id=call["id"], status="error")
