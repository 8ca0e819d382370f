"""`embedctl providers`: who serves models, whether they may be asked, and whether they answer."""

from __future__ import annotations

from embedctl.cli._groups import Group, ListingGroup

app = Group(
    __name__,
    {"list": "listing", "test": "test", "reset": "reset"},
    cls=ListingGroup,
    help="List, test and reset providers.",
    epilog="Example: embedctl providers test openai",
)
