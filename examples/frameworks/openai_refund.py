"""Two agents of the OpenAI Agents SDK: triage reads a customer, and hands off to one that may refund one order.

agentwrit dev -- python examples/frameworks/openai_refund.py
"""

import asyncio
import sys

from agents import Agent, RunConfig, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call

from agentwrit import AgentWritError, AsyncAgentWritApp, current_agent
from agentwrit.integrations.openai_agents import AgentWritHooks, requires_scope

SCOPES = {
    "triage": ["read:data:customer-7291", "write:data:refund-4823"],
    "refunds": ["write:data:refund-4823"],
}


@function_tool(tool_input_guardrails=[requires_scope("read:data:customer-{customer_id}")])
def read_customer(customer_id: str) -> str:
    """What is known of a customer."""
    return f"customer {customer_id}: John Doe, whose order 4823 never came"


@function_tool(tool_input_guardrails=[requires_scope("write:data:refund-{order_id}")])
def refund(order_id: str) -> str:
    """Give the money back."""
    tokens.append(current_agent().access_token)
    return f"order {order_id} is refunded"


tokens: list[str] = []

# Stands in for your model: the second refund is one that nobody asked for.
model = ScriptedModel(
    [
        [function_call("read_customer", {"customer_id": "7291"}, call_id="1")],
        [function_call("transfer_to_refunds", {}, call_id="2")],
        [function_call("refund", {"order_id": "4823"}, call_id="3")],
        [function_call("refund", {"order_id": "4824"}, call_id="4")],
        [assistant_message("Your money is on its way.")],
    ]
)
refunds = Agent[None](name="refunds", model=model, tools=[refund])
triage = Agent[None](name="triage", model=model, tools=[read_customer], handoffs=[refunds])


async def work(app: AsyncAgentWritApp) -> bool:
    """Run both. Returns whether one order was refunded, by delegation, with a token that is dead now."""
    async with AgentWritHooks(app, task_id="ticket-31", scopes=SCOPES) as hooks:
        result = await Runner.run(triage, "Where is it?", hooks=hooks, run_config=RunConfig(tracing_disabled=True))
        claims = (await app.validate(tokens[0])).claims
    for item in result.new_items:
        if item.type == "tool_call_output_item":
            print(f"{item.agent.name} read: {item.output}")
    print(f"It answered: {result.final_output}")
    hops = len(claims.delegation_chain or []) if claims is not None else 0
    is_dead = not (await app.validate(tokens[0])).valid
    print(f"The refund's token: delegated in {hops} hop, {'dead' if is_dead else 'alive'} now")
    return (len(tokens), hops, is_dead) == (1, 1, True)


async def main() -> int:
    try:
        async with AsyncAgentWritApp.from_env() as app:
            return 0 if await work(app) else 1
    except AgentWritError as error:
        print(f"openai_refund: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
