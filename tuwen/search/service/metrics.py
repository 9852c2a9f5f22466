"""What Prometheus reads at /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """Counts and times of one service, and the memory and processor time of its process."""

    def __init__(self):
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("tuwen_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "tuwen_request_seconds", "Seconds to the answer", ("route",), buckets=_SECONDS, registry=self.registry
        )
        self.batches = Histogram(
            "tuwen_batch_searches", "Searches done together", buckets=_SIZES, registry=self.registry
        )
        self.incomplete = Counter("tuwen_incomplete", "Searches that ran out of time", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A figure that is looked up when it is read."""
        Gauge(name, what, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)
