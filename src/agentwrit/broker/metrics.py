"""The broker's metrics, for Prometheus. No label has a value that a caller chooses."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from agentwrit.broker.counts import Counts
from agentwrit.broker.holds import Holds
from agentwrit.broker.measures import BUCKETS, Measures

CONTENT_TYPE = CONTENT_TYPE_LATEST

CLOSED_EARLY: Final = ("too_many", "no_descriptors")

_REQUESTS: Final = "agentwrit_http_requests"
_FAILING: Final = "agentwrit_background_failing"

# By name: its help text, and its labels.
_COUNTERS: Final = {
    _REQUESTS: ("Requests answered.", ("method", "route", "status")),
    "agentwrit_validations": ("Tokens validated.", ("result",)),
    "agentwrit_unavailable": ("Requests answered with 503.", ("cause",)),
    "agentwrit_http_connections_closed_early": ("Connections closed to make room.", ("reason",)),
    "agentwrit_background_failures": ("Rounds of work in the background that failed.", ("work",)),
    "agentwrit_log_lines_lost": ("Lines of the log that were lost because it could not be written.", ()),
}
_HISTOGRAMS: Final = {
    "agentwrit_http_request_duration_seconds": ("Time from a request's head to its answer.", ("route",)),
    "agentwrit_barrier_seconds": ("Asking the database what other brokers have revoked.", ()),
    "agentwrit_commit_seconds": ("Making a batch durable, standbys included.", ()),
    "agentwrit_loop_hold_seconds": (
        "Times for which the event loop had no turn for a timer, looked at 100 times a second.",
        (),
    ),
    "agentwrit_lock_wait_seconds": ("A batch's wait for its turn among the brokers of a database.", ()),
}
_SUMS: Final = {
    "agentwrit_feed_followers": "Who follows the revocation feed now.",
    "agentwrit_http_connections": "Connections open now.",
}
_HIGHEST: Final = {
    "agentwrit_revocation_entries": "Revocations that an unexpired token can still meet.",
    "agentwrit_clock_offset_seconds": (
        "How far the system's clock is ahead of the broker's time; below 0 where it is behind."
    ),
    "agentwrit_database_clock_ahead_seconds": (
        "How far the database's clock is ahead of this machine's; below 0 where it is behind."
    ),
    "agentwrit_audit_log_head": "The number of the newest event of the audit log.",
    "agentwrit_feed_head": "The number of the newest revocation in the feed.",
    "agentwrit_checkpoint_overdue_seconds": "For how long no checkpoint has covered the whole log; 0 if one does.",
    "agentwrit_settings_differing": "Settings that are not those of the broker of this store that was started last.",
    "agentwrit_store_log_bytes": "The write-ahead log beside the database of a data directory.",
    "agentwrit_loop_longest_hold_seconds": "The longest hold of the event loop in the last minute or two.",
    "agentwrit_in_charge": "1 at the broker that keeps house for all of its store, 0 at the others.",
}


class Metrics(Collector):
    """The metrics of one broker, owned by its event loop. `route` is a route's template, or `unknown`.

    They are plain numbers, converted to Prometheus's form on request: the library's own counters, made for many
    threads, would take a sixth of the time of a validation.
    """

    def __init__(self) -> None:
        self.validations: Counter[str] = Counter()
        self.unavailable: Counter[str] = Counter()
        """Answers with 503, by cause."""
        self.revocation_entries = 0
        self.connections = 0
        self.connections_closed_early: Counter[str] = Counter(dict.fromkeys(CLOSED_EARLY, 0))
        self.background_works: Sequence[str] = ()
        self.background_failures: Counter[str] = Counter()
        self.background_failing: Callable[[], Sequence[str]] = lambda: ()
        self.log_lines_lost: Callable[[], int] = lambda: 0
        self.feed_followers: Callable[[], int] = lambda: 0
        self.clock_offset: Callable[[], float] = lambda: 0.0
        self.store_log_bytes: Callable[[], int] = lambda: 0
        self.checkpoint_overdue: Callable[[], float] = lambda: 0.0
        self.settings_differing: Callable[[], int] = lambda: 0
        self.store = Measures()
        self.holds = Holds()
        self.of_all: Callable[[], Counts] = self.counts
        """The counts of all workers of a port."""
        # By method, route and status: how many answers are within each bound, and finally the sum of their durations.
        self._answers: dict[tuple[str, str, int], list[float]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def count_request(self, method: str, route: str, status: int, seconds: float, *, cause: str = "") -> None:
        """Count an answered request. `seconds`: from its head to its answer; `cause`: the cause of a 503."""
        if cause:
            self.unavailable[cause] += 1
        key = method, route, status
        answers = self._answers.get(key)
        if answers is None:
            answers = self._answers[key] = [0] * (len(BUCKETS) + 2)
        answers[bisect_left(BUCKETS, seconds)] += 1
        answers[-1] += seconds

    def counts(self) -> Counts:
        """This broker's own counts, as of now."""
        requests: dict[str, float] = {}
        by_route: dict[str, list[float]] = {}
        failures, failing = self.background_failures, self.background_failing()
        for (method, route, status), answers in self._answers.items():
            requests[f"{method} {route} {status}"] = sum(answers[:-1])
            by_route[route] = [sum(pair) for pair in zip(answers, by_route.get(route, [0] * len(answers)), strict=True)]
        return Counts(
            counters={
                _REQUESTS: requests,
                "agentwrit_validations": dict(self.validations),
                "agentwrit_unavailable": dict(self.unavailable),
                "agentwrit_http_connections_closed_early": dict(self.connections_closed_early),
                "agentwrit_background_failures": {work: failures[work] for work in self.background_works},
                "agentwrit_log_lines_lost": {"": self.log_lines_lost()},
            },
            histograms={
                "agentwrit_http_request_duration_seconds": by_route,
                "agentwrit_barrier_seconds": {"": list(self.store.barrier.numbers)},
                "agentwrit_commit_seconds": {"": list(self.store.commit.numbers)},
                "agentwrit_loop_hold_seconds": {"": list(self.holds.durations.numbers)},
                "agentwrit_lock_wait_seconds": {"": list(self.store.lock_wait.numbers)},
            },
            sums={
                "agentwrit_feed_followers": self.feed_followers(),
                "agentwrit_http_connections": self.connections,
            },
            highest={
                "agentwrit_revocation_entries": self.revocation_entries,
                "agentwrit_clock_offset_seconds": self.clock_offset(),
                "agentwrit_database_clock_ahead_seconds": self.store.database_ahead(),
                "agentwrit_audit_log_head": self.store.log_head,
                "agentwrit_feed_head": self.store.feed_head,
                "agentwrit_checkpoint_overdue_seconds": self.checkpoint_overdue(),
                "agentwrit_settings_differing": self.settings_differing(),
                "agentwrit_store_log_bytes": self.store_log_bytes(),
                "agentwrit_loop_longest_hold_seconds": self.holds.longest(),
                "agentwrit_in_charge": int(self.store.is_in_charge),
                **{f"{_FAILING} {work}": int(work in failing) for work in self.background_works},
            },
        )

    def collect(self) -> Iterable[Metric]:
        """The present metrics, for the library."""
        counts = self.of_all()
        bounds = [*map(str, map(float, BUCKETS)), "+Inf"]
        for name, (text, labels) in _COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=labels)
            for label, number in counts.counters.get(name, {}).items():
                counter.add_metric(label.split(" ") if labels else (), number)
            yield counter
        for name, (text, labels) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(name, text, labels=labels)
            for label, (*buckets, seconds) in counts.histograms.get(name, {}).items():
                values = [label] if labels else []
                histogram.add_metric(values, list(zip(bounds, accumulate(buckets), strict=True)), seconds)
            yield histogram
        for name, text in _SUMS.items():
            yield GaugeMetricFamily(name, text, value=counts.sums.get(name, 0))
        for name, text in _HIGHEST.items():
            yield GaugeMetricFamily(name, text, value=counts.highest.get(name, 0))
        now = GaugeMetricFamily(_FAILING, "1 for work in the background that fails now.", labels=("work",))
        for work in self.background_works:
            now.add_metric((work,), counts.highest.get(f"{_FAILING} {work}", 0))
        yield now

    def render(self) -> bytes:
        return generate_latest(self._registry)
