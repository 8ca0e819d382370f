"""What a run did, for people and programs: every row and every token accounted for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from decimal import Decimal
from typing import Any

from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError, worst
from embedctl.ledger.prices.price import cost
from embedctl.records import IDLE_METER, AttemptEnded, Event, RowCounts, RowFailed, Space, UsageEvent

MOST_WORKSPACES = 1000
"""In a receipt; the ledger has all of them."""

RESUMABLE = (4, 75, 130, 143)
"""Exit codes of a run that stopped in the middle, and goes on when the same command is run again."""


@dataclass(slots=True)
class Share:
    """What one workspace pays of a run.

    Attributes:
        tokens, tokens_unknown, cost, cost_at_risk: As in `Spending`.
        priced: Whether something of it has a price, or nothing needs one.
    """

    tokens: int = 0
    tokens_unknown: int = 0
    cost: Decimal = Decimal(0)
    cost_at_risk: Decimal = Decimal(0)
    priced: bool = False
    unpriced: bool = False

    @property
    def known_cost(self) -> Decimal | None:
        """USD; None when something was billed and nothing of it has a price."""
        return self.cost if self.priced or not self.unpriced else None


@dataclass(slots=True)
class Spending:
    """What the attempts of a run came to.

    Attributes:
        tokens: Confirmed: billed by an answer.
        tokens_estimated: The part of `tokens` that was counted here.
        tokens_unknown: Of attempts that may have been billed; `cost_at_risk` is their price.
        texts: That `tokens` were answered for; `texts_batched` of them by a batch.
        unpriced: Whether something billed has no price, so that `cost` is a lower bound.
        workspaces: Who pays what of it.
        saved_by_tier: USD that it cost less than at the standard price; None when nobody knows.
    """

    unit_price: Callable[[str, str, str | None, str], Decimal | None]
    requests: int = 0
    attempts: int = 0
    tokens: int = 0
    tokens_estimated: int = 0
    tokens_unknown: int = 0
    texts: int = 0
    texts_batched: int = 0
    cost: Decimal = Decimal(0)
    cost_at_risk: Decimal = Decimal(0)
    priced: bool = False
    unpriced: bool = False
    workspaces: dict[str, Share] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)
    providers: dict[str, None] = field(default_factory=dict)
    fallback_from: str | None = None
    last_error: str | None = None
    saved_by_tier: Decimal | None = None

    def notify(self, event: Event) -> None:
        """Count an attempt that has ended."""
        if isinstance(event, AttemptEnded):
            self.count(event.event)

    def count(self, event: UsageEvent) -> None:
        """Count one ended attempt, or the time of a machine that no attempt was charged."""
        if event.meter == IDLE_METER:
            for one in (self, self.workspaces.setdefault(event.workspace_id, Share())):
                _add(one, event, None)
            return
        self.requests += event.attempt == 1
        self.attempts += 1
        price = self.unit_price(event.provider, event.model, event.price_as, event.price_tier)
        if event.status == "ok":
            self.providers.setdefault(event.provider)
            self.sources.add(event.usage_source)
            self.fallback_from = self.fallback_from or event.fallback_from
        else:
            self.last_error = event.reason
        if event.billable == "no":
            return
        if event.billable == "yes":
            self.tokens_estimated += event.tokens_total if event.usage_source == "fallback" else 0
            self.texts += event.input_count if event.status == "ok" else 0
            if event.price_tier != "standard":
                self.texts_batched += event.input_count if event.status == "ok" else 0
                self._count_saved(event, price)
        for one in (self, self.workspaces.setdefault(event.workspace_id, Share())):
            _add(one, event, price)

    def _count_saved(self, event: UsageEvent, price: Decimal | None) -> None:
        standard = self.unit_price(event.provider, event.model, event.price_as, "standard")
        if price is not None and standard is not None:
            self.saved_by_tier = (self.saved_by_tier or Decimal(0)) + cost(event.tokens_total, standard - price)

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


def _add(share: Share | Spending, event: UsageEvent, price: Decimal | None) -> None:
    """Count what was billed for an attempt, or may have been."""
    if event.billable == "unknown":
        share.tokens_unknown += event.tokens_estimated or 0
        if price is not None:
            share.cost_at_risk += cost(event.tokens_estimated or 0, price)
        else:
            share.unpriced = True
        return
    share.tokens += event.tokens_total
    is_missing = event.usage_mode == "native" and event.tokens_native is None
    if price and event.cost_provider is None and is_missing:
        share.unpriced = True  # billed, and the one count that is taken is missing
    elif event.cost_provider is not None:
        share.priced = True
        share.cost += event.cost_provider
    elif price is not None:
        share.priced = True
        share.cost += cost(event.tokens_total, price)
    else:
        share.unpriced = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """What a run that stopped before its end has kept, and what is left to do.

    Attributes:
        kept: Vectors.
        left: Texts; None when nobody knows how many.
        is_exact: Whether `left` is counted, not estimated from what was read.
        cost: Of the texts that are left, about, in USD, to ten places; None when nobody knows, or it is free.
    """

    kept: int
    left: int | None
    is_exact: bool
    cost: Decimal | None


class FailureReasons:
    """Counts the rows that fail, by reason, of an output that keeps no list of them."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def notify(self, event: Event) -> None:
        """One more."""
        if isinstance(event, RowFailed) and not event.failure.skipped:
            self.counts[event.failure.reason] = self.counts.get(event.failure.reason, 0) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The end of a run (design.md 3, "receipt"). Money in USD; None where nothing is known.

    Attributes:
        workspaces: Who pays, the one who pays most first; the first MOST_WORKSPACES of them.
        workspace_column: Of the table, where each row names who pays for it. Not part of the JSON object.
        failed_reasons: Rows that failed, by reason, most first; {} where a run did not come to its end.
        output_is_there: Whether there is something under the name of `output`. Not part of the JSON object.
        left_out: Files of the input that were not read: {count, reasons{word: count}}.
        error: Why it stopped before its end; None when it did not. Not part of the JSON object.
        unfinished: What it has kept then; None where nothing was begun, or nothing can be kept.
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
    workspaces: tuple[Mapping[str, Any], ...] = ()
    workspace_column: str | None = None
    failed_reasons: Mapping[str, int] = field(default_factory=dict)
    batch: Mapping[str, Any] | None = None
    output_is_there: bool = True
    error: EmbedctlError | None = None
    unfinished: Unfinished | None = None

    def as_dict(self) -> Mapping[str, Any]:
        """The JSON object, in the order of design.md 3."""
        return {name: getattr(self, name) for name in _RECEIPT_FIELDS}


_RECEIPT_FIELDS = tuple(
    "run_id job workspace model providers fallback_from dimensions dimension_policy space_id usage_source rows "  # noqa: SIM905
    "vectors reused duplicates failed skipped left_out requests attempts tokens tokens_estimated tokens_unknown cost "
    "cost_is_lower_bound cost_at_risk cost_saved currency seconds output failures failed_reasons exit_code retryable "
    "resume workspaces batch unfinished".split()
)


def build_receipt(
    *,
    run_id: str,
    job: str | None,
    workspace: str,
    workspace_column: str | None = None,
    model: str,
    dimension_policy: str,
    space: Space | None,
    rows: RowCounts,
    spending: Spending,
    unit_price: Decimal | None,
    seconds: float,
    output: str | None,
    failures: str | None,
    output_is_there: bool = True,
    failed_reasons: Mapping[str, int],
    failure: EmbedctlError | None,
    resume: str | None,
    left_out: Mapping[str, Any],
    unfinished: Unfinished | None = None,
    batch: Mapping[str, Any] | None = None,
) -> Receipt:
    """The receipt of a run that came to its end, or to `failure`.

    Args:
        unit_price: USD per million tokens of the model asked for; None when nobody knows. What reused vectors would
            have cost is for `savings`, which asks the ledger.
        resume: The command that continues it; shown when it can be continued.
    """
    codes = [3] if rows.failed else []
    code = worst([*codes, *([failure.exit_code] if failure else [])])
    if failure is not None and failure.exit_code in (130, 143):
        code = failure.exit_code
    saved = Decimal(0) if unit_price == 0 or not (rows.reused or rows.duplicates) else None
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
        workspaces=_payers(spending),
        workspace_column=workspace_column,
        batch=batch,
        output_is_there=output_is_there,
        failed_reasons=dict(failed_reasons),
        error=failure,
        unfinished=unfinished if failure else None,
    )


def _payers(spending: Spending) -> tuple[Mapping[str, Any], ...]:
    """Who pays, the one who pays most first."""
    shares = sorted(spending.workspaces.items(), key=lambda one: (-one[1].cost, -one[1].tokens, one[0]))
    return tuple(
        {
            "workspace": name,
            "tokens": share.tokens,
            "tokens_unknown": share.tokens_unknown,
            "cost": share.known_cost,
            "cost_at_risk": share.cost_at_risk,
        }
        for name, share in shares[:MOST_WORKSPACES]
    )
