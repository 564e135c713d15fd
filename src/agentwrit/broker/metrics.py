"""What the broker counts, for Prometheus. No label takes a value that a caller chooses."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)  # seconds


class Metrics(Collector):
    """The counters of one broker, owned by its event loop. `route` is a route's template, or `unknown`.

    They are plain numbers, put into Prometheus's form when they are asked for: the library's own counters, made for
    many threads, would take a sixth of the time of a validation.
    """

    def __init__(self) -> None:
        self.validations: Counter[str] = Counter()
        self.revocation_entries = 0
        self.feed_followers: Callable[[], int] = lambda: 0
        # By method, route and status: how many took up to each bound, and at the end how long all took together.
        self._answers: dict[tuple[str, str, int], list[float]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered. `seconds`: from its head to its answer."""
        key = method, route, status
        answers = self._answers.get(key)
        if answers is None:
            answers = self._answers[key] = [0] * (len(BUCKETS) + 2)
        answers[bisect_left(BUCKETS, seconds)] += 1
        answers[-1] += seconds

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now, for the library."""
        requests = CounterMetricFamily(
            "agentwrit_http_requests", "Requests answered.", labels=("method", "route", "status")
        )
        by_route: dict[str, list[float]] = {}
        for (method, route, status), answers in self._answers.items():
            requests.add_metric((method, route, str(status)), sum(answers[:-1]))
            by_route[route] = [sum(pair) for pair in zip(answers, by_route.get(route, [0] * len(answers)), strict=True)]
        latency = HistogramMetricFamily(
            "agentwrit_http_request_duration_seconds", "Time from a request's head to its answer.", labels=("route",)
        )
        bounds = [*map(str, map(float, BUCKETS)), "+Inf"]
        for route, (*buckets, seconds) in by_route.items():
            latency.add_metric((route,), list(zip(bounds, accumulate(buckets), strict=True)), seconds)
        validations = CounterMetricFamily("agentwrit_validations", "Tokens validated.", labels=("result",))
        for result, count in self.validations.items():
            validations.add_metric((result,), count)
        entries = GaugeMetricFamily(
            "agentwrit_revocation_entries",
            "Revocations that an unexpired token can still meet.",
            value=self.revocation_entries,
        )
        followers = GaugeMetricFamily(
            "agentwrit_feed_followers", "Who follows the revocation feed now.", value=self.feed_followers()
        )
        return requests, latency, validations, entries, followers

    def render(self) -> bytes:
        return generate_latest(self._registry)
