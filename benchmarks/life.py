"""What a user feels: an agent's life (create, validate, release, validate), against as many empty requests."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2

from agentwrit import AgentWritApp
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


def empty(http: httpx2.Client, url: str) -> None:
    for _ in range(CALLS):
        http.get(url)


def run(*, rounds: int = 20) -> list[Comparison]:
    """`rounds` of 10 lives by one thread, and of 40 by eight."""
    with running() as (app, _), httpx2.Client() as http:
        live(app)
        url = f"{app.broker_url}/livez"
        empty(http, url)
        one = in_turns(
            "an agent's life, one thread",
            ("create, validate, release, validate", [[partial(live, app)] * 10] * rounds),
            (f"{CALLS} empty requests", [[partial(empty, http, url)] * 10] * rounds),
            target="p50 at most 4 ms",
        )
        with ThreadPoolExecutor(8) as threads:

            def at_once(call: partial[None]) -> None:
                for done in [threads.submit(call) for _ in range(40)]:
                    done.result()

            eight = in_turns(
                "40 lives by eight threads",
                ("create, validate, release, validate", [[partial(at_once, partial(live, app))]] * rounds),
                (f"{CALLS} empty requests", [[partial(at_once, partial(empty, http, url))]] * rounds),
                target="p50 at most 57 ms, which is 700 lives a second",
            )
    return [one, eight]
