"""What the commands on the ledger share: where it is, taking in what waits, and how a report looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from embedctl import render, settings
from embedctl.errors import EmbedctlError, Locked, WrongUsage
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import utc_now

if TYPE_CHECKING:
    from embedctl.ledger.reports import Report
    from embedctl.settings import Settings


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
            render.warning(note)
    except EmbedctlError as error:
        render.warning(f"usage is spooled, not in the ledger yet: {error.message}")


def take_in(ledger: Opened, *, wait_s: float = 10) -> list[str]:
    """Ingest what waits in the spool before a report.

    Returns:
        What the reader should know about it: events that still wait, lines dropped, a ledger that was rebuilt.
    """
    from embedctl.ledger import spool

    if not spool.pending(ledger.paths.spool) and ledger.paths.database.exists():
        return []
    from embedctl.ledger.ingest import ingest

    try:
        done = ingest(ledger.paths, wait_s=wait_s, now=ledger.now)
    except Locked as busy:
        waiting = spool.pending_events(ledger.paths.spool)
        return [f"{waiting:,} spooled events are not included: {busy.message}"]
    return ingest_notes(done)


def recover(ledger: Opened) -> int:
    """Spool what runs spent that died and were not resumed; how many events that were."""
    from functools import partial

    from embedctl.ledger import spool
    from embedctl.runs import recover_dead

    publish = partial(spool.publish, ledger.paths.spool)
    return recover_dead(ledger.settings.paths.runs, publish, ledger=ledger.paths.database)


def ingest_notes(done: Any) -> list[str]:
    """Sentences for what went wrong in an ingest."""
    notes = []
    if done.rebuilt_from is not None:
        notes.append(f"the ledger was damaged: set aside as {done.rebuilt_from}, rebuilt from the spool")
    if done.bad_lines:
        notes.append(f"{done.bad_lines:,} spool lines were damaged or foreign and are not counted")
    notes.extend(f"spool file not read: {name}" for name in done.unreadable)
    return notes


def chosen_format(form: str, as_json: bool) -> render.Format:
    """--json is short for --format json."""
    return "json" if as_json else form  # type: ignore[return-value]


def after_result(problem: EmbedctlError) -> NoReturn:
    """End with the error's code when the result is out already: stdout has its one document, this goes to stderr."""
    render.error(problem, as_json=False)
    raise typer.Exit(problem.exit_code)


def print_report(found: Report, form: render.Format, notes: Sequence[str] = ()) -> None:
    """Print a report; `notes` stand among its warnings."""
    warnings = [*found.warnings, *notes]
    envelope = found.envelope() | {"warnings": warnings}
    if form in ("json", "csv"):
        for line in warnings:
            render.warning(line)
        columns = [render.Column(key, key) for key in (*found.question.by, *found.totals)]
        rows = found.groups if found.question.by else [found.totals]
        render.table(render.Table(columns=columns, rows=rows, envelope=envelope), form)
        return
    columns = [render.Column(key, key.capitalize() if ":" not in key else key) for key in found.question.by]
    columns += [render.Column(key, heading, "right") for key, heading in _MEASURES]
    totals: dict[str, Any] = _shown(found.totals)
    if found.question.by:
        totals[found.question.by[0]] = "Total"
    rows = [_shown(group) for group in found.groups] if found.question.by else [totals]
    render.table(
        render.Table(
            columns=columns,
            rows=rows,
            envelope=envelope,
            title=_title(found),
            totals=totals if found.question.by else None,
            footer=[f"! {line}" for line in warnings],
        ),
        form,
    )


_MEASURES = (
    ("operations", "Ops"),
    ("calls", "Calls"),
    ("errors", "Errors"),
    ("tokens", "Tokens"),
    ("share", "Est.%"),
    ("money", "Cost USD"),
    ("risk", "At risk USD"),
)


def _shown(measures: Mapping[str, Any]) -> dict[str, Any]:
    """A group as people read it: `~` where tokens are estimated, `>=` where the cost lacks something."""
    share = measures["fallback_share"]
    money = amount(measures["cost"]) if measures["cost"] is not None else "unknown"
    bound = ">= " if measures["cost_is_lower_bound"] and measures["cost"] is not None else ""
    risk = measures["cost_at_risk"]
    return {
        **measures,
        "share": None if share is None else f"{'~' if share else ''}{share * 100:.1f}",
        "money": bound + money,
        "risk": "unknown" if risk is None else amount(risk) if risk else None,
    }


def amount(value: Decimal) -> str:
    """USD with six decimals, all of them where that would show zero for something."""
    from embedctl.ledger.reports import plain

    return plain(value)


def typed_amount(text: str, flag: str) -> Decimal:
    """USD as typed.

    Raises:
        WrongUsage: It is no positive amount.
    """
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value < 0:
        raise WrongUsage(f"{flag} {text!r} is no amount", hint="like 5 or 0.50, in USD")
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
