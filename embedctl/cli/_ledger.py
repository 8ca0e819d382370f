"""What the commands on the ledger share: where it is, taking in what waits, and how a report looks."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from embedctl import settings, storage, terminal
from embedctl.errors import EmbedctlError, Locked, WrongUsage
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import utc_now

if TYPE_CHECKING:
    from embedctl.reports.report import Report
    from embedctl.settings import Settings


MOST_USD = Decimal(10) ** 13
"""What the ledger can hold."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The ledger that a command works on."""

    paths: LedgerPaths
    settings: Settings
    now: datetime


def opened(ledger: Path | None, config: Path | None) -> Opened:
    """The ledger the flags, the environment and the settings name."""
    return of(settings.load(config=config, ledger=ledger))


def of(found: Settings) -> Opened:
    """The ledger that settings name."""
    return Opened(LedgerPaths(found.paths.ledger, found.paths.spool, found.paths.price_file), found, utc_now())


def book(found: Settings) -> None:
    """What a call has just cost into the ledger; one that is busy or broken is a warning: the next command does it."""
    try:
        for note in take_in(of(found), wait_s=5):
            terminal.warning(note)
    except EmbedctlError as error:
        terminal.warning(f"usage is spooled, not in the ledger yet: {error.message}")


def take_in(ledger: Opened, *, wait_s: float = 10) -> list[str]:
    """Ingest what waits in the spool before a report.

    Returns:
        What the reader should know about it: events that still wait, lines dropped, a ledger that was rebuilt.
    """
    from embedctl.ledger import spool

    is_there = ledger.paths.database.exists()
    if is_there and not spool.pending(ledger.paths.spool) and not spool.pending(ledger.paths.done):
        return []
    from embedctl.ledger.ingest import ingest, missing

    try:
        if is_there and not spool.pending(ledger.paths.spool) and not missing(ledger.paths, now=ledger.now):
            return []
        done = ingest(ledger.paths, wait_s=wait_s, now=ledger.now)
    except Locked as busy:
        waiting = spool.pending_events(ledger.paths.spool)
        return [f"{waiting:,} spooled events are not included: {busy.message}"]
    return done.notes()


def recover(ledger: Opened) -> int:
    """Spool what runs spent that died and were not resumed; how many events that were."""
    from functools import partial

    from embedctl.ledger import spool
    from embedctl.runs.registry import home_trust, recover_dead, sweep

    publish = partial(spool.publish, ledger.paths.spool)
    put = recover_dead(
        ledger.settings.paths.runs,
        publish,
        home_trust(ledger.settings.paths),
        ledger=ledger.paths.database,
        observer=terminal.TerminalObserver(),
    )
    sweep(ledger.settings.paths.journal)
    return put


def refuse_unknown_provider(ledger: Opened, name: str) -> None:
    """Money is entered for, and compared with, a provider that is configured or has been called.

    Raises:
        WrongUsage: It is neither; the nearest is named.
    """
    from embedctl.ledger import database
    from embedctl.routing.names import checked_provider, known_providers

    if name in known_providers(ledger.settings):
        return
    if ledger.paths.database.exists():
        take_in(ledger)
        with database.reader(ledger.paths, now=ledger.now) as connection:
            if connection.execute("SELECT 1 FROM usage_event WHERE provider = ? LIMIT 1", [name]).fetchone():
                return
    checked_provider(ledger.settings, name)


def chosen_format(form: str, as_json: bool) -> terminal.Format:
    """--json is short for --format json."""
    return "json" if as_json else form  # type: ignore[return-value]


def after_result(problem: EmbedctlError) -> NoReturn:
    """End with the error's code when the result is out already: stdout has its one document, this goes to stderr."""
    terminal.error(problem, as_json=False)
    raise typer.Exit(problem.exit_code)


@dataclass(frozen=True, slots=True)
class Look:
    """What of a report people see; programs get everything.

    Attributes:
        cost: "effective", "list", "both" or "none".
        split: Corrections and the like stand beside the cost of usage.
        compact: Tokens and money only.
    """

    cost: str = "effective"
    split: bool = False
    compact: bool = False


@contextmanager
def written_to(place: Path | None) -> Iterator[None]:
    """What is printed inside goes to a file, whole, in place of the one before; None: to stdout as ever."""
    if place is None:
        yield
        return
    with redirect_stdout(io.StringIO()) as printed:
        yield
    storage.replace(storage.DISK, place, printed.getvalue().encode(), mode=0o644)
    terminal.notice(f"written to {place}")


def print_report(found: Report, form: terminal.Format, notes: Sequence[str] = (), look: Look | None = None) -> None:
    """Print a report; `notes` stand among its warnings."""
    look = look or Look()
    warnings = [*found.warnings, *notes]
    envelope = found.envelope() | {"warnings": warnings}
    if form in ("json", "csv"):
        for line in warnings:
            terminal.warning(line)
        columns = [terminal.Column(key, key) for key in (*found.question.by, *found.totals)]
        rows = found.groups if found.question.by else [found.totals]
        terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), form)
        return
    columns = [terminal.Column(key, key.capitalize() if ":" not in key else key) for key in found.question.by]
    columns += [terminal.Column(key, heading, "right") for key, heading in _measures(look, found.question.currency)]
    totals: dict[str, Any] = _shown(found.totals, look)
    if found.question.by:
        totals[found.question.by[0]] = "Total"
    rows = [_shown(group, look) for group in found.groups] if found.question.by else [totals]
    terminal.table(
        terminal.Table(
            columns=columns,
            rows=rows,
            envelope=envelope,
            title=_title(found),
            totals=totals if found.question.by else None,
            footer=[f"! {line}" for line in warnings],
        ),
        form,
    )


def _measures(look: Look, currency: str) -> list[tuple[str, str]]:
    """Keys and headings of the columns."""
    counts = [("operations", "Ops"), ("calls", "Calls"), ("errors", "Errors")]
    money = [("listed", f"List {currency}")] if look.cost in ("list", "both") else []
    money += [("money", f"Cost {currency}")] if look.cost in ("effective", "both") else []
    if money:
        money += [("adjusted", f"Adjusted {currency}")] if look.split else []
        money += [] if look.compact else [("risk", f"At risk {currency}")]
    return [*([] if look.compact else counts), ("tokens", "Tokens"), ("share", "Est.%"), *money]


def _shown(measures: Mapping[str, Any], look: Look) -> dict[str, Any]:
    """A group as people read it: `~` where tokens are estimated, `>=` where the cost lacks something."""
    share = measures["fallback_share"]
    risk = measures["cost_at_risk"]
    paid = measures["cost"]
    if look.split and paid is not None:
        paid -= measures["adjustments"]
    listed = measures["cost_list"] if measures["calls"] else Decimal(0)

    def told(value: Decimal | None, at_least: bool) -> str:
        return "unknown" if value is None else (">= " if at_least else "") + amount(value)

    return {
        **measures,
        "share": None if share is None else f"{'~' if share else ''}{share * 100:.1f}",
        "money": told(paid, measures["cost_is_lower_bound"]),
        "listed": told(listed, measures["cost_list_is_lower_bound"]),
        "adjusted": amount(measures["adjustments"]) if measures["adjustments"] else None,
        "risk": "unknown" if risk is None else amount(risk) if risk else None,
    }


def amount(value: Decimal) -> str:
    """USD with six decimals, all of them where that would show zero for something."""
    from embedctl.reports.report import plain

    return plain(value)


def typed_amount(text: str, flag: str) -> Decimal:
    """USD as typed.

    Raises:
        WrongUsage: It is no amount from 0 on that the ledger can hold exactly.
    """
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or not 0 <= value < MOST_USD or value != round(value, 15):
        raise WrongUsage(f"{flag} {text!r} is no amount", hint="like 5 or 0.50, in USD, with at most 15 decimal places")
    return value


def _title(found: Report) -> str:
    from embedctl.ledger import periods

    within, where = found.question.within, periods.zone(found.question.timezone)
    ends = [
        "…" if end is None else end.astimezone(where).isoformat(" ", "minutes")[:16].removesuffix(" 00:00")
        for end in (within.since, within.until)
    ]
    span = "all time" if ends == ["…", "…"] else f"{ends[0]} .. {ends[1]}"
    filters = [f"{key} {', '.join(names)}" for key, names in found.question.only.items() if names]
    prices = f"prices as of {found.prices_as_of or 'never'}"
    return "   ".join([f"Usage {span}  ({found.question.timezone})", *filters, prices])
