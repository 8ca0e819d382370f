"""`embedctl prices`: what things cost, since when, and who says so."""

from __future__ import annotations

from embedctl.cli._groups import Group

app = Group(
    __name__,
    {"list": "listing", "show": "show", "set": "set", "import": "import_", "check": "check"},
    help="What embeddings cost, since when, and who says so.",
    epilog="Example: embedctl prices show openai:text-embedding-3-small",
)
