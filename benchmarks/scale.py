"""A broker that has seen a great many agents, beside one that has seen few.

`past`: a million agents that came and went, three million events. `alive`: from a thousand live agents to a million.
`ended`: a million whose tokens were revoked, before and after the last of those tokens was over.
"""

import json
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx2

from benchmarks import create, population
from benchmarks.broker import Running, running
from benchmarks.load import Generator
from benchmarks.measuring import MEBIBYTES, Comparison, Series, in_turns

MANY = 1_000_000
FEW = 1_000
CONNECTIONS = 32
AFTERLIFE_SECONDS = 180
PIECE_BYTES = 2**20  # of a file that is read


def past(*, rounds: int = 5, many: int = MANY) -> list[Comparison]:
    """`rounds` of starting on each store in turn, and of 20 queries at each."""
    with tempfile.TemporaryDirectory(prefix="agentwrit-bench-") as directory:
        large, empty = Path(directory, "large"), Path(directory, "empty")
        population.run(large, past=many)
        population.run(empty)
        starts: dict[Path, list[float]] = {large: [], empty: []}
        memory: dict[Path, list[float]] = {large: [], empty: []}
        for _ in range(rounds):
            for store in (large, empty):
                with running(store) as broker:
                    starts[store].append(broker.seconds_to_ready)
                    memory[store].append(broker.rss)
        with running(large) as broker, running(empty) as beside, _reader(broker) as here, _reader(beside) as there:
            queries = {
                f"the newest 100 events by {name}": {name: value, "limit": "100", "order": "desc"}
                for name, value in (
                    ("agent_id", population.subject(many // 2)),
                    ("task_id", population.task(many // 3)),
                    ("event_type", "token_issued"),
                )
            }
            return [
                Comparison(
                    f"from start to ready, {3 * many:,} events",
                    Series("a store with a past", starts[large]),
                    Series("an empty one", starts[empty]),
                    target="at most 1 s",
                ),
                Comparison(
                    f"memory when ready, {3 * many:,} events",
                    Series("a store with a past", memory[large]),
                    Series("an empty one", memory[empty]),
                    target="at most 120 MiB",
                    unit=MEBIBYTES,
                ),
                *(
                    in_turns(
                        title,
                        ("a store with a past", [[partial(here.get, "/v1/audit/events", params=query)] * 20] * rounds),
                        ("an empty one", [[partial(there.get, "/v1/audit/events", params=query)] * 20] * rounds),
                        target="p99 at most 10 ms",
                    )
                    for title, query in queries.items()
                ),
            ]


def alive(
    *, rounds: int = 3, seconds: int = 2, counts: tuple[int, ...] = (FEW, 10_000, 100_000, MANY)
) -> list[Comparison]:
    """`rounds` of `seconds` of load at each count of live agents, each count beside the first.

    Creating is measured twice: with tasks whose names follow each other, and with names at random, for which each index
    that has them is written all over.
    """
    with tempfile.TemporaryDirectory(prefix="agentwrit-bench-") as directory:
        stores = {count: Path(directory, str(count)) for count in counts}
        tokens = {count: population.run(store, live=count, wanted=1)[0] for count, store in stores.items()}
        found: dict[str, dict[int, list[float]]] = {}
        for _ in range(rounds):
            for count, store in stores.items():
                _bring_in(store)
                with running(store) as broker:
                    ask = Generator(f"{broker.url}/v1/token/validate", [json.dumps({"token": tokens[count]})])
                    for what, generator, connections in (
                        ("validate", ask, CONNECTIONS),
                        ("create", create.in_one_trip(broker, seconds), create.CONNECTIONS),
                        (
                            "create, tasks named at random,",
                            create.in_one_trip(broker, seconds, task=create.random_task),
                            create.CONNECTIONS,
                        ),
                    ):
                        load = generator.run(seconds=seconds, connections=connections)
                        found.setdefault(what, {}).setdefault(count, []).append(1 / load.rate)
    least = counts[0]
    return [
        Comparison(
            f"{what} with {count:,} live agents, mean for each",
            Series(f"{count:,} live agents", taken[count]),
            Series(f"{least:,} live agents", taken[least]),
            target="ratio at most 1.25",
        )
        for what, taken in found.items()
        for count in counts[1:]
    ]


def ended(*, many: int = MANY, few: int = FEW, afterlife: int = AFTERLIFE_SECONDS) -> list[Comparison]:
    """Memory with so many revocations that a token can still meet, and when none can any more, beside few.

    `afterlife`: seconds from now until then, in which the stores have to be filled and brokers be started.
    """
    over_at = int(time.time()) + afterlife
    with ExitStack() as stack:
        fresh = stack.enter_context(running()).rss
        brokers = {}
        for count in (few, many):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentwrit-bench-")))
            population.run(directory, revoked=count, over_at=over_at)
            brokers[count] = stack.enter_context(running(directory))
        clients = {count: stack.enter_context(httpx2.Client(base_url=each.url)) for count, each in brokers.items()}
        for count, http in clients.items():
            while not (entries := _entries(http)):  # counted by the housekeeping, now and then
                time.sleep(0.1)
            if entries < count // 2:
                raise RuntimeError("most of the revocations were over before the broker was ready")
        full = {count: broker.rss for count, broker in brokers.items()}
        for http in clients.values():
            while _entries(http):
                time.sleep(0.1)
        after = {count: broker.rss for count, broker in brokers.items()}
    return [
        Comparison(
            f"memory with {many:,} agents revoked",
            Series("while their tokens last", [full[many]]),
            Series(f"the same with {few:,} agents", [full[few]]),
            target="none is set",
            unit=MEBIBYTES,
        ),
        Comparison(
            f"memory after {many:,} agents",
            Series("when their tokens are over", [after[many]]),
            Series(f"the same with {few:,} agents", [after[few]]),
            target="ratio at most 1.1",
            unit=MEBIBYTES,
        ),
        Comparison(
            "the same, beside a broker that was just started",
            Series("when their tokens are over", [after[many]]),
            Series("a broker that has seen none", [fresh]),
            target="none is set",
            unit=MEBIBYTES,
        ),
    ]


def _bring_in(directory: Path) -> None:
    """Bring a store into the system's memory: who has made so many agents of late has it there."""
    for path in directory.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(PIECE_BYTES):
                pass


def _reader(broker: Running) -> httpx2.Client:
    return httpx2.Client(base_url=broker.url, headers={"authorization": f"Bearer {broker.operator_token()}"})


def _entries(http: httpx2.Client) -> int:
    lines = http.get("/v1/metrics").text.splitlines()
    return int(float(next(line for line in lines if line.startswith("agentwrit_revocation_entries ")).split()[1]))
