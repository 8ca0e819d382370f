"""`embedctl batch status`: how a run stands, or what became of one row."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag
from embedctl.cli.batch._registry import Job, registry
from embedctl.records import format_money

app = typer.Typer()


@app.command(epilog="Example: embedctl batch status nightly --id 4711")
def status(
    job: Job,
    row_id: Annotated[str | None, typer.Option("--id", help="What became of the row with this id.")] = None,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Show how a run stands: state, progress, rates, cost so far, last error."""
    from embedctl.records import utc_now
    from embedctl.runs.status import status as status_of
    from embedctl.runs.status import whereabouts

    run = registry(config).find(job)
    answer = status_of(run, utc_now()) if row_id is None else whereabouts(run, row_id)
    flat = {key: value for key, value in answer.items() if not isinstance(value, Mapping | list)}
    flat |= {f"{key}.{name}": part for key in ("counts", "failure") for name, part in answer.get(key, {}).items()}
    flat |= {f"chunk {chunk['chunk_index']}": chunk["embedding_operation_id"] for chunk in answer.get("chunks", ())}
    shown = {key: format_money(value) if isinstance(value, Decimal) else value for key, value in flat.items()}
    rows = [{"key": key, "value": None if value is None else str(value)} for key, value in shown.items()]
    columns = [terminal.Column("key", "Key"), terminal.Column("value", "Value")]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=answer), "json" if as_json else form)
