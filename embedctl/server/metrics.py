"""What the service counts while it runs, as Prometheus text.

Labels come from closed sets: models that are known here, providers, codes, and so many workspaces; never a key, a user,
a path or anything else that a client says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import cache

from embedctl.ledger.prices.price import cost
from embedctl.ledger.prices.run_prices import RunPrices
from embedctl.records import AttemptEnded, Event, FellBack, UsageEvent
from embedctl.routing.breaker import Snapshot
from embedctl.runs.receipt import Spending
from embedctl.storage.token_count_cache import CountStore
from embedctl.telemetry.prometheus import CONTENT_TYPE as CONTENT_TYPE
from embedctl.telemetry.prometheus import Live, circuits, count_cache

MOST_WORKSPACES = 500
OTHER = "other"

_TOLD = ("embedding_requests_total", "embedding_provider_failures_total", "embedding_fallbacks_total",
         "embedding_policy_denied_total", "embedding_dimension_adjustments_total", "embedding_token_inputs_total",
         "embedding_cache_hits_total", "embedctl_serve_rejected_total")  # fmt: skip
"""Counters of the summary for admins, which leaves their first word out."""


class Metrics:
    """Counts since the process began. Told of attempts as an observer, of requests by the door."""

    def __init__(self) -> None:
        self._live = live = Live()
        self._workspaces: set[str] = set()
        self.prices: RunPrices | None = None
        self.spending = Spending(self.price)
        self._requests = cache(live.counter("embedding_requests_total").labels)
        self._seconds = live.histogram("embedding_request_duration_seconds")
        self._overhead = live.histogram("embedctl_serve_overhead_seconds")
        self._failures = cache(live.counter("embedding_provider_failures_total").labels)
        self._fallbacks = cache(live.counter("embedding_fallbacks_total").labels)
        self._hits = live.counter("embedding_cache_hits_total")
        self._active = live.gauge("active_embedding_requests")
        self._kept = live.gauge("embedding_cache_size")
        self._open = live.gauge("embedctl_serve_intents_open")
        self._coalesced = live.counter("embedctl_serve_coalesced_requests_total")
        self._fsync = live.histogram("embedctl_serve_journal_fsync_seconds")
        self._denied = cache(live.counter("embedding_policy_denied_total").labels)
        self._arrays = cache(live.counter("embedding_token_inputs_total").labels)
        self._adjusted = cache(live.counter("embedding_dimension_adjustments_total").labels)
        self._rejected = cache(live.counter("embedctl_serve_rejected_total").labels)
        self._tokens = cache(live.counter("embedctl_serve_tokens_total").labels)
        self._cost = cache(live.counter("embedctl_serve_cost_usd_total").labels)
        self._at_risk = live.counter("embedctl_serve_cost_at_risk_usd_total")

    def counts_in(self, store: CountStore) -> None:
        """Tell what this process looks up in a store of token counts, too."""
        name = "redis" if store.place else "local"
        self._live.asked(lambda: count_cache([(name, store.seen())]))

    def circuits_of(self, snapshots: Callable[[], Iterable[Snapshot]]) -> None:
        """Tell how this process's circuits stand, too."""
        self._live.asked(lambda: [circuits((one.provider, one.model, one.state.value) for one in snapshots())])

    def notify(self, event: Event) -> None:
        """An attempt has ended, or somebody took over."""
        if isinstance(event, FellBack):
            names = [one.partition(":")[0] for one in (event.instead_of, event.endpoint)]
            self._fallbacks(*names).inc()
        elif isinstance(event, AttemptEnded):
            self._attempt(event.event)

    def price(self, provider: str, model: str, price_as: str | None, tier: str = "standard") -> Decimal | None:
        """USD per million tokens now; None when nobody knows."""
        return self.prices.price(provider, model, price_as, tier) if self.prices else None

    def _attempt(self, event: UsageEvent) -> None:
        self.spending.count(event)
        price = self.price(event.provider, event.model, event.price_as)
        if event.status != "ok":
            self._failures(event.provider, event.model, event.error_class or event.status).inc()
        if event.billable == "yes":
            workspace = self._workspace(event.workspace_id)
            self._tokens(workspace, event.provider, event.model, event.usage_source).inc(event.tokens_total)
            paid = (
                event.cost_provider
                if event.cost_provider is not None
                else cost(event.tokens_total, price or Decimal(0))
            )
            self._cost(workspace, event.provider, event.model).inc(float(paid))
        elif event.billable == "unknown" and price is not None:
            self._at_risk.inc(float(cost(event.tokens_estimated or 0, price)))

    def served(
        self,
        *,
        provider: str,
        model: str,
        seconds: float,
        overhead_s: float,
        hits: int,
        arrays: bool,
        policy: str | None = None,
    ) -> None:
        """A request got its vectors."""
        self._requests(provider, model, "200").inc()
        self._seconds.observe(seconds)
        self._overhead.observe(overhead_s)
        self._hits.inc(hits)
        self._arrays("tokens" if arrays else "text").inc()

    def refused(self, code: str, status: int) -> None:
        """A request did not."""
        self._rejected(code).inc()
        if status == 403:
            self._denied(code.removesuffix("_denied")).inc()
        self._requests(OTHER, OTHER, str(status)).inc()

    def coalesced(self) -> None:
        """A request waits for what another one is buying."""
        self._coalesced.inc()

    def synced(self, seconds: float) -> None:
        """A file of the journal is on the disk; from any thread."""
        self._fsync.observe(seconds)

    def totals(self) -> dict[str, int]:
        """Counters without their labels."""
        return {
            name.removeprefix("embedctl_serve_").removeprefix("embedding_"): int(self._live.total(name))
            for name in _TOLD
        }

    def text(self, *, active: int, kept: int, open_intents: int) -> bytes:
        """All of it, as Prometheus reads it.

        Args:
            active: Requests in flight.
            kept: Vectors in the cache.
        """
        self._active.set(active)
        self._kept.set(kept)
        self._open.set(open_intents)
        return self._live.text()

    def _workspace(self, name: str) -> str:
        if name in self._workspaces or len(self._workspaces) < MOST_WORKSPACES:
            self._workspaces.add(name)
            return name
        return OTHER
