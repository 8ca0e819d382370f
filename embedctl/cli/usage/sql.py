"""`embedctl usage sql`: one's own questions to the ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag

app = typer.Typer()


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
    from embedctl.ledger.query import ask

    opened = _ledger.opened(ledger, config)
    for note in _ledger.take_in(opened):
        terminal.warning(note)
    answer = ask(opened.paths, query, rows=rows, timeout_s=timeout, memory_mb=memory)
    named = [dict(zip(map(str, range(len(row))), row, strict=True)) for row in answer.rows]
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column(str(index), name, "right" if numeric else "left", name=name, exact=numeric)
                for index, (name, numeric) in enumerate(zip(answer.columns, answer.numeric, strict=True))
            ],
            rows=named,
            envelope={"columns": answer.columns, "rows": answer.rows, "cut": answer.cut},
            footer=[f"! only the first {rows:,} rows (--rows)"] if answer.cut else [],
        ),
        _ledger.chosen_format(form, as_json),
    )
