"""`embedctl batch status`: how a run stands, or what became of one row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedctl import terminal
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, StoreOptionFlag
from embedctl.cli.batch._registry import JobOrOutput, on_store, paths, registry
from embedctl.errors import InputMissing
from embedctl.records import format_duration, format_money

if TYPE_CHECKING:
    from embedctl.storage.store import Store

app = typer.Typer()


@app.command(epilog="Example: embedctl batch status nightly --id 4711")
def status(
    job: JobOrOutput,
    row_id: Annotated[str | None, typer.Option("--id", help="What became of the row with this id.")] = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    store_option: StoreOptionFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Show how a run stands: state, progress, rates, cost so far, last error, batches at its provider."""
    if (store := on_store(job, store_option, config)) is not None:
        _show_on_store(store, row_id, config, "json" if as_json else form)
        return
    from embedctl.records import utc_now
    from embedctl.runs.status import remote_batches, run_of, whereabouts
    from embedctl.runs.status import status as status_of

    run = run_of(registry(config), job)
    if isinstance(run, Path):
        raise InputMissing(f"no run that is known here wrote {job}", hint="`embedctl vectors info` looks into it")
    if row_id is None:
        answer = {**status_of(run, utc_now()), "batches": remote_batches(paths(config), run)}
    else:
        answer = whereabouts(run, row_id)
    lines = _row_lines(answer) if row_id is not None else _run_lines(answer)
    rows = [{"key": key, "value": value} for key, value in lines.items() if value]
    columns = [terminal.Column("key", "Run"), terminal.Column("value", answer.get("run_id") or run.job_id)]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=answer), "json" if as_json else form)


def _show_on_store(store: Store, row_id: str | None, config: Path | None, form: terminal.Format) -> None:
    """How a job on a store stands, or what became of one row of it."""
    from embedctl.runs import store_status

    if row_id is not None:
        answer = store_status.whereabouts(store, row_id)
        lines, name = _row_lines(answer), store.url
    else:
        answer = store_status.status(store, paths(config).price_file)
        lines, name = _store_lines(answer), answer["job"] or answer["job_id"]
    rows = [{"key": key, "value": value} for key, value in lines.items() if value]
    columns = [terminal.Column("key", "Job"), terminal.Column("value", name)]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=answer), form)


def _store_lines(answer: Mapping[str, Any]) -> dict[str, str]:
    """A job on a store for people."""
    counts, shards = answer["counts"], answer["shards"]
    parts = [f"{counts['read']:,}"]
    parts += [f"{counts[name]:,} {name}" for name in ("vectors", "failed", "skipped") if counts[name]]
    words = [f"{shards['done']:,} of {shards['total']:,} done ({answer['progress']:.0%})"]
    words += [f"{shards[name]:,} {name}" for name in ("begun", "free") if shards[name]]
    in_work = sum(one["rows"] or 0 for one in answer["working"])
    cost = answer["cost"]
    spent = "unknown" if cost is None else f"{format_money(cost)} USD"
    at_risk = answer["cost_at_risk"]
    return {
        "state": answer["state"],
        "shards": ", ".join(words),
        "rows": f"{', '.join(parts)}{'' if answer['state'] == 'completed' else ', of shards that are done'}",
        "in work": f"{in_work:,} rows of shards that are begun" if in_work else "",
        "tokens": f"{answer['tokens']:,}",
        "cost": f"{'at least ' if answer['cost_is_lower_bound'] else ''}{spent}"
        + (f", up to {format_money(at_risk)} USD unconfirmed" if at_risk else ""),
        "reasons": ", ".join(f"{reason}: {count:,}" for reason, count in answer["failed_reasons"].items()),
        "workers": ", ".join(answer["workers"]),
        "model": answer["model"],
        "workspace": terminal.who_pays(answer["workspace"], answer["workspace_column"]),
        "planned": answer["planned_at"] or "",
        "output": answer["output"],
    }


def _run_lines(answer: Mapping[str, Any]) -> dict[str, str]:
    """A run for people, in the order in which they ask: how it stands, what came of it, what it cost, where it is."""
    counts, cost = answer["counts"], answer["cost"]
    rows, total = counts.get("rows"), counts.get("rows_total")
    share = f" of {total:,} ({answer['progress']:.0%})" if total and answer["progress"] is not None else ""
    parts = [f"{rows:,}{share}"] if rows is not None else []
    parts += [f"{counts[name]:,} {name}" for name in ("vectors", "reused", "duplicates", "failed", "skipped")
              if counts.get(name)]  # fmt: skip
    ended = answer["finished_at"]
    code = "" if answer["exit_code"] is None else f" (exit code {answer['exit_code']})"
    unconfirmed = f", up to {counts['tokens_unknown']:,} unconfirmed" if counts.get("tokens_unknown") else ""
    tried = f", {counts['attempts']:,} attempts" if counts.get("attempts", 0) > counts.get("requests", 0) else ""
    return {
        "job": answer["job"] or "",
        "state": f"{answer['state']}{code}",
        "rows": ", ".join(parts),
        "rate": f"{answer['rows_per_second']:,} rows/s, {answer['tokens_per_second']:,} tokens/s" if rows else "",
        "requests": f"{counts['requests']:,}{tried}" if counts.get("requests") else "",
        "tokens": f"{counts['tokens']:,}{unconfirmed}" if "tokens" in counts else "",
        "cost": "unknown" if cost is None else f"{format_money(cost)} USD",
        "model": answer["model"],
        "workspace": terminal.who_pays(answer["workspace"], answer["workspace_column"]),
        "started": answer["started_at"].isoformat(" ", "seconds"),
        "ended": ""
        if ended is None
        else f"{ended.isoformat(' ', 'seconds')}, after {format_duration(answer['seconds'])}",
        "output": answer["output"],
        **{f"batch {number}": _batch_line(one) for number, one in enumerate(answer["batches"], 1)},
        "last error": answer["last_error"] or "",
    }


def _batch_line(one: Mapping[str, Any]) -> str:
    """A batch at its provider: how it stands, what is at risk, and until when its results can be had."""
    until = one["results_until"] or one["expires_at"]
    cost = one["cost_at_risk"]
    parts = [
        f"{one['provider']} {one['batch_id'] or 'unknown yet'}",
        one["status"] or one["step"],
        f"{one['lines_done'] or 0:,} of {one['lines']:,} lines",
        f"{one['texts']:,} texts, {one['tokens']:,} tokens",
        "cost unknown" if cost is None else f"{format_money(cost)} USD at risk",
        "" if until is None else f"expires {until.isoformat(' ', 'minutes')}",
    ]
    return ", ".join(filter(None, parts))


def _row_lines(answer: Mapping[str, Any]) -> dict[str, str]:
    """A row for people."""
    failure = answer.get("failure", {})
    chunks = answer.get("chunks", ())
    return {
        "row": answer["id"],
        "state": answer["state"],
        "reason": f"{failure['reason']}: {failure['message']}" if failure else "",
        "provider": failure.get("provider") or "",
        "part": answer.get("part") or "",
        **{f"chunk {one['chunk_index']}": f"operation {one['embedding_operation_id']}" for one in chunks},
    }
