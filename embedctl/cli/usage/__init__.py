"""`embedctl usage`: what was spent, by whom, on what, and how sure that is."""

from __future__ import annotations

from embedctl.cli._groups import Group

app = Group(
    __name__,
    {
        "report": "report",
        "daily": "report",
        "weekly": "report",
        "monthly": "report",
        "jobs": "report",
        "explain": "explain",
        "drift": "drift",
        "reprice": "reprice",
        "adjust": "adjust",
        "reconcile": "reconcile",
        "budget": "budget",
        "estimate": "estimate",
        "diff": "diff",
        "forecast": "forecast",
        "anomalies": "anomalies",
        "ingest": "ingest",
        "rates": "rates",
        "doctor": "doctor",
        "backup": "backup",
        "sql": "sql",
        "export": "export",
        "metrics": "metrics",
    },
    help="What was spent, by whom, on what, and how sure that is.",
    epilog="Example: embedctl usage report --workspace --last 7d",
)
