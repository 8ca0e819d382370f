"""`embedctl models`: what can be asked for, and what is known of it."""

from __future__ import annotations

from embedctl.cli._groups import Group, ListingGroup

app = Group(
    __name__,
    {
        "list": "listing",
        "show": "show",
        "choose": "choose",
        "compare": "compare",
        "pull": "pull",
        "warmup": "warmup",
    },
    cls=ListingGroup,
    help="List, show, choose and compare models; pull and warm up local ones.",
    epilog="Example: embedctl models show text-embedding-3-small",
)
