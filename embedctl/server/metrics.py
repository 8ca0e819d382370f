"""What the service counts while it runs, as Prometheus text. The only door to prometheus_client.

Labels come from closed sets: models that are known here, providers, codes, and so many workspaces; never a key, a user,
a path or anything else that a client says.
"""

from __future__ import annotations

from decimal import Decimal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from embedctl.ledger.prices.price import cost
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.records import AttemptEnded, Event, FellBack, UsageEvent

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_WORKSPACES = 500
OTHER = "other"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts since the process began. Told of attempts as an observer, of requests by the door."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._workspaces: set[str] = set()
        self.prices: RunPrices | None = None

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=self._registry)

        self._requests = counter("embedding_requests", "Requests answered.", "provider", "model", "status")
        self._seconds = Histogram(
            "embedding_request_duration_seconds", "Of requests.", buckets=_SECONDS, registry=self._registry
        )
        self._overhead = Histogram(
            "embedctl_serve_overhead_seconds", "Of them, without providers.", buckets=_SECONDS, registry=self._registry
        )
        self._failures = counter("embedding_provider_failures", "Attempts that failed.", "provider", "model", "reason")
        self._fallbacks = counter("embedding_fallbacks", "Others that took over.", "from_provider", "to_provider")
        self._hits = counter("embedding_cache_hits", "Inputs whose vectors were not bought.")
        self._active = Gauge("active_embedding_requests", "In flight.", registry=self._registry)
        self._denied = counter("embedding_policy_denied", "Requests that a list forbade.", "policy_type")
        self._arrays = counter("embedding_token_inputs", "Inputs by kind.", "mode")
        self._rejected = counter("embedctl_serve_rejected", "Requests refused.", "code")
        self._tokens = counter("embedctl_serve_tokens", "Tokens billed.", "workspace", "provider", "model", "source")
        self._cost = counter("embedctl_serve_cost_usd", "USD billed.", "workspace", "provider", "model")
        self._at_risk = counter("embedctl_serve_cost_at_risk_usd", "USD perhaps billed.")

    def notify(self, event: Event) -> None:
        """An attempt has ended, or somebody took over."""
        if isinstance(event, FellBack):
            names = [one.partition(":")[0] for one in (event.instead_of, event.endpoint)]
            self._fallbacks.labels(*names).inc()
        elif isinstance(event, AttemptEnded):
            self._attempt(event.event)

    def _attempt(self, event: UsageEvent) -> None:
        price = self.prices.price(event.provider, event.model, event.price_as) if self.prices else None
        if event.status != "ok":
            self._failures.labels(event.provider, event.model, event.error_class or event.status).inc()
        if event.billable == "yes":
            workspace = self._workspace(event.workspace_id)
            self._tokens.labels(workspace, event.provider, event.model, event.usage_source).inc(event.tokens_total)
            paid = (
                event.cost_provider
                if event.cost_provider is not None
                else cost(event.tokens_total, price or Decimal(0))
            )
            self._cost.labels(workspace, event.provider, event.model).inc(float(paid))
        elif event.billable == "unknown" and price is not None:
            self._at_risk.inc(float(cost(event.tokens_estimated or 0, price)))

    def served(self, *, provider: str, model: str, seconds: float, overhead_s: float, hits: int, arrays: bool) -> None:
        """A request got its vectors."""
        self._requests.labels(provider, model, "200").inc()
        self._seconds.observe(seconds)
        self._overhead.observe(overhead_s)
        self._hits.inc(hits)
        self._arrays.labels("tokens" if arrays else "text").inc()

    def refused(self, code: str, status: int) -> None:
        """A request did not."""
        self._rejected.labels(code).inc()
        if status == 403:
            self._denied.labels(code.removesuffix("_denied")).inc()
        self._requests.labels(OTHER, OTHER, str(status)).inc()

    def text(self, active: int) -> bytes:
        """All of it, as Prometheus reads it."""
        self._active.set(active)
        return generate_latest(self._registry)

    def _workspace(self, name: str) -> str:
        if name in self._workspaces or len(self._workspaces) < MOST_WORKSPACES:
            self._workspaces.add(name)
            return name
        return OTHER
