"""`embedctl vectors`: what an output holds, whether it is right, what is near to what."""

from __future__ import annotations

from embedctl.cli._groups import Group

app = Group(
    __name__,
    {"info": "about", "map": "map", "verify": "verify", "search": "search", "lock": "lock", "drift": "drift"},
    help="Look at vectors: info, verify, search, map, lock, drift.",
    epilog="Example: embedctl vectors search handbook.parquet 'sick leave'",
)
