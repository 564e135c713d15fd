"""From the answer of /v1/revoke to the refusal at 20 verifiers, against one empty request to the same broker."""

import asyncio
import time
from functools import partial

from agentwrit import AgentWritApp, AsyncVerifier, InvalidToken
from agentwrit.client.operator import OperatorClient
from benchmarks.broker import running
from benchmarks.measuring import Comparison, Series

VERIFIERS = 20


def run(*, rounds: int = 50) -> list[Comparison]:
    """`rounds` of one revocation, heard of by every verifier."""
    with running() as broker:
        heard, asked = asyncio.run(_measure(broker.app, broker.operator, rounds))
    title = f"from the answer of /v1/revoke to the refusal at {VERIFIERS} verifiers"
    return [
        Comparison(title, Series("refused", heard), Series("an empty request", asked), target="p99 under 250 ms"),
    ]


async def _measure(app: AgentWritApp, operator: OperatorClient, rounds: int) -> tuple[list[float], list[float]]:
    heard: list[float] = []
    asked: list[float] = []
    verifiers = [AsyncVerifier(app.broker_url, on_stale="refuse") for _ in range(VERIFIERS)]
    try:
        for number in range(rounds):
            agent = await asyncio.to_thread(app.create_agent, "bench", f"t-{number}", ["read:data:1"])
            await asyncio.gather(*(verifier.verify(agent.access_token) for verifier in verifiers))
            refusals = [asyncio.create_task(_refused(verifier, agent.access_token)) for verifier in verifiers]
            await asyncio.to_thread(partial(operator.revoke, "agent", agent.agent_id))
            answered = time.perf_counter()
            heard += [max(0.0, at - answered) for at in await asyncio.gather(*refusals)]
            started = time.perf_counter()
            await asyncio.to_thread(app.health)
            asked.append(time.perf_counter() - started)
    finally:
        await asyncio.gather(*(verifier.aclose() for verifier in verifiers))
    return heard, asked


async def _refused(verifier: AsyncVerifier, token: str) -> float:
    """When the verifier refuses the token for the first time, asked each millisecond."""
    while True:
        try:
            await verifier.verify(token)
        except InvalidToken:
            return time.perf_counter()
        await asyncio.sleep(0.001)
