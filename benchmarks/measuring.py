"""Taking times so that they can be compared: in turns, and told by their quantiles."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Turns = Sequence[Sequence[Callable[[], object]]]
"""Batches of calls to be timed, each call by itself."""


@dataclass(frozen=True)
class Series:
    """What one thing took, again and again: seconds, or bytes where its comparison says so."""

    name: str
    taken: Sequence[float] = field(repr=False)

    @property
    def p50(self) -> float:
        return statistics.median(self.taken)

    @property
    def p99(self) -> float:
        ordered = sorted(self.taken)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


@dataclass(frozen=True)
class Unit:
    """How figures are told: `per` of them are one of what they were measured in."""

    name: str
    per: float

    def tell(self, figure: float) -> str:
        return f"{figure * self.per:.2f} {self.name}"


MICROSECONDS = Unit("µs", 1e6)
MEBIBYTES = Unit("MiB", 2**-20)


@dataclass(frozen=True)
class Comparison:
    """A thing and its floor. `target`: what is wanted of it, in words."""

    title: str
    subject: Series
    baseline: Series
    target: str = ""
    unit: Unit = MICROSECONDS

    @property
    def ratio(self) -> float:
        return self.subject.p50 / self.baseline.p50

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "target": self.target,
            "unit": self.unit.name,
            "ratio": round(self.ratio, 3),
            "series": [
                {
                    "name": series.name,
                    "count": len(series.taken),
                    "p50": round(series.p50 * self.unit.per, 2),
                    "p99": round(series.p99 * self.unit.per, 2),
                }
                for series in (self.subject, self.baseline)
            ],
        }


def in_turns(title: str, subject: tuple[str, Turns], baseline: tuple[str, Turns], *, target: str = "") -> Comparison:
    """Time two things in alternating batches, so that whatever else the machine does meets both."""
    times: dict[str, list[float]] = {subject[0]: [], baseline[0]: []}
    for mine, floor in zip(subject[1], baseline[1], strict=True):
        for name, batch in ((subject[0], mine), (baseline[0], floor)):
            times[name] += _timed(batch)
    return Comparison(title, Series(subject[0], times[subject[0]]), Series(baseline[0], times[baseline[0]]), target)


def _timed(batch: Sequence[Callable[[], object]]) -> list[float]:
    taken = []
    for call in batch:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return taken
