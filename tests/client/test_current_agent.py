"""The current agent, and functions that require something of it."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit import (
    Agent,
    AgentWritApp,
    AgentWritError,
    AsyncAgentWritApp,
    NoCurrentAgent,
    ScopeDenied,
    acting_as,
    current_agent,
    requires,
    scope_is_subset,
)
from agentwrit.client.requirement import Requirement
from tests.support import BrokerProcess, TestApp

SCOPE = ["read:data:customer-7"]
NEEDED = "read:data:customer-{customer_id}"


@pytest.fixture(scope="module")
def registered(broker: BrokerProcess) -> TestApp:
    return broker.app()


@pytest.fixture(scope="module")
def app(registered: TestApp) -> Iterator[AgentWritApp]:
    with AgentWritApp(registered.broker.url, registered.client_id, registered.client_secret) as app:
        yield app


@pytest.fixture(scope="module")
def agent(app: AgentWritApp) -> Iterator[Agent]:
    with app.create_agent("orders", "task", SCOPE) as agent:
        yield agent


@requires(NEEDED)
def read(customer_id: str | int = 7) -> str:
    return f"customer {customer_id}"


# -- the current agent -------------------------------------------------------------------------------------------------


def test_a_task_has_an_agent_of_its_own_and_releases_it(app: AgentWritApp, registered: TestApp) -> None:
    with app.agent_for(task_id="order-1", scope=SCOPE, max_ttl=60) as agent:
        assert current_agent() is agent
        assert (agent.task_id, agent.orch_id, agent.scope) == ("order-1", app.client_id, SCOPE)
        assert agent.expires_in == 60
        assert registered.broker.is_valid(agent.access_token)
    assert not registered.broker.is_valid(agent.access_token)
    with pytest.raises(NoCurrentAgent, match="agent_for"):
        current_agent()


def test_the_agent_is_released_when_the_task_fails(app: AgentWritApp, registered: TestApp) -> None:
    agents: list[Agent] = []

    def work() -> None:
        with app.agent_for(task_id="order-2", scope=SCOPE, orch_id="orders") as agent:
            agents.append(agent)
            assert agent.orch_id == "orders"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert not registered.broker.is_valid(agents[0].access_token)


def test_a_task_inside_a_task_acts_as_its_own_agent(app: AgentWritApp) -> None:
    with app.agent_for(task_id="outer", scope=SCOPE) as outer:
        with app.agent_for(task_id="inner", scope=["read:data:8"]) as inner:
            assert current_agent() is inner
        assert current_agent() is outer


def test_tasks_of_one_loop_act_as_different_agents(registered: TestApp) -> None:
    async def work(app: AsyncAgentWritApp, meet: asyncio.Barrier, number: int) -> str:
        async with app.agent_for(task_id=f"order-{number}", scope=[f"read:data:customer-{number}"]) as agent:
            await meet.wait()  # all of them are inside now
            assert current_agent() is agent
            assert await asyncio.to_thread(read, number) == f"customer {number}"
            with pytest.raises(ScopeDenied):
                read(number + 1)
            await meet.wait()
        return agent.access_token

    async def all_at_once() -> None:
        async with AsyncAgentWritApp(registered.broker.url, registered.client_id, registered.client_secret) as app:
            meet = asyncio.Barrier(5)
            for token in await asyncio.gather(*(work(app, meet, number) for number in range(5))):
                assert not (await app.validate(token)).valid

    asyncio.run(all_at_once())


def test_a_cancelled_task_releases_its_agent(registered: TestApp) -> None:
    async def cancel() -> None:
        inside = asyncio.Event()
        tokens: list[str] = []

        async def work(app: AsyncAgentWritApp) -> None:
            async with app.agent_for(task_id="cancelled", scope=SCOPE) as agent:
                tokens.append(agent.access_token)
                inside.set()
                await asyncio.Event().wait()

        async with AsyncAgentWritApp(registered.broker.url, registered.client_id, registered.client_secret) as app:
            task = asyncio.create_task(work(app))
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not (await app.validate(tokens[0])).valid

    asyncio.run(cancel())


def test_a_thread_has_the_current_agent_with_the_context_alone(agent: Agent) -> None:
    with acting_as(agent), ThreadPoolExecutor(1) as pool:
        with pytest.raises(NoCurrentAgent):
            pool.submit(read, 7).result()
        assert pool.submit(copy_context().run, read, 7).result() == "customer 7"


# -- what functions require --------------------------------------------------------------------------------------------


def test_a_call_is_let_through_where_the_scope_filled_from_its_arguments_is_held(agent: Agent) -> None:
    with acting_as(agent):
        assert read("7") == read(7) == read() == read(customer_id="7") == "customer 7"
        with pytest.raises(ScopeDenied) as denied:
            read("8")
    assert (denied.value.needed, denied.value.held) == (["read:data:customer-8"], SCOPE)


@pytest.mark.parametrize("value", ["*", "7:*", "7 read:data:*", "", "{customer_id}", "7\n", None, ["7"], "٧"])
def test_no_argument_widens_what_is_needed(agent: Agent, value: object) -> None:
    with acting_as(agent), pytest.raises(ScopeDenied):
        read(value)  # type: ignore[arg-type]


@given(value=st.text() | st.from_regex(r"[*:{}a-z0-9 ]{0,5}", fullmatch=True))
def test_whatever_is_passed_only_what_names_the_same_scope_is_let_through(value: str) -> None:
    requirement = Requirement([NEEDED])
    if value == "7":
        requirement.check({"customer_id": value}, SCOPE)
        return
    with pytest.raises(ScopeDenied) as denied:
        requirement.check({"customer_id": value}, SCOPE)
    assert not scope_is_subset(denied.value.needed, SCOPE)


def test_a_released_agent_is_let_through_nowhere(app: AgentWritApp) -> None:
    agent = app.create_agent("orders", "task", SCOPE)
    with acting_as(agent):
        agent.release()
        with pytest.raises(AgentWritError, match="released"):
            read(7)


def test_methods_of_all_kinds_can_require_something(agent: Agent) -> None:
    class Customers:
        prefix = "customer"

        @requires(NEEDED)
        def one(self, customer_id: str) -> str:
            return f"{self.prefix} {customer_id}"

        @classmethod
        @requires(NEEDED)
        def of_class(cls, customer_id: str) -> str:
            return f"{cls.prefix} {customer_id}"

        @staticmethod
        @requires(NEEDED)
        def static(customer_id: str) -> str:
            return f"customer {customer_id}"

    with acting_as(agent):
        for method in (Customers().one, Customers.of_class, Customers.static):
            assert method("7") == "customer 7"
            with pytest.raises(ScopeDenied):
                method("8")


def test_a_coroutine_function_stays_one_and_is_checked_when_it_begins(agent: Agent) -> None:
    @requires(NEEDED)
    async def fetch(customer_id: str) -> str:
        return customer_id

    async def work() -> None:
        early = fetch("7")  # made where nobody acts
        with acting_as(agent):
            assert await early == "7"
            with pytest.raises(ScopeDenied):
                await fetch("8")

    assert inspect.iscoroutinefunction(fetch)
    asyncio.run(work())


def test_a_generator_stays_one_and_is_checked_when_it_begins(agent: Agent) -> None:
    @requires(NEEDED)
    def rows(customer_id: str) -> Generator[int, int, str]:
        try:
            got = yield 1
            yield got
        except KeyError:
            yield 99
        return "end"

    assert inspect.isgeneratorfunction(rows)
    with acting_as(agent):
        one = rows("7")
        assert (next(one), one.send(5), one.throw(KeyError())) == (1, 5, 99)
        with pytest.raises(StopIteration, match="end"):
            next(one)
        refused = rows("8")
        with pytest.raises(ScopeDenied):
            next(refused)


def test_an_asynchronous_generator_stays_one_and_gets_what_is_sent_thrown_and_closed(agent: Agent) -> None:
    closed: list[str] = []

    @requires(NEEDED)
    async def rows(customer_id: str) -> AsyncGenerator[int, int]:
        got = 0
        try:
            while True:
                try:
                    got = yield got
                except KeyError:
                    got = 99
                if got == 100:
                    return
        finally:
            closed.append(customer_id)

    async def work() -> None:
        with acting_as(agent):
            one = rows("7")
            assert [await anext(one), await one.asend(5), await one.athrow(KeyError())] == [0, 5, 99]
            with pytest.raises(StopAsyncIteration):
                await one.asend(100)
            assert closed == ["7"]
            other = rows("7")
            await anext(other)
            await other.aclose()
            assert closed == ["7", "7"]
            with pytest.raises(ScopeDenied):
                await anext(rows("8"))

    assert inspect.isasyncgenfunction(rows)
    asyncio.run(work())


def test_a_guard_that_could_never_hold_is_refused_where_it_stands() -> None:
    with pytest.raises(ValueError, match="customer"):

        @requires("read:data:{customer}")
        def other_name(customer_id: str) -> None: ...

    with pytest.raises(ValueError, match="customer_id"):

        @requires(NEEDED)
        def anything(**customer_id: str) -> None: ...

    with pytest.raises(ValueError, match="identifier"):
        requires("read:{kind}:7")
    with pytest.raises(ValueError, match="at least one"):
        requires()
    with pytest.raises(TypeError, match="below @classmethod"):
        requires("read:data:7")(classmethod(read))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not a function"):
        requires("read:data:7")(dict)


def test_a_guarded_function_keeps_its_name_and_signature() -> None:
    assert read.__name__ == "read"
    assert list(inspect.signature(read).parameters) == ["customer_id"]
