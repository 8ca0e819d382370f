"""What a run may spend: set aside before sending, settled after, so that no number of requests in flight passes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from embedctl import counting
from embedctl.errors import BudgetReached, WrongUsage
from embedctl.ledger.paths import LedgerPaths
from embedctl.ledger.prices import cost
from embedctl.options import Options
from embedctl.records import Request, UsageEvent, utc_now
from embedctl.serving import Offer
from embedctl.settings import Settings

if TYPE_CHECKING:
    from embedctl.ledger.budgets import Standing

UnitPrice = Callable[[Offer], Decimal | None]
"""USD per million tokens of an offer now; 0 when it is free, None when nobody knows."""

LEDGER_WAIT_S = 30
"""How long the ledger is waited for when budgets are looked up: without them nothing may be sent."""

_ZERO = Decimal(0)


@dataclass(slots=True)
class Allowance:
    """An amount that must not be passed.

    Attributes:
        name: For messages: "--max-cost", "the month's budget of workspace acme".
        amount: USD.
        spent: Confirmed and possibly billed.
        reserved: Set aside for what is in flight.
        workspace_id: Whose spending counts; None: everybody's.
        warn_at: USD from which on a warning is due; None when it is not, or no more.
    """

    name: str
    amount: Decimal
    spent: Decimal = _ZERO
    reserved: Decimal = _ZERO
    workspace_id: str | None = None
    warn_at: Decimal | None = None

    def counts(self, workspace_id: str) -> bool:
        """Whether spending of a workspace counts here."""
        return self.workspace_id in (None, workspace_id)

    def fits(self, amount: Decimal) -> bool:
        """Whether so much more stays within it."""
        return self.spent + self.reserved + amount <= self.amount


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside for one attempt."""

    amount: Decimal
    unit_price: Decimal
    allowances: tuple[Allowance, ...]


class Till:
    """Keeps reservations and spending of one run."""

    def __init__(
        self,
        unit_price: UnitPrice,
        allowances: Sequence[Allowance] = (),
        warned: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._unit_price = unit_price
        self._allowances = tuple(allowances)
        self._warned = warned
        self._settled = asyncio.Event()

    async def room(self, offer: Offer, request: Request) -> None:
        """Wait while money is short, but some of it is set aside for what is in flight: most of that comes back."""
        while True:
            price, mine = self._concerned(offer, request)
            short = [one for one in mine if not one.fits(self._amount(offer, request, price, mine))]
            if not any(one.reserved for one in short):
                return
            await self._settled.wait()

    def reserve(self, offer: Offer, request: Request) -> Reservation:
        """Set the most that an attempt can cost aside; counted exactly only when money is short.

        Raises:
            BudgetReached: It could pass an allowance.
        """
        price, mine = self._concerned(offer, request)
        amount = self._amount(offer, request, price, mine)
        for one in mine:
            if not one.fits(amount):
                raise reached(one, amount)
        for one in mine:
            one.reserved += amount
        return Reservation(amount, price, mine)

    def _concerned(self, offer: Offer, request: Request) -> tuple[Decimal, tuple[Allowance, ...]]:
        """USD per million tokens, and the allowances that a request counts against; none when it is free."""
        price = self._unit_price(offer) or _ZERO
        return price, tuple(one for one in self._allowances if price and one.counts(request.workspace_id))

    def _amount(self, offer: Offer, request: Request, price: Decimal, mine: Sequence[Allowance]) -> Decimal:
        amount = cost(counting.ceiling(request), price)
        if all(one.fits(amount) for one in mine):
            return amount
        tokens, _ = counting.exact(offer, request)
        return cost(tokens + tokens // 50 + 16, price)

    def settle(self, reservation: object, event: UsageEvent) -> None:
        """Give back what was set aside, and count what was or may have been billed."""
        if not isinstance(reservation, Reservation):
            raise TypeError("not a reservation")
        if event.billable == "no":
            spent = _ZERO
        elif event.cost_provider is not None:
            spent = event.cost_provider
        elif event.billable == "yes":
            spent = cost(event.tokens_total, reservation.unit_price)
        else:
            spent = min(reservation.amount, cost(event.tokens_estimated or 0, reservation.unit_price))
        for one in reservation.allowances:
            one.reserved -= reservation.amount
            one.spent += spent
            if one.warn_at is not None and one.spent >= one.warn_at:
                one.warn_at = None
                self._warned(f"{one.name} is nearly used up: {one.spent:.6f} of {one.amount:.6f} USD")
        self._settled.set()
        self._settled = asyncio.Event()


def reached(allowance: Allowance, next_amount: Decimal = _ZERO) -> BudgetReached:
    """Nothing more may be sent under this allowance."""
    flying = f", {allowance.reserved:.6f} in flight" if allowance.reserved else ""
    more = f", the next request could cost {next_amount:.6f}" if next_amount else ""
    return BudgetReached(
        f"{allowance.name} is reached: {allowance.spent:.6f} of {allowance.amount:.6f} USD spent{flying}{more}",
        hint="raise it and run the same command again: what was embedded is kept",
    )


def check_priced(offers: Sequence[Offer], unit_price: UnitPrice, options: Options) -> None:
    """With --max-cost every offer needs a price.

    Raises:
        WrongUsage: One has none.
    """
    if options.max_cost is None or options.allow_unpriced:
        return
    for offer in offers:
        if unit_price(offer) is None:
            raise WrongUsage(
                f"{offer.id} has no price, so --max-cost cannot hold",
                hint="set one with `embedctl prices set`, or --allow-unpriced",
            )


def till(
    paths: LedgerPaths,
    settings: Settings,
    offers: Sequence[Offer],
    unit_price: UnitPrice,
    warned: Callable[[str], None],
) -> Till:
    """What this run may spend: --max-cost, and what is left of its workspaces' budgets.

    Raises:
        BudgetReached: A budget that blocks is used up.
        Locked: The ledger cannot be read, so nobody knows.
        WrongUsage: A budget that blocks, and a model without a price.
    """
    options = settings.options
    allowances = [] if options.max_cost is None else [Allowance("--max-cost", options.max_cost)]
    prices = [unit_price(offer) for offer in offers]
    if any(price != 0 for price in prices) and (paths.database.exists() or _has_budget(settings)):
        budgets = _standings(paths, settings)
        allowances += _allowances(budgets, alone=options.workspace_column is None, warned=warned)
        blocking = any(one.budget.action == "block" for one in budgets)
        if blocking and None in prices and not options.allow_unpriced:
            raise WrongUsage(
                f"{offers[prices.index(None)].id} has no price, so a workspace's budget cannot hold",
                hint="set one with `embedctl prices set`, or --allow-unpriced",
            )
    return Till(unit_price, allowances, warned)


def _has_budget(settings: Settings) -> bool:
    return any(workspace.budget is not None for workspace in settings.workspaces.values())


def _standings(paths: LedgerPaths, settings: Settings) -> Sequence[Standing]:
    """How the budgets of this run's workspaces stand, everything spooled included."""
    from embedctl.ledger import budgets, spool  # duckdb takes longer to import than a free run takes
    from embedctl.ledger.database import reader
    from embedctl.ledger.ingest import ingest

    now = utc_now()
    if spool.pending(paths.spool):
        ingest(paths, wait_s=LEDGER_WAIT_S, now=now)
    only = None if settings.options.workspace_column else settings.options.workspace
    own = [one for one in budgets.configured(settings.workspaces) if only in (None, one.workspace)]
    with reader(paths, wait_s=LEDGER_WAIT_S, now=now) as connection:
        return budgets.standings(connection, own, workspace=only, now=now)


def _allowances(standings: Sequence[Standing], *, alone: bool, warned: Callable[[str], None]) -> list[Allowance]:
    """An allowance for each budget that blocks; warnings for those past their line.

    Args:
        alone: One workspace pays for all: a used-up budget stops the run before it begins.
    """
    found = []
    for one in standings:
        budget = one.budget
        name = f"the {budget.period}'s budget of workspace {budget.workspace}"
        spent = one.spent.cost + one.spent.at_risk
        line = budget.amount * budget.warn_ratio
        allowance = Allowance(name, budget.amount, spent, workspace_id=budget.workspace, warn_at=line)
        if one.state == "exceeded" and budget.action == "block" and alone:
            raise reached(allowance)
        if spent >= line:
            allowance.warn_at = None
            nearly = "" if spent >= budget.amount else "nearly "
            warned(f"{name} is {nearly}used up: {spent:.6f} of {budget.amount:.6f} USD")
        if budget.action == "block":
            found.append(allowance)
    return found
