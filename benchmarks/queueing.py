"""What waits for what when brokers share a database: three small simulations, seeded, in simulated time.

Times are in seconds, rates in events a second.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

MAX_UNDER_WAY: Final = 256  # requests of apps and agents that a broker works on; what comes then is turned away
BATCH_SECONDS: Final = 0.05  # how long a batch holds the database


@dataclass(frozen=True)
class Waits:
    """How long answers took, how many a second there were, and the share that was turned away."""

    p50: float
    p99: float
    rate: float
    refused: float = 0.0


def writing(
    seed: int, *, rate: float, brokers: int, unit: float, fixed: float, max_batch: int = 256, seconds: float = 10
) -> Waits:
    """Units of work that brokers write in batches, one broker at a time.

    Whoever writes holds the row of the cluster's state: for `fixed` (round trips and the commit), and `unit` for each
    unit of its batch. Brokers take turns in the order in which they began to wait.
    """
    chance = random.Random(seed)
    coming = deque((at, chance.randrange(brokers)) for at in _arrivals(chance, rate, seconds))
    offered = len(coming)
    waiting: list[deque[float]] = [deque() for _ in range(brokers)]
    turns: deque[int] = deque()
    taken: list[float] = []
    refused = 0
    now = 0.0
    at_once = min(max_batch, max(1, int(BATCH_SECONDS / unit)))
    while coming or turns:
        if not turns:
            now = max(now, coming[0][0])
        while coming and coming[0][0] <= now:
            at, broker = coming.popleft()
            if len(waiting[broker]) >= MAX_UNDER_WAY:
                refused += 1
                continue
            if not waiting[broker]:
                turns.append(broker)
            waiting[broker].append(at)
        broker = turns.popleft()
        batch = [waiting[broker].popleft() for _ in range(min(at_once, len(waiting[broker])))]
        now += fixed + unit * len(batch)
        taken += [now - at for at in batch]
        if waiting[broker]:
            turns.append(broker)
    return _told(taken, now, refused / max(1, offered))


def validating(
    seed: int, *, rate: float, work: float, barrier: float, barrier_work: float, seconds: float = 2
) -> tuple[Waits, float]:
    """Validations in one process behind the read barrier, and how many queries a second the database gets of it.

    A validation needs `work` of the process, and a query of the database that began after it came. At most one query is
    under way; it takes `barrier`, and `barrier_work` of the process.
    """
    chance = random.Random(seed)
    arrivals = list(_arrivals(chance, rate, seconds))
    jobs: list[tuple[float, float, int]] = []
    known_at: list[float] = []
    free = 0.0
    queries = 0
    index = 0
    while index < len(arrivals):
        begins = max(free, arrivals[index])
        free = begins + barrier
        jobs.append((free, barrier_work, -1))
        queries += 1
        while index < len(arrivals) and arrivals[index] <= begins:
            known_at.append(free)
            jobs.append((arrivals[index], work, index))
            index += 1
    taken: list[float] = []
    now = 0.0
    for ready, needs, which in sorted(jobs):
        now = max(now, ready) + needs
        if which >= 0:
            taken.append(max(now, known_at[which]) - arrivals[which])
    return _told(taken, max(now, free), 0.0), queries / max(free, seconds)


def spreading(seed: int, *, caches: int, max_age: float, poll: float, hop: float, verifiers: int = 20_000) -> Waits:
    """From a revocation to a verifier that asks for pages each `poll`, through `caches` one behind another.

    Each of them keeps a page for `max_age` from when it fetched it, and nobody fetches in step with anybody.
    """
    chance = random.Random(seed)
    taken = []
    for _ in range(verifiers):
        delay = chance.uniform(0, poll) + hop
        for _ in range(caches):
            delay += chance.uniform(0, max_age) + hop
        taken.append(delay)
    return _told(taken, 1.0, 0.0)


def largest(low: float, high: float, is_good: Callable[[float], bool]) -> float:
    """The largest rate from `low`, which is good, to `high` that is, to a hundredth."""
    while high - low > low / 100:
        middle = (low + high) / 2
        low, high = (middle, high) if is_good(middle) else (low, middle)
    return low


def _arrivals(chance: random.Random, rate: float, seconds: float) -> Iterator[float]:
    at = chance.expovariate(rate)
    while at < seconds:
        yield at
        at += chance.expovariate(rate)


def _told(taken: Sequence[float], seconds: float, refused: float) -> Waits:
    ordered = sorted(taken) or [0.0]
    return Waits(
        ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)], len(taken) / max(seconds, 1e-9), refused
    )
