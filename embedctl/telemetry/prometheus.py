"""Metrics as Prometheus reads them: the one writer of `usage metrics` and of the service. The only door to
prometheus_client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from embedctl.dataclass import dataclass
from embedctl.storage.sqlite_cache import CacheStats
from embedctl.telemetry.metric_names import METRICS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_CIRCUIT_STATES = ("closed", "half_open", "open", "dead")

Value = int | float | Decimal | tuple[int, float] | None
Sample = tuple[dict[str, str], Value]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of the table, and its samples; a sample without a value is left out. A summary's is (count, sum)."""

    name: str
    samples: Sequence[Sample]


class Live:
    """Metrics that a process counts while it runs, of the same table."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def counter(self, name: str) -> Counter:
        """A counter that only grows."""
        about = METRICS[name]
        return Counter(name, about.sentence, about.labels, registry=self._registry)

    def gauge(self, name: str) -> Gauge:
        """A number that comes and goes."""
        about = METRICS[name]
        return Gauge(name, about.sentence, about.labels, registry=self._registry)

    def histogram(self, name: str) -> Histogram:
        """Durations, in seconds."""
        about = METRICS[name]
        return Histogram(name, about.sentence, about.labels, buckets=SECONDS, registry=self._registry)

    def asked(self, metrics: Callable[[], Iterable[Metric]]) -> None:
        """Metrics that somebody else counts, and says when they are read."""
        self._registry.register(_Told(metrics))

    def total(self, name: str) -> float:
        """A counter, whatever its labels say."""
        families = self._registry.restricted_registry([name]).collect()
        return sum(float(one.value) for family in families for one in family.samples if one.name == name)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)


def text(metrics: Iterable[Metric]) -> str:
    """The exposition format, without time stamps (the textfile collector refuses them), a newline at the end.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4).
    """
    live, found = Live(), list(metrics)
    live.asked(lambda: found)
    return live.text().decode()


def count_cache(stores: Iterable[tuple[str, CacheStats]]) -> list[Metric]:
    """How often token counts were kept somewhere, and how long asking took.

    Args:
        stores: "local" or "redis" → what was looked up there.
    """
    seen = [({"store": name}, stats) for name, stats in stores]
    name = "embedding_token_count_cache"
    return [
        Metric(f"{name}_hits_total", [(labels, stats.hits) for labels, stats in seen]),
        Metric(f"{name}_misses_total", [(labels, stats.misses) for labels, stats in seen]),
        Metric(f"{name}_lookup_seconds", [(labels, (stats.look_ups, stats.seconds)) for labels, stats in seen]),
    ]


def circuits(states: Iterable[tuple[str, str, str]]) -> Metric:
    """How circuits stand; of several of one model the worst.

    Args:
        states: Provider, model and state of each.
    """
    worst: dict[tuple[str, str], int] = {}
    for provider, model, state in states:
        worst[provider, model] = max(worst.get((provider, model), 0), _CIRCUIT_STATES.index(state))
    samples: list[Sample] = [({"provider": key[0], "model": key[1]}, worst[key]) for key in sorted(worst)]
    return Metric("embedding_provider_circuit_state", samples)


class _Told(Collector):
    """What prometheus_client makes of metrics that are counted elsewhere."""

    def __init__(self, metrics: Callable[[], Iterable[Metric]]) -> None:
        self._metrics = metrics

    def describe(self) -> Iterator[Any]:
        """Nothing, or registering would ask for them."""
        return iter(())

    def collect(self) -> Iterator[Any]:
        """One family for each metric that has a sample."""
        for metric in self._metrics():
            samples = [(labels, value) for labels, value in metric.samples if value is not None]
            if samples:
                yield _family(metric.name, samples)


def _family(name: str, samples: Sequence[tuple[dict[str, str], Any]]) -> Any:
    about = METRICS[name]
    if about.kind == "summary":
        summary = SummaryMetricFamily(name, about.sentence, labels=about.labels)
        for labels, (count, total) in samples:
            summary.add_metric([labels[one] for one in about.labels], count, total)
        return summary
    made = CounterMetricFamily if about.kind == "counter" else GaugeMetricFamily
    family = made(name, about.sentence, labels=about.labels)
    for labels, value in samples:
        family.add_metric([labels[one] for one in about.labels], float(value))
    return family
