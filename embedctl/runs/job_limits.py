"""What all workers of a job share, as one of them sees it: when a request may go, and what may be spent."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Protocol

from embedctl.budgets.reservations import Reservations, UnitPrice
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.limiter import Limiter
from embedctl.routing.rate_limit import RateLimits


class JobLimits(Protocol):
    """One limiter for each endpoint, and one budget, for all workers of a job; whoever keeps them is asked."""

    def limiter(self, endpoint: Endpoint, limits: RateLimits, alone: Limiter) -> Limiter:
        """When requests to an endpoint may go.

        Args:
            limits: `concurrency` is of each worker, the rest of all together.
            alone: That of a worker which knows of no other: for what needs no sharing.
        """

    def reservations(self, unit_price: UnitPrice) -> Reservations:
        """What may be spent."""

    def spent_before(self, segment: str, run: str, by_workspace: Mapping[str, Decimal]) -> None:
        """Count what an earlier holder of a shard had spent, and is not there any more to say.

        Args:
            segment: Of the shard's journal.
            run: That wrote it.
            by_workspace: USD, confirmed and possibly billed.
        """
