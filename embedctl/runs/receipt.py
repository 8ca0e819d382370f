"""What a run did, for people and programs: every row and every token accounted for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from embedctl.errors import EmbedctlError, worst
from embedctl.ledger.prices.price import cost
from embedctl.records import AttemptEnded, Event, RowCounts, Space, UsageEvent

RESUMABLE = (4, 75, 130, 143)
"""Exit codes of a run that stopped in the middle, and goes on when the same command is run again."""


@dataclass(slots=True)
class Spending:
    """What the attempts of a run came to.

    Attributes:
        tokens: Confirmed: billed by an answer.
        tokens_estimated: The part of `tokens` that was counted here.
        tokens_unknown: Of attempts that may have been billed; `cost_at_risk` is their price.
        unpriced: Whether something billed has no price, so that `cost` is a lower bound.
    """

    unit_price: Callable[[str, str, str | None], Decimal | None]
    requests: int = 0
    attempts: int = 0
    tokens: int = 0
    tokens_estimated: int = 0
    tokens_unknown: int = 0
    cost: Decimal = Decimal(0)
    cost_at_risk: Decimal = Decimal(0)
    priced: bool = False
    unpriced: bool = False
    sources: set[str] = field(default_factory=set)
    providers: dict[str, None] = field(default_factory=dict)
    fallback_from: str | None = None
    last_error: str | None = None

    def notify(self, event: Event) -> None:
        """Count an attempt that has ended."""
        if isinstance(event, AttemptEnded):
            self.count(event.event)

    def count(self, event: UsageEvent) -> None:
        """Count one ended attempt."""
        self.requests += event.attempt == 1
        self.attempts += 1
        price = self.unit_price(event.provider, event.model, event.price_as)
        if event.status == "ok":
            self.providers.setdefault(event.provider)
            self.sources.add(event.usage_source)
            self.fallback_from = self.fallback_from or event.fallback_from
        else:
            self.last_error = event.reason
        if event.billable == "yes":
            self.tokens += event.tokens_total
            self.tokens_estimated += event.tokens_total if event.usage_source == "fallback" else 0
            if price and event.cost_provider is None and event.usage_mode == "native" and event.tokens_native is None:
                self.unpriced = True  # billed, and the one count that is taken is missing
            elif event.cost_provider is not None or price is not None:
                self.priced = True
                self.cost += event.cost_provider if event.cost_provider is not None else cost(event.tokens_total, price)  # type: ignore[arg-type]
            else:
                self.unpriced = True
        elif event.billable == "unknown":
            self.tokens_unknown += event.tokens_estimated or 0
            if price is not None:
                self.cost_at_risk += cost(event.tokens_estimated or 0, price)
            else:
                self.unpriced = True

    @property
    def known_cost(self) -> Decimal | None:
        """USD; None when something was billed and nothing of it has a price."""
        return self.cost if self.priced or not self.unpriced else None

    @property
    def usage_source(self) -> str | None:
        """native, fallback or mixed; None when nothing was answered."""
        if not self.sources:
            return None
        return "mixed" if len(self.sources) > 1 else next(iter(self.sources))


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The end of a run (design.md 3, "receipt"). Money in USD; None where nothing is known.

    Attributes:
        left_out: Files of the input that were not read: {count, reasons{word: count}}.
        error: Why it stopped before its end; None when it did not. Not part of the JSON object.
    """

    run_id: str
    job: str | None
    workspace: str
    model: str
    providers: tuple[str, ...]
    fallback_from: str | None
    dimensions: int | None
    dimension_policy: str
    space_id: str | None
    usage_source: str | None
    rows: int
    vectors: int
    reused: int
    duplicates: int
    failed: int
    skipped: int
    requests: int
    attempts: int
    tokens: int
    tokens_estimated: int
    tokens_unknown: int
    cost: Decimal | None
    cost_is_lower_bound: bool
    cost_at_risk: Decimal | None
    cost_saved: Decimal | None
    seconds: float
    left_out: Mapping[str, Any]
    output: str | None
    failures: str | None
    exit_code: int
    retryable: bool
    resume: str | None
    currency: str = "USD"
    error: EmbedctlError | None = None

    def as_dict(self) -> Mapping[str, Any]:
        """The JSON object, in the order of design.md 3."""
        return {name: getattr(self, name) for name in _RECEIPT_FIELDS}


_RECEIPT_FIELDS = tuple(
    "run_id job workspace model providers fallback_from dimensions dimension_policy space_id usage_source rows "  # noqa: SIM905
    "vectors reused duplicates failed skipped left_out requests attempts tokens tokens_estimated tokens_unknown cost "
    "cost_is_lower_bound cost_at_risk cost_saved currency seconds output failures exit_code retryable resume".split()
)


def build_receipt(
    *,
    run_id: str,
    job: str | None,
    workspace: str,
    model: str,
    dimension_policy: str,
    space: Space | None,
    rows: RowCounts,
    spending: Spending,
    unit_price: Decimal | None,
    seconds: float,
    output: str | None,
    failures: str | None,
    failure: EmbedctlError | None,
    resume: str | None,
    left_out: Mapping[str, Any],
) -> Receipt:
    """The receipt of a run that came to its end, or to `failure`.

    Args:
        unit_price: USD per million tokens of the model asked for; None when nobody knows.
        resume: The command that continues it; shown when it can be continued.
    """
    codes = [3] if rows.failed else []
    code = worst([*codes, *([failure.exit_code] if failure else [])])
    if failure is not None and failure.exit_code in (130, 143):
        code = failure.exit_code
    each = spending.tokens / rows.vectors if rows.vectors and spending.tokens else None
    saved = Decimal(0) if unit_price == 0 or not (rows.reused or rows.duplicates) else None
    if unit_price and each:
        saved = cost(round(each * (rows.reused + rows.duplicates)), unit_price)
    return Receipt(
        run_id=run_id,
        job=job,
        workspace=workspace,
        model=model,
        providers=tuple(spending.providers),
        fallback_from=spending.fallback_from,
        dimensions=space.dimensions if space else None,
        dimension_policy=dimension_policy,
        space_id=space.space_id if space else None,
        usage_source=spending.usage_source,
        rows=rows.read,
        vectors=rows.vectors,
        reused=rows.reused,
        duplicates=rows.duplicates,
        failed=rows.failed,
        skipped=rows.skipped,
        requests=spending.requests,
        attempts=spending.attempts,
        tokens=spending.tokens,
        tokens_estimated=spending.tokens_estimated,
        tokens_unknown=spending.tokens_unknown,
        cost=spending.known_cost,
        cost_is_lower_bound=spending.unpriced,
        cost_at_risk=spending.cost_at_risk,
        cost_saved=saved,
        seconds=seconds,
        left_out=left_out,
        output=output,
        failures=failures,
        exit_code=code,
        retryable=failure.retryable if failure else False,
        resume=resume if failure is not None and failure.exit_code in RESUMABLE else None,
        error=failure,
    )
