"""What a user feels: the life of an agent, against as many empty requests by the same client."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from agentwrit import AgentWritApp
from agentwrit.client.exchange import HttpRequest
from benchmarks.broker import running
from benchmarks.measuring import Comparison, in_turns

CALLS = 4  # in a life


def live(app: AgentWritApp) -> None:
    agent = app.create_agent("bench", "t", ["read:data:1"])
    if not app.validate(agent.access_token).valid:
        raise RuntimeError("a new agent's token does not hold")
    agent.release()
    if app.validate(agent.access_token).valid:
        raise RuntimeError("a released token holds")


def empty(app: AgentWritApp) -> None:
    for _ in range(CALLS):
        app._driver.send(HttpRequest("GET", "/livez"))


def run(*, rounds: int = 20) -> list[Comparison]:
    """`rounds` of 10 lives by one thread, and of 40 by eight."""
    with running() as broker:
        app = broker.app
        live(app)
        empty(app)
        one = in_turns(
            "an agent's life, one thread",
            ("create, validate, release, validate", [[partial(live, app)] * 10] * rounds),
            (f"{CALLS} empty requests", [[partial(empty, app)] * 10] * rounds),
            target="p50 at most 4 ms",
        )
        with ThreadPoolExecutor(8) as threads:

            def at_once(call: partial[None]) -> None:
                for done in [threads.submit(call) for _ in range(40)]:
                    done.result()

            eight = in_turns(
                "40 lives by eight threads",
                ("create, validate, release, validate", [[partial(at_once, partial(live, app))]] * rounds),
                (f"{CALLS} empty requests", [[partial(at_once, partial(empty, app))]] * rounds),
                target="p50 at most 57 ms, which is 700 lives a second",
            )
    return [one, eight]
