"""What one call may spend, what it came to, and how long providers took. The call point's guard of one request."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal

from embedctl.budgets.limits import key_account
from embedctl.budgets.reservations import Reservations
from embedctl.errors import DeadlinePassed
from embedctl.records import Request, UsageEvent
from embedctl.routing.endpoint import Endpoint
from embedctl.runs.receipt import Spending
from embedctl.server.authentication import Client


class CallGuard:
    """Sets money aside for the attempts of one call, and lets none begin that comes too late.

    Args:
        deadline: Of the monotonic clock.

    Attributes:
        spending: What the attempts came to.
        sending: Attempts that are, or are about to be, on the wire.
        provider_s: Seconds in which at least one was.
    """

    def __init__(
        self,
        money: Reservations,
        client: Client,
        spending: Spending,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._money = money
        self._also = (key_account(client.id),)
        self.spending = spending
        self._deadline = deadline
        self._clock = clock
        self.sending = 0
        self.provider_s = 0.0
        self._since = 0.0

    def price(self, endpoint: Endpoint) -> Decimal | None:
        """USD per million tokens of an endpoint now; 0 when it is free, None when nobody knows."""
        return self._money.price(endpoint)

    async def reserve(self, endpoint: Endpoint, request: Request) -> object:
        """Set the price of an attempt aside.

        Raises:
            BudgetReached: It could pass a limit.
            DeadlinePassed: The answer is not waited for any more.
        """
        self._check_time()
        reservation = await self._money.reserve(endpoint, request, also=self._also)
        try:
            self._check_time()
        except DeadlinePassed:
            await self._money.release(reservation)
            raise
        if not self.sending:
            self._since = self._clock()
        self.sending += 1
        return reservation

    async def release(self, reservation: object) -> None:
        """The attempt was never made."""
        self._ended()
        await self._money.release(reservation)

    async def settle(self, reservation: object, event: UsageEvent) -> None:
        """What it came to."""
        self._ended()
        self.spending.count(event)
        await self._money.settle(reservation, event)

    def _ended(self) -> None:
        self.sending -= 1
        if not self.sending:
            self.provider_s += self._clock() - self._since

    def _check_time(self) -> None:
        if self._clock() >= self._deadline:
            raise DeadlinePassed("the request's deadline came before it could be sent")
