"""`embedctl usage doctor`: whether the ledger keeps its promises."""

from __future__ import annotations

import typer

from embedctl import terminal
from embedctl.cli import _ledger
from embedctl.cli._flags import ConfigFlag, FormatFlag, JsonFlag, LedgerFlag
from embedctl.errors import InvariantBroken

app = typer.Typer()


@app.command(epilog="Example: embedctl usage doctor --json")
def doctor(
    form: FormatFlag = "table", as_json: JsonFlag = False, ledger: LedgerFlag = None, config: ConfigFlag = None
) -> None:
    """Check the ledger: ids, offsets, bad lines, schema, clock. Exit 70 when a promise is broken."""
    from embedctl.journal.rescue import foreign_journals
    from embedctl.ledger import database
    from embedctl.reports import integrity
    from embedctl.runs.copies import vanished
    from embedctl.runs.registry import RunRegistry

    opened = _ledger.opened(ledger, config)
    _ledger.refuse_missing(opened)
    registry = RunRegistry(opened.settings.paths.runs)
    runs = registry.all()
    states = {run.folder for run in runs}
    with database.reader(opened.paths, now=opened.now) as connection:
        checked = integrity.findings(
            connection,
            opened.paths,
            now=opened.now,
            foreign=[path for state in sorted(states) for path in foreign_journals(state)],
            broken_entries=registry.broken(),
            vanished=[
                f"{run.job_id or run.run_id} of {run.started_at:%Y-%m-%d}: {run.output}" for run in vanished(runs)
            ],
        )
        findings = list(checked)
    rows = [{"check": f.check, "state": f.state, "detail": f.detail} for f in findings]
    terminal.table(
        terminal.Table(
            columns=[
                terminal.Column("check", "Check"),
                terminal.Column("state", "State"),
                terminal.Column("detail", "Detail"),
            ],
            rows=rows,
            envelope={"ledger": str(opened.paths.database), "findings": rows},
            title=f"Ledger {opened.paths.database}",
        ),
        _ledger.chosen_format(form, as_json),
    )
    broken = [f.check for f in findings if f.state == "broken"]
    if broken:
        _ledger.after_result(
            InvariantBroken(f"the ledger breaks a promise: {', '.join(broken)}", hint="`usage ingest --rebuild`")
        )
