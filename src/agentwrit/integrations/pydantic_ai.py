"""The tools of PydanticAI's agents, held to the scope of the agent that is at work.

    tools = ScopedToolset(
        FunctionToolset([read_customer, look_up_word]),
        {"read_customer": ["read:data:customer-{customer_id}"], "look_up_word": []},
    )
    assistant = Agent(model, toolsets=[tools])
    async with app.agent_for(task_id="support-7291", scope=["read:data:customer-7291"]):
        await assistant.run("…")

A tool that the agent could not call with any argument is hidden from the model. Each call of the others is checked
before the tool begins; what is refused, the model reads. Inside a tool `current_agent()` is the agent at work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai import RunContext, ToolFailed
from pydantic_ai.tools import AgentDepsT
from pydantic_ai.toolsets import ToolsetTool, WrapperToolset

from agentwrit.client.current import AnyAgent, acting_as, current_agent
from agentwrit.integrations.tool_scopes import ToolScopes


@dataclass
class ScopedToolset(WrapperToolset[AgentDepsT]):
    """Hides and checks the tools of another toolset.

    `scopes`: what each tool needs, by its name, as templates that its arguments fill. A tool that needs nothing has an
    empty list; one that is not named is hidden. `agent`: who is at work, the current agent if not given.

    Raises:
        ValueError: a scope is no template.
        TypeError: a bare string was given where a list belongs.
    """

    scopes: Mapping[str, Sequence[str]]
    agent: AnyAgent | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._scopes = ToolScopes(self.scopes)

    async def get_tools(self, ctx: RunContext[AgentDepsT]) -> dict[str, ToolsetTool[AgentDepsT]]:
        """Those that the agent at work can call with some arguments.

        Raises:
            NoCurrentAgent: nobody is at work.
        """
        agent = self.agent or current_agent()
        tools = await super().get_tools(ctx)
        return {name: tool for name, tool in tools.items() if self._scopes.is_within_reach(agent, name)}

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[AgentDepsT], tool: ToolsetTool[AgentDepsT]
    ) -> Any:
        """Check a call, and let the tool begin.

        Raises:
            ToolFailed: the scope does not cover it; the model reads that.
            NoCurrentAgent: nobody is at work.
            AgentWritError: the agent was released.
        """
        agent = self.agent or current_agent()
        described = tool.tool_def.parameters_json_schema.get("properties", {})
        why = self._scopes.refusal(agent, name, tool_args, described)
        if why is not None:
            raise ToolFailed(why)
        with acting_as(agent):
            return await super().call_tool(name, tool_args, ctx, tool)
