"""What a user feels: the life of an agent, against as many empty requests by the same client.

By eight threads also against the same requests by bare sockets, which is what the broker and the machine allow.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

from agentwrit import AgentWritApp, AsyncAgentWritApp
from agentwrit.client.exchange import HttpRequest
from benchmarks.bare import BareLives
from benchmarks.broker import running
from benchmarks.measuring import Comparison, in_turns

CALLS = 4  # in a life
AT_ONCE = 8
LIVES = 40  # of all who live at once, together

NAME = "create, validate, release, validate"
FLOOR = f"{CALLS} empty requests"
BARE = "the same requests, by bare sockets"
EMPTY = HttpRequest("GET", "/livez")


def live(app: AgentWritApp) -> None:
    agent = app.create_agent("bench", "t", ["read:data:1"])
    if not app.validate(agent.access_token).valid:
        raise RuntimeError("a new agent's token does not hold")
    agent.release()
    if app.validate(agent.access_token).valid:
        raise RuntimeError("a released token holds")


def empty(app: AgentWritApp) -> None:
    for _ in range(CALLS):
        app._driver.send(EMPTY)


async def live_async(app: AsyncAgentWritApp) -> None:
    agent = await app.create_agent("bench", "t", ["read:data:1"])
    if not (await app.validate(agent.access_token)).valid:
        raise RuntimeError("a new agent's token does not hold")
    await agent.release()
    if (await app.validate(agent.access_token)).valid:
        raise RuntimeError("a released token holds")


async def empty_async(app: AsyncAgentWritApp) -> None:
    for _ in range(CALLS):
        await app._driver.send(EMPTY)


def run(*, rounds: int = 20) -> list[Comparison]:
    """`rounds` of 10 lives, one after the other, and of 40 by eight at once: threads, and tasks."""
    with running() as broker:
        app = broker.app
        live(app)
        empty(app)
        found = [
            in_turns(
                "an agent's life, one thread",
                (NAME, [[partial(live, app)] * 10] * rounds),
                (FLOOR, [[partial(empty, app)] * 10] * rounds),
                target="p50 at most 4 ms",
            )
        ]
        with ThreadPoolExecutor(AT_ONCE) as threads:

            def by_threads(call: Callable[[], None]) -> None:
                for done in [threads.submit(call) for _ in range(LIVES)]:
                    done.result()

            found.append(
                in_turns(
                    f"{LIVES} lives by {AT_ONCE} threads",
                    (NAME, [[partial(by_threads, partial(live, app))]] * rounds),
                    (FLOOR, [[partial(by_threads, partial(empty, app))]] * rounds),
                    target="p50 at most 57 ms, which is 700 lives a second",
                )
            )
            with closing(BareLives(broker, LIVES * rounds)) as bare:
                found.append(
                    in_turns(
                        f"{LIVES} lives by {AT_ONCE} threads, and by bare sockets",
                        (NAME, [[partial(by_threads, partial(live, app))]] * rounds),
                        (BARE, [[partial(by_threads, bare.live)]] * rounds),
                        target="none is set",
                    )
                )
        with asyncio.Runner() as runner:
            other = AsyncAgentWritApp(broker.url, app.client_id, broker.client_secret)

            def by_tasks(call: Callable[[AsyncAgentWritApp], Coroutine[Any, Any, None]], tasks: int, each: int) -> None:
                async def one_after_the_other() -> None:
                    for _ in range(each):
                        await call(other)

                async def all_at_once() -> None:
                    await asyncio.gather(*(one_after_the_other() for _ in range(tasks)))

                runner.run(all_at_once())

            by_tasks(live_async, AT_ONCE, 1)
            for tasks, each, title in ((1, 1, "an agent's life, one task"), (AT_ONCE, LIVES // AT_ONCE, "")):
                found.append(
                    in_turns(
                        title or f"{LIVES} lives by {AT_ONCE} tasks",
                        (NAME, [[partial(by_tasks, live_async, tasks, each)] * (10 if title else 1)] * rounds),
                        (FLOOR, [[partial(by_tasks, empty_async, tasks, each)] * (10 if title else 1)] * rounds),
                        target="none is set",
                    )
                )
            runner.run(other.aclose())
    return found
