"""What a run may spend: set aside before sending, settled after, so that no number of requests in flight passes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from datetime import datetime
from decimal import ROUND_UP, Decimal
from functools import partial
from typing import Any

from embedctl.budgets.shared import SharedBudget
from embedctl.dataclass import dataclass
from embedctl.embedding import usage
from embedctl.errors import BudgetReached
from embedctl.ledger.prices.price import cost
from embedctl.records import UNOBSERVED, BudgetLow, Observer, Request, UsageEvent, format_usd
from embedctl.routing.chain import Endpoint

UnitPrice = Callable[[Endpoint], Decimal | None]
"""USD per million tokens of an endpoint now; 0 when it is free, None when nobody knows."""

OTHERS_S = 0.1
"""How often is looked whether another run has given back what it had set aside."""

_ZERO = Decimal(0)
_NANO = Decimal("0.000000001")


@dataclass(slots=True)
class SpendLimit:
    """An amount that must not be passed.

    Attributes:
        name: For messages: "--max-cost", "the month's budget of workspace acme".
        amount: USD.
        spent: Confirmed and possibly billed.
        reserved: Set aside for what is in flight.
        workspace_id: Whose spending counts: a workspace, or another account (`limits.key_account`); None: everybody's.
        period: Of a workspace's budget, which this run shares with others.
        warn_at: USD from which on a warning is due; None when it is not, or no more.
        blocks: Nothing may be spent beyond it; else it only warns.
        is_tenants: It is of one workspace among others that pay in this run: only its own rows fail.
        ends: When the period does, where that is known.
    """

    name: str
    amount: Decimal
    spent: Decimal = _ZERO
    reserved: Decimal = _ZERO
    workspace_id: str | None = None
    period: str = ""
    warn_at: Decimal | None = None
    blocks: bool = True
    is_tenants: bool = False
    ends: datetime | None = None

    def counts(self, accounts: Collection[str]) -> bool:
        """Whether spending of these accounts counts here."""
        return self.workspace_id is None or self.workspace_id in accounts

    def fits(self, amount: Decimal) -> bool:
        """Whether so much more stays within it."""
        return not self.blocks or self.spent + self.reserved + amount <= self.amount


@dataclass(slots=True)
class _Hours:
    """What the machine of a place that costs by the hour has come to.

    Attributes:
        since: When its first attempt was let go, in seconds.
        settled: USD that attempts were charged.
        flying: Attempts under way.
        idle: USD beyond that, as of when the last one began that was alone: a line of its own in the end.
    """

    since: float
    settled: Decimal = _ZERO
    flying: int = 0
    idle: Decimal = _ZERO

    def standing(self, now: float, per_hour: Decimal) -> Decimal:
        """USD that the machine has cost and no attempt was, or may yet be, charged."""
        if not self.flying:
            self.idle = max(_ZERO, Decimal(now - self.since) * per_hour / 3600 - self.settled)
        return self.idle


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside for one attempt.

    Attributes:
        ticket: Of whoever keeps it for all workers of a job, where that is somebody else.
    """

    amount: Decimal
    unit_price: Decimal
    allowances: tuple[SpendLimit, ...]
    machine: _Hours | None = None
    ticket: int | None = None

    @property
    def accounts(self) -> set[str]:
        """That others spend from too."""
        return {one.workspace_id for one in self.allowances if one.workspace_id is not None}


class Reservations:
    """Keeps reservations and spending of one run.

    Args:
        purse: Where budgets are shared with other runs; None: nobody else spends under these allowances.
        also: Accounts that pay beside each request's workspace.
    """

    def __init__(
        self,
        unit_price: UnitPrice,
        allowances: Sequence[SpendLimit] = (),
        observer: Observer = UNOBSERVED,
        purse: SharedBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
        also: Sequence[str] = (),
    ) -> None:
        self._unit_price = unit_price
        self._allowances = tuple(allowances)
        self._observer = observer
        self._purse = purse
        self._also = tuple(also)
        self._clock = clock
        self._hours: dict[str, _Hours] = {}
        self._settled = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def at(self, unit_price: UnitPrice) -> Reservations:
        """The same limits, for calls at other prices, while nobody spends under these."""
        other = copy(self)
        other._unit_price = unit_price
        return other

    @property
    def is_limited(self) -> bool:
        """Whether there is anything that must not be passed."""
        return bool(self._allowances)

    @property
    def tenants(self) -> frozenset[str]:
        """Workspaces whose rows fail when their budget is used up, while others go on."""
        return frozenset(one.workspace_id or "" for one in self._allowances if one.is_tenants and one.blocks)

    def price(self, endpoint: Endpoint) -> Decimal | None:
        """USD per million tokens of an endpoint now; 0 when it is free, None when nobody knows."""
        return self._unit_price(endpoint)

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

        Waits while money is short, but some of it is set aside for what is in flight: most of that comes back. In a
        thread: the shared file and a tokenizer take their time.

        Args:
            also: Accounts that pay beside the request's workspace.
            patient: Else money that may come back is not waited for.
            anyway: It is being spent already, whatever the limits are.

        Raises:
            BudgetReached: It could pass a limit, and nothing that is set aside comes back.
        """
        price, mine = self._concerned(endpoint, request, also)
        if not mine:
            return Reservation(next(most_costs(endpoint, request, price)), price, mine)
        return await self._waited(
            partial(self._reserve, endpoint, request, price, mine, patient=patient, anyway=anyway)
        )

    async def set_aside(
        self, amount: Decimal, accounts: Collection[str], *, at_once: bool = False
    ) -> Reservation | None:
        """Set an amount aside for another worker of the job, which has worked it out; waits as `reserve` does.

        Args:
            accounts: That pay.
            at_once: Wait for nothing, and say None where it does not fit.

        Raises:
            BudgetReached: As `reserve`; never `at_once`.
        """
        mine = self.concerned(*accounts)
        if not mine:
            return Reservation(amount, _ZERO, mine)
        if at_once:
            async with self._one_at_a_time:
                return await self._in_thread(lambda: self._take(amount, _ZERO, mine)[0])
        return await self._waited(partial(self._reserve_amount, amount, mine))

    async def _waited(self, reserve: Callable[[], Reservation | None]) -> Reservation:
        """The reservation, once there is enough for it."""
        while True:
            settled = self._settled
            async with self._one_at_a_time:
                reservation = await self._in_thread(reserve)
            if reservation is not None:
                return reservation
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self._purse is None else OTHERS_S):
                    await settled.wait()

    async def _in_thread(self, reserve: Callable[[], Reservation | None]) -> Reservation | None:
        """What it gives; when nobody waits for it any more, it is given back."""
        reserving = asyncio.ensure_future(asyncio.to_thread(reserve))
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            with suppress(BudgetReached):
                if (late := await reserving) is not None:
                    await asyncio.to_thread(self._settle, late, _ZERO)
            raise

    def _reserve(
        self,
        endpoint: Endpoint,
        request: Request,
        price: Decimal,
        mine: tuple[SpendLimit, ...],
        *,
        patient: bool = True,
        anyway: bool = False,
    ) -> Reservation | None:
        """The reservation; None when there is too little now, but something that is set aside may come back."""
        short: list[SpendLimit] = []
        amount = standing = _ZERO
        machine = None
        if endpoint.per_hour is not None:
            now = self._clock()
            machine = self._hours.setdefault(endpoint.provider, _Hours(now))
            standing = machine.standing(now, endpoint.per_hour)
        for amount in most_costs(endpoint, request, price):
            reservation, short = self._take(amount, price, mine, machine, standing=standing, anyway=anyway)
            if reservation is not None:
                return reservation
        if patient and self._comes_back(short):
            return None
        raise self._refusal(short, amount)

    def _reserve_amount(self, amount: Decimal, mine: tuple[SpendLimit, ...]) -> Reservation | None:
        """As `_reserve`."""
        reservation, short = self._take(amount, _ZERO, mine)
        if reservation is None and not self._comes_back(short):
            raise self._refusal(short, amount)
        return reservation

    def _refusal(self, short: Sequence[SpendLimit], amount: Decimal) -> BudgetReached:
        for one in short:
            self._warn(one, due=one.is_tenants)
        return reached(next((one for one in short if not one.is_tenants), short[0]), amount)

    def _take(
        self,
        amount: Decimal,
        price: Decimal,
        mine: tuple[SpendLimit, ...],
        machine: _Hours | None = None,
        *,
        standing: Decimal = _ZERO,
        anyway: bool = False,
    ) -> tuple[Reservation | None, list[SpendLimit]]:
        """The reservation where it fits; else the limits that it would pass."""
        with self._counted(mine) as purse:
            short = [one for one in mine if not one.fits(amount + standing)]
            if short and not anyway:
                return None, short
            for one in mine:
                one.reserved += amount
            if machine is not None:
                machine.flying += 1
            reservation = Reservation(amount, price, mine, machine)
            if purse is not None:
                for account in reservation.accounts:
                    purse.add(account, reserved=amount)
            return reservation, []

    async def release(self, reservation: object) -> None:
        """Give back what was set aside for an attempt that was never made."""
        await self._give_back(reservation, _ZERO)

    async def settle(self, reservation: object, event: UsageEvent) -> None:
        """Give back what was set aside, and count what was or may have been billed."""
        if not isinstance(reservation, Reservation):
            raise TypeError("not a reservation")
        await self._give_back(reservation, charged(reservation, event))

    async def settle_at(self, reservation: Reservation, amount: Decimal) -> None:
        """Give back what was set aside, and count `amount` as spent."""
        await self._give_back(reservation, amount)

    def spent_before(self, amount: Decimal, account: str) -> None:
        """Count what was spent before this run began, and nobody knew then; shared budgets learn it from the ledger."""
        for one in self.concerned(account):
            if self._purse is None or one.workspace_id is None:
                one.spent += amount

    async def charge(self, event: UsageEvent) -> None:
        """Count what nothing was set aside for: the time of a machine that no attempt was charged."""
        mine = self.concerned(event.workspace_id)
        await self.settle(Reservation(_ZERO, _ZERO, mine), event)

    async def _give_back(self, reservation: object, spent: Decimal) -> None:
        if not isinstance(reservation, Reservation):
            raise TypeError("not a reservation")
        if reservation.allowances:
            await asyncio.shield(self._given_back(reservation, spent))

    async def _given_back(self, reservation: Reservation, spent: Decimal) -> None:
        async with self._one_at_a_time:
            await asyncio.to_thread(self._settle, reservation, spent)
        self._settled.set()
        self._settled = asyncio.Event()

    def _settle(self, reservation: Reservation, spent: Decimal) -> None:
        with self._counted(reservation.allowances) as purse:
            for one in reservation.allowances:
                one.reserved -= reservation.amount
                one.spent += spent
            if purse is not None:
                for account in reservation.accounts:
                    purse.add(account, reserved=-reservation.amount, spent=spent)
        if reservation.machine is not None:
            reservation.machine.flying -= 1
            reservation.machine.settled += spent
        for one in reservation.allowances:
            self._warn(one)

    def _warn(self, allowance: SpendLimit, *, due: bool = False) -> None:
        """Say, once, that it is past its line."""
        if allowance.warn_at is not None and (due or allowance.spent >= allowance.warn_at):
            allowance.warn_at = None
            self._observer.notify(BudgetLow(allowance.name, allowance.spent, allowance.amount))

    def handed_over(self) -> tuple[Sequence[SpendLimit], tuple[Any, ...] | None, Sequence[str]]:
        """Limits, arguments of the `SharedBudget`, and accounts, for a process that keeps them in place of this one."""
        return self._allowances, None if self._purse is None else self._purse.handed_over(), self._also

    def close(self) -> None:
        """The run is over."""
        if self._purse is not None:
            self._purse.close()

    def _concerned(
        self, endpoint: Endpoint, request: Request, also: Collection[str] = ()
    ) -> tuple[Decimal, tuple[SpendLimit, ...]]:
        """USD per million tokens, and the allowances that a request counts against; none when it is free."""
        price = self._unit_price(endpoint) or _ZERO
        return price, self.concerned(request.workspace_id, *also) if price or endpoint.per_hour else ()

    def concerned(self, *accounts: str) -> tuple[SpendLimit, ...]:
        """The limits that what these accounts spend counts against."""
        paying = (*accounts, *self._also)
        return tuple(one for one in self._allowances if one.counts(paying))

    def tightest(self, *accounts: str) -> SpendLimit | None:
        """Of the limits that hold what these accounts spend, the one with the least left, as it stands now.

        Takes its time: the shared file is read.
        """
        mine = [one for one in self.concerned(*accounts) if one.blocks]
        with self._counted(mine):
            return min(mine, key=lambda one: one.amount - one.spent - one.reserved, default=None)

    @contextmanager
    def _counted(self, mine: Sequence[SpendLimit]) -> Iterator[SharedBudget | None]:
        """While the sums are as all runs see them: the shared budget, where there is one."""
        shared = [one for one in mine if one.workspace_id is not None]
        if self._purse is None or not shared:
            yield None
            return
        with self._purse.open() as sums:
            for one in shared:
                one.spent = sums.spent(one.workspace_id or "", one.period)
                one.reserved = sums.reserved(one.workspace_id or "")
            yield self._purse

    def _comes_back(self, short: Sequence[SpendLimit]) -> bool:
        """Whether something is set aside by a run that lives."""
        own = any(one.reserved for one in short if self._purse is None or one.workspace_id is None)
        shared = {one.workspace_id for one in short if one.workspace_id is not None}
        return own or (self._purse is not None and any(self._purse.is_flying(name) for name in shared))


def most_costs(endpoint: Endpoint, request: Request, price: Decimal) -> Iterator[Decimal]:
    """The most a request can cost: at a glance, and, when that does not fit, with its tokens counted.

    At a machine that costs by the hour: all its time until the request is given up.
    """
    if endpoint.per_hour is not None:
        most = Decimal(endpoint.timeout_s) * endpoint.per_hour / 3600
        yield most.quantize(_NANO, ROUND_UP)  # with few digits: what is given back later is all of it
        return
    yield cost(usage.upper_bound(request), price)
    tokens, _ = usage.exact(endpoint, request)
    yield cost(tokens + tokens // 50 + 16, price)


def charged(reservation: Reservation, event: UsageEvent) -> Decimal:
    """What an attempt that has ended has cost, or may have."""
    if event.billable == "no":
        return _ZERO
    if event.cost_provider is not None:
        return event.cost_provider
    if event.billable == "yes":
        return cost(event.tokens_total, reservation.unit_price)
    return min(reservation.amount, cost(event.tokens_estimated or 0, reservation.unit_price))


def reached(allowance: SpendLimit, next_amount: Decimal = _ZERO) -> BudgetReached:
    """Nothing more may be sent under this allowance."""
    flying = f", {format_usd(allowance.reserved)} in flight" if allowance.reserved else ""
    more = f", the next request could cost {format_usd(next_amount)}" if next_amount else ""
    error = BudgetReached(
        f"{allowance.name} is reached: {format_usd(allowance.spent)} of {format_usd(allowance.amount)} USD spent"
        f"{flying}{more}",
        hint="raise it and run the same command again: what was embedded is kept",
    )
    error.workspace_id = allowance.workspace_id if allowance.is_tenants else None
    error.limit = allowance
    return error
