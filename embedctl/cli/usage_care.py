"""`embedctl usage ingest|doctor|backup|sql|export|metrics`: care for the ledger, and ways out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.cli.usage_money import Last, Since, Until
from embedctl.errors import InvariantBroken

if TYPE_CHECKING:
    from embedctl.reports.prometheus import Ended

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

Wait = Annotated[
    float, typer.Option("--wait", min=0, help="Seconds to wait for another process that holds the ledger.")
]


@app.command(epilog="Example: embedctl usage ingest --wait 60   (in a crontab)")
def ingest(
    wait: Wait = 60,
    keep_days: Annotated[
        int, typer.Option(min=0, help="Days to keep spool files that are in the ledger; it is rebuilt from them.")
    ] = 400,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Set the database aside and make it anew from all kept spool files.")
    ] = False,
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Take waiting usage events into the ledger. Can be run at any time, any number of times."""
    from datetime import timedelta

    from embedctl.ledger import ingest as steps

    found = _ledger.opened(ledger, config)
    _ledger.recover(found)
    done = steps.ingest(found.paths, wait_s=wait, now=found.now, rebuild=rebuild)
    pruned = steps.prune(found.paths, older_than=timedelta(days=keep_days), now=found.now)
    for note in done.notes():
        terminal.warning(note)
    summary = {"events": done.events, "repeated": done.repeated, "bad_lines": done.bad_lines, "files": done.files}
    if as_json:
        terminal.result(summary | {"pruned": pruned, "rebuilt_from": done.rebuilt_from, "unreadable": done.unreadable})
    else:
        terminal.notice(f"{done.events:,} new events from {done.files:,} spool files ({done.repeated:,} known already)")


@app.command(epilog="Example: embedctl usage rates eurofxref-hist.csv")
def rates(
    file: Annotated[Path, typer.Argument(help="The ECB's history, or a CSV of day, base, quote, rate.")],
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Take in daily exchange rates, for reports with --currency. Nothing that was spent is changed."""
    from embedctl.ledger import database
    from embedctl.reports import exchange_rates

    found = _ledger.opened(ledger, config)
    read = exchange_rates.read(file)
    with database.writer(found.paths, wait_s=30, now=found.now) as connection:
        exchange_rates.put(connection, read, str(file))
    days = sorted({one.day for one in read})
    terminal.notice(f"{len(read):,} rates" + (f" of {days[0]} to {days[-1]}" if days else ""))


@app.command(epilog="Example: embedctl usage doctor --json")
def doctor(
    form: FormatFlag = "table", as_json: JsonFlag = False, ledger: LedgerFlag = None, config: ConfigFlag = None
) -> None:
    """Check the ledger: ids, offsets, bad lines, schema, clock. Exit 70 when a promise is broken."""
    from embedctl.ledger import database
    from embedctl.reports import integrity

    found = _ledger.opened(ledger, config)
    with database.reader(found.paths, now=found.now) as connection:
        findings = list(integrity.findings(connection, found.paths, now=found.now))
    rows = [{"check": f.check, "state": f.state, "detail": f.detail} for f in findings]
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column("check", "Check"),
                terminal.Column("state", "State"),
                terminal.Column("detail", "Detail"),
            ],
            rows=rows,
            envelope={"ledger": str(found.paths.database), "findings": rows},
            title=f"Ledger {found.paths.database}",
        ),
        _ledger.chosen_format(form, as_json),
    )
    broken = [f.check for f in findings if f.state == "broken"]
    if broken:
        _ledger.after_result(
            InvariantBroken(f"the ledger breaks a promise: {', '.join(broken)}", hint="`usage ingest --rebuild`")
        )


@app.command(epilog="Example: embedctl usage backup usage-2026-11.duckdb")
def backup(
    file: Annotated[Path, typer.Argument(help="A new file.")],
    wait: Wait = 60,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Copy the whole ledger into a new DuckDB file while others read it."""
    from embedctl.ledger import backup as copying

    found = _ledger.opened(ledger, config)
    _ledger.take_in(found)
    events = copying.backup(found.paths, file, wait_s=wait, now=found.now)
    terminal.notice(f"{events:,} events in {file}")


@app.command(epilog='Example: embedctl usage sql "SELECT model, sum(tokens) FROM usage_daily GROUP BY 1"')
def sql(
    query: Annotated[
        str, typer.Argument(help="One statement that reads; views: usage_daily, usage_by_workspace, drift.")
    ],
    rows: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 10_000,
    timeout: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds it may take.")] = 60,
    memory: Annotated[int, typer.Option(min=64, max=1 << 20, help="Megabytes it may use.")] = 1024,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Ask the ledger in SQL: read only, without files or network, with a time and memory limit."""
    from embedctl.ledger import database
    from embedctl.ledger import query as asking

    found = _ledger.opened(ledger, config)
    _ledger.take_in(found)
    if not found.paths.database.exists():
        with database.reader(found.paths, now=found.now):
            pass
    answer = asking.ask(found.paths, query, rows=rows, timeout_s=timeout, memory_mb=memory)
    named = [dict(zip(map(str, range(len(row))), row, strict=True)) for row in answer.rows]
    numeric = {key for row in named for key, value in row.items() if isinstance(value, int | float)}
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column(str(index), name, "right" if str(index) in numeric else "left")
                for index, name in enumerate(answer.columns)
            ],
            rows=named,
            envelope={"columns": answer.columns, "rows": answer.rows, "cut": answer.cut},
            footer=[f"! only the first {rows:,} rows (--rows)"] if answer.cut else [],
        ),
        _ledger.chosen_format(form, as_json),
    )


@app.command(epilog="Example: embedctl usage export --format focus --last prev-month -o focus.csv")
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new file.")],
    form: Annotated[
        Literal["focus", "parquet", "cloudevents"],
        typer.Option("--format", help="FOCUS 1.4 (CSV by day), all events as Parquet, or CloudEvents (JSON Lines)."),
    ] = "focus",
    workspace: Annotated[
        Optional[list[str]], typer.Option("--workspace", "-w", help="Only this workspace (repeatable).")  # noqa: UP045
    ] = None,
    since: Since = None,
    until: Until = None,
    last: Last = None,
    priced_only: Annotated[bool, typer.Option("--priced-only", help="FOCUS without usage that has no price.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Write the ledger's events in a format of others. Days are UTC."""
    from embedctl.ledger import database, periods
    from embedctl.reports import focus
    from embedctl.reports.report import ReportQuery

    found = _ledger.opened(ledger, config)
    for note in _ledger.take_in(found):
        terminal.warning(note)
    question = ReportQuery(
        within=periods.chosen(since, until, last, periods.zone("UTC"), found.now),
        only={"workspace": workspace} if workspace else {},
    )
    with database.reader(found.paths, now=found.now) as connection:
        written = focus.export(connection, question, output, form, overwrite=overwrite, priced_only=priced_only)
    terminal.notice(f"{written:,} rows in {output}")


@app.command(epilog="Example: embedctl usage metrics --textfile /var/lib/prometheus/node-exporter")
def metrics(
    textfile: Annotated[
        Optional[Path], typer.Option("--textfile", help="node_exporter's textfile folder; without it: stdout.")  # noqa: UP045
    ] = None,
    no_workspaces: Annotated[bool, typer.Option("--no-workspaces", help="Without the workspace label.")] = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Write counters for Prometheus: tokens, cost, calls, failures, fallbacks, circuits, drift, budgets, jobs."""
    from embedctl.ledger import budgets, database
    from embedctl.reports import prometheus
    from embedctl.routing.circuits import running

    found = _ledger.opened(ledger, config)
    for note in _ledger.take_in(found):
        terminal.warning(note)
    extra = budgets.configured(found.settings.workspaces)
    with database.reader(found.paths, now=found.now) as connection:
        collected = prometheus.collect(
            connection,
            found.paths,
            budgets_set=extra,
            jobs=_ended(found),
            circuits=running(found.settings.paths.home / "circuits"),
            counts=_counts_looked_up(found),
            by_workspace=not no_workspaces,
            now=found.now,
        )
    if textfile is None:
        typer.echo(prometheus.text(collected), nl=False)
    else:
        prometheus.write(collected, textfile)


def _counts_looked_up(found: _ledger.Opened) -> tuple[int, int] | None:
    """Hits and misses of the token-count cache, where one is kept."""
    from embedctl.storage.token_count_cache import SharedCounts

    asked = found.settings.token_usage
    if not asked.cache or not found.settings.paths.cache.exists():
        return None
    counts = SharedCounts(found.settings.paths.cache, ttl_s=asked.cache_ttl_s, warned=terminal.warning)
    tally = counts.tally()
    counts.close()
    return tally.hits, tally.misses


def _ended(found: _ledger.Opened) -> list[Ended]:
    """The last end of every job that pays into this ledger."""
    from embedctl.reports.prometheus import Ended
    from embedctl.runs.registry import RunRegistry

    jobs: dict[str, Ended] = {}
    for run in RunRegistry(found.settings.paths.runs).all():  # newest first
        if not run.job_id or run.exit_code is None or run.ledger not in ("", str(found.paths.database.absolute())):
            continue
        last = jobs.setdefault(run.job_id, Ended(run.job_id, None, run.exit_code))
        if run.exit_code == 0 and last.succeeded_at is None:
            jobs[run.job_id] = Ended(run.job_id, run.finished_at, last.exit_code)
    return list(jobs.values())
