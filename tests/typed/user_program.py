"""A user's program, as strict type checkers read it. It is never run.

Its mistakes are marked. A checker that took the package for untyped would see none, and call the marks unnecessary.
"""

import asyncio
from collections.abc import Iterator
from typing import Annotated

import httpx2
from agents import Agent as Assistant
from agents import Runner
from fastapi import Depends, FastAPI
from langchain_core.tools import tool
from pydantic_ai.toolsets import FunctionToolset

from agentwrit import (
    Agent,
    AgentClaims,
    AgentWritApp,
    AsyncAgent,
    AsyncAgentWritApp,
    AsyncVerifier,
    DelegatedToken,
    ValidateResult,
    Verifier,
    acting_as,
    current_agent,
    requires,
    scope_is_subset,
    validate,
)
from agentwrit.integrations.fastapi import AgentWrit
from agentwrit.integrations.langchain import AgentWritMiddleware
from agentwrit.integrations.openai_agents import AgentWritHooks, requires_scope
from agentwrit.integrations.pydantic_ai import ScopedToolset


@requires("read:data:customer-{customer_id}")
def read_customer(customer_id: str, *, deep: bool = False) -> dict[str, int]:
    return {customer_id: int(deep)}


@requires("read:data:customer-{customer_id}")
async def read_later(customer_id: str) -> int:
    return len(customer_id)


class Desk:
    @requires("write:data:{order}")
    def orders(self, order: int) -> Iterator[int]:
        yield order


def blocking(app: AgentWritApp) -> str:
    with app.create_agent("o", "t", ["read:data:*"]) as agent:
        made: Agent = agent
        result: ValidateResult = validate(app.broker_url, made.access_token)
        claims: AgentClaims | None = result.claims
        delegated: DelegatedToken = agent.delegate(agent.agent_id, ["read:data:7"])
        assert claims is None or scope_is_subset(["read:data:7"], claims.scope)
        with httpx2.Client(auth=agent.auth) as client, acting_as(agent.accept(delegated)):
            client.get("https://orders.example.com")
            total: dict[str, int] = read_customer("7", deep=True)
            list(Desk().orders(7))
        return agent.agent_id + str(total)


async def awaited(app: AsyncAgentWritApp) -> int:
    async with app.agent_for(task_id="t", scope=["read:data:*"]) as agent, AsyncVerifier(app.broker_url) as verifier:
        made: AsyncAgent = agent
        claims: AgentClaims = await verifier.verify(made.access_token, scope="read:data:7")
        print(claims.sub, current_agent().agent_id)
        return await read_later("7")


def served(token: str) -> list[str]:
    with Verifier("https://broker.example.com") as verifier:
        return verifier.verify(token, scope=["read:data:7"]).scope


def of_frameworks(app: AsyncAgentWritApp, verifier: AsyncVerifier) -> None:
    guard = AgentWrit(verifier)
    service = FastAPI()

    async def read(
        customer: str,
        claims: Annotated[AgentClaims, Depends(guard.requires("read:data:{customer}"))],
    ) -> str:
        return f"{customer} for {claims.sub}"

    service.get("/customers/{customer}")(read)
    AgentWritMiddleware({"look_up": []})
    ScopedToolset(FunctionToolset[None](), {"look_up": ["read:data:{word}"]})
    requires_scope("read:data:{word}")

    async def run(assistant: Assistant[None]) -> str:
        async with AgentWritHooks(app, task_id="t", scopes={"triage": ["read:data:7"]}) as hooks:
            return str((await Runner.run(assistant, "go", hooks=hooks)).final_output)

    print(tool, run)


async def mistaken(app: AgentWritApp, later: AsyncAgentWritApp) -> None:
    app.create_agent("o", 7, ["read:data:*"])  # type: ignore[arg-type]
    agent: int = await later.create_agent("o", "t", [])  # type: ignore[assignment]
    read_customer(agent)  # type: ignore[arg-type]
    length: int = read_later("7")  # type: ignore[assignment]
    print(length, validate(app.broker_url, "token").claim)  # type: ignore[attr-defined]


if __name__ == "__main__":
    asyncio.run(awaited(AsyncAgentWritApp.from_env()))
