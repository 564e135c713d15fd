"""What the broker counts, for Prometheus. No label takes a value that a caller chooses."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The counters of one broker. `route` is a route's template, or `unknown`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "agentwrit_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self.latency = Histogram(
            "agentwrit_http_request_duration_seconds",
            "Time from a request's header to its answer.",
            ("route",),
            registry=self._registry,
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
        )
        self.validations = Counter(
            "agentwrit_validations",
            "Tokens validated.",
            ("result",),
            registry=self._registry,
        )
        self.revocation_entries = Gauge(
            "agentwrit_revocation_entries",
            "Revocations that an unexpired token can still meet.",
            registry=self._registry,
        )

    def render(self) -> bytes:
        return generate_latest(self._registry)
