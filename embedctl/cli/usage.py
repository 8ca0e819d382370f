"""`embedctl usage`: what was spent, by whom, on what, and how sure that is."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer
from typer.core import TyperCommand

from embedctl import terminal
from embedctl.cli import SuggestingGroup, _ledger, usage_care, usage_estimate, usage_money
from embedctl.cli._flags import ConfigFlag, JsonFlag, LedgerFlag
from embedctl.errors import RowsFailed, WrongUsage

if TYPE_CHECKING:
    from embedctl.reports.report import Report, ReportQuery

app = typer.Typer(
    cls=SuggestingGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="What was spent, by whom, on what, and how sure that is.",
    epilog="Example: embedctl usage report --workspace --last 7d",
)
app.add_typer(usage_money.app)
app.add_typer(usage_estimate.app)
app.add_typer(usage_care.app)

_FILES = ("parquet", "focus")
EACH = "\0each"
"""What a bare --workspace stands for: group by it."""


class BareWorkspace(TyperCommand):
    """A command whose --workspace may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does, once each bare --workspace has a value."""
        return super().parse_args(ctx, with_values(args))


def with_values(args: list[str]) -> list[str]:
    """`args` with a value behind each --workspace that has none: the end or another flag follows."""
    filled = []
    for index, word in enumerate(args):
        filled.append(word)
        following = args[index + 1] if index + 1 < len(args) else None
        if word in ("--workspace", "-w") and (following is None or following.startswith("-")):
            filled.append(EACH)
    return filled


Names = Optional[list[str]]  # noqa: UP045 - typer reads it
Text = Optional[str]  # noqa: UP045
Workspaces = Annotated[
    Names,
    typer.Option("--workspace", "-w", metavar="[NAME]", help="Only this workspace (repeatable); bare: group by it."),
]
All = Annotated[bool, typer.Option("--all", help="All workspaces (the default, said aloud).")]
By = Annotated[
    Names,
    typer.Option(
        "--by",
        help="Group by day, week, month, workspace, provider, model, job, run, tier, "
        "source, status, purpose or tag:KEY; commas.",
    ),
]
Breakdown = Annotated[bool, typer.Option("--breakdown", "-b", help="Also by provider and model.")]
Since = Annotated[Text, typer.Option(help="From this day or time on.")]
Until = Annotated[Text, typer.Option(help="Up to this day or time, not included.")]
Last = Annotated[Text, typer.Option(help="7d, 24h, 4w, 3m, today, yesterday, week, month, mtd or prev-month.")]
Zone = Annotated[str, typer.Option("--timezone", "-z", help="IANA time zone of days, weeks and months.")]
Provider = Annotated[Names, typer.Option("--provider", help="Only this provider (repeatable).")]
Model = Annotated[Names, typer.Option("--model", "-m", help="Only this model (repeatable).")]
Job = Annotated[Names, typer.Option("--job", help="Only this job (repeatable).")]
Top = Annotated[Optional[int], typer.Option(min=1, help="Only the N dearest groups.")]  # noqa: UP045
Order = Annotated[str, typer.Option(help="asc or desc, in time.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit 3 when something has no price, an old one, or no outcome.")
]
NoIngest = Annotated[bool, typer.Option("--no-ingest", help="Leave the spool alone; report what is in the ledger.")]


Cost = Annotated[
    Literal["effective", "list", "both", "none"],
    typer.Option("--cost", help="Columns of money: what is paid, what the list says, both, or none."),
]
Corrections = Annotated[
    Literal["net", "split"], typer.Option(help="Corrections, refunds, credits and true-ups: in the cost, or beside it.")
]
Compact = Annotated[bool, typer.Option("--compact", help="Only tokens and money, for narrow terminals.")]
Currency = Annotated[str, typer.Option(help="Show money in this currency, by the rates of `usage rates`.")]
FxDate = Annotated[Literal["day", "month-end"], typer.Option(help="Which rate: of the day, or the month's last.")]
Output = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--output", "-o", help="Write it to this file, whole, in place of the one before.", metavar="FILE"),
]
Form = Annotated[
    Literal["table", "json", "csv", "md", "parquet", "focus"],
    typer.Option("--format", help="How to print it; parquet and focus (FOCUS 1.4) go to the file of --output."),
]
Page = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--html", help="Write a page with charts to this file instead (needs embedctl[charts]).", metavar="FILE"
    ),
]


def _report(by: list[str], given: dict[str, Any]) -> None:
    """Ask, print, and fail under --strict when the answer is incomplete."""
    from embedctl.ledger import database
    from embedctl.reports import report

    form = _ledger.chosen_format(given["form"], given["as_json"])
    _refuse_contradictions(given, form)
    ledger = _ledger.opened(given["ledger"], given["config"])
    question = _question(by, given, ledger)
    notes = [] if given["no_ingest"] else _ledger.take_in(ledger)
    if given["html"] is not None:
        found = _write_page(ledger, question, notes, given["html"])
    elif form in _FILES:
        found = _write_file(ledger, question, notes, given)
    else:
        with database.reader(ledger.paths, now=ledger.now) as connection:
            found = report.report(connection, question, now=ledger.now)
        look = _ledger.Look(given["cost"], given["corrections"] == "split", given["compact"])
        with _ledger.written_to(given["output"]):
            _ledger.print_report(found, form, notes, look)
    if given["strict"] and found.incomplete:
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
    if form == "focus" and (given["by"] or given["breakdown"] or given["top"] or given["currency"].upper() != "USD"):
        raise WrongUsage("--format focus is charges by day in USD: not with --by, --breakdown, --top or --currency")


def _question(by: list[str], given: dict[str, Any], ledger: _ledger.Opened) -> ReportQuery:
    """What the flags ask."""
    from embedctl.ledger import periods
    from embedctl.reports import report

    names = given["workspace"] or []
    only = {
        "workspace": [name for name in names if name != EACH],
        "provider": given["provider"] or [],
        "model": given["model"] or [],
        "job": given["job"] or [],
    }
    keys = (["workspace"] if EACH in names else []) + (_split(given["by"]) or by)
    keys += ["provider", "model"] if given["breakdown"] else []
    return report.ReportQuery(
        by=list(dict.fromkeys(keys)),
        only={key: values for key, values in only.items() if values},
        within=periods.chosen(
            given["since"], given["until"], given["last"], periods.zone(given["timezone"]), ledger.now
        ),
        timezone=given["timezone"],
        top=given["top"],
        descending=given["order"] == "desc",
        currency=_currency(given),
        fx_date=given["fx_date"],
    )


def _write_file(ledger: _ledger.Opened, question: ReportQuery, notes: list[str], given: dict[str, Any]) -> Report:
    """The report as Parquet, or the charges it is made of as FOCUS."""
    from embedctl.ledger import database
    from embedctl.reports import focus, report

    place = given["output"]
    with database.reader(ledger.paths, now=ledger.now) as connection:
        found = report.report(connection, question, now=ledger.now)
        if given["form"] == "focus":
            focus.export(connection, question, place, "focus", overwrite=True)
        else:
            focus.export_report(connection, found, place)
    for line in [*found.warnings, *notes]:
        terminal.warning(line)
    terminal.notice(f"written to {place}")
    return found


def _write_page(ledger: _ledger.Opened, question: ReportQuery, notes: list[str], place: Path) -> Report:
    from embedctl.ledger import database
    from embedctl.reports import charts
    from embedctl.reports import html as usage_page

    charts.require("plotly")
    with database.reader(ledger.paths, now=ledger.now) as connection:
        shown = usage_page.content(connection, question, now=ledger.now)
    usage_page.write(shown, place, notes)
    terminal.notice(f"report written to {place}")
    return shown.whole


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


def _flags(
    workspace: Workspaces = None,
    everyone: All = False,
    by: By = None,
    breakdown: Breakdown = False,
    since: Since = None,
    until: Until = None,
    last: Last = None,
    timezone: Zone = "UTC",
    provider: Provider = None,
    model: Model = None,
    job: Job = None,
    top: Top = None,
    order: Order = "asc",
    strict: Strict = False,
    no_ingest: NoIngest = False,
    cost: Cost = "effective",
    corrections: Corrections = "net",
    compact: Compact = False,
    currency: Currency = "USD",
    fx_date: FxDate = "day",
    html: Page = None,
    output: Output = None,
    form: Form = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Carries the flags that all reports share."""


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
