"""A report as people see it: which columns, which title, and whether it is printed or written to a file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedctl import terminal
from embedctl.dataclass import dataclass
from embedctl.records import format_cents, format_money
from embedctl.storage import named

if TYPE_CHECKING:
    from embedctl.reports.report import Report


@dataclass(frozen=True, slots=True)
class Look:
    """What of a report people see; programs get everything.

    Attributes:
        cost: "effective", "list", "both" or "none".
        split: Corrections and the like stand beside the cost of usage.
        compact: Tokens and money only.
        exact: All digits of money; without it, cents, and two digits of what is less.
    """

    cost: str = "effective"
    split: bool = False
    compact: bool = False
    exact: bool = False


@contextmanager
def written_to(place: Path | None, *, overwrite: bool) -> Iterator[None]:
    """What is printed inside goes to a file, whole; None: to stdout as ever."""
    if place is None:
        yield
        return
    with redirect_stdout(io.StringIO()) as printed:
        yield
    named.write(place, printed.getvalue().encode(), overwrite=overwrite, mode=0o644)
    terminal.notice(f"written to {place}")


def print_report(
    report: Report,
    form: terminal.Format,
    notes: Sequence[str] = (),
    look: Look | None = None,
    asides: Sequence[str] = (),
) -> None:
    """Print a report; `notes` stand among its warnings, `asides` below a table only."""
    look = look or Look()
    warnings = list(dict.fromkeys([*report.warnings, *notes]))
    envelope = report.envelope() | {"warnings": warnings}
    if form in ("json", "csv"):
        for line in warnings:
            terminal.warning(line)
        columns = [terminal.Column(key, key) for key in (*report.question.by, *report.totals)]
        rows = report.groups if report.question.by else [report.totals]
        terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), form)
        return
    columns = [terminal.Column(key, key.capitalize() if ":" not in key else key) for key in report.question.by]
    columns += [
        terminal.Column(key, heading, "right", optional=_OPTIONAL.get(key, 0))
        for key, heading in _measures(look, report.question.currency)
    ]
    totals = _shown(report.totals, look)
    if report.question.by:
        totals[report.question.by[0]] = "Total"
    rows = [_shown(group, look) for group in report.groups] if report.question.by else [totals]
    terminal.table(
        terminal.Table(
            columns=columns,
            rows=rows,
            envelope=envelope,
            title=_title(report),
            totals=totals if report.question.by else None,
            footer=[*asides, *(f"! {line}" for line in warnings)],
        ),
        form,
    )


_OPTIONAL = {"calls": 7, "errors": 6, "operations": 5, "share": 4, "adjusted": 3, "listed": 2, "risk": 1}
"""Columns that a narrow terminal goes without, the highest first."""


def _measures(look: Look, currency: str) -> list[tuple[str, str]]:
    """Keys and headings of the columns."""
    counts = [("operations", "Requests"), ("calls", "Calls"), ("errors", "Errors")]
    money = [("listed", f"List {currency}")] if look.cost in ("list", "both") else []
    money += [("money", f"Cost {currency}")] if look.cost in ("effective", "both") else []
    if money:
        money += [("adjusted", f"Adjusted {currency}")] if look.split else []
        money += [] if look.compact else [("risk", f"At risk {currency}")]
    return [*([] if look.compact else counts), ("tokens", "Tokens"), ("share", "Estimated %"), *money]


def _shown(measures: Mapping[str, Any], look: Look) -> dict[str, Any]:
    """A group as people read it: `~` where tokens are estimated, `>=` where the cost lacks something."""
    amount = format_money if look.exact else format_cents
    share = measures["estimated_share"]
    risk = measures["cost_at_risk"]
    paid = measures["cost"]
    if look.split and paid is not None:
        paid -= measures["adjustments"]
    listed = measures["cost_list"] if measures["calls"] else Decimal(0)

    def shown(value: Decimal | None, at_least: bool) -> str:
        return "unknown" if value is None else (">= " if at_least else "") + amount(value)

    return {
        **measures,
        **({"month": str(measures["month"])[:7]} if measures.get("month") else {}),
        "share": None if share is None else f"{'~' if share else ''}{share * 100:.1f}",
        "money": shown(paid, measures["cost_is_lower_bound"]),
        "listed": shown(listed, measures["cost_list_is_lower_bound"]),
        "adjusted": amount(measures["adjustments"]) if measures["adjustments"] else None,
        "risk": "unknown" if risk is None else amount(risk) if risk else None,
    }


def _title(report: Report) -> str:
    from embedctl.ledger import periods

    within, where = report.question.within, periods.zone(report.question.timezone)
    ends = [
        "…" if end is None else end.astimezone(where).isoformat(" ", "minutes")[:16].removesuffix(" 00:00")
        for end in (within.since, within.until)
    ]
    span = "all time" if ends == ["…", "…"] else f"{ends[0]} .. {ends[1]}"
    filters = [f"{key} {', '.join(names)}" for key, names in report.question.only.items() if names]
    prices = f"prices as of {report.prices_as_of or 'never'}"
    return "   ".join([f"Usage {span}  ({report.question.timezone})", *filters, prices])
