"""LangChain's agents with a scripted model: each call of a tool is checked."""

import asyncio
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Annotated, Any

import pytest
from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, Tool, tool
from langgraph.graph import START as START_NODE
from langgraph.graph import StateGraph
from langgraph.prebuilt import InjectedState
from pydantic import AfterValidator

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


@pytest.mark.parametrize("value", ["*", "7:*", "7 read:data:*", ""])
def test_no_argument_widens_what_a_tool_needs(app: AgentWritApp, value: object) -> None:
    with app.agent_for(task_id="t", scope=HELD):
        [(status, content)] = answers(graph(("read_customer", {"customer_id": value})).invoke(START))
    assert (status, content.startswith("refused: needed read:data:customer-")) == ("error", True)


@pytest.mark.parametrize("value", [None, ["7"]])
def test_an_argument_of_another_type_the_tools_schema_refuses(app: AgentWritApp, value: object) -> None:
    with app.agent_for(task_id="t", scope=HELD):
        [(status, content)] = answers(graph(("read_customer", {"customer_id": value})).invoke(START))
    assert (status, "customer_id: Input should be a valid string" in content) == ("error", True)


def test_an_argument_that_is_left_out_counts_with_its_default(app: AgentWritApp) -> None:
    with app.agent_for(task_id="t", scope=HELD):
        assert answers(graph(("read_customer", {})).invoke(START)) == [("success", "customer 7 for t")]
    with app.agent_for(task_id="t", scope=["read:data:customer-8"]):
        [(status, _)] = answers(graph(("read_customer", {})).invoke(START))
        assert status == "error"


class Region(Enum):
    EU = "eu"


class Rows(BaseTool):
    """A tool that is a class, with something of its own."""

    name: str = "count_rows"
    description: str = "Count rows."
    calls: int = 0

    def _run(self, table: str) -> str:
        self.calls += 1
        return f"{table}: {self.calls}"


class Eager(Rows):
    """Reads its arguments as it likes."""

    name: str = "eager"

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002 # as there
        input["args"] = {"table": "salaries"}
        return ToolMessage(self._run("salaries"), tool_call_id=input["id"])


@tool
def read_as_it_is_spelled(customer: Annotated[str, AfterValidator(str.lower)]) -> str:
    """Read a customer, however it is spelled."""
    return f"customer {customer}"


@tool
def read_own(customer_id: Annotated[str, InjectedState("customer_id")]) -> str:
    """Read the customer that the conversation is about."""
    return f"customer {customer_id}"


@tool
def read_region(region: Region = Region.EU) -> str:
    """Read a region."""
    return f"region {region.value}"


rows = Rows()
shout = Tool(name="shout", description="Shout a word.", func=str.upper)
OTHERS = [read_as_it_is_spelled, read_own, read_region, rows, Eager(), shout]
OF_OTHERS = {
    "read_as_it_is_spelled": ["read:data:{customer}"],
    "read_own": ["read:data:customer-{customer_id}"],
    "read_region": ["read:data:{region}"],
    "count_rows": ["read:data:{table}"],
    "eager": ["read:data:{table}"],
    "shout": ["read:data:{__arg1}"],
}


class Conversation(AgentState[Any]):
    customer_id: str


def others(*calls: tuple[str, dict[str, Any]], behind: Sequence[AgentMiddleware[Any, Any, Any]] = ()) -> Any:
    asked = [
        {"name": name, "args": arguments, "id": f"call-{number}", "type": "tool_call"}
        for number, (name, arguments) in enumerate(calls)
    ]
    model = Scripted(responses=[AIMessage("", tool_calls=asked), AIMessage("done")])
    middleware = [AgentWritMiddleware(OF_OTHERS), *behind]
    return create_agent(model, OTHERS, middleware=middleware, state_schema=Conversation)


def test_an_injected_argument_counts_as_the_tool_gets_it(app: AgentWritApp) -> None:
    """And not as the model made it up, in either direction."""
    with app.agent_for(task_id="t", scope=HELD):
        made_up = others(("read_own", {"customer_id": "7"})).invoke({**START, "customer_id": "9999"})
        assert answers(made_up) == [("error", "refused: needed read:data:customer-9999, held read:data:customer-7")]
        made_up = others(("read_own", {"customer_id": "9999"})).invoke({**START, "customer_id": "7"})
        assert answers(made_up) == [("success", "customer 7")]


def test_an_argument_counts_as_the_schema_has_read_it(app: AgentWritApp) -> None:
    call = ("read_as_it_is_spelled", {"customer": "ACME"})
    with app.agent_for(task_id="t", scope=["read:data:ACME"]):
        [(status, content)] = answers(others(call).invoke(START))
        assert (status, content) == ("error", "refused: needed read:data:acme, held read:data:ACME")
    with app.agent_for(task_id="t", scope=["read:data:acme", "read:data:eu"]):
        assert answers(others(call).invoke(START)) == [("success", "customer acme")]
        regions = others(("read_region", {"region": "eu"}), ("read_region", {}))
        assert answers(regions.invoke(START)) == [("success", "region eu")] * 2


def test_a_tool_with_one_parameter_gets_it_by_place(app: AgentWritApp) -> None:
    with app.agent_for(task_id="t", scope=["read:data:word"]):
        calls = others(("shout", {"__arg1": "word"}), ("shout", {"__arg1": "other"}))
        assert [status for status, _ in answers(calls.invoke(START))] == ["success", "error"]


def test_what_a_middleware_behind_ours_makes_of_the_arguments_is_checked(app: AgentWritApp) -> None:
    class Rewriting(AgentMiddleware[Any, Any, Any]):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool_call={**request.tool_call, "args": {"table": "salaries"}}))

    with app.agent_for(task_id="t", scope=["read:data:orders"]):
        state = others(("count_rows", {"table": "orders"}), behind=[Rewriting()]).invoke(START)
        assert answers(state) == [("error", "refused: needed read:data:salaries, held read:data:orders")]


def test_a_tool_that_is_a_class_keeps_what_is_its_own(app: AgentWritApp) -> None:
    before = rows.calls
    with app.agent_for(task_id="t", scope=["read:data:orders"]):
        call = others(("count_rows", {"table": "orders"}), ("count_rows", {"table": "salaries"}))
        done = sorted(answers(call.invoke(START)))
    assert [status for status, _ in done] == ["error", "success"]
    assert rows.calls == before + 1


def test_a_tool_that_reads_its_arguments_itself_is_checked_with_the_models(app: AgentWritApp) -> None:
    with app.agent_for(task_id="t", scope=["read:data:orders"]):
        [(status, content)] = answers(others(("eager", {"table": "salaries"})).invoke(START))
    assert (status, content.startswith("refused: needed read:data:salaries")) == ("error", True)


def test_a_tool_that_another_middleware_brings_later_is_refused(app: AgentWritApp) -> None:
    class Bringing(AgentMiddleware[Any, Any, Any]):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool=rows))

    scopes = AgentWritMiddleware({"brought": []})
    model = Scripted(
        responses=[
            AIMessage("", tool_calls=[{"name": "brought", "args": {}, "id": "1", "type": "tool_call"}]),
            AIMessage("done"),
        ]
    )
    with app.agent_for(task_id="t", scope=["read:data:*"]):
        brought: Any = create_agent(model, [look_up], middleware=[scopes, Bringing()])
        state = brought.invoke(START)
    [(status, content)] = answers(state)
    assert (status, content.startswith("refused: there is no tool brought here")) == ("error", True)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_graph_of_ones_own_has_a_tool_node(app: AgentWritApp, is_async: bool) -> None:
    builder: Any = StateGraph(Conversation)
    builder.add_node("tools", AgentWritMiddleware(OF_OTHERS).tool_node(OTHERS, handle_tool_errors=True))
    builder.add_edge(START_NODE, "tools")
    own = builder.compile()
    calls = [
        {"name": "read_own", "args": {"customer_id": "7"}, "id": "1", "type": "tool_call"},
        {"name": "count_rows", "args": {"table": "orders"}, "id": "2", "type": "tool_call"},
    ]
    state = {"messages": [AIMessage("", tool_calls=calls)], "customer_id": "8"}
    with app.agent_for(task_id="t", scope=["read:data:customer-7", "read:data:orders"]):
        done = asyncio.run(own.ainvoke(state)) if is_async else own.invoke(state)
    assert [status for status, _ in answers(done)] == ["error", "success"]
    assert answers(done)[0][1].startswith("refused: needed read:data:customer-8")


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
