"""What the commands on the ledger share: where it is, taking in what waits, and amounts of money."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from embedctl import settings, terminal
from embedctl.dataclass import dataclass
from embedctl.errors import EmbedctlError, InputMissing, Locked, WrongUsage, nearest
from embedctl.ledger.paths import LedgerPaths
from embedctl.records import utc_now

if TYPE_CHECKING:
    from embedctl.settings import Settings


MOST_USD = Decimal(10) ** 13
"""What the ledger can hold."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The ledger that a command works on.

    Attributes:
        by_flag: `--ledger` names it: who only reads it expects it to be there.
    """

    paths: LedgerPaths
    settings: Settings
    now: datetime
    by_flag: bool = False


def opened(ledger: Path | None, config: Path | None) -> Opened:
    """The ledger the flags, the environment and the settings name."""
    return replace(of(settings.load(config=config, ledger=ledger)), by_flag=ledger is not None)


def of(settings: Settings) -> Opened:
    """The ledger that settings name."""
    return Opened(LedgerPaths.of(settings.paths), settings, utc_now())


def book(settings: Settings) -> None:
    """What a call has just cost into the ledger; one that is busy or broken is a warning: the next command does it."""
    try:
        for note in take_in(of(settings), wait_s=5):
            terminal.warning(note)
    except EmbedctlError as error:
        terminal.warning(f"usage is spooled, not in the ledger yet: {error.message}")


def take_in(ledger: Opened, *, wait_s: float = 10) -> list[str]:
    """Take in what was spent before a report, by runs that died, too.

    Returns:
        What the reader should know about it: events that still wait, lines dropped, a ledger that was rebuilt.

    Raises:
        InputMissing: As `refuse_missing`.
    """
    from embedctl.ledger import spool
    from embedctl.runs import intake

    try:
        notes = intake.take_in(
            ledger.settings.paths, wait_s=wait_s, now=ledger.now, observer=terminal.TerminalObserver()
        )
    except Locked as busy:
        waiting = spool.pending_events(ledger.paths.spool)
        notes = [f"{waiting:,} spooled events are not included: {busy.message}"]
    refuse_missing(ledger)
    return notes


def refuse_missing(ledger: Opened) -> None:
    """A ledger that `--ledger` names to be read is there, or events wait for it: else it is misspelt.

    One of the settings may still come.

    Raises:
        InputMissing: It is not; the file beside it with the nearest name is named.
    """
    from embedctl.ledger import spool

    path = ledger.paths.database
    if not ledger.by_flag or path.exists() or spool.pending(ledger.paths.spool):
        return
    try:
        beside = [one.name for one in path.parent.glob("*.duckdb")]
    except OSError:
        beside = []
    close = nearest(path.name, beside)
    own = ledger.settings.environment.get("EMBEDCTL_LEDGER") or ledger.settings.paths.home / settings.LEDGER_NAME
    raise InputMissing(
        f"no such ledger: {path}",
        hint=f"did you mean {path.with_name(close)}?" if close else f"without --ledger it is {own}",
    )


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
