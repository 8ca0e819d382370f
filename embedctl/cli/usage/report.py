"""`embedctl usage report|daily|weekly|monthly|jobs`: tokens and cost, grouped in one way or another."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedctl import terminal
from embedctl.cli import _completion, _ledger
from embedctl.cli._flags import ConfigFlag, JsonFlag, LedgerFlag, OverwriteFlag
from embedctl.cli.usage._period import Last, Month
from embedctl.cli.usage._report_table import Look, print_report, written_to
from embedctl.cli.usage._workspace import EACH, BareWorkspace, WorkspaceOrEach
from embedctl.errors import RowsFailed, WrongUsage

if TYPE_CHECKING:
    from embedctl.reports.report import Report, ReportQuery

app = typer.Typer()
_FILES = ("parquet", "focus")


def _flags(
    workspace: WorkspaceOrEach = None,
    everyone: Annotated[bool, typer.Option("--all", help="All workspaces (the default, said aloud).")] = False,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            autocompletion=_completion.by,
            help="Group by day, week, month, workspace, provider, model, job, run, tier, "
            "source, status, purpose or tag:KEY; commas.",
        ),
    ] = None,
    breakdown: Annotated[bool, typer.Option("--breakdown", "-b", help="Also by provider and model.")] = False,
    since: Annotated[str | None, typer.Option(help="From this day or time on.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to this day or time, not included.")] = None,
    month: Month = None,
    last: Last = None,
    timezone: Annotated[
        str, typer.Option("--timezone", "-z", help="IANA time zone of days, weeks and months.")
    ] = "UTC",
    provider: Annotated[
        list[str] | None,
        typer.Option("--provider", autocompletion=_completion.providers, help="Only this provider (repeatable)."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", autocompletion=_completion.models, help="Only this model (repeatable)."),
    ] = None,
    job: Annotated[
        list[str] | None, typer.Option("--job", autocompletion=_completion.jobs, help="Only this job (repeatable).")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only the N dearest groups.")] = None,
    order: Annotated[str, typer.Option(help="asc or desc, in time.")] = "asc",
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 when something has no price, an old one, or no outcome.")
    ] = False,
    no_ingest: Annotated[
        bool, typer.Option("--no-ingest", help="Leave the spool alone; report what is in the ledger.")
    ] = False,
    cost: Annotated[
        Literal["effective", "list", "both", "none"],
        typer.Option("--cost", help="Columns of money: what is paid, what the list says, both, or none."),
    ] = "effective",
    corrections: Annotated[
        Literal["net", "split"],
        typer.Option(help="Corrections, refunds, credits and true-ups: in the cost, or beside it."),
    ] = "net",
    compact: Annotated[bool, typer.Option("--compact", help="Only tokens and money, for narrow terminals.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Show all digits of money; JSON, CSV and files always have them.")
    ] = False,
    currency: Annotated[str, typer.Option(help="Show money in this currency, by the rates of `usage rates`.")] = "USD",
    fx_date: Annotated[
        Literal["day", "month-end"], typer.Option(help="Which rate: of the day, or the month's last.")
    ] = "day",
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with charts to this file instead.", metavar="FILE"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write it to this new file, whole.", metavar="FILE"),
    ] = None,
    overwrite: OverwriteFlag = False,
    focus_version: Annotated[
        Literal["1.2", "1.4", "1.5"], typer.Option("--focus-version", help="Of --format focus.")
    ] = "1.4",
    form: Annotated[
        Literal["table", "json", "csv", "md", "parquet", "focus"],
        typer.Option("--format", help="How to print it; parquet and focus (FOCUS 1.4) go to the file of --output."),
    ] = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Carries the flags that all reports share."""


def _report(by: list[str], given: dict[str, Any]) -> None:
    """Ask, print, and fail under --strict when the answer is incomplete."""
    from embedctl.ledger import budgets, database
    from embedctl.reports.outlook import outlook
    from embedctl.reports.report import report as ask
    from embedctl.runs.pending import pending

    form = _ledger.chosen_format(given["form"], given["as_json"])
    _refuse_contradictions(given, form)
    opened = _ledger.opened(given["ledger"], given["config"])
    question = _question(by, given, opened)
    notes = [] if given["no_ingest"] else _ledger.take_in(opened)
    _ledger.refuse_missing(opened)
    if not opened.paths.database.exists():
        notes.append(f"there is no ledger yet: {opened.paths.database} comes with the first run")
    mine = str(opened.paths.database.absolute())
    waiting = pending(opened.settings.paths, question.only.get("workspace", ()), ledger=mine)
    notes += [waiting.sentence()] if waiting else []
    if given["html"] is not None:
        report = _write_page(opened, question, notes, given)
    elif form in _FILES:
        report = _write_file(opened, question, notes, given)
    else:
        with database.reader(opened.paths, now=opened.now) as connection:
            report = ask(connection, question, now=opened.now)
            comes = outlook(
                connection, question, budgets_set=budgets.configured(opened.settings.workspaces), now=opened.now
            )
        notes = [*comes.warnings, *notes]
        asides = [comes.month_end] if comes.month_end and given["cost"] in ("effective", "both") else []
        report = replace(report, pending=waiting.as_dict() if waiting else None)
        look = Look(given["cost"], given["corrections"] == "split", given["compact"], given["exact"])
        with written_to(given["output"], overwrite=given["overwrite"]):
            print_report(report, form, notes, look, asides)
    if given["strict"] and report.incomplete:
        _ledger.after_result(
            RowsFailed("some usage has no price, an old one, or no outcome (--strict)", hint="the warnings name it")
        )


def _refuse_contradictions(given: dict[str, Any], form: str) -> None:
    """Flags that exclude each other, before anything is opened.

    Raises:
        WrongUsage: Some do.
    """
    if given["everyone"] and any(name != EACH for name in given["workspace"] or []):
        raise WrongUsage("--all and --workspace NAME exclude each other")
    if given["order"] not in ("asc", "desc"):
        raise WrongUsage(f"--order {given['order']!r} is neither asc nor desc")
    if form in _FILES and (given["output"] is None or given["html"] is not None):
        raise WrongUsage(f"--format {form} is a file", hint=f"--output usage.{'csv' if form == 'focus' else form}")
    from embedctl.storage import named

    if given["output"] is not None:
        named.check_format(given["output"], form)
    if form == "focus" and (given["by"] or given["breakdown"] or given["top"] or given["currency"].upper() != "USD"):
        raise WrongUsage("--format focus is charges by day in USD: not with --by, --breakdown, --top or --currency")


def _question(by: list[str], given: dict[str, Any], opened: _ledger.Opened) -> ReportQuery:
    """What the flags ask."""
    from embedctl.ledger import periods
    from embedctl.reports.report import ReportQuery

    names = given["workspace"] or []
    only = {
        "workspace": [name for name in names if name != EACH],
        "provider": given["provider"] or [],
        "model": given["model"] or [],
        "job": given["job"] or [],
    }
    keys = (["workspace"] if EACH in names else []) + (_split(given["by"]) or by)
    keys += ["provider", "model"] if given["breakdown"] else []
    return ReportQuery(
        by=list(dict.fromkeys(keys)),
        only={key: values for key, values in only.items() if values},
        within=periods.chosen(
            given["since"],
            given["until"],
            given["last"],
            periods.zone(given["timezone"]),
            opened.now,
            month=given["month"],
        ),
        timezone=given["timezone"],
        top=given["top"],
        descending=given["order"] == "desc",
        currency=_currency(given),
        fx_date=given["fx_date"],
    )


def _write_file(opened: _ledger.Opened, question: ReportQuery, notes: list[str], given: dict[str, Any]) -> Report:
    """The report as Parquet, or the charges it is made of as FOCUS."""
    from embedctl.ledger import database
    from embedctl.reports import focus
    from embedctl.reports.report import report as ask

    file = given["output"]
    with database.reader(opened.paths, now=opened.now) as connection:
        report = ask(connection, question, now=opened.now)
        if given["form"] == "focus":
            focus.export(
                connection, question, file, "focus", overwrite=given["overwrite"], version=given["focus_version"]
            )
        else:
            focus.export_report(connection, report, file, overwrite=given["overwrite"])
    for line in dict.fromkeys([*report.warnings, *notes]):
        terminal.warning(line)
    terminal.notice(f"written to {file}")
    return report


def _write_page(opened: _ledger.Opened, question: ReportQuery, notes: list[str], given: dict[str, Any]) -> Report:
    """The report as a page with charts."""
    from embedctl.ledger import budgets, database
    from embedctl.reports import html
    from embedctl.reports.outlook import outlook
    from embedctl.reports.page_content import content as ask

    grouped = bool(given["by"]) or given["breakdown"] or EACH in (given["workspace"] or [])
    with database.reader(opened.paths, now=opened.now) as connection:
        extra = budgets.configured(opened.settings.workspaces)
        content = ask(connection, question, budgets_set=extra, grouped=grouped, now=opened.now)
        comes = outlook(connection, question, budgets_set=extra, now=opened.now)
    html.write(content, given["html"], [*comes.warnings, *notes], overwrite=given["overwrite"])
    terminal.notice(f"report written to {given['html']}")
    return content.whole


def _currency(given: dict[str, Any]) -> str:
    """The currency asked for.

    Raises:
        WrongUsage: It is none, or the page was asked for, which is in USD.
    """
    from embedctl.reports import exchange_rates

    try:
        code = exchange_rates.checked_currency(given["currency"])
    except ValueError as problem:
        raise WrongUsage(f"--currency: {problem}", hint="like EUR") from None
    if given["html"] is not None and (code != exchange_rates.OWN or given["output"] is not None):
        raise WrongUsage("--html is a page of its own, in USD: not with --currency or --output")
    return code


def _split(by: list[str] | None) -> list[str]:
    return [key.strip() for text in by or [] for key in text.split(",") if key.strip()]


def _command(name: str, by: list[str], sentence: str, example: str) -> None:
    """Register a report with its own default grouping and the shared flags."""

    def command(**given: Any) -> None:
        _report([] if by == ["provider", "model"] and EACH in (given["workspace"] or []) else by, given)

    command.__signature__ = inspect.signature(_flags, eval_str=True)  # type: ignore[attr-defined]
    command.__annotations__ = inspect.get_annotations(_flags, eval_str=True)
    command.__doc__ = sentence
    app.command(name, cls=BareWorkspace, epilog=f"Example: embedctl usage {example}")(command)


_command(
    "report",
    ["provider", "model"],
    "Report tokens and cost, by provider and model unless told otherwise.",
    "report --workspace acme --by day,model --last mtd",
)
_command("daily", ["day"], "Report tokens and cost by day.", "daily --last 7d --timezone Europe/Berlin")
_command("weekly", ["week"], "Report tokens and cost by week (from Monday).", "weekly --last 8w --breakdown")
_command("monthly", ["month"], "Report tokens and cost by month.", "monthly --workspace --json")
_command("jobs", ["job"], "Report tokens and cost by job.", "jobs --last 24h --strict")
