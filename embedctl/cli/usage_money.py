"""`embedctl usage explain|drift|budget|reprice|adjust|reconcile`: how sure the numbers are, and what mends them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from embedctl import terminal
from embedctl.cli import _ledger, usage_budget
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.errors import RowsFailed, WrongUsage
from embedctl.settings.options import checked_name

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(usage_budget.app, name="budget")

Text = Optional[str]  # noqa: UP045 - typer reads it
Since = Annotated[Text, typer.Option(help="From this day or time on (UTC).")]
Until = Annotated[Text, typer.Option(help="Up to this day or time, not included (UTC).")]
Last = Annotated[Text, typer.Option(help="7d, 24h, 4w, 3m, today, yesterday, week, month, mtd or prev-month.")]
Workspace = Annotated[str, typer.Option("--workspace", "-w", help="Whose.")]


@app.command(epilog="Example: embedctl usage explain 019aa2f1-7c00-7000-8000-000000000001")
def explain(
    event: Annotated[Text, typer.Argument(help="Event or operation id.")] = None,
    run: Annotated[Text, typer.Option("--run", help="Instead, all of a run.")] = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Show how a cost was computed: units x unit price, which price, and every attempt."""
    from embedctl.ledger import database
    from embedctl.reports import explain as explaining

    if (event is None) == (run is None):
        raise WrongUsage("name an event, or a run with --run")
    found = _ledger.opened(ledger, config)
    notes = _ledger.take_in(found)
    with database.reader(found.paths, now=found.now) as connection:
        told = explaining.event(connection, event) if event else explaining.run(connection, str(run))
    keys = ("occurred_at", "attempt", "provider", "model", "status", "sum") if event else (
        "provider", "model", "status", "calls", "sum")  # fmt: skip
    sources = {
        f"price: {p['kind']} {p['unit_price'].normalize():f} USD per million since {p['valid_from'][:10]} "
        f"({p['confidence']}; {p['source']}{': ' + p['source_ref'] if p['source_ref'] else ''})"
        for line in told.lines
        if (p := line["price"])
    }
    rows = [line | {"source": (line["price"] or {}).get("source")} for line in told.lines]
    terminal.table(
        terminal.Table(
            columns=[terminal.Column(key, key.replace("_", " ").capitalize()) for key in keys],
            rows=rows,
            envelope={"lines": list(told.lines), "cost": told.cost, "currency": "USD", "warnings": notes},
            footer=[
                f"cost: {'unknown' if told.cost is None else _ledger.amount(told.cost)} USD",
                *sorted(sources),
                *notes,
            ],
        ),
        _ledger.chosen_format(form, as_json),
    )


@app.command(epilog="Example: embedctl usage drift --threshold 0.05 --last 7d")
def drift(
    threshold: Annotated[float, typer.Option(min=0, help="Drift of the sums above which it exits 3.")] = 0.05,
    since: Since = None,
    until: Until = None,
    last: Last = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Compare the providers' token counts with the tokenizer's here."""
    from embedctl.ledger import database, periods
    from embedctl.reports import drift as drifting
    from embedctl.reports.report import ReportQuery

    found = _ledger.opened(ledger, config)
    notes = _ledger.take_in(found)
    question = ReportQuery(within=periods.chosen(since, until, last, periods.zone("UTC"), found.now))
    with database.reader(found.paths, now=found.now) as connection:
        drifts = drifting.drift(connection, question, threshold)
    over = [each for each in drifts if each.over(threshold)]

    def percent(value: float | None, sign: str = "") -> str | None:
        return None if value is None else f"{value:{sign}.1%}"

    headings = {"pairs": "Pairs", "tokens_native": "Native", "tokens_estimated": "Counted", "weighted": "Drift",
                "p95": "p95", "share_over": "Over", "fallback_share": "Est."}  # fmt: skip
    ratios = ("p95", "share_over", "fallback_share")
    terminal.table(
        terminal.Table(
            columns=[terminal.Column("provider", "Provider"), terminal.Column("model", "Model")]
            + [terminal.Column(key, heading, "right") for key, heading in headings.items()],
            rows=[
                d.as_dict() | {"weighted": percent(d.weighted, "+")} | {key: percent(getattr(d, key)) for key in ratios}
                for d in drifts
            ],
            envelope={
                "threshold": threshold,
                "models": [d.as_dict() | {"over": d in over} for d in drifts],
                "warnings": notes,
            },
            footer=[*(f"! {d.provider}:{d.model} drifts by {percent(d.weighted, '+')}" for d in over), *notes],
        ),
        _ledger.chosen_format(form, as_json),
    )
    if over:
        _ledger.after_result(RowsFailed(f"{len(over)} of {len(drifts)} models drift by more than {threshold:.1%}"))


@app.command(epilog="Example: embedctl usage reprice --since 2026-11-01 --apply")
def reprice(
    since: Since = None,
    apply: Annotated[bool, typer.Option("--apply/--dry-run", help="Write it, or only show it.")] = False,
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Fill in costs whose price came late; correct, by rows of their own, those whose price was wrong."""
    from embedctl.ledger import periods
    from embedctl.reports import reprice as repricing

    found = _ledger.opened(ledger, config)
    _ledger.take_in(found)
    start = periods.parse(since, periods.zone("UTC"), "--since") if since else None
    done = repricing.reprice(found.paths, since=start, apply=apply, now=found.now)
    summary = {
        "applied": apply,
        "filled_events": done.filled_events,
        "filled_cost": done.filled_cost,
        "filled_at_risk": done.filled_at_risk,
        "corrections": [{k: v for k, v in row.items() if k != "occurred_us"} for row in done.corrections],
        "correction": done.correction,
    }
    headings = {"day": "Day", "workspace_id": "Workspace", "job_id": "Job", "provider": "Provider", "model": "Model",
                "calls": "Calls", "delta": "Delta USD"}  # fmt: skip
    numbers = ("calls", "delta")
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column(key, name, "right" if key in numbers else "left") for key, name in headings.items()
            ],
            rows=done.corrections,
            envelope=summary,
            title=f"Repricing ({'applied' if apply else 'dry run: --apply writes it'})",
            footer=[
                f"{done.filled_events:,} calls without a price get one: {_ledger.amount(done.filled_cost)} USD",
                f"{len(done.corrections):,} corrections: {_ledger.amount(done.correction)} USD",
            ],
        ),
        "json" if as_json else "table",
    )


@app.command(epilog='Example: embedctl usage adjust --credit 12.50 --provider voyage --reason "free allowance"')
def adjust(
    provider: Annotated[str, typer.Option("--provider", help="Whose bill it is on.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the row.")],
    credit: Annotated[Text, typer.Option("--credit", help="USD credited: an allowance, a voucher.")] = None,
    refund: Annotated[Text, typer.Option("--refund", help="USD paid back.")] = None,
    workspace: Workspace = "default",
    model: Annotated[str, typer.Option("--model", "-m", help="Of which model.")] = "*",
    on: Annotated[Text, typer.Option("--on", help="Day or time it counts for (UTC; default: now).")] = None,
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Enter a credit or a refund: a negative row with a reason. Nothing that stands is changed."""
    from embedctl.ledger import adjustments, periods

    if (credit is None) == (refund is None):
        raise WrongUsage("either --credit or --refund")
    found = _ledger.opened(ledger, config)
    _ledger.refuse_unknown_provider(found, provider)
    kind: adjustments.Kind = "credit" if credit is not None else "refund"
    value = _ledger.typed_amount(credit or refund or "", f"--{kind}")
    at = periods.parse(on, periods.zone("UTC"), "--on") if on else found.now
    row = adjustments.entry(
        kind,
        -value,
        workspace=checked_name(workspace, "workspace"),
        reason=reason,
        at=at,
        provider=provider,
        model=model,
    )
    adjustments.publish(found.paths, [row], f"{kind}-{row.event_id}")
    for note in _ledger.take_in(found):
        terminal.warning(note)
    if as_json:
        terminal.result({"event_id": row.event_id, "entry_kind": kind, "workspace": workspace, "cost": -value})
    else:
        terminal.notice(f"{kind} of {_ledger.amount(value)} USD entered for {workspace} on {provider}")


@app.command(epilog="Example: embedctl usage reconcile --provider openai --since 2026-11-01 --file costs.csv")
def reconcile(
    provider: Annotated[str, typer.Option("--provider", help="The provider's name in the ledger.")],
    since: Since = None,
    until: Until = None,
    last: Last = None,
    file: Annotated[
        Optional[Path], typer.Option("--file", help="Its export: CSV or JSON with day, tokens, cost …; else asked for.")  # noqa: UP045
    ] = None,
    write_true_up: Annotated[
        bool, typer.Option("--write-true-up", help="Enter what the money differs by, so that ledger = invoice.")
    ] = False,
    workspace: Workspace = "default",
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    ledger: LedgerFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Compare the ledger with the provider's own account, by UTC day, model and account.

    Without --file OpenAI itself is asked, with the admin key in OPENAI_ADMIN_KEY; the last 30 days by default.
    """
    from embedctl.ledger import adjustments, database, periods
    from embedctl.reports import provider_export
    from embedctl.reports import reconcile as reconciling

    found = _ledger.opened(ledger, config)
    within = periods.chosen(since, until, last, periods.zone("UTC"), found.now)
    checked_name(workspace, "workspace")
    if file is None:
        from embedctl.reports import provider_api

        within = provider_export.whole_days(within, found.now)
        with provider_api.fetching(found.settings, provider) as fetch:
            billed = provider_export.fetch_openai(fetch, within)
    else:
        billed = provider_export.read_export(file)
        _ledger.refuse_unknown_provider(found, provider)
    notes = _ledger.take_in(found)
    with database.writer(found.paths, wait_s=30, now=found.now) as connection:
        lines = reconciling.compare(connection, provider, billed, within)
        reconciling.record(connection, provider, lines, found.now)
    ups = reconciling.true_ups(provider, lines, workspace) if write_true_up else []
    for row in ups:
        adjustments.publish(found.paths, [row], f"true_up-{row.event_id}")
    notes += _ledger.take_in(found)
    keys = ("day", "model", "account", "provider_tokens", "confirmed", "unknown", "difference", "explained",
            "provider_cost", "ledger_cost", "cost_difference")  # fmt: skip
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column(k, k.replace("_", " ").capitalize(), "left" if k in keys[:3] else "right") for k in keys
            ],
            rows=[line.as_dict() for line in lines],
            envelope={
                "provider": provider,
                "lines": [line.as_dict() for line in lines],
                "true_ups": [{"event_id": up.event_id, "cost": up.cost_provider} for up in ups],
                "warnings": notes,
            },
            footer=[*([f"{len(ups)} true-ups entered"] if write_true_up else []), *notes],
        ),
        _ledger.chosen_format(form, as_json),
    )
