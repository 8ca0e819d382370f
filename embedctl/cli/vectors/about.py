"""`embedctl vectors info`: what an output holds, who made it, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag, StoreOptionFlag
from embedctl.cli.vectors._output import OutputPath, opened
from embedctl.errors import EmbedctlError
from embedctl.records import format_money

if TYPE_CHECKING:
    from embedctl.vectors.about import About

app = typer.Typer()


@app.command(epilog="Example: embedctl vectors info tickets/")
def info(
    file: OutputPath,
    form: FormatFlag = "table",
    as_json: JsonFlag = False,
    store_option: StoreOptionFlag = None,
    config: ConfigFlag = None,
    ledger: LedgerFlag = None,
) -> None:
    """Show what is in it: space, rows, failures, who made it, tokens, cost, size."""
    from embedctl.vectors.about import about

    output = about(opened(file, store_option, config))
    money = _cost(output, config, ledger)
    facts = {**_facts(output), "cost": _shown(money)}
    rows = [{"fact": fact, "value": value} for fact, value in facts.items()]
    envelope = {"schema_version": 1, **output.as_dict(), **money, "currency": "USD", "warnings": []}
    columns = [terminal.Column("fact", "Fact"), terminal.Column("value", "Value")]
    terminal.table(terminal.Table(columns=columns, rows=rows, envelope=envelope), _ledger.chosen_format(form, as_json))


def _cost(output: About, config: Path | None, ledger: Path | None) -> dict[str, Any]:
    """What the ledger says of the operations that bought the vectors; nulls where it says nothing.

    Raises:
        InputMissing: As `_ledger.refuse_missing`.
    """
    opened = _ledger.opened(ledger, config)
    _ledger.refuse_missing(opened)
    money: dict[str, Any] = {"cost": None, "cost_is_lower_bound": True}
    if not output.operations or not opened.paths.database.exists():
        return money
    from embedctl.ledger import database, operations

    with suppress(EmbedctlError):
        _ledger.take_in(opened, wait_s=1)
        with database.reader(opened.paths, wait_s=1, now=opened.now) as connection:
            spent = operations.spent(connection, output.operations)
        return {"cost": spent.cost, "cost_is_lower_bound": spent.is_lower_bound}
    return money


def _shown(money: Mapping[str, Any]) -> str:
    """The cost for people."""
    if money["cost"] is None:
        return "unknown: not in this ledger, or without a price"
    return f"{'at least ' if money['cost_is_lower_bound'] else ''}{format_money(money['cost'])} USD"


def _facts(output: About) -> dict[str, Any]:
    """What `output` is, but for its cost, for people."""
    space, size = output.space, output.size_bytes
    extras = {
        "dimension_policy": None if space.dimension_policy == "native" else space.dimension_policy,
        "input_type": space.input_type,
        "prefix": space.prefix or None,
        "truncation": None if space.truncation == "none" else space.truncation,
    }
    lost = [f"{reason}: {count:,}" for reason, count in output.failures.items()]
    return {
        "path": f"{output.path} ({output.parts:,} parts)" if output.parts > 1 else output.path,
        "rows": output.rows,
        "model": f"{space.model}, {space.dimensions} dimensions, {output.dtype}",
        **{name: value for name, value in extras.items() if value is not None},
        "space_id": space.space_id,
        "made by": ", ".join(f"{p}:{m} ({rows:,})" for (p, m), rows in output.makers.items()),
        "tokens": f"at least {output.tokens:,}" if output.rows_without_tokens else output.tokens,
        "input rows": output.rows_read,
        "not embedded": ", ".join(lost) or "none",
        "columns": ", ".join(output.columns),
        **_locked(output),
        "size": f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB",
    }


def _locked(output: About) -> dict[str, Any]:
    """What its model was seen to be at first; nothing where its runs kept no record."""
    if output.lock is None or output.lock.canaries is None:
        return {}
    return {"canaries": output.lock.canaries.named, "equal hosts": ", ".join(output.lock.hosts)}
