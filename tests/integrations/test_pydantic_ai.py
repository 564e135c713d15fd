"""PydanticAI's agents with a scripted model: tools are hidden and checked."""

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.toolsets import FunctionToolset

from agentwrit import AgentWritApp, AgentWritError, AsyncAgentWritApp, NoCurrentAgent, acting_as, current_agent
from agentwrit.integrations.pydantic_ai import ScopedToolset
from agentwrit.testing import LocalBroker

SCOPES = {"read_customer": ["read:data:customer-{customer_id}"], "look_up": [], "write_order": ["write:data:{number}"]}
HELD = ["read:data:customer-7"]


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    with LocalBroker() as broker:
        yield broker


def read_customer(customer_id: str = "7") -> str:
    return f"customer {customer_id} for {current_agent().task_id}"


def look_up(word: str) -> str:
    return f"meaning of {word}"


async def write_order(number: int) -> str:
    return f"order {number}"


def undeclared() -> str:
    raise AssertionError("it was called")


class Script:
    """A model that makes these calls, and what it was shown."""

    def __init__(self, *calls: tuple[str, dict[str, Any]]) -> None:
        self.calls = list(calls)
        self.shown: set[str] = set()
        self.read: list[str] = []

    def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.shown = {tool.name for tool in info.function_tools}
        last = messages[-1]
        assert isinstance(last, ModelRequest)
        self.read += [str(part.content) for part in last.parts if isinstance(part, ToolReturnPart)]
        if self.calls:
            name, arguments = self.calls.pop(0)
            return ModelResponse([ToolCallPart(name, arguments)])
        return ModelResponse([TextPart("done")])

    async def run(self, **options: Any) -> str:
        tools: FunctionToolset[None] = FunctionToolset([read_customer, look_up, write_order, undeclared])
        assistant = Agent(FunctionModel(self.answer), toolsets=[ScopedToolset(tools, SCOPES, **options)])
        return (await assistant.run("go")).output


def test_what_the_scope_covers_is_called_and_the_rest_the_model_reads(app: AgentWritApp) -> None:
    script = Script(
        ("read_customer", {"customer_id": "7"}),
        ("read_customer", {"customer_id": "8"}),
        ("look_up", {"word": "scope"}),
        ("read_customer", {}),
    )
    with app.agent_for(task_id="t", scope=HELD):
        assert asyncio.run(script.run()) == "done"
    assert script.read == [
        "customer 7 for t",
        "refused: needed read:data:customer-8, held read:data:customer-7",
        "meaning of scope",
        "customer 7 for t",
    ]


@pytest.mark.parametrize("value", ["*", "7:*", "7 read:data:*", ""])
def test_no_argument_widens_what_a_tool_needs(app: AgentWritApp, value: str) -> None:
    script = Script(("read_customer", {"customer_id": value}))
    with app.agent_for(task_id="t", scope=HELD):
        asyncio.run(script.run())
    assert script.read == ["refused: needed read:data:customer-{customer_id}, held read:data:customer-7"]


@pytest.mark.parametrize(
    ("held", "shown"),
    [
        (HELD, {"read_customer", "look_up"}),
        (["read:data:*"], {"read_customer", "look_up"}),
        (["read:data:order-7"], {"look_up"}),
        (["write:data:9", "read:data:customer-*"], {"write_order", "look_up"}),
    ],
)
def test_tools_that_are_out_of_reach_are_hidden(app: AgentWritApp, held: list[str], shown: set[str]) -> None:
    script = Script()
    with app.agent_for(task_id="t", scope=held):
        asyncio.run(script.run())
    assert script.shown == shown


def test_a_hidden_tool_that_the_model_calls_is_not_called(app: AgentWritApp) -> None:
    script = Script(("undeclared", {}))
    with app.agent_for(task_id="t", scope=HELD):
        assert asyncio.run(script.run()) == "done"


def test_runs_on_one_loop_act_as_different_agents(async_app: AsyncAgentWritApp) -> None:
    async def run(number: int) -> list[str]:
        script = Script(("read_customer", {"customer_id": str(number)}), ("write_order", {"number": number}))
        scope = [f"read:data:customer-{number}", f"write:data:{number}"]
        async with async_app.agent_for(task_id=f"t{number}", scope=scope):
            await script.run()
        return script.read

    async def all_at_once() -> tuple[list[str], list[str]]:
        async with async_app:
            return await asyncio.gather(run(1), run(2))

    one, two = asyncio.run(all_at_once())
    assert (one, two) == (["customer 1 for t1", "order 1"], ["customer 2 for t2", "order 2"])


def test_an_agent_that_is_given_is_the_one_at_work(app: AgentWritApp) -> None:
    script = Script(("read_customer", {"customer_id": "7"}))
    with app.create_agent("o", "given", HELD) as given:
        asyncio.run(script.run(agent=given))
    assert script.read == ["customer 7 for given"]


def test_without_an_agent_that_lives_no_tool_is_called(app: AgentWritApp) -> None:
    with pytest.raises(NoCurrentAgent):
        asyncio.run(Script(("look_up", {"word": "scope"})).run())
    agent = app.create_agent("o", "t", HELD)
    agent.release()
    with acting_as(agent), pytest.raises(AgentWritError, match="released"):
        asyncio.run(Script(("look_up", {"word": "scope"})).run())


def test_an_argument_counts_as_the_tool_gets_it(app: AgentWritApp) -> None:
    def read_spelled(customer: Annotated[str, AfterValidator(str.lower)]) -> str:
        return f"customer {customer}"

    script = Script(("read_spelled", {"customer": "ACME"}))
    tools = ScopedToolset(FunctionToolset[None]([read_spelled]), {"read_spelled": ["read:data:{customer}"]})
    assistant = Agent(FunctionModel(script.answer), toolsets=[tools])
    with app.agent_for(task_id="t", scope=["read:data:ACME"]):
        asyncio.run(assistant.run("go"))
    with app.agent_for(task_id="t", scope=["read:data:acme"]):
        script.calls = [("read_spelled", {"customer": "ACME"})]
        asyncio.run(assistant.run("go"))
    assert script.read == ["refused: needed read:data:acme, held read:data:ACME", "customer acme"]
