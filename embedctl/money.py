"""What a run may spend: set aside before sending, settled after, so that no number of requests in flight passes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from embedctl import counting
from embedctl.errors import BudgetReached
from embedctl.ledger.prices import cost
from embedctl.records import Request, UsageEvent
from embedctl.serving import Offer

UnitPrice = Callable[[Offer], Decimal | None]
"""USD per million tokens of an offer now; 0 when it is free, None when nobody knows."""

_ZERO = Decimal(0)


@dataclass(slots=True)
class Allowance:
    """An amount that must not be passed.

    Attributes:
        name: For messages: "--max-cost", "the monthly budget of workspace acme".
        amount: USD.
        spent: Confirmed and possibly billed.
        reserved: Set aside for what is in flight.
        workspace_id: Whose spending counts; None: everybody's.
    """

    name: str
    amount: Decimal
    spent: Decimal = _ZERO
    reserved: Decimal = _ZERO
    workspace_id: str | None = None

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

    def __init__(self, unit_price: UnitPrice, allowances: Sequence[Allowance] = ()) -> None:
        self._unit_price = unit_price
        self._allowances = tuple(allowances)

    def reserve(self, offer: Offer, request: Request) -> Reservation:
        """Set the most that an attempt can cost aside; counted exactly only when money is short.

        Raises:
            BudgetReached: It could pass an allowance.
        """
        price = self._unit_price(offer) or _ZERO
        mine = tuple(one for one in self._allowances if one.counts(request.workspace_id))
        amount = cost(counting.ceiling(request), price)
        if price and not all(one.fits(amount) for one in mine):
            tokens, _ = counting.exact(offer, request)
            amount = cost(tokens + tokens // 50 + 16, price)
            for one in mine:
                if not one.fits(amount):
                    raise BudgetReached(
                        f"{one.name} of {one.amount} USD is reached: {one.spent:.6f} spent, "
                        f"{one.reserved:.6f} in flight, the next request could cost {amount:.6f}",
                        hint="raise it and run the same command again: what was embedded is kept",
                    )
        for one in mine:
            one.reserved += amount
        return Reservation(amount, price, mine)

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
