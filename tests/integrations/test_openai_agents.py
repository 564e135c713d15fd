"""The OpenAI Agents SDK with a scripted model: agents are made, handed to and released, and each call is checked."""

import asyncio
import json
from collections.abc import Coroutine, Iterator
from enum import Enum
from typing import Annotated, Any

import pytest
from agents import Agent, FunctionTool, RunConfig, RunContextWrapper, Runner, UserError, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from pydantic import AfterValidator

from agentwrit import (
    AgentWritApp,
    AgentWritError,
    AsyncAgentWritApp,
    AuthorizationError,
    current_agent,
    validate,
)
from agentwrit.integrations.openai_agents import AgentWritHooks, requires_scope
from agentwrit.testing import LocalBroker

UNTRACED = RunConfig(tracing_disabled=True)
TRIAGE = ["read:data:customer-7", "write:data:*"]
REFUNDS = ["write:data:refund-7"]


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    with LocalBroker() as broker:
        yield broker


class Seen:
    """What the tools of one test saw."""

    def __init__(self) -> None:
        self.tokens: list[str] = []


@pytest.fixture
def seen() -> Seen:
    return Seen()


def desk(seen: Seen, *steps: Any) -> tuple[Agent[Any], ScriptedModel]:
    """Triage, who hands off to refunds. Both go by one script."""
    model = ScriptedModel([*steps, [assistant_message("done")]])

    @function_tool(tool_input_guardrails=[requires_scope("read:data:customer-{customer_id}")], strict_mode=False)
    def read_customer(customer_id: str = "7") -> str:
        seen.tokens.append(current_agent().access_token)
        return f"customer {customer_id}"

    @function_tool(tool_input_guardrails=[requires_scope("write:data:refund-{order}")])
    async def refund(order: int) -> str:
        seen.tokens.append(current_agent().access_token)
        return f"refunded {order}"

    refunds: Agent[Any] = Agent(name="refunds", model=model, tools=[refund, read_customer])
    triage: Agent[Any] = Agent(name="triage", model=model, tools=[read_customer, refund], handoffs=[refunds])
    return triage, model


def call(name: str, arguments: dict[str, Any] | str = "{}", call_id: str = "c1") -> Any:
    return function_call(name, arguments, call_id=call_id)


HANDOFF = [call("transfer_to_refunds", call_id="handoff")]


def answers(result: Any) -> list[str]:
    return [str(item.output) for item in result.new_items if item.type == "tool_call_output_item"]


async def run(app: AsyncAgentWritApp, triage: Agent[Any], scopes: dict[str, list[str]] | None = None) -> list[str]:
    scopes = {"triage": TRIAGE, "refunds": REFUNDS} if scopes is None else scopes
    async with AgentWritHooks(app, task_id="ticket-31", scopes=scopes) as hooks:
        return answers(await Runner.run(triage, "go", hooks=hooks, run_config=UNTRACED))


def test_what_the_scope_covers_is_called_and_the_rest_the_model_reads(async_app: AsyncAgentWritApp, seen: Seen) -> None:
    calls = [
        call("read_customer", {"customer_id": "7"}, "c1"),
        call("read_customer", {"customer_id": "8"}, "c2"),
        call("refund", {"order": 12}, "c3"),
    ]
    triage, model = desk(seen, calls)
    assert asyncio.run(run(async_app, triage)) == [
        "customer 7",
        "refused: needed read:data:customer-8, held read:data:customer-7 write:data:*",
        "refunded 12",
    ]
    assert model.remaining_steps == 0


@pytest.mark.parametrize("value", ["*", "7:*", "7 read:data:*", ""])
def test_no_argument_widens_what_a_tool_needs(async_app: AsyncAgentWritApp, seen: Seen, value: str) -> None:
    triage, _ = desk(seen, [call("read_customer", {"customer_id": value})])
    [answer] = asyncio.run(run(async_app, triage))
    assert answer.startswith("refused: needed read:data:customer-")
    assert seen.tokens == []


def test_an_argument_that_is_left_out_counts_with_its_default(async_app: AsyncAgentWritApp, seen: Seen) -> None:
    triage, _ = desk(seen, [call("read_customer")])
    assert asyncio.run(run(async_app, triage)) == ["customer 7"]
    triage, _ = desk(seen, [call("read_customer")])
    [answer] = asyncio.run(run(async_app, triage, {"triage": ["read:data:customer-8"]}))
    assert answer.startswith("refused")


def test_arguments_that_cannot_be_read_are_refused(async_app: AsyncAgentWritApp, seen: Seen) -> None:
    triage, _ = desk(seen, [call("read_customer", "{not json", "c1"), call("refund", "[1]", "c2")])
    for answer in asyncio.run(run(async_app, triage)):
        assert answer.startswith("refused")
    assert seen.tokens == []


class Region(Enum):
    EU = "eu"


Spelled = Annotated[str, AfterValidator(str.lower)]


def test_an_argument_counts_as_the_tool_gets_it(async_app: AsyncAgentWritApp) -> None:
    """After the function's own validators, whichever way its parameters are given."""
    ran: list[str] = []
    guard = requires_scope("read:data:customer-{customer}")

    @function_tool(tool_input_guardrails=[guard], strict_mode=False)
    def read_spelled(context: RunContextWrapper[Any], customer: Spelled) -> str:
        ran.append(customer)
        return customer

    @function_tool(tool_input_guardrails=[guard], strict_mode=False)
    def read_named(*, customer: Spelled = "acme") -> str:
        ran.append(customer)
        return customer

    @function_tool(tool_input_guardrails=[requires_scope("read:data:{region}")], strict_mode=False)
    def read_region(region: Region = Region.EU) -> str:
        ran.append(region.value)
        return region.value

    calls = [
        call("read_spelled", {"customer": "ACME"}, "c1"),
        call("read_named", {"customer": "Acme"}, "c2"),
        call("read_named", {}, "c3"),
        call("read_region", {"region": "eu"}, "c4"),
        call("read_region", {}, "c5"),
    ]

    async def go(scope: list[str]) -> list[str]:
        model = ScriptedModel([calls, [assistant_message("done")]])
        reader: Agent[Any] = Agent(name="reader", model=model, tools=[read_spelled, read_named, read_region])
        async with AgentWritHooks(async_app, task_id="t", scopes={"reader": scope}) as hooks:
            return answers(await Runner.run(reader, "go", hooks=hooks, run_config=UNTRACED))

    async def both() -> None:
        for answer in await go(["read:data:customer-ACME", "read:data:customer-Acme", "read:data:EU"]):
            assert answer.startswith(("refused: needed read:data:customer-acme,", "refused: needed read:data:eu,"))
        assert ran == []
        assert await go(["read:data:customer-acme", "read:data:eu"]) == ["acme", "acme", "acme", "eu", "eu"]

    asyncio.run(both())


def test_what_was_checked_is_what_the_tool_gets(async_app: AsyncAgentWritApp) -> None:
    """Also of a validator that says something else each time, with several guardrails."""
    said = iter(["7", "8", "9"])
    guards = [requires_scope("read:data:customer-{customer}"), requires_scope("write:data:customer-{customer}")]

    @function_tool(tool_input_guardrails=guards, strict_mode=False)
    def read(customer: Annotated[str, AfterValidator(lambda _: next(said))]) -> str:
        return customer

    async def go() -> list[str]:
        model = ScriptedModel([[call("read", {"customer": "x"})], [assistant_message("done")]])
        reader: Agent[Any] = Agent(name="reader", model=model, tools=[read])
        scopes = {"reader": ["read:data:customer-7", "write:data:customer-7"]}
        async with AgentWritHooks(async_app, task_id="t", scopes=scopes) as hooks:
            return answers(await Runner.run(reader, "go", hooks=hooks, run_config=UNTRACED))

    assert asyncio.run(go()) == ["7"]


def test_a_tool_that_reads_the_models_words_itself_is_checked_with_these(async_app: AsyncAgentWritApp) -> None:
    async def read(context: Any, text: str) -> str:
        return f"read {json.loads(text)['customer']}"

    own = FunctionTool(
        name="own",
        description="",
        params_json_schema={"type": "object", "properties": {"customer": {"type": "string"}}},
        on_invoke_tool=read,
        strict_json_schema=False,
        tool_input_guardrails=[requires_scope("read:data:customer-{customer}")],
    )

    async def go() -> list[str]:
        calls = [call("own", {"customer": "7"}, "c1"), call("own", {"customer": "8"}, "c2"), call("own", "{", "c3")]
        model = ScriptedModel([calls, [assistant_message("done")]])
        reader: Agent[Any] = Agent(name="reader", model=model, tools=[own])
        async with AgentWritHooks(async_app, task_id="t", scopes={"reader": ["read:data:customer-7"]}) as hooks:
            return answers(await Runner.run(reader, "go", hooks=hooks, run_config=UNTRACED))

    assert [answer[:12] for answer in asyncio.run(go())] == ["read 7", "refused: nee", "refused: nee"]


def test_a_handoff_delegates_and_the_end_releases_all(
    broker: LocalBroker, async_app: AsyncAgentWritApp, seen: Seen
) -> None:
    calls = [call("refund", {"order": 7}, "c1"), call("refund", {"order": 8}, "c2")]
    triage, _ = desk(seen, [call("read_customer", {"customer_id": "7"}, "c0")], HANDOFF, calls)
    claims: list[Any] = []

    async def go() -> list[str]:
        async with AgentWritHooks(
            async_app, task_id="ticket-31", scopes={"triage": TRIAGE, "refunds": REFUNDS}
        ) as hooks:
            result = await Runner.run(triage, "go", hooks=hooks, run_config=UNTRACED)
            claims.extend([(await async_app.validate(token)).claims for token in seen.tokens])
            return answers(result)

    assert asyncio.run(go()) == [
        "customer 7",
        "refunded 7",
        "refused: needed write:data:refund-8, held write:data:refund-7",
    ]
    of_triage, of_refunds = claims
    assert of_triage.scope == TRIAGE
    assert not of_triage.delegation_chain
    assert of_refunds.scope == REFUNDS
    assert [record.agent for record in of_refunds.delegation_chain] == [of_triage.sub]
    assert of_refunds.sub != of_triage.sub
    assert [validate(broker.url, token).valid for token in seen.tokens] == [False, False]


def test_whoever_has_acted_before_goes_on_with_what_it_had(async_app: AsyncAgentWritApp, seen: Seen) -> None:
    """Handed back to, triage is no delegate of the one that it delegated to."""
    back = [call("transfer_to_triage", call_id="back")]
    triage, _ = desk(seen, HANDOFF, back, [call("read_customer", {"customer_id": "7"})])
    refunds = triage.handoffs[0]
    assert isinstance(refunds, Agent)
    refunds.handoffs.append(triage)
    assert asyncio.run(run(async_app, triage)) == ["customer 7"]


def test_a_handoff_to_one_that_may_do_more_fails_and_leaves_nothing_alive(
    broker: LocalBroker, async_app: AsyncAgentWritApp, seen: Seen
) -> None:
    triage, _ = desk(seen, [call("read_customer", {"customer_id": "7"})], HANDOFF, [call("refund", {"order": 7})])
    with pytest.raises(AuthorizationError):
        asyncio.run(run(async_app, triage, {"triage": ["read:data:customer-7"], "refunds": REFUNDS}))
    assert [validate(broker.url, token).valid for token in seen.tokens] == [False]
    assert broker.revoke("task", "ticket-31") == 0


def test_an_agent_without_a_scope_calls_no_guarded_tool(async_app: AsyncAgentWritApp, seen: Seen) -> None:
    triage, _ = desk(seen, HANDOFF, [call("refund", {"order": 7})])
    assert asyncio.run(run(async_app, triage, {"triage": TRIAGE})) == ["refused: no scope is set for the agent refunds"]
    triage, _ = desk(seen, HANDOFF, [call("refund", {"order": 7})])
    with pytest.raises(AgentWritError, match="triage has no scope"):
        asyncio.run(run(async_app, triage, {"refunds": REFUNDS}))


def test_a_run_that_outlives_the_tokens_goes_on_under_the_next_ones(
    broker: LocalBroker, async_app: AsyncAgentWritApp, seen: Seen
) -> None:
    """A delegation ends with the token that it came from: the run gets another one, from a successor of that token."""
    orders = [[call("refund", {"order": 7}, f"c{number}")] for number in range(12)]
    triage, _ = desk(seen, HANDOFF, *orders)
    are_valid: list[bool] = []

    class Later(AgentWritHooks):
        async def on_tool_end(self, *_: Any) -> None:
            are_valid.append((await async_app.validate(seen.tokens[-1])).valid)
            broker.advance(60)

    async def go() -> list[str]:
        scopes = {"triage": TRIAGE, "refunds": REFUNDS}
        async with Later(async_app, task_id="t", scopes=scopes, max_ttl=300) as hooks:
            return answers(await Runner.run(triage, "go", hooks=hooks, run_config=UNTRACED, max_turns=20))

    assert asyncio.run(go()) == ["refunded 7"] * 12
    assert are_valid == [True] * 12
    assert 3 <= len(set(seen.tokens)) <= 6


def test_runs_on_one_loop_act_as_different_agents(async_app: AsyncAgentWritApp, seen: Seen) -> None:
    async def both() -> list[list[str]]:
        def one(number: int) -> Coroutine[Any, Any, list[str]]:
            triage, _ = desk(seen, [call("read_customer", {"customer_id": "7"})])
            return run(async_app, triage, {"triage": [f"read:data:customer-{number}"]})

        return list(await asyncio.gather(one(7), one(8)))

    mine, others = asyncio.run(both())
    assert mine == ["customer 7"]
    assert others == ["refused: needed read:data:customer-7, held read:data:customer-8"]


def test_without_hooks_the_current_agent_is_checked(async_app: AsyncAgentWritApp, seen: Seen) -> None:
    async def go() -> list[str]:
        triage, _ = desk(seen, [call("read_customer", {"customer_id": "7"})])
        async with async_app.agent_for(task_id="t", scope=["read:data:*"]):
            return answers(await Runner.run(triage, "go", run_config=UNTRACED))

    assert asyncio.run(go()) == ["customer 7"]
    triage, _ = desk(seen, [call("read_customer", {"customer_id": "7"})])
    with pytest.raises(UserError, match="no agent is at work here"):
        asyncio.run(Runner.run(triage, "go", run_config=UNTRACED))


def test_hooks_outside_their_run_are_refused(async_app: AsyncAgentWritApp, seen: Seen) -> None:
    async def go() -> None:
        triage, _ = desk(seen)
        async with AgentWritHooks(async_app, task_id="t", scopes={"triage": TRIAGE}) as hooks:
            pass
        await Runner.run(triage, "go", hooks=hooks, run_config=UNTRACED)

    with pytest.raises(AgentWritError, match="async with"):
        asyncio.run(go())


def test_scopes_that_are_none_are_refused_at_once(app: AgentWritApp, async_app: AsyncAgentWritApp) -> None:
    with pytest.raises(ValueError, match="template"):
        requires_scope("read")
    with pytest.raises(ValueError, match="at least one"):
        requires_scope()
    with pytest.raises(TypeError, match="triage"):
        AgentWritHooks(async_app, task_id="t", scopes={"triage": "read:data:7"})
