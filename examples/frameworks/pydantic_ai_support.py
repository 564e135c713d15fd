"""A PydanticAI agent that may read one customer, and is not even shown the tool that writes.

agentwrit dev -- python examples/frameworks/pydantic_ai_support.py
"""

import asyncio
import sys

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.toolsets import FunctionToolset

from agentwrit import AgentWritError, AsyncAgentWritApp
from agentwrit.integrations.pydantic_ai import ScopedToolset

CUSTOMERS = {"7291": "John Doe, Premium tier", "9999": "Jane Roe, Basic tier"}
SCOPES = {
    "read_customer": ["read:data:customer-{customer_id}"],
    "delete_customer": ["delete:data:customer-{customer_id}"],
}


def read_customer(customer_id: str) -> str:
    """What is known of a customer."""
    return CUSTOMERS[customer_id]


def delete_customer(customer_id: str) -> None:
    """Forget a customer."""
    del CUSTOMERS[customer_id]


class Scripted:
    """Stands in for your model: it asks for its own customer, and then for somebody else's."""

    def __init__(self) -> None:
        self.wants = ["7291", "9999"]
        self.read: list[str] = []

    def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        request = messages[-1]
        assert isinstance(request, ModelRequest)
        self.read += [str(part.content) for part in request.parts if isinstance(part, ToolReturnPart)]
        if len(self.wants) == 2:
            print(f"The model is shown: {', '.join(tool.name for tool in info.function_tools)}")
        if self.wants:
            return ModelResponse([ToolCallPart("read_customer", {"customer_id": self.wants.pop(0)})])
        return ModelResponse([TextPart("I may only see customer 7291.")])


async def work(app: AsyncAgentWritApp) -> bool:
    """Let the model ask for both. Returns whether it got its own customer, and was told why not the other."""
    model = Scripted()
    tools: FunctionToolset[None] = FunctionToolset([read_customer, delete_customer])
    assistant = Agent(FunctionModel(model.answer), toolsets=[ScopedToolset(tools, SCOPES)])
    async with app.agent_for(task_id="support-7291", scope=["read:data:customer-7291"]):
        result = await assistant.run("Compare 7291 and 9999.")
    for text in model.read:
        print(f"The model read: {text}")
    print(f"It answered: {result.output}")
    return len(model.read) == 2 and model.read[1].startswith("refused")


async def main() -> int:
    try:
        async with AsyncAgentWritApp.from_env() as app:
            return 0 if await work(app) else 1
    except AgentWritError as error:
        print(f"pydantic_ai_support: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
