"""A worker's side of what is shared: every request's turn, and its money, are asked for where they are kept.

How a question gets there is the engine's: a socket between two processes of a machine, an actor's methods.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, fields
from decimal import Decimal
from typing import Any, Protocol

from embedctl.budgets.reservations import Reservation, Reservations, UnitPrice, most_costs
from embedctl.engines.shared_limits import SharedEndpoint
from embedctl.errors import (
    AnswerLost,
    BudgetReached,
    InvariantBroken,
    NotSent,
    ProviderError,
    ServerFailed,
    Throttled,
)
from embedctl.providers._rate_headers import Rates
from embedctl.records import Request
from embedctl.routing.endpoint import Endpoint
from embedctl.routing.limiter import Limiter, Permit
from embedctl.routing.rate_limit import RateLimits
from embedctl.routing.retry import hinted_s

_ZERO = Decimal(0)


class LimitsLine(Protocol):
    """How a worker reaches the `SharedLimits` of its job: a method, and what follows the worker itself."""

    async def ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            HostLost: Nobody keeps the limits any more: nothing may be sent.
        """

    def tell(self, method: str, *arguments: Any) -> None:
        """Say something that needs no answer; what is told and asked arrives in this order. Never raises."""


class LeasedLimits:
    """`JobLimits` of a worker.

    Args:
        is_limited, tenants: As `join` has answered.
    """

    def __init__(self, line: LimitsLine, *, is_limited: bool, tenants: Collection[str] = ()) -> None:
        self._line = line
        self._is_limited = is_limited
        self._tenants = frozenset(tenants)
        self._tickets = itertools.count()

    def limiter(self, endpoint: Endpoint, limits: RateLimits, alone: Limiter) -> Limiter:
        """The job's; a model in this process is this worker's alone."""
        return alone if endpoint.local else LeasedLimiter(self._line, endpoint, limits, self._tickets)

    def reservations(self, unit_price: UnitPrice) -> Reservations:
        """What the job may spend."""
        return LeasedReservations(
            self._line, unit_price, self._tickets, is_limited=self._is_limited, tenants=self._tenants
        )

    def spent_before(self, segment: str, run: str, by_workspace: Mapping[str, Decimal]) -> None:
        """Count what an earlier holder of a shard had spent."""
        self._line.tell("spent_before", segment, run, {name: str(amount) for name, amount in by_workspace.items()})


class LeasedPermit(Permit):
    """What is said of it is sent when its place is given up."""

    __slots__ = ("said",)

    def __init__(self) -> None:  # there is no limiter here
        self.said: tuple[Any, ...] = ()

    def succeeded(self, tokens: int | None = None, rates: Rates | None = None) -> None:
        """An answer."""
        self.said = ("answered", tokens, None, _plain(rates))

    def failed(self, error: ProviderError, wait_s: float | None = None, rates: Rates | None = None) -> None:
        """A failure."""
        if isinstance(error, Throttled):
            self.said = ("throttled", None, wait_s if wait_s is not None else hinted_s(error), _plain(rates))
        elif isinstance(error, AnswerLost) or (isinstance(error, ServerFailed) and error.status in (None, 503, 529)):
            self.said = ("strained", None, None, _plain(rates))
        elif isinstance(error, NotSent):
            self.said = ("not_sent", None, None, _plain(rates))


class LeasedLimiter:
    """The job's limiter of one endpoint."""

    def __init__(self, line: LimitsLine, endpoint: Endpoint, limits: RateLimits, tickets: Iterator[int]) -> None:
        mine = tuple((one.name, getattr(limits, one.name)) for one in fields(RateLimits))
        self._line = line
        self._endpoint = SharedEndpoint(
            endpoint.id, endpoint.wire_model, endpoint.place.base_url, endpoint.account, mine
        ).as_plain()
        self._tickets = tickets
        self._per_second: float | None = None

    @property
    def per_second(self) -> float | None:
        """What goes per second, of all workers, because the provider refuses more; as it was when last asked."""
        return self._per_second

    def restart(self) -> None:
        """One request at a time, then carefully more."""
        self._line.tell("restart", self._endpoint)

    @asynccontextmanager
    async def acquire(self, tokens: float, items: int = 1) -> AsyncIterator[Permit]:
        """Wait for a turn, and be in flight until the block ends, however it ends.

        Raises:
            Throttled: The provider asked for a longer wait than is allowed.
            HostLost: Nobody keeps the limits any more.
        """
        ticket = next(self._tickets)
        try:
            answer = await self._line.ask("acquire", ticket, self._endpoint, tokens, items)
        except BaseException:
            self._line.tell("withdraw", ticket)
            raise
        if "throttled" in answer:
            raise Throttled(answer["throttled"], retry_after_s=answer["retry_after_s"])
        if "withdrawn" in answer:
            raise InvariantBroken("a turn was withdrawn that is waited for")
        self._per_second = answer["per_second"]
        permit = LeasedPermit()
        try:
            yield permit
        finally:
            self._line.tell("ended", ticket, *permit.said)


class LeasedReservations(Reservations):
    """What the job may spend; whoever keeps it is asked. Free attempts are not."""

    def __init__(
        self,
        line: LimitsLine,
        unit_price: UnitPrice,
        tickets: Iterator[int],
        *,
        is_limited: bool,
        tenants: frozenset[str],
    ) -> None:
        super().__init__(unit_price)
        self._line = line
        self._tickets = tickets
        self._is_limited = is_limited
        self._tenants = tenants

    @property
    def tenants(self) -> frozenset[str]:
        """Workspaces whose rows fail when their budget is used up, while others go on."""
        return self._tenants

    @property
    def is_limited(self) -> bool:
        """Whether there is anything that must not be passed."""
        return self._is_limited

    async def reserve(
        self,
        endpoint: Endpoint,
        request: Request,
        *,
        also: Collection[str] = (),
        patient: bool = True,
        anyway: bool = False,
    ) -> Reservation:
        """Set the most that an attempt can cost aside; counted exactly only when money is short.

        Raises:
            BudgetReached: It could pass a limit, and nothing that is set aside comes back.
            HostLost: Nobody keeps the limits any more.
        """
        price = self.price(endpoint) or _ZERO
        amounts = most_costs(endpoint, request, price)
        amount = next(amounts)
        if not self._is_limited or not price:
            return Reservation(amount, price, ())
        accounts = [request.workspace_id, *also]
        ticket = await self._asked(accounts, amount, at_once=True)
        if ticket is None:
            amount = await asyncio.to_thread(next, amounts, amount)
            ticket = await self._asked(accounts, amount, at_once=False)
        return Reservation(amount, price, (), ticket=ticket)

    async def _asked(self, accounts: Collection[str], amount: Decimal, *, at_once: bool) -> int | None:
        """The ticket under which it is set aside; None: it does not fit now."""
        ticket = next(self._tickets)
        try:
            answer = await self._line.ask("reserve", ticket, list(accounts), str(amount), at_once)
        except BaseException:
            self._line.tell("withdraw", ticket)
            raise
        if "reached" in answer:
            error = BudgetReached(answer["reached"], hint=answer["hint"])
            error.workspace_id = answer["workspace"]
            raise error
        if "withdrawn" in answer:
            raise InvariantBroken("money was withdrawn that is waited for")
        return None if "short" in answer else ticket

    async def _give_back(self, reservation: object, spent: Decimal) -> None:
        if not isinstance(reservation, Reservation):
            raise TypeError("not a reservation")
        if reservation.ticket is not None:
            self._line.tell("settle", reservation.ticket, str(spent))


def _plain(rates: Rates | None) -> dict[str, float | None] | None:
    return None if rates is None else asdict(rates)
