"""`embedctl keys`: who may ask a server, and what each may."""

from __future__ import annotations

from embedctl.cli._groups import Group, ListingGroup

app = Group(
    __name__,
    {"list": "listing", "create": "create", "rotate": "rotate", "revoke": "revoke"},
    cls=ListingGroup,
    help="Create, list, rotate and revoke keys of `embedctl serve`.",
    epilog="Example: embedctl keys create --workspace acme --rpm 60 --budget 5/day",
)
