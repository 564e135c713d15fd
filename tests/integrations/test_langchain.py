"""LangChain's agents with a scripted model: each call of a tool is checked."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, tool

from agentwrit import Agent, AgentWritApp, AgentWritError, AsyncAgentWritApp, NoCurrentAgent, acting_as, current_agent
from agentwrit.integrations.langchain import AgentWritMiddleware
from agentwrit.testing import LocalBroker

SCOPES = {"read_customer": ["read:data:customer-{customer_id}"], "look_up": [], "write_order": ["write:data:{number}"]}
HELD = ["read:data:customer-7"]


@tool
def read_customer(customer_id: str = "7") -> str:
    """Read a customer."""
    return f"customer {customer_id} for {current_agent().task_id}"


@tool
def look_up(word: str) -> str:
    """Look up a word."""
    return f"meaning of {word}"


@tool
async def write_order(number: int) -> str:
    """Write an order."""
    return f"order {number}"


@tool
def undeclared() -> str:
    """Do what nobody has thought about."""
    raise AssertionError("it was called")


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    with LocalBroker() as broker:
        yield broker


class Scripted(FakeMessagesListChatModel):
    """A model that says what it was told to."""

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self


def graph(*calls: tuple[str, dict[str, Any]], middleware: AgentWritMiddleware | None = None) -> Any:
    asked = [
        {"name": name, "args": arguments, "id": f"call-{number}", "type": "tool_call"}
        for number, (name, arguments) in enumerate(calls)
    ]
    model = Scripted(responses=[AIMessage("", tool_calls=asked), AIMessage("done")])
    tools: list[BaseTool] = [read_customer, look_up, write_order, undeclared]
    return create_agent(model, tools, middleware=[middleware or AgentWritMiddleware(SCOPES)])


def answers(state: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each.status, str(each.content)) for each in state["messages"] if isinstance(each, ToolMessage)]


START = {"messages": [{"role": "user", "content": "go"}]}


def test_what_the_scope_covers_is_called_and_the_rest_the_model_reads(app: AgentWritApp) -> None:
    calls = [
        ("read_customer", {"customer_id": "7"}),
        ("read_customer", {"customer_id": "8"}),
        ("look_up", {"word": "scope"}),
        ("undeclared", {}),
    ]
    with app.agent_for(task_id="t", scope=HELD):
        state = graph(*calls).invoke(START)
    assert answers(state) == [
        ("success", "customer 7 for t"),
        ("error", "refused: needed read:data:customer-8, held read:data:customer-7"),
        ("success", "meaning of scope"),
        ("error", "refused: no scope is set for the tool undeclared: it is not to be called"),
    ]
    assert state["messages"][-1].content == "done"


@pytest.mark.parametrize("value", ["*", "7:*", "7 read:data:*", "", None, ["7"]])
def test_no_argument_widens_what_a_tool_needs(app: AgentWritApp, value: object) -> None:
    with app.agent_for(task_id="t", scope=HELD):
        [(status, content)] = answers(graph(("read_customer", {"customer_id": value})).invoke(START))
    assert (status, content.startswith("refused: needed read:data:customer-")) == ("error", True)


def test_an_argument_that_is_left_out_counts_with_its_default(app: AgentWritApp) -> None:
    with app.agent_for(task_id="t", scope=HELD):
        assert answers(graph(("read_customer", {})).invoke(START)) == [("success", "customer 7 for t")]
    with app.agent_for(task_id="t", scope=["read:data:customer-8"]):
        [(status, _)] = answers(graph(("read_customer", {})).invoke(START))
        assert status == "error"


def test_runs_on_one_loop_act_as_different_agents(async_app: AsyncAgentWritApp) -> None:
    async def run(number: int) -> list[tuple[str, str]]:
        scope = [f"read:data:customer-{number}", f"write:data:{number}"]
        async with async_app.agent_for(task_id=f"t{number}", scope=scope):
            calls = graph(("read_customer", {"customer_id": str(number)}), ("write_order", {"number": 2}))
            return answers(await calls.ainvoke(START))

    async def all_at_once() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        async with async_app:
            return await asyncio.gather(run(1), run(2))

    one, two = asyncio.run(all_at_once())
    assert one == [
        ("success", "customer 1 for t1"),
        ("error", "refused: needed write:data:2, held read:data:customer-1 write:data:1"),
    ]
    assert two == [("success", "customer 2 for t2"), ("success", "order 2")]


def test_an_agent_that_is_given_is_the_one_at_work(app: AgentWritApp, agent: Agent) -> None:
    with app.create_agent("o", "given", HELD) as given, acting_as(agent):
        middleware = AgentWritMiddleware(SCOPES, agent=given)
        state = graph(("read_customer", {"customer_id": "7"}), middleware=middleware).invoke(START)
        assert answers(state) == [("success", "customer 7 for given")]


def test_without_an_agent_that_lives_no_tool_is_called(app: AgentWritApp) -> None:
    calls = graph(("look_up", {"word": "scope"}))
    with pytest.raises(NoCurrentAgent):
        calls.invoke(START)
    agent = app.create_agent("o", "t", HELD)
    agent.release()
    with acting_as(agent), pytest.raises(AgentWritError, match="released"):
        graph(("look_up", {"word": "scope"})).invoke(START)


def test_scopes_that_are_none_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="template"):
        AgentWritMiddleware({"read_customer": ["read"]})
    with pytest.raises(TypeError, match="list"):
        AgentWritMiddleware({"read_customer": "read:data:7"})
