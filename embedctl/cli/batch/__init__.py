"""`embedctl batch`: large inputs in resumable, incremental runs."""

from __future__ import annotations

from embedctl.cli._groups import Group, RunningGroup

app = Group(
    __name__,
    {
        "run": "run",
        "list": "listing",
        "status": "status",
        "failures": "failures",
        "cancel": "cancel",
        "finish": "finish",
    },
    cls=RunningGroup,
    help="Embed large inputs in resumable, incremental runs.",
    epilog="Example: embedctl batch run tickets.parquet -o tickets/",
)
