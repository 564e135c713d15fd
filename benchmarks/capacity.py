"""`python -m benchmarks.capacity`: how far brokers, databases and verifiers go, and where each limit is.

The arithmetic is here, what waits for what is simulated by `queueing`. Figures that were measured name their benchmark.
They are of two cores that had other work as well: put yours in their place with `--set NAME=VALUE`.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from agentwrit.domain.feed import FeedEntry
from agentwrit.domain.revocation import RevocationKind
from benchmarks import queueing

SEED: Final = 7
DAY: Final = 86_400
US: Final = 1e-6
MIB: Final = 2**20

# JSON of an entry, and base64url's four characters for three.
ENTRY_BYTES: Final = (
    len(msgspec.json.encode(FeedEntry(RevocationKind.GRANT, "d" * 43, 1_800_000_000, 1_800_000_300))) * 4 / 3
)


def _figure(value: float, unit: str, source: str) -> Any:
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Figures:
    """What the model starts from."""

    create_us: float = _figure(380, "µs", "`create`: POST /v1/agents, one process")
    end_us: float = _figure(400, "µs", "assumed: a release, one process")
    validate_us: float = _figure(31, "µs", "`validate`: a token seen before")
    unit_us: float = _figure(305, "µs", "`cluster`: the parts of a creation without HTTP, 64 callers")
    barrier_us: float = _figure(60, "µs", "a query of the barrier, processor time of the broker")
    commit_us: float = _figure(1500, "µs", "assumed: three round trips in a zone and a commit")
    round_trip_us: float = _figure(500, "µs", "assumed: a query across a zone")
    event_bytes: float = _figure(
        820, "bytes", "1,500 agents that came and went in PostgreSQL 15: their events with their indexes"
    )
    grant_bytes: float = _figure(1300, "bytes", "`cluster`: the rows of an agent, size with their indexes")
    resident_mib: float = _figure(72, "MiB", "`ended`: a broker that has seen none")
    ended_bytes: float = _figure(68, "bytes", "`ended`: for each revocation that counts")
    events: float = _figure(4, "", "two for its creation, two for its release")
    lifetime_s: float = _figure(60, "s", "assumed: from an agent's creation to its release")
    token_s: float = _figure(300, "s", "the default of AGENTWRIT_DEFAULT_TTL")
    requests: float = _figure(1, "a second", "assumed: tokens that a verifier sees")
    answer_bytes: float = _figure(1500, "bytes", "assumed: a validation, both ways")
    busy: float = _figure(0.6, "", "chosen: how busy a part is at most")


@dataclass(frozen=True)
class Size:
    """What has to be served: agents that come and go a second, and verifiers."""

    name: str
    agents: float
    verifiers: int


SIZES: Final = (
    Size("one machine", 100, 10),
    Size("one database", 500, 1_000),
    Size("cells", 10_000, 100_000),
    Size("many cells", 100_000, 1_000_000),
)


@dataclass(frozen=True)
class Plan:
    """What serves a size. A cell is one database with its brokers; `following` and `asking` are bytes a second."""

    cells: int
    brokers: int
    queries: float
    log_bytes: float
    ended: float
    resident: float
    following: float
    asking: float


def cell_limit(figures: Figures, brokers: int = 3) -> float:
    """How many units a second one database takes with p99 under 100 ms and nobody turned away."""

    def is_good(rate: float) -> bool:
        waits = writing(figures, rate, brokers)
        return waits.p99 < 0.1 and waits.refused == 0

    return queueing.largest(1, 2 / (figures.unit_us * US), is_good)


def writing(figures: Figures, rate: float, brokers: int) -> queueing.Waits:
    return queueing.writing(
        SEED, rate=rate, brokers=brokers, unit=figures.unit_us * US, fixed=figures.commit_us * US, seconds=5
    )


def validating(figures: Figures, rate: float) -> tuple[queueing.Waits, float]:
    return queueing.validating(
        SEED,
        rate=rate,
        work=figures.validate_us * US,
        barrier=figures.round_trip_us * US,
        barrier_work=figures.barrier_us * US,
    )


def validate_limit(figures: Figures) -> float:
    """How many validations a second one process answers behind the barrier, with p99 under 20 ms."""
    return queueing.largest(1, 2 / (figures.validate_us * US), lambda rate: validating(figures, rate)[0].p99 < 0.02)


def plan(figures: Figures, size: Size, units_of_a_cell: float, validations: float) -> Plan:
    """What serves `size`, with verifiers that ask. A life is two units: its creation and its release."""
    is_embedded = size == SIZES[0]
    cells = 1 if is_embedded else math.ceil(2 * size.agents / (units_of_a_cell * figures.busy))
    of_a_cell = size.agents / cells
    asked = size.verifiers * figures.requests / cells
    work = of_a_cell * (figures.create_us + figures.end_us) * US + asked / validations
    brokers = 1 if is_embedded else max(3, math.ceil(work / figures.busy))
    _, queries = (None, 0.0) if is_embedded else validating(figures, max(1.0, asked / brokers))
    ended = of_a_cell * (figures.token_s - min(figures.lifetime_s, figures.token_s))
    return Plan(
        cells=cells,
        brokers=cells * brokers,
        queries=queries * brokers,
        log_bytes=of_a_cell * (figures.events * figures.event_bytes + figures.grant_bytes) * DAY,
        ended=ended,
        resident=figures.resident_mib * MIB + ended * figures.ended_bytes,
        following=of_a_cell * ENTRY_BYTES,
        asking=figures.requests * figures.answer_bytes,
    )


def report(figures: Figures) -> list[str]:
    """All that docs/scale.md shows, in lines."""
    alone = 1 / ((figures.create_us + figures.end_us) * US)
    return [
        f"one machine takes {alone:,.0f} agents a second that come and go, if it does nothing else",
        "",
        *_writing(figures),
        "",
        *_validating(figures),
        "",
        *_plans(figures),
        "",
        *_spreading(),
    ]


def _writing(figures: Figures) -> list[str]:
    limit = cell_limit(figures)
    lines = [f"one database takes {limit:,.0f} units a second, which is {limit / 2:,.0f} agents that come and go"]
    for brokers in (1, 3, 10):
        for share in (0.6, 0.9, 1.5):
            waits = writing(figures, limit * share, brokers)
            took = f"p50 {waits.p50 * 1e3:4.0f} ms, p99 {waits.p99 * 1e3:4.0f} ms"
            lines.append(f"  brokers: {brokers:2}, {share:4.0%} of that: {took}, {waits.refused:4.0%} turned away")
    return lines


def _validating(figures: Figures) -> list[str]:
    limit = validate_limit(figures)
    lines = [f"one process answers {limit:,.0f} validations a second behind the barrier"]
    for rate in (100, 1_000, 10_000):
        waits, queries = validating(figures, rate)
        lines.append(
            f"  {rate:6,} a second: p50 {waits.p50 * 1e3:.1f} ms, p99 {waits.p99 * 1e3:.1f} ms, {queries:,.0f} queries"
        )
    return lines


def _plans(figures: Figures) -> list[str]:
    units, validations = cell_limit(figures), validate_limit(figures)
    heads = {"agents/s ": 10, "verifiers": 10, "cells": 7, "brokers": 9}
    heads |= {"agents/s": 11, "barriers/s": 12, "log/day": 10, "memory": 13}
    lines = [
        f"{'':34}{'in all':>16}{'of a cell':>33}{'of a broker':>13}",
        f"{'':14}" + "".join(f"{name:>{width}}" for name, width in heads.items()),
    ]
    planned = [(size, plan(figures, size, units, validations)) for size in SIZES]
    for size, needed in planned:
        lines.append(
            f"{size.name:14}{size.agents:9,}{size.verifiers:11,}{needed.cells:7,}{needed.brokers:9,}"
            f"{size.agents / needed.cells:11,.0f}{needed.queries:12,.0f}{needed.log_bytes / 1e9:7,.0f} GB"
            f"{needed.resident / MIB:9,.0f} MiB"
        )
    lines += [
        "",
        f"{'a verifier':14}{'follows':>12}{'all of them':>13}{'asks':>11}{'all of them':>13}{'follows from':>16}",
    ]
    for size, needed in planned:
        told = (needed.following, needed.following * size.verifiers, needed.asking, needed.asking * size.verifiers)
        columns = "".join(f"{_bytes(figure):>{width}}" for figure, width in zip(told, (12, 13, 11, 13), strict=True))
        lines.append(f"{size.name:14}{columns}{needed.following / figures.answer_bytes:8,.0f} tokens/s")
    return lines


def _spreading() -> list[str]:
    lines = ["from a revocation to a verifier that asks for pages each second"]
    for caches in range(4):
        waits = queueing.spreading(SEED, caches=caches, max_age=1, poll=1, hop=0.02)
        lines.append(f"  caches between: {caches}, p50 {waits.p50:.1f} s, p99 {waits.p99:.1f} s")
    return lines


def _bytes(figure: float) -> str:
    power = min(3, int(math.log10(max(figure, 1)) // 3))
    return f"{figure / 1000**power:,.1f} {('B/s', 'kB/s', 'MB/s', 'GB/s')[power]}"


def changed(figures: Figures, settings: Sequence[str]) -> Figures:
    """The figures with `NAME=VALUE` in place of some.

    Raises:
        ValueError: there is no such figure, or it is no number above zero.
    """
    values = {}
    names = [item.name for item in dataclasses.fields(Figures)]
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in names:
            raise ValueError(f"there is no {name}: the figures are {', '.join(names)}")
        values[name] = float(text)
        if not (math.isfinite(values[name]) and values[name] > 0):
            raise ValueError(f"{name} has to be above 0")
    return dataclasses.replace(figures, **values)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description="How far it goes, and why.")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a figure of yours")
    arguments = parser.parse_args()
    try:
        figures = changed(Figures(), arguments.set)
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(report(figures)))


if __name__ == "__main__":
    main()
